//! Classification, by one label or several, and regression of whole rows, and classification of tokens, as each family's `ForSequenceClassification` has it
//! ([`Pooling`]): dropout, a dense layer, its activation and in some a norm, dropout, the last layer; cross-entropy, binary
//! cross-entropy or mean squared error.

use super::{Objective, span};
use crate::data::Targets;
use crate::data::config::TaskKind;
use crate::error::{Error, Result};
use crate::nn::params::{Init, Layout, Params};
use crate::nn::pooling::{Pooling, PoolingActivation};
use crate::ops::dropout::{Dropout, masked};
use candle_core::{Tensor, Var};

/// The head's parameters live in the arenas; candle's autograd sees copies of them (they are small).
#[derive(Debug)]
pub struct SequenceHead {
    task: TaskKind,
    labels: usize,
    act: PoolingActivation,
    /// Whether there is a dense layer, and whether it has a bias.
    dense: Option<bool>,
    /// The norm's epsilon, and whether it has a bias.
    norm: Option<(f64, bool)>,
    /// Places and shapes in the arenas, in the order of the computation: the dense layer's weight and bias, the norm's, the last
    /// layer's.
    params: Vec<(usize, Vec<usize>)>,
}

/// A forward pass with autograd: the leaves and the result.
#[derive(Debug)]
pub struct HeadPass {
    /// `[rows, hidden]`
    hidden: Var,
    params: Vec<Var>,
    /// `[rows, labels]`
    pub logits: Tensor,
}

impl SequenceHead {
    /// Lays out the parameters; `labels` is 1 for regression.
    pub fn new(layout: &mut Layout, task: TaskKind, pooling: &Pooling, hidden: usize, labels: usize) -> Self {
        let Pooling { dense, dense_bias, norm, act, out, .. } = pooling;
        let mut params = vec![];
        let mut add = |name: String, shape: Vec<usize>, init: Init| {
            params.push((layout.block(&[(name, shape.clone(), init)]), shape));
        };
        if let Some(dense) = dense {
            add(format!("{dense}.weight"), vec![hidden, hidden], Init::Normal);
            if *dense_bias {
                add(format!("{dense}.bias"), vec![hidden], Init::Zeros);
            }
        }
        if let Some(norm) = norm {
            add(format!("{}.weight", norm.name), vec![hidden], Init::Ones);
            if norm.bias {
                add(format!("{}.bias", norm.name), vec![hidden], Init::Zeros);
            }
        }
        add(format!("{out}.weight"), vec![labels, hidden], Init::Normal);
        add(format!("{out}.bias"), vec![labels], Init::Zeros);
        let norm = norm.as_ref().map(|norm| (f64::from(norm.eps), norm.bias));
        Self { task, labels, act: *act, dense: dense.as_ref().map(|_| *dense_bias), norm, params }
    }

    pub fn labels(&self) -> usize {
        self.labels
    }

    fn compute(&self, params: &[Tensor], hidden: &Tensor, [before, after]: [Dropout; 2]) -> Result<Tensor> {
        let mut params = params.iter();
        let mut next = || params.next().ok_or_else(|| Error::Failed("the head lacks a parameter".into()));
        let mut x = dropped(hidden, before)?;
        if let Some(bias) = self.dense {
            x = x.matmul(&next()?.t()?)?;
            if bias {
                x = x.broadcast_add(next()?)?;
            }
            x = match self.act {
                PoolingActivation::Tanh => x.tanh()?,
                PoolingActivation::Relu => x.relu()?,
                PoolingActivation::Gelu => x.gelu_erf()?,
                PoolingActivation::GeluTanh => x.gelu()?,
                PoolingActivation::Silu => x.silu()?,
            };
        }
        if let Some((eps, bias)) = self.norm {
            let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
            let deviation = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
            x = centred.broadcast_div(&deviation)?.broadcast_mul(next()?)?;
            if bias {
                x = x.broadcast_add(next()?)?;
            }
        }
        Ok(dropped(&x, after)?.matmul(&next()?.t()?)?.broadcast_add(next()?)?)
    }

