//! Tiles by AMX (`tdpbf16ps`): 32 × 32 f32 sums in four tiles, two tiles each for the operands.
//!
//! Written in `asm!`, as stable Rust has no AMX intrinsics. Tile registers are no operands there: each block names what it
//! clobbers, and between blocks nothing of ours relies on their content but the configuration, which [`Session`] holds.

use super::pack::{DEPTH, IN_TILES, SQUARE};
use half::bf16;
use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a full tile product.
pub const ROWS: usize = 32;
/// Rows of one tile.
const TILE_ROWS: usize = 16;
/// Bytes of a tile's row.
const TILE_BYTES: usize = 64;

/// The tile configuration of this thread, dropped with it: while tiles are configured, every context switch saves 8 KiB.
/// Bound to the thread it was started on.
pub struct Session(PhantomData<*mut ()>);

/// `ldtilecfg`'s memory operand, palette 1: all eight tiles 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Session {
    /// # Safety
    /// The machine has AMX and the process has leave to use it; this thread has no other session, whose configuration the
    /// end of this one would drop.
    pub unsafe fn start() -> Self {
        let mut shapes = TileShapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].fill(TILE_BYTES as u16);
        shapes.rows[..8].fill(TILE_ROWS as u8);
        // SAFETY: `shapes` is a valid 64-byte configuration.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                shapes = in(reg) &shapes,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags)
            );
        }
        Self(PhantomData)
    }

    /// `c[ROWS, 32] = a[ROWS, k] · b[k, 32]`; `k` is a multiple of [`DEPTH`] and not 0.
    ///
    /// `a` passes once for every panel of a task, so it asks for no place in L1 (`t1`), which the panel keeps.
    ///
    /// # Safety
    /// `a` has [`ROWS`] rows `lda` apart, or lies in tiles, where `lda` is [`IN_TILES`]; `b` is a packed panel of depth `k`, `c`,
    /// with its row stride, has room.
    pub unsafe fn tile(&self, k: usize, a: *const bf16, lda: usize, b: *const bf16, (c, ldc): (*mut f32, usize)) {
        debug_assert!(k > 0 && k.is_multiple_of(DEPTH));
        let step = if lda == IN_TILES { 2 * SQUARE * size_of::<bf16>() } else { TILE_BYTES };
        let (lda, ldc) = (lda * size_of::<bf16>(), ldc * size_of::<f32>());
        // SAFETY: reads `k / DEPTH` blocks of both operands and writes the whole of `c`, by the caller's promise.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloaddt1 tmm4, [{a} + {lda}]",
                "tileloadd tmm6, [{b} + {row}]",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloaddt1 tmm5, [{low} + {lda}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, {step}",
                "add {low}, {step}",
                "add {b}, 2048",
                "dec {blocks}",
                "jnz 2b",
                "tilestored [{c} + {ldc}], tmm0",
                "tilestored [{c} + {ldc} + 64], tmm1",
                "tilestored [{c_low} + {ldc}], tmm2",
                "tilestored [{c_low} + {ldc} + 64], tmm3",
                a = inout(reg) a => _,
                low = inout(reg) a.byte_add(TILE_ROWS * lda) => _,
                b = inout(reg) b => _,
                blocks = inout(reg) k / DEPTH => _,
                lda = in(reg) lda,
                step = in(reg) step,
                row = in(reg) TILE_BYTES,
                c = in(reg) c,
                c_low = in(reg) c.wrapping_byte_add(TILE_ROWS * ldc),
                ldc = in(reg) ldc,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: a session holds a configuration; nothing of ours is in the tiles.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags)
            );
        }
    }
}
