//! Tiles by AVX-512: up to [`ROWS`] × [`PANEL`](crate::ops::gemm::drive::PANEL) sums in registers.

use super::operands::Tile;
use std::arch::x86_64::*;

/// Rows of a full tile: 24 of the 32 registers hold sums, two the panel's row, one an element of `a`.
pub const ROWS: usize = 12;
/// So many depths ahead, what lies row by row in memory is asked for.
const AHEAD: usize = 8;

impl Tile {
    /// # Safety
    /// The machine has AVX-512; `a` spans `[rows, k]`, or `[k, rows]` if transposed, and `b` `[k, cols]`; `c` has room;
    /// `rows` is 1 to [`ROWS`].
    pub unsafe fn by_avx512(&self, rows: usize, a_transposed: bool) {
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match (rows, a_transposed) {
                    // SAFETY: by the caller's promise.
                    $(($n, false) => unsafe { self.rows_avx512::<$n, false>() },
                    // SAFETY: as above.
                    ($n, true) => unsafe { self.rows_avx512::<$n, true>() },)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn rows_avx512<const R: usize, const TRANSPOSED: bool>(&self) {
        let Self { k, a, lda, b, ldb, cols, c, ldc } = *self;
        let mask = |first: usize| (((1u32 << cols.saturating_sub(first).min(16)) - 1) & 0xffff) as __mmask16;
        let (low, high) = (mask(0), mask(16));
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        // SAFETY: all reads are inside `a` and `b` (masked columns are not read), all writes inside `c`, by the caller's
        // promise; a prefetch may name any address.
        unsafe {
            for d in 0..k {
                let row = b.add(d * ldb);
                let (b0, b1) = (_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row.wrapping_add(16)));
                let ahead = b.wrapping_add((d + AHEAD) * ldb);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(16).cast());
                if TRANSPOSED {
                    _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add((d + AHEAD) * lda).cast());
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(if TRANSPOSED { d * lda + i } else { i * lda + d }));
                    sums[0] = _mm512_fmadd_ps(x, b0, sums[0]);
                    sums[1] = _mm512_fmadd_ps(x, b1, sums[1]);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(i * ldc), sums[0]);
                _mm512_storeu_ps(c.add(i * ldc + 16), sums[1]);
            }
        }
    }
}
