//! The bf16 products, with kernels of our own: AMX tiles where the machine has them, AVX512-BF16 otherwise; plain loops for
//! tests on other machines.
//!
//! All three forms are one: row-major `a` times a packed `b` ([`pack`]), tile by tile ([`super::drive`]), each finished tile
//! handed to an epilogue ([`super::epilogue`]) that adds the bias, applies the activation or its slope, or adds what was there, and rounds.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod operands;
pub(super) mod pack;
mod plain;

use super::epilogue::Out;
use super::weight::Format;
use crate::ops::Src;
use crate::ops::cpu::{Level, has_avx512_bf16, level};
use candle_core::{Result, bail};
use half::bf16;
use operands::Product;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// Which kernel computes the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Loops that every machine runs; used where [`allow_plain_bf16`] says so.
    Plain,
    Avx512,
    Amx,
}

impl Engine {
    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain loops",
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
        _ => PLAIN.load(Ordering::Relaxed).then_some(Engine::Plain),
    }
}

static PLAIN: AtomicBool = AtomicBool::new(false);

/// From now on machines without bf16 products have plain loops for them, slower than f32: so that tests see there what bf16
/// does to a model.
pub fn allow_plain_bf16() {
    PLAIN.store(true, Ordering::Relaxed);
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

    /// Both are packed first, with their rows as depth.
    unsafe fn transposed_times(a: &Src<'_>, b: &Src<'_>, out: Out<'_, Self>) -> Result<()> {
        let (engine, tokens, m, n) = (engine()?, a.rows, a.cols, b.cols);
        let depth = pack::padded_depth(tokens);
        let in_tiles = engine == Engine::Amx;
        let lda = if in_tiles { pack::IN_TILES } else { pack::row_stride(depth) };
        let a_len = if in_tiles { pack::packed_len(tokens, m) } else { m * lda };
        Self::with_room(a_len + pack::packed_len(tokens, n), |room| {
            let (to_a, to_b) = room.split_at_mut(a_len);
            if in_tiles {
                pack::transpose_to_tiles(to_a, a.values()?, tokens, m, a.stride);
            } else {
                pack::transpose(to_a, a.values()?, tokens, m, a.stride);
            }
            pack::rows(to_b, b.values::<bf16>()?, tokens, n, b.stride);
            // SAFETY: by the caller's promise; both operands are packed for this product.
            unsafe { operands::run(engine, Product { m, n, k: depth, a: to_a, lda, b: to_b }, out) };
            Ok(())
        })
    }
}
