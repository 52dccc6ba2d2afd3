//! What becomes of a finished tile of f32 sums, while it is in L1.

use super::drive::PANEL;
use crate::ops::cpu::simd;
use crate::ops::gelu::{Activation, by_activation};
use crate::ops::real::Real;
use crate::ops::{Dst, Src};
use candle_core::{DType, Result, bail};

/// Where a product goes. Pointers come with their row stride and span `[m, n]`; `T` is the format of activations.
#[derive(Clone, Copy)]
pub enum Out<'a, T> {
    /// `c (+)= sum` in f32.
    Sum { c: (*mut f32, usize), add: bool },
    /// `y (+)= sum`
    Plain { y: (*mut T, usize), add: bool },
    /// `y = sum + bias`
    Biased { y: (*mut T, usize), bias: &'a [f32] },
    /// `u = sum + bias`, `g = act(u)`
    Act { u: (*mut T, usize), g: (*mut T, usize), bias: &'a [f32], act: Activation },
    /// `du = sum · act'(u)`
    Slope { du: (*mut T, usize), u: (*const T, usize), act: Activation },
}

/// What becomes of a product with a weight: which [`Out`] a kernel makes of its destinations and of the sources behind the
/// operands.
pub enum Form {
    /// `y (+)=`
    Plain { add: bool },
    /// `y`; bias
    Biased,
    /// `u`, `g`; bias
    Act(Activation),
    /// `du`; `u`
    Slope(Activation),
}

impl Form {
    /// # Errors
    /// When their number, shapes or formats do not fit a product `[m, n]`.
    pub fn out<'a, T: Real>(
        &self,
        name: &str,
        (m, n): (usize, usize),
        dst: &mut [Dst<'_>],
        src: &[Src<'a>],
    ) -> Result<Out<'a, T>> {
        let (number, sides) = match self {
            Self::Plain { .. } => (1, None),
            Self::Biased => (1, Some((1, n))),
            Self::Act(_) => (2, Some((1, n))),
            Self::Slope(_) => (1, Some((m, n))),
        };
        let to: Vec<_> = dst.iter().map(|d| (d.rows, d.cols)).collect();
        let beside = src.first().map(|s| (s.rows, s.cols));
        if to.len() != number || to.iter().any(|d| *d != (m, n)) || src.len() > 1 || beside != sides {
            bail!("{name}: a product [{m}, {n}] with {beside:?} does not give {to:?}");
        }
        let mut views = Vec::with_capacity(2);
        for d in dst {
            let stride = d.stride;
            views.push((d.values::<T>()?.as_mut_ptr(), stride));
        }
        Ok(match *self {
            Self::Plain { add } => Out::Plain { y: views[0], add },
            Self::Biased => Out::Biased { y: views[0], bias: src[0].f32()? },
            Self::Act(act) => Out::Act { u: views[0], g: views[1], bias: src[0].f32()?, act },
            Self::Slope(act) => Out::Slope { du: views[0], u: (src[0].values::<T>()?.as_ptr(), src[0].stride), act },
        })
    }
}

// SAFETY: plain addresses; the driver gives every tile to one thread.
unsafe impl<T: Real> Send for Out<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Real> Sync for Out<'_, T> {}

impl<T: Real> Out<'_, T> {
    /// Where a tile's sums go as they are, so that the kernel may write them there itself.
    pub fn direct(&self, at: Place) -> Option<(*mut f32, usize)> {
        let (c, stride) = match *self {
            Out::Sum { c, add: false } => c,
            Out::Plain { y: (y, stride), add: false } if T::DTYPE == DType::F32 => (y.cast::<f32>(), stride),
            _ => return None,
        };
        Some((c.wrapping_add(at.row * stride + at.col), stride))
    }
}

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
pub unsafe fn finish<T: Real>(tile: &[f32], at: Place, out: Out<'_, T>) {
    finish_rows(tile, at, out);
}

simd! {
    /// The body of [`finish`], which alone may call it.
    fn finish_rows[T](tile: &[f32], at: Place, out: Out<'_, T>) {
        for (r, sums) in tile.chunks_exact(PANEL).take(at.rows).enumerate() {
            let sums = &sums[..at.cols];
            // SAFETY: by the contract of `finish`.
            unsafe {
                match out {
                    Out::Sum { c, add } => sum_row(at.row_mut(c, r), sums, add),
                    Out::Plain { y, add } => plain_row(at.row_mut(y, r), sums, add),
                    Out::Biased { y, bias } => biased_row(at.row_mut(y, r), sums, &bias[at.col..][..at.cols]),
                    Out::Act { u, g, bias, act } => {
                        act_row::<T, FMA>(at.row_mut(u, r), at.row_mut(g, r), sums, &bias[at.col..][..at.cols], act)
                    }
                    Out::Slope { du, u, act } => {
                        slope_row::<T, FMA>(at.row_mut(du, r), at.row(u, r), sums, act)
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
fn plain_row<T: Real>(y: &mut [T], sums: &[f32], add: bool) {
    if add {
        y.iter_mut().zip(sums).for_each(|(y, s)| *y = T::from_f32(y.to_f32() + s));
    } else {
        y.iter_mut().zip(sums).for_each(|(y, s)| *y = T::from_f32(*s));
    }
}

#[inline(always)]
fn biased_row<T: Real>(y: &mut [T], sums: &[f32], bias: &[f32]) {
    y.iter_mut().zip(sums).zip(bias).for_each(|((y, s), b)| *y = T::from_f32(s + b));
}

/// The activation sees `u` as it is kept, rounded, so that the backward pass takes the slope at the same place.
#[inline(always)]
fn act_row<T: Real, const FMA: bool>(u: &mut [T], g: &mut [T], sums: &[f32], bias: &[f32], act: Activation) {
    let n = sums.len();
    let (u, g, bias) = (&mut u[..n], &mut g[..n], &bias[..n]);
    for j in 0..n {
        u[j] = T::from_f32(sums[j] + bias[j]);
    }
    by_activation!(act, f => for j in 0..n {
        g[j] = T::from_f32(f(Real::to_f32(u[j])).0);
    })
}

#[inline(always)]
fn slope_row<T: Real, const FMA: bool>(du: &mut [T], u: &[T], sums: &[f32], act: Activation) {
    by_activation!(act, f => for ((du, u), s) in du.iter_mut().zip(u).zip(sums) {
        *du = T::from_f32(s * f(Real::to_f32(*u)).1);
    })
}
