//! From a packed batch of token ids to hidden states, and back. One file a family: its config and its checkpoint names;
//! the arithmetic is shared ([`crate::nn`], [`crate::ops`]).

pub mod albert;
pub mod bert;
mod config;
pub mod deberta_v2;
pub mod distilbert;
pub mod electra;
pub mod keys;
pub mod modernbert;
pub mod mpnet;
pub mod names;
pub mod on_cuda;
pub mod roberta;

pub use config::{EncoderConfig, Initializer, ModuleNames, Positions, Read, RotaryLayer};

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::nn::distance_bias::DistanceBiasTable;
use crate::nn::embeddings::{Embeddings, EmbeddingsShape};
use crate::nn::layer_shape::{activation_len, scratch_len};
use crate::nn::params::{Layout, Params, Spec};
use crate::nn::relative::{PassRelative, RelativeTable};
use crate::nn::rotary::RotaryTable;
use crate::nn::transformer::{Activations, Layer, Output, Pass, PassBias, PassRotary, Scratch, Selection, Stream};
use crate::nn::workspace::{Buffer, SLACK};
use crate::ops::disentangled::GROUPS;
use crate::ops::dropout::Dropout;
use crate::ops::embedding::EmbeddingIndex;
use crate::ops::index::Index;
use crate::ops::rows::{mean_rows, mean_rows_backward};
use crate::rng::PassKey;
use candle_core::{DType, Device, Tensor};

/// The families that this version loads, by `model_type`.
pub const FAMILIES: &[&str] = &[
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "modernbert",
    "deberta-v2",
];

/// A batch on the device.
#[derive(Debug)]
struct Input {
    ids: Index,
    positions: Index,
    types: Index,
    cu_seqlens: Vec<u32>,
    /// Tokens of the longest row.
    longest: usize,
    read: Read,
    selection: Option<Selection>,
    key: Option<PassKey>,
    /// Whether the pass left its layers' activations to be computed again.
    recompute: bool,
}

impl Input {
    fn new(config: &EncoderConfig, batch: &Batch, read: Read, key: Option<PassKey>, device: &Device) -> Result<Self> {
        let vector = |v: &[u32]| Index::new(v, device);
        let rows = batch.cu_seqlens.len() - 1;
        let selection = match read {
            Read::All | Read::Mean => None,
            Read::First => Some(Selection {
                index: vector(&batch.cu_seqlens[..rows])?,
                positions: vector(&vec![0; rows])?,
                cu_queries: (0..=rows as u32).collect(),
            }),
        };
        Ok(Self {
            ids: vector(&batch.ids)?,
            positions: vector(&config.positions.of(batch))?,
            types: if config.reads_types { vector(&batch.type_ids)? } else { vector(&vec![0; batch.ids.len()])? },
            longest: batch.max_len(),
            read,
            cu_seqlens: batch.cu_seqlens.clone(),
            selection,
            key,
            recompute: false,
        })
    }

    fn index(&self) -> EmbeddingIndex<'_> {
        EmbeddingIndex { ids: &self.ids, positions: &self.positions, types: &self.types }
    }

    /// The pass as layer `i` sees it: only the last one leaves tokens out.
    fn pass<'a>(&'a self, i: usize, config: &EncoderConfig, tables: &'a [RotaryTable]) -> Pass<'a> {
        let (is_last, layer) = (i + 1 == config.names.layers.len(), config.rotary.get(i));
        let table = layer.and_then(|layer| tables.iter().find(|t| t.theta == layer.theta)?.table());
        Pass {
            cu_seqlens: &self.cu_seqlens,
            selection: self.selection.as_ref().filter(|_| is_last),
            key: self.key,
            learns_below: true,
            bias: None,
            relative: None,
            window: layer.and_then(|layer| layer.window),
            rotary: table.map(|table| PassRotary { table, positions: &self.positions }),
        }
    }

    /// The dropout of the embeddings.
    fn embedding_dropout(&self, p: f32) -> Dropout {
        self.key.map_or(Dropout::OFF, |key| Dropout::new(p, key.site(EMBEDDING_SITE)))
    }
}

