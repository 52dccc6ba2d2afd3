//! `bertft train`: a config file to a run directory.

use super::Globals;
use super::model::pretrained;
use super::prepare::Prepared;
use super::ui::Ui;
use crate::config::RunConfig;
use crate::data::cache::{Content, hex};
use crate::data::config::{EvalSource, TaskKind};
use crate::data::settings::STANDARD_INPUT;
use crate::data::{Dataset, Targets};
use crate::device::{is_out_of_memory, name as device_name};
use crate::error::{Error, Result};
use crate::metrics::span::{Of, best_threshold};
use crate::metrics::threshold::{Criterion, Threshold};
use crate::model::{BertftJson, Model};
use crate::nn::workspace::Space;
use crate::ops::gemm::allow_tf32;
use crate::train::config::{Precision, TrainConfig};
use crate::train::eval::{EvalSet, Evaluation, Scored, SetScores, evaluate};
use crate::train::eval_config::TuneBy;
use crate::train::eval_span::SpanScores;
use crate::train::log::{Event, Reporter};
use crate::train::memory::{Estimate, estimate_memory, fitting_batches, free_bytes, peak_rss_bytes};
use crate::train::plan::Plan;
use crate::train::run_dir::{EventLog, Existing, Identity, RunDir, State};
use crate::train::step::start;
use crate::train::trainer::{Outcome, Trainer, collect_metrics, final_eval};
use candle_core::Device;
use clap::Args;
use serde_json::json;
use serde_json::map::Entry;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Fine-tune a model as a config file says
///
/// Writes a run directory with the resolved config, the events, checkpoints, the scores (metrics.json) and the model as
/// a plain Hugging Face model directory.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  Train as the config says:
    bertft train --config cls.toml
  Try another learning rate into another directory:
    bertft train --config cls.toml --set train.learning_rate=3e-5 --output runs/lr3e-5
  Go on after an interruption, in a script that reads the events:
    bertft train --config cls.toml --resume --json")]
