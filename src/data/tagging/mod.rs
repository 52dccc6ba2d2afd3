//! Words with tags (`tokens`): from sentences to rows of token ids with a label where a word begins.
//!
//! [`crate::data::reader::sentences`] reads [`Sentence`]s, [`load`] makes their tokens, [`Loaded::rows`] cuts what is too long into
//! windows that overlap. Each word belongs to one window, the one in which it has more text around it: there it is learnt and
//! predicted, and in the other it is context only. So every word is predicted once, and counts once.

mod kept;
mod load;
mod rows;
pub mod scheme;
pub mod words;

pub use load::{CHUNK, Gathering, Loaded, TagForm, load, renamed, unlabelled, why_wrong};
pub use rows::{TagRow, TagRows};

use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A sentence as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    pub words: Vec<String>,
    /// As many as words; `None` where none are read.
    pub tags: Option<Vec<String>>,
    /// What the words were taken from, if it was a text.
    pub text: Option<Text>,
    pub id: Option<Value>,
    /// 1-based.
    pub row: u64,
    /// 1-based line on which it begins.
    pub line: u64,
    /// Whether each word has a line of its own.
    pub line_a_word: bool,
    pub file: Arc<Path>,
}

/// A text and where its words stand in it, in characters.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    pub text: String,
    pub offsets: Vec<(usize, usize)>,
}

impl Sentence {
    /// The line of a word.
    pub fn line_of(&self, word: usize) -> u64 {
        if self.line_a_word { self.line + word as u64 } else { self.line }
    }
}
