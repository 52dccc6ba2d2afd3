//! The f32 products on machines with AVX-512 or AVX2. Both operands are read where they lie ([`reads_in_place`]), in all
//! forms but `x · wᵀ`, whose weight is transposed into panels first. (The `gemm` crate packs both every time: 7 % of a step
//! of MiniLM on SST-2.)

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod operands;

use super::epilogue::Out;
use super::weight::Format;
use crate::ops::Src;
use crate::ops::cpu::{Level, level};
use candle_core::{Result, bail};
use operands::{Panels, Product};
use std::cell::Cell;

/// Whether this machine runs our kernel.
pub fn ours() -> bool {
    cfg!(target_arch = "x86_64") && level() >= Level::Avx2
}

/// Whether the kernel also reads operands where they lie. The caches of machines without AVX-512 are too small for it: there
/// weights are packed in both forms, and weight gradients are the `gemm` crate's (copying blocks of both operands was 0.4 to
/// 0.9 times as fast).
pub fn reads_in_place() -> bool {
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
        if !reads_in_place() {
            let values = w.f32()?;
            return Self::with_room(operands::packed_len(w.rows, w.cols), |room| {
                operands::pack_rows(room, values, w.cols, w.rows, w.stride);
                // SAFETY: by the caller's promise.
                unsafe { times(a, room, w.cols, Panels::Packed, out) }
            });
        }
        // SAFETY: by the caller's promise.
        unsafe { times(a, w.f32()?, w.cols, Panels::InPlace { stride: w.stride }, out) }
    }

    unsafe fn transposed_times(a: &Src<'_>, b: &Src<'_>, out: Out<'_, Self>) -> Result<()> {
        if !reads_in_place() {
            bail!("this f32 product needs AVX-512");
        }
        let (panels, a_transposed) = (Panels::InPlace { stride: b.stride }, true);
        let product =
            Product { m: a.cols, n: b.cols, k: a.rows, a: a.f32()?, lda: a.stride, a_transposed, b: b.f32()?, panels };
        // SAFETY: by the caller's promise.
        unsafe { product.run(out) };
        Ok(())
    }
}

/// # Safety
/// As for [`Format`]'s products.
unsafe fn times(a: &Src<'_>, b: &[f32], n: usize, panels: Panels, out: Out<'_, f32>) -> Result<()> {
    if !ours() {
        bail!("this f32 product needs AVX2");
    }
    let product = Product { m: a.rows, n, k: a.cols, a: a.f32()?, lda: a.stride, a_transposed: false, b, panels };
    // SAFETY: by the caller's promise.
    unsafe { product.run(out) };
    Ok(())
}
