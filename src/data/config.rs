//! The `[task]` kind and the `[data]` table: which files, which columns, how long a row may be.

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What the model learns to say about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One of a fixed set of labels for a text or a pair of texts.
    Classification,
    /// One number for a text or a pair of texts.
    Regression,
}

impl TaskKind {
    /// The kinds of the config format that this version knows by name only.
    const LATER: [&str; 6] = ["multilabel", "tokens", "span", "mlm", "choice", "embedding"];
    const NAMES: [&str; 2] = ["classification", "regression"];

    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Regression => "regression",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TaskKind {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Kind;
        impl Visitor<'_> for Kind {
            type Value = TaskKind;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a task, such as \"classification\"")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<TaskKind, E> {
                match v {
                    "classification" => Ok(TaskKind::Classification),
                    "regression" => Ok(TaskKind::Regression),
                    _ if TaskKind::LATER.contains(&v) => Err(E::custom(format!(
                        "the task \"{v}\" is not in this version; it has {}",
                        TaskKind::NAMES.join(" and ")
                    ))),
                    _ => Err(E::unknown_variant(v, &TaskKind::NAMES)),
                }
            }
        }
        d.deserialize_str(Kind)
    }
}

/// Which column of a file: by its name in the header (or key of the JSON object), or by 0-based position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    Name(String),
    Index(usize),
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "\"{name}\""),
            Self::Index(index) => write!(f, "{index}"),
        }
    }
}

/// From a command-line argument: digits alone are an index.
impl FromStr for Column {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.is_empty() {
            return Err("a column needs a name or a 0-based index".into());
        }
        if s.bytes().all(|b| b.is_ascii_digit()) {
            return s.parse().map(Self::Index).map_err(|_| format!("the column index {s} is too large"));
        }
        Ok(Self::Name(s.into()))
    }
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Name(name) => s.serialize_str(name),
            Self::Index(index) => s.serialize_u64(*index as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AnyColumn;
        impl Visitor<'_> for AnyColumn {
            type Value = Column;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a column name (string) or a 0-based column index (whole number)")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Column, E> {
                if v.is_empty() { Err(E::invalid_length(0, &self)) } else { Ok(Column::Name(v.into())) }
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Column, E> {
                usize::try_from(v).map(Column::Index).map_err(|_| E::invalid_value(de::Unexpected::Signed(v), &self))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Column, E> {
                usize::try_from(v).map(Column::Index).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(v), &self))
            }
        }
        d.deserialize_any(AnyColumn)
    }
}

/// How a data file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma-separated values with quotes.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// One JSON object a line.
    Jsonl,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            _ => Err("expected csv, tsv or jsonl".into()),
        }
    }
}

/// Where the rows for evaluation come from.
#[derive(Debug, Clone, PartialEq)]
pub enum EvalSource {
    /// A file of its own.
    File(PathBuf),
    /// This share of the training rows, strictly between 0 and 1 (stratified and seeded).
    Fraction(f64),
}

impl Serialize for EvalSource {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::File(path) => path.serialize(s),
            Self::Fraction(share) => s.serialize_f64(*share),
        }
    }
}

impl<'de> Deserialize<'de> for EvalSource {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AnySource;
        impl Visitor<'_> for AnySource {
            type Value = EvalSource;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a file name (string) or a fraction of the training rows between 0 and 1, such as 0.1")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<EvalSource, E> {
                Ok(EvalSource::File(v.into()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<EvalSource, E> {
                if v > 0.0 && v < 1.0 {
                    Ok(EvalSource::Fraction(v))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(v), &self))
                }
            }
        }
        d.deserialize_any(AnySource)
    }
}

/// The `[data]` table. Paths are as [`crate::config::RunConfig`] resolved them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The rows to learn from.
    pub train: PathBuf,
    /// The rows to evaluate on during training; without them nothing is evaluated until the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalSource>,
    /// Rows scored once, at the end, with the best model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// The column of the (first) text. Default `"text"`.
    #[serde(default = "text_column")]
    pub text: Column,
    /// The column of the second text of a pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<Column>,
    /// The column of the label or number. Default `"label"`.
    #[serde(default = "label_column")]
    pub label: Column,
    /// Whether the first row of csv and tsv files names the columns. Default true.
    #[serde(default = "yes")]
    pub header: bool,
    /// How all data files are written. Default: by each file's extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The labels in the order of their ids. Default: the checkpoint's if the set matches, else sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Longest row in tokens, special tokens included; longer rows lose text. Default 128.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Whether the tokens of large files are kept for the next run. Default true.
    #[serde(default = "yes")]
    pub cache: bool,
}

fn text_column() -> Column {
    Column::Name("text".into())
}

fn label_column() -> Column {
    Column::Name("label".into())
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
        self.check_columns()?;
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
        let mut files = vec![("data.train", self.train.as_path())];
        if let Some(EvalSource::File(path)) = &self.eval {
            files.push(("data.eval", path));
        }
        if let Some(path) = &self.test {
            files.push(("data.test", path));
        }
        files
    }

    fn check_files(&self) -> Result<(), Invalid> {
        for (key, path) in self.files() {
            if path.as_os_str().is_empty() {
                return Err(Invalid::new(key, "is empty, expected a file name"));
            }
        }
        Ok(())
    }

    fn check_columns(&self) -> Result<(), Invalid> {
        let mut columns = vec![("data.text", &self.text)];
        columns.extend(self.text_pair.as_ref().map(|c| ("data.text_pair", c)));
        columns.push(("data.label", &self.label));
        let jsonl = self.files().into_iter().find(|(_, path)| self.is_jsonl(path));
        for (i, (key, column)) in columns.iter().enumerate() {
            match column {
                Column::Name(_) if !self.header && jsonl.is_none() => {
                    let message = format!(
                        "is {column}, expected a 0-based index such as {i}: with data.header = false columns have no names"
                    );
                    return Err(Invalid::new(key, message));
                }
                Column::Index(_) if let Some((_, path)) = jsonl => {
                    let message =
                        format!("is {column}, expected a name: {} is jsonl, its columns are keys", path.display());
                    return Err(Invalid::new(key, message));
                }
                _ => {}
            }
            if let Some((other, _)) = columns[..i].iter().find(|(_, c)| c == column) {
                return Err(Invalid::new(key, format!("is {column}, the same column as {other}; each needs its own")));
            }
        }
        match jsonl {
            Some((_, path)) if !self.header => {
                let message = format!("is false, but {} is jsonl, which has no header; remove the key", path.display());
                Err(Invalid::new("data.header", message))
            }
            _ => Ok(()),
        }
    }

    fn is_jsonl(&self, path: &Path) -> bool {
        match self.format {
            Some(format) => format == Format::Jsonl,
            None => path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("json")),
        }
    }

    fn check_labels(&self, task: TaskKind) -> Result<(), Invalid> {
        let Some(labels) = &self.labels else { return Ok(()) };
        let wrong = |message: String| Err(Invalid::new("data.labels", message));
        if task == TaskKind::Regression {
            return wrong("is set, but regression has no labels; remove the key".into());
        }
        if labels.len() < 2 {
            return wrong(format!("has {} entries, expected two or more", labels.len()));
        }
        for (i, label) in labels.iter().enumerate() {
            if labels[..i].contains(label) {
                return wrong(format!("has \"{label}\" twice; each label once"));
            }
        }
        Ok(())
    }
}
