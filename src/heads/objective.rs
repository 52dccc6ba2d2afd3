//! What training minimises beyond the plain loss: label smoothing, class weights and the focal loss.

use crate::data::{LabelSets, Targets};
use crate::error::Result;
use crate::ops::to_device;
use candle_core::{D, Device, Tensor};

/// How the loss of labelled rows is weighted. The default is plain cross-entropy.
///
/// With logits z, log p = log softmax(z), target y, K labels and weights w (1 when there are none) a row adds
/// `(1 − ε)·w_y·(1 − p_y)^γ·(−log p_y) + ε/K·Σ_c w_c·(−log p_c)`, and the mean divides by Σ w_y over the rows: as
/// `torch.nn.CrossEntropyLoss(weight, label_smoothing)` for γ = 0, and as Lin et al. 2017 (eq. 5, w as α) for ε = 0, whose
/// mean is taken in the same way, so that γ = 0 is the weighted cross-entropy.
///
/// A row with any number of labels adds `1/K·Σ_c (−w_c·y_c·log σ(z_c) − (1 − y_c)·log(1 − σ(z_c)))`, and the mean divides by
/// the rows: as `torch.nn.BCEWithLogitsLoss(pos_weight=w)`; the other settings are not for it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Objective {
    /// ε: this share of each target is spread over all labels (Szegedy et al. 2016).
    pub label_smoothing: f64,
    /// w, by label id; `None`: all 1. Of rows with several labels it weights those that a row has.
    pub class_weights: Option<Vec<f32>>,
    /// γ of the focal loss; 0 turns it off.
    pub focal_gamma: f64,
    /// α of R-Drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks"); 0 turns it off. Each row passes
    /// twice under different dropout; it adds half of both losses and `α·w_y·½(KL(p‖q) + KL(q‖p))` of the two answers. That
    /// is the authors' code; the paper's formula does not halve the losses, so its α is twice this one.
    pub r_drop: f64,
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
            (None, Targets::Tags(tags)) => tags.labels().count() as f64,
            (Some(weights), Targets::Tags(tags)) => tags.labels().map(|c| f64::from(weights[c as usize])).sum(),
            _ => rows as f64,
        }
    }

    /// Σ over rows of the loss of `logits: [rows, labels]`, with autograd; where `r_drop` is on `[2·rows, labels]`, a first
    /// pass of all rows and behind it a second. `classes` are below `labels`.
    pub(super) fn sum(&self, logits: &Tensor, classes: &[u32]) -> Result<Tensor> {
        let rows = classes.len();
        if self.r_drop == 0.0 {
            return self.cross_entropy_sum(&log_softmax(logits)?, classes);
        }
        let both = [logits.narrow(0, 0, rows)?, logits.narrow(0, rows, rows)?];
        let [log_p, log_q] = [log_softmax(&both[0])?, log_softmax(&both[1])?];
        let entropies = (self.cross_entropy_sum(&log_p, classes)? + self.cross_entropy_sum(&log_q, classes)?)?;
        // Σ (p − q)(log p − log q) is both divergences together.
        let mut divergences = ((log_p.exp()? - log_q.exp()?)? * (log_p - log_q)?)?;
        if let Some(weights) = self.row_weights(classes, logits.device())? {
            divergences = divergences.broadcast_mul(&weights)?;
        }
        Ok(((entropies + (divergences.sum_all()? * self.r_drop)?)? * 0.5)?)
    }

    /// Σ over rows of the loss of `logits: [rows, labels]` against any number of classes a row, with autograd.
    pub(super) fn binary_sum(&self, logits: &Tensor, sets: &LabelSets) -> Result<Tensor> {
        let (device, labels) = (logits.device(), logits.dim(1)?);
        let truth = to_device(&sets.dense(labels), logits.shape(), device)?;
        // −log σ(z) = max(−z, 0) + log(1 + e^−|z|), and −log(1 − σ(z)) is z more: no exponential overflows.
        let tail = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
        let of_present = (logits.neg()?.relu()? + &tail)?;
        let of_absent = (logits.relu()? + tail)?;
        let mut present = (of_present * &truth)?;
        if let Some(weights) = &self.class_weights {
            present = present.broadcast_mul(&Tensor::from_slice(weights, (1, labels), device)?)?;
        }
        let absent = (of_absent * truth.affine(-1.0, 1.0)?)?;
        Ok(((present + absent)?.sum_all()? / labels as f64)?)
    }

    /// w_y of each row, `[rows, 1]`.
    fn row_weights(&self, classes: &[u32], device: &Device) -> Result<Option<Tensor>> {
        let Some(weights) = &self.class_weights else { return Ok(None) };
        let weights: Vec<f32> = classes.iter().map(|&c| weights[c as usize]).collect();
        Ok(Some(to_device(&weights, (classes.len(), 1), device)?))
    }

    fn cross_entropy_sum(&self, log_p: &Tensor, classes: &[u32]) -> Result<Tensor> {
        let device = log_p.device();
        let (rows, labels) = log_p.dims2()?;
        let of_target = log_p.gather(&to_device(classes, (rows, 1), device)?, 1)?; // [rows, 1]
        let mut losses = of_target.neg()?;
        if self.focal_gamma > 0.0 {
            let rest = (1.0 - of_target.exp()?)?.maximum(LEAST_REST)?;
            losses = (losses * rest.powf(self.focal_gamma)?)?;
        }
        if let Some(weights) = self.row_weights(classes, device)? {
            losses = (losses * weights)?;
        }
        let sum = losses.sum_all()?;
        if self.label_smoothing == 0.0 {
            return Ok(sum);
        }
        let spread = match &self.class_weights {
            Some(weights) => log_p.broadcast_mul(&Tensor::from_slice(weights, (1, labels), device)?)?,
            None => log_p.clone(),
        };
        let uniform = (spread.sum_all()?.neg()? / labels as f64)?;
        Ok(((sum * (1.0 - self.label_smoothing))? + (uniform * self.label_smoothing)?)?)
    }
}

