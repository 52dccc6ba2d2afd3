//! CUDA bodies: one block a row going forward, and a chunk of rows going back.

use super::{Backward, Forward};
use crate::ops::gpu::{Args, Gpu, Grid, View, of, rows_per_chunk, sum_partials};
use candle_core::{DType, Result, bail};

pub(super) fn forward(op: &Forward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([s, y], [residual, params]) = (dst, src) else { bail!("residual_norm: two destinations, two sources") };
    let (rows, h) = (s.rows, s.cols);
    for v in [s, y, residual] {
        v.expect_dense("residual_norm", rows, h, s.dtype)?;
    }
    params.expect_values("residual_norm: params", 3 * h, DType::F32)?;
    let args = Args::new(&[s.at, y.at, residual.at, params.at], &[h])?.float(op.eps).dropout(op.dropout);
    gpu.launch(&of("residual_norm", s.dtype), Grid::rows(rows, h)?, args)
}

pub(super) fn backward(op: &Backward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([ds, dbranch, dparams], [dy, s, params, carried @ ..]) = (dst, src) else {
        bail!("residual_norm_backward: three destinations, three sources or four")
    };
    let (rows, h) = (ds.rows, ds.cols);
    let carried = carried.first();
    for v in [ds, dbranch, dy, s].into_iter().chain(carried) {
        v.expect_dense("residual_norm_backward", rows, h, ds.dtype)?;
    }
    for v in [dparams, params] {
        v.expect_values("residual_norm_backward: params", 3 * h, DType::F32)?;
    }
    let per_chunk = rows_per_chunk(rows);
    let chunks = rows.div_ceil(per_chunk);
    let partial = gpu.room(4 * chunks * 3 * h)?;
    let gamma = params.at + 4 * h as u64;
    let p = [ds.at, dbranch.at, partial.at(), dy.at, s.at, gamma, carried.map_or(0, |v| v.at)];
    let args = Args::new(&p, &[rows, h, per_chunk])?.float(op.eps).dropout(op.dropout);
    gpu.launch(&of("residual_norm_backward", ds.dtype), Grid::rows(chunks, h)?, args)?;
    sum_partials(gpu, dparams.at, &partial, 3 * h, chunks, op.accumulate)
}