pub struct TrainArgs {
    /// The config file; `bertft config init` writes one
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a config value, such as train.epochs=5; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The run directory, over output.dir
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on from the last checkpoint of the run directory
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run in the run directory
    #[arg(long)]
    pub overwrite: bool,
    /// Check config, data and model, say what would be done, and stop
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(args: &TrainArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let started = Instant::now();
    let config = RunConfig::load_for_run(&args.config, &args.set, args.output.as_deref())?;
    let existing = match (args.overwrite, args.resume) {
        (true, _) => Existing::Overwrite,
        (_, true) => Existing::Resume,
        _ => Existing::Refuse,
    };
    let mut inputs: Vec<&Path> = config.data.files().into_iter().map(|(_, path)| path).collect();
    inputs.push(Path::new(&config.model.path));
    let run = RunDir::check(&config.output.dir, existing, &inputs)?;
    ui.watch_signals()?;
    ui.finish_unread();
    let resumable = |e| match e {
        Error::Interrupted { .. } => Error::Interrupted { resumable: args.resume },
        e => e,
    };
    let pretrained = pretrained(&config.model, globals, ui).map_err(resumable)?;
    // Before the data are read, which may take long.
    let (device, device_note) = globals.device(pretrained.encoder_config())?;
    let prepared = Prepared::new(&config, pretrained, ui).map_err(resumable)?;
    let seed = config.train.seed;
    let (precision, note) = config.train.precision.on(&device);
    let space = Space { dtype: precision.dtype(), device: &device };
    let (mut model, mut report) = Model::load(&prepared.pretrained, prepared.task.clone(), seed, space)?;
    let plan = Plan::new(&config.train, &prepared.train);
    let too_short = start(&mut model, &config.train, &plan, &mut report)?;
    let total_steps = plan.total;
    let identity = identity(&config, precision, &device, &prepared);
    let scored: Vec<&Dataset> = prepared.eval.iter().chain(&prepared.test).map(|set| &set.data).collect();
    // Before a checkpoint fills the moments: what it touches is in the estimate.
    let estimate = |train: &TrainConfig| estimate_memory(&model, &prepared.train, &scored, train);
    let free = free_bytes(&device).filter(|_| config.train.auto_find_batch_size);
    let (fitting, memory) = fitting_batches(&config.train, free, estimate);
    let batch_size = fitting.batch_size.filter(|_| fitting != config.train);
    let state = match args.resume {
        true => run.load_checkpoint(&mut model, &identity)?,
        false => State { batch_size, ..State::default() },
    };
    // A run that goes on has the batches that it had.
    let train = match state.batch_size {
        Some(rows) => config.train.with_batches_of(rows).ok_or_else(|| {
            Error::in_file(
                run.path(),
                format!("the checkpoint's batches of {rows} rows are no part of train.batch_size"),
            )
        })?,
        None => config.train.clone(),
    };
    if state.step > total_steps {
        return Err(Error::input(format!(
            "the checkpoint is at step {}, past the {total_steps} steps of the config; raise train.epochs or use --overwrite",
            state.step
        )));
    }
    let mut events = vec![Event::Start {
        version: env!("CARGO_PKG_VERSION").into(),
        task: config.task.kind.name().into(),
        model: config.model.path.clone(),
        device: device_name(&device),
        threads: globals.threads(),
        precision: precision.name().into(),
        seed,
        output: run.path().display().to_string(),
        parameters: model.params.count(),
        trainable_parameters: model.params.learners().map(|(s, _)| s.len()).sum(),
        loaded: report.loaded,
        initialised: report.initialised,
        unused: report.unused,
        total_steps,
        epochs: config.train.epochs,
        estimated_peak_rss_bytes: memory.peak_rss_bytes,
        estimated_growth_bytes: memory.growth_bytes,
        resumed_from: args.resume.then_some(state.step),
    }];
    allow_tf32(train.tf32);
    let notes = device_note.into_iter().chain(note).chain(too_short).chain(train.tf32_note(&device));
    let notes = notes.chain(state.batch_size.map(|_| train.describe_batches()));
    let notes = notes.chain(memory_warning(&memory, free_bytes(&device), &train));
    events.extend(notes.map(|message| Event::Warning { message }));
    events.extend(prepared.data_events());
    events.extend(prepared.warnings(&args.config));
    if args.dry_run {
        events.iter().for_each(|event| ui.event(event));
        return dry_run(args, &config, ui);
    }
    run.prepare(existing)?;
    let mut log = EventLog::open(&run, state.events_bytes)?;
    for event in &events {
        log.write(event)?;
        ui.event(event);
    }
    run.write("config.toml", &config.to_toml()?)?;
    run.write("run.json", &manifest(&config, &prepared, globals, &device)?)?;

    let extra =
        BertftJson::new(config.task.kind, &config.data).with_tags(config.eval.tag_decoding).with_spans(prepared.spans);
    let outcome = Trainer {
        model: &mut model,
        train: &prepared.train,
        eval: &prepared.eval,
        config: train.clone(),
        class_weights: prepared.class_weights.as_deref(),
        run: &run,
        source: &prepared.pretrained,
        extra: &extra,
        identity: &identity,
        log: &mut log,
        reporter: ui,
        started,
    }
    .run(state)
    .map_err(|e| out_of_memory(e, &memory, &train))?;
    Closing { config: &config, prepared: &prepared, run: &run, model, outcome, extra, log, ui }.finish()
}

/// A run whose training is over, with the best model loaded.
struct Closing<'a> {
    config: &'a RunConfig,
    prepared: &'a Prepared,
    run: &'a RunDir,
    model: Model,
    outcome: Outcome,
    extra: BertftJson,
    log: EventLog,
    ui: &'a mut Ui,
}

