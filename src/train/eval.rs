//! Scoring a labelled dataset: the same kernels as training, nothing kept, batches of rows of like length.

use super::log::{Phase, Progress, Reporter};
use crate::data::config::TaskKind;
use crate::data::sampler::length_sorted;
use crate::data::{Dataset, Targets};
use crate::error::{Error, Result};
use crate::metrics::classification::{ClassificationReport, Confusion, argmax};
use crate::metrics::{Metrics, regression};
use crate::model::Model;
use std::time::Instant;

/// The scores of a model on a dataset.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// `loss` first: the mean over rows, without label smoothing.
    pub metrics: Metrics,
    /// For classification, the confusion matrix and scores a class.
    pub report: Option<ClassificationReport>,
    pub samples: usize,
    pub seconds: f64,
}

/// Scores `data`, `batch_size` rows at a time.
pub fn evaluate(
    model: &mut Model,
    data: &Dataset,
    batch_size: usize,
    reporter: &mut dyn Reporter,
) -> Result<Evaluation> {
    let started = Instant::now();
    let total = data.len();
    let outputs = model.task().outputs();
    let mut loss_sum = 0.0;
    let mut confusion = Confusion::new(outputs);
    let mut values = vec![0f32; if model.task().kind == TaskKind::Regression { total } else { 0 }];
    let mut done = 0;
    for rows in length_sorted(&data.tokens.lengths(), batch_size) {
        let batch = data.batch(&rows);
        let logits = model.logits(&batch)?;
        loss_sum += model.loss_sum(&logits, &batch.targets)?;
        let flat: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        match &batch.targets {
            Targets::Class(classes) => {
                for (logits, &truth) in flat.chunks_exact(outputs).zip(classes) {
                    confusion.add(truth, argmax(logits))?;
                }
            }
            Targets::Value(_) => rows.iter().zip(&flat).for_each(|(&row, &v)| values[row] = v),
            Targets::None => return Err(Error::Failed("rows without labels cannot be scored".into())),
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
    let loss = loss_sum / total as f64;
    let (metrics, report) = match &data.targets {
        Targets::Value(truth) => (regression::score(&values, truth)?.with_loss(loss), None),
        _ => {
            let report = confusion.report();
            (report.metrics.clone().with_loss(loss), Some(report))
        }
    };
    Ok(Evaluation { metrics, report, samples: total, seconds: started.elapsed().as_secs_f64() })
}
