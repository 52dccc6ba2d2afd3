//! What a training run needs before its first step, checked as far as it can be: files, columns, labels, lengths, model.

use crate::check;
use crate::config::RunConfig;
use crate::data::config::{EvalSource, TaskKind};
use crate::data::slices::Slices;
use crate::data::{
    Dataset, Example, LabelMap, ReadOptions, Reader, Skipped, Targets, Tokenizer, labels::value_targets,
    settings::Files, split_fraction,
};
use crate::error::{Error, Result};
use crate::metrics::{Family, names};
use crate::model::{Pretrained, Task};
use crate::train::config::metric_family;
use crate::train::eval::EvalSet;
use crate::train::eval_config::EvalConfig;
use crate::train::log::{Event, Phase, Progress, Reporter, split_of};
use std::collections::HashMap;
use std::path::Path;

/// Everything read and tokenised.
pub struct Prepared {
    pub pretrained: Pretrained,
    pub task: Task,
    pub train: Dataset,
    /// One named `eval`, or several named `eval_` and their name; none when nothing is evaluated.
    pub eval: Vec<EvalSet>,
    /// Named `test`.
    pub test: Option<EvalSet>,
    /// `train.class_weights` in label order.
    pub class_weights: Option<Vec<f32>>,
    /// What was left out of each split.
    skipped: HashMap<String, Skipped>,
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
        let mut skipped = HashMap::new();
        // What is only learnt from needs no groups.
        let splits = matches!(data.eval, Some(EvalSource::Fraction(_)));
        let mut read = |split: &str, files: &Files| -> Result<Vec<Example>> {
            let slice = config.eval.slice_by.clone().filter(|_| splits || split != "train");
            let mut reader = Reader::open_all(files.as_slice(), &ReadOptions { slice, ..data.read_options() })?;
            let examples = reader.by_ref().collect::<Result<Vec<_>>>()?;
            reader.check_not_empty(examples.len())?;
            if split == "train" {
                warn_of_unused(&reader.unused_renames(), reporter);
            }
            skipped.insert(split.to_owned(), reader.skipped().clone());
            Ok(examples)
        };
        let train = read("train", &data.train)?;
        let mut scored = vec![];
        for (name, files) in data.eval_sets() {
            scored.push((read(&name, files)?, files, name));
        }
        if let Some(files) = &data.test {
            scored.push((read("test", files)?, files, "test".to_owned()));
        }
        let labels = match (config.task.kind, &data.labels) {
            (TaskKind::Regression, _) => None,
            (_, Some(names)) => Some(LabelMap::new(names.clone())?),
            (_, None) => Some(LabelMap::from_examples(&train, pretrained.labels()?.as_deref(), &data.train.name())?),
        };
        let mut load = |examples: Vec<Example>, files: &Files, name: String| {
            let file = files.name();
            let targets = match &labels {
                Some(map) => map.targets(&examples, &file)?,
                None => value_targets(&examples)?,
            };
            let slices = Slices::from_examples(&examples, &file)?;
            let data = dataset(&pretrained, &tokenizer, &examples, targets, &file, data.max_length, reporter)?;
            Ok::<_, Error>(EvalSet { name, data, slices })
        };
        let all = load(train, &data.train, "train".to_owned())?;
        let loaded = scored.into_iter().map(|(examples, files, name)| load(examples, files, name));
        let mut eval = loaded.collect::<Result<Vec<_>>>()?;
        let test = if data.test.is_some() { eval.pop() } else { None };
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&all.data.targets, *share, config.train.seed)?;
                let slices = all.slices.map(|s| s.subset(&eval_rows));
                let eval = EvalSet { name: "eval".into(), data: all.data.subset(&eval_rows), slices };
                (all.data.subset(&train_rows), vec![eval])
            }
            _ => (all.data, eval),
        };
        let names = labels.map_or_else(Vec::new, |map| map.names().to_vec());
        let task = Task { kind: config.task.kind, labels: names };
        check_metric(&task, config.train.deciding().1)?;
        check_threshold(&task, &config.eval)?;
        let weights = config.train.class_weights.as_ref();
        let class_weights = weights.map(|w| w.resolve(&task.labels, &train.targets)).transpose()?;
        let (frame, unknown) = (tokenizer.special_tokens_count(data.text_pair.is_some()), tokenizer.unknown_id());
        Ok(Self { pretrained, task, train, eval, test, class_weights, skipped, frame, unknown })
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
    pub fn splits(&self) -> impl Iterator<Item = (&str, &Dataset)> {
        let scored = self.eval.iter().chain(&self.test).map(|set| (set.name.as_str(), &set.data));
        std::iter::once(("train", &self.train)).chain(scored)
    }

    /// One `data` event a split.
    pub fn data_events(&self) -> Vec<Event> {
        let labels = |targets: &Targets| {
            let Targets::Class(classes) = targets else { return vec![] };
            let mut counts = vec![0; self.task.labels.len()];
            classes.iter().for_each(|&c| counts[c as usize] += 1);
            self.task.labels.iter().cloned().zip(counts).collect()
        };
        let event = |(name, data): (&str, &Dataset)| Event::Data {
            split: split_of(name).0.into(),
            set: split_of(name).1.map(String::from),
            file: data.file.display().to_string(),
            rows: data.len(),
            tokens: data.tokens.ids.len(),
            longest: data.tokens.lengths().into_iter().max().unwrap_or(0),
            truncated: data.tokens.truncated.iter().filter(|t| **t).count(),
            labels: labels(&data.targets),
            skipped: self.skipped.get(name).cloned().unwrap_or_default(),
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

/// A threshold decides between two labels, which the data have or not.
fn check_threshold(task: &Task, config: &EvalConfig) -> Result<()> {
    let labels = task.labels.len();
    match config.tune_threshold {
        Some(_) if labels != 2 => Err(Error::input(format!(
            "eval.tune_threshold is set, but there are {labels} labels, and a threshold decides between two; remove the key"
        ))),
        _ => Ok(()),
    }
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
