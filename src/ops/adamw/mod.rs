//! AdamW (Loshchilov & Hutter 2019) over flat arenas, fused with clipping: one pass over weights, gradients and both
//! moments on all threads. The gradient's norm stays where the gradients are, so that nobody waits for it.

#[cfg(gpu)]
pub(super) mod cuda;

use crate::ops::cpu::{Shared, lane_sum, madd, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::pool::for_each;
use crate::ops::readback::Readback;
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::ops::Range;

/// One step's scalars, as `torch.optim.AdamW` names them.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// 1 for the first step.
    pub step: u64,
    /// Gradients whose norm is larger are scaled down to it first; 0 turns clipping off.
    pub max_grad_norm: f64,
}

/// A range of the arenas that takes part in a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    pub range: Range<usize>,
    pub weight_decay: f64,
    /// The learning rate is multiplied by this.
    pub rate: f64,
    /// Steps that the range sat out before it began to learn: its bias corrections count without them.
    pub since: u64,
}

impl Segment {
    /// At the learning rate itself, from the first step on.
    pub fn new(range: Range<usize>, weight_decay: f64) -> Self {
        Self { range, weight_decay, rate: 1.0, since: 0 }
    }
}

impl AdamWStep {
    /// What gradients of this sum of squares are multiplied by, as in `torch.nn.utils.clip_grad_norm_`; `None` where it is not
    /// finite.
    fn grad_scale(&self, squares: f64) -> Option<f64> {
        let norm = squares.sqrt();
        // The small constant keeps a zero norm from dividing.
        let clip = if self.max_grad_norm > 0.0 { (self.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        norm.is_finite().then_some(clip)
    }

    /// What the loop over a segment's values needs.
    fn scalars(&self, segment: &Segment, grad_scale: f64) -> Scalars {
        let steps = self.step.saturating_sub(segment.since).max(1) as i32;
        let correction1 = 1.0 - self.beta1.powi(steps);
        let correction2 = 1.0 - self.beta2.powi(steps);
        let learning_rate = self.learning_rate * segment.rate;
        Scalars {
            scale: grad_scale as f32,
            beta1: self.beta1 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            step_size: (learning_rate / correction1) as f32,
            inverse_sqrt_correction2: (1.0 / correction2.sqrt()) as f32,
            epsilon: self.epsilon as f32,
            keep: (1.0 - learning_rate * segment.weight_decay) as f32,
        }
    }
}

/// Updates `weights` and the moments `m`, `v` from `grads` (all `[parameters]`), whose sum of squares clips them, on the
/// given ascending, disjoint segments. Elsewhere nothing moves: right where gradient and moments are zero and weight decay
/// is off. Where the sum of squares is not finite nothing moves at all.
pub fn adamw(
    weights: &Tensor,
    m: &Tensor,
    v: &Tensor,
    (grads, squares): (&Tensor, &SumSquares),
    step: AdamWStep,
    segments: &[Segment],
) -> Result<()> {
    launch(&AdamW { step, segments }, &[weights, m, v], &[grads, &squares.0])
}

/// A sum of squares in f64 on the device of the values.
#[derive(Debug, Clone)]
pub struct SumSquares(Tensor);

impl SumSquares {
    /// Of values that are not known to be finite.
    pub fn nan(device: &Device) -> Result<Self> {
        Ok(Self(Tensor::from_slice(&halves(f64::NAN), 2, device)?))
    }

    /// Waits for the device.
    pub fn read(&self) -> Result<f64> {
        Ok(Readback::start(&[&self.0])?.wait()?[0])
    }

    /// `[2]`, an f64 in two halves as [`Readback`] takes them.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }
}

/// The bits of an f64 in two f32s, the format of destinations; the lower ones first.
fn halves(x: f64) -> [f32; 2] {
    [x.to_bits() as u32, (x.to_bits() >> 32) as u32].map(f32::from_bits)
}

/// What [`halves`] halved.
pub(super) fn whole([low, high]: [f32; 2]) -> f64 {
    f64::from_bits(u64::from(high.to_bits()) << 32 | u64::from(low.to_bits()))
}

/// Σ g² over the ranges, in f64 over fixed blocks: the same bits for every thread count. A GPU is not waited for.
pub fn sum_squares(grads: &Tensor, ranges: &[Range<usize>]) -> Result<SumSquares> {
    let sum = Tensor::zeros(2, DType::F32, grads.device())?;
    launch(&Squares { ranges }, &[&sum], &[grads])?;
    Ok(SumSquares(sum))
}

/// Elements a block; small enough that an f32 partial sum keeps its digits and that blocks spread over threads.
const BLOCK: usize = 4096;
/// Blocks a task.
const TASK: usize = 16;

/// A range in blocks.
pub(super) fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(BLOCK).map(move |at| at..(at + BLOCK).min(range.end))
}

simd! {
    fn block_squares(g: &[f32]) -> f32 {
        lane_sum([g], |[g]| g * g)
    }
}

struct AdamW<'a> {
    step: AdamWStep,
    segments: &'a [Segment],
}

