//! The gated feed-forward activation (Shazeer 2020, "GLU Variants Improve Transformer": GeGLU with GELU), and dropout on it.

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{Shared, for_chunks, simd};
use crate::ops::dropout::Dropout;
use crate::ops::gelu::{Activation, by_activation};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};

/// Rows a thread gets at least.
const GRAIN: usize = 4;

/// `g = dropout(act(up[:, ..inner]) ∘ up[:, inner..])`; `g: [tokens, inner]`, `up: [tokens, 2·inner]` in f32 or bf16.
pub fn gated(g: &Tensor, up: &Tensor, act: Activation, dropout: Dropout) -> Result<()> {
    launch(&Forward { act, dropout }, &[g], &[up])
}

/// `dup: [tokens, 2·inner]` from `dg: [tokens, inner]`; backward of [`gated`].
pub fn gated_backward(dup: &Tensor, dg: &Tensor, up: &Tensor, act: Activation, dropout: Dropout) -> Result<()> {
    launch(&Backward { act, dropout }, &[dup], &[dg, up])
}

struct Forward {
    act: Activation,
    dropout: Dropout,
}

impl Kernel for Forward {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([g], [up]) = (dst, src) else { bail!("gated: one destination, one source") };
        let (rows, n) = (g.rows, g.cols);
        check("gated", (rows, n), (up.rows, up.cols), [g.stride == n, up.stride == 2 * n])?;
        by_format!(g, T => {
            let (g, up) = (Shared::new(g.values::<T>()?), up.values::<T>()?);
            for_chunks(rows, GRAIN, |_, r| {
                // SAFETY: chunks of rows are disjoint.
                let g = unsafe { g.range(r.start * n..r.end * n) };
                forward_rows(g, &up[2 * r.start * n..2 * r.end * n], n, self.act, self.dropout, r.start);
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self, gpu, dst, src)
    }
}

struct Backward {
    act: Activation,
    dropout: Dropout,
}

impl Kernel for Backward {
    fn name(&self) -> &'static str {
        "gated_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dup], [dg, up]) = (dst, src) else { bail!("gated_backward: one destination, two sources") };
        let (rows, n) = (dg.rows, dg.cols);
        check("gated_backward", (rows, n), (up.rows, up.cols), [dg.stride == n, up.stride == 2 * n])?;
        check("gated_backward", (rows, n), (dup.rows, dup.cols), [true, dup.stride == 2 * n])?;
        by_format!(dup, T => {
            let (dup, dg, up) = (Shared::new(dup.values::<T>()?), dg.values::<T>()?, up.values::<T>()?);
            for_chunks(rows, GRAIN, |_, r| {
                let wide = 2 * r.start * n..2 * r.end * n;
                // SAFETY: chunks of rows are disjoint.
                let dup = unsafe { dup.range(wide.clone()) };
                backward_rows(dup, &dg[r.start * n..r.end * n], &up[wide], n, self.act, self.dropout, r.start);
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self, gpu, dst, src)
    }
}

fn check(name: &str, (rows, n): (usize, usize), up: (usize, usize), dense: [bool; 2]) -> Result<()> {
    if up != (rows, 2 * n) || n == 0 || dense.contains(&false) {
        bail!("{name}: [{rows}, {n}] and [{}, {}], expected twice the width, dense", up.0, up.1);
    }
    Ok(())
}

simd! {
    fn forward_rows[T](g: &mut [T], up: &[T], n: usize, act: Activation, drop: Dropout, first: usize) {
        by_activation!(act, f => {
            for (r, (g, up)) in g.chunks_exact_mut(n).zip(up.chunks_exact(2 * n)).enumerate() {
                let (x, gate) = up.split_at(n);
                let (g, gate) = (&mut g[..n], &gate[..n]);
                if drop.is_off() {
                    for j in 0..n {
                        g[j] = T::from_f32(f(x[j].to_f32()).0 * gate[j].to_f32());
                    }
                } else {
                    let base = ((first + r) * n) as u32;
                    for j in 0..n {
                        let kept = drop.factor(base.wrapping_add(j as u32));
                        g[j] = T::from_f32(f(x[j].to_f32()).0 * gate[j].to_f32() * kept);
                    }
                }
            }
        })
    }
}

simd! {
    fn backward_rows[T](dup: &mut [T], dg: &[T], up: &[T], n: usize, act: Activation, drop: Dropout, first: usize) {
        by_activation!(act, f => {
            for (r, ((dup, dg), up)) in
                dup.chunks_exact_mut(2 * n).zip(dg.chunks_exact(n)).zip(up.chunks_exact(2 * n)).enumerate()
            {
                let ((x, gate), (dx, dgate)) = (up.split_at(n), dup.split_at_mut(n));
                let (gate, dgate, dg) = (&gate[..n], &mut dgate[..n], &dg[..n]);
                let base = ((first + r) * n) as u32;
                let off = drop.is_off();
                for j in 0..n {
                    let kept = if off { 1.0 } else { drop.factor(base.wrapping_add(j as u32)) };
                    let ((y, slope), d) = (f(x[j].to_f32()), dg[j].to_f32() * kept);
                    dx[j] = T::from_f32(d * gate[j].to_f32() * slope);
                    dgate[j] = T::from_f32(d * y);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gelu::bias_act;
    use crate::ops::testing::{bf16, close, flat, matrix, rounded, values, wide, zeros};

    /// Forward in f64 over the activation's own op, which has its tests.
    fn reference(up: &[f32], n: usize, act: Activation, drop: Dropout) -> Vec<f64> {
        let rows = up.len() / (2 * n);
        let (u, y) = (zeros(rows, n), zeros(rows, n));
        let x: Vec<f32> = up.chunks(2 * n).flat_map(|r| r[..n].to_vec()).collect();
        u.slice_set(&Tensor::from_vec(x, (rows, n), u.device()).unwrap(), 0, 0).unwrap();
        bias_act(&u, &y, &zeros(1, n).flatten_all().unwrap(), act).unwrap();
        let gate = up.chunks(2 * n).flat_map(|r| r[n..].to_vec());
        let y = flat(&y);
        gate.enumerate().map(|(i, gate)| f64::from(y[i]) * f64::from(gate) * f64::from(drop.factor(i as u32))).collect()
    }

    #[test]
    fn values_and_gradients() {
        for act in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            for (t, n, p) in [(1, 1, 0.0), (3, 7, 0.3), (50, 33, 0.0), (5, 48, 0.2)] {
                let (up, g, dg, dup) =
                    ((matrix(t, 2 * n, 1) * 3.0).unwrap(), zeros(t, n), matrix(t, n, 3), zeros(t, 2 * n));
                let drop = Dropout::new(p, 4);
                gated(&g, &up, act, drop).unwrap();
                close(&flat(&g), &reference(&flat(&up), n, act, drop), 1e-6, "g");
                gated_backward(&dup, &dg, &up, act, drop).unwrap();
                // Along a direction: the sum of dg·g moves by dup·direction.
                let (direction, w) = (values(2 * t * n, 8), flat(&dg));
                let at = |by: f32| {
                    let moved: Vec<f32> = flat(&up).iter().zip(&direction).map(|(u, d)| u + by * d).collect();
                    reference(&moved, n, act, drop).iter().zip(&w).map(|(a, b)| a * f64::from(*b)).sum::<f64>()
                };
                let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
                let want: f64 = flat(&dup).iter().zip(&direction).map(|(a, b)| f64::from(a * b)).sum();
                let size = w.iter().map(|v| f64::from(v.abs())).sum::<f64>();
                assert!((slope - want).abs() <= 1e-3 * size, "{act:?} {t} {n}: {slope} {want}");
            }
        }
    }

    #[test]
    fn bf16_is_f32_rounded() {
        [31, 32].into_iter().for_each(halves_are_rounded);
        assert!(gated(&zeros(3, 4), &zeros(3, 4), Activation::Gelu, Dropout::OFF).is_err());
    }

    fn halves_are_rounded(n: usize) {
        let (up, dg, drop) = (bf16(&matrix(17, 2 * n, 1)), bf16(&matrix(17, n, 2)), Dropout::new(0.2, 3));
        let run = |up: &Tensor, dg: &Tensor| {
            let (g, dup) = (dg.zeros_like().unwrap(), up.zeros_like().unwrap());
            gated(&g, up, Activation::Gelu, drop).unwrap();
            gated_backward(&dup, dg, up, Activation::Gelu, drop).unwrap();
            (g, dup)
        };
        let (got, want) = (run(&up, &dg), run(&wide(&up), &wide(&dg)));
        rounded(&got.0, &want.0, 0.0, "g");
        rounded(&got.1, &want.1, 0.0, "dup");
    }
}
