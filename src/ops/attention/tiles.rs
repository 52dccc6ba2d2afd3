//! What the CPU bodies of attention are made of: views, products in register tiles, softmax and its gradient.

use crate::ops::cpu::{LANES, exp, fold, in_memory, lane_sum, madd, transpose16};
use crate::ops::dropout::Dropout;
use crate::ops::real::Real;
use std::ops::Range;

/// A row-major matrix view; the caller answers for its extent.
pub struct Matrix<T = f32> {
    pub at: *const T,
    pub stride: usize,
}

/// A row-major mutable matrix view; the caller answers for its extent.
pub struct MatrixMut<T = f32> {
    pub at: *mut T,
    pub stride: usize,
}

impl<T> Clone for Matrix<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<T> {}

impl<T> Clone for MatrixMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for MatrixMut<T> {}

// SAFETY: plain addresses; every pair of (row, head) reads shared and writes disjoint places.
unsafe impl<T> Sync for Matrix<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for MatrixMut<T> {}

impl<T: Real> Matrix<T> {
    pub unsafe fn offset(self, row: usize, col: usize) -> Self {
        // SAFETY: inside the view by the caller's promise.
        Self { at: unsafe { self.at.add(row * self.stride + col) }, ..self }
    }

    /// A dense f32 copy in `room: [rows, d]`.
    #[inline(always)]
    pub unsafe fn widened(self, room: &mut [f32], rows: usize, d: usize) -> Matrix {
        for (i, row) in room[..rows * d].chunks_exact_mut(d).enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                // SAFETY: inside the view by the caller's promise.
                *v = unsafe { (*self.at.add(i * self.stride + j)).to_f32() };
            }
        }
        Matrix { at: room.as_ptr(), stride: d }
    }
}

impl<T: Real> MatrixMut<T> {
    pub unsafe fn offset(self, row: usize, col: usize) -> Self {
        // SAFETY: inside the view by the caller's promise.
        Self { at: unsafe { self.at.add(row * self.stride + col) }, ..self }
    }

    pub fn as_const(self) -> Matrix<T> {
        Matrix { at: self.at, stride: self.stride }
    }

    /// Brings `[rows, d]` results home from where they were computed.
    #[inline(always)]
    pub unsafe fn round_from(self, room: &[f32], rows: usize, d: usize) {
        for (i, row) in room[..rows * d].chunks_exact(d).enumerate() {
            for (j, v) in row.iter().enumerate() {
                // SAFETY: inside the view by the caller's promise.
                unsafe { *self.at.add(i * self.stride + j) = T::from_f32(*v) };
            }
        }
    }
}

/// Columns of a row of scores: whole registers.
pub fn padded(keys: usize) -> usize {
    keys.next_multiple_of(LANES)
}

/// `ds` holds d(dropped p) and becomes the gradient of the raw scores, which softmax scaled; `p` becomes the dropped probabilities.
#[inline(always)]
pub fn score_grad_row<const FMA: bool>(
    p: &mut [f32],
    ds: &mut [f32],
    keys: usize,
    scale: f32,
    drop: Dropout,
    base: u32,
) {
    let (p, ds) = (&mut p[..keys], &mut ds[..keys]);
    if !drop.is_off() {
        for (j, g) in ds.iter_mut().enumerate() {
            *g *= drop.factor(base.wrapping_add(j as u32));
        }
    }
    let dot = lane_sum([p, ds], |[p, ds]| p * ds);
    for j in 0..keys {
        ds[j] = scale * p[j] * (ds[j] - dot);
    }
    if !drop.is_off() {
        for (j, p) in p.iter_mut().enumerate() {
            *p *= drop.factor(base.wrapping_add(j as u32));
        }
    }
}

/// `xt[d, n] = x[keys, d]ᵀ`, columns past `keys` zero.
#[inline(always)]
pub unsafe fn transpose(xt: &mut [f32], x: Matrix, keys: usize, d: usize, n: usize) {
    for (j, c) in (0..n).step_by(LANES).flat_map(|j| (0..d).step_by(LANES).map(move |c| (j, c))) {
        let (rows, cols) = (LANES.min(keys.saturating_sub(j)), LANES.min(d - c));
        let mut square = [[0u32; LANES]; LANES];
        for (r, row) in square.iter_mut().enumerate().take(rows) {
            // SAFETY: inside x by the caller's promise; f32 and u32 are alike in size.
            unsafe {
                let from = x.at.add((j + r) * x.stride + c).cast::<u32>();
                if cols == LANES {
                    *row = from.cast::<[u32; LANES]>().read_unaligned();
                } else {
                    std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), cols);
                }
            }
        }
        transpose16(&mut square);
        for (r, row) in square.iter().enumerate().take(cols) {
            xt[(c + r) * n + j..][..LANES].copy_from_slice(&row.map(f32::from_bits));
        }
    }
}

