//! CUDA bodies.

use super::{Backward, Forward, check};
use crate::ops::gpu::{Args, Gpu, Grid, View, of};
use candle_core::{Result, bail};

pub(super) fn forward(op: &Forward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([g], [up]) = (dst, src) else { bail!("gated: one destination, one source") };
    let (rows, n) = (g.rows, g.cols);
    check("gated", (rows, n), (up.rows, up.cols), [g.stride == n, up.stride == 2 * n])?;
    up.expect("gated", rows, 2 * n, g.dtype)?;
    let args = Args::new(&[g.at, up.at], &[rows, n, op.act.number()])?.dropout(op.dropout);
    gpu.launch(&of("gated", g.dtype), Grid::chunks(rows, n), args)
}

pub(super) fn backward(op: &Backward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let name = "gated_backward";
    let ([dup], [dg, up]) = (dst, src) else { bail!("{name}: one destination, two sources") };
    let (rows, n) = (dg.rows, dg.cols);
    for wide in [up, dup] {
        check(name, (rows, n), (wide.rows, wide.cols), [dg.stride == n, wide.stride == 2 * n])?;
        wide.expect(name, rows, 2 * n, dg.dtype)?;
    }
    let args = Args::new(&[dup.at, dg.at, up.at], &[rows, n, op.act.number()])?.dropout(op.dropout);
    gpu.launch(&of(name, dg.dtype), Grid::chunks(rows, n), args)
}
