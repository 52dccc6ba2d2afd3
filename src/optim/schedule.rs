//! Learning-rate schedules by the names and formulas of `transformers.get_scheduler` and `torch.optim.lr_scheduler.OneCycleLR`.

use std::f64::consts::PI;

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decay {
    /// Straight to 0 at the last step.
    Linear,
    /// So many waves of a cosine; a half is a fall to 0 at the last step.
    Cosine { num_cycles: f64 },
    /// So many falls of half a cosine to 0, each from the peak.
    CosineWithRestarts { num_cycles: f64 },
    /// To `end` at the last step, as a power of the share of steps that is left.
    Polynomial { end: f64, power: f64 },
    /// None.
    Constant,
    /// As 1/√step, beginning at step `timescale` of that curve.
    InverseSqrt { timescale: f64 },
    /// Up and down once, which is a schedule without warm-up.
    OneCycle(OneCycle),
}

/// Smith & Topin 2018, "Super-Convergence", as PyTorch has it; the betas of AdamW stay as they are (`cycle_momentum=False`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    /// Share of the steps in which the rate rises.
    pub pct_start: f64,
    /// The first rate is the peak divided by this.
    pub div_factor: f64,
    /// The last rate is the first divided by this.
    pub final_div_factor: f64,
    /// Straight lines instead of half cosines.
    pub linear: bool,
    /// Whether it falls back to the first rate as fast as it rose, and only then to the last.
    pub three_phase: bool,
}

impl OneCycle {
    /// The rate as a multiple of the peak.
    fn at(&self, step: f64, total: f64) -> f64 {
        let (first, rise) = (1.0 / self.div_factor, self.pct_start * total - 1.0);
        let last = first / self.final_div_factor;
        let whole = [(total - 1.0, 1.0, last)];
        let thirds = [(2.0 * self.pct_start * total - 2.0, 1.0, first), (total - 1.0, first, last)];
        let falls: &[_] = if self.three_phase { &thirds } else { &whole };
        let mut start = 0.0;
        let mut phase = (rise, first, 1.0);
        for next in falls {
            if step <= phase.0 {
                break;
            }
            start = phase.0;
            phase = *next;
        }
        let (end, from, to) = phase;
        // A phase of no length is over as it begins.
        let share = if end == start { 1.0 } else { ((step - start) / (end - start)).min(1.0) };
        if self.linear { (to - from) * share + from } else { to + (from - to) / 2.0 * (1.0 + (PI * share).cos()) }
    }
}

/// A learning rate for every optimizer step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    pub peak: f64,
    pub decay: Decay,
    /// Steps over which the rate rises linearly from 0.
    pub warmup: u64,
    /// Steps of the run.
    pub total: u64,
}

impl Schedule {
    /// The rate of optimizer step `step`, counted from 0 (so the first warm-up step uses 0, as in PyTorch).
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let behind = (step - self.warmup) as f64;
        let progress = behind / self.total.saturating_sub(self.warmup).max(1) as f64;
        let cosine = |cycles: f64| (0.5 * (1.0 + (PI * cycles).cos())).max(0.0);
        self.peak
            * match self.decay {
                Decay::Linear => (1.0 - progress).max(0.0),
                Decay::Cosine { num_cycles } => cosine(num_cycles * 2.0 * progress),
                Decay::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
                Decay::CosineWithRestarts { num_cycles } => cosine((num_cycles * progress) % 1.0),
                Decay::Polynomial { end, power } => {
                    let end = end / self.peak;
                    (1.0 - end) * (1.0 - progress).max(0.0).powf(power) + end
                }
                Decay::Constant => 1.0,
                Decay::InverseSqrt { timescale } => 1.0 / ((behind + timescale) / timescale).sqrt(),
                Decay::OneCycle(cycle) => cycle.at(step as f64, self.total as f64),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corners() {
        let s = Schedule { peak: 2.0, decay: Decay::Linear, warmup: 4, total: 12 };
        assert_eq!([0, 1, 4, 8, 12, 20].map(|i| s.at(i)), [0.0, 0.5, 2.0, 1.0, 0.0, 0.0]);
        let s = Schedule { decay: Decay::Cosine { num_cycles: 0.5 }, ..s };
        assert!((s.at(8) - 1.0).abs() < 1e-12 && s.at(12).abs() < 1e-12);
        assert_eq!(Schedule { decay: Decay::Constant, warmup: 0, ..s }.at(11), 2.0);
        assert_eq!(Schedule { total: 0, warmup: 0, ..s }.at(0), 2.0);
        assert_eq!(Schedule { decay: Decay::Polynomial { end: 0.5, power: 2.0 }, ..s }.at(20), 0.5);
        let cycle =
            OneCycle { pct_start: 0.5, div_factor: 4.0, final_div_factor: 2.0, linear: true, three_phase: false };
        let s = Schedule { decay: Decay::OneCycle(cycle), warmup: 0, total: 8, ..s };
        assert_eq!([0, 3, 5, 7].map(|i| s.at(i)), [0.5, 2.0, 1.125, 0.25]);
        // Runs of a few steps, and steps behind the last.
        for total in 0..4 {
            assert!((0..6).all(|i| Schedule { total, ..s }.at(i).is_finite()));
        }
    }
}
