//! The `[train]` table: names and defaults of `transformers.TrainingArguments` where it has them.

use super::class_weights::ClassWeights;
use super::scheduler::{Scheduler, SchedulerKwargs};
use crate::data::config::{Invalid, TaskKind};
use crate::metrics::{self, Family};
use crate::ops::cpu::{LEVEL_VARIABLE, asked_level};
use crate::ops::gemm::bf16_engine;
use crate::suggest::did_you_mean;
use candle_core::{DType, Device};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::str::FromStr;

/// The number format of activations and matrix products. Master weights, moments, sums, softmax, norms and loss are f32 in
/// both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The format to compute in on a device, with a note if that is not the one asked for.
    pub fn on(self, device: &Device) -> (Self, Option<String>) {
        if self == Self::Bf16 && device.is_cpu() && bf16_engine().is_none() {
            let why = match asked_level() {
                Ok(Some(_)) => format!("{LEVEL_VARIABLE} leaves this CPU no products in bf16"),
                _ => "this CPU has neither AMX nor AVX512-BF16, so bf16 would be slower than f32".into(),
            };
            return (Self::F32, Some(format!("{why}; computing in f32")));
        }
        (self, None)
    }

    /// The format of the activations.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// From a command-line argument.
impl FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("expected f32 or bf16".into()),
        }
    }
}

