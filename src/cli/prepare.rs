//! What a training run needs before its first step, checked as far as it can be: files, columns, labels, lengths, model.

use crate::check;
use crate::config::RunConfig;
use crate::data::config::{EvalSource, TaskKind};
use crate::data::{
    Dataset, LabelMap, ReadOptions, Targets, Tokenizer, labels::value_targets, read_examples, split_fraction,
};
use crate::error::{Error, Result};
use crate::metrics::{Family, names};
use crate::model::{Pretrained, Task};
use crate::train::config::metric_family;
use crate::train::log::{Event, Phase, Progress, Reporter};
use std::path::{Path, PathBuf};

/// Everything read and tokenised.
pub struct Prepared {
    pub pretrained: Pretrained,
    pub task: Task,
    pub train: Dataset,
    pub eval: Option<Dataset>,
    pub test: Option<Dataset>,
    /// Special tokens of a row.
    frame: usize,
    /// Id of the unknown token.
    unknown: Option<u32>,
}

impl Prepared {
    /// Reads and checks all inputs of `config`.
    pub fn new(config: &RunConfig, reporter: &mut dyn Reporter) -> Result<Self> {
        let pretrained = Pretrained::open(Path::new(&config.model.path))?;
        check_max_length(&pretrained, config.data.max_length, "data.max_length")?;
        let tokenizer = Tokenizer::load(pretrained.dir())?;
        let data = &config.data;
        let options = ReadOptions {
            format: data.format,
            text: data.text.clone(),
            text_pair: data.text_pair.clone(),
            label: Some(data.label.clone()),
            header: data.header,
        };
        let train = read_examples(&data.train, &options)?;
        let labels = match (config.task.kind, &data.labels) {
            (TaskKind::Regression, _) => None,
            (_, Some(names)) => Some(LabelMap::new(names.clone())?),
            (_, None) => Some(LabelMap::from_examples(&train, pretrained.labels()?.as_deref(), &data.train)?),
        };
        let mut load = |file: &PathBuf, examples: Option<Vec<_>>| {
            let examples = match examples {
                Some(e) => e,
                None => read_examples(file, &options)?,
            };
            let targets = match &labels {
                Some(map) => map.targets(&examples, file)?,
                None => value_targets(&examples, file)?,
            };
            dataset(&pretrained, &tokenizer, &examples, targets, file, data.max_length, reporter)
        };
        let train = load(&data.train, Some(train))?;
        let eval_file = match &data.eval {
            Some(EvalSource::File(file)) => Some(load(file, None)?),
            _ => None,
        };
        let test = data.test.as_ref().map(|file| load(file, None)).transpose()?;
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&train.targets, *share, config.train.seed)?;
                (train.subset(&train_rows), Some(train.subset(&eval_rows)))
            }
            _ => (train, eval_file),
        };
        let names = labels.map_or_else(Vec::new, |map| map.names().to_vec());
        let task = Task { kind: config.task.kind, labels: names };
        check_metric(&task, &config.train.metric_for_best_model)?;
        let (frame, unknown) = (tokenizer.special_tokens_count(data.text_pair.is_some()), tokenizer.unknown_id());
        Ok(Self { pretrained, task, train, eval, test, frame, unknown })
    }

    /// What is wrong with the data as far as it is cheap to know: the shorter form of `bertft check`.
    pub fn warnings(&self, config: &Path) -> Vec<Event> {
        let splits: Vec<_> = self.splits().collect();
        let found = check::brief(&splits, &self.task.labels, self.frame, self.unknown);
        let hint = format!("bertft check --config {} lists the rows", config.display());
        let hint = (!found.is_empty()).then_some(hint);
        found.into_iter().chain(hint).map(|message| Event::Warning { message }).collect()
    }

    /// The splits that there are, by name.
    pub fn splits(&self) -> impl Iterator<Item = (&'static str, &Dataset)> {
        let splits = [("train", Some(&self.train)), ("eval", self.eval.as_ref()), ("test", self.test.as_ref())];
        splits.into_iter().filter_map(|(name, data)| Some((name, data?)))
    }

    /// One `data` event a split.
    pub fn data_events(&self) -> Vec<Event> {
        let labels = |targets: &Targets| {
            let Targets::Class(classes) = targets else { return vec![] };
            let mut counts = vec![0; self.task.labels.len()];
            classes.iter().for_each(|&c| counts[c as usize] += 1);
            self.task.labels.iter().cloned().zip(counts).collect()
        };
        let event = |(split, data): (&str, &Dataset)| Event::Data {
            split: split.into(),
            file: data.file.display().to_string(),
            rows: data.len(),
            tokens: data.tokens.ids.len(),
            longest: data.tokens.lengths().into_iter().max().unwrap_or(0),
            truncated: data.tokens.truncated.iter().filter(|t| **t).count(),
            labels: labels(&data.targets),
        };
        self.splits().map(event).collect()
    }
}

/// The scores that the task yields.
pub fn family(task: &Task) -> Family {
    metric_family(task.kind, task.labels.len())
}

/// Some metrics are there for two classes only, which the data decide.
pub fn check_metric(task: &Task, metric: &str) -> Result<()> {
    let names = names(family(task));
    if names.contains(&metric) {
        return Ok(());
    }
    let classes = task.labels.len();
    let listed = names.join(", ");
    Err(Error::input(format!(
        "train.metric_for_best_model is \"{metric}\", but with {classes} labels there is {listed}"
    )))
}

/// Tokenises rows and checks their ids against the model.
pub fn dataset(
    pretrained: &Pretrained,
    tokenizer: &Tokenizer,
    examples: &[crate::data::Example],
    targets: Targets,
    file: &Path,
    max_length: usize,
    reporter: &mut dyn Reporter,
) -> Result<Dataset> {
    let tokens = tokenizer.encode(examples, max_length, &mut |done, total| {
        reporter.progress(Progress {
            phase: Phase::Tokenise,
            done: done as u64,
            total: total as u64,
            loss: f64::NAN,
            learning_rate: 0.0,
            tokens_per_second: 0.0,
        });
        if reporter.interrupted() { Err(Error::Interrupted { resumable: false }) } else { Ok(()) }
    })?;
    let shape = pretrained.encoder_config().embedding;
    tokens.check_ids(shape.vocab, shape.types)?;
    let lines = examples.iter().map(|e| e.line).collect();
    Ok(Dataset { tokens, targets, lines, file: file.into() })
}

/// The model must have a position for every token.
pub fn check_max_length(pretrained: &Pretrained, max_length: usize, key: &str) -> Result<()> {
    let positions = pretrained.encoder_config().embedding.positions;
    if max_length > positions {
        return Err(Error::input(format!(
            "{key} is {max_length}, but the model {} has {positions} positions; use {positions} or less",
            pretrained.dir().display()
        )));
    }
    Ok(())
}
