//! One training run: the loop, evaluation, checkpoints and what is reported.

pub mod config;
pub mod eval;
pub mod log;
pub mod memory;
pub mod run_dir;
pub mod step;
pub mod timing;
pub mod trainer;