impl AdamW<'_> {
    fn check_order(&self) -> Result<()> {
        if self.segments.windows(2).any(|s| s[0].range.end > s[1].range.start) {
            bail!("adamw: segments overlap");
        }
        Ok(())
    }
}

impl Kernel for AdamW<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([w, m, v], [g, squares]) = (dst, src) else { bail!("adamw: three destinations, two sources") };
        let (w, m, v, g) = (w.f32()?, m.f32()?, v.f32()?, g.f32()?);
        let &[low, high] = squares.f32()? else { bail!("adamw: the sum of squares has two halves") };
        let n = w.len();
        if m.len() != n || v.len() != n || g.len() != n {
            bail!("adamw: arenas of {n}, {}, {} and {} values", m.len(), v.len(), g.len());
        }
        self.check_order()?;
        if self.segments.last().is_some_and(|s| s.range.end > n) {
            bail!("adamw: segments leave the arena");
        }
        let Some(scale) = self.step.grad_scale(whole([low, high])) else { return Ok(()) };
        let work: Vec<(Range<usize>, Scalars)> = self
            .segments
            .iter()
            .map(|s| (s, self.step.scalars(s, scale)))
            .flat_map(|(s, scalars)| blocks(s.range.clone()).map(move |b| (b, scalars)))
            .collect();
        let (w, m, v) = (Shared::new(w), Shared::new(m), Shared::new(v));
        for_each(work.len().div_ceil(TASK), |task| {
            for (range, scalars) in work.iter().skip(task * TASK).take(TASK) {
                // SAFETY: segments are disjoint (checked above) and blocks cut them without overlap.
                let (w, m, v) = unsafe { (w.range(range.clone()), m.range(range.clone()), v.range(range.clone())) };
                update(w, m, v, &g[range.clone()], *scalars);
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        self.check_order()?;
        cuda::step(self, gpu, dst, src)
    }
}

/// [`sum_squares`] into `[2]`.
struct Squares<'a> {
    ranges: &'a [Range<usize>],
}

impl Kernel for Squares<'_> {
    fn name(&self) -> &'static str {
        "sum_squares"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([out], [g]) = (dst, src) else { bail!("sum_squares: one destination, one source") };
        let (out, values) = (out.f32()?, g.f32()?);
        if out.len() != 2 || self.ranges.iter().any(|r| r.end > values.len()) {
            bail!("sum_squares: {} halves of a sum over {} values", out.len(), values.len());
        }
        let blocks: Vec<Range<usize>> = self.ranges.iter().cloned().flat_map(blocks).collect();
        let mut sums = vec![0f64; blocks.len()];
        let shared = Shared::new(&mut sums);
        for_each(blocks.len().div_ceil(TASK), |task| {
            let mine = task * TASK..blocks.len().min((task + 1) * TASK);
            // SAFETY: tasks are disjoint.
            let sums = unsafe { shared.range(mine.clone()) };
            for (sum, block) in sums.iter_mut().zip(&blocks[mine]) {
                *sum = block_squares(&values[block.clone()]) as f64;
            }
        });
        out.copy_from_slice(&halves(sums.iter().sum()));
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::squares(self.ranges, gpu, dst, src)
    }
}

#[derive(Clone, Copy)]
struct Scalars {
    scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    inverse_sqrt_correction2: f32,
    epsilon: f32,
    /// What weight decay leaves of a weight.
    keep: f32,
}

