//! bertft fine-tunes BERT-family encoders: text classification, sentence pairs and regression.
//!
//! # Shapes
//! One legend for the whole crate. A batch is its rows packed end to end, without padding:
//! - `batch`: rows of a batch; `seq`: length of a row in tokens; `tokens`: Σ seq over the batch;
//! - `hidden`: width of the encoder, `heads · head_dim`; `inner`: width of the feed-forward part;
//! - `queries`: tokens that the layers above read (all, or one a row); `labels`: outputs of a head;
//! - `cu_seqlens`: prefix sums of the rows' lengths, `[batch + 1]`.
//!
//! # One training step, top to bottom
//! 1. [`config`] says what to do; [`data::reader`] reads rows, [`data::labels`] and [`data::tokenize`] make them numbers.
//! 2. [`data::sampler`] orders the rows of an epoch, [`train::plan`] cuts them, [`data::Dataset::batch`] packs some into a [`data::Batch`].
//! 3. [`train::trainer`] takes a window of batches; [`train::step::gradients`] runs [`model::Model::forward_backward`] on each:
//!    - [`encoders::Encoder::forward`]: embeddings, then [`nn::transformer::Layer`]s over the kernels in [`ops`];
//!    - [`heads::SequenceHead`]: logits and loss (as [`heads::Objective`] weights it), with candle's autograd down to the hidden states;
//!    - [`encoders::Encoder::backward`]: from the hidden states' gradient to every parameter's, in flat arenas ([`nn::params`]).
//! 4. [`train::step::update`] clips, asks [`optim::schedule`] for the learning rate and runs [`ops::adamw`].
//! 5. [`train::eval`] scores, [`train::run_dir`] keeps checkpoints, [`model::Model::save`] writes the result.

pub mod check;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod encoders;
pub mod error;
pub mod heads;
pub mod hub;
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
