//! CUDA bodies: one launch over all segments. The update reads the norm that it clips by on the device.

use super::{AdamW, AdamWStep, BLOCK, Segment};
use crate::ops::gpu::{Args, Gpu, Grid, Memory, View};
use candle_core::{DType, Result, bail};
use std::ops::Range;

/// Values that the kernels number in 32 bits, with the steps that they take beyond a segment's end.
const MOST_VALUES: usize = u32::MAX as usize - 2 * BLOCK;

fn check_end(name: &str, end: usize, n: usize) -> Result<()> {
    if end > n {
        bail!("{name}: a segment ends at {end} of {n} values");
    }
    if end > MOST_VALUES {
        bail!(
            "{name}: a segment ends at value {end}, the CUDA kernels take up to {MOST_VALUES}; compute with --device cpu"
        );
    }
    Ok(())
}

/// Segments as the kernels read them, and how many blocks they make; what is a segment's own of a step is zero without one.
pub fn table(
    name: &str,
    gpu: &Gpu<'_>,
    segments: &[Segment],
    step: Option<&AdamWStep>,
    n: usize,
) -> Result<(Memory, usize, usize)> {
    let (mut words, mut blocks, mut count) = (vec![], 0usize, 0);
    for s in segments.iter().filter(|s| !s.range.is_empty()) {
        check_end(name, s.range.end, n)?;
        let own = step.map_or([0; 3], |step| {
            let scalars = step.scalars(s, 1.0);
            [scalars.keep, scalars.step_size, scalars.inverse_sqrt_correction2].map(f32::to_bits)
        });
        words.extend([s.range.start as u32, s.range.end as u32, blocks as u32].into_iter().chain(own));
        blocks += s.range.len().div_ceil(BLOCK);
        count += 1;
    }
    Ok((gpu.constant(&words)?, count, blocks))
}

pub(super) fn step(op: &AdamW<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([w, m, v], [g, squares]) = (dst, src) else { bail!("adamw: three destinations, two sources") };
    let n = w.cols;
    for arena in [w, m, v, g] {
        arena.expect("adamw", 1, n, DType::F32)?;
    }
    squares.expect("adamw", 1, 2, DType::F32)?;
    let (table, count, blocks) = table("adamw", gpu, op.segments, Some(&op.step), n)?;
    let pair = |a: f32, b: f32| u64::from(b.to_bits()) << 32 | u64::from(a.to_bits());
    // Alike for all segments.
    let s = op.step.scalars(&Segment::new(0..0, 0.0), 1.0);
    let p = [
        w.at,
        m.at,
        v.at,
        g.at,
        table.at(),
        squares.at,
        op.step.max_grad_norm.to_bits(),
        pair(s.beta1, s.one_minus_beta1),
        pair(s.beta2, s.one_minus_beta2),
    ];
    gpu.launch("adamw", Grid::new([blocks, 1, 1], 256), Args::new(&p, &[count])?.float(s.epsilon))
}

/// Σ g² over ranges, in f64.
pub(super) fn squares(ranges: &[Range<usize>], gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([out], [g]) = (dst, src) else { bail!("sum_squares: one destination, one source") };
    g.expect("sum_squares", 1, g.cols, DType::F32)?;
    out.expect("sum_squares", 1, 2, DType::F32)?;
    let segments: Vec<_> = ranges.iter().map(|r| Segment::new(r.clone(), 0.0)).collect();
    let (table, count, blocks) = table("sum_squares", gpu, &segments, None, g.cols)?;
    let partial = gpu.room(8 * blocks)?;
    let args = Args::new(&[partial.at(), g.at, table.at()], &[count])?;
    gpu.launch("block_squares", Grid::new([blocks, 1, 1], 256), args)?;
    gpu.launch("sum_doubles", Grid::new([1, 1, 1], 256), Args::new(&[out.at, partial.at()], &[blocks])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_kernels_cannot_number_are_refused() {
        assert!(check_end("adamw", 5, 5).is_ok() && check_end("adamw", MOST_VALUES, usize::MAX).is_ok());
        assert!(check_end("adamw", 6, 5).unwrap_err().to_string().contains("ends at 6 of 5 values"));
        let far = check_end("adamw", 1 << 32, usize::MAX).unwrap_err().to_string();
        assert!(far.contains("4294967296") && far.contains("--device cpu"), "{far}");
    }
}
