//! Cuts a product into tiles, spreads them over the threads and keeps their operands in cache.
//!
//! A task is a block of rows times a group of panels: the block of `a` stays in L2 while the panels of `b` pass. Every result
//! is summed over the whole depth in order by one thread, so the same input gives the same bits whatever the thread count.

use super::epilogue::{Out, Place, finish};
use crate::ops::cpu::{Level, level};
use crate::ops::pool::for_each;
use crate::ops::real::Real;

/// Columns of a panel.
pub const PANEL: usize = 32;
/// Most rows of a tile.
pub const TILE_ROWS: usize = 32;
/// Rows of a task: whole tiles of all kernels.
const BLOCK_ROWS: usize = 96;
/// Bytes of `a` that a task holds, about half of a small L2: machines with AVX-512 have 1 MB of it and more.
fn block_bytes() -> usize {
    if level() >= Level::Avx512 { 512 << 10 } else { 192 << 10 }
}
/// Panels of a task, where there are enough tasks.
const GROUP: usize = 4;

/// The operands of a product `a[m, k] · b[k, n]` and the kernel that multiplies them tile by tile.
pub trait Operands: Copy + Sync {
    /// The format of activations.
    type Real: Real;
    /// What a task keeps between its tiles.
    type Session;

    /// `(m, n, k)`
    fn shape(&self) -> (usize, usize, usize);
    /// Rows of a full tile; divides [`BLOCK_ROWS`].
    fn tile_rows(&self) -> usize;
    /// Depth of one pass where the result is a sum in f32 (weight gradients, whose depth is the tokens), so that a pass's
    /// part of a block and a panel fit L2.
    fn pass_depth(&self) -> usize;
    fn start(&self) -> Self::Session;

    /// `c[at.rows, PANEL]` = the product at `at` over `k` values of depth from `depth`; columns past `at.cols` hold anything.
    ///
    /// # Safety
    /// All of it lies inside the operands; `c`, with its row stride, has room for [`Self::tile_rows`] whole rows.
    unsafe fn tile(&self, session: &mut Self::Session, at: Place, depth: usize, k: usize, c: (*mut f32, usize));
}

#[repr(align(64))]
struct Sums([f32; TILE_ROWS * PANEL]);

/// Computes the product and hands every tile to `out`.
///
/// # Safety
/// The views of `out` span `[m, n]` and share no memory with anything else.
pub unsafe fn run<O: Operands>(operands: O, out: Out<'_, O::Real>) {
    let (m, n, k) = operands.shape();
    assert!(k > 0, "a product over no depth");
    let tile = operands.tile_rows();
    let fits = block_bytes() / (k * size_of::<O::Real>()) / tile * tile;
    let pass = if matches!(out, Out::Sum { .. }) { operands.pass_depth() } else { k };
    let block_rows = if pass < k { BLOCK_ROWS } else { fits.clamp(tile, BLOCK_ROWS) };
    let (blocks, panels) = (m.div_ceil(block_rows), n.div_ceil(PANEL));
    let enough = 8 * rayon::current_num_threads();
    let group = if blocks * panels.div_ceil(GROUP) >= enough { GROUP } else { 1 };
    let groups = panels.div_ceil(group);
    for_each(blocks * groups, |task| {
        let (block, first) = (task / groups, task % groups * group);
        let rows = block * block_rows..m.min((block + 1) * block_rows);
        let (mut session, mut sums) = (operands.start(), Sums([0.0; TILE_ROWS * PANEL]));
        for depth in (0..k).step_by(pass) {
            let out = match out {
                Out::Sum { c, add } => Out::Sum { c, add: add || depth > 0 },
                other => other,
            };
            for p in first..panels.min(first + group) {
                for row in rows.clone().step_by(tile) {
                    let at =
                        Place { row, col: p * PANEL, rows: tile.min(rows.end - row), cols: PANEL.min(n - p * PANEL) };
                    // SAFETY: the tile lies inside both operands; its place in `out` is this task's alone.
                    unsafe {
                        let k = pass.min(k - depth);
                        match out.direct(at).filter(|_| (at.rows, at.cols) == (tile, PANEL)) {
                            Some(c) => operands.tile(&mut session, at, depth, k, c),
                            None => {
                                operands.tile(&mut session, at, depth, k, (sums.0.as_mut_ptr(), PANEL));
                                finish(&sums.0[..at.rows * PANEL], at, out);
                            }
                        }
                    }
                }
            }
        }
    });
}
