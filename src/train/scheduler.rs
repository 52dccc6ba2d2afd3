//! `train.lr_scheduler_type` and its `lr_scheduler_kwargs`: names and defaults of `transformers` (`get_scheduler`) and, for
//! `one_cycle`, of `torch.optim.lr_scheduler.OneCycleLR`.

use super::config::TrainConfig;
use crate::data::config::Invalid;
use crate::optim::schedule::{Decay, OneCycle, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves over a run, after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Straight down to 0 at the last step.
    Linear,
    /// Half a cosine down to 0 at the last step, or `num_cycles` waves.
    Cosine,
    /// Half cosines down to 0, `num_cycles` of them.
    CosineWithRestarts,
    /// Down to `lr_end` at the last step, bent by `power`.
    Polynomial,
    /// The learning rate from first to last step; no warmup.
    Constant,
    /// Warmup, then the learning rate.
    ConstantWithWarmup,
    /// Down as 1/√step, `timescale` steps to begin with.
    InverseSqrt,
    /// Up and down once, without a warmup of its own (`OneCycleLR`).
    OneCycle,
}

impl Scheduler {
    /// The keys of `lr_scheduler_kwargs` that it reads.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Linear | Self::Constant | Self::ConstantWithWarmup => &[],
            Self::Cosine | Self::CosineWithRestarts => &["num_cycles"],
            Self::Polynomial => &["lr_end", "power"],
            Self::InverseSqrt => &["timescale"],
            Self::OneCycle => &["pct_start", "div_factor", "final_div_factor", "anneal_strategy", "three_phase"],
        }
    }

    fn has_warmup(self) -> bool {
        !matches!(self, Self::Constant | Self::OneCycle)
    }
}

/// The shape of `one_cycle`'s ways up and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    Cos,
    Linear,
}

/// The `lr_scheduler_kwargs`: what a scheduler is told beyond warmup and steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerKwargs {
    /// Of `cosine` (default 0.5) and `cosine_with_restarts` (default 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0))]
    pub num_cycles: Option<f64>,
    /// Of `polynomial`: the last rate, below the learning rate. Default 1e-7.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub lr_end: Option<f64>,
    /// Of `polynomial`. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1e3), extend("exclusiveMinimum" = 0))]
    pub power: Option<f64>,
    /// Of `inverse_sqrt`, in steps. Default: the warmup steps, or 10000 without.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub timescale: Option<u64>,
    /// Of `one_cycle`: share of the steps in which the rate rises. Default 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub pct_start: Option<f64>,
    /// Of `one_cycle`: the learning rate divided by this is the first. Default 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1e12), extend("exclusiveMinimum" = 0))]
    pub div_factor: Option<f64>,
    /// Of `one_cycle`: the first rate divided by this is the last. Default 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1e12), extend("exclusiveMinimum" = 0))]
    pub final_div_factor: Option<f64>,
    /// Of `one_cycle`. Default cos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anneal_strategy: Option<Anneal>,
    /// Of `one_cycle`: whether it falls to the first rate as fast as it rose, and then to the last. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub three_phase: Option<bool>,
}

impl SchedulerKwargs {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The keys that are set.
    fn set(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("num_cycles", self.num_cycles.is_some()),
            ("lr_end", self.lr_end.is_some()),
            ("power", self.power.is_some()),
            ("timescale", self.timescale.is_some()),
            ("pct_start", self.pct_start.is_some()),
            ("div_factor", self.div_factor.is_some()),
            ("final_div_factor", self.final_div_factor.is_some()),
            ("anneal_strategy", self.anneal_strategy.is_some()),
            ("three_phase", self.three_phase.is_some()),
        ];
        all.into_iter().filter(|(_, set)| *set).map(|(key, _)| key)
    }

    /// The numbers with the largest that each may be.
    fn numbers(&self) -> [(&'static str, Option<f64>, f64); 4] {
        [
            ("num_cycles", self.num_cycles, 1e6),
            ("power", self.power, 1e3),
            ("div_factor", self.div_factor, 1e12),
            ("final_div_factor", self.final_div_factor, 1e12),
        ]
    }
}

impl TrainConfig {
    /// The learning rates of a run of `total` steps.
    pub fn schedule(&self, total: u64) -> Schedule {
        let (of, warmup) = (&self.lr_scheduler_kwargs, self.warmup_steps_for(total));
        let decay = match self.lr_scheduler_type {
            Scheduler::Linear => Decay::Linear,
            Scheduler::Cosine => Decay::Cosine { num_cycles: of.num_cycles.unwrap_or(0.5) },
            Scheduler::CosineWithRestarts => Decay::CosineWithRestarts { num_cycles: of.num_cycles.unwrap_or(1.0) },
            Scheduler::Polynomial => {
                Decay::Polynomial { end: of.lr_end.unwrap_or(LR_END), power: of.power.unwrap_or(1.0) }
            }
            Scheduler::Constant | Scheduler::ConstantWithWarmup => Decay::Constant,
            Scheduler::InverseSqrt => {
                let default = if warmup > 0 { warmup } else { 10_000 };
                Decay::InverseSqrt { timescale: of.timescale.unwrap_or(default) as f64 }
            }
            Scheduler::OneCycle => Decay::OneCycle(OneCycle {
                pct_start: of.pct_start.unwrap_or(0.3),
                div_factor: of.div_factor.unwrap_or(25.0),
                final_div_factor: of.final_div_factor.unwrap_or(1e4),
                linear: of.anneal_strategy == Some(Anneal::Linear),
                three_phase: of.three_phase.unwrap_or(false),
            }),
        };
        Schedule { peak: self.learning_rate, decay, warmup, total }
    }