impl Closing<'_> {
    /// Tunes the threshold if that is asked for, scores the test split and closes the run.
    fn finish(mut self) -> Result<()> {
        let by = self.config.eval.tune_threshold;
        let mut scores = match (by.and_then(TuneBy::of_labels), by.and_then(TuneBy::of_answers)) {
            (_, Some(of)) if self.config.task.kind == TaskKind::Span => self.tune_answers(of)?,
            (Some(criterion), _) => self.tune(criterion)?,
            _ => final_eval(&self.outcome.state).to_vec(),
        };
        let test = self.prepared.test.as_ref().map(|test| self.score(test)).transpose()?;
        scores.extend(test);
        let metrics = collect_metrics(&scores)?;
        let text = serde_json::to_string_pretty(&metrics).map_err(|e| Error::Failed(e.to_string()))?;
        self.run.write("metrics.json", &(text + "\n"))?;
        let model_dir = self.run.model().display().to_string();
        let state = &self.outcome.state;
        let done = Event::Done {
            steps: state.step,
            epochs: self.outcome.epochs,
            train_seconds: state.train_seconds,
            samples_per_second: state.samples as f64 / state.train_seconds,
            tokens_per_second: state.tokens as f64 / state.train_seconds,
            first_step_seconds: self.outcome.first_step_seconds,
            peak_rss_bytes: peak_rss_bytes(),
            model: model_dir.clone(),
            metrics,
        };
        self.emit(&done)?;
        self.ui.note(&next_commands(self.config, &model_dir));
        Ok(())
    }

    /// Saves the threshold that is best on the first eval set with the model; returns the scores of all sets with it.
    fn tune(&mut self, criterion: Criterion) -> Result<Vec<SetScores>> {
        let prepared = self.prepared;
        let Some((first, others)) = prepared.eval.split_first() else { return Ok(vec![]) };
        let batch_size = self.config.train.eval_batch_size;
        let scored = Scored::new(&mut self.model, &first.data, batch_size, None, self.ui)?;
        match scored.best_threshold(criterion, self.config.eval.threshold_per_label) {
            Some(threshold) => {
                self.extra.threshold = Some(threshold);
                self.extra.write(&self.run.model())?;
            }
            None => {
                let message = match self.config.task.kind {
                    TaskKind::Multilabel => {
                        "eval.tune_threshold: the eval data have no row with a label or none without, or too many \
                         probabilities to compare; labels are predicted from a probability of 0.5 on"
                    }
                    _ => {
                        "eval.tune_threshold: the eval data have rows of one label only, so there is no best threshold; \
                         the more probable label is predicted"
                    }
                };
                self.emit(&Event::Warning { message: message.into() })?;
            }
        }
        let result = scored.evaluation(first.slices.as_ref(), self.extra.threshold.as_ref())?;
        let mut scores = vec![self.record(first, result)?];
        for set in others {
            scores.push(self.score(set)?);
        }
        Ok(scores)
    }

    /// The same for the threshold from which on a question has no answer.
    fn tune_answers(&mut self, of: Of) -> Result<Vec<SetScores>> {
        let prepared = self.prepared;
        let (Some((first, others)), Some(decoding)) = (prepared.eval.split_first(), prepared.spans) else {
            return Ok(vec![]);
        };
        let batch_size = self.config.train.eval_batch_size;
        let scored = SpanScores::new(&mut self.model, &first.data, batch_size, decoding, self.ui)?;
        if decoding.null_threshold.is_some() {
            self.extra.null_score_diff_threshold = best_threshold(&scored.judged(), of);
            self.extra.write(&self.run.model())?;
        } else {
            let message = "eval.tune_threshold: every question has an answer, so there is no threshold to tune";
            self.emit(&Event::Warning { message: message.into() })?;
        }
        let result = scored.evaluation(self.extra.null_score_diff_threshold);
        let mut scores = vec![self.record(first, result)?];
        for set in others {
            scores.push(self.score(set)?);
        }
        Ok(scores)
    }

    /// Scores a set with the best model and the threshold in force.
    fn score(&mut self, set: &EvalSet) -> Result<SetScores> {
        let batch_size = self.config.train.eval_batch_size;
        let of_answers = self.extra.null_score_diff_threshold.map(Threshold::One);
        let threshold = self.extra.threshold.as_ref().or(of_answers.as_ref());
        let result = evaluate(&mut self.model, set, batch_size, threshold, self.ui)?;
        self.record(set, result)
    }

    fn record(&mut self, set: &EvalSet, result: Evaluation) -> Result<SetScores> {
        let state = &self.outcome.state;
        let step = state.best.as_ref().map_or(state.step, |b| b.step);
        self.emit(&Event::eval(set, &result, step, self.outcome.epochs))?;
        Ok(SetScores { set: set.name.clone(), metrics: result.metrics, slices: result.slices })
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        self.log.write(event)?;
        self.ui.event(event);
        Ok(())
    }
}

/// What to try with the new model.
fn next_commands(config: &RunConfig, model: &str) -> String {
    let data = match (&config.data.test, &config.data.eval) {
        (Some(test), _) => test,
        (None, Some(EvalSource::Files(eval))) => eval,
        (None, Some(EvalSource::Named(sets))) if !sets.is_empty() => &sets[0].1,
        _ => &config.data.train,
    };
    let data = data.first().display();
    let predict = match &config.data.text_pair {
        Some(_) => format!("bertft predict --model {model} {data}"),
        None => format!("echo 'a text of yours' | bertft predict --model {model}"),
    };
    format!("\nNext:\n  bertft eval --model {model} --data {data}\n  {predict}")
}

