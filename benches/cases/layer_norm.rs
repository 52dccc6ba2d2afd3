//! Residual sum and layer norm. Reference: a plain loop over the rows on one thread, with the same dropout.

use super::{EPS, FORMATS, HIDDEN, dropout, slice, token_counts};
use crate::common::data::{matrix, values, zeros};
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::ops::dropout::Dropout;
use bertft::ops::layer_norm::{ResidualNormGrads, residual_norm, residual_norm_backward};
use bertft::ops::real::Real;
use candle_core::DType;
use half::bf16;
use std::hint::black_box;

pub fn run(table: &Table) -> Result<()> {
    for tokens in token_counts() {
        for dtype in FORMATS {
            if dtype == DType::F32 {
                forward::<f32>(table, tokens)?;
                backward::<f32>(table, tokens)?;
            } else {
                forward::<bf16>(table, tokens)?;
                backward::<bf16>(table, tokens)?;
            }
        }
    }
    Ok(())
}

fn row<T: Real>(op: &str, tokens: usize, buffers: usize) -> Row<'_> {
    let bytes = tokens * HIDDEN * size_of::<T>();
    let work = Work::Bytes { read: 2 * bytes, written: 2 * bytes, span: buffers * bytes };
    Row { op, shape: format!("[{tokens}, {HIDDEN}]"), dtype: T::DTYPE, work }
}

fn forward<T: Real>(table: &Table, tokens: usize) -> Result<()> {
    let (s, y) = (matrix(tokens, HIDDEN, T::DTYPE, 1)?, zeros(tokens, HIDDEN, T::DTYPE)?);
    let (residual, params) = (matrix(tokens, HIDDEN, T::DTYPE, 2)?, matrix(3, HIDDEN, DType::F32, 3)?);
    let n = tokens * HIDDEN;
    let (mut s0, mut y0, r0, p0) = (slice::<T>(n, 1), slice::<T>(n, 1), slice::<T>(n, 2), values(3 * HIDDEN, 3));
    let (mut call0, mut call) = (0, 0);
    let reference = || {
        reference_forward(&mut s0, &mut y0, &r0, &p0, dropout(&mut call0));
        black_box((&mut s0, &mut y0));
        Ok(())
    };
    let ours = || residual_norm(&s, &y, &residual, &params, EPS, dropout(&mut call));
    table.row(row::<T>("residual_norm", tokens, 3), reference, ours)
}

fn reference_forward<T: Real>(s: &mut [T], y: &mut [T], residual: &[T], params: &[f32], drop: Dropout) {
    let h = HIDDEN;
    let (bias, gamma, beta) = (&params[..h], &params[h..2 * h], &params[2 * h..]);
    for (r, (s, y)) in s.chunks_exact_mut(h).zip(y.chunks_exact_mut(h)).enumerate() {
        for j in 0..h {
            let branch = (s[j].to_f32() + bias[j]) * drop.factor((r * h + j) as u32);
            s[j] = T::from_f32(residual[r * h + j].to_f32() + branch);
        }
        let (mean, rstd) = stats(s);
        for j in 0..h {
            y[j] = T::from_f32((s[j].to_f32() - mean) * rstd * gamma[j] + beta[j]);
        }
    }
}

/// Mean and reciprocal standard deviation.
pub fn stats<T: Real>(s: &[T]) -> (f32, f32) {
    let n = s.len() as f32;
    let mean = s.iter().map(|v| v.to_f32()).sum::<f32>() / n;
    let variance = s.iter().map(|v| (v.to_f32() - mean).powi(2)).sum::<f32>() / n;
    (mean, 1.0 / (variance + EPS).sqrt())
}

fn backward<T: Real>(table: &Table, tokens: usize) -> Result<()> {
    let (dy, s) = (matrix(tokens, HIDDEN, T::DTYPE, 1)?, matrix(tokens, HIDDEN, T::DTYPE, 2)?);
    let (ds, dbranch) = (zeros(tokens, HIDDEN, T::DTYPE)?, zeros(tokens, HIDDEN, T::DTYPE)?);
    let (params, dparams) = (matrix(3, HIDDEN, DType::F32, 3)?, zeros(3, HIDDEN, DType::F32)?);
    let n = tokens * HIDDEN;
    let (dy0, s0, p0) = (slice::<T>(n, 1), slice::<T>(n, 2), values(3 * HIDDEN, 3));
    let (mut to, mut dparams0) = ([slice::<T>(n, 4), slice::<T>(n, 5)], vec![0f32; 3 * HIDDEN]);
    let (mut call0, mut call) = (0, 0);
    let reference = || {
        reference_backward(&mut to, &mut dparams0, &dy0, &s0, &p0, dropout(&mut call0));
        black_box((&mut to, &mut dparams0));
        Ok(())
    };
    let ours = || {
        let out = ResidualNormGrads { ds: &ds, dbranch: &dbranch, dparams: &dparams };
        residual_norm_backward(out, &dy, &s, &params, EPS, dropout(&mut call), false)
    };
    table.row(row::<T>("residual_norm_backward", tokens, 4), reference, ours)
}

fn reference_backward<T: Real>(
    [ds, dbranch]: &mut [Vec<T>; 2],
    dparams: &mut [f32],
    dy: &[T],
    s: &[T],
    params: &[f32],
    drop: Dropout,
) {
    let h = HIDDEN;
    let gamma = &params[h..2 * h];
    dparams.fill(0.0);
    for (r, (dy, s)) in dy.chunks_exact(h).zip(s.chunks_exact(h)).enumerate() {
        let (mean, rstd) = stats(s);
        let normed = |j: usize| (s[j].to_f32() - mean) * rstd;
        let (mut mean_g, mut mean_gx) = (0f32, 0f32);
        for j in 0..h {
            let g = dy[j].to_f32() * gamma[j] / h as f32;
            mean_g += g;
            mean_gx += g * normed(j);
        }
        for j in 0..h {
            let (dy, x) = (dy[j].to_f32(), normed(j));
            let d = rstd * (dy * gamma[j] - mean_g - x * mean_gx);
            let b = d * drop.factor((r * h + j) as u32);
            ds[r * h + j] = T::from_f32(d);
            dbranch[r * h + j] = T::from_f32(b);
            dparams[j] += b;
            dparams[h + j] += dy * x;
            dparams[2 * h + j] += dy;
        }
    }
}
