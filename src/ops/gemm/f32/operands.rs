//! The operands of an f32 product and how they lie in memory.

use crate::ops::cpu::{Level, Shared, for_chunks, level, simd, transpose16};
use crate::ops::gemm::drive::{self, Operands, PANEL};
use crate::ops::gemm::epilogue::{Out, Place};

/// Depth of one pass of a weight gradient: what it reads of both operands stays in L2, although their rows are far apart.
const PASS_DEPTH: usize = 256;
/// The same for rows that are multiples of this many bytes apart, so that they share few sets of the cache.
const COLLIDING: usize = 4096;
const COLLIDING_PASS_DEPTH: usize = 128;

/// How the panels of `b[k, n]` lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panels {
    /// Row-major, rows `stride` apart.
    InPlace { stride: usize },
    /// Each panel `[k, PANEL]` by itself, columns past `n` zero.
    Packed,
}

/// `op(a)[m, k] · b[k, n]`; `a` is `[m, k]`, or `[k, m]` if transposed, with rows `lda` apart.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: &'a [f32],
    pub lda: usize,
    pub a_transposed: bool,
    pub b: &'a [f32],
    pub panels: Panels,
}

/// `c = a · b` over `k` values of depth, for a whole panel of `b`.
pub struct Tile {
    pub k: usize,
    pub a: *const f32,
    pub lda: usize,
    pub b: *const f32,
    pub ldb: usize,
    /// Columns of `b` that there are; those of `c` behind them become zero.
    pub cols: usize,
    pub c: *mut f32,
    pub ldc: usize,
}

impl Product<'_> {
    /// Computes it and hands every tile to `out`.
    ///
    /// # Safety
    /// The machine has AVX-512, or it has AVX2, `a` is not transposed and `b` is packed. `a` and `b` span what the sizes say;
    /// the views of `out` span `[m, n]` and share no memory with anything else.
    pub unsafe fn run(self, out: Out<'_, f32>) {
        // SAFETY: by the caller's promise.
        unsafe { drive::run(self, out) }
    }
}

impl Operands for Product<'_> {
    type Real = f32;
    type Session = ();

    fn shape(&self) -> (usize, usize, usize) {
        (self.m, self.n, self.k)
    }

    fn tile_rows(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        return if level() >= Level::Avx512 { super::avx512::ROWS } else { super::avx2::ROWS };
        #[cfg(not(target_arch = "x86_64"))]
        1
    }

    fn pass_depth(&self) -> usize {
        let collides = |stride: usize| (stride * size_of::<f32>()).is_multiple_of(COLLIDING);
        match self.panels {
            Panels::InPlace { stride } if collides(stride) || collides(self.lda) => COLLIDING_PASS_DEPTH,
            _ => PASS_DEPTH,
        }
    }

    fn start(&self) {}

    #[cfg(target_arch = "x86_64")]
    unsafe fn tile(&self, (): &mut (), at: Place, depth: usize, k: usize, c: (*mut f32, usize)) {
        let (b, ldb) = match self.panels {
            Panels::InPlace { stride } => (depth * stride + at.col, stride),
            Panels::Packed => (at.col * self.k + depth * PANEL, PANEL),
        };
        let a = if self.a_transposed { depth * self.lda + at.row } else { at.row * self.lda + depth };
        // SAFETY: the tile lies inside both operands, by the caller's promise.
        unsafe {
            let (a, b) = (self.a.as_ptr().add(a), self.b.as_ptr().add(b));
            let tile = Tile { k, a, lda: self.lda, b, ldb, cols: at.cols, c: c.0, ldc: c.1 };
            if level() >= Level::Avx512 {
                tile.by_avx512(at.rows, self.a_transposed);
            } else {
                tile.by_avx2(at.rows);
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn tile(&self, (): &mut (), _: Place, _: usize, _: usize, _: (*mut f32, usize)) {
        unreachable!("the kernel is chosen on x86-64 only")
    }
}

/// Values of a packed `[depth, cols]`.
pub fn packed_len(depth: usize, cols: usize) -> usize {
    depth * cols.next_multiple_of(PANEL)
}

/// Packs `w: [depth, cols]` (rows `stride` apart) as [`Panels::Packed`].
pub fn pack_rows(to: &mut [f32], w: &[f32], cols: usize, depth: usize, stride: usize) {
    let to = Shared::new(to);
    for_chunks(cols.div_ceil(PANEL), 1, |_, panels| {
        for p in panels {
            // SAFETY: panels are disjoint.
            let to = unsafe { to.range(p * PANEL * depth..(p + 1) * PANEL * depth) };
            let cols = PANEL.min(cols - p * PANEL);
            for (to, from) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(w[p * PANEL..].chunks(stride)) {
                match from.first_chunk::<PANEL>() {
                    // A copy of known length is not a call.
                    Some(from) if cols == PANEL => *to = *from,
                    _ => {
                        to[..cols].copy_from_slice(&from[..cols]);
                        to[cols..].fill(0.0);
                    }
                }
            }
        }
    });
}

/// Packs `wᵀ` of `w: [cols, depth]` (rows `stride` apart) as [`Panels::Packed`].
pub fn pack_transposed(to: &mut [f32], w: &[f32], cols: usize, depth: usize, stride: usize) {
    let to = Shared::new(to);
    for_chunks(cols.div_ceil(PANEL), 1, |_, panels| {
        for p in panels {
            // SAFETY: panels are disjoint.
            let to = unsafe { to.range(p * PANEL * depth..(p + 1) * PANEL * depth) };
            let rows = PANEL.min(cols - p * PANEL);
            transpose_rows(to, &w[p * PANEL * stride..], rows, depth, stride);
        }
    });
}

simd! {
    /// One panel `[depth, PANEL]` of `rows` rows of `w`; zeros take the place of further rows.
    fn transpose_rows(to: &mut [f32], w: &[f32], rows: usize, depth: usize, stride: usize) {
        for (block, to) in to.chunks_mut(16 * PANEL).enumerate() {
            for first in [0, 16] {
                let mut square = [[0u32; 16]; 16];
                for (row, to) in square.iter_mut().enumerate().take(rows.saturating_sub(first)) {
                    let from = &w[(first + row) * stride + block * 16..][..16.min(depth - block * 16)];
                    match from.first_chunk::<16>() {
                        // One register; a copy of unknown length would be a call.
                        Some(from) => *to = from.map(f32::to_bits),
                        None => to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_bits()),
                    }
                }
                transpose16(&mut square);
                for (to, from) in to.chunks_exact_mut(PANEL).zip(&square) {
                    to[first..first + 16].copy_from_slice(&from.map(f32::from_bits));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::values;

    #[test]
    fn a_packed_weight_is_its_transpose_in_panels() {
        for (cols, depth) in [(1, 1), (15, 17), (16, 16), (33, 31), (64, 96), (100, 5)] {
            let stride = depth + 3;
            let (w, mut to) = (values(cols * stride, 1), vec![9.0; packed_len(depth, cols)]);
            pack_transposed(&mut to, &w, cols, depth, stride);
            for (i, got) in to.iter().enumerate() {
                let (panel, d, j) = (i / (depth * PANEL), i / PANEL % depth, i % PANEL);
                let col = panel * PANEL + j;
                let want = if col < cols { w[col * stride + d] } else { 0.0 };
                assert!(*got == want, "[{cols}, {depth}]: {got} is not {want} at {d}, {col}");
            }
        }
    }
}
