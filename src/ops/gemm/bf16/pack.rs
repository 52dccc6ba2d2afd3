//! Packing operands for the bf16 kernels.
//!
//! A packed `b: [depth, cols]` is panels of [`PANEL`] columns, each blocks of [`DEPTH`], each two squares
//! `[DEPTH / 2][16][2]`: the values of two successive depths side by side, as AVX512-BF16 and AMX multiply them. A square is an
//! AMX tile whose rows follow one another, its row a vector register. Depth is padded to [`DEPTH`] and columns to a whole panel
//! with zeros.
//!
//! Each function stands beside its definition in the tests.

use crate::ops::cpu::{Shared, for_chunks, simd, transpose16};
use crate::ops::gemm::drive::PANEL;
use crate::ops::real::Real;
use half::bf16;

/// Depth is a multiple of this: one AMX tile's.
pub const DEPTH: usize = 32;
/// Values of a square.
pub const SQUARE: usize = DEPTH * 16;

pub fn padded_depth(depth: usize) -> usize {
    depth.next_multiple_of(DEPTH)
}

/// Values of a packed `[depth, cols]`.
pub fn packed_len(depth: usize, cols: usize) -> usize {
    padded_depth(depth) * cols.next_multiple_of(PANEL)
}

/// A row stride for `a` operands of this padded depth: an odd number of cache lines, so that the rows of a tile do not fall
/// into the same few sets of L1.
pub fn row_stride(padded_depth: usize) -> usize {
    padded_depth + if (padded_depth / DEPTH).is_multiple_of(2) { DEPTH } else { 0 }
}

/// Packs `x: [depth, cols]` (rows `stride` apart).
pub fn rows<T: Real>(to: &mut [bf16], x: &[T], depth: usize, cols: usize, stride: usize) {
    let (panel, to) = (padded_depth(depth) * PANEL, Shared::new(to));
    for_chunks(padded_depth(depth) / DEPTH, 1, |_, blocks| {
        for block in blocks {
            for p in 0..cols.div_ceil(PANEL) {
                let at = p * panel + block * DEPTH * PANEL;
                // SAFETY: every block of every panel is written by one thread.
                let to = unsafe { to.range(at..at + DEPTH * PANEL) };
                interleave(as_pairs(to), x, block * DEPTH, depth, p * PANEL, cols, stride);
            }
        }
    });
}

/// Packs `wᵀ` of `w: [cols, depth]` (rows `stride` apart).
pub fn columns_of_rows(to: &mut [bf16], w: &[f32], cols: usize, depth: usize, stride: usize) {
    let (panel, to) = (padded_depth(depth) * PANEL, Shared::new(to));
    for_chunks(cols.div_ceil(PANEL), 1, |_, panels| {
        for p in panels {
            // SAFETY: panels are disjoint.
            let to = as_pairs(unsafe { to.range(p * panel..(p + 1) * panel) });
            for (block, to) in to.chunks_exact_mut(DEPTH / 2 * PANEL).enumerate() {
                for (half, square) in squares(to).iter_mut().enumerate() {
                    let (row, col) = (p * PANEL + half * 16, block * DEPTH);
                    *square = [[0; 16]; 16];
                    pair_up(square, w, row, cols, col, depth, stride);
                    transpose16(square);
                }
            }
        }
    });
}

/// `to[cols, padded depth] = xᵀ` of `x: [depth, cols]` (rows `stride` apart), zero past `depth`; rows of `to` are
/// [`row_stride`] apart.
pub fn transpose(to: &mut [bf16], x: &[bf16], depth: usize, cols: usize, stride: usize) {
    let (blocks, to_stride) = (padded_depth(depth) / DEPTH, row_stride(padded_depth(depth)));
    let to = Shared::new(to);
    for_chunks(cols.div_ceil(PANEL), 1, |_, panels| {
        for p in panels {
            for block in 0..blocks {
                let mut pairs = [0u32; DEPTH / 2 * PANEL];
                interleave(&mut pairs, x, block * DEPTH, depth, p * PANEL, cols, stride);
                for (half, square) in squares(&mut pairs).iter_mut().enumerate() {
                    transpose16(square);
                    let first = p * PANEL + half * 16;
                    for (c, row) in square.iter().enumerate().take(cols.saturating_sub(first)) {
                        let at = (first + c) * to_stride + block * DEPTH;
                        // SAFETY: every row belongs to one panel, so to one thread.
                        let to = unsafe { to.range(at..at + DEPTH) };
                        to.copy_from_slice(bytemuck::cast_slice(row));
                    }
                }
            }
        }
    });
}

