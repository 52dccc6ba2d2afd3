//! A convolution beside a layer (DeBERTa-v2-xlarge and -xxlarge, He et al. 2021): it reads the layer's input, and what it finds
//! joins the layer's output under a norm of its own.

use super::params::{Init, Layout, Params};
use super::transformer::{Pass, weight_grad};
use super::workspace::{Buffer, Space};
use crate::ops::bias::bias_grad;
use crate::ops::convolution::{
    ConvolutionActivation, Neighbours, bias_dropped_act, bias_dropped_act_backward, fold, unfold,
};
use crate::ops::dropout::Dropout;
use crate::ops::gemm::{linear, linear_input_grad};
use crate::ops::layer_norm::{ResidualNormGrads, residual_norm, residual_norm_backward};
use candle_core::{Result, Tensor};

/// Its form; the width, the norm's epsilon and the rate of dropout are the layer's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConvolutionForm {
    /// An odd number of tokens.
    pub kernel: usize,
    /// Parts of the width that do not see each other.
    pub groups: usize,
    pub act: ConvolutionActivation,
}

impl ConvolutionForm {
    /// Values of a token that the forward pass keeps, and that the backward pass takes beside them, at a width.
    pub fn lens(&self, hidden: usize) -> [usize; 2] {
        [(self.kernel + 3) * hidden, (self.kernel + 3) * hidden]
    }
}

/// The parameters in the arenas.
#[derive(Debug, Clone, Copy)]
pub struct Convolution {
    form: ConvolutionForm,
    hidden: usize,
    weight: usize,
    bias: usize,
    /// bias (absent), gamma, beta
    norm: usize,
}

/// What a forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub struct ConvolutionActivations {
    /// The layer's own output, `[queries, hidden]`.
    residual: Buffer,
    /// `[queries, hidden·kernel]`
    columns: Buffer,
    up: Buffer,
    sum: Buffer,
}

impl ConvolutionActivations {
    /// Where the layer leaves its own output.
    pub fn residual(&mut self, rows: usize, hidden: usize, space: Space<'_>) -> Result<Tensor> {
        self.residual.view(rows, hidden, space)
    }
}

/// Buffers of the backward pass.
#[derive(Debug, Default)]
pub struct ConvolutionScratch {
    dresidual: Buffer,
    dbranch: Buffer,
    dup: Buffer,
    dcolumns: Buffer,
}

impl Convolution {
    /// Lays out the parameters of the module `name`.
    pub fn new(layout: &mut Layout, form: ConvolutionForm, hidden: usize, name: &str) -> Self {
        let (h, inside) = (vec![hidden], |part: &str| format!("{name}.{part}"));
        let shape = vec![hidden, hidden / form.groups, form.kernel];
        let weight = layout.block(&[(inside("conv.weight"), shape, Init::Normal)]);
        let bias = layout.block(&[(inside("conv.bias"), h.clone(), Init::Zeros)]);
        let norm = layout.block(&[
            (String::new(), h.clone(), Init::Absent),
            (inside("LayerNorm.weight"), h.clone(), Init::Ones),
            (inside("LayerNorm.bias"), h, Init::Zeros),
        ]);
        Self { form, hidden, weight, bias, norm }
    }

