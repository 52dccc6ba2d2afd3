//! Encoder and head together: from a model directory and back, and the one pass that training repeats.

mod checkpoint;
mod pickle;
mod save;
mod tuning;
mod weights;

pub use checkpoint::{LoadReport, Pretrained, describe_load};
pub(crate) use save::write_safetensors;
pub use save::{BertftJson, model_dir};
pub use tuning::{Thaw, Tuning};

use crate::data::config::TaskKind;
use crate::data::{Batch, Targets};
use crate::device;
use crate::encoders::{Encoder, Read};
use crate::error::{Error, Result};
use crate::heads::{Objective, SequenceHead};
use crate::nn::params::{Layout, Params, Spec};
use crate::nn::workspace::Space;
use crate::ops::dropout::Dropout;
use crate::ops::index::Index;
use crate::ops::rows::add_rows;
use crate::rng::PassKey;
use candle_core::{DType, Tensor};

/// Dropout sites of the head, before and after its dense layer; the encoder's layers count theirs from 0.
const HEAD_SITES: [u64; 2] = [u64::MAX - 2, u64::MAX - 1];

/// What the model predicts.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub kind: TaskKind,
    /// Label or tag names in the order of their ids; empty for regression and answers.
    pub labels: Vec<String>,
}

impl Task {
    /// Width of the logits.
    pub fn outputs(&self) -> usize {
        match self.kind {
            TaskKind::Regression => 1,
            // To begin an answer and to end it.
            TaskKind::Span => 2,
            TaskKind::Classification | TaskKind::Multilabel | TaskKind::Tokens => self.labels.len(),
        }
    }
}

/// What decides how much memory a training takes.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingPlan {
    /// Of the largest batch.
    pub tokens: usize,
    /// Of the largest batch of an evaluation.
    pub eval_tokens: usize,
    /// Of a batch.
    pub rows: usize,
    /// Tokens of the longest row of all data.
    pub longest: usize,
    /// Words of the training data, each once, ascending.
    pub words: Vec<u32>,
    /// How many of them an adversarial pass moves at most, keeping what they were.
    pub moved_words: usize,
    /// The unit in which the system hands out memory.
    pub page_bytes: usize,
    pub weight_decay: f64,
    /// Whether activations are computed again instead of kept.
    pub recompute: bool,
}

/// An encoder with a head for whole rows or for tokens.
#[derive(Debug)]
pub struct Model {
    pub params: Params,
    encoder: Encoder,
    head: SequenceHead,
    /// Where its parameters begin; the encoder's lie before.
    head_from: usize,
    task: Task,
}

impl Model {
    /// Builds the model that `pretrained` describes with a head for `task`. Weights that the checkpoint does not hold are
    /// drawn from `seed`. `space` says where the model lives and in which format its activations are.
    ///
    /// # Errors
    /// [`Error::Input`] when encoder weights are missing or of another shape than `config.json` says.
    pub fn load(pretrained: &Pretrained, task: Task, seed: u64, space: Space<'_>) -> Result<(Self, LoadReport)> {
        let config = pretrained.encoder_config().clone();
        let (hidden, word) = (config.layer.hidden, config.names.embeddings.word.clone());
        let head = config.head(task.kind).0.clone();
        let mut layout = Layout::default();
        let encoder = Encoder::new(&mut layout, config);
        let head_from = layout.arena_len();
        let head = SequenceHead::new(&mut layout, task.kind, &head, hidden, task.outputs());
        let (weights, report) = pretrained.weights(&layout, &task, seed)?;
        let params = Params::new(layout, weights, space, Some(&word))?;
        Ok((Self { params, encoder, head, head_from, task }, report))
    }

    pub fn task(&self) -> &Task {
        &self.task
    }

    pub fn encoder(&mut self) -> (&mut Encoder, &Params) {
        (&mut self.encoder, &self.params)
    }

    /// See [`Encoder::recompute_activations`].
    pub fn recompute_activations(&mut self, on: bool) {
        self.encoder.recompute_activations(on);
    }

    /// Gives back the memory of activations and their gradients, so that smaller ones may take its place.
    pub fn release_buffers(&mut self) -> Result<()> {
        self.encoder.release_buffers();
        Ok(device::release_freed(self.params.device())?)
    }

    /// Bytes of [`Self::training_bytes`] that are not allocated before the first step.
    pub fn buffer_bytes(&self, plan: &TrainingPlan) -> usize {
        let arenas = self.params.training_bytes(&plan.words, plan.page_bytes, plan.weight_decay);
        self.training_bytes(plan) - if self.params.device().is_cpu() { 0 } else { arenas }
    }

    /// Bytes that training will take beyond what the model holds now: gradients, moments, and the buffers
    /// of its largest batches.
    pub fn training_bytes(&self, plan: &TrainingPlan) -> usize {
        let dtype = self.params.space().dtype;
        // Evaluation shares its buffers with the first layer's.
        let evaluation =
            self.encoder.evaluation_bytes(plan.eval_tokens.saturating_sub(plan.tokens), plan.longest, dtype);
        let moved = self.params.moved_bytes(plan.moved_words);
        self.params.training_bytes(&plan.words, plan.page_bytes, plan.weight_decay)
            + self.encoder.training_bytes([plan.tokens, plan.rows, plan.longest], self.read(), dtype, plan.recompute)
            + evaluation
            + moved
    }

    /// What the head reads of the encoder.
    fn read(&self) -> Read {
        self.encoder.config().head(self.task.kind).1
    }

