//! Tiles by AVX512-BF16 (`vdpbf16ps`): up to [`ROWS`] × [`PANEL`] f32 sums in registers.

use super::pack::{DEPTH, SQUARE};
use crate::ops::gemm::drive::PANEL;
use half::bf16;
use std::arch::x86_64::*;

/// Rows of a full tile: 24 of the 32 registers hold sums, two the panel's row, one an element of `a`.
pub const ROWS: usize = 12;

/// `c[rows, PANEL] = a[rows, k] · b[k, PANEL]` for 1 to [`ROWS`] rows; `k` is a multiple of [`DEPTH`].
///
/// # Safety
/// The machine has AVX512-BF16; `a` has `rows` rows `lda` apart, `b` is a packed panel of depth `k`, `c`, with its row
/// stride, has room.
pub unsafe fn tile(rows: usize, k: usize, a: *const bf16, lda: usize, b: *const bf16, c: (*mut f32, usize)) {
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: by the caller's promise.
                $($n => unsafe { rows_of::<$n>(k, a, lda, b, c) },)*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn rows_of<const R: usize>(k: usize, a: *const bf16, lda: usize, b: *const bf16, (c, ldc): (*mut f32, usize)) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: all reads are inside `a` and `b`, all writes inside `c`, by the caller's promise.
    unsafe {
        for block in 0..k / DEPTH {
            let (a, b) = (a.add(block * DEPTH), b.add(block * DEPTH * PANEL));
            for pair in 0..DEPTH / 2 {
                let row = b.add(pair * 32);
                let (b0, b1) =
                    (pairs(_mm512_loadu_si512(row.cast())), pairs(_mm512_loadu_si512(row.add(SQUARE).cast())));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x: i32 = a.add(i * lda + pair * 2).cast::<i32>().read_unaligned();
                    let x = pairs(_mm512_set1_epi32(x));
                    sums[0] = _mm512_dpbf16_ps(sums[0], x, b0);
                    sums[1] = _mm512_dpbf16_ps(sums[1], x, b1);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(c.add(i * ldc), sums[0]);
            _mm512_storeu_ps(c.add(i * ldc + 16), sums[1]);
        }
    }
}

/// A register's bits as 32 bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes and any bits are bf16.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
