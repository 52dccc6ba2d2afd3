//! The transformer layer of BERT (Devlin et al. 2019), forward and backward written out over fused ops. Where norms stand
//! first (Xiong et al. 2020) a residual sum is followed by the norm of what comes next, so the sequence of ops is the same:
//! only what the next residual sum begins with differs ([`Stream`]).
//!
//! Shapes: `x: [tokens, hidden]`. When only some tokens are read above (a classifier reads `[CLS]`), the last layer computes
//! keys and values for all tokens and everything else for those `queries` rows only.

mod backward;

pub use backward::Scratch;
pub(super) use backward::weight_grad;

use super::convolution::{Convolution, ConvolutionActivations};
use super::layer_shape::{LayerNames, LayerShape};
use super::params::{Init, Layout, Params};
use super::relative::{PassRelative, RelativeActivations, RelativeProjections};
use super::workspace::{Buffer, Space};
use crate::ops::attention::{AttentionSpec, DistanceBias, Projections, attention};
use crate::ops::disentangled::{DisentangledSpec, disentangled_attention};
use crate::ops::dropout::Dropout;
use crate::ops::gated::gated;
use crate::ops::gemm::{Weight, linear, linear_act};
use crate::ops::index::Index;
use crate::ops::layer_norm::residual_norm;
use crate::ops::rotary::rotate;
use crate::ops::rows::gather_rows;
use crate::rng::PassKey;
use candle_core::{Result, Tensor};
use std::ops::Range;

/// Which tokens the layers above read.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Their rows in the packed batch, `[queries]`, ascending.
    pub index: Index,
    /// Their positions in their rows, `[queries]`.
    pub positions: Index,
    /// Prefix sums of the rows' query counts, `[batch + 1]`.
    pub cu_queries: Vec<u32>,
}

/// A pass over one packed batch.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Prefix sums of the rows' lengths, `[batch + 1]`.
    pub cu_seqlens: &'a [u32],
    /// `None`: every token goes on.
    pub selection: Option<&'a Selection>,
    /// Dropout is live exactly when there is a key.
    pub key: Option<PassKey>,
    /// Whether anything below this layer learns, so that the backward pass must find the input's gradient.
    pub learns_below: bool,
    /// What all layers add to their scores.
    pub bias: Option<PassBias<'a>>,
    /// How far from a query its layer sees keys, if not everywhere.
    pub window: Option<usize>,
    /// By what the layer turns its queries and keys.
    pub rotary: Option<PassRotary<'a>>,
    /// What layers that attend by relative positions read.
    pub relative: Option<PassRelative<'a>>,
}

/// Rotary position embedding ([`super::rotary`]).
#[derive(Debug, Clone, Copy)]
pub struct PassRotary<'a> {
    /// `[positions, head_dim]`
    pub table: &'a Tensor,
    /// Of every token, `[tokens]`.
    pub positions: &'a Index,
}

/// A bias of the scores by distance ([`super::distance_bias`]).
#[derive(Debug, Clone, Copy)]
pub struct PassBias<'a> {
    /// `[heads, 2·reach + 1]`
    pub values: &'a Tensor,
    /// Where the backward pass adds up their gradient, if they learn.
    pub grad: Option<&'a Tensor>,
}

impl Pass<'_> {
    /// The dropout of a site of this pass.
    pub fn dropout(&self, p: f32, site: u64) -> Dropout {
        self.key.map_or(Dropout::OFF, |k| Dropout::new(p, k.site(site)))
    }
}

/// What stands between two layers, or its gradient.
#[derive(Debug, Clone)]
pub struct Stream {
    /// What the next layer's projections read, `[tokens, hidden]`.
    pub x: Tensor,
    /// What its residual sum begins with, where that is not `x`: the sum in front of the norm.
    pub residual: Option<Tensor>,
}

/// What a layer leaves for the next; evaluation shares one among all layers.
#[derive(Debug, Default)]
pub struct Output {
    x: Buffer,
    residual: Buffer,
}

impl Output {
    /// The normed output `[tokens, hidden]`, as the last forward pass over so many tokens left it.
    pub fn stream(&mut self, shape: &LayerShape, tokens: usize, space: Space<'_>) -> Result<Stream> {
        let residual = shape.form.pre_norm.then(|| self.residual.view(tokens, shape.hidden, space)).transpose()?;
        Ok(Stream { x: self.x.view(tokens, shape.hidden, space)?, residual })
    }
}

