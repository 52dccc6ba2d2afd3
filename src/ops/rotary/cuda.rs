//! CUDA body. A position outside the table makes its row NaN, as an index does in [`crate::ops::embedding`].

use crate::ops::gpu::{Args, Gpu, Grid, View, of};
use candle_core::{DType, Result, bail};

pub(super) fn rotate(back: bool, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([x], [table, positions]) = (dst, src) else { bail!("rotate: one destination, two sources") };
    let d = table.cols;
    super::check((x.rows, x.cols), positions.rows * positions.cols, (table.rows, d, table.stride))?;
    positions.expect_values("rotate: positions", x.rows, DType::U32)?;
    table.expect_dense("rotate: angles", table.rows, d, DType::F32)?;
    let heads = x.cols / d;
    let sizes = [x.rows, heads, d, x.stride, table.rows, usize::from(back)];
    let args = Args::new(&[x.at, table.at, positions.at], &sizes)?;
    gpu.launch(&of("rotate", x.dtype), Grid::chunks(x.rows * heads, d / 2), args)
}
