//! The bf16 products, with kernels of our own: AMX tiles where the machine has them, AVX512-BF16 otherwise.
//!
//! All three forms are one: row-major `a` times a packed `b` ([`pack`]), tile by tile ([`super::drive`]), each finished tile
//! handed to an epilogue ([`super::epilogue`]) that adds the bias, applies the activation or its slope, or adds what was there, and rounds.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod operands;
pub(super) mod pack;

use super::epilogue::Out;
use super::weight::Format;
use crate::ops::cpu::{Level, has_avx512_bf16, level};
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};
use half::bf16;
use operands::Product;
use std::cell::Cell;

/// Which kernel computes the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Avx512,
    Amx,
}

impl Engine {
    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX512-BF16",
            Self::Amx => "AMX",
        }
    }
}

/// The engine of this machine at its [`level`]; `None`: it has no bf16 products.
pub fn bf16_engine() -> Option<Engine> {
    match level() {
        Level::Amx => Some(Engine::Amx),
        Level::Avx512 if has_avx512_bf16() => Some(Engine::Avx512),
        _ => None,
    }
}

fn engine() -> Result<Engine> {
    match bf16_engine() {
        Some(engine) => Ok(engine),
        None => bail!("this CPU has no bf16 products (AVX512-BF16 or AMX)"),
    }
}

impl Format for bf16 {
    fn packed_len(depth: usize, cols: usize) -> usize {
        pack::packed_len(depth, cols)
    }

    fn pack_transposed(to: &mut [Self], w: &[f32], cols: usize, depth: usize, stride: usize) {
        pack::columns_of_rows(to, w, cols, depth, stride);
    }

    fn with_room<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        // Taken out and put back, as this thread may run other products while it waits.
        thread_local!(static ROOM: Cell<Vec<bf16>> = const { Cell::new(Vec::new()) });
        let mut room = ROOM.take();
        if room.len() < len {
            room.resize(len, bf16::ZERO);
        }
        let result = f(&mut room[..len]);
        ROOM.set(room);
        result
    }

    unsafe fn times_packed(a: &Src<'_>, b: &[Self], n: usize, out: Out<'_, Self>) -> Result<()> {
        let product = Product { m: a.rows, n, k: a.cols, a: a.values()?, lda: a.stride, b };
        // SAFETY: by the caller's promise.
        unsafe { operands::run(engine()?, product, out) };
        Ok(())
    }

    unsafe fn times_rows(a: &Src<'_>, w: &Src<'_>, out: Out<'_, Self>) -> Result<()> {
        engine()?;
        Self::with_room(pack::packed_len(w.rows, w.cols), |room| {
            pack::rows(room, w.f32()?, w.rows, w.cols, w.stride);
            // SAFETY: by the caller's promise; `room` is packed for `w`.
            unsafe { Self::times_packed(a, room, w.cols, out) }
        })
    }
}

/// `dw[out, in] (+)= dyᵀ · x`: both operands are packed first, with the tokens as depth.
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
        let (m, n, tokens) = (dy.cols, x.cols, dy.rows);
        if tokens == 0 || x.rows != tokens || (dw.rows, dw.cols) != (m, n) {
            let (r, c) = (dw.rows, dw.cols);
            bail!("linear_weight_grad: [{tokens}, {m}]ᵀ · [{}, {n}] does not give [{r}, {c}]", x.rows);
        }
        let engine = engine()?;
        let depth = pack::padded_depth(tokens);
        let lda = pack::row_stride(depth);
        let (a_len, b_len) = (m * lda, pack::packed_len(tokens, n));
        bf16::with_room(a_len + b_len, |room| {
            let (a, b) = room.split_at_mut(a_len);
            pack::transpose(a, dy.values::<bf16>()?, tokens, m, dy.stride);
            pack::rows(b, x.values::<bf16>()?, tokens, n, x.stride);
            let stride = dw.stride;
            let out = Out::Sum { c: (dw.f32()?.as_mut_ptr(), stride), add: self.accumulate };
            // SAFETY: `dw` is [m, n], checked above, and shares no memory with the operands.
            unsafe { operands::run(engine, Product { m, n, k: depth, a, lda, b }, out) };
            Ok(())
        })
    }
}