/// Places of one layer's parameters in the arenas.
#[derive(Debug, Clone, Copy)]
struct Offsets {
    qkv_weight: usize,
    qkv_bias: usize,
    output_weight: usize,
    /// bias, gamma, beta
    output_norm: usize,
    up_weight: usize,
    up_bias: usize,
    down_weight: usize,
    /// bias, gamma, beta
    down_norm: usize,
}

/// One layer.
#[derive(Debug, Clone)]
pub struct Layer {
    shape: LayerShape,
    at: Offsets,
    relative: Option<RelativeProjections>,
    convolution: Option<Convolution>,
    /// Where its part of the arenas ends.
    end: usize,
    /// Number of the layer; names its dropout sites.
    number: u64,
}

/// What a layer's forward pass leaves for its backward pass, beside its output. Evaluation shares one of these among all
/// layers, and so does training that computes them again in the backward pass.
#[derive(Debug, Default)]
pub struct Activations {
    /// `[tokens, 3·hidden]`, or `[tokens, 2·hidden]` (key, value) with a selection.
    qkv: Buffer,
    /// The selected rows of the input and their queries, `[queries, hidden]` each.
    picked: Buffer,
    q: Buffer,
    /// The selected rows of the residual, where it is not the input.
    picked_residual: Buffer,
    relative: RelativeActivations,
    context: Buffer,
    sum1: Buffer,
    norm1: Buffer,
    up: Buffer,
    inner: Buffer,
    /// Where the norm stands first the sum is part of the [`Output`].
    sum2: Buffer,
    convolution: ConvolutionActivations,
}

/// Dropout sites a layer has.
const SITES: u64 = 4;
/// The site of a layer's relative positions is this and its number.
const POSITION_SITES: u64 = 1 << 32;
/// The site of a layer's convolution is this and its number.
const CONVOLUTION_SITES: u64 = 2 << 32;

impl Layer {
    /// Lays out the parameters of layer `number`.
    pub fn new(layout: &mut Layout, shape: &LayerShape, names: &LayerNames, number: usize) -> Self {
        let (h, i, form, n) = (shape.hidden, shape.inner, &shape.form, names);
        let weight = |n: &str, out: usize, inp: usize| (format!("{n}.weight"), vec![out, inp], Init::Normal);
        let bias = |n: &str, out: usize, is_there: bool| {
            (format!("{n}.bias"), vec![out], if is_there { Init::Zeros } else { Init::Absent })
        };
        let gamma = |n: &str| (format!("{n}.weight"), vec![h], Init::Ones);
        let width = 3 * h / n.projections.len();
        let weights: Vec<_> = n.projections.iter().map(|n| weight(n, width, h)).collect();
        let biases: Vec<_> = n.projections.iter().map(|n| bias(n, width, form.attention_bias)).collect();
        let at = Offsets {
            qkv_weight: layout.block(&weights),
            qkv_bias: layout.block(&biases),
            output_weight: layout.block(&[weight(&n.attention_output, h, h)]),
            output_norm: layout.block(&[
                bias(&n.attention_output, h, form.attention_bias),
                gamma(&n.attention_norm),
                bias(&n.attention_norm, h, form.norm_bias),
            ]),
            up_weight: layout.block(&[weight(&n.up, shape.up(), h)]),
            up_bias: layout.block(&[bias(&n.up, shape.up(), form.feed_forward_bias)]),
            down_weight: layout.block(&[weight(&n.down, h, i)]),
            down_norm: layout.block(&[
                bias(&n.down, h, form.feed_forward_bias),
                gamma(&n.output_norm),
                bias(&n.output_norm, h, form.norm_bias),
            ]),
        };
        let content = [at.qkv_weight, at.qkv_bias];
        let relative = form.relative.map(|form| RelativeProjections::new(layout, form, h, &n.positions, content));
        let convolution = form.convolution.zip(n.convolution.as_ref());
        let convolution = convolution.map(|(form, name)| Convolution::new(layout, form, h, name));
        let end = layout.arena_len();
        Self { shape: shape.clone(), at, relative, convolution, end, number: number as u64 }
    }

    /// This layer once more, as layer `number`: the same parameters, dropout of its own.
    pub fn again(&self, number: usize) -> Self {
        Self { number: number as u64, ..self.clone() }
    }

    /// The layer's part of the arenas.
    pub fn range(&self) -> Range<usize> {
        self.at.qkv_weight..self.end
    }

    /// The norm behind the second sum, where norms stand first: it is the layer's above, or comes after the last.
    pub fn norm_above(&self) -> Option<Range<usize>> {
        self.shape.form.pre_norm.then(|| self.at.down_norm + self.shape.hidden..self.range().end)
    }

