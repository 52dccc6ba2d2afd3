//! CPU body: one (row, head) pair is one piece of work, queries in blocks so that the scores stay in L2. Keys and values
//! are transposed once a pair, so that all products run over dense columns in register tiles. A pair's part of each tensor is
//! copied to the scratch first, widened if it is bf16: its rows lie far apart in the batch, in few sets of L1. Results go
//! the same way back.

use super::AttentionSpec;
use crate::ops::Dst;
use crate::ops::cpu::{LANES, Shared, exp, fold, in_memory, lane_sum, madd, simd, transpose16};
use crate::ops::dropout::Dropout;
use crate::ops::pool::for_each;
use crate::ops::real::Real;
use candle_core::{Result, bail};
use std::cell::RefCell;
use std::ops::Range;

/// Queries a block.
const BLOCK: usize = 64;

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
    unsafe fn offset(self, row: usize, col: usize) -> Self {
        // SAFETY: inside the view by the caller's promise.
        Self { at: unsafe { self.at.add(row * self.stride + col) }, ..self }
    }

    /// A dense f32 copy in `room: [rows, d]`.
    #[inline(always)]
    unsafe fn widened(self, room: &mut [f32], rows: usize, d: usize) -> Matrix {
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
    unsafe fn offset(self, row: usize, col: usize) -> Self {
        // SAFETY: inside the view by the caller's promise.
        Self { at: unsafe { self.at.add(row * self.stride + col) }, ..self }
    }

    fn as_const(self) -> Matrix<T> {
        Matrix { at: self.at, stride: self.stride }
    }

    /// Brings `[rows, d]` results home from where they were computed.
    #[inline(always)]
    unsafe fn round_from(self, room: &[f32], rows: usize, d: usize) {
        for (i, row) in room[..rows * d].chunks_exact(d).enumerate() {
            for (j, v) in row.iter().enumerate() {
                // SAFETY: inside the view by the caller's promise.
                unsafe { *self.at.add(i * self.stride + j) = T::from_f32(*v) };
            }
        }
    }
}

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

fn padded(keys: usize) -> usize {
    keys.next_multiple_of(LANES)
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
        let n = padded(keys);
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
                softmax_rows::<FMA>(&mut scores[..m * n], span, d, |r| within(extras.seen(i + r, keys), lo));
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
        let n = padded(keys);
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
                softmax_rows::<FMA>(&mut p[..m * n], span, d, |r| within(extras.seen(i + r, keys), lo));
                product::<FMA>(dsm, dout.offset(i, 0), false, vt.offset(0, lo), m, n, d, false);
                for (r, (p, ds)) in p[..m * n].chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).enumerate() {
                    score_grad_row::<FMA>(p, ds, span, d, drop, ((i + r) * keys + lo) as u32);
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

/// `ds` holds d(dropped p) and becomes the gradient of the raw scores; `p` becomes the dropped probabilities.
#[inline(always)]
fn score_grad_row<const FMA: bool>(p: &mut [f32], ds: &mut [f32], keys: usize, d: usize, drop: Dropout, base: u32) {
    let scale = 1.0 / (d as f32).sqrt();
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
unsafe fn transpose(xt: &mut [f32], x: Matrix, keys: usize, d: usize, n: usize) {
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

/// A range counted from `lo`.
fn within(range: Range<usize>, lo: usize) -> Range<usize> {
    range.start - lo..range.end - lo
}

/// Softmax of those of the `keys` scores of each row that it sees, scaled by 1/√d; the others and the padding become 0.
#[inline(always)]
fn softmax_rows<const FMA: bool>(scores: &mut [f32], keys: usize, d: usize, seen: impl Fn(usize) -> Range<usize>) {
    let scale = 1.0 / (d as f32).sqrt();
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
unsafe fn product<const FMA: bool>(
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
