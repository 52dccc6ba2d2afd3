//! What training on questions needs.

use super::{Loader, Prepared, check_metric, report};
use crate::cli::model::interrupted;
use crate::config::RunConfig;
use crate::data::config::{DOC_STRIDE, EvalSource};
use crate::data::reader::questions::QuestionOptions;
use crate::data::settings::Files;
use crate::data::span::{self, Loaded};
use crate::data::{Dataset, Targets, Tokenizer, split_fraction};
use crate::error::{Error, Result};
use crate::model::{Pretrained, Task};
use crate::train::eval::EvalSet;
use crate::train::log::{Event, Reporter};
use std::collections::HashMap;

impl Prepared {
    /// [`Self::new`] for questions about texts.
    pub(super) fn of_questions(
        config: &RunConfig,
        pretrained: Pretrained,
        reporter: &mut dyn Reporter,
    ) -> Result<Self> {
        let data = &config.data;
        let loader = Loader::caching(&pretrained, data);
        let tokenizer = loader.tokenizer()?;
        let (frame, unknown) = (tokenizer.special_tokens_count(true), tokenizer.unknown_id());
        let (options, mut skipped, mut contents) = (data.question_options(), HashMap::new(), vec![]);
        let stride = data.doc_stride.unwrap_or(DOC_STRIDE);
        let encoder = pretrained.encoder_config();
        let mut read = |split: &str, files: &Files| {
            let read =
                |reporter: &mut dyn Reporter| read_questions(files, &options, tokenizer, data.max_length, reporter);
            let (loaded, sha256s) = loader.kept(files, &(&options, data.max_length), reporter, read)?;
            contents.extend(sha256s);
            tell_repaired(&loaded, files, reporter);
            skipped.insert(split.to_owned(), loaded.skipped.clone());
            let set = loaded.rows(tokenizer, stride, files);
            set.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
            Ok::<_, Error>(set)
        };
        let train = read("train", &data.train)?;
        let mut scored = data.eval_sets();
        scored.extend(data.test.as_ref().map(|files| ("test".to_owned(), files)));
        let mut eval = vec![];
        for (name, files) in scored {
            eval.push(EvalSet { data: read(&name, files)?, name, slices: None, tags: None, spans: None });
        }
        let lacks = |data: &Dataset| matches!(&data.targets, Targets::Spans(spans) if spans.lacks_answers());
        let with_none = lacks(&train) || eval.iter().any(|set| lacks(&set.data));
        let test = if data.test.is_some() { eval.pop() } else { None };
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&train.targets, *share, config.train.seed)?;
                let data = train.subset(&eval_rows);
                let eval = EvalSet { name: "eval".into(), data, slices: None, tags: None, spans: None };
                (train.subset(&train_rows), vec![eval])
            }
            _ => (train, eval),
        };
        let decoding = config.eval.span_decoding(with_none);
        let decoded = |set: EvalSet| EvalSet { spans: Some(decoding), ..set };
        let (eval, test) = (eval.into_iter().map(decoded).collect(), test.map(decoded));
        let task = Task { kind: config.task.kind, labels: vec![] };
        check_metric(&task, config.train.deciding().1, decoding.null_threshold.is_some())?;
        drop(loader);
        Ok(Self {
            pretrained,
            task,
            train,
            eval,
            test,
            class_weights: None,
            spans: Some(decoding),
            contents,
            skipped,
            frame,
            unknown,
        })
    }
}

/// Reads and tokenises questions with their answers; tells of those whose answers were found elsewhere.
pub fn load_questions(
    files: &Files,
    options: &QuestionOptions,
    tokenizer: &Tokenizer,
    max_length: usize,
    reporter: &mut dyn Reporter,
) -> Result<Loaded> {
    let loaded = read_questions(files, options, tokenizer, max_length, reporter)?;
    tell_repaired(&loaded, files, reporter);
    Ok(loaded)
}

fn read_questions(
    files: &Files,
    options: &QuestionOptions,
    tokenizer: &Tokenizer,
    max_length: usize,
    reporter: &mut dyn Reporter,
) -> Result<Loaded> {
    let mut progress = |questions: u64| {
        report(reporter, questions, None);
        interrupted(reporter)
    };
    span::load(files, options, tokenizer, max_length, &mut progress)
}

fn tell_repaired(loaded: &Loaded, files: &Files, reporter: &mut dyn Reporter) {
    if let Some(repaired) = loaded.repaired.describe() {
        let message = format!("{}: {repaired}", files.name().display());
        reporter.event(&Event::Warning { message });
    }
}
