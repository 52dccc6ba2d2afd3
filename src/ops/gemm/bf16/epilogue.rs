//! What becomes of a finished tile of f32 sums, while it is in L1.

use super::pack::PANEL;
use crate::ops::cpu::simd;
use crate::ops::gelu::{Activation, value_and_slope};
use crate::ops::real::Real;
use half::bf16;

/// Where a product goes. Pointers come with their row stride and span `[m, n]`.
#[derive(Clone, Copy)]
pub enum Out<'a> {
    /// `c (+)= sum` in f32.
    Sum { c: (*mut f32, usize), add: bool },
    /// `y (+)= sum + bias`
    Plain { y: (*mut bf16, usize), bias: Option<&'a [f32]>, add: bool },
    /// `u = sum + bias`, `g = act(u)`
    Act { u: (*mut bf16, usize), g: (*mut bf16, usize), bias: &'a [f32], act: Activation },
    /// `du = sum · act'(u)`
    Slope { du: (*mut bf16, usize), u: (*const bf16, usize), act: Activation },
}

// SAFETY: plain addresses; the driver gives every tile to one thread.
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
unsafe impl Sync for Out<'_> {}

/// The part of a result that a tile covers.
#[derive(Clone, Copy)]
pub struct Place {
    pub row: usize,
    pub col: usize,
    pub rows: usize,
    /// At most [`PANEL`].
    pub cols: usize,
}

impl Place {
    /// Row `r` of the tile in a matrix.
    ///
    /// # Safety
    /// The matrix spans the place, and nothing else holds these values.
    #[inline(always)]
    unsafe fn row_mut<'a, T>(&self, (at, stride): (*mut T, usize), r: usize) -> &'a mut [T] {
        // SAFETY: by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(at.add((self.row + r) * stride + self.col), self.cols) }
    }

    /// Row `r` of the tile in a matrix that is only read.
    ///
    /// # Safety
    /// The matrix spans the place, and nobody writes these values.
    #[inline(always)]
    unsafe fn row<'a, T>(&self, (at, stride): (*const T, usize), r: usize) -> &'a [T] {
        // SAFETY: by the caller's promise.
        unsafe { std::slice::from_raw_parts(at.add((self.row + r) * stride + self.col), self.cols) }
    }
}

/// Finishes one tile, whose rows are [`PANEL`] apart in `tile`.
///
/// # Safety
/// The views of `out` span `at`, and no other thread is at the same place.
pub unsafe fn finish(tile: &[f32], at: Place, out: Out<'_>) {
    finish_rows(tile, at, out);
}

simd! {
    /// The body of [`finish`], which alone may call it.
    fn finish_rows(tile: &[f32], at: Place, out: Out<'_>) {
        for (r, sums) in tile.chunks_exact(PANEL).take(at.rows).enumerate() {
            let sums = &sums[..at.cols];
            // SAFETY: by the contract of `finish`.
            unsafe {
                match out {
                    Out::Sum { c, add } => sum_row(at.row_mut(c, r), sums, add),
                    Out::Plain { y, bias, add } => {
                        plain_row(at.row_mut(y, r), sums, bias.map(|b| &b[at.col..][..at.cols]), add)
                    }
                    Out::Act { u, g, bias, act } => {
                        act_row::<FMA>(at.row_mut(u, r), at.row_mut(g, r), sums, &bias[at.col..][..at.cols], act)
                    }
                    Out::Slope { du, u, act } => {
                        slope_row::<FMA>(at.row_mut(du, r), at.row(u, r), sums, act)
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn sum_row(c: &mut [f32], sums: &[f32], add: bool) {
    if add {
        c.iter_mut().zip(sums).for_each(|(c, s)| *c += s);
    } else {
        c.copy_from_slice(sums);
    }
}

#[inline(always)]
fn plain_row(y: &mut [bf16], sums: &[f32], bias: Option<&[f32]>, add: bool) {
    match (bias, add) {
        (None, false) => y.iter_mut().zip(sums).for_each(|(y, s)| *y = Real::from_f32(*s)),
        (None, true) => y.iter_mut().zip(sums).for_each(|(y, s)| *y = Real::from_f32(Real::to_f32(*y) + s)),
        (Some(b), false) => y.iter_mut().zip(sums).zip(b).for_each(|((y, s), b)| *y = Real::from_f32(s + b)),
        (Some(b), true) => {
            y.iter_mut().zip(sums).zip(b).for_each(|((y, s), b)| *y = Real::from_f32(Real::to_f32(*y) + (s + b)))
        }
    }
}

/// The activation sees `u` as it is kept, rounded, so that the backward pass takes the slope at the same place.
#[inline(always)]
fn act_row<const FMA: bool>(u: &mut [bf16], g: &mut [bf16], sums: &[f32], bias: &[f32], act: Activation) {
    let n = sums.len();
    let (u, g, bias) = (&mut u[..n], &mut g[..n], &bias[..n]);
    for j in 0..n {
        u[j] = Real::from_f32(sums[j] + bias[j]);
    }
    for j in 0..n {
        g[j] = Real::from_f32(value_and_slope::<FMA>(act, Real::to_f32(u[j])).0);
    }
}

#[inline(always)]
fn slope_row<const FMA: bool>(du: &mut [bf16], u: &[bf16], sums: &[f32], act: Activation) {
    for ((du, u), s) in du.iter_mut().zip(u).zip(sums) {
        *du = Real::from_f32(s * value_and_slope::<FMA>(act, Real::to_f32(*u)).1);
    }
}
