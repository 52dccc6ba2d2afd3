//! Rotary position embedding (Su et al. 2021): each head's halves of a query or key, as pairs of coordinates, are turned by
//! angles that grow with the position, so that products of two depend on their distance.

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{Shared, for_chunks, madd, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::index::Index;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// Rows a thread gets at least.
const GRAIN: usize = 16;

/// Cosines and sines side by side, `[positions, head_dim]`, of the angles `position · theta^(−2i / head_dim)`, in f32 as
/// `transformers` computes them.
pub fn angles(positions: usize, head_dim: usize, theta: f64) -> Vec<f32> {
    let half = head_dim / 2;
    let exponent = |i: usize| f64::from((2 * i) as f32 / head_dim as f32);
    let frequencies: Vec<f32> = (0..half).map(|i| 1.0 / theta.powf(exponent(i)) as f32).collect();
    let row = |p: usize| {
        let angles = frequencies.iter().map(move |f| f64::from(p as f32 * f));
        angles.clone().map(|a| a.cos() as f32).chain(angles.map(|a| a.sin() as f32))
    };
    (0..positions).flat_map(row).collect()
}

/// Turns in place `x: [rows, heads · head_dim]` (f32 or bf16, any row stride), row `i` by the angles of `positions[i]` in
/// `table`, or back by them. Turning a gradient back is the backward pass.
pub fn rotate(x: &Tensor, table: &Tensor, positions: &Index, back: bool) -> Result<()> {
    positions.expect("rotate", x.dim(0)?, table.dim(0)?)?;
    launch(&Rotate { back }, &[x], &[table, positions.tensor()])
}

struct Rotate {
    back: bool,
}

impl Kernel for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([x], [table, positions]) = (dst, src) else { bail!("rotate: one destination, two sources") };
        let (rows, cols, stride, d) = (x.rows, x.cols, x.stride, table.cols);
        let (at, angles) = (positions.u32()?, table.f32()?);
        check((rows, cols), at.len(), (table.rows, d, table.stride))?;
        by_format!(x, T => {
            let x = Shared::new(x.values::<T>()?);
            for_chunks(rows, GRAIN, |_, r| rotate_rows(x, [cols, stride, d], r, at, angles, self.back));
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::rotate(self.back, gpu, dst, src)
    }
}

/// Checks shapes: of `x`, of the positions, and the table's with its stride.
fn check((rows, cols): (usize, usize), positions: usize, (angles, d, stride): (usize, usize, usize)) -> Result<()> {
    if positions != rows || d == 0 || !d.is_multiple_of(2) || !cols.is_multiple_of(d) || stride != d {
        bail!("rotate: [{rows}, {cols}] by {positions} positions in a table [{angles}, {d}]");
    }
    Ok(())
}

simd! {
    fn rotate_rows[T](
        x: Shared<'_, T>, shape: [usize; 3], rows: Range<usize>, at: &[u32], angles: &[f32], back: bool,
    ) {
        let [cols, stride, d] = shape;
        let sign = if back { -1.0 } else { 1.0 };
        let half = d / 2;
        for i in rows {
            // SAFETY: rows are disjoint.
            let row = unsafe { x.range(i * stride..i * stride + cols) };
            let (cos, sin) = angles[at[i] as usize * d..][..d].split_at(half);
            for head in row.chunks_exact_mut(d) {
                let (a, b) = head.split_at_mut(half);
                let (b, cos, sin) = (&mut b[..half], &cos[..half], &sin[..half]);
                for j in 0..half {
                    let (p, q, s) = (a[j].to_f32(), b[j].to_f32(), sign * sin[j]);
                    a[j] = T::from_f32(madd::<FMA>(p, cos[j], -(q * s)));
                    b[j] = T::from_f32(madd::<FMA>(q, cos[j], p * s));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, close, flat, matrix, rounded, wide};

    /// As complex numbers: (a + ib)·e^(i·angle).
    fn reference(x: &[f32], cols: usize, d: usize, positions: &[u32], theta: f64) -> Vec<f64> {
        let mut out = vec![0.0; x.len()];
        for (i, &p) in positions.iter().enumerate() {
            for at in (0..cols).step_by(d).map(|c| i * cols + c) {
                for j in 0..d / 2 {
                    let angle = f64::from(p) * theta.powf(-2.0 * j as f64 / d as f64);
                    let (a, b) = (f64::from(x[at + j]), f64::from(x[at + d / 2 + j]));
                    out[at + j] = a * angle.cos() - b * angle.sin();
                    out[at + d / 2 + j] = b * angle.cos() + a * angle.sin();
                }
            }
        }
        out
    }

    #[test]
    fn turns_there_and_back() {
        for (rows, heads, d) in [(1, 1, 2), (15, 2, 8), (33, 3, 10), (70, 2, 64)] {
            let (cols, theta) = (heads * d, 10_000.0);
            let positions: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 100).collect();
            let whole = matrix(rows, cols + 3, 1);
            let start = whole.copy().unwrap();
            let x = whole.narrow(1, 1, cols).unwrap();
            let table = Tensor::from_vec(angles(100, d, theta), (100, d), x.device()).unwrap();
            let at = Index::new(&positions, x.device()).unwrap();
            let want = reference(&flat(&x), cols, d, &positions, theta);
            rotate(&x, &table, &at, false).unwrap();
            close(&flat(&x), &want, 1e-5, "turned");
            rotate(&x, &table, &at, true).unwrap();
            close(&flat(&whole), &flat(&start).iter().map(|&v| v as f64).collect::<Vec<_>>(), 1e-6, "turned back");
            let half = bf16(&start.narrow(1, 1, cols).unwrap().contiguous().unwrap());
            let exact = wide(&half);
            [&half, &exact].into_iter().for_each(|x| rotate(x, &table, &at, false).unwrap());
            rounded(&half, &exact, 0.0, "bf16");
        }
    }

    #[test]
    fn a_position_outside_the_table_is_refused() {
        let (x, table) = (matrix(1, 4, 1), matrix(3, 4, 2));
        let at = |positions: &[u32]| Index::new(positions, x.device()).unwrap();
        assert!(rotate(&x, &table, &at(&[3]), false).is_err() && rotate(&x, &table, &at(&[0, 0]), false).is_err());
        assert!(rotate(&matrix(1, 6, 1), &table, &at(&[0]), false).is_err());
    }
}
