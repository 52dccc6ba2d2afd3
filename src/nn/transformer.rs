//! The post-norm transformer layer of BERT (Devlin et al. 2019), forward and backward written out over fused ops.
//!
//! Shapes: `x: [tokens, hidden]`. When only some tokens are read above (a classifier reads `[CLS]`), the last layer computes
//! keys and values for all tokens and everything else for those `queries` rows only.

use super::params::{Init, Layout, Params};
use super::workspace::{Buffer, Space};
use crate::ops::attention::{AttentionSpec, DistanceBias, ProjectionGrads, Projections, attention, attention_backward};
use crate::ops::bias::bias_grad;
use crate::ops::dropout::Dropout;
use crate::ops::gelu::Activation;
use crate::ops::gemm::{Weight, linear, linear_act, linear_act_backward, linear_input_grad, linear_weight_grad};
use crate::ops::layer_norm::{ResidualNormGrads, residual_norm, residual_norm_backward};
use crate::ops::rows::{add_rows, gather_rows};
use crate::rng::PassKey;
use candle_core::{Result, Tensor};
use std::ops::Range;

/// Sizes and rates that all layers of an encoder share.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerShape {
    pub hidden: usize,
    pub heads: usize,
    /// Width of the feed-forward part.
    pub inner: usize,
    pub act: Activation,
    pub eps: f32,
    /// Dropout after the attention and after the feed-forward part.
    pub hidden_dropout: [f32; 2],
    /// Dropout on attention probabilities.
    pub attention_dropout: f32,
}

/// Checkpoint names of one layer's modules, each with `.weight` and `.bias`. Layers of the same names are one: they share
/// their parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNames {
    /// The module that all of them lie in.
    pub module: String,
    pub query: String,
    pub key: String,
    pub value: String,
    pub attention_output: String,
    pub attention_norm: String,
    pub up: String,
    pub down: String,
    pub output_norm: String,
}

impl LayerNames {
    /// From names inside `module`: query, key and value; the attention's output and norm; the feed-forward part's two layers
    /// and norm.
    pub fn new(module: &str, projections: [&str; 3], attention: [&str; 2], feed_forward: [&str; 3]) -> Self {
        let inside = |name: &str| format!("{module}.{name}");
        let [query, key, value] = projections.map(inside);
        let ([attention_output, attention_norm], [up, down, output_norm]) =
            (attention.map(inside), feed_forward.map(inside));
        let module = module.to_owned();
        Self { module, query, key, value, attention_output, attention_norm, up, down, output_norm }
    }
}

/// Which tokens the layers above read.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Their rows in the packed batch, u32 `[queries]`, ascending.
    pub index: Tensor,
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
    context: Buffer,
    sum1: Buffer,
    norm1: Buffer,
    up: Buffer,
    inner: Buffer,
    sum2: Buffer,
}

/// Buffers of the backward pass, shared by all layers.
#[derive(Debug, Default)]
pub struct Scratch {
    a: Buffer,
    branch: Buffer,
    c: Buffer,
    inner: Buffer,
    qkv: Buffer,
    q: Buffer,
    /// The gradient of the input of a layer with a selection.
    full: Buffer,
}

impl Scratch {
    /// A buffer that is free once the backward pass of all layers is done.
    pub fn spare(&mut self, rows: usize, hidden: usize, space: Space<'_>) -> Result<Tensor> {
        self.branch.view(rows, hidden, space)
    }
}

/// Values that [`Activations`] holds for `tokens` of which `queries` are read above.
pub fn activation_len(shape: &LayerShape, tokens: usize, queries: usize) -> usize {
    let (h, i) = (shape.hidden, shape.inner);
    let projections = if queries == tokens { 3 * h * tokens } else { 2 * h * tokens + 2 * h * queries };
    projections + (4 * h + 2 * i) * queries
}

