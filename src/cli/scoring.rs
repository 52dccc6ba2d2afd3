//! What `eval` and `predict` share: a model opened for scoring, and how its inputs are read.

use super::model::ModelArgs;
use super::prepare::check_max_length;
use super::ui::Ui;
use super::{Globals, InputArgs, SpanArgs, TagArgs};
use crate::data::config::{Column, DOC_STRIDE, Format, QUESTION_LENGTH, TaskKind};
use crate::data::label_sets::LabelForm;
use crate::data::reader::questions::{QuestionOptions, key_of};
use crate::data::reader::sentences::SentenceOptions;
use crate::data::reader::{Naming, format_by_extension, is_utf8};
use crate::data::settings::{Columns, Files, STANDARD_INPUT, matching};
use crate::data::tagging::TagForm;
use crate::data::tagging::scheme::Scheme;
use crate::data::{ReadOptions, Reader, Tokenizer};
use crate::error::{Error, Result};
use crate::heads::span::SpanDecoding;
use crate::heads::tags::{TagDecoder, TagReading};
use crate::metrics::threshold::Threshold;
use crate::model::{BertftJson, Model, Pretrained};
use crate::nn::workspace::Space;
use crate::predict::span::Windows;
use crate::train::config::Precision;
use crate::train::log::{Event, Reporter};
use std::collections::BTreeMap;
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
    label: Vec<Column>,
    /// What stands between several labels, as an argument gave it.
    pub label_delimiter: Option<String>,
    /// The column to group rows by, as an argument gave it.
    pub slice_by: Option<Column>,
    extra: Option<BertftJson>,
}

impl Scoring {
    /// Opens a model with a classifier.
    pub fn open(
        model: &ModelArgs,
        input: &InputArgs,
        label: &[Column],
        globals: &Globals,
        ui: &mut Ui,
    ) -> Result<Self> {
        let pretrained = model.open(globals, ui)?;
        let dir = pretrained.dir();
        let extra = BertftJson::read(dir)?;
        let positions = pretrained.encoder_config().max_length();
        let max_length = match (input.max_length, &extra) {
            (Some(n), _) => n,
            (None, Some(extra)) => extra.max_length,
            (None, None) if pretrained.task()?.kind == TaskKind::Span => positions.min(QUESTION_LENGTH),
            (None, None) => positions.min(128),
        };
        check_max_length(&pretrained, max_length, "--max-length")?;
        let tokenizer = Tokenizer::load(dir)?;
        let (device, device_note) = globals.device(pretrained.encoder_config())?;
        let (precision, note) = input.precision.unwrap_or(Precision::F32).on(&device);
        for message in device_note.into_iter().chain(note) {
            ui.event(&Event::Warning { message });
        }
        let space = Space { dtype: precision.dtype(), device: &device };
        let (model, report) = Model::load(&pretrained, pretrained.task()?, 0, space)?;
        if !report.initialised.is_empty() {
            let message = format!("lacks {}; it is not a fine-tuned model", report.initialised.join(", "));
            return Err(Error::in_file(dir, message));
        }
        let several = model.task().kind == TaskKind::Multilabel;
        if let Some(threshold) = extra.as_ref().and_then(|e| e.threshold.as_ref())
            && let Err(message) = threshold.check(&model.task().labels, several)
        {
            return Err(Error::in_file(dir.join("bertft.json"), message + "; remove it"));
        }
        if label.len() > 1 && !several {
            let message =
                format!("--label is given {} times, but a row has one for this model; give it once", label.len());
            return Err(Error::input(message));
        }
        let batch_size = input.batch_size.unwrap_or(32);
        Ok(Self {
            pretrained,
            model,
            tokenizer,
            batch_size,
            max_length,
            input: input.clone(),
            label: label.to_vec(),
            label_delimiter: None,
            slice_by: None,
            extra,
        })
    }

