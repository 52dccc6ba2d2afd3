//! Scoring a labelled set: the same kernels as training, nothing kept but a few numbers a row, batches of rows of like
//! length. The loss is the plain mean over rows, without label smoothing, class weights or focal loss, so that runs with
//! and without them can be compared.

use super::log::{Phase, Progress, Reporter};
use crate::data::sampler::length_sorted;
use crate::data::slices::Slices;
use crate::data::{Dataset, Targets};
use crate::error::{Error, Result};
use crate::heads::sequence::{probabilities, row_losses};
use crate::metrics::classification::{ClassificationReport, Confusion, argmax};
use crate::metrics::threshold::{Criterion, Tuned, best, decide};
use crate::metrics::{Metrics, ranking, regression};
use crate::model::Model;
use serde::de::{Deserialize, Deserializer};
use serde::{Deserialize as Derive, Serialize, Serializer};
use std::borrow::Cow;
use std::time::Instant;

/// A labelled set.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSet {
    /// As results name it: `eval`, `test`, or `eval_` and the name of one of several.
    pub name: String,
    pub data: Dataset,
    /// Groups of rows that get metrics of their own.
    pub slices: Option<Slices>,
}

/// The scores of a model on a set.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// `loss` first.
    pub metrics: Metrics,
    /// For classification, the confusion matrix and scores a class.
    pub report: Option<ClassificationReport>,
    pub slices: Option<SliceScores>,
    pub samples: usize,
    pub seconds: f64,
}

/// Scores `set`, `batch_size` rows at a time; `threshold` as in [`Scored::evaluation`].
pub fn evaluate(
    model: &mut Model,
    set: &EvalSet,
    batch_size: usize,
    threshold: Option<f64>,
    reporter: &mut dyn Reporter,
) -> Result<Evaluation> {
    Scored::new(model, &set.data, batch_size, reporter)?.evaluation(set.slices.as_ref(), threshold)
}

/// Above this many probabilities (256 MiB) of three or more classes none are kept, and the scores that need them all are NaN.
const MOST_PROBABILITIES: usize = 1 << 26;

/// What a model says about every row of a set.
#[derive(Debug)]
pub struct Scored<'a> {
    targets: &'a Targets,
    outputs: usize,
    /// `[rows]`
    losses: Vec<f64>,
    /// Of regression, `[rows]`.
    values: Vec<f32>,
    /// Of classification, `[rows]`: the class of the largest logit.
    classes: Vec<u32>,
    /// `[rows]` of class 1 for two classes, else `[rows, labels]`; `None` when there were too many.
    probabilities: Option<Vec<f32>>,
    seconds: f64,
}

impl<'a> Scored<'a> {
    /// Runs the model over `data`.
    pub fn new(model: &mut Model, data: &'a Dataset, batch_size: usize, reporter: &mut dyn Reporter) -> Result<Self> {
        let started = Instant::now();
        let (total, outputs) = (data.len(), model.task().outputs());
        let of = |kept: bool| if kept { total } else { 0 };
        let labelled = matches!(data.targets, Targets::Class(_));
        // Of two classes one is enough.
        let width = if outputs == 2 { 1 } else { outputs };
        let kept = labelled && total.saturating_mul(width) <= MOST_PROBABILITIES;
        let mut scored = Self {
            targets: &data.targets,
            outputs,
            losses: vec![0.0; total],
            values: vec![0.0; of(!labelled)],
            classes: vec![0; of(labelled)],
            probabilities: kept.then(|| vec![0.0; total * width]),
            seconds: 0.0,
        };
        let mut done = 0;
        for rows in length_sorted(&data.tokens.lengths(), batch_size) {
            let batch = data.batch(&rows);
            let logits: Vec<f32> = model.logits(&batch)?.flatten_all()?.to_vec1()?;
            let losses = row_losses(&logits, outputs, &batch.targets)?;
            for ((&row, logits), loss) in rows.iter().zip(logits.chunks_exact(outputs)).zip(losses) {
                scored.losses[row] = loss;
                if !labelled {
                    scored.values[row] = logits[0];
                    continue;
                }
                scored.classes[row] = argmax(logits);
                if let Some(all) = &mut scored.probabilities {
                    let of_row = probabilities(logits, outputs);
                    all[row * width..(row + 1) * width].copy_from_slice(&of_row[outputs - width..]);
                }
            }
            done += rows.len();
            reporter.progress(Progress {
                phase: Phase::Evaluate,
                done: done as u64,
                total: total as u64,
                loss: f64::NAN,
                learning_rate: 0.0,
                tokens_per_second: 0.0,
            });
        }
        scored.seconds = started.elapsed().as_secs_f64();
        Ok(scored)
    }

