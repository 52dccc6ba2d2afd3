//! Exponential moving average of a flat arena: one pass over average and weights on all threads.

#[cfg(gpu)]
mod cuda;

use crate::ops::adamw::blocks;
use crate::ops::cpu::{Shared, madd, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::pool::for_each;
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// `average += share · (weights − average)` on the given ascending, disjoint ranges; a share of 1 − decay, as in
/// `torch.optim.swa_utils.get_ema_multi_avg_fn`. Where the two are equal nothing moves.
pub fn average(average: &Tensor, weights: &Tensor, share: f64, ranges: &[Range<usize>]) -> Result<()> {
    launch(&Average { share: share as f32, ranges }, &[average], &[weights])
}

struct Average<'a> {
    share: f32,
    ranges: &'a [Range<usize>],
}

impl Average<'_> {
    /// Checks the ranges against the sizes of the arenas.
    fn check(&self, average: usize, weights: usize) -> Result<()> {
        let ordered = self.ranges.windows(2).all(|r| r[0].end <= r[1].start);
        if !ordered || average != weights || self.ranges.last().is_some_and(|r| r.end > average) {
            bail!("average: ranges overlap or leave the arena, or arenas of {average} and {weights} values");
        }
        Ok(())
    }
}

/// Blocks a task.
const TASK: usize = 16;

impl Kernel for Average<'_> {
    fn name(&self) -> &'static str {
        "average"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([a], [w]) = (dst, src) else { bail!("average: one destination, one source") };
        let (a, w) = (a.f32()?, w.f32()?);
        self.check(a.len(), w.len())?;
        let work: Vec<Range<usize>> = self.ranges.iter().cloned().flat_map(blocks).collect();
        let a = Shared::new(a);
        for_each(work.len().div_ceil(TASK), |task| {
            for range in work.iter().skip(task * TASK).take(TASK) {
                // SAFETY: ranges are disjoint (checked above) and blocks cut them without overlap.
                let a = unsafe { a.range(range.clone()) };
                update(a, &w[range.clone()], self.share);
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::average(self, gpu, dst, src)
    }
}

simd! {
    fn update(a: &mut [f32], w: &[f32], share: f32) {
        let n = w.len();
        let a = &mut a[..n];
        for i in 0..n {
            a[i] = madd::<FMA>(share, w[i] - a[i], a[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, flat, vector};

    #[test]
    fn matches_the_definition_and_leaves_the_rest() {
        let n = 10_007;
        let (a, w) = (vector(n, 1), vector(n, 2));
        let (before, weights) = (flat(&a), flat(&w));
        let ranges = [3..5000, 5001..5002, 9000..n];
        average(&a, &w, 0.1, &ranges).unwrap();
        let mut want: Vec<f64> = before.iter().map(|&v| v as f64).collect();
        for i in ranges.into_iter().flatten() {
            want[i] = 0.9 * want[i] + 0.1 * weights[i] as f64;
        }
        close(&flat(&a), &want, 1e-7, "average");
        assert_eq!(flat(&a)[5002..9000], before[5002..9000]);
        let equal = w.copy().unwrap();
        average(&equal, &w, 0.3, std::slice::from_ref(&(0..n))).unwrap();
        assert_eq!(flat(&equal), weights);
        assert!(average(&a, &w, 0.1, &[0..5, 4..6]).is_err());
        assert!(average(&a, &w, 0.1, std::slice::from_ref(&(0..n + 1))).is_err());
    }
}