/// Softmax of those of the `keys` scores of each row that it sees, times `scale`; the others and the padding become 0.
#[inline(always)]
pub fn softmax_rows<const FMA: bool>(
    scores: &mut [f32],
    keys: usize,
    scale: f32,
    seen: impl Fn(usize) -> Range<usize>,
) {
    for (r, row) in scores.chunks_exact_mut(padded(keys)).enumerate() {
        let seen = seen(r);
        row[..seen.start].fill(f32::MIN);
        row[seen.end..].fill(f32::MIN);
        let mut top = [f32::MIN; LANES];
        for chunk in row.chunks_exact(LANES) {
            for (t, v) in top.iter_mut().zip(chunk) {
                *t = if *v > *t { *v } else { *t };
            }
        }
        let top = fold(in_memory(top), |a, b| if a > b { a } else { b });
        for v in row.iter_mut() {
            *v = exp::<FMA>((*v - top) * scale);
        }
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
        let inverse = 1.0 / lane_sum([row], |[x]| x);
        for v in row.iter_mut() {
            *v *= inverse;
        }
    }
}

/// `c[m, n] (+)= a · b` with `a: [m, k]`, or `a: [k, m]` read transposed; `b: [k, n]`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn product<const FMA: bool>(
    c: MatrixMut,
    a: Matrix,
    a_t: bool,
    b: Matrix,
    m: usize,
    n: usize,
    k: usize,
    add: bool,
) {
    let (rs, cs) = if a_t { (1, a.stride) } else { (a.stride, 1) };
    // SAFETY: all places are inside the views by the caller's promise.
    unsafe {
        let mut j = 0;
        while j + 2 * LANES <= n {
            columns::<FMA, 2>(c.offset(0, j), a.at, rs, cs, b.offset(0, j), m, k, add);
            j += 2 * LANES;
        }
        if j + LANES <= n {
            columns::<FMA, 1>(c.offset(0, j), a.at, rs, cs, b.offset(0, j), m, k, add);
            j += LANES;
        }
        for j in j..n {
            for i in 0..m {
                let mut sum = if add { *c.at.add(i * c.stride + j) } else { 0.0 };
                for p in 0..k {
                    sum = madd::<FMA>(*a.at.add(i * rs + p * cs), *b.at.add(p * b.stride + j), sum);
                }
                *c.at.add(i * c.stride + j) = sum;
            }
        }
    }
}

/// `V` registers' worth of columns, all `m` rows in tiles.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn columns<const FMA: bool, const V: usize>(
    c: MatrixMut,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: Matrix,
    m: usize,
    k: usize,
    add: bool,
) {
    let mut i = 0;
    // SAFETY: as in `product`.
    unsafe {
        while i + 6 <= m {
            tile::<FMA, 6, V>(c.offset(i, 0), a.add(i * rs), rs, cs, b, k, add);
            i += 6;
        }
        while i + 2 <= m {
            tile::<FMA, 2, V>(c.offset(i, 0), a.add(i * rs), rs, cs, b, k, add);
            i += 2;
        }
        if i < m {
            tile::<FMA, 1, V>(c.offset(i, 0), a.add(i * rs), rs, cs, b, k, add);
        }
    }
}

#[inline(always)]
unsafe fn tile<const FMA: bool, const M: usize, const V: usize>(
    c: MatrixMut,
    a: *const f32,
    rs: usize,
    cs: usize,
    b: Matrix,
    k: usize,
    add: bool,
) {
    let mut acc = [[[0f32; LANES]; V]; M];
    // SAFETY: as in `product`.
    unsafe {
        let place = |i: usize| c.at.add(i * c.stride).cast::<[[f32; LANES]; V]>();
        if add {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = std::ptr::read_unaligned(place(i));
            }
        }
        for p in 0..k {
            let row: [[f32; LANES]; V] = std::ptr::read_unaligned(b.at.add(p * b.stride).cast());
            for (i, acc) in acc.iter_mut().enumerate() {
                let x = *a.add(i * rs + p * cs);
                for (acc, row) in acc.iter_mut().zip(&row) {
                    for (s, y) in acc.iter_mut().zip(row) {
                        *s = madd::<FMA>(x, *y, *s);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            std::ptr::write_unaligned(place(i), *acc);
        }
    }
}
