//! Questions about a text of which a piece is the answer (`span`): from questions to rows of token ids with the places at
//! which the answer begins and ends.
//!
//! [`crate::data::reader::questions`] reads [`Question`]s, [`load`] makes tokens of them and of their contexts, each context once,
//! [`Loaded::rows`] pairs them: `[CLS] question [SEP] context [SEP]`. A context that is too long is cut into windows that
//! share `doc_stride` tokens, a row each. A window without the answer has both places at `[CLS]`.

mod kept;
mod load;
mod rows;

pub use load::{CHUNK, Loaded, Unanswered, load, unanswered};
pub use rows::{Asked, Context, Questions, SpanRow, SpanRows};

use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A question as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// That of the file, or the number of the row.
    pub id: String,
    /// As the file wrote it, if it did.
    pub given_id: Option<Value>,
    pub question: String,
    pub context: Arc<str>,
    /// Where they are read: those that count as right, the first to learn from; none where the context has no answer.
    pub answers: Vec<Answer>,
    /// 1-based.
    pub row: u64,
    /// 1-based.
    pub line: u64,
    pub file: Arc<Path>,
}

/// A piece of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    /// In characters (Unicode scalar values) of the context.
    pub start: usize,
}

impl Answer {
    /// Past its last character.
    pub fn end(&self) -> usize {
        self.start + self.text.chars().count()
    }
}