    fn dropouts(&self, pass: &Pass<'_>) -> [Dropout; 4] {
        let site = self.number * SITES;
        [
            pass.dropout(self.shape.attention_dropout, site),
            pass.dropout(self.shape.hidden_dropout[0], site + 1),
            pass.dropout(self.shape.hidden_dropout[1], site + 2),
            pass.dropout(self.shape.form.inner_dropout, site + 3),
        ]
    }

    /// The projections of this pass as views of the kept activations.
    fn projections(
        &self,
        acts: &mut Activations,
        pass: &Pass<'_>,
        space: Space<'_>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let h = self.shape.hidden;
        let tokens = tokens(pass.cu_seqlens);
        Ok(match pass.selection {
            None => {
                let qkv = acts.qkv.view(tokens, 3 * h, space)?;
                (qkv.narrow(1, 0, h)?, qkv.narrow(1, h, h)?, qkv.narrow(1, 2 * h, h)?)
            }
            Some(s) => {
                let kv = acts.qkv.view(tokens, 2 * h, space)?;
                (acts.q.view(tokens_of(s), h, space)?, kv.narrow(1, 0, h)?, kv.narrow(1, h, h)?)
            }
        })
    }

    /// From `[tokens, hidden]` to `[tokens, hidden]`, or `[queries, hidden]` with a selection, in `out`.
    pub fn forward(
        &self,
        params: &Params,
        input: &Stream,
        pass: &Pass<'_>,
        acts: &mut Activations,
        out: &mut Output,
    ) -> Result<Stream> {
        let (shape, space, at) = (&self.shape, params.space(), &self.at);
        let (h, inner, form) = (shape.hidden, shape.inner, &shape.form);
        let [_, drop_1, drop_2, drop_inner] = self.dropouts(pass);
        let (n, residual) = self.project(params, input, pass, acts)?;
        let (q, k, v) = self.projections(acts, pass, space)?;
        let context = acts.context.view(n, h, space)?;
        self.attend(params, &context, Projections { q: &q, k: &k, v: &v }, pass, acts)?;

        let (sum1, norm1) = (acts.sum1.view(n, h, space)?, acts.norm1.view(n, h, space)?);
        linear(&sum1, &context, &params.linear(at.output_weight, h, h)?, None)?;
        residual_norm(&sum1, &norm1, &residual, &params.weight(at.output_norm, &[3, h])?, shape.eps, drop_1)?;

        let (up, g) = (acts.up.view(n, shape.up(), space)?, acts.inner.view(n, inner, space)?);
        let (up_weight, up_bias) =
            (params.linear(at.up_weight, shape.up(), h)?, params.weight(at.up_bias, &[shape.up()])?);
        if form.gated {
            linear(&up, &norm1, &up_weight, form.feed_forward_bias.then_some(&up_bias))?;
            gated(&g, &up, shape.act, drop_inner)?;
        } else {
            linear_act(&up, &g, &norm1, &up_weight, &up_bias, shape.act)?;
        }

        let (sum2, x) = (self.sum2(acts, out, n, space)?, out.x.view(n, h, space)?);
        let own = if self.convolution.is_some() { acts.convolution.residual(n, h, space)? } else { x.clone() };
        linear(&sum2, &g, &params.linear(at.down_weight, h, inner)?, None)?;
        let residual = if form.pre_norm { &sum1 } else { &norm1 };
        residual_norm(&sum2, &own, residual, &params.weight(at.down_norm, &[3, h])?, shape.eps, drop_2)?;
        if let Some(convolution) = &self.convolution {
            let drop = self.convolution_dropout(pass);
            convolution.forward(params, [&input.x, &own, &x], pass, (drop, shape.eps), &mut acts.convolution)?;
        }
        Ok(Stream { x, residual: form.pre_norm.then_some(sum2) })
    }

    /// The second residual sum.
    fn sum2(&self, acts: &mut Activations, out: &mut Output, n: usize, space: Space<'_>) -> Result<Tensor> {
        let buffer = if self.shape.form.pre_norm { &mut out.residual } else { &mut acts.sum2 };
        buffer.view(n, self.shape.hidden, space)
    }

