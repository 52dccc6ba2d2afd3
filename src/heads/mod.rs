//! Task heads: from the hidden states an encoder returns to logits and loss, in ordinary candle code with autograd.

pub mod objective;
pub mod sequence;
pub mod span;
pub mod tags;

pub use objective::Objective;

pub use sequence::SequenceHead;
