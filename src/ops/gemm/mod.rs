//! Matrix products of linear layers, in the three forms that training needs. Weights are `[out, in]` as in PyTorch.
//!
//! The CPU body is the `gemm` crate (AVX-512 by the `x86-v4` feature), the one candle uses; measured there at the rate of
//! MKL for BERT's shapes.

use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};

/// `y[tokens, out] = x[tokens, in] · w[out, in]ᵀ`
pub fn linear(y: &Tensor, x: &Tensor, w: &Tensor) -> Result<()> {
    launch(&Product { name: "linear", lhs_t: false, rhs_t: true, accumulate: false }, &[y], &[x, w])
}

/// `dx[tokens, in] = dy[tokens, out] · w[out, in]`, added to `dx` if `accumulate`.
pub fn linear_input_grad(dx: &Tensor, dy: &Tensor, w: &Tensor, accumulate: bool) -> Result<()> {
    launch(&Product { name: "linear_input_grad", lhs_t: false, rhs_t: false, accumulate }, &[dx], &[dy, w])
}

/// `dw[out, in] = dy[tokens, out]ᵀ · x[tokens, in]`, added to `dw` if `accumulate`.
pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    launch(&Product { name: "linear_weight_grad", lhs_t: true, rhs_t: false, accumulate }, &[dw], &[dy, x])
}

/// `c (+)= op(a) · op(b)`, where `op` transposes if the flag says so.
struct Product {
    name: &'static str,
    lhs_t: bool,
    rhs_t: bool,
    accumulate: bool,
}

impl Kernel for Product {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([c], [a, b]) = (dst, src) else { bail!("{}: one destination, two sources", self.name) };
        // (rows, cols, row stride, column stride) after the transposition.
        let view = |s: &Src, t: bool| if t { (s.cols, s.rows, 1, s.stride) } else { (s.rows, s.cols, s.stride, 1) };
        let (m, k, a_rs, a_cs) = view(a, self.lhs_t);
        let (kb, n, b_rs, b_cs) = view(b, self.rhs_t);
        if k != kb || c.rows != m || c.cols != n {
            bail!("{}: [{m}, {k}] · [{kb}, {n}] does not give [{}, {}]", self.name, c.rows, c.cols);
        }
        let threads = rayon::current_num_threads();
        let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
        let (a, b) = (a.f32()?, b.f32()?);
        // SAFETY: the slices span exactly the views that the sizes and strides describe.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.data.as_mut_ptr(),
                1,
                c.stride as isize,
                self.accumulate,
                a.as_ptr(),
                a_cs as isize,
                a_rs as isize,
                b.as_ptr(),
                b_cs as isize,
                b_rs as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                parallelism,
            )
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, flat, matrix};

    /// `c + op(a) · op(b)` in f64.
    fn reference(c: &Tensor, a: &Tensor, b: &Tensor) -> Vec<f64> {
        let (a, b, c) = (
            a.to_dtype(candle_core::DType::F64),
            b.to_dtype(candle_core::DType::F64),
            c.to_dtype(candle_core::DType::F64),
        );
        let c =
            (c.unwrap() + a.unwrap().contiguous().unwrap().matmul(&b.unwrap().contiguous().unwrap()).unwrap()).unwrap();
        c.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn all_three_forms_on_odd_shapes_and_views() {
        for (t, i, o) in [(1, 1, 1), (3, 5, 7), (33, 48, 17), (130, 96, 65)] {
            let (x, w, dy) = (matrix(t, i, 1), matrix(o, i, 2), matrix(t, o, 3));
            let zero = |r, c| crate::ops::testing::zeros(r, c);
            let y = matrix(t, o, 9);
            linear(&y, &x, &w).unwrap();
            close(&flat(&y), &reference(&zero(t, o), &x, &w.t().unwrap()), 1e-5, "y");
            for accumulate in [false, true] {
                let dx = matrix(t, i, 4);
                let start = if accumulate { dx.copy().unwrap() } else { zero(t, i) };
                linear_input_grad(&dx, &dy, &w, accumulate).unwrap();
                close(&flat(&dx), &reference(&start, &dy, &w), 1e-5, "dx");
                let dw = matrix(o, i, 5);
                let start = if accumulate { dw.copy().unwrap() } else { zero(o, i) };
                linear_weight_grad(&dw, &dy, &x, accumulate).unwrap();
                close(&flat(&dw), &reference(&start, &dy.t().unwrap(), &x), 1e-5, "dw");
            }
            // A strided destination: only its columns change.
            let wide = matrix(t, o + 3, 6);
            let before = flat(&wide.narrow(1, 0, 3).unwrap());
            linear(&wide.narrow(1, 3, o).unwrap(), &x, &w).unwrap();
            close(&flat(&wide.narrow(1, 3, o).unwrap()), &reference(&zero(t, o), &x, &w.t().unwrap()), 1e-5, "view");
            assert_eq!(flat(&wide.narrow(1, 0, 3).unwrap()), before);
        }
    }

    #[test]
    fn wrong_shapes_and_shared_storage_are_refused() {
        let (x, w) = (matrix(3, 4, 1), matrix(5, 6, 2));
        assert!(linear(&matrix(3, 5, 3), &x, &w).is_err());
        let shared = matrix(8, 4, 1);
        let (y, x) = (shared.narrow(0, 0, 4).unwrap(), shared.narrow(0, 4, 4).unwrap());
        assert!(linear(&y, &x, &matrix(4, 4, 2)).unwrap_err().to_string().contains("shares its storage"));
    }
}
