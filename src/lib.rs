//! bertft fine-tunes BERT-family encoders.
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod encoders;
pub mod error;
pub mod heads;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod predict;
pub mod rng;
pub mod suggest;
pub mod train;

pub use error::{Error, Result};
