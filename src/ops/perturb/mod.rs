//! A step of a given length along a gradient: the perturbation of the fast gradient method (Miyato et al. 2017, "Adversarial
//! Training Methods for Semi-Supervised Text Classification").

#[cfg(gpu)]
mod cuda;

use crate::ops::adamw::{SumSquares, blocks, whole};
use crate::ops::cpu::{Shared, madd, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::pool::for_each;
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// `weights += length · grads / √squares` on the given ascending, disjoint ranges; nothing moves where that root is zero or not
/// finite.
pub fn perturb(
    weights: &Tensor,
    (grads, squares): (&Tensor, &SumSquares),
    length: f64,
    ranges: &[Range<usize>],
) -> Result<()> {
    launch(&Perturb { length, ranges }, &[weights], &[grads, squares.tensor()])
}

struct Perturb<'a> {
    length: f64,
    ranges: &'a [Range<usize>],
}

impl Perturb<'_> {
    /// Checks the ranges against the sizes of the arenas.
    fn check(&self, weights: usize, grads: usize) -> Result<()> {
        let ordered = self.ranges.windows(2).all(|r| r[0].end <= r[1].start);
        if !ordered || weights != grads || self.ranges.last().is_some_and(|r| r.end > weights) {
            bail!("perturb: ranges overlap or leave the arena, or arenas of {weights} and {grads} values");
        }
        Ok(())
    }
}

/// Blocks a task.
const TASK: usize = 16;

impl Kernel for Perturb<'_> {
    fn name(&self) -> &'static str {
        "perturb"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([w], [g, squares]) = (dst, src) else { bail!("perturb: one destination, two sources") };
        let (w, g) = (w.f32()?, g.f32()?);
        let &[low, high] = squares.f32()? else { bail!("perturb: the sum of squares has two halves") };
        self.check(w.len(), g.len())?;
        let norm = whole([low, high]).sqrt();
        if norm == 0.0 || !norm.is_finite() {
            return Ok(());
        }
        let factor = (self.length / norm) as f32;
        let work: Vec<Range<usize>> = self.ranges.iter().cloned().flat_map(blocks).collect();
        let w = Shared::new(w);
        for_each(work.len().div_ceil(TASK), |task| {
            for range in work.iter().skip(task * TASK).take(TASK) {
                // SAFETY: ranges are disjoint (checked above) and blocks cut them without overlap.
                let w = unsafe { w.range(range.clone()) };
                add(w, &g[range.clone()], factor);
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::perturb(self, gpu, dst, src)
    }
}

simd! {
    fn add(w: &mut [f32], g: &[f32], factor: f32) {
        let n = g.len();
        let w = &mut w[..n];
        for i in 0..n {
            w[i] = madd::<FMA>(factor, g[i], w[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::adamw::sum_squares;
    use crate::ops::testing::{close, flat, vector};

    #[test]
    fn moves_by_the_length_and_leaves_the_rest() {
        let n = 10_007;
        let (w, g) = (vector(n, 1), vector(n, 2));
        let (before, grads) = (flat(&w), flat(&g));
        let ranges = [3..5000, 5001..5002, 9000..n];
        let squares = sum_squares(&g, &ranges).unwrap();
        perturb(&w, (&g, &squares), 0.5, &ranges).unwrap();
        let norm = ranges.iter().cloned().flatten().map(|i| f64::from(grads[i]).powi(2)).sum::<f64>().sqrt();
        let mut want: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
        for i in ranges.clone().into_iter().flatten() {
            want[i] += 0.5 * f64::from(grads[i]) / norm;
        }
        close(&flat(&w), &want, 1e-7, "perturb");
        assert_eq!(flat(&w)[5002..9000], before[5002..9000]);
        assert!(perturb(&w, (&g, &squares), 0.5, &[0..5, 4..6]).is_err());
        assert!(perturb(&w, (&g, &squares), 0.5, std::slice::from_ref(&(0..n + 1))).is_err());
    }

    #[test]
    fn nothing_moves_without_a_direction() {
        let w = vector(5, 1);
        let before = flat(&w);
        for x in [0.0, f64::NAN, f64::INFINITY] {
            let g = vector(5, 2).affine(0.0, x).unwrap();
            let all = std::slice::from_ref(&(0..5));
            perturb(&w, (&g, &sum_squares(&g, all).unwrap()), 0.5, all).unwrap();
            assert_eq!(flat(&w), before, "{x}");
        }
    }
}
