//! Learning-rate schedules by the names and formulas of `transformers.get_scheduler`.

use std::f64::consts::PI;

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Straight to 0 at the last step.
    Linear,
    /// Half a cosine to 0 at the last step.
    Cosine,
    /// None.
    Constant,
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
        let progress = (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
        self.peak
            * match self.decay {
                Decay::Linear => (1.0 - progress).max(0.0),
                Decay::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
                Decay::Constant => 1.0,
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
        let s = Schedule { decay: Decay::Cosine, ..s };
        assert!((s.at(8) - 1.0).abs() < 1e-12 && s.at(12).abs() < 1e-12);
        assert_eq!(Schedule { decay: Decay::Constant, warmup: 0, ..s }.at(11), 2.0);
        assert_eq!(Schedule { total: 0, warmup: 0, ..s }.at(0), 2.0);
    }
}