/// What to do when a device had too little memory; other errors as they are.
fn out_of_memory(error: Error, memory: &Estimate, config: &TrainConfig) -> Error {
    if !matches!(&error, Error::Candle(e) if is_out_of_memory(e)) {
        return error;
    }
    let recompute = if config.gradient_checkpointing { "" } else { ", or set train.gradient_checkpointing = true" };
    let batch = match (config.batch_tokens, config.batch_size) {
        (None, Some(rows)) if rows > 1 => format!(
            "train.batch_size = {} with train.gradient_accumulation_steps = {}",
            rows / 2,
            2 * config.gradient_accumulation_steps
        ),
        (Some(tokens), _) => format!("train.batch_tokens = {}", (tokens / 2).max(1)),
        _ => "a smaller model".into(),
    };
    let finds = if config.auto_find_batch_size || config.batch_tokens.is_some() {
        ""
    } else {
        " (train.auto_find_batch_size = true does that by itself)"
    };
    let needed = memory.device_bytes as f64 / 1e9;
    Error::Failed(format!(
        "the GPU has too little free memory: training takes about {needed:.1} GB of it, beside what others hold \
         (nvidia-smi tells); try {batch}{finds}{recompute}, or lower data.max_length"
    ))
}

/// Said when the run will not fit the memory that is free.
fn memory_warning(memory: &Estimate, free: Option<u64>, config: &TrainConfig) -> Option<String> {
    let free = free?;
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let recompute = if config.gradient_checkpointing { "" } else { ", or set train.gradient_checkpointing = true" };
    let batch = if config.batch_tokens.is_some() { "train.batch_tokens" } else { "train.batch_size" };
    (memory.growth_bytes > free).then(|| {
        format!(
            "training will take about {:.1} GB more than now and {:.1} GB are free; lower {batch} or \
             data.max_length{recompute}",
            gigabytes(memory.growth_bytes),
            gigabytes(free)
        )
    })
}

fn dry_run(args: &TrainArgs, config: &RunConfig, ui: &mut Ui) -> Result<()> {
    let file = args.config.display();
    if ui.is_json() {
        return ui.out_json(&json!({"event": "valid", "file": file.to_string()}));
    }
    ui.out(&format!("{file}: valid; {} was not touched", config.output.dir.display()))
}

/// Labels, settings and rows that decide the course of a run.
fn identity(config: &RunConfig, precision: Precision, device: &Device, prepared: &Prepared) -> Identity {
    let mut map = serde_json::Map::new();
    let train = &config.train;
    map.insert("task.kind".into(), json!(config.task.kind.name()));
    map.insert("the list of labels".into(), json!(prepared.task.labels));
    map.insert("train.seed".into(), json!(train.seed));
    map.insert("train.batch_size".into(), json!(train.batch_size));
    map.insert("train.batch_tokens".into(), json!(train.batch_tokens));
    map.insert("train.gradient_accumulation_steps".into(), json!(train.gradient_accumulation_steps));
    map.insert("train.precision on this machine".into(), json!(precision.name()));
    map.insert("train.tf32 on this machine".into(), json!(Some(true).filter(|_| train.tf32 && !device.is_cpu())));
    map.insert("train.group_by_length".into(), json!(train.group_by_length));
    // Keys that are not set are null.
    let on = |x: f64| json!(Some(x).filter(|x| *x > 0.0));
    map.insert("train.ema_decay".into(), on(train.ema_decay));
    map.insert("train.r_drop".into(), on(train.r_drop));
    map.insert("train.fgm_epsilon".into(), on(train.fgm_epsilon));
    let or_null = |n: usize| json!(Some(n).filter(|n| *n > 0));
    map.insert("train.unfreeze_layers_per_epoch".into(), or_null(train.unfreeze_layers_per_epoch));
    map.insert("train.freeze_layers".into(), or_null(train.freeze_layers));
    map.insert("train.freeze".into(), json!(Some(&train.freeze).filter(|f| !f.is_empty())));
    let weights = if train.pos_weight.is_some() { "train.pos_weight" } else { "train.class_weights" };
    map.insert(weights.into(), json!(prepared.class_weights));
    map.insert("train.focal_gamma".into(), on(train.focal_gamma));
    for (split, data) in prepared.splits().filter(|(split, _)| *split != "test") {
        map.insert(format!("the digest of the {split} rows"), json!(digest(data)));
    }
    Identity(map)
}

