//! Tiles by loops that every machine runs: the kernels' definition, for tests on machines without bf16 products.

use super::pack::{DEPTH, SQUARE};
use crate::ops::cpu::simd;
use crate::ops::gemm::drive::PANEL;
use half::bf16;

/// Rows of a full tile.
pub const ROWS: usize = 8;

simd! {
    /// `c[rows, PANEL] = a[rows, k] · b[k, PANEL]`; `k` is a multiple of [`DEPTH`], rows of `a` are `lda` apart, those of
    /// `c` `ldc`, `b` is a packed panel.
    pub fn tile(rows: usize, k: usize, a: &[bf16], lda: usize, b: &[bf16], c: &mut [f32], ldc: usize) {
        for i in 0..rows {
            let mut sums = [0f32; PANEL];
            for (a, b) in a[i * lda..][..k].chunks_exact(DEPTH).zip(b.chunks_exact(2 * SQUARE)) {
                for (sums, square) in sums.chunks_exact_mut(16).zip(b.chunks_exact(SQUARE)) {
                    for (a, b) in a.chunks_exact(2).zip(square.chunks_exact(32)) {
                        let [a0, a1] = [a[0].to_f32(), a[1].to_f32()];
                        for (sum, b) in sums.iter_mut().zip(b.chunks_exact(2)) {
                            *sum += a0 * b[0].to_f32() + a1 * b[1].to_f32();
                        }
                    }
                }
            }
            c[i * ldc..][..PANEL].copy_from_slice(&sums);
        }
    }
}