    /// Computes the projections; gives how many rows go on, and their residual.
    fn project(
        &self,
        params: &Params,
        input: &Stream,
        pass: &Pass<'_>,
        acts: &mut Activations,
    ) -> Result<(usize, Tensor)> {
        let (h, space, at) = (self.shape.hidden, params.space(), &self.at);
        let (tokens, x) = (tokens(pass.cu_seqlens), &input.x);
        let b = params.weight(at.qkv_bias, &[3 * h])?;
        let bias = |from: usize, len: usize| self.shape.form.attention_bias.then(|| b.narrow(0, from, len)).transpose();
        let Some(s) = pass.selection else {
            let qkv = acts.qkv.view(tokens, 3 * h, space)?;
            linear(&qkv, x, &params.linear(at.qkv_weight, 3 * h, h)?, bias(0, 3 * h)?.as_ref())?;
            self.turn(&qkv.narrow(1, 0, 2 * h)?, pass.rotary.map(|r| r.positions), pass, false)?;
            return Ok((tokens, input.residual.clone().unwrap_or_else(|| x.clone())));
        };
        let n = tokens_of(s);
        let (kv, picked, q) =
            (acts.qkv.view(tokens, 2 * h, space)?, acts.picked.view(n, h, space)?, acts.q.view(n, h, space)?);
        let [wq, wkv] = self.query_and_key_value(params)?;
        linear(&kv, x, &wkv, bias(h, 2 * h)?.as_ref())?;
        gather_rows(&picked, x, &s.index)?;
        linear(&q, &picked, &wq, bias(0, h)?.as_ref())?;
        self.turn(&kv.narrow(1, 0, h)?, pass.rotary.map(|r| r.positions), pass, false)?;
        self.turn(&q, Some(&s.positions), pass, false)?;
        let Some(residual) = &input.residual else { return Ok((n, picked)) };
        let picked = acts.picked_residual.view(n, h, space)?;
        gather_rows(&picked, residual, &s.index)?;
        Ok((n, picked))
    }

    /// Turns heads by their positions, or their gradients back.
    fn turn(&self, x: &Tensor, positions: Option<&Index>, pass: &Pass<'_>, back: bool) -> Result<()> {
        match (pass.rotary, positions) {
            (Some(rotary), Some(positions)) => rotate(x, rotary.table, positions, back),
            _ => Ok(()),
        }
    }

    /// The parts of the joint projection that a layer with a selection applies to different rows.
    fn query_and_key_value(&self, params: &Params) -> Result<[Weight; 2]> {
        let (h, at) = (self.shape.hidden, self.at.qkv_weight);
        Ok([params.linear(at, h, h)?, params.linear(at + h * h, 2 * h, h)?])
    }

    /// From queries, keys and values to the context.
    fn attend(
        &self,
        params: &Params,
        context: &Tensor,
        projections: Projections<'_>,
        pass: &Pass<'_>,
        acts: &mut Activations,
    ) -> Result<()> {
        let spec = self.attention_spec(pass);
        let (Some(relative), Some(from)) = (&self.relative, &pass.relative) else {
            return attention(context, projections, spec);
        };
        let positions = relative.forward(params, from, self.position_dropout(pass), &mut acts.relative)?;
        disentangled_attention(context, projections, &positions, disentangled(spec, relative, from))
    }

    /// The dropout of the relative positions before their projection.
    fn position_dropout(&self, pass: &Pass<'_>) -> Dropout {
        pass.dropout(self.shape.hidden_dropout[0], POSITION_SITES + self.number)
    }

    /// The dropout before the convolution's activation.
    fn convolution_dropout(&self, pass: &Pass<'_>) -> Dropout {
        pass.dropout(self.shape.hidden_dropout[1], CONVOLUTION_SITES + self.number)
    }

    fn attention_spec<'a>(&self, pass: &Pass<'a>) -> AttentionSpec<'a> {
        let [dropout, ..] = self.dropouts(pass);
        AttentionSpec {
            cu_queries: pass.selection.map_or(pass.cu_seqlens, |s| &s.cu_queries),
            bias: pass.bias.map(|b| DistanceBias { values: b.values, grad: b.grad }),
            window: pass.window,
            queries: pass.selection.map(|s| &s.index),
            ..AttentionSpec::plain(pass.cu_seqlens, self.shape.heads, dropout)
        }
    }
}

fn disentangled<'a>(
    attention: AttentionSpec<'a>,
    relative: &RelativeProjections,
    from: &PassRelative<'a>,
) -> DisentangledSpec<'a> {
    DisentangledSpec {
        attention,
        distances: from.distances,
        content_to_position: relative.form.content_to_position,
        position_to_content: relative.form.position_to_content,
    }
}

fn tokens(cu_seqlens: &[u32]) -> usize {
    cu_seqlens.last().map_or(0, |&n| n as usize)
}

fn tokens_of(s: &Selection) -> usize {
    tokens(&s.cu_queries)
}
