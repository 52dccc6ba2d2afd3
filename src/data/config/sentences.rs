//! What the `[data]` table says of words with tags.

use super::{Column, DataConfig, Format, Invalid, TaskKind, space};
use crate::data::reader::Naming;
use crate::data::reader::sentences::SentenceOptions;

/// The columns of words and of their tags where a config names none: the first of the usual ones, of which jsonl may have others.
const WORDS: &str = "words";
const TAGS: &str = "tags";

/// A column of sentences, if it is another than the usual one.
fn set_column(column: &Column, usual: &str) -> Option<Column> {
    (*column != Column::Name(usual.into())).then(|| column.clone())
}

impl DataConfig {
    /// Keys that only words with tags have.
    pub(super) fn check_tags(&self, task: TaskKind) -> Result<(), Invalid> {
        let set = [
            ("data.tag_scheme", self.tag_scheme.is_some()),
            ("data.convert_tags", self.convert_tags.is_some()),
            ("data.label_all_tokens", self.label_all_tokens),
        ];
        if self.doc_stride.is_some() && task != TaskKind::Span {
            let message = format!("is set, but {task} has no windows of contexts; remove the key");
            return Err(Invalid::new("data.doc_stride", message));
        }
        match set.iter().find(|(_, set)| *set && task != TaskKind::Tokens) {
            Some((key, _)) => {
                Err(Invalid::new(key, format!("is set, but {task} has no tags of words; remove the key")))
            }
            None => Ok(()),
        }
    }

    /// What words with tags have no use for, or need.
    pub(super) fn check_sentences(&self) -> Result<(), Invalid> {
        let not = |key, message: &str| Err(Invalid::new(key, message));
        if self.text_pair.is_some() {
            return not("data.text_pair", "is set, but tokens reads single sentences; remove the key");
        }
        if self.text.as_slice().len() > 1 {
            return not("data.text", "has several columns, but tokens reads one column of words; give one");
        }
        if self.pattern.is_some() {
            return not("data.pattern", "is set, but tokens reads conll and jsonl; remove the key");
        }
        if self.join != space() {
            return not("data.join", "is set, but tokens joins no columns; remove the key");
        }
        if !self.header {
            return not("data.header", "is false, but conll never has a header; remove the key");
        }
        if let Some((path, format)) = self.file_of(|f| !matches!(f, Some(Format::Conll | Format::Jsonl))) {
            let message = format!(
                "is not set and {} is {format}, but tokens reads conll (.conll, .bio, .iob, .bmes) and jsonl; set it to one",
                path.display()
            );
            return Err(Invalid::new("data.format", message));
        }
        let conll = self.file_of(|f| f == Some(Format::Conll)).is_some();
        for (key, columns, usual) in [("data.text", &self.text, WORDS), ("data.label", &self.label, TAGS)] {
            let named = |column: &Column| matches!(column, Column::Name(name) if name != usual);
            if conll && named(columns.first()) {
                let message = format!("is {columns}, expected a 0-based index: columns of conll have no names");
                return Err(Invalid::new(key, message));
            }
        }
        Ok(())
    }

    /// Puts in what a config of words with tags leaves out: `is_set` tells of a key whether the config has it.
    pub fn fill_in_sentences(&mut self, is_set: impl Fn(&str) -> bool) {
        if !is_set("data.text") {
            self.text = Column::Name(WORDS.into()).into();
        }
        if !is_set("data.label") {
            self.label = Column::Name(TAGS.into()).into();
        }
    }

    /// How sentences are read, once [`Self::fill_in_sentences`] has put in what was left out.
    pub fn sentence_options(&self) -> SentenceOptions {
        SentenceOptions {
            format: self.format,
            words: set_column(self.text.first(), WORDS),
            tags: set_column(self.label.first(), TAGS),
            tagged: true,
            encoding: self.encoding,
            on_bad_row: self.on_bad_row,
            naming: Naming::Config,
        }
    }
}
