//! CUDA bodies.

use crate::ops::gpu::{Args, Gpu, Grid, View, column_sums};
use candle_core::{DType, Result, bail};

pub(super) fn add(gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([y], [bias]) = (dst, src) else { bail!("add_bias: one destination, one source") };
    bias.expect_values("add_bias", y.cols, DType::F32)?;
    y.expect_dense("add_bias", y.rows, y.cols, DType::F32)?;
    let args = Args::new(&[y.at, bias.at], &[y.rows, y.cols, y.stride])?;
    gpu.launch("epilogue_bias_f32", Grid::chunks(y.rows, y.cols), args)
}

pub(super) fn grad(accumulate: bool, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([db], [dy]) = (dst, src) else { bail!("bias_grad: one destination, one source") };
    db.expect_values("bias_grad", dy.cols, DType::F32)?;
    column_sums(gpu, db.at, *dy, accumulate)
}
