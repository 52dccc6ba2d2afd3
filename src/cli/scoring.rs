//! What `eval` and `predict` share: a model directory opened for scoring, and how its inputs are read.

use super::prepare::check_max_length;
use super::ui::Ui;
use super::{Globals, InputArgs};
use crate::data::config::{Column, Format};
use crate::data::{ReadOptions, Reader, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{BertftJson, Model, Pretrained};
use crate::nn::workspace::Space;
use crate::train::config::Precision;
use crate::train::log::{Event, Reporter};
use std::path::{Path, PathBuf};

/// A fine-tuned model, its tokenizer and the options in force: arguments over `bertft.json` over defaults.
pub struct Scoring {
    pub pretrained: Pretrained,
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub batch_size: usize,
    pub max_length: usize,
    input: InputArgs,
    /// The label's column as an argument gave it.
    label: Option<Column>,
    extra: Option<BertftJson>,
}

impl Scoring {
    /// Opens a run directory or any Hugging Face model directory with a classifier.
    pub fn open(dir: &Path, input: &InputArgs, label: Option<Column>, globals: &Globals, ui: &mut Ui) -> Result<Self> {
        let dir = model_dir(dir);
        let pretrained = Pretrained::open(&dir)?;
        let extra = BertftJson::read(&dir)?;
        let positions = pretrained.encoder_config().embedding.positions;
        let max_length = match (input.max_length, &extra) {
            (Some(n), _) => n,
            (None, Some(extra)) => extra.max_length,
            (None, None) => positions.min(128),
        };
        check_max_length(&pretrained, max_length, "--max-length")?;
        let tokenizer = Tokenizer::load(&dir)?;
        let (precision, note) = input.precision.unwrap_or(Precision::F32).here();
        if let Some(message) = note {
            ui.event(&Event::Warning { message });
        }
        let device = globals.device()?;
        let space = Space { dtype: precision.dtype(), device: &device };
        let (model, report) = Model::load(&pretrained, pretrained.task()?, 0, space)?;
        if !report.initialised.is_empty() {
            let message = format!("lacks {}; it is not a fine-tuned model", report.initialised.join(", "));
            return Err(Error::in_file(&dir, message));
        }
        let batch_size = input.batch_size.unwrap_or(32);
        Ok(Self { pretrained, model, tokenizer, batch_size, max_length, input: input.clone(), label, extra })
    }

    /// How rows are read from `file` (`None`: standard input), with their labels or without.
    pub fn read_options(&self, file: Option<&Path>, labelled: bool) -> Result<ReadOptions> {
        let (input, extra) = (&self.input, self.extra.as_ref());
        let named = |name: &str| Column::Name(name.into());
        let is_name = |c: &Option<Column>| matches!(c, Some(Column::Name(_)));
        let by_name = is_name(&input.text) || is_name(&input.text_pair) || is_name(&self.label);
        let mut options = ReadOptions {
            format: input.format,
            text: input.text.clone().or(extra.map(|e| e.text.clone())).unwrap_or(named("text")),
            text_pair: input.text_pair.clone().or(extra.and_then(|e| e.text_pair.clone())),
            label: labelled.then(|| self.label.clone().or(extra.map(|e| e.label.clone())).unwrap_or(named("label"))),
            // A column given by name can only mean a header.
            header: !input.no_header && (extra.is_none_or(|e| e.header) || by_name),
        };
        if is_jsonl(file, input.format) {
            // A model trained on a file without header knows columns by number; JSON has names only.
            options.header = true;
            let own = [input.text.is_some(), input.text_pair.is_some(), self.label.is_some()];
            let columns = [
                (Some(&mut options.text), "text"),
                (options.text_pair.as_mut(), "text_pair"),
                (options.label.as_mut(), "label"),
            ];
            for ((column, name), own) in columns.into_iter().zip(own) {
                if let Some(column) = column
                    && matches!(column, Column::Index(_))
                    && !own
                {
                    *column = named(name);
                }
            }
        }
        // A directory made elsewhere does not say whether it wants pairs: take the column when the file has it.
        // Only a file can be opened twice; what a pipe gave is gone.
        if let (Some(file), None, None) = (file.filter(|f| f.is_file()), extra, &options.text_pair) {
            let with_pair = ReadOptions { text_pair: Some(named("text_pair")), ..options.clone() };
            if matches!(Reader::open(file, &with_pair).map(|mut r| r.next()), Ok(Some(Ok(_)))) {
                return Ok(with_pair);
            }
        }
        Ok(options)
    }
}

fn is_jsonl(file: Option<&Path>, format: Option<Format>) -> bool {
    match (format, file) {
        (Some(format), _) => format == Format::Jsonl,
        (None, None) => true,
        (None, Some(file)) => {
            file.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("json"))
        }
    }
}

/// `dir/model` of a run directory, else `dir` itself.
fn model_dir(dir: &Path) -> PathBuf {
    let inner = dir.join("model");
    if !dir.join("config.json").is_file() && inner.join("config.json").is_file() { inner } else { dir.into() }
}
