//! CUDA bodies.

use super::buckets;
use crate::ops::gpu::{Args, Gpu, Grid, Memory, THREADS, View};
use candle_core::{DType, Result, bail};

fn bucket_table(name: &str, gpu: &Gpu<'_>, table: &View, values: &View) -> Result<Memory> {
    for v in [table, values] {
        v.expect_dense(name, v.rows, v.cols, DType::F32)?;
    }
    let buckets = buckets(name, (table.rows, table.cols), (values.rows, values.cols))?;
    gpu.constant(&buckets.iter().map(|&b| b as u32).collect::<Vec<_>>())
}

pub(super) fn expand(gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([values], [table]) = (dst, src) else { bail!("distance_bias: one destination, one source") };
    let buckets = bucket_table("distance_bias", gpu, table, values)?;
    let args = Args::new(&[values.at, table.at, buckets.at()], &[values.cols, values.rows])?;
    gpu.launch("distance_bias", Grid::columns(values.cols, values.rows), args)
}

pub(super) fn collect(accumulate: bool, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([table], [values]) = (dst, src) else { bail!("distance_bias_backward: one destination, one source") };
    let buckets = bucket_table("distance_bias_backward", gpu, table, values)?;
    let sizes = [values.cols, values.rows, usize::from(accumulate)];
    let args = Args::new(&[table.at, values.at, buckets.at()], &sizes)?;
    gpu.launch("distance_bias_backward", Grid::new([table.rows, values.rows, 1], THREADS), args)
}
