//! What a training run needs before its first step, checked as far as it can be: files, columns, labels, lengths, model.

mod questions;

pub use questions::load_questions;

use super::model::interrupted;
use crate::check;
use crate::config::RunConfig;
use crate::data::cache::entry::Kept;
use crate::data::cache::{Cache, LEAST_BYTES, directory, sha256};
use crate::data::config::{DataConfig, EvalSource, TaskKind};
use crate::data::label_sets::{all_names, are_flags};
use crate::data::labels::{value, value_targets};
use crate::data::load::{LoadProgress, Watch};
use crate::data::reader::sentences::SentenceOptions;
use crate::data::settings::{Files, STANDARD_INPUT};
use crate::data::slices::Slices;
use crate::data::tagging::scheme::Scheme;
use crate::data::tagging::{self, Loaded as Sentences, TagForm};
use crate::data::tokens::Sha;
use crate::data::{
    Dataset, LabelMap, Labels, Loaded, Places, ReadOptions, Skipped, Targets, Tokenizer, load, split_fraction,
};
use crate::error::{Error, Result};
use crate::heads::span::SpanDecoding;
use crate::heads::tags::TagReading;
use crate::metrics::{Family, names};
use crate::model::{Pretrained, Task};
use crate::train::config::metric_family;
use crate::train::eval::EvalSet;
use crate::train::eval_config::EvalConfig;
use crate::train::log::{Event, Phase, Progress, Reporter, split_of};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// Everything read and tokenised.
pub struct Prepared {
    pub pretrained: Pretrained,
    pub task: Task,
    pub train: Dataset,
    /// One named `eval`, or several named `eval_` and their name; none when nothing is evaluated.
    pub eval: Vec<EvalSet>,
    /// Named `test`.
    pub test: Option<EvalSet>,
    /// `train.class_weights` or `train.pos_weight` in label order.
    pub class_weights: Option<Vec<f32>>,
    /// Of answers: how they are read from scores.
    pub spans: Option<SpanDecoding>,
    /// SHA-256 of the data files whose content was read for it anyway.
    pub contents: Vec<(PathBuf, Sha)>,
    /// What was left out of each split.
    skipped: HashMap<String, Skipped>,
    /// Special tokens of a row.
    frame: usize,
    /// Id of the unknown token.
    unknown: Option<u32>,
}