/// The `[train]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training rows; may be a fraction. Default 3.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0))]
    pub epochs: f64,
    /// Optimizer steps of the run; wins over `epochs`. Default: from `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_steps: Option<u64>,
    /// Rows of one forward pass in training. Default 8, unless `batch_tokens` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MOST_ROWS))]
    pub batch_size: Option<usize>,
    /// Tokens of one forward pass in training at most, in place of `batch_size`: as many rows as fit, a longer row alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MOST_TOKENS))]
    pub batch_tokens: Option<usize>,
    /// Whether a step that does not fit the memory is done in batches of half the rows (or a smaller part, until it fits) and
    /// as many more of them: the rows of each step stay the same. Default false.
    pub auto_find_batch_size: bool,
    /// Rows of one forward pass in evaluation. Default 32.
    #[schemars(range(min = 1, max = MOST_ROWS))]
    pub eval_batch_size: usize,
    /// Peak learning rate. Default 5e-5.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub learning_rate: f64,
    /// AdamW's decay; biases and norms have none. Default 0.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// AdamW's decay of the mean of gradients. Default 0.9.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub adam_beta1: f64,
    /// AdamW's decay of the mean of squared gradients. Default 0.999.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub adam_beta2: f64,
    /// What AdamW adds to the divisor. Default 1e-8.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub adam_epsilon: f64,
    /// The norm that gradients are clipped to; 0 turns clipping off. Default 1.
    #[schemars(range(min = 0))]
    pub max_grad_norm: f64,
    /// How the learning rate moves, after the warmup. Default linear.
    pub lr_scheduler_type: Scheduler,
    /// What `lr_scheduler_type` is told beyond warmup and steps: `num_cycles`, `lr_end`, `power`, `timescale` ….
    #[serde(skip_serializing_if = "SchedulerKwargs::is_default")]
    pub lr_scheduler_kwargs: SchedulerKwargs,
    /// Peak learning rate of the head (pooler and classifier). Default: `learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub head_learning_rate: Option<f64>,
    /// Each layer learns at this share of the rate of the one above it, the top layer at this share of `learning_rate`, the
    /// embeddings below all layers. Default 1.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub layer_wise_lr_decay: f64,
    /// Share of all steps with a rising learning rate. Default 0.
    #[schemars(range(min = 0, max = 1))]
    pub warmup_ratio: f64,
    /// Steps with a rising learning rate; unless 0, wins over `warmup_ratio`. Default 0.
    pub warmup_steps: u64,
    /// Batches to one optimizer step. Default 1.
    #[schemars(range(min = 1, max = MOST_ROWS))]
    pub gradient_accumulation_steps: usize,
    /// Share of each target spread over all labels, in [0, 1). Default 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing_factor: f64,
    /// Weight of each label in the loss: "balanced", or a table by label name. Default: all equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// For multilabel, the weight in the loss of a label that a row has, against that of one it has not: "balanced", or a table
    /// by label name. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pos_weight: Option<ClassWeights>,
    /// The γ of the focal loss (Lin et al. 2017), which counts rows less the better they are known; 0 is off. Default 0.
    #[schemars(range(min = 0, max = 10))]
    pub focal_gamma: f64,
    /// Seed of shuffling, dropout, new weights and the split of `data.eval`. Default 42.
    pub seed: u64,
    /// Number format of activations and matrix products. Default f32.
    pub precision: Precision,
    /// Whether an NVIDIA GPU may round the operands of f32 products to TF32 (10 bits behind the point): much faster. Default
    /// false.
    pub tf32: bool,
    /// Optimizer steps between `step` events. Default 500.
    #[schemars(range(min = 1))]
    pub logging_steps: u64,
    /// Optimizer steps between evaluations. Default: at the end of each epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub eval_steps: Option<u64>,
    /// Optimizer steps between checkpoints. Default: at the end of each epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub save_steps: Option<u64>,
    /// Checkpoints to keep; 0 keeps all. Default 1: what `--resume` needs.
    #[serde(deserialize_with = "zero_is_none", serialize_with = "none_is_zero")]
    pub save_total_limit: Option<usize>,
    /// Which metric of the evaluations tells the best model: of the first eval set, or as `set/metric` of a named one. Default
    /// `loss`.
    pub metric_for_best_model: String,
    /// Whether a larger `metric_for_best_model` is better. Default: false for loss, mse and mae, else true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greater_is_better: Option<bool>,
    /// Evaluations without a better score after which the run stops. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub early_stopping_patience: Option<u32>,
    /// Whether batches gather rows of like length. Default false.
    pub group_by_length: bool,
    /// Whether activations are computed again in the backward pass instead of kept: less memory, more time. Default false.
    pub gradient_checkpointing: bool,
    /// Modules that keep their weights, by their checkpoint names (`embeddings`, `encoder.layer.0`, …) or by patterns of them
    /// (`encoder.layer.*.attention`; a regular expression between slashes). Default none.
    pub freeze: Vec<String>,
    /// With the embeddings this many layers, from the first on, keep their weights. Default 0: none, nor the embeddings.
    pub freeze_layers: usize,
    /// Gradual unfreezing: in the first epoch only the head learns, and with each epoch so many layers more from the top,
    /// after them the embeddings. Default 0: all learn from the start.
    pub unfreeze_layers_per_epoch: usize,
    /// The decay of an exponential moving average of the weights, which is what is evaluated and saved; 0 is off. Default 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub ema_decay: f64,
    /// The α of R-Drop: each row passes twice under different dropout, and α times the symmetric divergence of the two answers
    /// is added to the loss; 0 is off. Default 0.
    #[schemars(range(min = 0, max = 1000))]
    pub r_drop: f64,
    /// FGM adversarial training: the length by which the word embeddings are moved along their gradient for a second pass,
    /// whose gradients are added; 0 is off. Default 0.
    #[schemars(range(min = 0, max = 1000))]
    pub fgm_epsilon: f64,
    /// This many layers from the top, and the pooler, begin with new weights. Default 0.
    pub reinit_layers: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 3.0,
            max_steps: None,
            batch_size: None,
            batch_tokens: None,
            auto_find_batch_size: false,
            eval_batch_size: 32,
            learning_rate: 5e-5,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: Scheduler::Linear,
            lr_scheduler_kwargs: SchedulerKwargs::default(),
            head_learning_rate: None,
            layer_wise_lr_decay: 1.0,
            warmup_ratio: 0.0,
            warmup_steps: 0,
            gradient_accumulation_steps: 1,
            label_smoothing_factor: 0.0,
            class_weights: None,
            pos_weight: None,
            focal_gamma: 0.0,
            seed: 42,
            precision: Precision::F32,
            tf32: false,
            logging_steps: 500,
            eval_steps: None,
            save_steps: None,
            save_total_limit: Some(1),
            metric_for_best_model: "loss".into(),
            greater_is_better: None,
            early_stopping_patience: None,
            group_by_length: false,
            gradient_checkpointing: false,
            freeze: vec![],
            freeze_layers: 0,
            unfreeze_layers_per_epoch: 0,
            ema_decay: 0.0,
            r_drop: 0.0,
            fgm_epsilon: 0.0,
            reinit_layers: 0,
        }
    }
}

