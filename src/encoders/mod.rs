//! From a packed batch of token ids to hidden states, and back. One file a family: its config and its checkpoint names;
//! the arithmetic is shared ([`crate::nn`], [`crate::ops`]).

pub mod bert;
pub mod names;

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::nn::params::{Init, Layout, Params};
use crate::nn::transformer::{
    Activations, Layer, LayerNames, LayerShape, Pass, Scratch, Selection, activation_len, scratch_len,
};
use crate::nn::workspace::{Buffer, SLACK};
use crate::ops::embedding::{EmbeddingIndex, EmbeddingShape, embed, embed_backward};
use crate::rng::PassKey;
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// The families that this version loads, by `model_type`.
pub const FAMILIES: &[&str] = &["bert"];

/// What a family's `config.json` says, in terms that all families share.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    pub embedding: EmbeddingShape,
    pub layers: usize,
    pub layer: LayerShape,
    /// Dropout before the classifier.
    pub head_dropout: f32,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    pub names: ModuleNames,
}

/// The checkpoint names of an encoder's parts.
#[derive(Debug, Clone)]
pub struct ModuleNames {
    /// What checkpoints of the bare encoder leave out.
    pub prefix: &'static str,
    pub word: String,
    pub position: String,
    pub token_type: String,
    pub embedding_norm: String,
    pub pooler: String,
    pub layer: fn(usize) -> LayerNames,
}

impl EncoderConfig {
    /// Reads a model directory's `config.json`.
    pub fn from_json(json: &serde_json::Value, file: &Path) -> Result<Self> {
        match json.get("model_type").and_then(|v| v.as_str()) {
            Some("bert") => bert::config(json, file),
            Some(other) => Err(Error::in_file(
                file,
                format!("model_type {other:?} is not supported by this version; supported: {}", FAMILIES.join(", ")),
            )),
            None => Err(Error::in_file(file, format!("no model_type; supported: {}", FAMILIES.join(", ")))),
        }
    }
}

/// Which tokens' hidden states a head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// The first of each row (`[CLS]`).
    First,
    /// All of them.
    All,
}

/// A batch on the device.
#[derive(Debug)]
struct Input {
    ids: Tensor,
    positions: Tensor,
    types: Tensor,
    cu_seqlens: Vec<u32>,
    selection: Option<Selection>,
    key: Option<PassKey>,
    /// Whether the pass left its layers' activations to be computed again.
    recompute: bool,
}

impl Input {
    fn new(batch: &Batch, read: Read, key: Option<PassKey>, device: &Device) -> Result<Self> {
        let vector = |v: &[u32]| Tensor::from_slice(v, v.len(), device);
        let rows = batch.cu_seqlens.len() - 1;
        let selection = match read {
            Read::All => None,
            Read::First => {
                Some(Selection { index: vector(&batch.cu_seqlens[..rows])?, cu_queries: (0..=rows as u32).collect() })
            }
        };
        Ok(Self {
            ids: vector(&batch.ids)?,
            positions: vector(&batch.positions)?,
            types: vector(&batch.type_ids)?,
            cu_seqlens: batch.cu_seqlens.clone(),
            selection,
            key,
            recompute: false,
        })
    }

    fn index(&self) -> EmbeddingIndex<'_> {
        EmbeddingIndex { ids: &self.ids, positions: &self.positions, types: &self.types }
    }

    /// The pass as layer `i` of `layers` sees it: only the last one leaves tokens out.
    fn pass(&self, i: usize, layers: usize) -> Pass<'_> {
        let selection = if i + 1 == layers { self.selection.as_ref() } else { None };
        Pass { cu_seqlens: &self.cu_seqlens, selection, key: self.key, learns_below: true }
    }
}

/// An encoder over parameters that live in [`Params`], with the buffers of its passes.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    embedding: usize,
    layers: Vec<Layer>,
    embedding_sum: Buffer,
    embedded: Buffer,
    /// One a layer in training; the first serves all layers in evaluation and when they are recomputed.
    acts: Vec<Activations>,
    /// The layers' outputs, likewise; recomputing needs them all.
    outs: Vec<Buffer>,
    recompute: bool,
    scratch: Scratch,
    input: Option<Input>,
}

/// Dropout site of the embeddings; layers count theirs from 0.
const EMBEDDING_SITE: u64 = u64::MAX;

