//! The operands of a bf16 product and the kernels that multiply them.

use super::pack::{DEPTH, IN_TILES, padded_depth, row_stride};
use super::{Engine, plain};
use crate::ops::gemm::drive::{self, Operands, PANEL};
use crate::ops::gemm::epilogue::{Out, Place};
use half::bf16;
use std::cell::Cell;

/// Depth of one pass of a sum in f32.
const PASS_DEPTH: usize = 1024;
/// Addresses this far apart share a set of L1 (64 sets of 64 bytes).
const L1_PERIOD: usize = 4096;

/// `a[m, k] · b[k, n]`, `a` with rows `lda` apart or, for AMX, in tiles ([`IN_TILES`]), `b` packed.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: &'a [bf16],
    pub lda: usize,
    pub b: &'a [bf16],
}

/// Computes `product` and hands every tile to `out`.
///
/// # Safety
/// The views of `out` span `[m, n]` and share no memory with anything else; `product.b` is packed for `[k, n]`.
pub unsafe fn run(engine: Engine, product: Product<'_>, out: Out<'_, bf16>) {
    let Product { m, k, a, lda, .. } = product;
    let depth = padded_depth(k);
    let collides = m > 1 && (lda * size_of::<bf16>()).is_multiple_of(L1_PERIOD);
    if k == depth && !collides {
        // SAFETY: by the caller's promise.
        return unsafe { drive::run(Packed { engine, product }, out) };
    }
    // Kernels read whole pairs and tiles, and many rows at once: odd depths get a copy with zeros behind, rows that would
    // fall into the same set of L1 one with another stride.
    thread_local!(static ROOM: Cell<Vec<bf16>> = const { Cell::new(Vec::new()) });
    let mut room = ROOM.take();
    let stride = row_stride(depth);
    if room.len() < m * stride {
        room.resize(m * stride, bf16::ZERO);
    }
    for (i, row) in room.chunks_exact_mut(stride).take(m).enumerate() {
        row[..k].copy_from_slice(&a[i * lda..][..k]);
        row[k..].fill(bf16::ZERO);
    }
    let product = Product { k: depth, a: &room, lda: stride, ..product };
    // SAFETY: by the caller's promise.
    unsafe { drive::run(Packed { engine, product }, out) };
    ROOM.set(room);
}

/// A product over a whole padded depth.
#[derive(Clone, Copy)]
struct Packed<'a> {
    engine: Engine,
    product: Product<'a>,
}

/// One task's kernel.
enum Session {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Amx {
        tiles: super::amx::Session,
        edge: Vec<bf16>,
    },
}

impl Operands for Packed<'_> {
    type Real = bf16;
    type Session = Session;

    fn shape(&self) -> (usize, usize, usize) {
        (self.product.m, self.product.n, self.product.k)
    }

    fn tile_rows(&self) -> usize {
        match self.engine {
            Engine::Plain => plain::ROWS,
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512 => super::avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Engine::Amx => super::amx::ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            engine => unreachable!("{engine:?} is chosen on x86-64 only"),
        }
    }

    fn pass_depth(&self) -> usize {
        PASS_DEPTH
    }

    fn start(&self) -> Session {
        match self.engine {
            Engine::Plain => Session::Plain,
            #[cfg(target_arch = "x86_64")]
            Engine::Avx512 => Session::Avx512,
            // SAFETY: the engine is chosen only where the machine has it.
            #[cfg(target_arch = "x86_64")]
            Engine::Amx => Session::Amx { tiles: unsafe { super::amx::Session::start() }, edge: vec![] },
            #[cfg(not(target_arch = "x86_64"))]
            engine => unreachable!("{engine:?} is chosen on x86-64 only"),
        }
    }

    unsafe fn tile(&self, session: &mut Session, at: Place, depth: usize, k: usize, c: (*mut f32, usize)) {
        let Product { a, lda, b, k: whole, .. } = self.product;
        let in_tiles = lda == IN_TILES;
        // Whole tiles of rows come before, each of the whole depth, and whole tiles of depth in its own.
        let a = &a[if in_tiles { at.row * whole + depth * PANEL } else { at.row * lda + depth }..];
        let b = &b[(at.col / PANEL * whole + depth) * PANEL..][..k * PANEL];
        match session {
            Session::Plain => {
                let len = (at.rows - 1) * c.1 + PANEL;
                // SAFETY: by the caller's promise; `c` has room for a full tile.
                plain::tile(at.rows, k, a, lda, b, unsafe { std::slice::from_raw_parts_mut(c.0, len) }, c.1);
            }
            // SAFETY: by the caller's promise; `c` has room for a full tile of either kernel.
            #[cfg(target_arch = "x86_64")]
            Session::Avx512 => unsafe { super::avx512::tile(at.rows, k, a.as_ptr(), lda, b.as_ptr(), c) },
            #[cfg(target_arch = "x86_64")]
            Session::Amx { tiles, .. } if at.rows == super::amx::ROWS || whole > DEPTH && in_tiles => {
                // SAFETY: as above; the last rows have zeros behind them where `a` lies in tiles.
                unsafe { tiles.tile(k, a.as_ptr(), lda, b.as_ptr(), c) }
            }
            #[cfg(target_arch = "x86_64")]
            Session::Amx { tiles, edge } => {
                // The last rows, in a copy with zero rows behind.
                edge.clear();
                edge.resize(super::amx::ROWS * k, bf16::ZERO);
                for (i, row) in edge.chunks_exact_mut(k).take(at.rows).enumerate() {
                    row.copy_from_slice(&a[i * lda..][..k]);
                }
                // SAFETY: as above.
                unsafe { tiles.tile(k, edge.as_ptr(), k, b.as_ptr(), c) }
            }
        }
    }
}