/// TOML has no null, and `transformers` too reads 0 as "no limit".
fn zero_is_none<'de, D: Deserializer<'de>>(d: D) -> Result<Option<usize>, D::Error> {
    Ok(Some(usize::deserialize(d)?).filter(|n| *n > 0))
}

fn none_is_zero<S: Serializer>(limit: &Option<usize>, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_u64(limit.unwrap_or(0) as u64)
}

/// Far above any use, and small enough that products of two such numbers fit 64 bits.
const MOST_ROWS: usize = 1_000_000;
const MOST_TOKENS: usize = 100_000_000;

/// Rows of a batch where the config says neither rows nor tokens.
pub const DEFAULT_BATCH_SIZE: usize = 8;

impl TrainConfig {
    /// Optimizer steps with a rising learning rate in a run of `total` steps: `warmup_steps`, or if that is 0 the
    /// `warmup_ratio` of `total`, rounded up.
    pub fn warmup_steps_for(&self, total: u64) -> u64 {
        if self.warmup_steps > 0 { self.warmup_steps } else { (total as f64 * self.warmup_ratio).ceil() as u64 }
    }

    /// The eval set that `metric_for_best_model` names, if it names one, and the metric.
    pub fn deciding(&self) -> (Option<&str>, &str) {
        match self.metric_for_best_model.rsplit_once('/') {
            Some((set, metric)) => (Some(set), metric),
            None => (None, &self.metric_for_best_model),
        }
    }

    /// Whether a larger `metric_for_best_model` is better.
    pub fn greater_is_better(&self) -> bool {
        self.greater_is_better.unwrap_or(!matches!(self.deciding().1, "loss" | "mse" | "mae"))
    }

    /// The same steps in smaller batches: each of half the rows, or of the largest part that leaves no rest, and as many more
    /// to a step. `None` where batches have one row, or are of so many tokens.
    pub fn with_smaller_batches(&self) -> Option<Self> {
        let rows = self.batch_size.filter(|rows| *rows > 1)?;
        let parts = (2..=rows).find(|parts| rows.is_multiple_of(*parts))?;
        let gradient_accumulation_steps = self.gradient_accumulation_steps * parts;
        Some(Self { batch_size: Some(rows / parts), gradient_accumulation_steps, ..self.clone() })
    }

    /// [`Self::with_smaller_batches`] as far as it takes to reach batches of `rows`, as a run before this one did.
    pub fn with_batches_of(&self, rows: usize) -> Option<Self> {
        std::iter::successors(Some(self.clone()), Self::with_smaller_batches).find(|c| c.batch_size == Some(rows))
    }

    /// What `auto_find_batch_size` chose, in words.
    pub fn describe_batches(&self) -> String {
        let (rows, batches) = (self.batch_size.unwrap_or(DEFAULT_BATCH_SIZE), self.gradient_accumulation_steps);
        format!(
            "train.auto_find_batch_size: batches have {rows} row{}, {batches} of them to a step",
            if rows == 1 { "" } else { "s" }
        )
    }

    /// Whether products in TF32 are asked for where there are none; a note to say so.
    pub fn tf32_note(&self, device: &Device) -> Option<String> {
        (self.tf32 && device.is_cpu()).then(|| "train.tf32 is for NVIDIA GPUs; computing in full f32".into())
    }

    /// Puts in the defaults that depend on other keys.
    pub fn fill_in(&mut self) {
        if self.batch_tokens.is_none() {
            self.batch_size.get_or_insert(DEFAULT_BATCH_SIZE);
        }
    }

    /// Checks what types cannot: ranges and keys that must fit each other, the task and whether there is eval data.
    pub fn check(&self, task: TaskKind, has_eval: bool) -> Result<(), Invalid> {
        self.check_numbers()?;
        self.check_counts()?;
        self.check_evaluation(task, has_eval)?;
        self.check_scheduler()?;
        self.check_objective(task)
    }

