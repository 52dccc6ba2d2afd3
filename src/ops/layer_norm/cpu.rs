//! CPU bodies: one pass a row, all of it in L1; parameter gradients in one partial sum a thread.

use crate::ops::cpu::{Shared, chunk_count, for_chunks, lane_sum, madd, reduce_partials, simd};
use crate::ops::dropout::Dropout;
use crate::ops::real::Real;

/// Rows a thread gets at least; below, starting threads costs more than the rows.
const GRAIN: usize = 16;

/// Mean and reciprocal standard deviation of a row.
#[inline(always)]
fn row_stats(s: &[f32], eps: f32) -> (f32, f32) {
    let n = s.len();
    let mean = lane_sum([s], |[x]| x) / n as f32;
    let var = lane_sum([s], |[x]| (x - mean) * (x - mean)) / n as f32;
    (mean, 1.0 / (var + eps).sqrt())
}

/// `y = norm(s)·gamma + beta` for one row.
#[inline(always)]
pub(crate) fn norm_row<T: Real, const FMA: bool>(y: &mut [T], s: &[f32], gamma: &[f32], beta: &[f32], eps: f32) {
    let (mean, rstd) = row_stats(s, eps);
    let n = y.len();
    let (s, gamma, beta) = (&s[..n], &gamma[..n], &beta[..n]);
    for j in 0..n {
        y[j] = T::from_f32(madd::<FMA>((s[j] - mean) * rstd, gamma[j], beta[j]));
    }
}

/// One row's `ds` from `dy`; adds to `dgamma` and `dbeta`.
#[inline(always)]
pub(crate) fn norm_row_backward<T: Real, const FMA: bool>(
    ds: &mut [T],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    dy: &[f32],
    s: &[f32],
    gamma: &[f32],
    eps: f32,
) {
    let n = ds.len();
    let (dgamma, dbeta, dy, s, gamma) = (&mut dgamma[..n], &mut dbeta[..n], &dy[..n], &s[..n], &gamma[..n]);
    let (mean, rstd) = row_stats(s, eps);
    // With x̂ the normed row and g = dy·gamma: ds = rstd·(g − mean(g) − x̂·mean(g·x̂)).
    let inv = 1.0 / n as f32;
    let mean_g = lane_sum([dy, gamma], |[dy, gamma]| dy * gamma) * inv;
    let mean_gx = lane_sum([dy, gamma, s], |[dy, gamma, s]| dy * gamma * ((s - mean) * rstd)) * inv;
    for j in 0..n {
        let x = (s[j] - mean) * rstd;
        dgamma[j] = madd::<FMA>(dy[j], x, dgamma[j]);
        dbeta[j] += dy[j];
        ds[j] = T::from_f32(rstd * (dy[j] * gamma[j] - mean_g - x * mean_gx));
    }
}

simd! {
    fn forward_rows[T](
        s: &mut [T], y: &mut [T], residual: &[T], params: &[f32], h: usize, eps: f32, drop: Dropout, first: usize,
    ) {
        let (bias, gamma, beta) = (&params[..h], &params[h..2 * h], &params[2 * h..3 * h]);
        let mut room = vec![0f32; h];
        for (r, ((s, y), residual)) in
            s.chunks_exact_mut(h).zip(y.chunks_exact_mut(h)).zip(residual.chunks_exact(h)).enumerate()
        {
            if drop.is_off() {
                for j in 0..h {
                    s[j] = T::from_f32(residual[j].to_f32() + (s[j].to_f32() + bias[j]));
                }
            } else {
                let base = ((first + r) * h) as u32;
                for j in 0..h {
                    let factor = drop.factor(base.wrapping_add(j as u32));
                    s[j] = T::from_f32(madd::<FMA>(s[j].to_f32() + bias[j], factor, residual[j].to_f32()));
                }
            }
            norm_row::<T, FMA>(y, T::widen(s, &mut room), gamma, beta, eps);
        }
    }
}