impl Encoder {
    /// Lays out the parameters.
    pub fn new(layout: &mut Layout, config: EncoderConfig) -> Self {
        let (e, h, n) = (&config.embedding, config.layer.hidden, &config.names);
        let mut block = vec![
            (n.word.clone(), vec![e.vocab, h], Init::Normal),
            (n.position.clone(), vec![e.positions, h], Init::Normal),
        ];
        if e.types > 0 {
            block.push((n.token_type.clone(), vec![e.types, h], Init::Normal));
        }
        block.push((format!("{}.weight", n.embedding_norm), vec![h], Init::Ones));
        block.push((format!("{}.bias", n.embedding_norm), vec![h], Init::Zeros));
        let embedding = layout.block(&block);
        let layers: Vec<_> = (0..config.layers).map(|i| Layer::new(layout, &config.layer, &(n.layer)(i), i)).collect();
        Self {
            embedding,
            layers,
            config,
            embedding_sum: Buffer::default(),
            embedded: Buffer::default(),
            acts: vec![],
            outs: vec![],
            recompute: false,
            scratch: Scratch::default(),
            input: None,
        }
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Whether the backward pass computes a layer's activations again from its input instead of keeping those of all layers
    /// (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): less memory for a third more work, the same
    /// results to the bit.
    pub fn recompute_activations(&mut self, on: bool) {
        self.recompute = on;
    }

    /// Bytes that the buffers of a training pass take for a batch of `tokens` in `rows` rows, keeping activations or not.
    pub fn training_bytes(&self, tokens: usize, rows: usize, read: Read, dtype: DType, recompute: bool) -> usize {
        let (shape, n) = (&self.config.layer, self.layers.len());
        let full = activation_len(shape, tokens, tokens);
        let queries = if read == Read::First { rows } else { tokens };
        let last = activation_len(shape, tokens, queries);
        let kept = if recompute { if n > 1 { full } else { last } } else { full * (n - 1) + last };
        // The embedding's sum and result, and every layer's output.
        let outputs = (n + 1) * shape.hidden * tokens + shape.hidden * queries;
        // bf16 weight gradients pack both of their operands.
        let packed = if dtype == DType::BF16 { (shape.hidden + shape.inner) * tokens } else { 0 };
        let values = kept + outputs + scratch_len(shape, tokens) + packed;
        dtype.size_in_bytes() * (values + values / SLACK)
    }

    /// Bytes that the buffers of a pass without a backward pass take for a batch of `tokens`.
    pub fn evaluation_bytes(&self, tokens: usize, dtype: DType) -> usize {
        let shape = &self.config.layer;
        dtype.size_in_bytes() * (activation_len(shape, tokens, tokens) + 3 * shape.hidden * tokens)
    }

    /// Hidden states `[rows, hidden]` ([`Read::First`]) or `[tokens, hidden]` in the activations' format, in a buffer that the
    /// next pass overwrites.
    /// With a key, dropout is live and everything that [`Self::backward`] needs is kept; without one nothing is.
    pub fn forward(
        &mut self,
        params: &Params,
        batch: &Batch,
        read: Read,
        key: Option<PassKey>,
        keep: bool,
    ) -> Result<Tensor> {
        let (space, h, tokens) = (params.space(), self.config.layer.hidden, batch.ids.len());
        let recompute = keep && self.recompute;
        let input = Input { recompute, ..Input::new(batch, read, key, space.device)? };
        let shape = self.config.embedding;
        let block = params.weight(self.embedding, &[shape.rows(), h])?;
        let (sum, mut x) = (self.embedding_sum.view(tokens, h, space)?, self.embedded.view(tokens, h, space)?);
        let n = self.layers.len();
        let dropout = input.pass(0, n).dropout(self.config.layer.hidden_dropout, EMBEDDING_SITE);
        embed(&sum, &x, &block, input.index(), shape, dropout)?;
        let (acts, outs) = (if keep && !recompute { n } else { 1 }, if keep { n } else { 1 });
        self.acts.resize_with(self.acts.len().max(acts), Activations::default);
        self.outs.resize_with(self.outs.len().max(outs), Buffer::default);
        for (i, layer) in self.layers.iter().enumerate() {
            let (acts, out) = (&mut self.acts[i.min(acts - 1)], &mut self.outs[i.min(outs - 1)]);
            x = layer.forward(params, &x, &input.pass(i, n), acts, out)?;
        }
        self.input = keep.then_some(input);
        Ok(x)
    }

    /// Gradients of all parameters that learn, from `grad`, the gradient of the last [`Self::forward`]'s result. They overwrite the
    /// gradient arena, or add to it if `accumulate`.
    pub fn backward(&mut self, params: &mut Params, grad: &Tensor, accumulate: bool) -> Result<()> {
        let Some(input) = self.input.take() else {
            return Err(Error::Failed("backward without a forward pass that kept its activations".into()));
        };
        let (h, tokens) = (self.config.layer.hidden, input.ids.elem_count());
        let embedded = self.embedded.view(tokens, h, params.space())?;
        let mut grad = grad.clone();
        let n = self.layers.len();
        let shape = self.config.embedding;
        let trains_embedding = params.trains(self.embedding..self.embedding + shape.rows() * h);
        // Below the first part that learns nobody reads a gradient.
        let trains = |i: &usize| trains_embedding || params.trains(self.layers[*i].range());
        let lowest = (0..n).find(trains).unwrap_or(n);
        for i in (lowest..n).rev() {
            let x = match i.checked_sub(1) {
                Some(below) => self.outs[below].view(tokens, h, params.space())?,
                None => embedded.clone(),
            };
            let pass = Pass { learns_below: trains_embedding || i > lowest, ..input.pass(i, n) };
            let acts = &mut self.acts[if input.recompute { 0 } else { i }];
            // The last layer's are still there.
            if input.recompute && i + 1 < n {
                self.layers[i].forward(params, &x, &pass, acts, &mut self.outs[i])?;
            }
            grad = self.layers[i].backward(params, &x, &grad, &pass, acts, &mut self.scratch, accumulate)?;
        }
        if !trains_embedding {
            return Ok(());
        }
        if !accumulate {
            // The scatter below adds: start its dense part from zero, the word rows are cleared as they were touched.
            params.begin_window()?;
            let start = self.embedding + shape.vocab * h;
            params.zero_grad(start..self.embedding + shape.rows() * h)?;
        }
        params.touch(&input.ids.to_vec1::<u32>()?);
        let (block, dblock) =
            (params.weight(self.embedding, &[shape.rows(), h])?, params.grad(self.embedding, &[shape.rows(), h])?);
        let space = params.space();
        let (sum, ds) = (self.embedding_sum.view(tokens, h, space)?, self.scratch.spare(tokens, h, space)?);
        let dropout = input.pass(0, n).dropout(self.config.layer.hidden_dropout, EMBEDDING_SITE);
        embed_backward(&dblock, &ds, &grad, &sum, &block, input.index(), shape, dropout)?;
        Ok(())
    }
}
