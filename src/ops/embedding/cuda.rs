//! CUDA bodies. The host has checked the indices.

use super::{Backward, EmbeddingShape, Forward};
use crate::ops::gpu::{Args, Gpu, Grid, Memory, THREADS, View, of, rows_per_chunk, sum_partials};
use candle_core::{DType, Result, bail};

fn check(name: &str, shape: &EmbeddingShape, block: &View, index: &[View], tokens: usize, h: usize) -> Result<()> {
    block.expect_dense(name, shape.rows(), h, DType::F32)?;
    index.iter().try_for_each(|v| v.expect_values(name, tokens, DType::U32))
}

pub(super) fn forward(op: &Forward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([s, y], [block, index @ ..]) = (dst, src) else { bail!("embed: two destinations, four sources") };
    let [ids, positions, types] = index else { bail!("embed: three index vectors") };
    let (tokens, h, shape) = (s.rows, s.cols, &op.shape);
    check("embed", shape, block, index, tokens, h)?;
    for v in [s, y] {
        v.expect_dense("embed", tokens, h, s.dtype)?;
    }
    let p = [s.at, y.at, block.at, ids.at, positions.at, types.at];
    let args = Args::new(&p, &[h, shape.vocab, shape.positions, shape.types])?.float(shape.eps).dropout(op.dropout);
    gpu.launch(&of("embed", s.dtype), Grid::rows(tokens, h)?, args)
}

pub(super) fn backward(op: &Backward, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([dblock, ds], [dy, s, block, index @ ..]) = (dst, src) else {
        bail!("embed_backward: two destinations, six sources")
    };
    let [ids, positions, types] = index else { bail!("embed_backward: three index vectors") };
    let (tokens, h, shape) = (ds.rows, ds.cols, &op.shape);
    check("embed_backward", shape, block, index, tokens, h)?;
    dblock.expect_dense("embed_backward", shape.rows(), h, DType::F32)?;
    for v in [ds, dy, s] {
        v.expect_dense("embed_backward", tokens, h, ds.dtype)?;
    }
    let row = |at: u64, row: usize| at + 4 * (row * h) as u64;
    let per_chunk = rows_per_chunk(tokens);
    let chunks = tokens.div_ceil(per_chunk);
    let norm = shape.rows() - 2;
    let partial = gpu.room(4 * chunks * 2 * h)?;
    let p = [ds.at, partial.at(), dy.at, s.at, row(block.at, norm)];
    let args = Args::new(&p, &[tokens, h, per_chunk])?.float(shape.eps).dropout(op.dropout);
    gpu.launch(&of("embed_norm_backward", ds.dtype), Grid::rows(chunks, h)?, args)?;
    sum_partials(gpu, row(dblock.at, norm), &partial, 2 * h, chunks, true)?;

    let order = [gpu.room(4 * tokens)?, gpu.room(4 * tokens)?];
    add_runs(gpu, row(dblock.at, 0), ds, ids, shape.vocab, &order)?;
    if shape.positions > 0 {
        add_runs(gpu, row(dblock.at, shape.vocab), ds, positions, shape.positions, &order)?;
    }
    if shape.types > 0 {
        let partial = gpu.room(4 * chunks * shape.types * h)?;
        let args = Args::new(&[partial.at(), ds.at, types.at], &[tokens, h, shape.types, per_chunk])?;
        gpu.launch(&of("type_sums", ds.dtype), Grid::column_chunks(h, chunks), args)?;
        let table = row(dblock.at, shape.vocab + shape.positions);
        sum_partials(gpu, table, &partial, shape.types * h, chunks, true)?;
    }
    Ok(())
}

/// Adds each token's gradient to its row of a table, by tokens ordered by `keys`.
fn add_runs(
    gpu: &Gpu<'_>,
    table: u64,
    ds: &View,
    keys: &View,
    limit: usize,
    [order, sorted]: &[Memory; 2],
) -> Result<()> {
    let tokens = ds.rows;
    let by_key = Grid::new([tokens.div_ceil(256), 1, 1], 256);
    gpu.launch("order_by_key", by_key, Args::new(&[order.at(), sorted.at(), keys.at], &[tokens])?)?;
    let args = Args::new(&[table, ds.at, order.at(), sorted.at()], &[tokens, ds.cols, limit])?;
    gpu.launch(&of("add_runs", ds.dtype), Grid::new([tokens, 1, 1], THREADS), args)
}
