//! Tiles by AVX2: up to [`ROWS`] × 16 sums in registers, so that a panel, which is always packed, takes two passes over the
//! depth.

use super::operands::Tile;
use std::arch::x86_64::*;

/// Rows of a full tile: 12 of the 16 registers hold sums, two the panel's row, one an element of `a`.
pub const ROWS: usize = 6;
/// So many depths ahead, the panel is asked for.
const AHEAD: usize = 8;

impl Tile {
    /// # Safety
    /// The machine has AVX2 and FMA; `a` spans `[rows, k]` and `b` `[k, PANEL]`; `c` has room; `rows` is 1 to [`ROWS`].
    pub unsafe fn by_avx2(&self, rows: usize) {
        macro_rules! by_rows {
            ($($n:literal)*) => {
                match rows {
                    // SAFETY: by the caller's promise.
                    $($n => unsafe { self.rows_avx2::<$n>() },)*
                    _ => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6)
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn rows_avx2<const R: usize>(&self) {
        let Self { k, a, lda, b, ldb, c, ldc, .. } = *self;
        for half in [0, 16] {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            // SAFETY: all reads are inside `a` and `b`, all writes inside `c`, by the caller's promise; a prefetch may name
            // any address.
            unsafe {
                for d in 0..k {
                    let row = b.add(d * ldb + half);
                    let (b0, b1) = (_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(8)));
                    _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(AHEAD * ldb).cast());
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*a.add(i * lda + d));
                        sums[0] = _mm256_fmadd_ps(x, b0, sums[0]);
                        sums[1] = _mm256_fmadd_ps(x, b1, sums[1]);
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    _mm256_storeu_ps(c.add(i * ldc + half), sums[0]);
                    _mm256_storeu_ps(c.add(i * ldc + half + 8), sums[1]);
                }
            }
        }
    }
}