/// Of `logits: [rows, labels]` over the labels.
pub(super) fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let top = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&top)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted.broadcast_sub(&log_sum)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Var};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct RDrop {
        alpha: f64,
        logits: Vec<Vec<f64>>,
        targets: Vec<u32>,
        loss: f64,
        grad: Vec<Vec<f64>>,
    }

    /// Loss and gradient by PyTorch (`tests/golden/make_options.py`); with weights that are all 2, twice as much.
    #[test]
    fn r_drop_is_that_of_its_authors() {
        let file = include_str!("../../tests/golden/fixtures/classification/options.json");
        let json: serde_json::Value = serde_json::from_str(file).unwrap();
        let want: RDrop = serde_json::from_value(json["r_drop"].clone()).unwrap();
        for (class_weights, by) in [(None, 1.0), (Some(vec![2.0; 4]), 2.0)] {
            let objective = Objective { r_drop: want.alpha, class_weights, ..Objective::default() };
            let logits = Tensor::new(want.logits.clone(), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
            let logits = Var::from_tensor(&logits).unwrap();
            let loss = objective.sum(logits.as_tensor(), &want.targets).unwrap();
            let value = f64::from(loss.to_scalar::<f32>().unwrap());
            assert!((value / want.loss / by - 1.0).abs() < 1e-6, "{value} {}", want.loss);
            let grad: Vec<Vec<f32>> = loss.backward().unwrap().get(&logits).unwrap().to_vec2().unwrap();
            for (a, b) in grad.iter().flatten().zip(want.grad.iter().flatten()) {
                assert!((f64::from(*a) - by * b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    /// A row that is known so well that 1 − p is 0 in f32 has a finite gradient, whatever γ.
    #[test]
    fn the_focal_loss_of_a_certain_row_is_finite() {
        for focal_gamma in [0.1, 0.5, 1.0, 2.0] {
            let objective = Objective { focal_gamma, ..Objective::default() };
            let logits = Var::new(&[[40f32, 0.0], [-40.0, 40.0]], &Device::Cpu).unwrap();
            let loss = objective.sum(logits.as_tensor(), &[0, 0]).unwrap();
            let grads = loss.backward().unwrap();
            let grad: Vec<f32> = grads.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(grad.iter().all(|g| g.is_finite()), "{focal_gamma}: {grad:?}");
            let loss: f32 = loss.to_scalar().unwrap();
            // The second row is as wrong as can be: its loss is the plain one.
            assert!((loss - 80.0).abs() < 1e-3 && (grad[2] + 1.0).abs() < 1e-3, "{focal_gamma}: {loss} {grad:?}");
        }
    }
}
