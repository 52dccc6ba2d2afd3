//! From files to batches.

pub mod config;
