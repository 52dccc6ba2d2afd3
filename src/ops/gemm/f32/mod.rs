//! The f32 products on machines with AVX-512. Both operands are read where they lie, in all forms but `x · wᵀ`, whose weight
//! is transposed into panels first. (The `gemm` crate packs both every time: 7 % of a step of MiniLM on SST-2.)

#[cfg(target_arch = "x86_64")]
mod avx512;
mod operands;

use super::epilogue::Out;
use super::weight::Format;
use crate::ops::cpu::{Level, level};
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};
use operands::{Panels, Product};
use std::cell::Cell;

/// Whether this machine runs our kernel.
pub fn ours() -> bool {
    cfg!(target_arch = "x86_64") && level() >= Level::Avx512
}

impl Format for f32 {
    fn packed_len(depth: usize, cols: usize) -> usize {
        operands::packed_len(depth, cols)
    }

    fn pack_transposed(to: &mut [Self], w: &[f32], cols: usize, depth: usize, stride: usize) {
        operands::pack_transposed(to, w, cols, depth, stride);
    }

    fn with_room<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        // Taken out and put back, as this thread may run other products while it waits.
        thread_local!(static ROOM: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
        let mut room = ROOM.take();
        if room.len() < len {
            room.resize(len, 0.0);
        }
        let result = f(&mut room[..len]);
        ROOM.set(room);
        result
    }

    unsafe fn times_packed(a: &Src<'_>, b: &[Self], n: usize, out: Out<'_, Self>) -> Result<()> {
        // SAFETY: by the caller's promise.
        unsafe { times(a, b, n, Panels::Packed, out) }
    }

    unsafe fn times_rows(a: &Src<'_>, w: &Src<'_>, out: Out<'_, Self>) -> Result<()> {
        // SAFETY: by the caller's promise.
        unsafe { times(a, w.f32()?, w.cols, Panels::InPlace { stride: w.stride }, out) }
    }
}

/// # Safety
/// As for [`Format`]'s products.
unsafe fn times(a: &Src<'_>, b: &[f32], n: usize, panels: Panels, out: Out<'_, f32>) -> Result<()> {
    if !ours() {
        bail!("f32 products with packed weights need AVX-512");
    }
    let product = Product { m: a.rows, n, k: a.cols, a: a.f32()?, lda: a.stride, a_transposed: false, b, panels };
    // SAFETY: by the caller's promise.
    unsafe { product.run(out) };
    Ok(())
}

pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    launch(&WeightGrad { accumulate }, &[dw], &[dy, x])
}

struct WeightGrad {
    accumulate: bool,
}

impl Kernel for WeightGrad {
    fn name(&self) -> &'static str {
        "linear_weight_grad"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dw], [dy, x]) = (dst, src) else { bail!("linear_weight_grad: one destination, two sources") };
        let (m, n, k) = (dy.cols, x.cols, dy.rows);
        if k == 0 || x.rows != k || (dw.rows, dw.cols) != (m, n) {
            let (r, c) = (dw.rows, dw.cols);
            bail!("linear_weight_grad: [{k}, {m}]ᵀ · [{}, {n}] does not give [{r}, {c}]", x.rows);
        }
        let panels = Panels::InPlace { stride: x.stride };
        let product = Product { m, n, k, a: dy.f32()?, lda: dy.stride, a_transposed: true, b: x.f32()?, panels };
        let stride = dw.stride;
        // SAFETY: `dw` is [m, n], checked above, and shares no memory with the operands.
        unsafe { product.run(Out::Sum { c: (dw.f32()?.as_mut_ptr(), stride), add: self.accumulate }) };
        Ok(())
    }
}
