//! CUDA bodies.

use super::{Backward, ConvolutionActivation, Forward, Neighbours};
use crate::ops::gpu::{Args, Gpu, Grid, View, of};
use candle_core::{DType, Result, bail};

impl ConvolutionActivation {
    /// As `kernel.cu` numbers them.
    fn number(self) -> usize {
        match self {
            Self::Of(act) => act.number(),
            Self::Tanh => 4,
        }
    }
}

/// Between `x` and `col`: to the one, as the kernel's name says, from the other.
fn launch(
    name: &str,
    spec: &Neighbours<'_>,
    gpu: &Gpu<'_>,
    [x, col]: [&View; 2],
    [to, from]: [&View; 2],
    queries: &[View],
) -> Result<()> {
    spec.check(name, (x.rows, x.cols, x.stride), (col.rows, col.cols, col.stride))?;
    from.expect(name, from.rows, from.cols, to.dtype)?;
    queries.iter().try_for_each(|q| q.expect_values(name, col.rows, DType::U32))?;
    let prefix = gpu.constant(spec.cu_seqlens)?;
    let p = [to.at, from.at, prefix.at(), queries.first().map_or(0, |q| q.at)];
    let args = Args::new(&p, &[to.rows, to.cols, spec.kernel, spec.cu_seqlens.len() - 1, col.rows])?;
    gpu.launch(&of(name, to.dtype), Grid::chunks(to.rows, to.cols), args)
}

pub(super) fn unfold(spec: &Neighbours<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([col], [x, queries @ ..]) = (dst, src) else { bail!("unfold: one destination, one source or two") };
    launch("unfold", spec, gpu, [x, col], [col, x], queries)
}

pub(super) fn fold(spec: &Neighbours<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([dx], [dcol, queries @ ..]) = (dst, src) else { bail!("fold: one destination, one source or two") };
    if spec.queries.is_some_and(|q| !q.values().is_sorted_by(|a, b| a < b)) {
        bail!("fold: the tokens that are read do not ascend");
    }
    launch("fold", spec, gpu, [dx, dcol], [dx, dcol], queries)
}

pub(super) fn forward(op: &Forward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([u, y], [bias]) = (dst, src) else { bail!("bias_dropped_act: two destinations, one source") };
    bias.expect_values("bias_dropped_act", u.cols, DType::F32)?;
    for v in [u, y] {
        v.expect_dense("bias_dropped_act", u.rows, u.cols, u.dtype)?;
    }
    let args = Args::new(&[u.at, y.at, bias.at], &[u.rows, u.cols, op.act.number()])?.dropout(op.dropout);
    gpu.launch(&of("bias_dropped_act", u.dtype), Grid::chunks(u.rows, u.cols), args)
}

pub(super) fn backward(op: &Backward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let name = "bias_dropped_act_backward";
    let ([du], [dy, u]) = (dst, src) else { bail!("{name}: one destination, two sources") };
    for v in [du, dy, u] {
        v.expect_dense(name, du.rows, du.cols, du.dtype)?;
    }
    let args = Args::new(&[du.at, dy.at, u.at], &[du.rows, du.cols, op.act.number()])?.dropout(op.dropout);
    gpu.launch(&of(name, du.dtype), Grid::chunks(du.rows, du.cols), args)
}
