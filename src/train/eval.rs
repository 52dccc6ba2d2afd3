//! Scoring a labelled set: the same kernels as training, nothing kept but a few numbers a row, batches of rows of like
//! length. The loss is the plain mean over rows, without label smoothing, class weights or focal loss, so that runs with
//! and without them can be compared.

use super::eval_span::SpanScores;
use super::eval_tags;
use super::log::{Phase, Progress, Reporter};
use crate::data::config::TaskKind;
use crate::data::sampler::length_sorted;
use crate::data::slices::Slices;
use crate::data::{Dataset, LabelSets, Targets};
use crate::error::{Error, Result};
use crate::heads::sequence::{probabilities, row_losses, sigmoids};
use crate::heads::span::SpanDecoding;
use crate::heads::tags::TagReading;
use crate::metrics::classification::{ClassificationReport, Confusion, argmax};
use crate::metrics::multilabel::Counts;
use crate::metrics::threshold::{Criterion, Threshold, best, decide, decide_each};
use crate::metrics::{Metrics, ranking, regression};
use crate::model::Model;
use serde::de::{Deserialize, Deserializer};
use serde::{Deserialize as Derive, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Instant;

/// A labelled set.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSet {
    /// As results name it: `eval`, `test`, or `eval_` and the name of one of several.
    pub name: String,
    pub data: Dataset,
    /// Groups of rows that get metrics of their own.
    pub slices: Option<Slices>,
    /// How tags are found and counted; `None`: the best of each word, and entities read leniently.
    pub tags: Option<TagReading>,
    /// How answers are read from scores; the default where it is `None`.
    pub spans: Option<SpanDecoding>,
}

/// The scores of a model on a set.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// `loss` first.
    pub metrics: Metrics,
    /// For classification, the confusion matrix and scores a class; for tags scores an entity type.
    pub report: Option<ClassificationReport>,
    /// The classes or types of the report.
    pub labels: Vec<String>,
    pub slices: Option<SliceScores>,
    pub samples: usize,
    pub seconds: f64,
}

/// Scores `set`, `batch_size` rows at a time; `threshold` as in [`Scored::evaluation`].
pub fn evaluate(
    model: &mut Model,
    set: &EvalSet,
    batch_size: usize,
    threshold: Option<&Threshold>,
    reporter: &mut dyn Reporter,
) -> Result<Evaluation> {
    if let Targets::Tags(_) = set.data.targets {
        return eval_tags::evaluate(model, &set.data, batch_size, set.tags, reporter);
    }
    if let Targets::Spans(_) = set.data.targets {
        let scored = SpanScores::new(model, &set.data, batch_size, set.spans.unwrap_or_default(), reporter)?;
        return Ok(scored.evaluation(threshold.and_then(Threshold::one)));
    }
    Scored::new(model, &set.data, batch_size, threshold, reporter)?.evaluation(set.slices.as_ref(), threshold)
}

/// Above this many probabilities (256 MiB) of three or more classes none are kept, and the scores that need them all are NaN.
const MOST_PROBABILITIES: usize = 1 << 26;

/// What a model says about every row of a set.
#[derive(Debug)]
pub struct Scored<'a> {
    targets: &'a Targets,
    labels: Vec<String>,
    outputs: usize,
    /// `[rows]`
    losses: Vec<f64>,
    /// Of regression, `[rows]`.
    values: Vec<f32>,
    /// Of classification, `[rows]`: the class of the largest logit.
    classes: Vec<u32>,
    /// Of any number of labels a row, where there are too many probabilities to keep: `[rows]`, those predicted.
    sets: Vec<Vec<u32>>,
    /// `[rows]` of class 1 for two classes, else `[rows, labels]`; `None` when there were too many.
    probabilities: Option<Vec<f32>>,
    seconds: f64,
}