    /// The threshold of two classes that is best by `criterion`; `None` when the rows do not tell.
    pub fn best_threshold(&self, criterion: Criterion) -> Option<Tuned> {
        match (self.targets, &self.probabilities) {
            (Targets::Class(truth), Some(scores)) if self.outputs == 2 => best(scores, truth, criterion),
            _ => None,
        }
    }

    /// All scores, of the whole set and of each slice. With a `threshold` class 1 of two is predicted where its probability
    /// is that or more, and the metrics end with it; else the more probable class is.
    pub fn evaluation(&self, slices: Option<&Slices>, threshold: Option<f64>) -> Result<Evaluation> {
        let (mut metrics, report) = self.metrics(None, threshold)?;
        if let Some(threshold) = threshold {
            metrics.push("threshold", threshold);
        }
        let score = |(value, rows): (&str, Vec<usize>)| {
            let (metrics, _) = self.metrics(Some(&rows), threshold)?;
            Ok((value.to_owned(), SliceScore { samples: rows.len(), metrics }))
        };
        let slices = slices.map(|s| s.groups().into_iter().map(score).collect::<Result<_>>()).transpose()?;
        Ok(Evaluation {
            metrics,
            report,
            slices: slices.map(SliceScores),
            samples: self.losses.len(),
            seconds: self.seconds,
        })
    }

    /// The scores of these rows, or of all.
    fn metrics(
        &self,
        rows: Option<&[usize]>,
        threshold: Option<f64>,
    ) -> Result<(Metrics, Option<ClassificationReport>)> {
        let losses = gather(&self.losses, rows, 1);
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        let truth = match self.targets {
            Targets::Class(truth) => gather(truth, rows, 1),
            Targets::Value(truth) => {
                let scores = regression::score(&gather(&self.values, rows, 1), &gather(truth, rows, 1))?;
                return Ok((scores.with_loss(loss), None));
            }
            Targets::None => return Err(Error::Failed("rows without labels cannot be scored".into())),
        };
        let width = if self.outputs == 2 { 1 } else { self.outputs };
        let probabilities = self.probabilities.as_ref().map(|all| gather(all, rows, width));
        let classes = match (&probabilities, threshold) {
            (Some(p), Some(threshold)) if self.outputs == 2 => p.iter().map(|&p| decide(p, threshold)).collect(),
            _ => gather(&self.classes, rows, 1),
        };
        let mut confusion = Confusion::new(self.outputs);
        for (&truth, &predicted) in truth.iter().zip(classes.iter()) {
            confusion.add(truth, predicted)?;
        }
        let report = confusion.report();
        let ranking = probabilities.map_or([f64::NAN; 2], |p| ranking::score(&p, &truth, self.outputs));
        Ok((report.metrics.clone().with_loss(loss).with_ranking(ranking), Some(report)))
    }
}

/// `values: [all, width]` of some rows.
fn gather<'v, T: Copy>(values: &'v [T], rows: Option<&[usize]>, width: usize) -> Cow<'v, [T]> {
    match rows {
        None => Cow::Borrowed(values),
        Some(rows) => rows.iter().flat_map(|r| values[r * width..(r + 1) * width].iter().copied()).collect(),
    }
}

/// The scores of one group of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Derive)]
pub struct SliceScore {
    pub samples: usize,
    pub metrics: Metrics,
}

/// By the value that the rows share, ascending; an object in JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceScores(pub Vec<(String, SliceScore)>);

impl Serialize for SliceScores {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(value, score)| (value, score)))
    }
}

impl<'de> Deserialize<'de> for SliceScores {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::deserialize(d)?;
        let score = |(value, score)| Ok((value, serde_json::from_value(score).map_err(serde::de::Error::custom)?));
        map.into_iter().map(score).collect::<Result<_, _>>().map(Self)
    }
}

/// What is kept of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Derive)]
pub struct SetScores {
    /// That of the [`EvalSet`].
    pub set: String,
    pub metrics: Metrics,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<SliceScores>,
}