impl Prepared {
    /// Reads and checks all inputs of `config`, which trains `pretrained`.
    pub fn new(config: &RunConfig, pretrained: Pretrained, reporter: &mut dyn Reporter) -> Result<Self> {
        check_max_length(&pretrained, config.data.max_length, "data.max_length")?;
        match config.task.kind {
            TaskKind::Tokens => return Self::of_sentences(config, pretrained, reporter),
            TaskKind::Span => return Self::of_questions(config, pretrained, reporter),
            TaskKind::Classification | TaskKind::Multilabel | TaskKind::Regression => {}
        }
        let (data, kind) = (&config.data, config.task.kind);
        let loader = Loader::caching(&pretrained, data);
        // What is only learnt from needs no groups.
        let splits = matches!(data.eval, Some(EvalSource::Fraction(_)));
        let (mut contents, mut skipped) = (vec![], HashMap::new());
        let mut load = |split: &str, files: &Files, rule: &Rule<'_>| {
            let slice = config.eval.slice_by.clone().filter(|_| splits || split != "train");
            let options = ReadOptions { slice, ..data.read_options(kind) };
            let (mut loaded, sha256s) = loader.load(files, &options, rule, reporter)?;
            contents.extend(sha256s);
            if split == "train" {
                warn_of_unused(&loaded.unused_renames, reporter);
                if kind == TaskKind::Multilabel && data.known_labels().is_none() && are_flags(&loaded.labels) {
                    warn_of_flags(data, reporter);
                }
            }
            skipped.insert(split.to_owned(), std::mem::take(&mut loaded.skipped));
            Ok::<_, Error>(loaded)
        };
        let known = data.known_labels().map(LabelMap::new).transpose()?;
        // Which labels are right is known when all were seen, or from the config.
        let all = match (kind, &known) {
            (TaskKind::Classification | TaskKind::Multilabel, None) => load("train", &data.train, &|_| Ok(()))?,
            _ => load("train", &data.train, &|label| check_label(kind, known.as_ref(), label))?,
        };
        let labels = match (kind, known) {
            (TaskKind::Regression, _) => None,
            (_, Some(map)) => Some(map),
            (_, None) => {
                let names =
                    if kind == TaskKind::Multilabel { all_names(&all.labels) } else { all.labels.names().to_vec() };
                Some(LabelMap::from_names(&names, pretrained.labels()?.as_deref(), &data.train.name())?)
            }
        };
        let rule = |label: &str| check_label(kind, labels.as_ref(), label);
        let finish = |name: String, files: &Files, loaded: Loaded| {
            let targets = |of: &Labels, places: &Places| label_targets(kind, labels.as_ref(), of, places);
            eval_set(&pretrained, name, files, loaded, targets)
        };
        let all = finish("train".into(), &data.train, all)?;
        let mut scored = data.eval_sets();
        scored.extend(data.test.as_ref().map(|files| ("test".to_owned(), files)));
        let mut eval = vec![];
        for (name, files) in scored {
            let loaded = load(&name, files, &rule)?;
            eval.push(finish(name, files, loaded)?);
        }
        let test = if data.test.is_some() { eval.pop() } else { None };
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&all.data.targets, *share, config.train.seed)?;
                let slices = all.slices.map(|s| s.subset(&eval_rows));
                let data = all.data.subset(&eval_rows);
                let eval = EvalSet { name: "eval".into(), data, slices, tags: None, spans: None };
                (all.data.subset(&train_rows), vec![eval])
            }
            _ => (all.data, eval),
        };
        let names = labels.map_or_else(Vec::new, |map| map.names().to_vec());
        let task = Task { kind: config.task.kind, labels: names };
        check_metric(&task, config.train.deciding().1, false)?;
        check_threshold(&task, &config.eval)?;
        let weights = config.train.class_weights.as_ref().or(config.train.pos_weight.as_ref());
        let class_weights = weights.map(|w| w.resolve(&task.labels, &train.targets)).transpose()?;
        let tokenizer = loader.tokenizer()?;
        let (frame, unknown) = (tokenizer.special_tokens_count(data.text_pair.is_some()), tokenizer.unknown_id());
        drop(loader);
        Ok(Self { pretrained, task, train, eval, test, class_weights, spans: None, contents, skipped, frame, unknown })
    }

    /// The same for words with tags.
    fn of_sentences(config: &RunConfig, pretrained: Pretrained, reporter: &mut dyn Reporter) -> Result<Self> {
        let data = &config.data;
        let loader = Loader::caching(&pretrained, data);
        let tokenizer = loader.tokenizer()?;
        let (frame, unknown) = (tokenizer.special_tokens_count(false), tokenizer.unknown_id());
        let (options, mut skipped, mut contents) = (data.sentence_options(), HashMap::new(), vec![]);
        let form = TagForm { scheme: data.tag_scheme, convert: data.convert_tags };
        let mut read = |split: &str, files: &Files| {
            let rename = &data.rename_labels;
            let read = |reporter: &mut dyn Reporter| read_sentences(files, &options, form, rename, tokenizer, reporter);
            let (loaded, sha256s) = loader.kept(files, &(&options, form, rename), reporter, read)?;
            contents.extend(sha256s);
            tell_empty(&loaded, files, reporter);
            if split == "train" {
                warn_of_unused(&loaded.unused_renames, reporter);
            }
            skipped.insert(split.to_owned(), loaded.skipped.clone());
            Ok::<_, Error>(loaded)
        };
        let all = read("train", &data.train)?;
        let labels = match data.labels.clone() {
            Some(names) => LabelMap::new(names)?,
            None => LabelMap::from_names(&all.names(), pretrained.labels()?.as_deref(), &data.train.name())?,
        };
        let encoder = pretrained.encoder_config();
        let finish = |loaded: &Sentences, files: &Files| {
            let set = loaded.rows(&labels, tokenizer, data.max_length, data.label_all_tokens, files)?;
            set.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
            Ok::<_, Error>(set)
        };
        let train = finish(&all, &data.train)?;
        drop(all);
        let mut scored = data.eval_sets();
        scored.extend(data.test.as_ref().map(|files| ("test".to_owned(), files)));
        let scheme = form.written().unwrap_or_else(|| Scheme::of(labels.names()));
        let reading = TagReading { scheme, decoding: config.eval.tag_decoding, strict: config.eval.strict_tags };
        reading.decoder(labels.names()).map_err(|message| {
            let hint = "set data.tag_scheme to that of the tags, or remove the key";
            Error::input(format!("eval.tag_decoding is \"{}\", but {message}; {hint}", reading.decoding.name()))
        })?;
        let tags = Some(reading);
        let mut eval = vec![];
        for (name, files) in scored {
            let loaded = read(&name, files)?;
            eval.push(EvalSet { name, data: finish(&loaded, files)?, slices: None, tags, spans: None });
        }
        let test = if data.test.is_some() { eval.pop() } else { None };
        let (train, eval) = match &data.eval {
            Some(EvalSource::Fraction(share)) => {
                let (train_rows, eval_rows) = split_fraction(&train.targets, *share, config.train.seed)?;
                let eval =
                    EvalSet { name: "eval".into(), data: train.subset(&eval_rows), slices: None, tags, spans: None };
                (train.subset(&train_rows), vec![eval])
            }
            _ => (train, eval),
        };
        let task = Task { kind: config.task.kind, labels: labels.names().to_vec() };
        check_metric(&task, config.train.deciding().1, false)?;
        let weights = config.train.class_weights.as_ref();
        let class_weights = weights.map(|w| w.resolve(&task.labels, &train.targets)).transpose()?;
        drop(loader);
        Ok(Self { pretrained, task, train, eval, test, class_weights, spans: None, contents, skipped, frame, unknown })
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
            let mut counts = vec![0; self.task.labels.len()];
            match targets {
                Targets::Class(classes) => classes.iter().for_each(|&c| counts[c as usize] += 1),
                Targets::Sets(sets) => sets.iter().flatten().for_each(|&c| counts[c as usize] += 1),
                Targets::Tags(tags) => tags.labels().for_each(|c| counts[c as usize] += 1),
                Targets::Value(_) | Targets::Spans(_) | Targets::None => return vec![],
            }
            self.task.labels.iter().cloned().zip(counts).collect()
        };
        let event = |(name, data): (&str, &Dataset)| Event::Data {
            split: split_of(name).0.into(),
            set: split_of(name).1.map(String::from),
            file: data.file.display().to_string(),
            rows: data.len(),
            tokens: data.tokens.total(),
            longest: data.tokens.lengths().into_iter().max().unwrap_or(0),
            truncated: data.tokens.truncated(),
            labels: labels(&data.targets),
            skipped: self.skipped.get(name).cloned().unwrap_or_default(),
            cached: data.tokens.cached(),
        };
        self.splits().map(event).collect()
    }
}