/// Stands for the distance of the rows of `a` where it lies in tiles ([`transpose_to_tiles`]): that of a tile's. A matrix whose
/// rows are so near one another is no deeper than a tile, and lies the same in both ways.
pub const IN_TILES: usize = DEPTH;

/// The same in squares as AMX loads them: of each [`PANEL`] rows of `xᵀ` blocks of [`DEPTH`], each two tiles of 16 rows. Zero
/// past `depth` and `cols`; as long as a packed `x`.
pub fn transpose_to_tiles(to: &mut [bf16], x: &[bf16], depth: usize, cols: usize, stride: usize) {
    let (panel, to) = (padded_depth(depth) * PANEL, Shared::new(to));
    for_chunks(cols.div_ceil(PANEL), 1, |_, panels| {
        for p in panels {
            // SAFETY: panels are disjoint.
            let to = as_pairs(unsafe { to.range(p * panel..(p + 1) * panel) });
            for (block, to) in to.chunks_exact_mut(DEPTH / 2 * PANEL).enumerate() {
                interleave(to, x, block * DEPTH, depth, p * PANEL, cols, stride);
                squares(to).iter_mut().for_each(transpose16);
            }
        }
    });
}

/// The squares of a block.
fn squares(block: &mut [u32]) -> &mut [[[u32; 16]; 16]] {
    bytemuck::cast_slice_mut(block)
}

fn as_pairs(values: &mut [bf16]) -> &mut [u32] {
    // SAFETY: two bf16 are as large as a u32 and any bits are valid; the length is even because DEPTH is.
    let (before, pairs, after) = unsafe { values.align_to_mut::<u32>() };
    assert!(before.is_empty() && after.is_empty(), "packed buffers are aligned");
    pairs
}

/// The bits of a bf16 in the lower half.
#[inline(always)]
fn bits<T: Real>(x: T) -> u32 {
    <bf16 as Real>::from_f32(x.to_f32()).to_bits() as u32
}

simd! {
    /// One block of a panel: two squares of pairs of rows `row…` and columns `col…` of `x: [rows, cols]`.
    fn interleave[T](to: &mut [u32], x: &[T], row: usize, rows: usize, col: usize, cols: usize, stride: usize) {
        let (first, second) = to.split_at_mut(SQUARE / 2);
        for (pair, to) in first.chunks_exact_mut(16).zip(second.chunks_exact_mut(16)).enumerate() {
            let r = row + 2 * pair;
            if r + 1 < rows && col + PANEL <= cols {
                let (a, b) = (&x[r * stride + col..][..PANEL], &x[(r + 1) * stride + col..][..PANEL]);
                for j in 0..16 {
                    to.0[j] = bits(a[j]) | bits(b[j]) << 16;
                }
                for j in 0..16 {
                    to.1[j] = bits(a[16 + j]) | bits(b[16 + j]) << 16;
                }
            } else {
                let at = |r: usize, c: usize| if r < rows && c < cols { bits(x[r * stride + c]) } else { 0 };
                for j in 0..16 {
                    let (left, right) = (col + j, col + 16 + j);
                    to.0[j] = at(r, left) | at(r + 1, left) << 16;
                    to.1[j] = at(r, right) | at(r + 1, right) << 16;
                }
            }
        }
    }
}