/// Values that [`Scratch`] holds for passes over `tokens`.
pub fn scratch_len(shape: &LayerShape, tokens: usize) -> usize {
    (7 * shape.hidden + shape.inner) * tokens
}

/// Dropout sites a layer has, rounded up.
const SITES: u64 = 4;

impl Layer {
    /// Lays out the parameters of layer `number`.
    pub fn new(layout: &mut Layout, shape: &LayerShape, names: &LayerNames, number: usize) -> Self {
        let (h, i) = (shape.hidden, shape.inner);
        let weight = |n: &str, out: usize, inp: usize| (format!("{n}.weight"), vec![out, inp], Init::Normal);
        let bias = |n: &str, out: usize| (format!("{n}.bias"), vec![out], Init::Zeros);
        let gamma = |n: &str| (format!("{n}.weight"), vec![h], Init::Ones);
        let n = names;
        let at = Offsets {
            qkv_weight: layout.block(&[weight(&n.query, h, h), weight(&n.key, h, h), weight(&n.value, h, h)]),
            qkv_bias: layout.block(&[bias(&n.query, h), bias(&n.key, h), bias(&n.value, h)]),
            output_weight: layout.block(&[weight(&n.attention_output, h, h)]),
            output_norm: layout.block(&[
                bias(&n.attention_output, h),
                gamma(&n.attention_norm),
                bias(&n.attention_norm, h),
            ]),
            up_weight: layout.block(&[weight(&n.up, i, h)]),
            up_bias: layout.block(&[bias(&n.up, i)]),
            down_weight: layout.block(&[weight(&n.down, h, i)]),
            down_norm: layout.block(&[bias(&n.down, h), gamma(&n.output_norm), bias(&n.output_norm, h)]),
        };
        Self { shape: shape.clone(), at, number: number as u64 }
    }

    /// This layer once more, as layer `number`: the same parameters, dropout of its own.
    pub fn again(&self, number: usize) -> Self {
        Self { number: number as u64, ..self.clone() }
    }

    /// The layer's part of the arenas.
    pub fn range(&self) -> Range<usize> {
        self.at.qkv_weight..self.at.down_norm + 3 * self.shape.hidden
    }

