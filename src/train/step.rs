//! One optimizer step: forward and backward of a window of batches, clipping, learning rate, AdamW.

use super::config::TrainConfig;
use super::plan::Plan;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::heads::Objective;
use crate::model::{LoadReport, Model, Thaw, Tuning};
use crate::ops::adamw::AdamWStep;
use crate::optim::schedule::Schedule;
use crate::rng::PassKey;
use candle_core::Tensor;

/// What one step needs from the config, with the schedule of the whole run.
#[derive(Debug, Clone)]
pub struct StepConfig {
    pub schedule: Schedule,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// 0 turns clipping off.
    pub max_grad_norm: f64,
    pub objective: Objective,
    /// 0 turns the moving average of the weights off.
    pub ema_decay: f64,
    /// Length of the adversarial perturbation; 0 turns it off.
    pub fgm_epsilon: f64,
    /// Batches a window holds at most; numbers the passes for dropout.
    pub accumulation: u64,
    pub seed: u64,
}

impl StepConfig {
    /// For a run of `total` steps; class weights, which need the data, are left out.
    pub fn new(c: &TrainConfig, total: u64) -> Self {
        Self {
            schedule: c.schedule(total),
            weight_decay: c.weight_decay,
            beta1: c.adam_beta1,
            beta2: c.adam_beta2,
            epsilon: c.adam_epsilon,
            max_grad_norm: c.max_grad_norm,
            objective: Objective {
                label_smoothing: c.label_smoothing_factor,
                class_weights: None,
                focal_gamma: c.focal_gamma,
                r_drop: c.r_drop,
            },
            ema_decay: c.ema_decay,
            fgm_epsilon: c.fgm_epsilon,
            accumulation: c.gradient_accumulation_steps as u64,
            seed: c.seed,
        }
    }
}

/// Has `model` begin and learn as the config says; to be called once, before training. `report` tells what begins anew. Gives
/// a warning when the run is too short for all that is to learn.
pub fn tune(model: &mut Model, config: &TrainConfig, plan: &Plan, report: &mut LoadReport) -> Result<Option<String>> {
    let layers_per_epoch = config.unfreeze_layers_per_epoch;
    // The embeddings are one more part to thaw, and the head's epoch comes first.
    let epochs = model.encoder().0.config().names.layers.len() + 2;
    let thaw = Thaw { layers_per_epoch, epoch_starts: plan.epoch_starts(epochs) };
    let warning = model.tune(&Tuning {
        freeze: config.freeze.clone(),
        freeze_layers: config.freeze_layers,
        thaw: (layers_per_epoch > 0).then_some(thaw),
        layer_wise_lr_decay: config.layer_wise_lr_decay,
        head_rate: config.head_learning_rate.map(|rate| rate / config.learning_rate),
    })?;
    model.reinitialise(config.reinit_layers, config.seed, report)?;
    if config.r_drop > 0.0 && !model.encoder().0.config().has_dropout() {
        return Err(Error::input("train.r_drop compares passes under dropout, but the model's config.json has none"));
    }
    let words = model.encoder().0.config().names.embeddings.word.clone();
    if config.fgm_epsilon > 0.0 && !model.params.trained().any(|s| s.name == words) {
        let message = "train.fgm_epsilon moves the word embeddings along their gradient, but they are kept as they are \
                       by train.freeze, freeze_layers or unfreeze_layers_per_epoch; remove one";
        return Err(Error::input(message));
    }
    Ok(warning)
}

/// [`tune`], and the arenas that training needs.
pub fn start(model: &mut Model, config: &TrainConfig, plan: &Plan, report: &mut LoadReport) -> Result<Option<String>> {
    let warning = tune(model, config, plan, report)?;
    model.params.start_training()?;
    if config.ema_decay > 0.0 {
        model.params.start_average()?;
    }
    Ok(warning)
}

/// What a window's passes gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Σ over the window's rows of the loss.
    pub loss_sum: f64,
    pub rows: usize,
    /// What `loss_sum` is divided by for the mean loss: the rows, or the sum of their class weights.
    pub divisor: f64,
    /// ‖gradient of the mean loss‖ before clipping.
    pub grad_norm: f64,
}