    /// Whose neighbours it reads in a pass.
    fn neighbours<'a>(&self, pass: &Pass<'a>) -> Neighbours<'a> {
        let queries = pass.selection.map(|s| &s.index);
        Neighbours { cu_seqlens: pass.cu_seqlens, queries, kernel: self.form.kernel }
    }

    /// Of every group: the place of its weight, its first output and its first column.
    fn groups(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let ([out, inp], at) = (self.group(), self.weight);
        (0..self.form.groups).map(move |g| (at + g * out * inp, g * out, g * inp))
    }

    /// Outputs and columns of a group.
    fn group(&self) -> [usize; 2] {
        let out = self.hidden / self.form.groups;
        [out, out * self.form.kernel]
    }

    /// `out = norm(residual + act(dropout(conv(x))))` of the tokens that are read; `residual` is what
    /// [`ConvolutionActivations::residual`] gave.
    pub fn forward(
        &self,
        params: &Params,
        [x, residual, out]: [&Tensor; 3],
        pass: &Pass<'_>,
        (drop, eps): (Dropout, f32),
        acts: &mut ConvolutionActivations,
    ) -> Result<()> {
        let (h, n, space, [wide, inp]) = (self.hidden, residual.dim(0)?, params.space(), self.group());
        let columns = acts.columns.view(n, h * self.form.kernel, space)?;
        let (up, sum) = (acts.up.view(n, h, space)?, acts.sum.view(n, h, space)?);
        unfold(&columns, x, self.neighbours(pass))?;
        for (weight, first, column) in self.groups() {
            let weight = params.linear(weight, wide, inp)?;
            linear(&up.narrow(1, first, wide)?, &columns.narrow(1, column, inp)?, &weight, None)?;
        }
        bias_dropped_act(&up, &sum, &params.weight(self.bias, &[h])?, self.form.act, drop)?;
        residual_norm(&sum, out, residual, &params.weight(self.norm, &[3, h])?, eps, Dropout::OFF)
    }

    /// From the gradient of the output to that of the layer's own output, and of the columns, which stay in `scratch` for
    /// [`Self::add_input_grad`].
    pub fn backward(
        &self,
        params: &Params,
        grad: &Tensor,
        (drop, eps): (Dropout, f32),
        acts: &mut ConvolutionActivations,
        scratch: &mut ConvolutionScratch,
        accumulate: bool,
    ) -> Result<Tensor> {
        let (h, n, space, [wide, inp]) = (self.hidden, grad.dim(0)?, params.space(), self.group());
        let columns = acts.columns.view(n, h * self.form.kernel, space)?;
        let (up, sum) = (acts.up.view(n, h, space)?, acts.sum.view(n, h, space)?);
        let dresidual = scratch.dresidual.view(n, h, space)?;
        let (dbranch, dup) = (scratch.dbranch.view(n, h, space)?, scratch.dup.view(n, h, space)?);
        let dparams = params.grad(self.norm, &[3, h])?;
        let out = ResidualNormGrads { ds: &dresidual, dbranch: &dbranch, dparams: &dparams };
        let weights = params.weight(self.norm, &[3, h])?;
        residual_norm_backward(out, grad, &sum, &weights, eps, Dropout::OFF, accumulate)?;
        bias_dropped_act_backward(&dup, &dbranch, &up, self.form.act, drop)?;
        bias_grad(&params.grad(self.bias, &[h])?, &dup, accumulate)?;
        for (weight, first, column) in self.groups() {
            let (dup, columns) = (dup.narrow(1, first, wide)?, columns.narrow(1, column, inp)?);
            weight_grad(params, weight, &dup, &columns, accumulate)?;
        }
        Ok(dresidual)
    }

    /// Adds to `dx`, the gradient of the layer's input, what comes through the convolution.
    pub fn add_input_grad(
        &self,
        params: &Params,
        dx: &Tensor,
        pass: &Pass<'_>,
        queries: usize,
        scratch: &mut ConvolutionScratch,
    ) -> Result<()> {
        let (h, space, [wide, inp]) = (self.hidden, params.space(), self.group());
        let dup = scratch.dup.view(queries, h, space)?;
        let dcolumns = scratch.dcolumns.view(queries, h * self.form.kernel, space)?;
        for (weight, first, column) in self.groups() {
            let (dcolumns, weight) = (dcolumns.narrow(1, column, inp)?, params.linear(weight, wide, inp)?);
            linear_input_grad(&dcolumns, &dup.narrow(1, first, wide)?, &weight, false)?;
        }
        fold(dx, &dcolumns, self.neighbours(pass))
    }
}
