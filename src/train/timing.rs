//! How long a training will take, from a few steps on its own batches. The model is trained by them, so it is of no use after.

use super::config::TrainConfig;
use super::log::Reporter;
use super::plan::{Epoch, Plan};
use super::step::{StepConfig, gradients, update};
use crate::data::sampler::length_sorted;
use crate::data::{Batch, Dataset};
use crate::error::{Error, Result};
use crate::model::Model;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What the steps said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timing {
    /// Steps that were timed.
    pub timed_steps: usize,
    /// Of a step over rows of mean length.
    pub step_seconds: f64,
    /// Of the first epoch's step with the most tokens.
    pub longest_step_seconds: f64,
    pub tokens_per_second: f64,
    /// Of the whole run.
    pub total_steps: u64,
    pub train_seconds: f64,
    /// Of all evaluations of the run together.
    pub eval_seconds: f64,
    /// Half the width of the interval that training and evaluation will likely end in.
    pub plus_minus_seconds: f64,
}

/// Rows that a run scores, and how often.
pub struct Scored<'a> {
    pub data: &'a Dataset,
    pub times: u64,
}

/// The machine's own unsteadiness, which a few seconds do not show.
const LEAST_SPREAD: f64 = 0.1;
const MOST_STEPS: usize = 24;
const LEAST_STEPS: usize = 3;

/// Runs steps of `model` for about `budget`, though three at least, beside a first one on the most tokens, which pays for the
/// memory that all share.
///
/// # Errors
/// What a step reports; [`Error::Interrupted`] when the reporter asks to stop.
pub fn time_steps(
    model: &mut Model,
    train: &Dataset,
    scored: &[Scored],
    config: &TrainConfig,
    budget: Duration,
    reporter: &dyn Reporter,
) -> Result<Timing> {
    let total_steps = Plan::new(config, train).total;
    let epoch = Epoch::new(config, train, 0);
    let step_config = StepConfig::new(config, total_steps.max(1));
    model.recompute_activations(config.gradient_checkpointing);
    // Gradual unfreezing ends with steps in which all learns.
    let from = if config.unfreeze_layers_per_epoch > 0 { total_steps } else { 0 };
    let window = |step: u64| -> Vec<Batch> { epoch.window(step).map(|rows| train.batch(rows)).collect() };
    let time = |model: &mut Model, window: &[Batch], step: u64| -> Result<f64> {
        if reporter.interrupted() {
            return Err(Error::Interrupted { resumable: false });
        }
        let before = Instant::now();
        let step = from + step;
        let passed = gradients(model, window, &step_config, step)?;
        update(model, &passed, &step_config, step)?;
        model.params.device().synchronize()?;
        Ok(before.elapsed().as_secs_f64())
    };
    let steps = epoch.steps();
    let tokens_of = |step: &u64| epoch.window(*step).flatten().map(|&row| train.tokens.len_of(row)).sum::<usize>();
    let longest = window((0..steps).max_by_key(tokens_of).unwrap_or(0));
    let started = Instant::now();
    time(model, &longest, 0)?;
    let longest_step_seconds = time(model, &longest, 1)?;
    let (mut seconds, mut tokens) = (vec![], vec![]);
    // Spread over the epoch, as grouped batches differ from its begin to its end.
    let stride = (steps as usize / MOST_STEPS).max(1);
    for (i, step) in (0..steps).step_by(stride).cycle().take(MOST_STEPS).enumerate() {
        if i >= LEAST_STEPS && started.elapsed() > budget {
            break;
        }
        let window = window(step);
        seconds.push(time(model, &window, 2 + i as u64)?);
        tokens.push(window.iter().map(|b| b.ids.len()).sum::<usize>() as f64);
    }
    let tokens_per_second = tokens.iter().sum::<f64>() / seconds.iter().sum::<f64>();
    let step_tokens = train.tokens.total() as f64 / steps.max(1) as f64;
    let step_seconds = step_tokens / tokens_per_second;
    let train_seconds = step_seconds * total_steps as f64;
    let eval_seconds = time_evaluation(model, scored, config, budget / 4)?;
    let spread = (2.0 * relative_error(&seconds, &tokens)).max(LEAST_SPREAD);
    Ok(Timing {
        timed_steps: seconds.len() + 2,
        step_seconds,
        longest_step_seconds,
        tokens_per_second,
        total_steps,
        train_seconds,
        eval_seconds,
        plus_minus_seconds: spread * (train_seconds + eval_seconds),
    })
}

/// Standard error of the mean time of a token, as a share of it.
fn relative_error(seconds: &[f64], tokens: &[f64]) -> f64 {
    let n = seconds.len() as f64;
    let each: Vec<f64> = seconds.iter().zip(tokens).map(|(s, t)| s / t).collect();
    let mean = each.iter().sum::<f64>() / n;
    let variance = each.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (variance / n).sqrt() / mean
}

/// Seconds of all evaluations, from some batches of each data set spread over its lengths.
fn time_evaluation(model: &mut Model, scored: &[Scored], config: &TrainConfig, budget: Duration) -> Result<f64> {
    let mut total = 0.0;
    for scored in scored {
        let batches = length_sorted(&scored.data.tokens.lengths(), config.eval_batch_size);
        let stride = (batches.len() / 6).max(1);
        let (mut seconds, mut tokens) = (0.0, 0);
        let started = Instant::now();
        for rows in batches.iter().skip(stride / 2).step_by(stride) {
            let batch = scored.data.batch(rows);
            let before = Instant::now();
            model.logits(&batch)?;
            seconds += before.elapsed().as_secs_f64();
            tokens += batch.ids.len();
            if started.elapsed() > budget {
                break;
            }
        }
        total += seconds / tokens.max(1) as f64 * scored.data.tokens.total() as f64 * scored.times as f64;
    }
    Ok(total)
}
