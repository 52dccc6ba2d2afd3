//! A linear layer's bias where no other op takes it along.

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{Shared, chunk_count, for_chunks, reduce_partials, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};

const GRAIN: usize = 32;

/// `y[tokens, out] += bias[out]`; `y` in f32.
pub fn add_bias(y: &Tensor, bias: &Tensor) -> Result<()> {
    launch(&Add, &[y], &[bias])
}

/// `dbias[out] = Σ_tokens dy[tokens, out]`, added to `dbias` if `accumulate`; `dy` in f32 or bf16.
pub fn bias_grad(dbias: &Tensor, dy: &Tensor, accumulate: bool) -> Result<()> {
    launch(&Grad { accumulate }, &[dbias], &[dy])
}

struct Add;

impl Kernel for Add {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([y], [bias]) = (dst, src) else { bail!("add_bias: one destination, one source") };
        let (n, bias) = (y.cols, bias.f32()?);
        if bias.len() != n || y.stride != n {
            bail!("add_bias: {} values for rows of {n}", bias.len());
        }
        let rows = y.rows;
        let y = Shared::new(y.f32()?);
        for_chunks(rows, GRAIN, |_, r| {
            // SAFETY: chunks of rows are disjoint.
            add_rows(unsafe { y.range(r.start * n..r.end * n) }, bias);
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::add(gpu, dst, src)
    }
}

simd! {
    fn add_rows(y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

struct Grad {
    accumulate: bool,
}

impl Kernel for Grad {
    fn name(&self) -> &'static str {
        "bias_grad"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([db], [dy]) = (dst, src) else { bail!("bias_grad: one destination, one source") };
        let db = db.f32()?;
        let n = db.len();
        if dy.cols != n || dy.stride != n {
            bail!("bias_grad: rows of {} for {n} values", dy.cols);
        }
        let mut partial = vec![0f32; chunk_count(dy.rows, GRAIN) * n];
        let shared = Shared::new(&mut partial);
        by_format!(dy, T => {
            let values = dy.values::<T>()?;
            for_chunks(dy.rows, GRAIN, |c, r| {
                // SAFETY: one partial sum a chunk.
                sum_rows(unsafe { shared.range(c * n..(c + 1) * n) }, &values[r.start * n..r.end * n]);
            });
        });
        reduce_partials(db, &partial, self.accumulate);
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::grad(self.accumulate, gpu, dst, src)
    }
}

simd! {
    fn sum_rows[T](sum: &mut [f32], dy: &[T]) {
        for row in dy.chunks_exact(sum.len()) {
            for (s, v) in sum.iter_mut().zip(row) {
                *s += v.to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, close, flat, matrix, vector};

    #[test]
    fn forward_and_gradient() {
        for (t, n) in [(1, 1), (5, 3), (100, 37), (2100, 16)] {
            let (y, b) = (matrix(t, n, 1), vector(n, 2));
            let (y0, bv) = (flat(&y), flat(&b));
            add_bias(&y, &b).unwrap();
            close(&flat(&y), &(0..t * n).map(|i| (y0[i] + bv[i % n]) as f64).collect::<Vec<_>>(), 1e-7, "y");
            let sums: Vec<f64> = (0..n).map(|j| (0..t).map(|i| y0[i * n + j] as f64).sum()).collect();
            let db = vector(n, 3);
            bias_grad(&db, &matrix(t, n, 1), false).unwrap();
            close(&flat(&db), &sums, 1e-5, "db");
            bias_grad(&db, &matrix(t, n, 1), true).unwrap();
            close(&flat(&db), &sums.iter().map(|s| 2.0 * s).collect::<Vec<_>>(), 1e-5, "accumulated");
            let dy = bf16(&matrix(t, n, 1));
            let y = flat(&dy);
            let sums: Vec<f64> = (0..n).map(|j| (0..t).map(|i| y[i * n + j] as f64).sum()).collect();
            bias_grad(&db, &dy, false).unwrap();
            close(&flat(&db), &sums, 1e-5, "bf16");
        }
    }
}
