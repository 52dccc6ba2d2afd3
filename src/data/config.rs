//! The `[task]` kind and the `[data]` table: which files, which columns, how long a row may be.

mod column;
mod eval_source;
mod labels;
mod questions;
mod sentences;
mod task;

pub use column::Column;
pub use eval_source::EvalSource;
pub use questions::{DOC_STRIDE, QUESTION_LENGTH};
pub use task::TaskKind;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

use super::reader::{Naming, ReadOptions, format_by_extension};
pub use super::settings::Format;
use super::settings::{Columns, Delimiter, Encoding, Files, OnBadRow, Pattern, STANDARD_INPUT};
use super::tagging::scheme::Scheme;

/// The `[data]` table. Paths are as [`crate::config::RunConfig`] resolved them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The rows to learn from.
    pub train: Files,
    /// The rows to evaluate on during training; without them nothing is evaluated until the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalSource>,
    /// Rows scored once, at the end, with the best model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<Files>,
    /// The column of the (first) text, or several that are joined to one. Default `"text"`.
    #[serde(default = "text_columns")]
    pub text: Columns,
    /// What stands between joined columns. Default one space.
    #[serde(default = "space")]
    pub join: String,
    /// The column of the second text of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<Column>,
    /// The column of the label or number. For multilabel also several columns that hold 0 or 1, each for the label of its
    /// name. Default `"label"`.
    #[serde(default = "label_column")]
    pub label: Columns,
    /// For multilabel: what stands between the labels of a row in one column. Default a comma. A JSON list needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub label_delimiter: Option<String>,
    /// Whether the first row of csv and tsv files names the columns. Default true.
    #[serde(default = "yes")]
    pub header: bool,
    /// How all data files are written. Default: by each file's extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The characters' encoding where no byte order mark names it. Default UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Between the fields of csv and tsv. Default a comma, and a tab.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<Delimiter>,
    /// Whether quotes enclose fields. Default true in csv, false in tsv.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quoting: Option<bool>,
    /// A regular expression whose named groups are the columns of a line; `format = "pattern"` goes without saying.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    /// What to do with rows that cannot be read. Default: stop at the first.
    #[serde(default)]
    pub on_bad_row: OnBadRow,
    /// Labels of the files by the names that they get. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename_labels: BTreeMap<String, String>,
    /// The labels in the order of their ids. Default: the checkpoint's if the set matches, else sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2))]
    pub labels: Option<Vec<String>>,
    /// For tokens: the scheme that the tags are written in, which every sentence is checked against. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_scheme: Option<Scheme>,
    /// For tokens: the scheme that tags are converted to before they are learnt. Default: as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convert_tags: Option<Scheme>,
    /// For tokens: whether every token of a word is learnt to have its tag (I after B), instead of the first alone. Default
    /// false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub label_all_tokens: bool,
    /// For span: the tokens that windows of a long context share. Default 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_stride: Option<usize>,
    /// Longest row in tokens, special tokens included; longer rows lose text. Default 128, for span 384.
    #[serde(default = "max_length")]
    #[schemars(range(min = 3, max = 1_000_000))]
    pub max_length: usize,
    /// Whether the tokens of large files are kept for the next run. Default true.
    #[serde(default = "yes")]
    pub cache: bool,
}

fn text_columns() -> Columns {
    Column::Name("text".into()).into()
}

fn space() -> String {
    " ".into()
}

fn label_column() -> Columns {
    Column::Name("label".into()).into()
}

fn yes() -> bool {
    true
}

fn max_length() -> usize {
    128
}

/// A value that has the right type and cannot be used: its key path, and what was found, expected and to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Such as `train.learning_rate`.
    pub key: &'static str,
    pub message: String,
}