    fn dropouts(&self, pass: &Pass<'_>) -> [Dropout; 3] {
        let site = self.number * SITES;
        [
            pass.dropout(self.shape.attention_dropout, site),
            pass.dropout(self.shape.hidden_dropout[0], site + 1),
            pass.dropout(self.shape.hidden_dropout[1], site + 2),
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

    /// `x: [tokens, hidden]` to `[tokens, hidden]`, or `[queries, hidden]` with a selection, in `out`.
    pub fn forward(
        &self,
        params: &Params,
        x: &Tensor,
        pass: &Pass<'_>,
        acts: &mut Activations,
        out: &mut Buffer,
    ) -> Result<Tensor> {
        let (h, inner, space, at) = (self.shape.hidden, self.shape.inner, params.space(), &self.at);
        let [drop_p, drop_1, drop_2] = self.dropouts(pass);
        let tokens = tokens(pass.cu_seqlens);
        let b = params.weight(at.qkv_bias, &[3 * h])?;
        let (n, residual) = match pass.selection {
            None => {
                let qkv = acts.qkv.view(tokens, 3 * h, space)?;
                linear(&qkv, x, &params.linear(at.qkv_weight, 3 * h, h)?, Some(&b))?;
                (tokens, x.clone())
            }
            Some(s) => {
                let n = tokens_of(s);
                let (kv, picked, q) =
                    (acts.qkv.view(tokens, 2 * h, space)?, acts.picked.view(n, h, space)?, acts.q.view(n, h, space)?);
                let [wq, wkv] = self.query_and_key_value(params)?;
                linear(&kv, x, &wkv, Some(&b.narrow(0, h, 2 * h)?))?;
                gather_rows(&picked, x, &s.index)?;
                linear(&q, &picked, &wq, Some(&b.narrow(0, 0, h)?))?;
                (n, picked)
            }
        };
        let (q, k, v) = self.projections(acts, pass, space)?;
        let context = acts.context.view(n, h, space)?;
        attention(&context, Projections { q: &q, k: &k, v: &v }, self.attention_spec(pass, drop_p))?;

        let (sum1, norm1) = (acts.sum1.view(n, h, space)?, acts.norm1.view(n, h, space)?);
        linear(&sum1, &context, &params.linear(at.output_weight, h, h)?, None)?;
        residual_norm(&sum1, &norm1, &residual, &params.weight(at.output_norm, &[3, h])?, self.shape.eps, drop_1)?;

        let (up, g) = (acts.up.view(n, inner, space)?, acts.inner.view(n, inner, space)?);
        let up_bias = params.weight(at.up_bias, &[inner])?;
        linear_act(&up, &g, &norm1, &params.linear(at.up_weight, inner, h)?, &up_bias, self.shape.act)?;

        let (sum2, out) = (acts.sum2.view(n, h, space)?, out.view(n, h, space)?);
        linear(&sum2, &g, &params.linear(at.down_weight, h, inner)?, None)?;
        residual_norm(&sum2, &out, &norm1, &params.weight(at.down_norm, &[3, h])?, self.shape.eps, drop_2)?;
        Ok(out)
    }

    /// The parts of the joint projection that a layer with a selection applies to different rows.
    fn query_and_key_value(&self, params: &Params) -> Result<[Weight; 2]> {
        let (h, at) = (self.shape.hidden, self.at.qkv_weight);
        Ok([params.linear(at, h, h)?, params.linear(at + h * h, 2 * h, h)?])
    }

    fn attention_spec<'a>(&self, pass: &Pass<'a>, dropout: Dropout) -> AttentionSpec<'a> {
        let cu_queries = pass.selection.map_or(pass.cu_seqlens, |s| &s.cu_queries);
        let queries = pass.selection.map(|s| &s.index);
        let bias = pass.bias.map(|b| DistanceBias { values: b.values, grad: b.grad, queries });
        AttentionSpec { cu_queries, cu_keys: pass.cu_seqlens, heads: self.shape.heads, dropout, bias }
    }

