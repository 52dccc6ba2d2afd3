//! CUDA body: one launch over all ranges, which reads the norm on the device.

use super::Perturb;
use crate::ops::adamw::{Segment, cuda::table};
use crate::ops::gpu::{Args, Gpu, Grid, View};
use candle_core::{DType, Result, bail};

pub(super) fn perturb(op: &Perturb<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([w], [g, squares]) = (dst, src) else { bail!("perturb: one destination, two sources") };
    for arena in [w, g] {
        arena.expect("perturb", 1, arena.cols, DType::F32)?;
    }
    squares.expect("perturb", 1, 2, DType::F32)?;
    op.check(w.cols, g.cols)?;
    let segments: Vec<_> = op.ranges.iter().map(|r| Segment::new(r.clone(), 0.0)).collect();
    let (table, count, blocks) = table("perturb", gpu, &segments, None, w.cols)?;
    let args = Args::new(&[w.at, g.at, table.at(), squares.at, op.length.to_bits()], &[count])?;
    gpu.launch("perturb", Grid::new([blocks, 1, 1], 256), args)
}