    /// From which probability on the second of two labels is predicted, or each of several.
    pub fn threshold(&self) -> Option<Threshold> {
        self.extra.as_ref().and_then(|e| e.threshold.clone())
    }

    /// How files write the labels of the model's task.
    fn label_form(&self) -> LabelForm {
        let trained = self.extra.as_ref().and_then(|e| e.label_delimiter.as_deref());
        LabelForm::of(self.model.task().kind, self.label_delimiter.as_deref().or(trained))
    }

    /// How rows are read from `file` (`None`: standard input), with their labels or without.
    pub fn read_options(&self, file: Option<&Path>, labelled: bool) -> Result<ReadOptions> {
        let (input, extra) = (&self.input, self.extra.as_ref());
        let named = |name: &str| Column::Name(name.into());
        let is_name = |c: &Column| matches!(c, Column::Name(_));
        let mut own = input.text.iter().chain(&input.text_pair).chain(&self.label).chain(&self.slice_by);
        let by_name = own.any(is_name);
        // A known extension says more than what the training file was. Plain texts (.txt) have no labels.
        let by_extension = file.and_then(format_by_extension);
        let as_trained = match (file, by_extension) {
            (_, Some(Some(_))) => None,
            (Some(_), Some(None)) | (None, _) if !labelled => None,
            _ => extra.and_then(|e| e.format),
        };
        let set = input.format.or(input.pattern.as_ref().map(|_| Format::Pattern));
        let format = set.or(as_trained);
        let found = format.or(by_extension.flatten());
        let same = extra.filter(|e| e.format.is_some() && e.format == found);
        let mut options = ReadOptions {
            format,
            text: Columns::new(input.text.clone()).or(extra.map(|e| e.text.clone())).unwrap_or(named("text").into()),
            text_pair: input.text_pair.clone().or(extra.and_then(|e| e.text_pair.clone())),
            slice: self.slice_by.clone(),
            label: labelled.then(|| {
                Columns::new(self.label.clone()).or(extra.map(|e| e.label.clone())).unwrap_or(named("label").into())
            }),
            label_form: self.label_form(),
            // A column given by name can only mean a header.
            header: !input.no_header && (extra.is_none_or(|e| e.header) || by_name),
            encoding: input.encoding,
            delimiter: input.delimiter.or(same.and_then(|e| e.delimiter)),
            quoting: input.quoting().or(same.and_then(|e| e.quoting)),
            pattern: input.pattern.clone().or(same.and_then(|e| e.pattern.clone())),
            join: input.join.clone().or(extra.and_then(|e| e.join.clone())).unwrap_or(" ".into()),
            on_bad_row: input.on_bad_row.unwrap_or_default(),
            rename_labels: extra.map(|e| e.rename_labels.clone()).unwrap_or_default(),
            naming: Naming::Flags,
        };
        if matches!(found, Some(Format::Jsonl | Format::Pattern)) || found.is_none() && file.is_none() {
            self.name_columns(&mut options);
        }
        // That of the training data is no promise about other files: it is for those that need one.
        if let (None, Some(encoding), Some(file)) = (input.encoding, extra.and_then(|e| e.encoding), file)
            && file.is_file()
            && !is_utf8(file)?
        {
            options.encoding = Some(encoding);
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

    /// A model trained on a file without header knows columns by number; JSON and patterns have names only.
    fn name_columns(&self, options: &mut ReadOptions) {
        let input = &self.input;
        let named = |name: &str| Column::Name(name.into());
        options.header = true;
        if input.text.is_empty() && options.text.iter().any(|c| matches!(c, Column::Index(_))) {
            options.text = named("text").into();
        }
        if let (None, Some(Column::Index(_))) = (&input.text_pair, &options.text_pair) {
            options.text_pair = Some(named("text_pair"));
        }
        if self.label.is_empty()
            && options.label.as_ref().is_some_and(|l| l.iter().any(|c| matches!(c, Column::Index(_))))
        {
            options.label = Some(named("label").into());
        }
    }

    /// A flag that is given and says how rows of columns are written.
    fn flag_of_rows(&self) -> Option<&'static str> {
        let input = &self.input;
        let flags = [
            ("--pattern", input.pattern.is_some()),
            ("--join", input.join.is_some()),
            ("--delimiter", input.delimiter.is_some()),
            ("--quoting", input.quoting().is_some()),
            ("--no-header", input.no_header),
            ("a second --text", input.text.len() > 1),
        ];
        flags.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }

    /// How files of sentences are read, with their tags or without.
    pub fn sentence_options(&self, files: &Files, tagged: bool) -> Result<SentenceOptions> {
        let (input, first) = (&self.input, files.first().as_path());
        let pair = input.text_pair.as_ref().map(|_| "--text-pair");
        if let Some(flag) = pair.or(self.flag_of_rows()) {
            return Err(Error::input(format!(
                "{flag} is given, but the model tags words of single sentences; leave it out"
            )));
        }
        let by_extension = format_by_extension(first);
        // Plain text where only predictions are asked for; else as the training file was.
        let trained = self.extra.as_ref().and_then(|e| e.format).filter(|_| by_extension.is_none() && tagged);
        // Columns of conll have no names, those of jsonl no numbers: what does not fit is left to the usual ones.
        let format = input.format.or(by_extension.flatten()).or(trained);
        let named = |c: &Column| matches!(c, Column::Name(_));
        if format == Some(Format::Conll) && input.text.iter().chain(&self.label).any(named) {
            return Err(Error::input("columns of conll have no names; give --text and --label as 0-based indices"));
        }
        let fits = |c: &Column| {
            matches!(
                (format, c),
                (Some(Format::Conll), Column::Index(_)) | (Some(Format::Jsonl) | None, Column::Name(_))
            )
        };
        let trained_as = |c: Option<&Columns>, usual: &str| {
            c.map(|c| c.first().clone()).filter(|c| fits(c) && *c != Column::Name(usual.into()))
        };
        // That of the training data is no promise about other files: it is for those that need one.
        let trained_encoding = self.extra.as_ref().and_then(|e| e.encoding);
        let encoding = match (input.encoding, trained_encoding) {
            (None, Some(encoding)) if first.is_file() && !is_utf8(first)? => Some(encoding),
            (given, _) => given,
        };
        Ok(SentenceOptions {
            format: input.format.or(trained),
            words: input.text.first().cloned().or(trained_as(self.extra.as_ref().map(|e| &e.text), "words")),
            tags: self.label.first().cloned().or(trained_as(self.extra.as_ref().map(|e| &e.label), "tags")),
            tagged,
            encoding,
            on_bad_row: input.on_bad_row.unwrap_or_default(),
            naming: Naming::Flags,
        })
    }

    /// How files of questions are read, with their answers or without.
    pub fn question_options(&self, files: &Files, answered: bool) -> Result<QuestionOptions> {
        let (input, extra) = (&self.input, self.extra.as_ref());
        if let Some(flag) = self.flag_of_rows() {
            return Err(Error::input(format!("{flag} is given, but questions are read from JSON; leave it out")));
        }
        let named = |flag: &str, given: Option<&Column>, trained: Option<&Column>, usual: &str| match given {
            Some(column) => key_of(column).map_err(|message| Error::input(format!("{flag} {message}"))),
            None => Ok(trained.and_then(|c| key_of(c).ok()).unwrap_or_else(|| usual.into())),
        };
        let first = files.first().as_path();
        let encoding = match (input.encoding, extra.and_then(|e| e.encoding)) {
            (None, Some(encoding)) if first.is_file() && !is_utf8(first)? => Some(encoding),
            (given, _) => given,
        };
        let (text, label) = (extra.map(|e| e.text.first()), extra.map(|e| e.label.first()));
        let context = extra.and_then(|e| e.text_pair.as_ref());
        Ok(QuestionOptions {
            format: input.format,
            question: named("--text", input.text.first(), text, "question")?,
            context: named("--text-pair", input.text_pair.as_ref(), context, "context")?,
            answers: named("--label", self.label.first(), label, "answers")?,
            answered,
            encoding,
            on_bad_row: input.on_bad_row.unwrap_or_default(),
            naming: Naming::Flags,
        })
    }

    /// How rows of questions are made, and answers read from scores.
    pub fn answers(&self, args: &SpanArgs) -> Result<(Windows, SpanDecoding)> {
        let extra = self.extra.as_ref();
        let doc_stride = args.doc_stride.or(extra.and_then(|e| e.doc_stride)).unwrap_or(DOC_STRIDE);
        if args.doc_stride.is_some() && doc_stride >= self.max_length {
            let message =
                format!("--doc-stride is {doc_stride}, expected less than the {} tokens of a row", self.max_length);
            return Err(Error::input(message));
        }
        if let Some(threshold) = args.null_score_diff_threshold.filter(|t| !t.is_finite()) {
            let message = format!("--null-score-diff-threshold is {threshold}, expected a finite number");
            return Err(Error::input(message));
        }
        let usual = SpanDecoding::default();
        let decoding = SpanDecoding {
            n_best_size: args.n_best_size.or(extra.and_then(|e| e.n_best_size)).unwrap_or(usual.n_best_size),
            max_answer_length: args
                .max_answer_length
                .or(extra.and_then(|e| e.max_answer_length))
                .unwrap_or(usual.max_answer_length),
            null_threshold: args.null_score_diff_threshold.or(extra.and_then(|e| e.null_score_diff_threshold)),
        };
        let on_bad_row = self.input.on_bad_row.unwrap_or_default();
        Ok((Windows { max_length: self.max_length, doc_stride, on_bad_row }, decoding))
    }

    /// What becomes of the tags of files: what became of those in training.
    pub fn tag_form(&self) -> (TagForm, BTreeMap<String, String>) {
        let extra = self.extra.as_ref();
        let form = TagForm { scheme: extra.and_then(|e| e.tag_scheme), convert: extra.and_then(|e| e.convert_tags) };
        (form, extra.map(|e| e.rename_labels.clone()).unwrap_or_default())
    }

    /// How tags are found and counted.
    pub fn tag_reading(&self, args: &TagArgs, strict: bool) -> Result<(TagReading, TagDecoder)> {
        let labels = &self.model.task().labels;
        let trained = self.extra.as_ref().map(|e| e.tag_decoding);
        let decoding = args.tag_decoding.or(trained).unwrap_or_default();
        if args.tag_scheme.is_some() && decoding.is_argmax() && !strict {
            let message = "--tag-scheme says nothing to argmax; give --tag-decoding viterbi too, or leave it out";
            return Err(Error::input(message));
        }
        let scheme = args.tag_scheme.or(self.tag_form().0.written()).unwrap_or_else(|| Scheme::of(labels));
        let reading = TagReading { scheme, decoding, strict };
        let decoder = reading.decoder(labels).map_err(|message| {
            let hint = "give the right --tag-scheme, or --tag-decoding argmax";
            Error::input(format!("tags are to be found by {}, but {message}; {hint}", decoding.name()))
        })?;
        Ok((reading, decoder))
    }

    /// How labelled files are read.
    pub fn labelled_options(&self, files: &Files) -> Result<ReadOptions> {
        let first = Some(files.first().as_path()).filter(|f| *f != Path::new(STANDARD_INPUT));
        self.read_options(first, true)
    }
}

/// The files that arguments name, with glob patterns replaced by what they match.
pub fn input_files(flag: &str, paths: &[PathBuf]) -> Result<Files> {
    let files = Files::new(paths.to_vec()).unwrap_or(PathBuf::from(STANDARD_INPUT).into());
    matching(&files).map_err(|message| Error::input(format!("{flag} {message}")))
}
