//! One input row as it was read, before labels and tokens are looked up.

use std::path::Path;
use std::sync::Arc;

/// A row of a data file: its text or texts, its label as a string, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// `None` when no label column was asked for.
    pub label: Option<String>,
    /// The value of the column that groups rows; `None` when none was asked for.
    pub slice: Option<String>,
    /// The value of a column or key named `id`, copied to predictions. A string in csv and tsv.
    pub id: Option<serde_json::Value>,
    /// 1-based row of data: the header and skipped blank lines are not counted.
    pub row: u64,
    /// 1-based line of the file on which the row begins.
    pub line: u64,
    /// The file, for messages.
    pub file: Arc<Path>,
}