/// An encoder over parameters that live in [`Params`], with the buffers of its passes.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    embeddings: Embeddings,
    bias: Option<DistanceBiasTable>,
    relative: Option<RelativeTable>,
    /// One a base.
    rotary: Vec<RotaryTable>,
    layers: Vec<Layer>,
    /// One a layer in training; the first serves all layers in evaluation and when they are recomputed.
    acts: Vec<Activations>,
    /// The layers' outputs, likewise; recomputing needs them all.
    outs: Vec<Output>,
    /// The mean of each row, and its gradient for each token.
    mean: Buffer,
    spread: Buffer,
    recompute: bool,
    scratch: Scratch,
    input: Option<Input>,
}

/// Dropout site of the embeddings; layers count theirs from 0.
const EMBEDDING_SITE: u64 = u64::MAX;

impl Encoder {
    /// Lays out the parameters.
    pub fn new(layout: &mut Layout, config: EncoderConfig) -> Self {
        let (names, layer) = (&config.names, &config.layer);
        let shape = EmbeddingsShape {
            tables: config.embedding,
            width: config.embedding_width,
            hidden: layer.hidden,
            norms_projected: config.norms_projected,
            learns_positions: config.learns_positions,
            norm_bias: layer.form.norm_bias,
        };
        let embeddings = Embeddings::new(layout, shape, &names.embeddings);
        let bias = config.bias_buckets.map(|n| DistanceBiasTable::new(layout, &names.bias, n, layer.heads));
        let relative = config.relative.zip(names.relative.as_ref());
        let relative = relative.map(|(shape, names)| RelativeTable::new(layout, shape, names));
        let mut rotary: Vec<RotaryTable> = vec![];
        for RotaryLayer { theta, .. } in &config.rotary {
            if !rotary.iter().any(|t| t.theta == *theta) {
                rotary.push(RotaryTable::new(*theta, layer.hidden / layer.heads));
            }
        }
        let mut layers: Vec<Layer> = Vec::with_capacity(names.layers.len());
        for (i, of) in names.layers.iter().enumerate() {
            let layer = match names.layers[..i].iter().position(|n| n == of) {
                Some(first) => layers[first].again(i),
                None => Layer::new(layout, layer, of, i),
            };
            layers.push(layer);
        }
        Self {
            embeddings,
            bias,
            relative,
            rotary,
            layers,
            config,
            acts: vec![],
            outs: vec![],
            mean: Buffer::default(),
            spread: Buffer::default(),
            recompute: false,
            scratch: Scratch::default(),
            input: None,
        }
    }

    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// How many layers lie below a parameter of the encoder: 0 for the embeddings and what all layers read, i + 1 for layer
    /// i, and for what comes after the last layer as many as there are.
    pub fn depth(&self, spec: &Spec) -> usize {
        let (n, at) = (self.layers.len(), &spec.offset);
        match self.layers.iter().rposition(|l| l.range().contains(at)) {
            Some(i) if self.layers[i].norm_above().is_some_and(|norm| norm.contains(at)) => (i + 2).min(n),
            Some(i) => i + 1,
            None if self.layers.iter().all(|l| l.range().end <= *at) => n,
            None => 0,
        }
    }

    /// Whether layers have their parameters in common.
    pub fn shares_layers(&self) -> bool {
        let from = self.layers.first().map(|l| l.range());
        self.layers.iter().skip(1).any(|l| Some(l.range()) == from)
    }

    /// Whether the backward pass computes a layer's activations again from its input instead of keeping those of all layers
    /// (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): less memory for a third more work, the same
    /// results to the bit.
    pub fn recompute_activations(&mut self, on: bool) {
        self.recompute = on;
    }

    /// Gives back the memory of all buffers; the next pass makes those that it needs.
    pub fn release_buffers(&mut self) {
        self.acts.clear();
        self.outs.clear();
        self.embeddings.release_buffers();
        (self.mean, self.spread) = (Buffer::default(), Buffer::default());
        (self.scratch, self.input) = (Scratch::default(), None);
    }