impl Invalid {
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

impl DataConfig {
    /// Checks what types cannot: ranges and keys that must fit each other. Touches no file.
    pub fn check(&self, task: TaskKind) -> Result<(), Invalid> {
        self.check_files()?;
        self.check_layout()?;
        match task {
            TaskKind::Tokens => self.check_sentences()?,
            TaskKind::Span => self.check_questions()?,
            _ => self.check_columns()?,
        }
        self.check_tags(task)?;
        self.check_labels(task)?;
        // [CLS] a [SEP] needs three tokens, [CLS] a [SEP] b [SEP] five.
        let (least, row) = if self.text_pair.is_some() { (5, "a pair") } else { (3, "a row") };
        if !(least..=1_000_000).contains(&self.max_length) {
            let message =
                format!("is {}, expected {least} to 1000000: {row} needs {least} tokens at least", self.max_length);
            return Err(Invalid::new("data.max_length", message));
        }
        Ok(())
    }

    /// The data files with their key paths.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        let splits = self.splits().into_iter();
        splits.flat_map(|(key, files)| files.iter().map(move |path| (key, path.as_path()))).collect()
    }

    /// The files of each split, or of each named set of `data.eval`, with their key paths.
    fn splits(&self) -> Vec<(&'static str, &Files)> {
        let mut splits = vec![("data.train", &self.train)];
        match &self.eval {
            Some(EvalSource::Files(files)) => splits.push(("data.eval", files)),
            Some(EvalSource::Named(sets)) => splits.extend(sets.iter().map(|(_, files)| ("data.eval", files))),
            Some(EvalSource::Fraction(_)) | None => {}
        }
        splits.extend(self.test.as_ref().map(|files| ("data.test", files)));
        splits
    }

    /// The names of the sets of `data.eval`, if they have some.
    pub fn eval_names(&self) -> Vec<&str> {
        match &self.eval {
            Some(EvalSource::Named(sets)) => sets.iter().map(|(name, _)| name.as_str()).collect(),
            _ => vec![],
        }
    }

    /// As [`Self::splits`], to be changed.
    pub fn splits_mut(&mut self) -> Vec<(&'static str, &mut Files)> {
        let mut splits = vec![("data.train", &mut self.train)];
        match &mut self.eval {
            Some(EvalSource::Files(files)) => splits.push(("data.eval", files)),
            Some(EvalSource::Named(sets)) => splits.extend(sets.iter_mut().map(|(_, files)| ("data.eval", files))),
            Some(EvalSource::Fraction(_)) | None => {}
        }
        splits.extend(self.test.as_mut().map(|files| ("data.test", files)));
        splits
    }

    /// How the files are read for a task.
    pub fn read_options(&self, task: TaskKind) -> ReadOptions {
        ReadOptions {
            format: self.format,
            text: self.text.clone(),
            text_pair: self.text_pair.clone(),
            label: Some(self.label.clone()),
            label_form: self.label_form(task),
            slice: None,
            header: self.header,
            encoding: self.encoding,
            delimiter: self.delimiter,
            quoting: self.quoting,
            pattern: self.pattern.clone(),
            join: self.join.clone(),
            on_bad_row: self.on_bad_row,
            rename_labels: self.rename_labels.clone(),
            naming: Naming::Config,
        }
    }

    /// The files of each eval set with the name that results give it: `eval`, or `eval_` and its own. None where eval is a
    /// share of train.
    pub fn eval_sets(&self) -> Vec<(String, &Files)> {
        match &self.eval {
            Some(EvalSource::Files(files)) => vec![("eval".into(), files)],
            Some(EvalSource::Named(sets)) => sets.iter().map(|(name, files)| (format!("eval_{name}"), files)).collect(),
            Some(EvalSource::Fraction(_)) | None => vec![],
        }
    }

    /// How a file is written, as far as config and name tell.
    pub fn format_of(&self, path: &Path) -> Option<Format> {
        self.format.or(self.pattern.as_ref().map(|_| Format::Pattern)).or_else(|| format_by_extension(path).flatten())
    }

