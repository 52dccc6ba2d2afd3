//! CPU body: one (row, head) pair is one piece of work, queries in blocks so that the scores stay in L2. Keys and values
//! are transposed once a pair, so that all products run over dense columns in register tiles. A pair's part of each tensor is
//! copied to the scratch first, widened if it is bf16: its rows lie far apart in the batch, in few sets of L1. Results go
//! the same way back.

use super::AttentionSpec;
use super::tiles::{Matrix, MatrixMut, padded, product, score_grad_row, softmax_rows, transpose};
use crate::ops::Dst;
use crate::ops::cpu::{LANES, Shared, simd};
use crate::ops::dropout::Dropout;
use crate::ops::pool::for_each;
use crate::ops::real::Real;
use candle_core::{Result, bail};
use std::cell::RefCell;
use std::ops::Range;

/// Queries a block.
const BLOCK: usize = 64;

/// One (row, head): sizes and dropout.
#[derive(Clone, Copy)]
struct Pair {
    row: usize,
    head: usize,
    queries: usize,
    keys: usize,
    d: usize,
    drop: Dropout,
}

/// A bias by distance: of all heads, or of one.
#[derive(Clone, Copy)]
pub struct Bias<'a> {
    /// `2·reach + 1` values a head; that of distance 0 at `reach`.
    pub values: &'a [f32],
    pub reach: usize,
}

/// What decides about scores beside the products: of the batch, or of one (row, head).
#[derive(Clone, Copy)]
pub struct Extras<'a> {
    pub bias: Option<Bias<'a>>,
    /// Keys further than this from their query are not seen.
    pub window: Option<usize>,
    /// Tokens of the batch that the queries are; all of them without.
    pub queries: Option<&'a [u32]>,
    /// The row's first token in the batch.
    pub first: usize,
}

impl Extras<'_> {
    fn of(self, pair: Pair, q0: usize, k0: usize) -> Self {
        let queries = self.queries.map(|q| &q[q0..q0 + pair.queries]);
        let bias = self.bias.map(|b| {
            let columns = 2 * b.reach + 1;
            Bias { values: &b.values[pair.head * columns..][..columns], ..b }
        });
        Self { bias, queries, first: k0, ..self }
    }

    /// Where query `i` stands in its row.
    fn position(&self, i: usize) -> usize {
        self.queries.map_or(i, |q| q[i] as usize - self.first)
    }

    /// The keys that query `i` sees.
    fn seen(&self, i: usize, keys: usize) -> Range<usize> {
        let Some(window) = self.window else { return 0..keys };
        let at = self.position(i);
        at.saturating_sub(window)..(at + window + 1).min(keys)
    }

    /// The keys that any of the queries sees, from a multiple of [`LANES`] on.
    fn seen_by_all(&self, queries: Range<usize>, keys: usize) -> Range<usize> {
        if self.window.is_none() {
            return 0..keys;
        }
        let all = queries.map(|i| self.seen(i, keys)).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let all = all.unwrap_or(0..keys);
        all.start / LANES * LANES..all.end
    }
}

/// Adds the bias of the `keys` for the queries from `i` on to raw scores, which are scaled by 1/√d later.
#[inline(always)]
fn add_bias(scores: &mut [f32], extras: Extras<'_>, i: usize, keys: Range<usize>, d: usize) {
    let Some(bias) = extras.bias else { return };
    let scale = (d as f32).sqrt();
    for (r, row) in scores.chunks_exact_mut(padded(keys.len())).enumerate() {
        let from = bias.reach - extras.position(i + r) + keys.start;
        for (s, b) in row.iter_mut().zip(&bias.values[from..][..keys.len()]) {
            *s += scale * b;
        }
    }
}