    /// Bytes that the buffers of a training pass take for a batch of `tokens` in `rows` rows of up to `longest`, keeping
    /// activations or not.
    pub fn training_bytes(
        &self,
        [tokens, rows, longest]: [usize; 3],
        read: Read,
        dtype: DType,
        recompute: bool,
    ) -> usize {
        let (shape, n) = (&self.config.layer, self.layers.len());
        let full = activation_len(shape, tokens, tokens);
        let queries = read.queries(tokens, rows);
        let last = activation_len(shape, tokens, queries);
        let kept = if recompute { if n > 1 { full } else { last } } else { full * (n - 1) + last };
        let outputs = self.embeddings.buffer_len(tokens) + self.output_width() * ((n - 1) * tokens + queries);
        // bf16 weight gradients pack both of their operands.
        let packed = if dtype == DType::BF16 { (shape.hidden + shape.inner) * tokens } else { 0 };
        let [position_values, position_floats] = self.position_len(longest, if recompute { 1 } else { n }, true);
        let beside = self.convolution_len().into_iter().sum::<usize>() * tokens;
        let values = kept + outputs + scratch_len(shape, tokens) + packed + position_values + beside;
        dtype.size_in_bytes() * (values + values / SLACK) + 4 * position_floats
    }

    /// Values of a token that a layer leaves to the next: where norms stand first, the sum before the norm too.
    fn output_width(&self) -> usize {
        let shape = &self.config.layer;
        if shape.form.pre_norm { 2 * shape.hidden } else { shape.hidden }
    }

    /// Values in the activations' format and in f32 that relative positions take for rows of up to `longest` tokens, kept for
    /// so many layers.
    fn position_len(&self, longest: usize, layers: usize, backward: bool) -> [usize; 2] {
        let (Some(shape), Some(form)) = (self.config.relative, self.config.layer.form.relative) else { return [0; 2] };
        let [kept, scratch] = shape.layer_len(form, longest);
        let (scratch, sums) = if backward { (scratch, GROUPS * kept) } else { (0, 0) };
        [layers * kept + scratch, shape.table_len(longest) + sums]
    }

    /// Values of a token that the convolution beside a layer keeps, and takes in the backward pass, if there is one.
    fn convolution_len(&self) -> [usize; 2] {
        let layer = &self.config.layer;
        layer.form.convolution.map_or([0; 2], |form| form.lens(layer.hidden))
    }

    /// Bytes that the buffers of a pass without a backward pass take for a batch of `tokens` in rows of up to `longest`.
    pub fn evaluation_bytes(&self, tokens: usize, longest: usize, dtype: DType) -> usize {
        let shape = &self.config.layer;
        let outputs = self.embeddings.buffer_len(tokens) + self.output_width() * tokens;
        let [position_values, position_floats] = self.position_len(longest, 1, false);
        let [beside, _] = self.convolution_len();
        dtype.size_in_bytes() * (activation_len(shape, tokens, tokens) + outputs + position_values + beside * tokens)
            + 4 * position_floats
    }

    /// Hidden states `[rows, hidden]` ([`Read::First`], [`Read::Mean`]) or `[tokens, hidden]` in the activations' format, in a
    /// buffer that the next pass overwrites.
    /// With a key, dropout is live and everything that [`Self::backward`] needs is kept; without one nothing is.
    pub fn forward(
        &mut self,
        params: &Params,
        batch: &Batch,
        read: Read,
        key: Option<PassKey>,
        keep: bool,
    ) -> Result<Tensor> {
        let recompute = keep && self.recompute;
        let input = Input { recompute, ..Input::new(&self.config, batch, read, key, params.device())? };
        let (n, config) = (self.layers.len(), &self.config);
        let dropout = input.embedding_dropout(config.embedding_dropout);
        let x = self.embeddings.forward(params, input.index(), dropout)?;
        self.rotary.iter_mut().try_for_each(|table| table.reach(input.longest, params.device()))?;
        let values = self.bias.as_mut().map(|b| b.forward(params, input.longest)).transpose()?;
        let bias = values.as_ref().map(|values| PassBias { values, grad: None });
        let embedded = self.relative.as_mut().map(|r| r.forward(params, input.longest)).transpose()?;
        let relative = relative_pass(&self.relative, &embedded, None);
        let (acts, outs) = (if keep && !recompute { n } else { 1 }, if keep { n } else { 1 });
        self.acts.resize_with(self.acts.len().max(acts), Activations::default);
        self.outs.resize_with(self.outs.len().max(outs), Output::default);
        let mut stream = Stream { x, residual: None };
        for (i, layer) in self.layers.iter().enumerate() {
            let (acts, out) = (&mut self.acts[i.min(acts - 1)], &mut self.outs[i.min(outs - 1)]);
            let pass = Pass { bias, relative, ..input.pass(i, config, &self.rotary) };
            stream = layer.forward(params, &stream, &pass, acts, out)?;
        }
        if read == Read::Mean {
            let mean = self.mean.view(input.cu_seqlens.len() - 1, config.layer.hidden, params.space())?;
            mean_rows(&mean, &stream.x, &input.cu_seqlens)?;
            stream.x = mean;
        }
        self.input = keep.then_some(input);
        Ok(stream.x)
    }