impl<'a> Scored<'a> {
    /// Runs the model over `data`. `threshold` decides between labels where not all probabilities can be kept.
    pub fn new(
        model: &mut Model,
        data: &'a Dataset,
        batch_size: usize,
        threshold: Option<&Threshold>,
        reporter: &mut dyn Reporter,
    ) -> Result<Self> {
        let started = Instant::now();
        let (total, outputs, labels) = (data.len(), model.task().outputs(), model.task().labels.clone());
        let of = |kept: bool| if kept { total } else { 0 };
        let kind = model.task().kind;
        let width = width(kind, outputs);
        let kept = kind != TaskKind::Regression && total.saturating_mul(width) <= MOST_PROBABILITIES;
        let thresholds = each(threshold, &labels);
        let mut scored = Self {
            targets: &data.targets,
            labels,
            outputs,
            losses: vec![0.0; total],
            values: vec![0.0; of(kind == TaskKind::Regression)],
            classes: vec![0; of(kind == TaskKind::Classification)],
            sets: vec![vec![]; of(kind == TaskKind::Multilabel && !kept)],
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
                let of_row = match kind {
                    TaskKind::Regression => {
                        scored.values[row] = logits[0];
                        continue;
                    }
                    TaskKind::Classification => {
                        scored.classes[row] = argmax(logits);
                        probabilities(logits, outputs)
                    }
                    TaskKind::Multilabel => sigmoids(logits),
                    TaskKind::Tokens | TaskKind::Span => {
                        return Err(Error::Failed("words and answers are not scored by rows".into()));
                    }
                };
                match &mut scored.probabilities {
                    Some(all) => all[row * width..(row + 1) * width].copy_from_slice(&of_row[outputs - width..]),
                    None if kind == TaskKind::Multilabel => scored.sets[row] = decide_each(&of_row, &thresholds),
                    None => {}
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

    /// The threshold that is best by `criterion`, of two classes, or of labels of which a row may have several: one for all
    /// of them together, or one `per_label`. `None` when the rows do not tell.
    pub fn best_threshold(&self, criterion: Criterion, per_label: bool) -> Option<Threshold> {
        let scores = self.probabilities.as_ref()?;
        match self.targets {
            Targets::Class(truth) if self.outputs == 2 => {
                best(scores, truth, criterion).map(|tuned| Threshold::One(tuned.threshold))
            }
            Targets::Sets(sets) => {
                let truth = |row: usize, label: usize| u32::from(sets.of(row).contains(&(label as u32)));
                let n = self.outputs;
                if !per_label {
                    let truth: Vec<u32> = (0..scores.len()).map(|i| truth(i / n, i % n)).collect();
                    return best(scores, &truth, criterion).map(|tuned| Threshold::One(tuned.threshold));
                }
                let of_label = |label: usize| {
                    let column: Vec<f32> = scores.iter().skip(label).step_by(n).copied().collect();
                    let truth: Vec<u32> = (0..sets.len()).map(|row| truth(row, label)).collect();
                    let tuned = best(&column, &truth, criterion)?;
                    Some((self.labels[label].clone(), tuned.threshold))
                };
                let table: BTreeMap<_, _> = (0..n).filter_map(of_label).collect();
                (!table.is_empty()).then_some(Threshold::PerLabel(table))
            }
            _ => None,
        }
    }

    /// All scores, of the whole set and of each slice. With a `threshold` class 1 of two is predicted where its probability
    /// is that or more, else the more probable class is; of several labels each from its threshold on, else from 0.5 on. The
    /// metrics end with one threshold for all.
    pub fn evaluation(&self, slices: Option<&Slices>, threshold: Option<&Threshold>) -> Result<Evaluation> {
        let (mut metrics, report) = self.metrics(None, threshold)?;
        if let Some(threshold) = threshold.and_then(Threshold::one) {
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
            labels: self.labels.clone(),
            slices: slices.map(SliceScores),
            samples: self.losses.len(),
            seconds: self.seconds,
        })
    }

    /// The scores of any number of labels a row, of these rows or of all.
    fn sets_report(
        &self,
        truth: &LabelSets,
        rows: Option<&[usize]>,
        threshold: Option<&Threshold>,
    ) -> ClassificationReport {
        let (n, thresholds) = (self.outputs, each(threshold, &self.labels));
        let (mut counts, total) = (Counts::new(n), rows.map_or(truth.len(), <[usize]>::len));
        let row_of = |i: usize| rows.map_or(i, |rows| rows[i]);
        for row in (0..total).map(row_of) {
            match &self.probabilities {
                Some(all) => counts.add(truth.of(row), &decide_each(&all[row * n..(row + 1) * n], &thresholds)),
                None => counts.add(truth.of(row), &self.sets[row]),
            }
        }
        let ranking = self.probabilities.as_ref().map_or([f64::NAN; 2], |all| {
            ranking::score_sets(&gather(all, rows, n), n, |i, label| truth.of(row_of(i)).contains(&(label as u32)))
        });
        counts.report(ranking)
    }

    /// The scores of these rows, or of all.
    fn metrics(
        &self,
        rows: Option<&[usize]>,
        threshold: Option<&Threshold>,
    ) -> Result<(Metrics, Option<ClassificationReport>)> {
        let losses = gather(&self.losses, rows, 1);
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        let truth = match self.targets {
            Targets::Class(truth) => gather(truth, rows, 1),
            Targets::Value(truth) => {
                let scores = regression::score(&gather(&self.values, rows, 1), &gather(truth, rows, 1))?;
                return Ok((scores.with_loss(loss), None));
            }
            Targets::Sets(sets) => {
                let report = self.sets_report(sets, rows, threshold);
                return Ok((report.metrics.clone().with_loss(loss), Some(report)));
            }
            Targets::Tags(_) | Targets::Spans(_) | Targets::None => {
                return Err(Error::Failed("rows without labels cannot be scored".into()));
            }
        };
        let width = width(TaskKind::Classification, self.outputs);
        let probabilities = self.probabilities.as_ref().map(|all| gather(all, rows, width));
        let classes = match (&probabilities, threshold.and_then(Threshold::one)) {
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

/// Probabilities kept of a row: of two classes one is enough.
fn width(kind: TaskKind, outputs: usize) -> usize {
    if kind == TaskKind::Classification && outputs == 2 { 1 } else { outputs }
}

/// The threshold of each label; 0.5 where none is set.
fn each(threshold: Option<&Threshold>, labels: &[String]) -> Vec<f64> {
    threshold.map_or_else(|| vec![0.5; labels.len()], |t| t.each(labels))
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