/// A key of `rename_labels` that no row has is most likely misspelt.
fn warn_of_unused(names: &[String], reporter: &mut dyn Reporter) {
    for name in names {
        let message = format!("data.rename_labels has \"{name}\", which is the label of nothing in the training data");
        reporter.event(&Event::Warning { message });
    }
}

/// A column of 0 and 1 by itself.
fn warn_of_flags(data: &DataConfig, reporter: &mut dyn Reporter) {
    let message = format!(
        "data.label = {} holds 0 or 1 and nothing else, which is read as two labels of these names; for one label that a row has \
         or has not, set task.kind = \"classification\"",
        data.label
    );
    reporter.event(&Event::Warning { message });
}

/// The scores that the task yields; `with_none`: whether questions may have no answer.
pub fn family(task: &Task, with_none: bool) -> Family {
    match task.kind {
        TaskKind::Span => Family::Span { with_none },
        kind => metric_family(kind, task.labels.len()),
    }
}

/// Some metrics are there for two classes only, which the data decide.
pub fn check_metric(task: &Task, metric: &str, with_none: bool) -> Result<()> {
    let names = names(family(task, with_none));
    if names.contains(&metric) {
        return Ok(());
    }
    let with = match task.kind {
        TaskKind::Span => "questions that all have answers".into(),
        _ => format!("{} labels", task.labels.len()),
    };
    let listed = names.join(", ");
    Err(Error::input(format!("train.metric_for_best_model is \"{metric}\", but with {with} there is {listed}")))
}

/// A threshold decides between two labels, which the data have or not, or on each label by itself.
fn check_threshold(task: &Task, config: &EvalConfig) -> Result<()> {
    let labels = task.labels.len();
    match config.tune_threshold {
        Some(_) if labels != 2 && task.kind != TaskKind::Multilabel => Err(Error::input(format!(
            "eval.tune_threshold is set, but there are {labels} labels, and a threshold decides between two; remove the key"
        ))),
        _ => Ok(()),
    }
}

