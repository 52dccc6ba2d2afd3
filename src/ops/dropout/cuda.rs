//! CUDA body.

use super::Masked;
use crate::ops::gpu::{Args, Gpu, Grid, View, of};
use candle_core::{Result, bail};

pub(super) fn masked(op: &Masked, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([y], [x]) = (dst, src) else { bail!("dropout: one destination, one source") };
    let n = y.rows * y.cols;
    y.expect_dense("dropout", y.rows, y.cols, y.dtype)?;
    x.expect_values("dropout", n, x.dtype)?;
    // The first element's number takes part as all 32 bits, and is larger than a size may be.
    let first = u64::from(op.first);
    let args = Args::new(&[y.at, x.at, n as u64, first], &[usize::from(op.add)])?.dropout(op.dropout);
    gpu.launch(&of(&of("dropout", y.dtype), x.dtype), Grid::chunks(1, n), args)
}
