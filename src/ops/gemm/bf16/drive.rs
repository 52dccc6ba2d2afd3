//! Cuts a product into tiles, spreads them over the threads and keeps their operands in cache.
//!
//! A task is a block of rows times a group of panels: the block of `a` stays in L2 while the panels of `b` pass, and a panel
//! stays in L1 while the block's rows pass. Every result is summed over the whole depth in order by one thread, so the same
//! input gives the same bits whatever the thread count.

use super::Engine;
use super::epilogue::{Out, Place, finish};
use super::pack::{PANEL, padded_depth, row_stride};
use crate::ops::pool::for_each;
use half::bf16;
use std::cell::Cell;

/// Rows of a task: whole tiles of both engines.
const BLOCK_ROWS: usize = 96;
/// Panels of a task, where there are enough tasks.
const GROUP: usize = 4;
/// Depth of one pass where the result is an f32 sum (weight gradients, whose depth is the tokens): the block of `a` and a
/// panel fit L2.
const PASS_DEPTH: usize = 1024;

/// Addresses this far apart share a set of L1 (64 sets of 64 bytes).
const L1_PERIOD: usize = 4096;

/// `a[m, k] · b[k, n]`, `a` with rows `lda` apart, `b` packed.
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
pub unsafe fn run(engine: Engine, product: Product<'_>, out: Out<'_>) {
    let Product { m, n, k, a, lda, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0, "a product over no depth");
    let depth = padded_depth(k);
    let collides = m > 1 && (lda * size_of::<bf16>()).is_multiple_of(L1_PERIOD);
    if k == depth && !collides {
        // SAFETY: by the caller's promise.
        return unsafe { run_padded(engine, product, out) };
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
    // SAFETY: by the caller's promise.
    unsafe { run_padded(engine, Product { k: depth, a: &room, lda: stride, ..product }, out) };
    ROOM.set(room);
}

/// [`run`] for a whole padded depth.
unsafe fn run_padded(engine: Engine, product: Product<'_>, out: Out<'_>) {
    let Product { m, n, k, .. } = product;
    let (blocks, panels) = (m.div_ceil(BLOCK_ROWS), n.div_ceil(PANEL));
    let enough = 8 * rayon::current_num_threads();
    let group = if blocks * panels.div_ceil(GROUP) >= enough { GROUP } else { 1 };
    let groups = panels.div_ceil(group);
    let pass = if matches!(out, Out::Sum { .. }) { PASS_DEPTH } else { k };
    for_each(blocks * groups, |task| {
        let (block, first) = (task / groups, task % groups * group);
        let rows = block * BLOCK_ROWS..m.min((block + 1) * BLOCK_ROWS);
        let mut tiles = Tiles::start(engine);
        for depth in (0..k).step_by(pass) {
            let out = match out {
                Out::Sum { c, add } => Out::Sum { c, add: add || depth > 0 },
                other => other,
            };
            for p in first..panels.min(first + group) {
                for row in rows.clone().step_by(tiles.rows()) {
                    let at = Place {
                        row,
                        col: p * PANEL,
                        rows: tiles.rows().min(rows.end - row),
                        cols: PANEL.min(n - p * PANEL),
                    };
                    // SAFETY: the tile lies inside both operands; its place in `out` is this task's alone.
                    unsafe {
                        tiles.compute(&product, at, depth, pass.min(k - depth), p);
                        finish(&tiles.sums.0[..at.rows * PANEL], at, out);
                    }
                }
            }
        }
    });
}

#[repr(align(64))]
struct Sums([f32; 32 * PANEL]);

/// One task's kernel with its buffer of sums.
struct Tiles {
    kernel: Kernel,
    sums: Sums,
}

enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Amx { session: super::amx::Session, edge: Vec<bf16> },
}

impl Tiles {
    fn start(engine: Engine) -> Self {
        #[cfg(target_arch = "x86_64")]
        let kernel = match engine {
            Engine::Avx512 => Kernel::Avx512,
            // SAFETY: the engine is chosen only where the machine has it.
            Engine::Amx => Kernel::Amx { session: unsafe { super::amx::Session::start() }, edge: vec![] },
        };
        #[cfg(not(target_arch = "x86_64"))]
        let kernel = unreachable!("{engine:?} is chosen on x86-64 only");
        Self { kernel, sums: Sums([0.0; 32 * PANEL]) }
    }

    /// Rows of a full tile.
    fn rows(&self) -> usize {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => super::avx512::ROWS,
            #[cfg(target_arch = "x86_64")]
            Kernel::Amx { .. } => super::amx::ROWS,
        }
    }

    /// The sums of the tile at `at` over `k` values of depth from `depth`.
    ///
    /// # Safety
    /// All of it lies inside the operands, and the machine has the kernel.
    #[cfg(target_arch = "x86_64")]
    unsafe fn compute(&mut self, product: &Product<'_>, at: Place, depth: usize, k: usize, panel: usize) {
        let c = self.sums.0.as_mut_ptr();
        // SAFETY: by the caller's promise; `c` has room for a full tile of either kernel.
        unsafe {
            let a = product.a.as_ptr().add(at.row * product.lda + depth);
            let b = product.b.as_ptr().add((panel * product.k + depth) * PANEL);
            match &mut self.kernel {
                Kernel::Avx512 => super::avx512::tile(at.rows, k, a, product.lda, b, c),
                Kernel::Amx { session, .. } if at.rows == super::amx::ROWS => session.tile(k, a, product.lda, b, c),
                Kernel::Amx { session, edge } => {
                    // The last rows, in a copy with zero rows behind.
                    edge.clear();
                    edge.resize(super::amx::ROWS * k, bf16::ZERO);
                    for (i, row) in edge.chunks_exact_mut(k).take(at.rows).enumerate() {
                        row.copy_from_slice(std::slice::from_raw_parts(a.add(i * product.lda), k));
                    }
                    session.tile(k, edge.as_ptr(), k, b, c)
                }
            }
        }
    }

    /// As above.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe fn compute(&mut self, _: &Product<'_>, _: Place, _: usize, _: usize, _: usize) {
        match self.kernel {}
    }
}