/// Forward and backward of the window of step `step` (from 0); gradients are those of the mean loss of the whole window,
/// whatever its split into batches. On the CPU it stops early, with a NaN norm, at a loss that is not finite. A GPU is waited for
/// once, for the norm, behind which the losses are there too (and once more for `fgm_epsilon`).
pub fn gradients(model: &mut Model, window: &[Batch], config: &StepConfig, step: u64) -> Result<Window> {
    model.params.begin_step(step);
    let rows: usize = window.iter().map(Batch::len).sum();
    let divisor: f64 = window.iter().map(|b| config.objective.divisor(&b.targets, b.len())).sum();
    let is_cpu = model.params.device().is_cpu();
    let passes = |model: &mut Model, seed: u64, accumulate: bool| -> Result<Vec<Tensor>> {
        let mut losses = vec![];
        for (i, batch) in window.iter().enumerate() {
            let key = PassKey::new(seed, step * config.accumulation + i as u64);
            let accumulate = accumulate || i > 0;
            #[cfg(test)]
            small_memory::check(batch.len())?;
            let scale = 1.0 / divisor;
            losses.push(model.forward_backward_unread(batch, Some(key), &config.objective, scale, accumulate)?);
            if is_cpu && !sum(&losses[i..])?.is_finite() {
                break;
            }
        }
        Ok(losses)
    };
    let broken = |loss_sum| Ok(Window { loss_sum, rows, divisor, grad_norm: f64::NAN });
    let losses = passes(model, config.seed, false)?;
    if is_cpu && !sum(&losses)?.is_finite() {
        return broken(sum(&losses)?);
    }
    if config.fgm_epsilon > 0.0 {
        // Fast gradient method (Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text Classification"):
        // the gradients where the loss is worse are added, under dropout of their own.
        let kept = model.params.perturb_rows(config.fgm_epsilon)?;
        let passed = passes(model, !config.seed, true);
        // Whatever happened: a step that did not fit the memory may be tried again.
        model.params.put_back(&kept)?;
        let loss_sum = sum(&passed?)?;
        if !loss_sum.is_finite() {
            return broken(loss_sum);
        }
    }
    let grad_norm = model.params.grad_norm()?;
    Ok(Window { loss_sum: sum(&losses)?, rows, divisor, grad_norm })
}

/// Of scalars in f64, which a device is waited for.
fn sum(losses: &[Tensor]) -> Result<f64> {
    losses.iter().try_fold(0.0, |sum, loss| Ok(sum + loss.to_scalar::<f64>()?))
}

/// Updates the weights from the gradients of [`gradients`]; returns the learning rate used.
pub fn update(model: &Model, grad_norm: f64, config: &StepConfig, step: u64) -> Result<f64> {
    // As torch.nn.utils.clip_grad_norm_: the small constant keeps a zero norm from dividing.
    let clip = config.max_grad_norm / (grad_norm + 1e-6);
    let grad_scale = if config.max_grad_norm > 0.0 { clip.min(1.0) } else { 1.0 };
    let learning_rate = config.schedule.at(step);
    let (beta1, beta2, epsilon) = (config.beta1, config.beta2, config.epsilon);
    let adamw = AdamWStep { learning_rate, beta1, beta2, epsilon, step: step + 1, grad_scale };
    model.params.step(adamw, config.weight_decay)?;
    if config.ema_decay > 0.0 {
        model.params.average(config.ema_decay, step + 1, config.weight_decay)?;
    }
    Ok(learning_rate)
}

/// For tests: a device whose memory holds passes of so many rows.
#[cfg(test)]
pub mod small_memory {
    use std::cell::Cell;

    thread_local! {
        pub static MOST_ROWS: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    pub fn check(rows: usize) -> candle_core::Result<()> {
        if rows <= MOST_ROWS.get() { Ok(()) } else { candle_core::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY)") }
    }
}
