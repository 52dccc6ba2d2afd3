//! bertft fine-tunes BERT-family encoders.
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod metrics;
pub mod train;

pub use error::{Error, Result};