    /// Checks that the eval set that decides is one of `sets`, the names in `data.eval`.
    pub fn check_deciding_set(&self, sets: &[&str]) -> Result<(), Invalid> {
        let Some(set) = self.deciding().0 else { return Ok(()) };
        if sets.contains(&set) {
            return Ok(());
        }
        let message = match sets {
            [] => {
                format!("names the eval set \"{set}\", but data.eval is no table of named sets; leave out \"{set}/\"")
            }
            _ => {
                let hint = did_you_mean(set, sets.iter().copied());
                format!("names the eval set \"{set}\", expected one of {}{hint}", sets.join(", "))
            }
        };
        Err(Invalid::new("train.metric_for_best_model", message))
    }

    fn check_objective(&self, task: TaskKind) -> Result<(), Invalid> {
        let set = [
            ("train.label_smoothing_factor", self.label_smoothing_factor > 0.0, "labels to smooth"),
            ("train.class_weights", self.class_weights.is_some(), "classes to weight"),
            ("train.focal_gamma", self.focal_gamma > 0.0, "focal loss"),
            ("train.r_drop", self.r_drop > 0.0, "probabilities to compare"),
        ];
        let lacks = |key: &str| match task {
            TaskKind::Classification => false,
            // A tag is a class; R-Drop compares whole rows.
            TaskKind::Tokens => key == "train.r_drop",
            // Places are no labels; as in `transformers`, nothing is smoothed.
            TaskKind::Span => ["train.label_smoothing_factor", "train.class_weights"].contains(&key),
            TaskKind::Multilabel | TaskKind::Regression => true,
        };
        if let Some((key, _, what)) = set.iter().find(|(key, set, _)| *set && lacks(key)) {
            let instead = match (task, *key) {
                (TaskKind::Multilabel, "train.class_weights") => "set train.pos_weight in its place",
                _ => "remove the key",
            };
            return Err(Invalid::new(key, format!("is set, but {task} has no {what}; {instead}")));
        }
        if self.pos_weight.is_some() && task != TaskKind::Multilabel {
            let instead = match task {
                TaskKind::Classification => "set train.class_weights in its place",
                _ => "remove the key",
            };
            let message = format!("is set, but it weights the labels of multilabel and this is {task}; {instead}");
            return Err(Invalid::new("train.pos_weight", message));
        }
        if self.focal_gamma > 0.0 && self.label_smoothing_factor > 0.0 {
            let message =
                "is set beside train.label_smoothing_factor, which the focal loss does not define; remove one";
            return Err(Invalid::new("train.focal_gamma", message));
        }
        for (key, weights) in [("train.class_weights", &self.class_weights), ("train.pos_weight", &self.pos_weight)] {
            if let Some(ClassWeights::Table(table)) = weights
                && let Some((label, w)) = table.iter().find(|(_, w)| !(**w > 0.0 && **w <= 1e6))
            {
                let message = format!("has {w} for the label \"{label}\", expected a number above 0, at most 1e6");
                return Err(Invalid::new(key, message));
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), Invalid> {
        number("train.epochs", self.epochs, |x| x > 0.0 && x <= 1e6, "a number above 0, at most 1e6")?;
        number("train.learning_rate", self.learning_rate, |x| x > 0.0 && x.is_finite(), "a finite number above 0")?;
        let head = self.head_learning_rate.unwrap_or(self.learning_rate);
        number("train.head_learning_rate", head, |x| x > 0.0 && x.is_finite(), "a finite number above 0")?;
        let share = |x: f64| x > 0.0 && x <= 1.0;
        number("train.layer_wise_lr_decay", self.layer_wise_lr_decay, share, "a number above 0, at most 1")?;
        number("train.weight_decay", self.weight_decay, |x| x >= 0.0 && x.is_finite(), "a finite number, 0 or above")?;
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        number("train.adam_beta1", self.adam_beta1, below_one, "a number from 0 to below 1")?;
        number("train.adam_beta2", self.adam_beta2, below_one, "a number from 0 to below 1")?;
        number("train.adam_epsilon", self.adam_epsilon, |x| x > 0.0 && x.is_finite(), "a finite number above 0")?;
        let norm = "a finite number, 0 (no clipping) or above";
        number("train.max_grad_norm", self.max_grad_norm, |x| x >= 0.0 && x.is_finite(), norm)?;
        number("train.warmup_ratio", self.warmup_ratio, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")?;
        number("train.focal_gamma", self.focal_gamma, |x| (0.0..=10.0).contains(&x), "a number from 0 (off) to 10")?;
        number("train.ema_decay", self.ema_decay, below_one, "a number from 0 (off) to below 1")?;
        let strength = |x: f64| (0.0..=1000.0).contains(&x);
        number("train.r_drop", self.r_drop, strength, "a number from 0 (off) to 1000")?;
        number("train.fgm_epsilon", self.fgm_epsilon, strength, "a number from 0 (off) to 1000")?;
        number("train.label_smoothing_factor", self.label_smoothing_factor, below_one, "a number from 0 to below 1")
    }

    fn check_counts(&self) -> Result<(), Invalid> {
        let rows = [
            ("train.batch_size", self.batch_size.unwrap_or(DEFAULT_BATCH_SIZE)),
            ("train.eval_batch_size", self.eval_batch_size),
            ("train.gradient_accumulation_steps", self.gradient_accumulation_steps),
        ];
        for (key, n) in rows {
            if !(1..=MOST_ROWS).contains(&n) {
                return Err(Invalid::new(key, format!("is {n}, expected 1 to {MOST_ROWS}")));
            }
        }
        if self.batch_tokens.is_some_and(|n| !(1..=MOST_TOKENS).contains(&n)) {
            let found = self.batch_tokens.unwrap_or(0);
            return Err(Invalid::new("train.batch_tokens", format!("is {found}, expected 1 to {MOST_TOKENS}")));
        }
        if self.batch_tokens.is_some() && self.batch_size.is_some() {
            let message =
                "is set beside train.batch_size, and a batch is either so many tokens or so many rows; remove one";
            return Err(Invalid::new("train.batch_tokens", message));
        }
        if self.batch_tokens.is_some() && self.auto_find_batch_size {
            let message = "is set beside train.batch_tokens, whose batches have no parts of equal size; set train.batch_size instead";
            return Err(Invalid::new("train.auto_find_batch_size", message));
        }
        let steps = [
            ("train.max_steps", self.max_steps),
            ("train.logging_steps", Some(self.logging_steps)),
            ("train.eval_steps", self.eval_steps),
            ("train.save_steps", self.save_steps),
            ("train.early_stopping_patience", self.early_stopping_patience.map(u64::from)),
        ];
        for (key, n) in steps {
            if n == Some(0) {
                return Err(Invalid::new(key, "is 0, expected 1 or more"));
            }
        }
        Ok(())
    }

    fn check_evaluation(&self, task: TaskKind, has_eval: bool) -> Result<(), Invalid> {
        let (_, metric) = self.deciding();
        // The data is not read yet: two classes have every score that some number of classes has.
        let names = metrics::names(metric_family(task, 2));
        if !names.contains(&metric) {
            let hint = did_you_mean(metric, names.iter().copied());
            let message = format!("is \"{metric}\", expected a metric of {task}: {}{hint}", names.join(", "));
            return Err(Invalid::new("train.metric_for_best_model", message));
        }
        if has_eval {
            return Ok(());
        }
        let needs_eval = "is set, but there is no eval data; set data.eval to a file or to a fraction such as 0.1";
        if self.early_stopping_patience.is_some() {
            return Err(Invalid::new("train.early_stopping_patience", needs_eval));
        }
        if self.eval_steps.is_some() {
            return Err(Invalid::new("train.eval_steps", needs_eval));
        }
        if self.metric_for_best_model != Self::default().metric_for_best_model {
            return Err(Invalid::new("train.metric_for_best_model", needs_eval));
        }
        if self.greater_is_better.is_some() {
            return Err(Invalid::new("train.greater_is_better", needs_eval));
        }
        Ok(())
    }
}

fn number(key: &'static str, x: f64, valid: impl Fn(f64) -> bool, expected: &str) -> Result<(), Invalid> {
    if valid(x) { Ok(()) } else { Err(Invalid::new(key, format!("is {x}, expected {expected}"))) }
}

/// The scores that an evaluation of a task yields; `classes` counts for classification alone.
pub fn metric_family(task: TaskKind, classes: usize) -> Family {
    match task {
        TaskKind::Classification => Family::Classification { classes },
        TaskKind::Multilabel => Family::Multilabel,
        TaskKind::Tokens => Family::Tags,
        TaskKind::Span => Family::Span { with_none: true },
        TaskKind::Regression => Family::Regression,
    }
}

#[cfg(test)]
mod tests;
