//! The backward pass of a layer: each op of its forward pass, from the last to the first.

use super::{Activations, Layer, Output, Pass, Stream, disentangled, tokens};
use crate::nn::convolution::ConvolutionScratch;
use crate::nn::params::Params;
use crate::nn::relative::RelativeScratch;
use crate::nn::workspace::{Buffer, Space};
use crate::ops::attention::{ProjectionGrads, Projections, attention_backward};
use crate::ops::bias::bias_grad;
use crate::ops::disentangled::disentangled_attention_backward;
use crate::ops::dropout::Dropout;
use crate::ops::gated::gated_backward;
use crate::ops::gemm::{linear_act_backward, linear_input_grad, linear_weight_grad};
use crate::ops::layer_norm::{ResidualNormGrads, residual_norm_backward, residual_norm_backward_onto};
use crate::ops::rows::add_rows;
use candle_core::{Result, Tensor};

/// Buffers of the backward pass, shared by all layers.
#[derive(Debug, Default)]
pub struct Scratch {
    a: Buffer,
    branch: Buffer,
    c: Buffer,
    d: Buffer,
    inner: Buffer,
    gate: Buffer,
    qkv: Buffer,
    q: Buffer,
    /// The gradients of the input of a layer with a selection, and of its residual.
    full: Buffer,
    full_residual: Buffer,
    relative: RelativeScratch,
    convolution: ConvolutionScratch,
}

impl Scratch {
    /// A buffer that is free once the backward pass of all layers is done.
    pub fn spare(&mut self, rows: usize, hidden: usize, space: Space<'_>) -> Result<Tensor> {
        self.branch.view(rows, hidden, space)
    }
}

impl Layer {
    /// Whether the backward pass finds anything that is asked for in front of the parameters at `place`.
    fn learns_before(&self, params: &Params, pass: &Pass<'_>, place: usize) -> bool {
        let learns_bias = pass.bias.is_some_and(|bias| bias.grad.is_some());
        let learns_positions = pass.relative.is_some_and(|relative| relative.grad.is_some());
        let learns_projections = self.relative.as_ref().is_some_and(|relative| params.trains(relative.range()));
        let learns_beside = learns_bias || learns_positions || learns_projections;
        pass.learns_below || learns_beside || params.trains(self.at.qkv_weight..place)
    }

