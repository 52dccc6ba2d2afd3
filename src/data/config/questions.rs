//! What the `[data]` table says of questions about texts.

use super::{Column, DataConfig, Format, Invalid, space};
use crate::data::reader::Naming;
use crate::data::reader::questions::{QuestionOptions, key_of};

/// Of rows of questions with their contexts, as in `transformers`' run_qa.py.
pub const QUESTION_LENGTH: usize = 384;
/// Tokens that windows of a context share, as there.
pub const DOC_STRIDE: usize = 128;

impl DataConfig {
    /// What questions have no use for, or need.
    pub(super) fn check_questions(&self) -> Result<(), Invalid> {
        let not = |key, message: String| Err(Invalid::new(key, message));
        for (key, columns) in [("data.text", &self.text), ("data.label", &self.label)] {
            match columns.as_slice() {
                [one] => drop(key_of(one).map_err(|message| Invalid::new(key, message))?),
                several => return not(key, format!("has {} columns, but span reads one; give one", several.len())),
            }
        }
        if let Some(context) = &self.text_pair {
            key_of(context).map_err(|message| Invalid::new("data.text_pair", message))?;
        }
        let set = [
            ("data.pattern", self.pattern.is_some()),
            ("data.header", !self.header),
            ("data.join", self.join != space()),
            ("data.rename_labels", !self.rename_labels.is_empty()),
            ("data.labels", self.labels.is_some()),
        ];
        if let Some((key, _)) = set.iter().find(|(_, set)| *set) {
            return not(key, "is set, but it says nothing of questions in JSON; remove the key".into());
        }
        if let Some((path, format)) = self.file_of(|f| !matches!(f, Some(Format::Squad | Format::Jsonl))) {
            let message = format!(
                "is not set and {} is {format}, but span reads SQuAD's json (squad) and jsonl; set it to one",
                path.display()
            );
            return not("data.format", message);
        }
        match self.doc_stride {
            Some(stride) if stride >= self.max_length => {
                not("data.doc_stride", format!("is {stride}, expected less than data.max_length, {}", self.max_length))
            }
            _ => Ok(()),
        }
    }

    /// Puts in what a question's config leaves out: `is_set` tells of a key whether the config has it.
    pub fn fill_in_questions(&mut self, is_set: impl Fn(&str) -> bool) {
        let named = |name: &str| Column::Name(name.into());
        if !is_set("data.max_length") {
            self.max_length = QUESTION_LENGTH;
        }
        if !is_set("data.text") {
            self.text = named("question").into();
        }
        if !is_set("data.label") {
            self.label = named("answers").into();
        }
        self.text_pair.get_or_insert(named("context"));
        self.doc_stride.get_or_insert(DOC_STRIDE.min(self.max_length.saturating_sub(1)));
    }

    /// How questions are read, once [`Self::fill_in_questions`] has put in what was left out.
    pub fn question_options(&self) -> QuestionOptions {
        let name = |column: Option<&Column>| column.map_or_else(String::new, |c| key_of(c).unwrap_or_default());
        QuestionOptions {
            // An extension says jsonl where SQuAD's files are meant, which the content tells.
            format: self.format,
            question: name(Some(self.text.first())),
            context: name(self.text_pair.as_ref()),
            answers: name(Some(self.label.first())),
            answered: true,
            encoding: self.encoding,
            on_bad_row: self.on_bad_row,
            naming: Naming::Config,
        }
    }
}
