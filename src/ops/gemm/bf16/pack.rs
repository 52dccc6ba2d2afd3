//! Packing operands for the bf16 kernels.
//!
//! A packed `b: [depth, cols]` is panels of [`PANEL`] columns, each `[depth / 2][PANEL][2]`: the values of two successive
//! depths side by side, as AVX512-BF16 and AMX multiply them. A row of a panel is two vector registers or the rows of two
//! tiles. Depth is padded to [`DEPTH`] and columns to a whole panel with zeros.
//!
//! Each function stands beside its definition in the tests.

use crate::ops::cpu::{Shared, for_chunks, simd, transpose16};
use crate::ops::gemm::drive::PANEL;
use crate::ops::real::Real;
use half::bf16;

/// Depth is a multiple of this: one AMX tile's.
pub const DEPTH: usize = 32;

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
                for half in 0..PANEL / 16 {
                    let (row, col) = (p * PANEL + half * 16, block * DEPTH);
                    let mut pairs = [[0u32; 16]; 16];
                    pair_up(&mut pairs, w, row, cols, col, depth, stride);
                    transpose16(&mut pairs);
                    for (to, from) in to.chunks_exact_mut(PANEL).zip(&pairs) {
                        to[half * 16..][..16].copy_from_slice(from);
                    }
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
                for half in 0..PANEL / 16 {
                    let mut square = [[0u32; 16]; 16];
                    for (to, from) in square.iter_mut().zip(pairs.chunks_exact(PANEL)) {
                        to.copy_from_slice(&from[half * 16..][..16]);
                    }
                    transpose16(&mut square);
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
    /// One block of a panel: `to[DEPTH / 2][PANEL]` pairs of rows `row…` and columns `col…` of `x: [rows, cols]`.
    fn interleave[T](to: &mut [u32], x: &[T], row: usize, rows: usize, col: usize, cols: usize, stride: usize) {
        let width = PANEL.min(cols - col);
        for (pair, to) in to.chunks_exact_mut(PANEL).enumerate() {
            let r = row + 2 * pair;
            if r + 1 < rows && width == PANEL {
                let (a, b) = (&x[r * stride + col..][..PANEL], &x[(r + 1) * stride + col..][..PANEL]);
                for j in 0..PANEL {
                    to[j] = bits(a[j]) | bits(b[j]) << 16;
                }
            } else {
                for (j, to) in to.iter_mut().enumerate() {
                    let at = |r: usize| if r < rows && j < width { bits(x[r * stride + col + j]) } else { 0 };
                    *to = at(r) | at(r + 1) << 16;
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
                out[p * d * PANEL + (k / 2) * PANEL * 2 + j * 2 + k % 2] = at(k, p * PANEL + j);
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
            }
        }
    }
}