/// What is wrong with a row's label, or labels, if anything; `labels`: those there are, for tasks that have some.
fn check_label(kind: TaskKind, labels: Option<&LabelMap>, label: &str) -> Result<(), String> {
    match (kind, labels) {
        (TaskKind::Classification, Some(map)) => map.class(label).map(drop),
        (TaskKind::Multilabel, Some(map)) => map.set(label).map(drop),
        _ => value(label).map(drop),
    }
}

/// What rows' labels say to a task.
pub fn label_targets(kind: TaskKind, map: Option<&LabelMap>, labels: &Labels, places: &Places) -> Result<Targets> {
    match (kind, map) {
        (TaskKind::Classification, Some(map)) => map.targets(labels, places),
        (TaskKind::Multilabel, Some(map)) => map.set_targets(labels, places),
        _ => value_targets(labels, places),
    }
}

/// Reads and tokenises words with tags; tells of sentences that are left out.
pub fn load_sentences(
    files: &Files,
    options: &SentenceOptions,
    form: TagForm,
    rename: &BTreeMap<String, String>,
    tokenizer: &Tokenizer,
    reporter: &mut dyn Reporter,
) -> Result<Sentences> {
    let loaded = read_sentences(files, options, form, rename, tokenizer, reporter)?;
    tell_empty(&loaded, files, reporter);
    Ok(loaded)
}

fn read_sentences(
    files: &Files,
    options: &SentenceOptions,
    form: TagForm,
    rename: &BTreeMap<String, String>,
    tokenizer: &Tokenizer,
    reporter: &mut dyn Reporter,
) -> Result<Sentences> {
    let mut progress = |sentences: u64| {
        report(reporter, sentences, None);
        interrupted(reporter)
    };
    tagging::load(files, options, form, rename, tokenizer, &mut progress)
}

fn tell_empty(loaded: &Sentences, files: &Files, reporter: &mut dyn Reporter) {
    if loaded.empty > 0 {
        let message = format!(
            "{}: {} sentences are left out, as the tokenizer makes nothing of their words",
            files.name().display(),
            loaded.empty
        );
        reporter.event(&Event::Warning { message });
    }
}

/// Says what is wrong with a label, if anything.
type Rule<'a> = dyn Fn(&str) -> Result<(), String> + 'a;

/// Files to tokens of a model.
pub struct Loader<'a> {
    pretrained: &'a Pretrained,
    max_length: usize,
    /// Where tokens are kept between runs.
    cache: Option<Cache>,
    /// Read when there is something to tokenise.
    tokenizer: OnceCell<Tokenizer>,
}

impl<'a> Loader<'a> {
    /// Without a cache.
    pub fn new(pretrained: &'a Pretrained, max_length: usize) -> Self {
        Self { pretrained, max_length, cache: None, tokenizer: OnceCell::new() }
    }

    /// With the cache that a config allows.
    pub fn caching(pretrained: &'a Pretrained, data: &DataConfig) -> Self {
        let cache = directory().filter(|_| data.cache).map(Cache::open);
        Self { cache, ..Self::new(pretrained, data.max_length) }
    }

    /// The rows of labelled files, from the cache if it has them, and the SHA-256 of the files if they were computed.
    pub fn load(
        &self,
        files: &Files,
        options: &ReadOptions,
        labels: &Rule<'_>,
        reporter: &mut dyn Reporter,
    ) -> Result<(Loaded, Vec<(PathBuf, Sha)>)> {
        let depends_on = (options, self.max_length);
        let read = |reporter: &mut dyn Reporter| self.read(files, options, labels, reporter);
        let (loaded, contents) = self.kept(files, &depends_on, reporter, read)?;
        if loaded.tokens.cached() {
            loaded.labels.map(&loaded.places, labels)?;
        }
        Ok((loaded, contents))
    }