    /// From the gradient of the output to that of `x`, the forward pass's input, if anything below learns. Parameter gradients are overwritten, or
    /// added to if `accumulate`.
    pub fn backward(
        &self,
        params: &Params,
        x: &Tensor,
        dout: &Tensor,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<Tensor> {
        let (h, inner, space, at) = (self.shape.hidden, self.shape.inner, params.space(), &self.at);
        let [drop_p, drop_1, drop_2] = self.dropouts(pass);
        let n = dout.dim(0)?;
        let (a, branch, c) =
            (scratch.a.view(n, h, space)?, scratch.branch.view(n, h, space)?, scratch.c.view(n, h, space)?);
        let (norm1, up, g) =
            (acts.norm1.view(n, h, space)?, acts.up.view(n, inner, space)?, acts.inner.view(n, inner, space)?);

        let out = ResidualNormGrads { ds: &a, dbranch: &branch, dparams: &params.grad(at.down_norm, &[3, h])? };
        let sum2 = acts.sum2.view(n, h, space)?;
        residual_norm_backward(
            out,
            dout,
            &sum2,
            &params.weight(at.down_norm, &[3, h])?,
            self.shape.eps,
            drop_2,
            accumulate,
        )?;
        weight_grad(params, at.down_weight, &branch, &g, accumulate)?;
        let (dup, dup_bias) = (scratch.inner.view(n, inner, space)?, params.grad(at.up_bias, &[inner])?);
        let down = params.linear(at.down_weight, h, inner)?;
        linear_act_backward(&dup, &dup_bias, &branch, &down, &up, self.shape.act, accumulate)?;
        weight_grad(params, at.up_weight, &dup, &norm1, accumulate)?;
        linear_input_grad(&a, &dup, &params.linear(at.up_weight, inner, h)?, true)?;

        let out = ResidualNormGrads { ds: &c, dbranch: &branch, dparams: &params.grad(at.output_norm, &[3, h])? };
        let sum1 = acts.sum1.view(n, h, space)?;
        residual_norm_backward(
            out,
            &a,
            &sum1,
            &params.weight(at.output_norm, &[3, h])?,
            self.shape.eps,
            drop_1,
            accumulate,
        )?;
        let context = acts.context.view(n, h, space)?;
        weight_grad(params, at.output_weight, &branch, &context, accumulate)?;
        linear_input_grad(&a, &branch, &params.linear(at.output_weight, h, h)?, false)?;

        self.attention_backward(params, x, &a, &c, pass, drop_p, acts, scratch, accumulate)
    }

    /// The part below the context: `dcontext` and the residual's gradient `dresidual` to the input's gradient.
    fn attention_backward(
        &self,
        params: &Params,
        x: &Tensor,
        dcontext: &Tensor,
        dresidual: &Tensor,
        pass: &Pass<'_>,
        drop: Dropout,
        acts: &mut Activations,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<Tensor> {
        let (h, space, at) = (self.shape.hidden, params.space(), &self.at);
        let (tokens, n) = (tokens(pass.cu_seqlens), dcontext.dim(0)?);
        let (q, k, v) = self.projections(acts, pass, space)?;
        let (projections, spec) = (Projections { q: &q, k: &k, v: &v }, self.attention_spec(pass, drop));
        let db = params.grad(at.qkv_bias, &[3 * h])?;
        let Some(selection) = pass.selection else {
            let dqkv = scratch.qkv.view(tokens, 3 * h, space)?;
            attention_backward(ProjectionGrads::Fused(&dqkv), dcontext, projections, spec)?;
            bias_grad(&db, &dqkv, accumulate)?;
            weight_grad(params, at.qkv_weight, &dqkv, x, accumulate)?;
            if pass.learns_below {
                linear_input_grad(dresidual, &dqkv, &params.linear(at.qkv_weight, 3 * h, h)?, true)?;
            }
            return Ok(dresidual.clone());
        };
        let (dq, dkv) = (scratch.q.view(n, h, space)?, scratch.qkv.view(tokens, 2 * h, space)?);
        attention_backward(ProjectionGrads::Split { dq: &dq, dkv: &dkv }, dcontext, projections, spec)?;
        bias_grad(&db.narrow(0, 0, h)?, &dq, accumulate)?;
        bias_grad(&db.narrow(0, h, 2 * h)?, &dkv, accumulate)?;
        weight_grad(params, at.qkv_weight, &dq, &acts.picked.view(n, h, space)?, accumulate)?;
        weight_grad(params, at.qkv_weight + h * h, &dkv, x, accumulate)?;
        let dx = scratch.full.view(tokens, h, space)?;
        if !pass.learns_below {
            return Ok(dx);
        }
        let [wq, wkv] = self.query_and_key_value(params)?;
        linear_input_grad(&dx, &dkv, &wkv, false)?;
        linear_input_grad(dresidual, &dq, &wq, true)?;
        add_rows(&dx, dresidual, &selection.index)?;
        Ok(dx)
    }
}

/// The gradient of the weight at `offset`, if it learns.
pub(super) fn weight_grad(params: &Params, offset: usize, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    let (out, inp) = (dy.dim(1)?, x.dim(1)?);
    if !params.trains(offset..offset + out * inp) {
        return Ok(());
    }
    linear_weight_grad(&params.grad(offset, &[out, inp])?, dy, x, accumulate)
}

fn tokens(cu_seqlens: &[u32]) -> usize {
    cu_seqlens.last().map_or(0, |&n| n as usize)
}

fn tokens_of(s: &Selection) -> usize {
    tokens(&s.cu_queries)
}
