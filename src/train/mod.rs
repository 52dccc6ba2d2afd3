//! One training run: the loop, evaluation, checkpoints and what is reported.

pub mod class_weights;
pub mod config;
pub mod eval;
pub mod eval_config;
pub mod eval_span;
pub mod eval_tags;
pub mod log;
pub mod memory;
pub mod plan;
pub mod run_dir;
pub mod scheduler;
pub mod step;
pub mod timing;
pub mod trainer;