    /// What `read` makes of some files, from the cache if it has it, and the SHA-256 of the files if they were computed. `options`
    /// are all that it depends on, beside the files and the tokenizer.
    pub fn kept<T: Kept>(
        &self,
        files: &Files,
        options: &dyn Debug,
        reporter: &mut dyn Reporter,
        read: impl FnOnce(&mut dyn Reporter) -> Result<T>,
    ) -> Result<(T, Vec<(PathBuf, Sha)>)> {
        let Some(cache) = self.cache.as_ref().filter(|_| worth_keeping(files)) else {
            return Ok((read(reporter)?, vec![]));
        };
        let mut contents = vec![];
        for file in files.iter() {
            contents.push((file.clone(), cache.content(file, &mut || interrupted(reporter))?));
        }
        // What is made of a SentencePiece model has scores that the same bytes from a file would not have.
        let (file, mut tokenizer) = Tokenizer::json(self.pretrained.dir())?;
        tokenizer.extend(file.file_name().unwrap_or_default().as_encoded_bytes());
        let tokenizer = sha256(&tokenizer);
        let key = Cache::key(&contents, options, &tokenizer);
        let loaded = match cache.get(&key, files.as_slice()) {
            Some(loaded) => loaded,
            None => {
                let loaded = read(reporter)?;
                if contents.iter().all(|(file, content)| content.is_current(file))
                    && let Err(e) = cache.put(&key, &loaded)
                {
                    let message =
                        format!("the tokens of {} are not kept for the next run: {e}", files.name().display());
                    reporter.event(&Event::Warning { message });
                }
                loaded
            }
        };
        Ok((loaded, contents.into_iter().map(|(file, content)| (file, content.sha256)).collect()))
    }

    /// Read when first asked for.
    fn tokenizer(&self) -> Result<&Tokenizer> {
        match self.tokenizer.get() {
            Some(tokenizer) => Ok(tokenizer),
            None => {
                let loaded = Tokenizer::load(self.pretrained.dir())?;
                Ok(self.tokenizer.get_or_init(|| loaded))
            }
        }
    }

    fn read(
        &self,
        files: &Files,
        options: &ReadOptions,
        labels: &Rule<'_>,
        reporter: &mut dyn Reporter,
    ) -> Result<Loaded> {
        let tokenizer = self.tokenizer()?;
        let mut progress = |p: LoadProgress| {
            report(reporter, p.rows, p.share);
            interrupted(reporter)
        };
        let mut watch = Watch { progress: &mut progress, check_label: labels };
        let loaded = load(files, options, tokenizer, self.max_length, &mut watch)?;
        report(reporter, loaded.tokens.len() as u64, Some(1.0));
        Ok(loaded)
    }
}

/// Only files can be read twice, and only large ones are worth it.
fn worth_keeping(files: &Files) -> bool {
    let size = |file: &PathBuf| match std::fs::metadata(file) {
        Ok(m) if m.is_file() && file != Path::new(STANDARD_INPUT) => Some(m.len()),
        _ => None,
    };
    files.iter().map(size).sum::<Option<u64>>().is_some_and(|bytes| bytes >= LEAST_BYTES)
}

/// Rows so far, and as many in all as the share of the file lets expect.
fn report(reporter: &mut dyn Reporter, rows: u64, share: Option<f64>) {
    let total = match share {
        Some(share) if share >= 1.0 => rows,
        Some(share) if share > 0.0 => (rows as f64 / share) as u64 + 1,
        _ => rows + 1,
    };
    reporter.progress(Progress::counted(Phase::Tokenise, rows, total));
}

/// Loaded rows with what `targets` makes of their labels and with their groups, the ids checked against the model.
pub fn eval_set(
    pretrained: &Pretrained,
    name: String,
    files: &Files,
    loaded: Loaded,
    targets: impl FnOnce(&Labels, &Places) -> Result<Targets>,
) -> Result<EvalSet> {
    let Loaded { tokens, labels, slices, places, .. } = loaded;
    let targets = targets(&labels, &places)?;
    let encoder = pretrained.encoder_config();
    tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    let data = Dataset { tokens, targets, lines: places.into_lines(), file: files.name() };
    Ok(EvalSet { name, data, slices: slices.as_ref().map(Slices::new), tags: None, spans: None })
}

/// The model must have a position for every token.
pub fn check_max_length(pretrained: &Pretrained, max_length: usize, key: &str) -> Result<()> {
    let positions = pretrained.encoder_config().max_length();
    if max_length > positions {
        return Err(Error::input(format!(
            "{key} is {max_length}, but the model {} has {positions} positions; use {positions} or less",
            pretrained.dir().display()
        )));
    }
    Ok(())
}
