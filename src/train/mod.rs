//! One training run: the loop, evaluation, checkpoints and what is reported.

pub mod class_weights;
pub mod config;
pub mod eval;
pub mod eval_config;
pub mod log;
pub mod memory;
pub mod on_cuda;
pub mod plan;
pub mod run_dir;
pub mod scheduler;
pub mod step;
pub mod timing;
pub mod trainer;
