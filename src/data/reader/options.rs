//! How files are read, and what messages call the settings.

use std::collections::BTreeMap;
use std::path::Path;

use super::{extensions, format_by_extension};
use crate::data::config::{Column, Format};
use crate::data::label_sets::{LabelForm, of_cell, of_flags};
use crate::data::settings::{Columns, Delimiter, Encoding, OnBadRow, Pattern};
use crate::error::{Error, Result};

/// Which columns of a file to read, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// `None`: by extension (`.csv .tsv .jsonl .json .txt`, also before `.gz` and `.zst`); in a stream jsonl if its
    /// first byte is `{`, else one text a line.
    pub format: Option<Format>,
    /// Several are joined to one text.
    pub text: Columns,
    pub text_pair: Option<Column>,
    /// `None`: no label is read, though the file may have some. Several columns are those of [`LabelForm::Several`].
    pub label: Option<Columns>,
    pub label_form: LabelForm,
    /// A column that groups rows, read as text. `None`: none is read.
    pub slice: Option<Column>,
    /// Whether the first row of csv and tsv names the columns. Without it columns are 0-based indices.
    pub header: bool,
    /// `None`: UTF-8. A byte order mark wins over both.
    pub encoding: Option<Encoding>,
    /// Between fields of csv and tsv; `None`: a comma and a tab.
    pub delimiter: Option<Delimiter>,
    /// Whether quotes enclose fields of csv and tsv; `None`: they do in csv.
    pub quoting: Option<bool>,
    /// The columns of a line, for [`Format::Pattern`], which it implies.
    pub pattern: Option<Pattern>,
    /// Between the columns of `text`.
    pub join: String,
    pub on_bad_row: OnBadRow,
    /// Labels of the files by the names that they get.
    pub rename_labels: BTreeMap<String, String>,
    /// What messages call these options.
    pub naming: Naming,
}

impl Default for ReadOptions {
    /// Column `text` of a UTF-8 file with a header, neither pair nor label.
    fn default() -> Self {
        Self {
            format: None,
            text: Column::Name("text".into()).into(),
            text_pair: None,
            label: None,
            label_form: LabelForm::One,
            slice: None,
            header: true,
            encoding: None,
            delimiter: None,
            quoting: None,
            pattern: None,
            join: " ".into(),
            on_bad_row: OnBadRow::Error,
            rename_labels: BTreeMap::new(),
            naming: Naming::Config,
        }
    }
}

impl ReadOptions {
    /// The format of a file, `None` for one text a line.
    pub(in crate::data) fn format_for(&self, path: &Path) -> Result<Option<Format>> {
        let set = self.format.or(self.pattern.as_ref().map(|_| Format::Pattern));
        if set.is_some() {
            return Ok(set);
        }
        format_by_extension(path).ok_or_else(|| {
            let choose = format!("set {} to csv, tsv, jsonl or pattern", self.naming.key("format"));
            Error::in_file(
                path,
                match extensions(path).1.as_str() {
                    "" => format!("the name has no extension to tell the format by; {choose}"),
                    other => {
                        format!("\".{other}\" is not one of [.csv, .tsv, .jsonl, .json, .parquet, .txt]; {choose}")
                    }
                },
            )
        })
    }

    /// The label of a row, or what stands for its labels, from the names and values of the columns of `label`.
    pub(super) fn label_of<'c>(
        &self,
        mut columns: impl ExactSizeIterator<Item = (&'c str, &'c str)>,
    ) -> Result<String, String> {
        match (&self.label_form, columns.len()) {
            (LabelForm::Several { .. }, 2..) => of_flags(columns),
            (form, _) => {
                let value = columns.next().map_or("", |(_, value)| value);
                match form {
                    LabelForm::One => Ok(value.to_owned()),
                    LabelForm::Several { delimiter } => of_cell(value, delimiter, self.naming),
                }
            }
        }
    }

    /// The columns of a text as one.
    pub(super) fn joined<'t>(&self, columns: impl Iterator<Item = &'t str>) -> String {
        let mut text = String::new();
        for (i, column) in columns.enumerate() {
            if i > 0 {
                text.push_str(&self.join);
            }
            text.push_str(column);
        }
        text
    }
}

/// What messages call an option: a key of the config, or a flag of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Naming {
    #[default]
    Config,
    Flags,
}

impl Naming {
    /// The option itself: `data.text_pair` or `--text-pair`.
    pub(in crate::data) fn key(self, name: &str) -> String {
        match self {
            Self::Config if name == "slice_by" => "eval.slice_by".into(),
            Self::Config => format!("data.{name}"),
            Self::Flags => format!("--{}", name.replace('_', "-")),
        }
    }

    /// What to do to give it a value.
    pub(super) fn set(self, name: &str, value: &str) -> String {
        match self {
            Self::Config => format!("set {} = \"{value}\"", self.key(name)),
            Self::Flags => format!("give {} '{value}'", self.key(name)),
        }
    }

    /// What says that a file has no header.
    pub(super) fn no_header(self) -> &'static str {
        match self {
            Self::Config => "data.header = false",
            Self::Flags => "--no-header",
        }
    }
}
