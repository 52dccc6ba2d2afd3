//! bertft fine-tunes BERT-family encoders.
pub mod data;
pub mod error;
pub mod metrics;
pub mod ops;
pub mod train;

pub use error::{Error, Result};
