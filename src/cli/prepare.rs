//! What a training run needs before its first step, checked as far as it can be: files, columns, labels, lengths, model.

use crate::config::RunConfig;
use crate::data::cache::{Cache, LEAST_BYTES, directory, small_file};
use crate::data::config::{EvalSource, TaskKind};
use crate::data::labels::{class_name, value, value_targets};
use crate::data::load::{LoadProgress, Watch};
use crate::data::tokens::Sha;
use crate::data::{Dataset, LabelMap, Loaded, ReadOptions, Targets, Tokenizer, load, split_fraction};
use crate::error::{Error, Result};
use crate::metrics::{Family, names};
use crate::model::{Pretrained, Task};
use crate::train::config::metric_family;
use crate::train::log::{Event, Phase, Progress, Reporter};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// Everything read and tokenised.
pub struct Prepared {
    pub pretrained: Pretrained,
    pub task: Task,
    pub train: Dataset,
    pub eval: Option<Dataset>,
    pub test: Option<Dataset>,
    /// SHA-256 of the data files whose content was read for it anyway.
    pub contents: Vec<(PathBuf, Sha)>,
}

impl Prepared {
    /// Reads and checks all inputs of `config`.
    pub fn new(config: &RunConfig, reporter: &mut dyn Reporter) -> Result<Self> {
        let pretrained = Pretrained::open(Path::new(&config.model.path))?;
        check_max_length(&pretrained, config.data.max_length, "data.max_length")?;
        let data = &config.data;
        let options = ReadOptions {
            format: data.format,
            text: data.text.clone(),
            text_pair: data.text_pair.clone(),
            label: Some(data.label.clone()),
            header: data.header,
        };
        let cache = directory().filter(|_| data.cache).map(Cache::open);
        let loader = Loader { cache, ..Loader::new(&pretrained, options, data.max_length) };
        let mut contents = vec![];
        let mut load = |file: &PathBuf, labels: &Rule<'_>| {
            let (loaded, sha256) = loader.load(file, labels, reporter)?;
            contents.extend(sha256.map(|sha256| (file.clone(), sha256)));
            Ok::<_, Error>(loaded)
        };
        let known = data.labels.clone().map(LabelMap::new).transpose()?;
        let regression = config.task.kind == TaskKind::Regression;
        let train = match &known {
            _ if regression => load(&data.train, &|label| value(label).map(drop))?,
            Some(map) => load(&data.train, &|label| map.class(label).map(drop))?,
            None => load(&data.train, &class_name)?,
        };
        let labels = match known {
            _ if regression => None,
            Some(map) => Some(map),
            None => Some(LabelMap::from_labels(&train.labels, pretrained.labels()?.as_deref(), &data.train)?),
        };
        let rule = |label: &str| match &labels {
            Some(map) => map.class(label).map(drop),
            None => value(label).map(drop),
        };
        let finish = |file: &Path, loaded: Loaded| {
            let targets = match &labels {
                Some(map) => map.targets(&loaded.labels, loaded.lines(), file)?,
                None => value_targets(&loaded.labels, loaded.lines(), file)?,
            };
            dataset(&pretrained, loaded, targets, file)
        };
        let train = finish(&data.train, train)?;
        let mut other = |file: &PathBuf| finish(file, load(file, &rule)?);
        let eval_file = match &data.eval {
            Some(EvalSource::File(file)) => Some(other(file)?),
            _ => None,
        };
        let test = data.test.as_ref().map(other).transpose()?;
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&train.targets, *share, config.train.seed)?;
                (train.subset(&train_rows), Some(train.subset(&eval_rows)))
            }
            _ => (train, eval_file),
        };
        drop(loader);
        let names = labels.map_or_else(Vec::new, |map| map.names().to_vec());
        let task = Task { kind: config.task.kind, labels: names };
        check_metric(&task, &config.train.metric_for_best_model)?;
        Ok(Self { pretrained, task, train, eval, test, contents })
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
            tokens: data.tokens.total(),
            longest: data.tokens.lengths().into_iter().max().unwrap_or(0),
            truncated: data.tokens.truncated(),
            labels: labels(&data.targets),
            cached: data.tokens.cached(),
        };
        self.splits().map(event).collect()
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

