//! Dropout from a counter-based generator: whether element `i` of a site is kept depends only on the site's key and
//! `i`. No mask is stored (the backward pass computes it again) and thread count or batch split change nothing.
//!
//! The generator is a 32-bit integer mix (`rng::bits`), which vectorises where Philox would cost more than the loop
//! around it.

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{Shared, for_chunks, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use crate::rng::{bits, splitmix};
use candle_core::{Result, Tensor, bail};

/// The dropout of one site in one forward pass, the same again in its backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    k0: u32,
    k1: u32,
    /// Kept if `bits >= threshold`.
    threshold: u32,
    /// 1 / (1 − p).
    scale: f32,
}

impl Dropout {
    /// Keeps everything.
    pub const OFF: Self = Self { k0: 0, k1: 0, threshold: 0, scale: 1.0 };

    /// Drops with probability `p` in `[0, 1)`; `key` names the site and the step.
    pub fn new(p: f32, key: u64) -> Self {
        if p <= 0.0 {
            return Self::OFF;
        }
        let k = splitmix(key);
        Self {
            k0: k as u32,
            k1: (k >> 32) as u32,
            threshold: (p as f64 * 4_294_967_296.0) as u32,
            scale: 1.0 / (1.0 - p),
        }
    }

    /// The same dropout rate under a key of its own, for a part of a site (an attention head, say).
    pub fn sub(&self, part: u64) -> Self {
        let k = splitmix(((self.k1 as u64) << 32 | self.k0 as u64) ^ splitmix(part));
        Self { k0: k as u32, k1: (k >> 32) as u32, ..*self }
    }

    /// As the CUDA kernels read it.
    #[cfg(gpu)]
    pub(crate) fn words(&self) -> [u32; 4] {
        [self.k0, self.k1, self.threshold, self.scale.to_bits()]
    }

    /// Whether nothing is ever dropped.
    pub fn is_off(&self) -> bool {
        self.threshold == 0
    }

    /// The factor of element `i`: 0 or 1 / (1 − p).
    #[inline(always)]
    pub fn factor(&self, i: u32) -> f32 {
        if bits(self.k0, self.k1, i) >= self.threshold { self.scale } else { 0.0 }
    }
}

/// `y = dropout(x)`, added to `y` if `add`; both dense and of one size, each in f32 or bf16. The first element is the site's
/// element `first`, and the others follow it.
pub fn masked(y: &Tensor, x: &Tensor, dropout: Dropout, first: u32, add: bool) -> Result<()> {
    launch(&Masked { dropout, first, add }, &[y], &[x])
}

struct Masked {
    dropout: Dropout,
    first: u32,
    add: bool,
}

impl Kernel for Masked {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([y], [x]) = (dst, src) else { bail!("dropout: one destination, one source") };
        by_format!(y, Y => by_format!(x, X => self.run(y.values::<Y>()?, x.values::<X>()?)))
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::masked(self, gpu, dst, src)
    }
}

impl Masked {
    fn run<Y: Real, X: Real>(&self, y: &mut [Y], x: &[X]) -> Result<()> {
        if y.len() != x.len() {
            bail!("dropout: {} values of {}", y.len(), x.len());
        }
        let (n, all) = (y.len(), Shared::new(y));
        for_chunks(n, GRAIN, |_, r| {
            let mut room = [0f32; PART];
            for start in r.clone().step_by(PART) {
                let part = start..r.end.min(start + PART);
                // SAFETY: chunks are disjoint.
                let y = unsafe { all.range(part.clone()) };
                let x = X::widen(&x[part.clone()], &mut room[..part.len()]);
                add_masked(y, x, self.dropout, self.first.wrapping_add(start as u32), self.add);
            }
        });
        Ok(())
    }
}

/// Values a thread gets at least, and values widened at once.
const GRAIN: usize = 1 << 14;
const PART: usize = 1 << 10;

simd! {
    fn add_masked[T](y: &mut [T], x: &[f32], drop: Dropout, first: u32, add: bool) {
        for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
            let x = if drop.is_off() { *x } else { *x * drop.factor(first.wrapping_add(i as u32)) };
            *y = T::from_f32(if add { y.to_f32() + x } else { x });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_scale_and_independence() {
        let n = 1 << 20;
        for p in [0.1f32, 0.5] {
            let (a, b) = (Dropout::new(p, 1), Dropout::new(p, 2));
            let (mut kept, mut both, mut next) = (0u32, 0u32, 0u32);
            for i in 0..n {
                let (ka, kb, kn) = (a.factor(i) > 0.0, b.factor(i) > 0.0, a.factor(i + 1) > 0.0);
                kept += ka as u32;
                both += (ka && kb) as u32;
                next += (ka && kn) as u32;
            }
            let q = 1.0 - p as f64;
            // Five standard deviations of a binomial count.
            let near = |count: u32, rate: f64| {
                (count as f64 / n as f64 - rate).abs() < 5.0 * (rate * (1.0 - rate) / n as f64).sqrt()
            };
            assert!(near(kept, q) && near(both, q * q) && near(next, q * q), "{p}: {kept} {both} {next}");
            assert_eq!((0..n).map(|i| a.factor(i)).fold(0.0, f32::max), 1.0 / (1.0 - p));
            assert_ne!(
                (0..64).map(|i| a.sub(1).factor(i)).collect::<Vec<_>>(),
                (0..64).map(|i| a.sub(2).factor(i)).collect::<Vec<_>>()
            );
        }
        assert_eq!(Dropout::new(0.0, 1), Dropout::OFF);
        assert!((0..100).all(|i| Dropout::OFF.factor(i) == 1.0));
    }

    #[test]
    fn masks_between_formats_follow_the_numbering() {
        use crate::ops::testing::{bf16, flat, matrix};
        for (rows, cols, p, first) in [(1, 1, 0.0, 0), (3, 700, 0.3, u32::MAX - 5), (40, 1000, 0.5, 7)] {
            let (drop, x) = (Dropout::new(p, 5), matrix(rows, cols, 1));
            let want = |x: &[f32]| -> Vec<f32> {
                x.iter().enumerate().map(|(i, v)| v * drop.factor(first.wrapping_add(i as u32))).collect()
            };
            let (y, start) = (matrix(rows, cols, 2), flat(&matrix(rows, cols, 2)));
            masked(&y, &x, drop, first, false).unwrap();
            assert_eq!(flat(&y), want(&flat(&x)));
            let y = matrix(rows, cols, 2);
            masked(&y, &bf16(&x), drop, first, true).unwrap();
            let sum: Vec<f32> = start.iter().zip(want(&flat(&bf16(&x)))).map(|(a, b)| a + b).collect();
            assert_eq!(flat(&y), sum);
            let y = bf16(&y);
            masked(&y, &x, Dropout::OFF, first, false).unwrap();
            assert_eq!(flat(&y), flat(&bf16(&x)));
        }
        assert!(masked(&matrix(2, 3, 1), &matrix(3, 3, 1), Dropout::OFF, 0, true).is_err());
    }
}