    /// From the gradient of the output to that of the input `x`, if anything below learns. Parameter gradients are overwritten,
    /// or added to if `accumulate`. Nothing is computed below the lowest parameter that learns.
    pub fn backward(
        &self,
        params: &Params,
        x: &Tensor,
        grad: &Stream,
        pass: &Pass<'_>,
        acts: &mut Activations,
        out: &mut Output,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<Stream> {
        let Some(convolution) = &self.convolution else {
            return self.layer_backward(params, x, grad, pass, acts, out, scratch, accumulate);
        };
        let (form, n) = ((self.convolution_dropout(pass), self.shape.eps), grad.x.dim(0)?);
        let own =
            convolution.backward(params, &grad.x, form, &mut acts.convolution, &mut scratch.convolution, accumulate)?;
        let grad = Stream { x: own, residual: None };
        let below = self.layer_backward(params, x, &grad, pass, acts, out, scratch, accumulate)?;
        if pass.learns_below {
            convolution.add_input_grad(params, &below.x, pass, n, &mut scratch.convolution)?;
        }
        Ok(below)
    }

    /// Back through the layer alone.
    fn layer_backward(
        &self,
        params: &Params,
        x: &Tensor,
        grad: &Stream,
        pass: &Pass<'_>,
        acts: &mut Activations,
        out: &mut Output,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<Stream> {
        let (shape, space, at) = (&self.shape, params.space(), &self.at);
        let (h, inner, pre_norm) = (shape.hidden, shape.inner, shape.form.pre_norm);
        let [_, drop_1, drop_2, _] = self.dropouts(pass);
        let n = grad.x.dim(0)?;
        let (a, branch, c) =
            (scratch.a.view(n, h, space)?, scratch.branch.view(n, h, space)?, scratch.c.view(n, h, space)?);
        let (norm1, g) = (acts.norm1.view(n, h, space)?, acts.inner.view(n, inner, space)?);

        // The gradient of the second sum. Norms that stand first read `a` and `c` here, which the layer above left.
        let dsum2 = if pre_norm { scratch.d.view(n, h, space)? } else { a.clone() };
        let sum2 = self.sum2(acts, out, n, space)?;
        self.norm_backward(params, [&dsum2, &branch], grad, &sum2, at.down_norm, drop_2, accumulate)?;
        let unread = Stream { x: a.clone(), residual: None };
        if !self.learns_before(params, pass, at.down_norm) {
            return Ok(unread);
        }
        weight_grad(params, at.down_weight, &branch, &g, accumulate)?;
        let dup = self.feed_forward_backward(params, &branch, pass, acts, scratch, accumulate)?;
        weight_grad(params, at.up_weight, &dup, &norm1, accumulate)?;
        if !self.learns_before(params, pass, at.up_weight) {
            return Ok(unread);
        }
        // Behind the sum the norm's input and the residual are one, before it they are two.
        linear_input_grad(&a, &dup, &params.linear(at.up_weight, shape.up(), h)?, !pre_norm)?;

        let grad = Stream { x: a.clone(), residual: pre_norm.then_some(dsum2) };
        let sum1 = acts.sum1.view(n, h, space)?;
        self.norm_backward(params, [&c, &branch], &grad, &sum1, at.output_norm, drop_1, accumulate)?;
        let context = acts.context.view(n, h, space)?;
        weight_grad(params, at.output_weight, &branch, &context, accumulate)?;
        if !self.learns_before(params, pass, at.output_weight) {
            return Ok(unread);
        }
        linear_input_grad(&a, &branch, &params.linear(at.output_weight, h, h)?, false)?;

        self.attention_backward(params, x, &a, c, pass, acts, scratch, accumulate)
    }

    /// Back through a residual sum and its norm: `grad` to the sum's and the branch's.
    fn norm_backward(
        &self,
        params: &Params,
        [ds, dbranch]: [&Tensor; 2],
        grad: &Stream,
        sum: &Tensor,
        at: usize,
        drop: Dropout,
        accumulate: bool,
    ) -> Result<()> {
        let (shape, eps) = ([3, self.shape.hidden], self.shape.eps);
        let (weights, dparams) = (params.weight(at, &shape)?, params.grad(at, &shape)?);
        let out = ResidualNormGrads { ds, dbranch, dparams: &dparams };
        match &grad.residual {
            None => residual_norm_backward(out, &grad.x, sum, &weights, eps, drop, accumulate),
            Some(carried) => residual_norm_backward_onto(out, carried, &grad.x, sum, &weights, eps, drop, accumulate),
        }
    }

    /// From the gradient of the feed-forward part's result to that of its first product.
    fn feed_forward_backward(
        &self,
        params: &Params,
        dy: &Tensor,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<Tensor> {
        let (shape, space, at) = (&self.shape, params.space(), &self.at);
        let (h, inner, n) = (shape.hidden, shape.inner, dy.dim(0)?);
        let (up, dup) = (acts.up.view(n, shape.up(), space)?, scratch.inner.view(n, shape.up(), space)?);
        let (down, dup_bias) = (params.linear(at.down_weight, h, inner)?, params.grad(at.up_bias, &[shape.up()])?);
        if !shape.form.gated {
            linear_act_backward(&dup, &dup_bias, dy, &down, &up, shape.act, accumulate)?;
            return Ok(dup);
        }
        let dg = scratch.gate.view(n, inner, space)?;
        linear_input_grad(&dg, dy, &down, false)?;
        let [.., drop_inner] = self.dropouts(pass);
        gated_backward(&dup, &dg, &up, shape.act, drop_inner)?;
        if shape.form.feed_forward_bias {
            bias_grad(&dup_bias, &dup, accumulate)?;
        }
        Ok(dup)
    }

    /// The part below the context: `dcontext` and the residual's gradient `dresidual` to the input's gradient.
    fn attention_backward(
        &self,
        params: &Params,
        x: &Tensor,
        dcontext: &Tensor,
        dresidual: Tensor,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<Stream> {
        let (h, space, at) = (self.shape.hidden, params.space(), &self.at);
        let (tokens, n) = (tokens(pass.cu_seqlens), dcontext.dim(0)?);
        let (q, k, v) = self.projections(acts, pass, space)?;
        let projections = Projections { q: &q, k: &k, v: &v };
        let (db, has_bias) = (params.grad(at.qkv_bias, &[3 * h])?, self.shape.form.attention_bias);
        // Where the input is the residual too, one gradient is theirs.
        let is_residual = !self.shape.form.pre_norm || self.number == 0;
        let Some(selection) = pass.selection else {
            let dqkv = scratch.qkv.view(tokens, 3 * h, space)?;
            let to = ProjectionGrads::Fused(&dqkv);
            self.attend_backward(params, to, dcontext, projections, pass, acts, &mut scratch.relative)?;
            self.turn(&dqkv.narrow(1, 0, 2 * h)?, pass.rotary.map(|r| r.positions), pass, true)?;
            if has_bias {
                bias_grad(&db, &dqkv, accumulate)?;
            }
            weight_grad(params, at.qkv_weight, &dqkv, x, accumulate)?;
            self.positions_backward(params, pass, acts, &mut scratch.relative, accumulate)?;
            let dx = if is_residual { dresidual.clone() } else { scratch.a.view(tokens, h, space)? };
            if pass.learns_below {
                linear_input_grad(&dx, &dqkv, &params.linear(at.qkv_weight, 3 * h, h)?, is_residual)?;
            }
            return Ok(Stream { x: dx, residual: (!is_residual).then_some(dresidual) });
        };
        let (dq, dkv) = (scratch.q.view(n, h, space)?, scratch.qkv.view(tokens, 2 * h, space)?);
        let to = ProjectionGrads::Split { dq: &dq, dkv: &dkv };
        self.attend_backward(params, to, dcontext, projections, pass, acts, &mut scratch.relative)?;
        self.turn(&dq, Some(&selection.positions), pass, true)?;
        self.turn(&dkv.narrow(1, 0, h)?, pass.rotary.map(|r| r.positions), pass, true)?;
        if has_bias {
            bias_grad(&db.narrow(0, 0, h)?, &dq, accumulate)?;
            bias_grad(&db.narrow(0, h, 2 * h)?, &dkv, accumulate)?;
        }
        weight_grad(params, at.qkv_weight, &dq, &acts.picked.view(n, h, space)?, accumulate)?;
        weight_grad(params, at.qkv_weight + h * h, &dkv, x, accumulate)?;
        self.positions_backward(params, pass, acts, &mut scratch.relative, accumulate)?;
        let dx = scratch.full.view(tokens, h, space)?;
        if !pass.learns_below {
            return Ok(Stream { x: dx, residual: None });
        }
        let [wq, wkv] = self.query_and_key_value(params)?;
        linear_input_grad(&dx, &dkv, &wkv, false)?;
        if is_residual {
            linear_input_grad(&dresidual, &dq, &wq, true)?;
            add_rows(&dx, &dresidual, &selection.index)?;
            return Ok(Stream { x: dx, residual: None });
        }
        let dpicked = scratch.a.view(n, h, space)?;
        linear_input_grad(&dpicked, &dq, &wq, false)?;
        add_rows(&dx, &dpicked, &selection.index)?;
        let dfull = scratch.full_residual.view(tokens, h, space)?;
        dfull.zero_set()?;
        add_rows(&dfull, &dresidual, &selection.index)?;
        Ok(Stream { x: dx, residual: Some(dfull) })
    }

    /// From the gradient of the context to those of queries, keys and values, and of the positions in `scratch`.
    fn attend_backward(
        &self,
        params: &Params,
        to: ProjectionGrads<'_>,
        dcontext: &Tensor,
        projections: Projections<'_>,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scratch: &mut RelativeScratch,
    ) -> Result<()> {
        let (spec, space) = (self.attention_spec(pass), params.space());
        let (Some(relative), Some(from)) = (&self.relative, &pass.relative) else {
            return attention_backward(to, dcontext, projections, spec);
        };
        let positions = relative.projected(from, &mut acts.relative, space)?;
        let (grad, spec) = (scratch.grad(&positions, space)?, disentangled(spec, relative, from));
        disentangled_attention_backward(to, &grad, dcontext, projections, &positions, spec)
    }

    /// Back through the projections of positions, once those of the content have their gradients.
    fn positions_backward(
        &self,
        params: &Params,
        pass: &Pass<'_>,
        acts: &mut Activations,
        scratch: &mut RelativeScratch,
        accumulate: bool,
    ) -> Result<()> {
        let (Some(relative), Some(from)) = (&self.relative, &pass.relative) else { return Ok(()) };
        relative.backward(params, from, self.position_dropout(pass), &mut acts.relative, scratch, accumulate)
    }
}

/// The gradient of the weight at `offset`, if it learns.
pub(in crate::nn) fn weight_grad(
    params: &Params,
    offset: usize,
    dy: &Tensor,
    x: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let (out, inp) = (dy.dim(1)?, x.dim(1)?);
    if !params.trains(offset..offset + out * inp) {
        return Ok(());
    }
    linear_weight_grad(&params.grad(offset, &[out, inp])?, dy, x, accumulate)
}
