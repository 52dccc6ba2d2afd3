//! One optimizer step: forward and backward of a window of batches, clipping, learning rate, AdamW.

use super::config::{Scheduler, TrainConfig};
use crate::data::Batch;
use crate::error::Result;
use crate::heads::Objective;
use crate::model::Model;
use crate::ops::adamw::AdamWStep;
use crate::optim::schedule::{Decay, Schedule};
use crate::rng::PassKey;

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
    /// Batches a window holds at most; numbers the passes for dropout.
    pub accumulation: u64,
    pub seed: u64,
}

impl StepConfig {
    /// For a run of `total` steps; class weights, which need the data, are left out.
    pub fn new(c: &TrainConfig, total: u64) -> Self {
        let decay = match c.lr_scheduler_type {
            Scheduler::Linear => Decay::Linear,
            Scheduler::Cosine => Decay::Cosine,
            Scheduler::Constant | Scheduler::ConstantWithWarmup => Decay::Constant,
        };
        Self {
            schedule: Schedule { peak: c.learning_rate, decay, warmup: c.warmup_steps_for(total), total },
            weight_decay: c.weight_decay,
            beta1: c.adam_beta1,
            beta2: c.adam_beta2,
            epsilon: c.adam_epsilon,
            max_grad_norm: c.max_grad_norm,
            objective: Objective {
                label_smoothing: c.label_smoothing_factor,
                class_weights: None,
                focal_gamma: c.focal_gamma,
            },
            accumulation: c.gradient_accumulation_steps as u64,
            seed: c.seed,
        }
    }
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
/// whatever its split into batches. Stops early, with a NaN norm, at a loss that is not finite.
pub fn gradients(model: &mut Model, window: &[Batch], config: &StepConfig, step: u64) -> Result<Window> {
    let rows: usize = window.iter().map(Batch::len).sum();
    let divisor: f64 = window.iter().map(|b| config.objective.divisor(&b.targets, b.len())).sum();
    let mut loss_sum = 0.0;
    for (i, batch) in window.iter().enumerate() {
        let key = PassKey::new(config.seed, step * config.accumulation + i as u64);
        loss_sum += model.forward_backward(batch, Some(key), &config.objective, 1.0 / divisor, i > 0)?;
        if !loss_sum.is_finite() {
            return Ok(Window { loss_sum, rows, divisor, grad_norm: f64::NAN });
        }
    }
    Ok(Window { loss_sum, rows, divisor, grad_norm: model.params.grad_norm()? })
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
    Ok(learning_rate)
}