/// Says what is wrong with a label, if anything.
type Rule<'a> = dyn Fn(&str) -> Result<(), String> + 'a;

/// Files to tokens of a model.
pub struct Loader<'a> {
    pretrained: &'a Pretrained,
    options: ReadOptions,
    max_length: usize,
    /// Where tokens are kept between runs.
    pub cache: Option<Cache>,
    /// Read when there is something to tokenise.
    tokenizer: OnceCell<Tokenizer>,
}

impl<'a> Loader<'a> {
    /// Without a cache.
    pub fn new(pretrained: &'a Pretrained, options: ReadOptions, max_length: usize) -> Self {
        Self { pretrained, options, max_length, cache: None, tokenizer: OnceCell::new() }
    }

    /// A labelled file's rows, from the cache if it has them, and the SHA-256 of the file if it was computed.
    pub fn load(&self, file: &Path, labels: &Rule<'_>, reporter: &mut dyn Reporter) -> Result<(Loaded, Option<Sha>)> {
        // Only a file can be read twice, and only a large one is worth it.
        let large = std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.len() >= LEAST_BYTES);
        let Some(cache) = self.cache.as_ref().filter(|_| large) else {
            return Ok((self.read(file, labels, reporter)?, None));
        };
        let content = cache.content(file, &mut || interrupted(reporter))?;
        let tokenizer = small_file(&Tokenizer::file(self.pretrained.dir()))?;
        let key = Cache::key(file, &content, &self.options, &tokenizer, self.max_length);
        if let Some(loaded) = cache.get(&key) {
            loaded.labels.map(loaded.lines(), file, labels)?;
            return Ok((loaded, Some(content.sha256)));
        }
        let loaded = self.read(file, labels, reporter)?;
        if content.is_current(file)
            && let Err(e) = cache.put(&key, &loaded)
        {
            let message = format!("the tokens of {} are not kept for the next run: {e}", file.display());
            reporter.event(&Event::Warning { message });
        }
        Ok((loaded, Some(content.sha256)))
    }

    fn read(&self, file: &Path, labels: &Rule<'_>, reporter: &mut dyn Reporter) -> Result<Loaded> {
        let tokenizer = match self.tokenizer.get() {
            Some(tokenizer) => tokenizer,
            None => {
                let loaded = Tokenizer::load(self.pretrained.dir())?;
                self.tokenizer.get_or_init(|| loaded)
            }
        };
        let mut progress = |p: LoadProgress| {
            report(reporter, p.rows, p.share);
            interrupted(reporter)
        };
        let mut watch = Watch { progress: &mut progress, check_label: labels };
        let loaded = load(file, &self.options, tokenizer, self.max_length, &mut watch)?;
        report(reporter, loaded.tokens.len() as u64, Some(1.0));
        Ok(loaded)
    }
}

/// Rows so far, and as many in all as the share of the file lets expect.
fn report(reporter: &mut dyn Reporter, rows: u64, share: Option<f64>) {
    let total = match share {
        Some(share) if share >= 1.0 => rows,
        Some(share) if share > 0.0 => (rows as f64 / share) as u64 + 1,
        _ => rows + 1,
    };
    reporter.progress(Progress {
        phase: Phase::Tokenise,
        done: rows,
        total,
        loss: f64::NAN,
        learning_rate: 0.0,
        tokens_per_second: 0.0,
    });
}

fn interrupted(reporter: &dyn Reporter) -> Result<()> {
    if reporter.interrupted() { Err(Error::Interrupted { resumable: false }) } else { Ok(()) }
}

/// A file's rows with their targets, the ids checked against the model.
pub fn dataset(pretrained: &Pretrained, loaded: Loaded, targets: Targets, file: &Path) -> Result<Dataset> {
    let shape = pretrained.encoder_config().embedding;
    loaded.tokens.check_ids(shape.vocab, shape.types)?;
    Ok(Dataset { tokens: loaded.tokens.clone(), targets, lines: loaded.into_lines(), file: file.into() })
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