    /// Gradients of all parameters that learn, from `grad`, the gradient of the last [`Self::forward`]'s result. They overwrite the
    /// gradient arena, or add to it if `accumulate`.
    pub fn backward(&mut self, params: &mut Params, grad: &Tensor, accumulate: bool) -> Result<()> {
        let Some(input) = self.input.take() else {
            return Err(Error::Failed("backward without a forward pass that kept its activations".into()));
        };
        let (n, tokens, shape) = (self.layers.len(), input.ids.len(), &self.config.layer);
        let embedded = self.embeddings.output(params, tokens)?;
        let mut grad = Stream { x: grad.clone(), residual: None };
        if input.read == Read::Mean {
            let spread = self.spread.view(tokens, shape.hidden, params.space())?;
            mean_rows_backward(&spread, &grad.x, &input.cu_seqlens)?;
            grad.x = spread;
        }
        let trains_embeddings = params.trains(self.embeddings.range());
        let bias = match &mut self.bias {
            Some(table) => {
                let grad = params.trains(table.range()).then(|| table.begin_backward(params, input.longest));
                Some((table.forward(params, input.longest)?, grad.transpose()?))
            }
            None => None,
        };
        let bias = bias.as_ref().map(|(values, grad)| PassBias { values, grad: grad.as_ref() });
        let bias_grad = bias.and_then(|b| b.grad);
        let positions = match &mut self.relative {
            Some(table) => {
                let positions = table.forward(params, input.longest)?;
                let grad = params.trains(table.range()).then(|| table.begin_backward(params));
                (Some(positions), grad.transpose()?)
            }
            None => (None, None),
        };
        let relative = relative_pass(&self.relative, &positions.0, positions.1.as_ref());
        // Below the first part that learns nobody reads a gradient.
        let trains_all = trains_embeddings || bias_grad.is_some() || positions.1.is_some();
        let lowest = (0..n).find(|i| trains_all || params.trains(self.layers[*i].range())).unwrap_or(n);
        for i in (lowest..n).rev() {
            let below = match i.checked_sub(1) {
                Some(below) => self.outs[below].stream(shape, tokens, params.space())?,
                None => Stream { x: embedded.clone(), residual: None },
            };
            let learns_below = trains_embeddings || i > lowest;
            let pass = Pass { learns_below, bias, relative, ..input.pass(i, &self.config, &self.rotary) };
            let acts = &mut self.acts[if input.recompute { 0 } else { i }];
            // The last layer's are still there.
            if input.recompute && i + 1 < n {
                self.layers[i].forward(params, &below, &pass, acts, &mut self.outs[i])?;
            }
            // A layer that shares its parameters with one above adds to that one's gradients.
            let accumulate = accumulate || self.layers[i + 1..].iter().any(|l| l.range() == self.layers[i].range());
            let (out, scratch) = (&mut self.outs[i], &mut self.scratch);
            grad = self.layers[i].backward(params, &below.x, &grad, &pass, acts, out, scratch, accumulate)?;
        }
        if let (Some(table), Some(sums)) = (&self.bias, bias_grad) {
            table.backward(params, sums, accumulate)?;
        }
        if let (Some(table), Some(sums)) = (&mut self.relative, &positions.1) {
            table.backward(params, sums, accumulate)?;
        }
        if !trains_embeddings {
            return Ok(());
        }
        let dropout = input.embedding_dropout(self.config.embedding_dropout);
        Ok(self.embeddings.backward(params, &grad.x, input.index(), dropout, &mut self.scratch, accumulate)?)
    }
}

/// Relative positions as the layers see them.
fn relative_pass<'a>(
    table: &'a Option<RelativeTable>,
    embeddings: &'a Option<Tensor>,
    grad: Option<&'a Tensor>,
) -> Option<PassRelative<'a>> {
    let (table, embeddings) = (table.as_ref()?, embeddings.as_ref()?);
    Some(PassRelative { embeddings, grad, distances: table.distances() })
}
