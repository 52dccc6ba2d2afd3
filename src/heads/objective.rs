//! What training minimises beyond the plain loss: label smoothing, class weights and the focal loss.

use crate::data::Targets;
use crate::error::Result;
use candle_core::{D, Tensor};

/// How the loss of labelled rows is weighted. The default is plain cross-entropy.
///
/// With logits z, log p = log softmax(z), target y, K labels and weights w (1 when there are none) a row adds
/// `(1 − ε)·w_y·(1 − p_y)^γ·(−log p_y) + ε/K·Σ_c w_c·(−log p_c)`, and the mean divides by Σ w_y over the rows: as
/// `torch.nn.CrossEntropyLoss(weight, label_smoothing)` for γ = 0, and as Lin et al. 2017 (eq. 5, w as α) for ε = 0, whose
/// mean is taken in the same way, so that γ = 0 is the weighted cross-entropy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Objective {
    /// ε: this share of each target is spread over all labels (Szegedy et al. 2016).
    pub label_smoothing: f64,
    /// w, by label id; `None`: all 1.
    pub class_weights: Option<Vec<f32>>,
    /// γ of the focal loss; 0 turns it off.
    pub focal_gamma: f64,
}

/// 1 − p below this is rounding of p in f32; the derivative of its power is kept from dividing by 0.
const LEAST_REST: f64 = 1e-7;

impl Objective {
    /// Cross-entropy with label smoothing alone.
    pub fn smoothed(label_smoothing: f64) -> Self {
        Self { label_smoothing, ..Self::default() }
    }

    /// What the sum of these rows' losses is divided by for their mean: Σ w_y, or the number of rows.
    pub fn divisor(&self, targets: &Targets, rows: usize) -> f64 {
        match (&self.class_weights, targets) {
            (Some(weights), Targets::Class(classes)) => classes.iter().map(|&c| f64::from(weights[c as usize])).sum(),
            _ => rows as f64,
        }
    }

    /// Σ over rows of the loss of `logits: [rows, labels]`, with autograd. `classes` are below `labels`.
    pub(super) fn cross_entropy_sum(&self, logits: &Tensor, classes: &[u32]) -> Result<Tensor> {
        let device = logits.device();
        let (rows, labels) = logits.dims2()?;
        let top = logits.max_keepdim(D::Minus1)?.detach();
        let shifted = logits.broadcast_sub(&top)?;
        let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
        let log_p = shifted.broadcast_sub(&log_sum)?;
        let of_target = log_p.gather(&Tensor::from_slice(classes, (rows, 1), device)?, 1)?; // [rows, 1]
        let mut losses = of_target.neg()?;
        if self.focal_gamma > 0.0 {
            let rest = (1.0 - of_target.exp()?)?.maximum(LEAST_REST)?;
            losses = (losses * rest.powf(self.focal_gamma)?)?;
        }
        if let Some(weights) = &self.class_weights {
            let weights: Vec<f32> = classes.iter().map(|&c| weights[c as usize]).collect();
            losses = (losses * Tensor::from_vec(weights, (rows, 1), device)?)?;
        }
        let sum = losses.sum_all()?;
        if self.label_smoothing == 0.0 {
            return Ok(sum);
        }
        let spread = match &self.class_weights {
            Some(weights) => log_p.broadcast_mul(&Tensor::from_slice(weights, (1, labels), device)?)?,
            None => log_p,
        };
        let uniform = (spread.sum_all()?.neg()? / labels as f64)?;
        Ok(((sum * (1.0 - self.label_smoothing))? + (uniform * self.label_smoothing)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// A row that is known so well that 1 − p is 0 in f32 has a finite gradient, whatever γ.
    #[test]
    fn the_focal_loss_of_a_certain_row_is_finite() {
        for focal_gamma in [0.1, 0.5, 1.0, 2.0] {
            let objective = Objective { focal_gamma, ..Objective::default() };
            let logits = Var::new(&[[40f32, 0.0], [-40.0, 40.0]], &Device::Cpu).unwrap();
            let loss = objective.cross_entropy_sum(logits.as_tensor(), &[0, 0]).unwrap();
            let grads = loss.backward().unwrap();
            let grad: Vec<f32> = grads.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(grad.iter().all(|g| g.is_finite()), "{focal_gamma}: {grad:?}");
            let loss: f32 = loss.to_scalar().unwrap();
            // The second row is as wrong as can be: its loss is the plain one.
            assert!((loss - 80.0).abs() < 1e-3 && (grad[2] + 1.0).abs() < 1e-3, "{focal_gamma}: {loss} {grad:?}");
        }
    }
}
