//! CUDA bodies, which the products share.

use super::Activation;
use crate::ops::gpu::{Args, Gpu, Grid, View, column_sums};
use candle_core::{DType, Result, bail};

impl Activation {
    /// As `kernel.cu` numbers them.
    pub(crate) fn number(self) -> usize {
        match self {
            Self::Gelu => 0,
            Self::GeluTanh => 1,
            Self::Relu => 2,
            Self::Silu => 3,
        }
    }
}

pub(super) fn forward(act: Activation, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([u, g], [bias]) = (dst, src) else { bail!("bias_act: two destinations, one source") };
    bias.expect_values("bias_act", u.cols, DType::F32)?;
    for v in [u, g] {
        v.expect_dense("bias_act", u.rows, u.cols, DType::F32)?;
    }
    let args = Args::new(&[u.at, g.at, bias.at], &[u.rows, u.cols, u.stride, g.stride, act.number()])?;
    gpu.launch("epilogue_act_f32", Grid::chunks(u.rows, u.cols), args)
}

pub(super) fn backward(act: Activation, accumulate: bool, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([dg, db], [u]) = (dst, src) else { bail!("bias_act_backward: two destinations, one source") };
    db.expect_values("bias_act_backward", dg.cols, DType::F32)?;
    for v in [dg, u] {
        v.expect_dense("bias_act_backward", dg.rows, dg.cols, DType::F32)?;
    }
    let args = Args::new(&[dg.at, u.at], &[dg.rows, dg.cols, dg.stride, u.stride, act.number()])?;
    gpu.launch("epilogue_slope_f32", Grid::chunks(dg.rows, dg.cols), args)?;
    column_sums(gpu, db.at, *dg, accumulate)
}