    /// Logits `[rows, labels]` of `hidden: [rows, hidden]`, without autograd.
    pub fn logits(&self, params: &Params, hidden: &Tensor) -> Result<Tensor> {
        let params: Result<Vec<_>> = self.params.iter().map(|(at, shape)| Ok(params.weight(*at, shape)?)).collect();
        self.compute(&params?, hidden, [Dropout::OFF; 2])
    }

    /// The same with autograd and with dropout before and after the dense layer.
    pub fn forward(&self, params: &Params, hidden: &Tensor, dropout: [Dropout; 2]) -> Result<HeadPass> {
        let var = |(at, shape): &(usize, Vec<usize>)| Ok(Var::from_tensor(&params.weight(*at, shape)?)?);
        let vars = self.params.iter().map(var).collect::<Result<Vec<_>>>()?;
        let hidden = Var::from_tensor(hidden)?;
        let leaves: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let logits = self.compute(&leaves, hidden.as_tensor(), dropout)?;
        Ok(HeadPass { hidden, params: vars, logits })
    }

    /// Σ over rows of the loss of `logits: [rows, labels]`; `objective` says how classes are weighted.
    pub fn loss_sum(&self, logits: &Tensor, targets: &Targets, objective: &Objective) -> Result<Tensor> {
        match (self.task, targets) {
            (TaskKind::Classification | TaskKind::Tokens, Targets::Class(classes)) => objective.sum(logits, classes),
            (TaskKind::Multilabel, Targets::Sets(sets)) => objective.binary_sum(logits, sets),
            (TaskKind::Span, Targets::Spans(spans)) => {
                let (mut lengths, places) = span::targets(spans);
                if objective.r_drop > 0.0 {
                    lengths = lengths.repeat(2);
                }
                span::loss_by_row(logits, &lengths, |scores| Ok((objective.sum(scores, &places)? * 0.5)?))
            }
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
        for (var, (offset, shape)) in pass.params.iter().zip(&self.params) {
            let to = params.grad(*offset, shape)?;
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
    let (ones, factors) = (x.ones_like()?, x.zeros_like()?);
    masked(&factors, &ones, dropout, 0, false)?;
    Ok((x * factors)?)
}

/// The loss of each row of `logits: [rows, labels]` (of answers `[tokens, 2]`), on the host in f64: cross-entropy, the mean of the labels' binary
/// cross-entropies, or squared error.
pub fn row_losses(logits: &[f32], labels: usize, targets: &Targets) -> Result<Vec<f64>> {
    let cross_entropy = |(row, &class): (&[f32], &u32)| {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let log_sum = row.iter().map(|&v| f64::from(v - top).exp()).sum::<f64>().ln();
        log_sum - f64::from(row[class as usize] - top)
    };
    match targets {
        Targets::Class(classes) => Ok(logits.chunks_exact(labels).zip(classes).map(cross_entropy).collect()),
        Targets::Value(values) => Ok(logits.iter().zip(values).map(|(&v, &t)| f64::from(v - t).powi(2)).collect()),
        Targets::Sets(sets) => {
            // −log σ(z) of a label that the row has, −log σ(−z) of one that it has not.
            let minus_log = |z: f32| f64::from((-z).max(0.0)) + (-f64::from(z.abs())).exp().ln_1p();
            let of_row = |(row, set): (&[f32], &[u32])| {
                let of_label =
                    |(label, &z): (usize, &f32)| minus_log(if set.contains(&(label as u32)) { z } else { -z });
                row.iter().enumerate().map(of_label).sum::<f64>() / labels as f64
            };
            Ok(logits.chunks_exact(labels).zip(sets.iter()).map(of_row).collect())
        }
        Targets::Spans(spans) => Ok(span::row_losses(logits, spans)),
        Targets::Tags(_) | Targets::None => Err(Error::Failed("rows without labels have no loss".into())),
    }
}

/// The probability of each label by itself, on the host: the logistic function.
pub fn sigmoids(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|&z| 1.0 / (1.0 + (-z).exp())).collect()
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
