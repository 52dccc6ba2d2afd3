//! The f32 products by the `gemm` crate, which candle uses too: for machines without AVX2.

#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};

/// `c (+)= op(a) · op(b)`, where `op` transposes if the flag beside the operand says so.
pub fn product(name: &'static str, c: &Tensor, a: (&Tensor, bool), b: (&Tensor, bool), accumulate: bool) -> Result<()> {
    launch(&Product { name, lhs_t: a.1, rhs_t: b.1, accumulate }, &[c], &[a.0, b.0])
}

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
        let (a, b, stride) = (a.f32()?, b.f32()?, c.stride as isize);
        // SAFETY: the slices span exactly the views that the sizes and strides describe.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c.f32()?.as_mut_ptr(),
                1,
                stride,
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

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        _ = (gpu, dst, src);
        bail!("{}: products on a device are cuBLAS's", self.name)
    }
}