simd! {
    /// `pairs[i][j]` = the values (2j, 2j + 1) after `col` of row `row + i` of `w: [rows, cols]`.
    fn pair_up(pairs: &mut [[u32; 16]; 16], w: &[f32], row: usize, rows: usize, col: usize, cols: usize, stride: usize) {
        for (i, to) in pairs.iter_mut().enumerate().take(rows.saturating_sub(row)) {
            let from = &w[(row + i) * stride + col..][..DEPTH.min(cols - col)];
            if from.len() == DEPTH {
                for (j, to) in to.iter_mut().enumerate() {
                    *to = bits(from[2 * j]) | bits(from[2 * j + 1]) << 16;
                }
            } else {
                let at = |k: usize| from.get(k).map_or(0, |x| bits(*x));
                for (j, to) in to.iter_mut().enumerate() {
                    *to = at(2 * j) | at(2 * j + 1) << 16;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::values;

    const SHAPES: [(usize, usize); 8] = [(1, 1), (2, 3), (15, 17), (31, 33), (32, 32), (33, 31), (64, 96), (67, 130)];

    fn round(x: &[f32]) -> Vec<bf16> {
        x.iter().map(|&v| bf16::from_f32(v)).collect()
    }

    /// The layout by its definition.
    fn packed(depth: usize, cols: usize, at: impl Fn(usize, usize) -> bf16) -> Vec<bf16> {
        let (d, panels) = (padded_depth(depth), cols.div_ceil(PANEL));
        let mut out = vec![bf16::ZERO; packed_len(depth, cols)];
        for (p, k, j) in (0..panels).flat_map(|p| (0..d).flat_map(move |k| (0..PANEL).map(move |j| (p, k, j)))) {
            if k < depth && p * PANEL + j < cols {
                let (block, square) = (p * d / DEPTH + k / DEPTH, j / 16);
                let within = (k % DEPTH / 2) * 32 + (j % 16) * 2 + k % 2;
                out[(block * 2 + square) * SQUARE + within] = at(k, p * PANEL + j);
            }
        }
        out
    }

    #[test]
    fn all_packings_have_the_documented_layout() {
        for (depth, cols) in SHAPES {
            for gap in [0, 5] {
                // What was there before must not show through.
                let stale = || vec![bf16::from_f32(9.0); packed_len(depth, cols)];
                let (stride, tall) = (cols + gap, depth + gap);
                let x = values(depth * stride, 1);
                let (mut from_f32, mut from_bf16) = (stale(), stale());
                rows(&mut from_f32, &x, depth, cols, stride);
                rows(&mut from_bf16, &round(&x), depth, cols, stride);
                let want = packed(depth, cols, |k, j| bf16::from_f32(x[k * stride + j]));
                assert!(from_f32 == want && from_bf16 == want, "rows of [{depth}, {cols}]");

                let w = values(cols * tall, 2);
                let mut to = stale();
                columns_of_rows(&mut to, &w, cols, depth, tall);
                assert!(
                    to == packed(depth, cols, |k, j| bf16::from_f32(w[j * tall + k])),
                    "columns of [{cols}, {depth}]"
                );

                let (d, to_stride) = (padded_depth(depth), row_stride(padded_depth(depth)));
                let mut to = vec![bf16::from_f32(9.0); cols * to_stride];
                transpose(&mut to, &round(&x), depth, cols, stride);
                for (j, k) in (0..cols).flat_map(|j| (0..d).map(move |k| (j, k))) {
                    let want = if k < depth { bf16::from_f32(x[k * stride + j]) } else { bf16::ZERO };
                    assert!(to[j * to_stride + k] == want, "transpose of [{depth}, {cols}] at {j}, {k}");
                }
                let mut to = stale();
                transpose_to_tiles(&mut to, &round(&x), depth, cols, stride);
                for (j, k) in (0..cols.next_multiple_of(PANEL)).flat_map(|j| (0..d).map(move |k| (j, k))) {
                    let inside = k < depth && j < cols;
                    let want = if inside { bf16::from_f32(x[k * stride + j]) } else { bf16::ZERO };
                    let tile = (j / PANEL * (d / DEPTH) + k / DEPTH) * 2 + j % PANEL / 16;
                    let got = to[tile * SQUARE + j % 16 * DEPTH + k % DEPTH];
                    assert!(got == want, "tiles of [{depth}, {cols}] at {j}, {k}");
                }
            }
        }
    }
}
