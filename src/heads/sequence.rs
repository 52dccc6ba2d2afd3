//! Classification and regression of whole rows, as each family's `ForSequenceClassification` has it ([`Pooling`]): dropout, a
//! dense layer and its activation on the first token, dropout, the last layer; cross-entropy or mean squared error.

use super::Objective;
use crate::data::Targets;
use crate::data::config::TaskKind;
use crate::error::{Error, Result};
use crate::nn::params::{Init, Layout, Params};
use crate::nn::pooling::{Pooling, PoolingActivation};
use crate::ops::dropout::Dropout;
use candle_core::{Tensor, Var};

/// The head's parameters live in the arenas; candle's autograd sees copies of them (they are small).
#[derive(Debug)]
pub struct SequenceHead {
    task: TaskKind,
    hidden: usize,
    labels: usize,
    act: PoolingActivation,
    /// Weight and bias of the dense layer and of the last in the arenas.
    offsets: [usize; 4],
}

/// A forward pass with autograd: the leaves and the result.
#[derive(Debug)]
pub struct HeadPass {
    /// `[rows, hidden]`
    hidden: Var,
    params: [Var; 4],
    /// `[rows, labels]`
    pub logits: Tensor,
}

impl SequenceHead {
    /// Lays out the parameters; `labels` is 1 for regression.
    pub fn new(layout: &mut Layout, task: TaskKind, pooling: &Pooling, hidden: usize, labels: usize) -> Self {
        let Pooling { dense, act, out, .. } = pooling;
        let offsets = [
            layout.block(&[(format!("{dense}.weight"), vec![hidden, hidden], Init::Normal)]),
            layout.block(&[(format!("{dense}.bias"), vec![hidden], Init::Zeros)]),
            layout.block(&[(format!("{out}.weight"), vec![labels, hidden], Init::Normal)]),
            layout.block(&[(format!("{out}.bias"), vec![labels], Init::Zeros)]),
        ];
        Self { task, hidden, labels, act: *act, offsets }
    }

    pub fn labels(&self) -> usize {
        self.labels
    }

    fn shapes(&self) -> [Vec<usize>; 4] {
        [vec![self.hidden, self.hidden], vec![self.hidden], vec![self.labels, self.hidden], vec![self.labels]]
    }

    fn compute(&self, p: [&Tensor; 4], hidden: &Tensor, [before, after]: [Dropout; 2]) -> Result<Tensor> {
        let dense = dropped(hidden, before)?.matmul(&p[0].t()?)?.broadcast_add(p[1])?;
        let pooled = match self.act {
            PoolingActivation::Tanh => dense.tanh()?,
            PoolingActivation::Relu => dense.relu()?,
            PoolingActivation::Gelu => dense.gelu_erf()?,
        };
        Ok(dropped(&pooled, after)?.matmul(&p[2].t()?)?.broadcast_add(p[3])?)
    }

    /// Logits `[rows, labels]` of `hidden: [rows, hidden]`, without autograd.
    pub fn logits(&self, params: &Params, hidden: &Tensor) -> Result<Tensor> {
        let mut p = Vec::with_capacity(4);
        for (offset, shape) in self.offsets.iter().zip(self.shapes()) {
            p.push(params.weight(*offset, &shape)?);
        }
        self.compute([&p[0], &p[1], &p[2], &p[3]], hidden, [Dropout::OFF; 2])
    }

    /// The same with autograd and with dropout before and after the dense layer.
    pub fn forward(&self, params: &Params, hidden: &Tensor, dropout: [Dropout; 2]) -> Result<HeadPass> {
        let [a, b, c, d] = self.shapes();
        let var = |i: usize, shape: &[usize]| Var::from_tensor(&params.weight(self.offsets[i], shape)?);
        let vars = [var(0, &a)?, var(1, &b)?, var(2, &c)?, var(3, &d)?];
        let hidden = Var::from_tensor(hidden)?;
        let logits = self.compute([0, 1, 2, 3].map(|i| vars[i].as_tensor()), hidden.as_tensor(), dropout)?;
        Ok(HeadPass { hidden, params: vars, logits })
    }

    /// Σ over rows of the loss of `logits: [rows, labels]`; `objective` says how classes are weighted.
    pub fn loss_sum(&self, logits: &Tensor, targets: &Targets, objective: &Objective) -> Result<Tensor> {
        match (self.task, targets) {
            (TaskKind::Classification, Targets::Class(classes)) => objective.sum(logits, classes),
            (TaskKind::Regression, Targets::Value(values)) => {
                let wanted = Tensor::from_slice(values, (values.len(), 1), logits.device())?;
                Ok((logits - wanted)?.sqr()?.sum_all()?)
            }
            _ => Err(Error::Failed("the targets do not fit the task".into())),
        }
    }

    /// Runs autograd from `loss`; the head's gradients go into the arena (added if `accumulate`), the hidden states' gradient
    /// `[rows, hidden]` is returned.
    pub fn backward(&self, params: &Params, pass: &HeadPass, loss: &Tensor, accumulate: bool) -> Result<Tensor> {
        let grads = loss.backward()?;
        for ((var, offset), shape) in pass.params.iter().zip(self.offsets).zip(self.shapes()) {
            let to = params.grad(offset, &shape)?;
            let Some(grad) = grads.get(var) else {
                return Err(Error::Failed("a head parameter was not reached by the loss".into()));
            };
            let grad = if accumulate { (&to + grad)? } else { grad.contiguous()? };
            to.slice_set(&grad, 0, 0)?;
        }
        match grads.get(&pass.hidden) {
            Some(g) => Ok(g.contiguous()?),
            None => Err(Error::Failed("the loss does not depend on the encoder".into())),
        }
    }
}

fn dropped(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if dropout.is_off() {
        return Ok(x.clone());
    }
    let factors: Vec<f32> = (0..x.elem_count() as u32).map(|i| dropout.factor(i)).collect();
    Ok((x * Tensor::from_vec(factors, x.shape(), x.device())?)?)
}

/// The loss of each row of `logits: [rows, labels]`, on the host in f64: cross-entropy or squared error.
pub fn row_losses(logits: &[f32], labels: usize, targets: &Targets) -> Result<Vec<f64>> {
    let cross_entropy = |(row, &class): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let log_sum = row.iter().map(|&v| f64::from(v - top).exp()).sum::<f64>().ln();
        log_sum - f64::from(row[class as usize] - top)
    };
    match targets {
        Targets::Class(classes) => Ok(logits.chunks_exact(labels).zip(classes).map(cross_entropy).collect()),
        Targets::Value(values) => Ok(logits.iter().zip(values).map(|(&v, &t)| f64::from(v - t).powi(2)).collect()),
        Targets::None => Err(Error::Failed("rows without labels have no loss".into())),
    }
}

/// Softmax over labels of `logits: [rows, labels]`, on the host.
pub fn probabilities(logits: &[f32], labels: usize) -> Vec<f32> {
    let mut out = logits.to_vec();
    for row in out.chunks_exact_mut(labels) {
        let top = row.iter().cloned().fold(f32::MIN, f32::max);
        let total: f32 = row
            .iter_mut()
            .map(|v| {
                *v = (*v - top).exp();
                *v
            })
            .sum();
        row.iter_mut().for_each(|v| *v /= total);
    }
    out
}