    /// That the scheduler can do what its keys and the warmup ask for.
    pub(super) fn check_scheduler(&self) -> Result<(), Invalid> {
        let kind = self.lr_scheduler_type;
        if !kind.has_warmup() && (self.warmup_steps > 0 || self.warmup_ratio > 0.0) {
            let message = match kind {
                Scheduler::OneCycle => {
                    "is \"one_cycle\", which rises by itself, but a warmup is set; use pct_start of train.lr_scheduler_kwargs"
                }
                _ => "is \"constant\", which has no warmup, but a warmup is set; use \"constant_with_warmup\"",
            };
            return Err(Invalid::new("train.lr_scheduler_type", message));
        }
        let kwargs = &self.lr_scheduler_kwargs;
        let wrong = |message: String| Err(Invalid::new("train.lr_scheduler_kwargs", message));
        if let Some(key) = kwargs.set().find(|key| !kind.keys().contains(key)) {
            let keys = kind.keys().join(", ");
            let takes = if keys.is_empty() { "none".into() } else { keys };
            return wrong(format!(
                "has {key}, which the chosen train.lr_scheduler_type does not read; it takes {takes}"
            ));
        }
        for (key, value, most) in kwargs.numbers() {
            if let Some(x) = value.filter(|x| !(*x > 0.0 && *x <= most)) {
                return wrong(format!("has {key} = {x}, expected a number above 0, at most {most:e}"));
            }
        }
        if let Some(x) = kwargs.pct_start.filter(|x| !(0.0..=1.0).contains(x)) {
            return wrong(format!("has pct_start = {x}, expected a number from 0 to 1"));
        }
        if kwargs.timescale == Some(0) {
            return wrong("has timescale = 0, expected 1 or more".into());
        }
        // Two thirds that are longer than the whole would overlap.
        if kwargs.three_phase == Some(true) && kwargs.pct_start.is_some_and(|p| p > 0.5) {
            return wrong("has three_phase with a pct_start above 0.5, which leaves no steps for the third".into());
        }
        let end = kwargs.lr_end.unwrap_or(LR_END);
        if kind == Scheduler::Polynomial && !(end >= 0.0 && end < self.learning_rate) {
            let rate = self.learning_rate;
            return wrong(format!(
                "has lr_end = {end:e}, expected 0 or above, and less than train.learning_rate, {rate:e}"
            ));
        }
        Ok(())
    }
}

/// Of `polynomial`, as in `transformers`.
const LR_END: f64 = 1e-7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::config::TaskKind;

    #[test]
    fn keys_fit_the_scheduler() {
        let check = |toml: &str| {
            let config: TrainConfig = toml::from_str(toml).unwrap();
            config.check(TaskKind::Classification, true).map_err(|e| format!("{} {}", e.key, e.message))
        };
        for (kind, kwargs) in [
            ("cosine", "num_cycles = 0.5"),
            ("cosine_with_restarts", "num_cycles = 3"),
            ("polynomial", "power = 2, lr_end = 0"),
            ("inverse_sqrt", "timescale = 100"),
            ("one_cycle", "pct_start = 0.2, three_phase = true, anneal_strategy = \"linear\", div_factor = 10"),
        ] {
            let toml = |kind: &str| format!("lr_scheduler_type = \"{kind}\"\nlr_scheduler_kwargs = {{ {kwargs} }}");
            assert_eq!(check(&toml(kind)), Ok(()));
            assert!(check(&toml("linear")).unwrap_err().contains("does not read; it takes none"));
        }
        for (toml, says) in [
            (
                "lr_scheduler_type = \"polynomial\"\nlr_scheduler_kwargs = { lr_end = 1 }",
                "less than train.learning_rate, 5e-5",
            ),
            ("lr_scheduler_type = \"polynomial\"\nlearning_rate = 1e-8", "lr_end = 1e-7"),
            ("lr_scheduler_type = \"cosine\"\nlr_scheduler_kwargs = { num_cycles = 0 }", "num_cycles = 0"),
            ("lr_scheduler_type = \"one_cycle\"\nlr_scheduler_kwargs = { pct_start = 1.5 }", "pct_start = 1.5"),
            (
                "lr_scheduler_type = \"one_cycle\"\nlr_scheduler_kwargs = { pct_start = 0.6, three_phase = true }",
                "third",
            ),
            ("lr_scheduler_type = \"one_cycle\"\nwarmup_ratio = 0.1", "pct_start"),
            ("lr_scheduler_type = \"inverse_sqrt\"\nlr_scheduler_kwargs = { timescale = 0 }", "timescale"),
        ] {
            let error = check(toml).unwrap_err();
            assert!(error.starts_with("train.lr_scheduler_") && error.contains(says), "{error}");
        }
    }
}
