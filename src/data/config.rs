//! What the `[task]` and `[data]` tables of a config choose.

use serde::Deserialize;

/// What a model predicts.
#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    Classification,
    Regression,
}

/// A column by name or by 0-based index.
#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
pub enum Column {
    Index(usize),
    Name(String),
}

/// A file format that is set rather than taken from the file's extension.
#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Csv,
    Tsv,
    Jsonl,
}
