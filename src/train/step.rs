//! One optimizer step: forward and backward of a window of batches, clipping, learning rate, AdamW.

use super::config::TrainConfig;
use super::plan::Plan;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::heads::Objective;
use crate::model::{LoadReport, Model, Thaw, Tuning};
use crate::ops::adamw::{AdamWStep, SumSquares};
use crate::ops::readback::Readback;
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

/// What a window's passes gave, where they were computed: nobody waited for a device.
#[derive(Debug)]
pub struct Window {
    /// Σ over the rows of each batch of the loss, and the same of the adversarial passes.
    losses: Vec<Tensor>,
    adversarial: Vec<Tensor>,
    /// ‖gradient of the mean loss‖² before clipping; not finite where the passes ended early.
    squares: SumSquares,
    pub rows: usize,
    /// What the sum of the losses is divided by for the mean loss: the rows, or the sum of their class weights.
    pub divisor: f64,
}

/// A [`Window`] on its way to the host.
#[derive(Debug)]
pub struct Fetched {
    numbers: Readback,
    batches: usize,
    rows: usize,
    divisor: f64,
}

/// A [`Window`] in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Passed {
    /// Σ over the window's rows of the loss; that of the adversarial passes where only they are not finite.
    pub loss_sum: f64,
    pub rows: usize,
    /// As in [`Window`].
    pub divisor: f64,
    /// ‖gradient of the mean loss‖ before clipping.
    pub grad_norm: f64,
}

impl Window {
    /// Asks for the numbers, behind all that the device was given before.
    pub fn fetch(&self) -> Result<Fetched> {
        let losses = self.losses.iter().chain(&self.adversarial);
        let numbers: Vec<&Tensor> = losses.chain([self.squares.tensor()]).collect();
        let (batches, rows, divisor) = (self.losses.len(), self.rows, self.divisor);
        Ok(Fetched { numbers: Readback::start(&numbers)?, batches, rows, divisor })
    }

    /// The numbers; waits for the device.
    pub fn read(&self) -> Result<Passed> {
        self.fetch()?.wait()
    }
}

impl Fetched {
    /// Whether there is nothing to wait for.
    pub fn is_here(&self) -> bool {
        #[cfg(test)]
        if late::NUMBERS.get() {
            return false;
        }
        self.numbers.is_here()
    }

    /// Waits until the window's passes are done.
    pub fn wait(self) -> Result<Passed> {
        let Self { batches, rows, divisor, .. } = self;
        let numbers = self.numbers.wait()?;
        let (losses, squares) = numbers.split_at(numbers.len() - 1);
        let [clean, adversarial] = [&losses[..batches], &losses[batches..]].map(|sums| sums.iter().sum::<f64>());
        let loss_sum = if clean.is_finite() && !adversarial.is_finite() { adversarial } else { clean };
        Ok(Passed { loss_sum, rows, divisor, grad_norm: squares[0].sqrt() })
    }
}

/// Forward and backward of the window of step `step` (from 0); gradients are those of the mean loss of the whole window,
/// whatever its split into batches. A GPU is not waited for. On the CPU it stops early at a loss that is not finite.
pub fn gradients(model: &mut Model, window: &[Batch], config: &StepConfig, step: u64) -> Result<Window> {
    model.params.begin_step(step);
    let rows: usize = window.iter().map(Batch::len).sum();
    let divisor: f64 = window.iter().map(|b| config.objective.divisor(&b.targets, b.len())).sum();
    let passes = |model: &mut Model, seed: u64, accumulate: bool| -> Result<Vec<Tensor>> {
        let mut losses = vec![];
        for (i, batch) in window.iter().enumerate() {
            let key = PassKey::new(seed, step * config.accumulation + i as u64);
            let accumulate = accumulate || i > 0;
            #[cfg(test)]
            small_memory::check(batch.len())?;
            let scale = 1.0 / divisor;
            losses.push(model.forward_backward_unread(batch, Some(key), &config.objective, scale, accumulate)?);
            if is_known_broken(&losses[i..])? {
                break;
            }
        }
        Ok(losses)
    };
    let losses = passes(model, config.seed, false)?;
    let mut broken = is_known_broken(&losses)?;
    let mut adversarial = vec![];
    if config.fgm_epsilon > 0.0 && !broken {
        // Fast gradient method: the gradients where the loss is worse are added, under dropout of their own.
        let kept = model.params.perturb_rows(config.fgm_epsilon)?;
        let passed = passes(model, !config.seed, true);
        // Whatever happened: a step that did not fit the memory may be tried again.
        model.params.put_back(&kept)?;
        adversarial = passed?;
        broken = is_known_broken(&adversarial)?;
    }
    let squares = if broken { SumSquares::nan(model.params.device())? } else { model.params.grad_squares()? };
    Ok(Window { losses, adversarial, squares, rows, divisor })
}

/// Whether losses that are here are not finite; for others a device would have to be waited for.
fn is_known_broken(losses: &[Tensor]) -> Result<bool> {
    let here = losses.iter().filter(|loss| loss.device().is_cpu());
    Ok(!here.map(Tensor::to_scalar::<f64>).sum::<candle_core::Result<f64>>()?.is_finite())
}

/// Updates the weights from the gradients of [`gradients`], if their norm is finite; returns the learning rate used. A GPU is
/// not waited for, so the average of the weights moves in any case.
pub fn update(model: &Model, window: &Window, config: &StepConfig, step: u64) -> Result<f64> {
    let learning_rate = config.schedule.at(step);
    let StepConfig { beta1, beta2, epsilon, max_grad_norm, .. } = *config;
    let adamw = AdamWStep { learning_rate, beta1, beta2, epsilon, step: step + 1, max_grad_norm };
    model.params.step(adamw, &window.squares, config.weight_decay)?;
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

/// For tests: a device whose numbers the trainer waits for.
#[cfg(test)]
pub mod late {
    use std::cell::Cell;

    thread_local! {
        pub static NUMBERS: Cell<bool> = const { Cell::new(false) };
    }
}
