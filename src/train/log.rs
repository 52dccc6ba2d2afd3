//! What a run tells the outside: the events of the contract's `--json` output and `events.jsonl`, and progress for bars.

use super::eval::{EvalSet, Evaluation, SliceScores};
use crate::data::Skipped;
use crate::metrics::Metrics;
use serde::Serialize;

/// One line of `--json` output. Names and units are the contract's.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Everything was checked; training begins.
    Start {
        version: String,
        task: String,
        model: String,
        device: String,
        threads: usize,
        precision: String,
        seed: u64,
        output: String,
        /// Number of weights.
        parameters: usize,
        trainable_parameters: usize,
        /// Tensors taken from the checkpoint.
        loaded: usize,
        /// Parameters drawn anew.
        initialised: Vec<String>,
        /// Tensors of the checkpoint that have no place in the model.
        unused: Vec<String>,
        /// Optimizer steps of the whole run.
        total_steps: u64,
        epochs: f64,
        /// What the run's peak of memory will be, in bytes.
        estimated_peak_rss_bytes: u64,
        /// What of it the process does not hold yet: the same for the same model, data and settings.
        estimated_growth_bytes: u64,
        /// The step a resumed run goes on from.
        #[serde(skip_serializing_if = "Option::is_none")]
        resumed_from: Option<u64>,
    },
    /// One split was read and tokenised.
    Data {
        /// `train`, `eval` or `test`.
        split: String,
        /// The name of one of several eval sets.
        #[serde(skip_serializing_if = "Option::is_none")]
        set: Option<String>,
        file: String,
        rows: usize,
        /// Real tokens after truncation, special tokens included.
        tokens: usize,
        longest: usize,
        /// Rows that lost text to `max_length`.
        truncated: usize,
        /// Rows per label, in label order; empty for regression.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        labels: Vec<(String, usize)>,
        /// Rows that could not be read (`data.on_bad_row = "skip"`): `skipped` of them, the first ten in `skipped_rows`.
        #[serde(flatten)]
        skipped: Skipped,
        /// Whether the tokens were kept from an earlier run.
        cached: bool,
    },
    /// Every `logging_steps` optimizer steps: mean loss since the last such event.
    Step {
        step: u64,
        total_steps: u64,
        epoch: f64,
        loss: f64,
        learning_rate: f64,
        grad_norm: f64,
        tokens_per_second: f64,
    },
    /// An evaluation on a split during or after training.
    Eval {
        /// `eval` or `test`.
        split: String,
        /// The name of one of several eval sets.
        #[serde(skip_serializing_if = "Option::is_none")]
        set: Option<String>,
        step: u64,
        epoch: f64,
        samples: usize,
        seconds: f64,
        samples_per_second: f64,
        metrics: Metrics,
        /// By the value of `eval.slice_by`.
        #[serde(skip_serializing_if = "Option::is_none")]
        slices: Option<SliceScores>,
        /// Whether it is the best so far by `metric_for_best_model`.
        best: bool,
    },
    /// A checkpoint or the model was written.
    Save { step: u64, path: String },
    /// Something the user should know that does not stop the run.
    Warning { message: String },
    /// The end of a training run.
    Done {
        steps: u64,
        epochs: f64,
        train_seconds: f64,
        samples_per_second: f64,
        tokens_per_second: f64,
        first_step_seconds: f64,
        peak_rss_bytes: u64,
        model: String,
        metrics: serde_json::Value,
    },
    /// The run failed.
    Error {
        code: u8,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
    },
}

/// The split and the set's own name in what results call a set, such as `eval_hard`.
pub fn split_of(name: &str) -> (&str, Option<&str>) {
    name.split_once('_').map_or((name, None), |(split, set)| (split, Some(set)))
}

impl Event {
    /// Of an evaluation at a step; `best` is for the caller to set.
    pub fn eval(set: &EvalSet, result: &Evaluation, step: u64, epoch: f64) -> Self {
        let (split, name) = split_of(&set.name);
        Self::Eval {
            split: split.into(),
            set: name.map(String::from),
            step,
            epoch,
            samples: result.samples,
            seconds: result.seconds,
            samples_per_second: result.samples as f64 / result.seconds,
            metrics: result.metrics.clone(),
            slices: result.slices.clone(),
            best: false,
        }
    }
}

/// The work that a progress bar follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `done` and `total` count bytes.
    Download,
    /// `done` and `total` count rows.
    Tokenise,
    /// `done` and `total` count optimizer steps.
    Train,
    /// `done` and `total` count rows.
    Evaluate,
}

/// How far a phase is; sent often, shown at most a few times a second. A phase is over when `done == total`.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub phase: Phase,
    pub done: u64,
    pub total: u64,
    /// Last step's mean loss, while training.
    pub loss: f64,
    pub learning_rate: f64,
    /// Real tokens per second of training so far (0 when unknown).
    pub tokens_per_second: f64,
}

impl Progress {
    /// Of a phase that is no training.
    pub fn counted(phase: Phase, done: u64, total: u64) -> Self {
        Self { phase, done, total, loss: f64::NAN, learning_rate: 0.0, tokens_per_second: 0.0 }
    }
}

/// Who listens to a run: the terminal, the JSON stream, or nobody (tests).
pub trait Reporter {
    fn event(&mut self, event: &Event);
    fn progress(&mut self, progress: Progress);
    /// True once the user asked to stop (SIGINT or SIGTERM).
    fn interrupted(&self) -> bool {
        false
    }
}

/// Listens to nothing.
pub struct Silent;

impl Reporter for Silent {
    fn event(&mut self, _: &Event) {}
    fn progress(&mut self, _: Progress) {}
}