    fn check_files(&self) -> Result<(), Invalid> {
        let mut inputs = 0;
        for (key, path) in self.files() {
            if path.as_os_str().is_empty() {
                return Err(Invalid::new(key, "is empty, expected a file name"));
            }
            inputs += usize::from(path == Path::new(STANDARD_INPUT));
            if inputs > 1 {
                return Err(Invalid::new(key, "is \"-\", but standard input can be read only once; give a file"));
            }
        }
        match &self.eval {
            Some(EvalSource::Named(sets)) if sets.is_empty() => {
                Err(Invalid::new("data.eval", "is an empty table, expected named sets such as { dev = \"dev.csv\" }"))
            }
            Some(EvalSource::Named(sets)) => {
                match sets.iter().find(|(n, _)| n.is_empty() || ["train", "eval", "test"].contains(&n.as_str())) {
                    Some((name, _)) => {
                        Err(Invalid::new("data.eval", format!("names a set \"{name}\"; choose another name")))
                    }
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The first file of a format that `is` accepts.
    fn file_of(&self, is: impl Fn(Option<Format>) -> bool) -> Option<(&Path, &'static str)> {
        let named = |path| self.format_of(path).map_or("plain text", Format::name);
        self.files().into_iter().find(|(_, path)| is(self.format_of(path))).map(|(_, path)| (path, named(path)))
    }

    /// Keys that say how a file is written must fit what it is.
    fn check_layout(&self) -> Result<(), Invalid> {
        match (self.format, &self.pattern) {
            (Some(Format::Pattern), None) => {
                let message = "is \"pattern\"; add data.pattern, such as '^(?P<label>\\w+) (?P<text>.*)$'";
                return Err(Invalid::new("data.format", message));
            }
            (Some(format), Some(_)) if format != Format::Pattern => {
                let message = format!("is set, but data.format is \"{}\"; remove one of them", format.name());
                return Err(Invalid::new("data.pattern", message));
            }
            _ => {}
        }
        let other = self.file_of(|f| matches!(f, Some(f) if f != Format::Csv && f != Format::Tsv));
        let Some((path, format)) = other else { return Ok(()) };
        for (key, set) in [("data.delimiter", self.delimiter.is_some()), ("data.quoting", self.quoting.is_some())] {
            if set {
                let message = format!("is set, but {} is {format}; it is for csv and tsv", path.display());
                return Err(Invalid::new(key, message));
            }
        }
        Ok(())
    }

    fn check_columns(&self) -> Result<(), Invalid> {
        let mut columns: Vec<_> = self.text.iter().map(|c| ("data.text", c)).collect();
        columns.extend(self.text_pair.as_ref().map(|c| ("data.text_pair", c)));
        columns.extend(self.label.iter().map(|c| ("data.label", c)));
        let by_key = self.file_of(|f| matches!(f, Some(Format::Jsonl | Format::Pattern)));
        let named = by_key.is_some() || self.file_of(|f| f == Some(Format::Parquet)).is_some();
        for (i, (key, column)) in columns.iter().enumerate() {
            match column {
                Column::Name(_) if !self.header && !named => {
                    let message = format!(
                        "is {column}, expected a 0-based index such as {i}: with data.header = false columns have no names"
                    );
                    return Err(Invalid::new(key, message));
                }
                Column::Index(_) if let Some((path, format)) = by_key => {
                    let columns = if format == "pattern" { "named groups" } else { "keys" };
                    let message = format!(
                        "is {column}, expected a name: {} is {format}, its columns are {columns}",
                        path.display()
                    );
                    return Err(Invalid::new(key, message));
                }
                _ => {}
            }
            if let Some((other, _)) = columns[..i].iter().find(|(_, c)| c == column) {
                let message = if other == key {
                    format!("has {column} twice; each column once")
                } else {
                    format!("is {column}, the same column as {other}; each needs its own")
                };
                return Err(Invalid::new(key, message));
            }
        }
        match by_key {
            Some((path, format)) if !self.header => {
                let message =
                    format!("is false, but {} is {format}, which has no header; remove the key", path.display());
                Err(Invalid::new("data.header", message))
            }
            _ => Ok(()),
        }
    }
}
