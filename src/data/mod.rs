//! From files to batches: `load` drives `reader` (files to [`Example`]s) and `tokenize` (texts to ids) on all threads, `cache`
//! keeps what it makes → `labels` (strings to targets) → `dataset` (packed batches) ← `sampler` (which rows, in which
//! order). Nothing here knows a model or a tensor.

pub mod cache;
pub mod config;
pub mod dataset;
pub mod example;
pub mod guess;
pub mod label_sets;
pub mod labels;
pub mod load;
pub mod places;
pub mod reader;
pub mod sampler;
mod schema;
mod sentencepiece;
pub mod settings;
pub mod slices;
pub mod span;
pub mod tagging;
pub mod tokenize;
pub mod tokens;
mod unigram;
mod vocabulary;
mod words;

pub use dataset::{Batch, Dataset, Targets, split_fraction};
pub use example::Example;
pub use label_sets::LabelSets;
pub use labels::{LabelMap, Labels};
pub use load::{Loaded, load};
pub use places::Places;
pub use reader::{ReadOptions, Reader, Skipped};
pub use span::SpanRows;
pub use tagging::TagRows;
pub use tokenize::Tokenizer;
pub use tokens::Tokens;

use crate::suggest::nearest;

/// ` (did you mean "…"?)`, for the middle of a message, with the candidate nearest to a mistyped name of the user's
/// data; empty when none is near.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |c| format!(" (did you mean \"{}\"?)", shortened(c)))
}

/// Names as messages show them: at most ten, each cut at 40 characters, so that one bad row cannot flood a terminal.
pub(crate) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let total = names.len();
    let shown: Vec<String> = names.take(10).map(shortened).collect();
    let more = if total > 10 { format!(", … ({total} in all)") } else { String::new() };
    format!("[{}{more}]", shown.join(", "))
}

/// The first 40 characters of a text from the user's data, with line breaks escaped.
pub(crate) fn shortened(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars
        .by_ref()
        .take(40)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    if chars.next().is_some() { head + "…" } else { head }
}
