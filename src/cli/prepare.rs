//! What a training run needs before its first step, checked as far as it can be: files, columns, labels, lengths, model.

use crate::config::RunConfig;
use crate::data::config::{EvalSource, TaskKind};
use crate::data::{
    Dataset, Example, LabelMap, Reader, Skipped, Targets, Tokenizer, labels::value_targets, settings::Files,
    split_fraction,
};
use crate::error::{Error, Result};
use crate::metrics::{Family, names};
use crate::model::{Pretrained, Task};
use crate::train::config::metric_family;
use crate::train::log::{Event, Phase, Progress, Reporter};
use std::collections::HashMap;
use std::path::Path;

/// Everything read and tokenised.
pub struct Prepared {
    pub pretrained: Pretrained,
    pub task: Task,
    pub train: Dataset,
    pub eval: Option<Dataset>,
    pub test: Option<Dataset>,
    /// What was left out of each split.
    skipped: HashMap<&'static str, Skipped>,
}

impl Prepared {
    /// Reads and checks all inputs of `config`.
    pub fn new(config: &RunConfig, reporter: &mut dyn Reporter) -> Result<Self> {
        let pretrained = Pretrained::open(Path::new(&config.model.path))?;
        check_max_length(&pretrained, config.data.max_length, "data.max_length")?;
        let tokenizer = Tokenizer::load(pretrained.dir())?;
        let data = &config.data;
        let mut skipped = HashMap::new();
        let mut read = |split: &'static str, files: &Files| -> Result<Vec<Example>> {
            let mut reader = Reader::open_all(files.as_slice(), &data.read_options())?;
            let examples = reader.by_ref().collect::<Result<Vec<_>>>()?;
            reader.check_not_empty(examples.len())?;
            if split == "train" {
                warn_of_unused(&reader.unused_renames(), reporter);
            }
            skipped.insert(split, reader.skipped().clone());
            Ok(examples)
        };
        let train = read("train", &data.train)?;
        let eval = match &data.eval {
            Some(EvalSource::Files(files)) => Some((read("eval", files)?, files)),
            Some(EvalSource::Named(_)) => {
                return Err(Error::input("data.eval is a table of named sets, which training does not evaluate yet"));
            }
            Some(EvalSource::Fraction(_)) | None => None,
        };
        let test = match &data.test {
            Some(files) => Some((read("test", files)?, files)),
            None => None,
        };
        let labels = match (config.task.kind, &data.labels) {
            (TaskKind::Regression, _) => None,
            (_, Some(names)) => Some(LabelMap::new(names.clone())?),
            (_, None) => Some(LabelMap::from_examples(&train, pretrained.labels()?.as_deref(), &data.train.name())?),
        };
        let mut load = |examples: Vec<Example>, files: &Files| {
            let file = files.name();
            let targets = match &labels {
                Some(map) => map.targets(&examples, &file)?,
                None => value_targets(&examples)?,
            };
            dataset(&pretrained, &tokenizer, &examples, targets, &file, data.max_length, reporter)
        };
        let train = load(train, &data.train)?;
        let eval_files = eval.map(|(examples, files)| load(examples, files)).transpose()?;
        let test = test.map(|(examples, files)| load(examples, files)).transpose()?;
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&train.targets, *share, config.train.seed)?;
                (train.subset(&train_rows), Some(train.subset(&eval_rows)))
            }
            _ => (train, eval_files),
        };
        let names = labels.map_or_else(Vec::new, |map| map.names().to_vec());
        let task = Task { kind: config.task.kind, labels: names };
        check_metric(&task, &config.train.metric_for_best_model)?;
        Ok(Self { pretrained, task, train, eval, test, skipped })
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
            skipped: self.skipped.get(split).cloned().unwrap_or_default(),
        };
        self.splits().map(event).collect()
    }
}

/// A key of `rename_labels` that no row has is most likely misspelt.
fn warn_of_unused(names: &[&str], reporter: &mut dyn Reporter) {
    for name in names {
        let message = format!("data.rename_labels has \"{name}\", which is the label of no training row");
        reporter.event(&Event::Warning { message });
    }
}

/// The scores that the task yields.
pub fn family(task: &Task) -> Family {
    metric_family(task.kind, task.labels.len())
}

/// Some metrics are there for two classes only, which the data decide.
fn check_metric(task: &Task, metric: &str) -> Result<()> {
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
