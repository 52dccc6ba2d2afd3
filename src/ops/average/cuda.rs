//! CUDA body: one launch over all ranges.

use super::Average;
use crate::ops::adamw::{Segment, cuda::table};
use crate::ops::gpu::{Args, Gpu, Grid, View};
use candle_core::{DType, Result, bail};

pub(super) fn average(op: &Average<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([a], [w]) = (dst, src) else { bail!("average: one destination, one source") };
    for arena in [a, w] {
        arena.expect("average", 1, arena.cols, DType::F32)?;
    }
    op.check(a.cols, w.cols)?;
    let segments: Vec<_> = op.ranges.iter().map(|r| Segment::new(r.clone(), 0.0)).collect();
    let (table, count, blocks) = table("average", gpu, &segments, None, a.cols)?;
    let args = Args::new(&[a.at, w.at, table.at()], &[count])?.float(op.share);
    gpu.launch("average", Grid::new([blocks, 1, 1], 256), args)
}