simd! {
    fn update(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: Scalars) {
        let n = g.len();
        let (w, m, v) = (&mut w[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = g[i] * s.scale;
            m[i] = madd::<FMA>(s.beta1, m[i], s.one_minus_beta1 * g);
            v[i] = madd::<FMA>(s.beta2, v[i], s.one_minus_beta2 * g * g);
            let denominator = madd::<FMA>(v[i].sqrt(), s.inverse_sqrt_correction2, s.epsilon);
            w[i] = w[i] * s.keep - s.step_size * m[i] / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, flat, vector};

    #[test]
    fn matches_the_definition_over_steps_and_leaves_the_rest() {
        let n = 10_007;
        let (w, m, v) = (vector(n, 1), vector(n, 2).affine(0.0, 0.0).unwrap(), vector(n, 2).affine(0.0, 0.0).unwrap());
        let segments = [
            Segment::new(3..5000, 0.1),
            Segment::new(5000..5001, 0.0),
            // Slower, and at rest in the first two steps.
            Segment { rate: 0.3, since: 2, ..Segment::new(9000..n, 0.2) },
        ];
        let mut w64: Vec<f64> = flat(&w).iter().map(|&v| v as f64).collect();
        let (mut m64, mut v64) = (vec![0f64; n], vec![0f64; n]);
        for step in 1..=5 {
            let g = vector(n, 10 + step as u32);
            let (learning, squares) = (&segments[..if step > 2 { 3 } else { 2 }], sum_of(&g, 0..n));
            let s = AdamWStep { step, ..FIRST };
            adamw(&w, &m, &v, (&g, &squares), s, learning).unwrap();
            let g = flat(&g);
            let scale = FIRST.max_grad_norm / g.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!(scale < 0.9, "clipping must show");
            for seg in learning {
                let (rate, step) = (1e-2 * seg.rate, (step - seg.since) as i32);
                for i in seg.range.clone() {
                    let gi = g[i] as f64 * scale;
                    m64[i] = 0.9 * m64[i] + 0.1 * gi;
                    v64[i] = 0.999 * v64[i] + 0.001 * gi * gi;
                    let mhat = m64[i] / (1.0 - 0.9f64.powi(step));
                    let vhat = v64[i] / (1.0 - 0.999f64.powi(step));
                    w64[i] -= rate * (seg.weight_decay * w64[i] + mhat / (vhat.sqrt() + 1e-8));
                }
            }
        }
        close(&flat(&w), &w64, 1e-6, "w");
        close(&flat(&m), &m64, 1e-6, "m");
        close(&flat(&v), &v64, 1e-6, "v");
        let bad = [Segment::new(0..5, 0.0), Segment::new(4..6, 0.0)];
        let g = vector(n, 1);
        let squares = sum_of(&g, 0..n);
        assert!(adamw(&w, &m, &v, (&g, &squares), FIRST, &bad).is_err());
    }

    /// Off, or above the norm, clipping changes nothing; beside a norm that is not finite nothing moves.
    #[test]
    fn clips_by_the_norm_where_it_is_finite() {
        let n = 5000;
        let (g, all) = (vector(n, 3), [Segment::new(0..n, 0.1)]);
        let norm = sum_of(&g, 0..n);
        let run = |squares: &SumSquares, max_grad_norm: f64| {
            let (w, m, v) = (vector(n, 1), vector(n, 2), vector(n, 2).sqr().unwrap());
            let s = AdamWStep { max_grad_norm, ..FIRST };
            adamw(&w, &m, &v, (&g, squares), s, &all).unwrap();
            [w, m, v].map(|t| flat(&t))
        };
        let free = run(&norm, 0.0);
        assert_eq!(free, run(&norm, 1e9));
        assert_ne!(free, run(&norm, 1.0));
        let still = [vector(n, 1), vector(n, 2), vector(n, 2).sqr().unwrap()].map(|t| flat(&t));
        assert_ne!(free, still);
        for x in [f64::NAN, f64::INFINITY] {
            let broken = g.affine(1.0, x).unwrap();
            for squares in [SumSquares::nan(g.device()).unwrap(), sum_of(&broken, 7..8)] {
                assert!(!squares.read().unwrap().is_finite());
                assert_eq!(run(&squares, 1.0), still);
                assert_eq!(run(&squares, 0.0), still);
            }
        }
    }

    fn sum_of(g: &Tensor, range: Range<usize>) -> SumSquares {
        sum_squares(g, std::slice::from_ref(&range)).unwrap()
    }

    const FIRST: AdamWStep =
        AdamWStep { learning_rate: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, step: 1, max_grad_norm: 40.0 };

    #[test]
    fn sum_of_squares() {
        let g = vector(20_011, 4);
        let want: f64 = flat(&g)[5..].iter().map(|&x| (x as f64).powi(2)).sum();
        let got = sum_squares(&g, &[5..6, 6..20_011]).unwrap().read().unwrap();
        assert!((got / want - 1.0).abs() < 1e-6, "{got} {want}");
        assert!(sum_squares(&g, std::slice::from_ref(&(5..20_012))).is_err());
    }
}