    /// Logits `[rows, outputs]` in the batch's row order, `[words, outputs]` of the words that belong to its rows, or of answers
    /// `[tokens, 2]`; no dropout, nothing kept.
    pub fn logits(&mut self, batch: &Batch) -> Result<Tensor> {
        let read = self.read();
        let mut hidden = self.encoder.forward(&self.params, batch, read, None, false)?;
        if self.task.kind == TaskKind::Tokens {
            hidden = hidden.index_select(Index::new(&batch.word_starts(), hidden.device())?.tensor(), 0)?;
        }
        self.head.logits(&self.params, &hidden.to_dtype(DType::F32)?)
    }

    /// Σ over rows, or over words where their first tokens alone are labelled, of the plain loss of given logits.
    pub fn loss_sum(&self, logits: &Tensor, targets: &Targets) -> Result<f64> {
        let of_words = match targets {
            Targets::Tags(tags) => &Targets::Class(tags.labels().collect()),
            targets => targets,
        };
        Ok(self.head.loss_sum(logits, of_words, &Objective::default())?.to_dtype(DType::F64)?.to_scalar()?)
    }

    /// Forward and backward of one batch: returns Σ over rows of the loss and leaves the gradients of that sum times `scale` in
    /// the gradient arena (added if `accumulate`). Dropout is live when there is a key; `objective` weights the loss. With
    /// R-Drop the rows pass twice, as one batch of twice the rows: every element has a dropout of its own.
    pub fn forward_backward(
        &mut self,
        batch: &Batch,
        key: Option<PassKey>,
        objective: &Objective,
        scale: f64,
        accumulate: bool,
    ) -> Result<f64> {
        Ok(self.forward_backward_unread(batch, key, objective, scale, accumulate)?.to_scalar()?)
    }

    /// [`Self::forward_backward`] without waiting for the device: the sum is an f64 scalar there. Without a backward pass where a
    /// loss on the CPU is not finite.
    pub fn forward_backward_unread(
        &mut self,
        batch: &Batch,
        key: Option<PassKey>,
        objective: &Objective,
        scale: f64,
        accumulate: bool,
    ) -> Result<Tensor> {
        let read = self.read();
        let twice = (objective.r_drop > 0.0).then(|| batch.twice());
        let passed = twice.as_ref().unwrap_or(batch);
        let hidden = self.encoder.forward(&self.params, passed, read, key, true)?;
        let (places, labels) = passed.labelled().unzip();
        let places = places.map(|places| Index::new(&places, hidden.device())).transpose()?;
        let read_of = match &places {
            Some(places) => &hidden.index_select(places.tensor(), 0)?,
            None => &hidden,
        };
        let rates = self.encoder.config().head(self.task.kind).0.dropout;
        let dropout = [0, 1].map(|i| key.map_or(Dropout::OFF, |k| Dropout::new(rates[i], k.site(HEAD_SITES[i]))));
        let pass = self.head.forward(&self.params, &read_of.to_dtype(DType::F32)?, dropout)?;
        let of_tokens = labels.map(Targets::Class);
        let loss = self.head.loss_sum(&pass.logits, of_tokens.as_ref().unwrap_or(&batch.targets), objective)?;
        let sum = loss.to_dtype(DType::F64)?.detach();
        if sum.device().is_cpu() && !sum.to_scalar::<f64>()?.is_finite() {
            return Ok(sum); // the caller stops the run; gradients of a NaN would say nothing
        }
        let grad = self.head.backward(&self.params, &pass, &(loss * scale)?, accumulate)?;
        let grad = match &places {
            // Each token is there once, so that this only puts them in their places.
            Some(places) => {
                let of_all = Tensor::zeros(hidden.shape(), DType::F32, hidden.device())?;
                add_rows(&of_all, &grad, places)?;
                of_all
            }
            None => grad,
        };
        let grad = grad.to_dtype(hidden.dtype())?;
        self.encoder.backward(&mut self.params, &grad, accumulate)?;
        Ok(sum)
    }

    /// Names of parameters that the last backward pass did not reach with a finite gradient that is not all zero. The key bias
    /// is left out: softmax is shift-invariant, so its gradient is zero in exact arithmetic.
    pub fn unreached(&self) -> Result<Vec<String>> {
        let mut names = vec![];
        for spec in self.params.trained() {
            let square = self.params.grad_square(spec)?;
            let may_be_zero = || self.encoder.config().is_without_gradient(&spec.name) || self.is_shift(spec);
            if !square.is_finite() || (square == 0.0 && !may_be_zero()) {
                names.push(spec.name.clone());
            }
        }
        Ok(names)
    }

    /// Whether a parameter adds the same to the scores of all tokens of a row, which the softmax over them does not see: for
    /// answers the biases of the head and of the last layer's norm.
    fn is_shift(&self, spec: &Spec) -> bool {
        let layers = self.encoder.config().names.layers.len();
        let is_last_norm = || self.encoder.depth(spec) == layers && spec.name.to_lowercase().contains("norm");
        self.task.kind == TaskKind::Span
            && spec.name.ends_with(".bias")
            && (spec.offset >= self.head_from || is_last_norm())
    }

    /// Replaces the weights by those of a model directory that this model wrote.
    pub fn reload(&mut self, pretrained: &Pretrained) -> Result<()> {
        let mut layout = Layout::default();
        let encoder = Encoder::new(&mut layout, pretrained.encoder_config().clone());
        let config = encoder.config();
        let head = config.head(self.task.kind).0;
        SequenceHead::new(&mut layout, self.task.kind, head, config.layer.hidden, self.task.outputs());
        let (weights, report) = pretrained.weights(&layout, &self.task, 0)?;
        if !report.initialised.is_empty() || weights.len() != self.params.arena_len() {
            return Err(Error::in_file(pretrained.dir(), "is not the model that this run saved"));
        }
        let n = weights.len();
        Ok(self.params.restore_weights(&Tensor::from_vec(weights, n, self.params.device())?)?)
    }
}