/// Adds the gradient of the raw scores of the queries from `i` on, to that of the bias by distance, `[2·row − 1]` for the
/// distances in a row of so many keys.
#[inline(always)]
fn add_bias_grad(
    dbias: &mut [f32],
    ds: &[f32],
    extras: Extras<'_>,
    i: usize,
    keys: Range<usize>,
    row_keys: usize,
    d: usize,
) {
    let scale = (d as f32).sqrt();
    for (r, row) in ds.chunks_exact(padded(keys.len())).enumerate() {
        let to = &mut dbias[row_keys - 1 - extras.position(i + r) + keys.start..][..keys.len()];
        for (b, s) in to.iter_mut().zip(row) {
            *b += scale * s;
        }
    }
}

pub fn head_dropout(spec: &AttentionSpec<'_>, row: usize, head: usize) -> Dropout {
    if spec.dropout.is_off() { Dropout::OFF } else { spec.dropout.sub((row * spec.heads + head) as u64) }
}

/// Runs `f(first query, first key, column, pair, scratch)` for every (row, head) on all threads.
fn for_pairs(
    hidden: usize,
    spec: &AttentionSpec<'_>,
    scratch: impl Fn(Pair) -> usize + Sync,
    f: impl Fn(usize, usize, usize, Pair, &mut [f32]) + Sync,
) {
    thread_local!(static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    let d = hidden / spec.heads;
    let rows = spec.cu_keys.len() - 1;
    for_each(rows * spec.heads, |i| {
        let (row, head) = (i / spec.heads, i % spec.heads);
        let (q0, k0) = (spec.cu_queries[row] as usize, spec.cu_keys[row] as usize);
        let (queries, keys) = (spec.cu_queries[row + 1] as usize - q0, spec.cu_keys[row + 1] as usize - k0);
        let pair = Pair { row, head, queries, keys, d, drop: head_dropout(spec, row, head) };
        SCRATCH.with_borrow_mut(|s| {
            let need = scratch(pair);
            if s.len() < need {
                s.resize(need, 0.0);
            }
            f(q0, k0, head * d, pair, &mut s[..need]);
        });
    });
}

/// # Safety
/// The matrices must have the shapes that [`super::attention`] documents for `spec`.
pub unsafe fn forward<T: Real>(
    out: MatrixMut<T>,
    q: Matrix<T>,
    k: Matrix<T>,
    v: Matrix<T>,
    hidden: usize,
    spec: &AttentionSpec<'_>,
    extras: Extras<'_>,
) {
    let all = (out, q, k, v);
    for_pairs(
        hidden,
        spec,
        |p| padded(p.keys) * (p.d + BLOCK) + 2 * (p.queries + p.keys) * p.d,
        |q0, k0, col, pair, scratch| {
            let (out, q, k, v) = all;
            // SAFETY: offsets inside the views by the caller's promise.
            unsafe {
                let views = (out.offset(q0, col), q.offset(q0, col), k.offset(k0, col), v.offset(k0, col));
                forward_pair(views.0, views.1, views.2, views.3, pair, extras.of(pair, q0, k0), scratch)
            }
        },
    );
}

simd! {
    fn forward_pair[T](
        out: MatrixMut<T>, q: Matrix<T>, k: Matrix<T>, v: Matrix<T>, pair: Pair, extras: Extras<'_>, scratch: &mut [f32],
    ) {
        let Pair { queries, keys, d, drop, .. } = pair;
        let (n, scale) = (padded(keys), 1.0 / (d as f32).sqrt());
        let (kt, rest) = scratch.split_at_mut(n * d);
        let (scores, rest) = rest.split_at_mut(n * BLOCK);
        let (out_room, rest) = rest.split_at_mut(queries * d);
        let (q_room, rest) = rest.split_at_mut(queries * d);
        let (k_room, v_room) = rest.split_at_mut(keys * d);
        // SAFETY: all views span this pair's tokens by the caller's promise.
        unsafe {
            let (q, k, v) = (q.widened(q_room, queries, d), k.widened(k_room, keys, d), v.widened(v_room, keys, d));
            let to = MatrixMut { at: out_room.as_mut_ptr(), stride: d };
            transpose(kt, k, keys, d, n);
            let kt = Matrix { at: kt.as_ptr(), stride: n };
            for i in (0..queries).step_by(BLOCK) {
                let m = BLOCK.min(queries - i);
                let seen = extras.seen_by_all(i..i + m, keys);
                let (lo, span) = (seen.start, seen.len());
                let n = padded(span);
                let s = MatrixMut { at: scores.as_mut_ptr(), stride: n };
                product::<FMA>(s, q.offset(i, 0), false, kt.offset(0, lo), m, n, d, false);
                add_bias(&mut scores[..m * n], extras, i, seen, d);
                softmax_rows::<FMA>(&mut scores[..m * n], span, scale, |r| within(extras.seen(i + r, keys), lo));
                if !drop.is_off() {
                    for (r, row) in scores[..m * n].chunks_exact_mut(n).enumerate() {
                        let base = ((i + r) * keys + lo) as u32;
                        for (j, p) in row[..span].iter_mut().enumerate() {
                            *p *= drop.factor(base.wrapping_add(j as u32));
                        }
                    }
                }
                product::<FMA>(to.offset(i, 0), s.as_const(), false, v.offset(lo, 0), m, d, span, false);
            }
            out.round_from(out_room, queries, d);
        }
    }
}

/// # Safety
/// The matrices must have the shapes that [`super::attention_backward`] documents for `spec`.
pub unsafe fn backward<T: Real>(
    to: [MatrixMut<T>; 3],
    dout: Matrix<T>,
    qkv: [Matrix<T>; 3],
    hidden: usize,
    spec: &AttentionSpec<'_>,
    extras: Extras<'_>,
    dbias: Option<&mut Dst<'_>>,
) -> Result<()> {
    let all = (to, dout, qkv);
    let heads = spec.heads;
    // Each pair's sums, in an order that threads do not change; then one head's over all rows.
    let tokens = spec.cu_keys.last().map_or(0, |&n| n as usize);
    let mut parts = if dbias.is_some() { vec![0f32; 2 * heads * tokens] } else { vec![] };
    let part = |row: usize, head: usize| {
        let (k0, k1) = (spec.cu_keys[row] as usize, spec.cu_keys[row + 1] as usize);
        let start = 2 * heads * k0 + 2 * head * (k1 - k0);
        start..start + 2 * (k1 - k0)
    };
    let (shared, wanted) = (Shared::new(&mut parts), dbias.is_some());
    for_pairs(
        hidden,
        spec,
        |p| padded(p.keys) * 2 * (p.d + BLOCK) + (3 * p.queries + 4 * p.keys) * p.d,
        |q0, k0, col, pair, scratch| {
            let ([dq, dk, dv], dout, [q, k, v]) = all;
            // SAFETY: offsets inside the views by the caller's promise; every pair has a part of its own.
            unsafe {
                let dbias = shared.range(if wanted { part(pair.row, pair.head) } else { 0..0 });
                let extras = extras.of(pair, q0, k0);
                let to = [dq.offset(q0, col), dk.offset(k0, col), dv.offset(k0, col)];
                let qkv = [q.offset(q0, col), k.offset(k0, col), v.offset(k0, col)];
                backward_pair(to, dout.offset(q0, col), qkv, pair, extras, dbias, scratch)
            }
        },
    );
    let (Some(dbias), Some(bias)) = (dbias, extras.bias) else { return Ok(()) };
    let columns = 2 * bias.reach + 1;
    let all = dbias.values::<f32>()?;
    if all.len() != heads * columns {
        bail!("attention_backward: {} gradients for a bias [{heads}, {columns}]", all.len());
    }
    for (head, sums) in all.chunks_exact_mut(columns).enumerate() {
        for row in 0..spec.cu_keys.len() - 1 {
            let part = &parts[part(row, head)];
            let from = bias.reach + 1 - part.len() / 2;
            sums[from..].iter_mut().zip(&part[..part.len() - 1]).for_each(|(s, p)| *s += p);
        }
    }
    Ok(())
}

simd! {
    fn backward_pair[T](
        to: [MatrixMut<T>; 3], dout: Matrix<T>, qkv: [Matrix<T>; 3], pair: Pair, extras: Extras<'_>, dbias: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (Pair { queries, keys, d, drop, .. }, home, [q, k, v]) = (pair, to, qkv);
        let (n, scale) = (padded(keys), 1.0 / (d as f32).sqrt());
        let (kt, rest) = scratch.split_at_mut(n * d);
        let (vt, rest) = rest.split_at_mut(n * d);
        let (p, rest) = rest.split_at_mut(n * BLOCK);
        let (ds, rest) = rest.split_at_mut(n * BLOCK);
        let (dq_room, rest) = rest.split_at_mut(queries * d);
        let (dk_room, rest) = rest.split_at_mut(keys * d);
        let (dv_room, rest) = rest.split_at_mut(keys * d);
        let (dout_room, rest) = rest.split_at_mut(queries * d);
        let (q_room, rest) = rest.split_at_mut(queries * d);
        let (k_room, v_room) = rest.split_at_mut(keys * d);
        let [dq, dk, dv] =
            [&mut *dq_room, &mut *dk_room, &mut *dv_room].map(|room| MatrixMut { at: room.as_mut_ptr(), stride: d });
        // SAFETY: all views span this pair's tokens by the caller's promise.
        unsafe {
            // The blocks of queries add to the keys they see; without a window the first block sees all and overwrites.
            if queries == 0 || extras.window.is_some() {
                for j in 0..keys {
                    std::slice::from_raw_parts_mut(dk.offset(j, 0).at, d).fill(0.0);
                    std::slice::from_raw_parts_mut(dv.offset(j, 0).at, d).fill(0.0);
                }
            }
            let dout = dout.widened(dout_room, queries, d);
            let (q, k, v) = (q.widened(q_room, queries, d), k.widened(k_room, keys, d), v.widened(v_room, keys, d));
            transpose(kt, k, keys, d, n);
            transpose(vt, v, keys, d, n);
            let (kt, vt) = (Matrix { at: kt.as_ptr(), stride: n }, Matrix { at: vt.as_ptr(), stride: n });
            for i in (0..queries).step_by(BLOCK) {
                let m = BLOCK.min(queries - i);
                let (seen, add) = (extras.seen_by_all(i..i + m, keys), i > 0 || extras.window.is_some());
                let (lo, span) = (seen.start, seen.len());
                let n = padded(span);
                let (pm, dsm) = (MatrixMut { at: p.as_mut_ptr(), stride: n }, MatrixMut { at: ds.as_mut_ptr(), stride: n });
                product::<FMA>(pm, q.offset(i, 0), false, kt.offset(0, lo), m, n, d, false);
                add_bias(&mut p[..m * n], extras, i, seen.clone(), d);
                softmax_rows::<FMA>(&mut p[..m * n], span, scale, |r| within(extras.seen(i + r, keys), lo));
                product::<FMA>(dsm, dout.offset(i, 0), false, vt.offset(0, lo), m, n, d, false);
                for (r, (p, ds)) in p[..m * n].chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).enumerate() {
                    score_grad_row::<FMA>(p, ds, span, scale, drop, ((i + r) * keys + lo) as u32);
                }
                if !dbias.is_empty() {
                    add_bias_grad(dbias, &ds[..m * n], extras, i, seen, keys, d);
                }
                product::<FMA>(dv.offset(lo, 0), pm.as_const(), true, dout.offset(i, 0), span, d, m, add);
                product::<FMA>(dq.offset(i, 0), dsm.as_const(), false, k.offset(lo, 0), m, d, span, false);
                product::<FMA>(dk.offset(lo, 0), dsm.as_const(), true, q.offset(i, 0), span, d, m, add);
            }
            home[0].round_from(dq_room, queries, d);
            home[1].round_from(dk_room, keys, d);
            home[2].round_from(dv_room, keys, d);
        }
    }
}

/// A range counted from `lo`.
fn within(range: Range<usize>, lo: usize) -> Range<usize> {
    range.start - lo..range.end - lo
}
