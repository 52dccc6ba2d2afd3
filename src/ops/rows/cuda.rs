//! CUDA bodies. The host has checked the indices.

use crate::ops::gpu::{Args, Gpu, Grid, THREADS, View, of};
use candle_core::{DType, Result, bail};
use std::ops::Range;

pub(super) fn zero(ranges: &[Range<usize>], gpu: &Gpu<'_>, dst: &[View]) -> Result<()> {
    let [x] = dst else { bail!("zero_ranges: one destination") };
    let n = ranges.iter().map(|r| r.end).max().unwrap_or(0);
    if n > x.cols || x.rows != 1 || x.dtype != DType::F32 {
        bail!("zero_ranges: a range ends at {n} of {}", x.cols);
    }
    ranges.iter().filter(|r| !r.is_empty()).try_for_each(|r| gpu.zero(x.at + 4 * r.start as u64, 4 * r.len()))
}

pub(super) fn gather(gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([out], [x, index]) = (dst, src) else { bail!("gather_rows: one destination, two sources") };
    index.expect_values("gather_rows: index", out.rows, DType::U32)?;
    x.expect("gather_rows", x.rows, out.cols, out.dtype)?;
    let args = Args::new(&[out.at, x.at, index.at], &[out.cols, out.stride, x.stride, x.rows])?;
    gpu.launch(&of("gather_rows", out.dtype), Grid::new([out.rows, 1, 1], THREADS), args)
}

pub(super) fn add(gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([x], [part, index]) = (dst, src) else { bail!("add_rows: one destination, two sources") };
    index.expect_values("add_rows: index", part.rows, DType::U32)?;
    part.expect("add_rows", part.rows, x.cols, x.dtype)?;
    let sizes = [x.cols, x.stride, part.stride, part.rows, x.rows];
    let args = Args::new(&[x.at, part.at, index.at], &sizes)?;
    gpu.launch(&of("add_rows", x.dtype), Grid::new([part.rows, 1, 1], THREADS), args)
}

pub(super) fn mean(name: &str, cu: &[u32], gpu: &Gpu<'_>, means: &View, tokens: &View, back: bool) -> Result<()> {
    let n = means.cols;
    super::check_means(name, cu, (means.rows, n, means.stride), (tokens.rows, tokens.cols, tokens.stride))?;
    tokens.expect(name, tokens.rows, n, means.dtype)?;
    let prefix = gpu.constant(cu)?;
    let (to, from) = if back { (tokens, means) } else { (means, tokens) };
    let args = Args::new(&[to.at, from.at, prefix.at()], &[n])?;
    gpu.launch(&of(name, means.dtype), Grid::column_chunks(n, means.rows), args)
}