/// SHA-256 of a dataset as the model sees it: ids, row bounds and targets.
fn digest(data: &Dataset) -> String {
    let mut hash = Sha256::new_with_prefix(data.tokens.digest());
    match &data.targets {
        Targets::Class(classes) => hash.update(bytemuck::cast_slice::<u32, u8>(classes)),
        Targets::Value(values) => hash.update(bytemuck::cast_slice::<f32, u8>(values)),
        Targets::Sets(sets) => sets.iter().for_each(|set| {
            hash.update((set.len() as u64).to_le_bytes());
            hash.update(bytemuck::cast_slice::<u32, u8>(set));
        }),
        Targets::Tags(tags) => tags.iter().for_each(|row| {
            hash.update((row.labels.len() as u64).to_le_bytes());
            row.labels.iter().for_each(|&(at, label)| {
                hash.update(u64::from(at).wrapping_shl(32).wrapping_add(label.into()).to_le_bytes())
            });
        }),
        Targets::Spans(spans) => {
            spans.iter().for_each(|row| hash.update(bytemuck::cast_slice::<u32, u8>(&row.answer)));
        }
        Targets::None => {}
    }
    hex(&hash.finalize())
}

/// `run.json`: what the run was made from.
fn manifest(config: &RunConfig, prepared: &Prepared, globals: &Globals, device: &Device) -> Result<String> {
    let mut files = serde_json::Map::new();
    for (key, path) in config.data.files() {
        let known = prepared.contents.iter().find(|(file, _)| file == path).map(|(_, sha256)| *sha256);
        let sha256 = match known {
            Some(sha256) => Some(sha256),
            None if path != Path::new(STANDARD_INPUT) && path.is_file() => {
                Some(Content::read(path, &mut || Ok(()))?.sha256)
            }
            None => None, // standard input or a pipe, read once
        };
        let file = match sha256 {
            Some(sha256) => json!({ "file": path, "sha256": hex(&sha256) }),
            None => json!({ "file": path }),
        };
        // One file stands alone, several in a list.
        match files.entry(key.trim_start_matches("data.")) {
            Entry::Vacant(entry) => {
                entry.insert(file);
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                serde_json::Value::Array(list) => list.push(file),
                first => *first = json!([first.take(), file]),
            },
        }
    }
    let mut manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "seed": config.train.seed,
        "device": device_name(device),
        "threads": globals.threads(),
        "model": config.model.path,
        "task": config.task.kind.name(),
        "data": files,
        "labels": prepared.task.labels,
        "host": { "os": std::env::consts::OS, "arch": std::env::consts::ARCH, "cpu": format!("{:?}", crate::ops::cpu::level()) },
    });
    if let Some((_, commit)) = prepared.pretrained.hub() {
        manifest["model_commit"] = json!(commit);
    }
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Error::Failed(e.to_string()))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gpu_is_told_what_to_change() {
        let memory = Estimate { peak_rss_bytes: 0, growth_bytes: 0, device_bytes: 12_340_000_000 };
        let config = TrainConfig { batch_size: Some(64), gradient_accumulation_steps: 2, ..TrainConfig::default() };
        let full = || Error::Candle(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"…\")".into()));
        let message = out_of_memory(full(), &memory, &config).to_string();
        let halved = "train.batch_size = 32 with train.gradient_accumulation_steps = 4 (train.auto_find_batch_size";
        for words in ["12.3 GB", halved, "checkpointing"] {
            assert!(message.contains(words), "{message}");
        }
        let config = TrainConfig { batch_tokens: Some(4096), gradient_checkpointing: true, ..config };
        let message = out_of_memory(full(), &memory, &config).to_string();
        let others = ["checkpointing", "auto_find"].iter().any(|words| message.contains(words));
        assert!(message.contains("train.batch_tokens = 2048") && !others, "{message}");
        let other = out_of_memory(Error::Failed("x".into()), &memory, &config);
        assert_eq!(other.to_string(), "x");
    }
}