pub fn residual_norm<T: Real>(
    s: &mut [T],
    y: &mut [T],
    residual: &[T],
    params: &[f32],
    h: usize,
    eps: f32,
    drop: Dropout,
) {
    let tokens = s.len() / h.max(1);
    let (s, y) = (Shared::new(s), Shared::new(y));
    for_chunks(tokens, GRAIN, |_, rows| {
        let range = rows.start * h..rows.end * h;
        // SAFETY: chunks of rows are disjoint.
        let (s, y) = unsafe { (s.range(range.clone()), y.range(range.clone())) };
        forward_rows(s, y, &residual[range], params, h, eps, drop, rows.start);
    });
}

simd! {
    fn backward_rows[T](
        ds: &mut [T], dbranch: &mut [T], partial: &mut [f32], dy: &[T], s: &[T], carried: Option<&[T]>, gamma: &[f32],
        eps: f32, drop: Dropout, first: usize,
    ) {
        let h = gamma.len();
        let (dbias, rest) = partial.split_at_mut(h);
        let (dgamma, dbeta) = rest.split_at_mut(h);
        let (mut dy_room, mut s_room) = (vec![0f32; h], vec![0f32; h]);
        let mut sum_room = vec![0f32; if carried.is_some() { h } else { 0 }];
        for (r, (((ds, db), dy), s)) in ds
            .chunks_exact_mut(h)
            .zip(dbranch.chunks_exact_mut(h))
            .zip(dy.chunks_exact(h))
            .zip(s.chunks_exact(h))
            .enumerate()
        {
            let (dy, s) = (T::widen(dy, &mut dy_room), T::widen(s, &mut s_room));
            match carried {
                None => norm_row_backward::<T, FMA>(ds, dgamma, dbeta, dy, s, gamma, eps),
                Some(carried) => {
                    norm_row_backward::<f32, FMA>(&mut sum_room, dgamma, dbeta, dy, s, gamma, eps);
                    for ((d, v), c) in ds.iter_mut().zip(&sum_room).zip(&carried[r * h..]) {
                        *d = T::from_f32(v + c.to_f32());
                    }
                }
            }
            if drop.is_off() {
                db.copy_from_slice(ds);
                for j in 0..h {
                    dbias[j] += ds[j].to_f32();
                }
            } else {
                let base = ((first + r) * h) as u32;
                for j in 0..h {
                    let v = ds[j].to_f32() * drop.factor(base.wrapping_add(j as u32));
                    db[j] = T::from_f32(v);
                    dbias[j] += v;
                }
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub fn residual_norm_backward<T: Real>(
    ds: &mut [T],
    dbranch: &mut [T],
    dparams: &mut [f32],
    dy: &[T],
    s: &[T],
    carried: Option<&[T]>,
    params: &[f32],
    eps: f32,
    drop: Dropout,
    accumulate: bool,
) {
    let h = dparams.len() / 3;
    let tokens = ds.len() / h.max(1);
    let mut partial = vec![0f32; chunk_count(tokens, GRAIN) * 3 * h];
    let (shared_ds, shared_db, shared_p) = (Shared::new(ds), Shared::new(dbranch), Shared::new(&mut partial));
    for_chunks(tokens, GRAIN, |c, rows| {
        let range = rows.start * h..rows.end * h;
        // SAFETY: chunks of rows, and the chunks' partial sums, are disjoint.
        let (ds, db, p) = unsafe {
            (shared_ds.range(range.clone()), shared_db.range(range.clone()), shared_p.range(c * 3 * h..(c + 1) * 3 * h))
        };
        let carried = carried.map(|c| &c[range.clone()]);
        backward_rows(ds, db, p, &dy[range.clone()], &s[range], carried, &params[h..2 * h], eps, drop, rows.start);
    });
    reduce_partials(dparams, &partial, accumulate);
}
