//! One training run: the loop, evaluation, checkpoints and what is reported.

pub mod config;
pub mod log;
pub mod step;
