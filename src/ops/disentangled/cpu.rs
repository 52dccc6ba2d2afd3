//! CPU body. One head of a group of rows is one piece of work, so that the head's positions are brought into the scratch once
//! for many rows; queries go in blocks as in plain attention. A block of queries meets all positions that its distances reach
//! in one product, and so does each tile of keys; the results are then spread over the scores. Groups depend on the batch
//! alone, so sums over rows have the same order whatever the thread count.

mod positions;

pub use positions::Index;

use super::DisentangledSpec;
use crate::ops::attention::head_dropout;
use crate::ops::attention::tiles::{Matrix, MatrixMut, padded, product, score_grad_row, softmax_rows, transpose};
use crate::ops::cpu::{LANES, Shared, for_chunks, simd};
use crate::ops::dropout::Dropout;
use crate::ops::pool::for_each;
use crate::ops::real::Real;
use positions::{Side, Sides};
use std::cell::RefCell;
use std::ops::Range;

/// Queries a block, and the most keys a tile.
const BLOCK: usize = 64;
/// The most groups of rows, each of which sums up its part of the positions' gradient.
pub const GROUPS: usize = 8;

/// One head of a group of rows.
#[derive(Clone)]
struct Work<'a> {
    head: usize,
    rows: Range<usize>,
    hidden: usize,
    spec: &'a DisentangledSpec<'a>,
    index: &'a Index<'a>,
}

/// One (row, head).
#[derive(Clone, Copy)]
struct Pair<'a> {
    /// The row's first query and token in the batch.
    q0: usize,
    k0: usize,
    queries: usize,
    keys: usize,
    d: usize,
    scale: f32,
    drop: Dropout,
    rows: Option<&'a [u32]>,
    reach: usize,
}

impl<'a> Work<'a> {
    fn pair(&self, row: usize) -> Pair<'a> {
        let attention = &self.spec.attention;
        let (q0, k0) = (attention.cu_queries[row] as usize, attention.cu_keys[row] as usize);
        let queries = attention.cu_queries[row + 1] as usize - q0;
        let d = self.hidden / attention.heads;
        Pair {
            q0,
            k0,
            queries,
            keys: attention.cu_keys[row + 1] as usize - k0,
            d,
            scale: 1.0 / ((d * (1 + self.spec.sides())) as f32).sqrt(),
            drop: head_dropout(attention, row, self.head),
            rows: self.index.rows.map(|rows| &rows[q0..q0 + queries]),
            reach: self.index.reach(),
        }
    }

    /// Values that the head's positions take in the scratch.
    fn sides_len(&self) -> usize {
        let d = self.hidden / self.spec.attention.heads;
        self.spec.sides() * d * (self.index.count + padded(self.index.count + LANES))
    }

    /// Brings the head's positions into the scratch.
    #[inline(always)]
    unsafe fn sides<T: Real>(&self, positions: Matrix<T>, room: &mut &mut [f32]) -> Sides<'a> {
        let (n, d, index) = (self.index.count, self.hidden / self.spec.attention.heads, self.index);
        let mut next = self.head * d;
        let mut load = |at: &'a [u32], from_last: bool| {
            let (rows, columns) = (take(room, n * d), take(room, d * padded(n + LANES)));
            // SAFETY: the head's columns lie inside the view by the caller's promise.
            let from = unsafe { positions.offset(0, next).widened(rows, n, d) };
            if from_last {
                for i in 0..n / 2 {
                    let (a, b) = rows.split_at_mut((n - 1 - i) * d);
                    a[i * d..][..d].swap_with_slice(&mut b[..d]);
                }
            }
            let stride = padded(n + LANES);
            // SAFETY: `rows` holds n rows of d.
            unsafe { transpose(columns, from, n, d, stride) };
            next += self.hidden;
            Side { rows: from, columns: Matrix { at: columns.as_ptr(), stride }, at, exact: index.exact }
        };
        let queries = self.spec.position_to_content.then(|| load(index.queries, false));
        Sides { queries, keys: self.spec.content_to_position.then(|| load(&index.keys, true)) }
    }
}

/// The first `n` values of what is left of the scratch.
fn take<'r>(room: &mut &'r mut [f32], n: usize) -> &'r mut [f32] {
    let (taken, rest) = std::mem::take(room).split_at_mut(n);
    *room = rest;
    taken
}

impl Pair<'_> {
    /// Where query `i` stands in its row.
    fn place(&self, i: usize) -> usize {
        self.rows.map_or(i, |rows| rows[i] as usize - self.k0)
    }

    /// The first and the last place of a block of queries.
    fn places(&self, block: Range<usize>) -> (usize, usize) {
        let places = block.map(|i| self.place(i));
        places.fold((usize::MAX, 0), |(lo, hi), p| (lo.min(p), hi.max(p)))
    }

    /// The distances that a block of queries has to a range of keys, counted from the lowest `query − key` of all.
    fn distances(&self, (lo, hi): (usize, usize), keys: Range<usize>) -> [usize; 2] {
        [self.reach + lo + 1 - keys.end, self.reach + hi - keys.start]
    }
}

/// Scratch of the products with positions.
struct Room<'r> {
    products: &'r mut [f32],
    tile: &'r mut [f32],
    turned: &'r mut [f32],
}

impl<'r> Room<'r> {
    fn len(positions: usize) -> usize {
        BLOCK * padded(positions) + 2 * BLOCK * BLOCK
    }

    fn new(room: &mut &'r mut [f32], positions: usize) -> Self {
        Self {
            products: take(room, BLOCK * padded(positions)),
            tile: take(room, BLOCK * BLOCK),
            turned: take(room, BLOCK * BLOCK),
        }
    }
}

/// A block of queries of a pair: which, and their rows.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    len: usize,
    q: Matrix,
}

/// Raw scores of a block of queries, `[block, padded(keys)]`.
#[inline(always)]
unsafe fn block_scores<const FMA: bool>(
    scores: &mut [f32],
    block: Block,
    (k, kt): (Matrix, Matrix),
    pair: &Pair<'_>,
    sides: Sides<'_>,
    room: &mut Room<'_>,
) {
    let (Block { first, len: m, q }, Pair { keys, d, reach, .. }) = (block, *pair);
    let n = padded(keys);
    let places = pair.places(first..first + m);
    // SAFETY: all views span this pair's tokens, and columns have room behind the last.
    unsafe {
        product::<FMA>(MatrixMut { at: scores.as_mut_ptr(), stride: n }, q, false, kt, m, n, d, false);
        if let Some(side) = sides.keys {
            let [near, far] = [reach - places.1, reach + keys - 1 - places.0];
            let span = side.span(near, far);
            let stride = padded(span.len());
            let to = MatrixMut { at: room.products.as_mut_ptr(), stride };
            product::<FMA>(to, q, false, side.columns.offset(0, span.start), m, stride, d, false);
            for (r, from) in room.products[..m * stride].chunks_exact(stride).enumerate() {
                side.spread(&mut scores[r * n..][..keys], from, reach - pair.place(first + r), span.start);
            }
        }
        let Some(side) = sides.queries else { return };
        for j in (0..keys).step_by(padded(m)) {
            let tile = j..keys.min(j + padded(m));
            let [near, far] = pair.distances(places, tile.clone());
            let (span, wide) = (side.span(near, far), padded(tile.len()));
            let stride = padded(span.len());
            let to = MatrixMut { at: room.products.as_mut_ptr(), stride };
            product::<FMA>(to, k.offset(j, 0), false, side.columns.offset(0, span.start), tile.len(), stride, d, false);
            for (key, (to, from)) in
                tile.clone().zip(room.tile.chunks_exact_mut(BLOCK).zip(room.products.chunks_exact(stride)))
            {
                match pair.rows {
                    None => {
                        to[..m].fill(0.0);
                        side.spread(&mut to[..m], from, reach + first - key, span.start);
                    }
                    Some(_) => {
                        for (r, to) in to[..m].iter_mut().enumerate() {
                            *to = from[side.at[reach + pair.place(first + r) - key] as usize - span.start];
                        }
                    }
                }
            }
            transpose(room.turned, Matrix { at: room.tile.as_ptr(), stride: BLOCK }, tile.len(), m, wide);
            for (r, from) in room.turned[..m * wide].chunks_exact(wide).enumerate() {
                scores[r * n + j..][..wide].iter_mut().zip(from).for_each(|(s, f)| *s += f);
            }
        }
    }
}

/// What the gradient `ds` of a block's raw scores adds to those of its queries `dq`, of the keys and of the positions.
#[inline(always)]
unsafe fn block_grads<const FMA: bool>(
    ds: &[f32],
    block: Block,
    k: Matrix,
    [dq, dk]: [MatrixMut; 2],
    [dqueries, dkeys]: [MatrixMut; 2],
    pair: &Pair<'_>,
    sides: Sides<'_>,
    room: &mut Room<'_>,
) {
    let (Block { first, len: m, q }, Pair { keys, d, reach, .. }) = (block, *pair);
    let n = padded(keys);
    let places = pair.places(first..first + m);
    // SAFETY: all views span this pair's tokens, and the positions' gradients all positions.
    unsafe {
        if let Some(side) = sides.keys {
            let [near, far] = [reach - places.1, reach + keys - 1 - places.0];
            let span = side.span(near, far);
            let stride = padded(span.len());
            room.products[..m * stride].fill(0.0);
            for (r, to) in room.products[..m * stride].chunks_exact_mut(stride).enumerate() {
                side.collect(to, &ds[r * n..][..keys], reach - pair.place(first + r), span.start);
            }
            let dproducts = Matrix { at: room.products.as_ptr(), stride };
            product::<FMA>(dq, dproducts, false, side.rows.offset(span.start, 0), m, d, span.len(), true);
            product::<FMA>(dkeys.offset(span.start, 0), dproducts, true, q, span.len(), d, m, true);
        }
        let Some(side) = sides.queries else { return };
        for j in (0..keys).step_by(padded(m)) {
            let tile = j..keys.min(j + padded(m));
            let [near, far] = pair.distances(places, tile.clone());
            let (span, wide) = (side.span(near, far), padded(m));
            let stride = padded(span.len());
            transpose(room.turned, Matrix { at: ds.as_ptr().add(j), stride: n }, m, tile.len(), wide);
            room.products[..tile.len() * stride].fill(0.0);
            for (key, (from, to)) in
                tile.clone().zip(room.turned.chunks_exact(wide).zip(room.products.chunks_exact_mut(stride)))
            {
                match pair.rows {
                    None => side.collect(to, &from[..m], reach + first - key, span.start),
                    Some(_) => {
                        for (r, from) in from[..m].iter().enumerate() {
                            to[side.at[reach + pair.place(first + r) - key] as usize - span.start] += from;
                        }
                    }
                }
            }
            let dproducts = Matrix { at: room.products.as_ptr(), stride };
            product::<FMA>(
                dk.offset(j, 0),
                dproducts,
                false,
                side.rows.offset(span.start, 0),
                tile.len(),
                d,
                span.len(),
                true,
            );
            product::<FMA>(
                dqueries.offset(span.start, 0),
                dproducts,
                true,
                k.offset(j, 0),
                span.len(),
                d,
                tile.len(),
                true,
            );
        }
    }
}

/// Runs `f(work, piece of sums, scratch)` for every head of every group of rows on all threads; `scratch` is what the longest
/// row needs beside the positions.
fn for_groups(
    hidden: usize,
    spec: &DisentangledSpec<'_>,
    index: &Index<'_>,
    scratch: impl Fn(&Pair<'_>) -> usize + Sync,
    f: impl Fn(Work<'_>, usize, &mut [f32]) + Sync,
) {
    thread_local!(static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    let (rows, heads) = (spec.attention.cu_keys.len() - 1, spec.attention.heads);
    let groups = groups(spec);
    for_each(groups * heads, |i| {
        let (group, head) = (i / heads, i % heads);
        let work = Work { head, rows: rows * group / groups..rows * (group + 1) / groups, hidden, spec, index };
        let pairs = work.rows.clone().map(|row| scratch(&work.pair(row))).max().unwrap_or(0);
        let need = work.sides_len() + Room::len(index.count) + pairs;
        SCRATCH.with_borrow_mut(|s| {
            if s.len() < need {
                s.resize(need, 0.0);
            }
            f(work, i, &mut s[..need]);
        });
    });
}

fn groups(spec: &DisentangledSpec<'_>) -> usize {
    GROUPS.min(spec.attention.cu_keys.len() - 1)
}

/// # Safety
/// The matrices must have the shapes that [`super::disentangled_attention`] documents for `spec`.
pub unsafe fn forward<T: Real>(
    out: MatrixMut<T>,
    qkv: [Matrix<T>; 3],
    positions: Matrix<T>,
    hidden: usize,
    spec: &DisentangledSpec<'_>,
    index: &Index<'_>,
) {
    let all = (out, qkv, positions);
    let scratch = |p: &Pair<'_>| padded(p.keys) * (p.d + BLOCK) + 2 * (p.queries + p.keys) * p.d;
    for_groups(hidden, spec, index, scratch, |work, _, room| {
        let (out, qkv, positions) = all;
        forward_group(out, qkv, positions, work, room);
    });
}

simd! {
    fn forward_group[T](
        out: MatrixMut<T>, qkv: [Matrix<T>; 3], positions: Matrix<T>, work: Work<'_>, scratch: &mut [f32],
    ) {
        let mut scratch = scratch;
        let [q, k, v] = qkv;
        // SAFETY: all views span the batch by the caller's promise, and every (row, head) has its own part of the output.
        unsafe {
            let sides = work.sides(positions, &mut scratch);
            let mut room = Room::new(&mut scratch, work.index.count);
            for row in work.rows.clone() {
                let pair = work.pair(row);
                let Pair { q0, k0, queries, keys, d, scale, drop, .. } = pair;
                let (mut left, n, col) = (&mut *scratch, padded(keys), work.head * d);
                let (kt, scores) = (take(&mut left, n * d), take(&mut left, n * BLOCK));
                let (out_room, q_room) = (take(&mut left, queries * d), take(&mut left, queries * d));
                let (k_room, v_room) = (take(&mut left, keys * d), take(&mut left, keys * d));
                let q = q.offset(q0, col).widened(q_room, queries, d);
                let (k, v) = (k.offset(k0, col).widened(k_room, keys, d), v.offset(k0, col).widened(v_room, keys, d));
                let to = MatrixMut { at: out_room.as_mut_ptr(), stride: d };
                transpose(kt, k, keys, d, n);
                let kt = Matrix { at: kt.as_ptr(), stride: n };
                for i in (0..queries).step_by(BLOCK) {
                    let m = BLOCK.min(queries - i);
                    let block = Block { first: i, len: m, q: q.offset(i, 0) };
                    block_scores::<FMA>(scores, block, (k, kt), &pair, sides, &mut room);
                    softmax_rows::<FMA>(&mut scores[..m * n], keys, scale, |_| 0..keys);
                    if !drop.is_off() {
                        for (r, row) in scores[..m * n].chunks_exact_mut(n).enumerate() {
                            let base = ((i + r) * keys) as u32;
                            for (j, p) in row[..keys].iter_mut().enumerate() {
                                *p *= drop.factor(base.wrapping_add(j as u32));
                            }
                        }
                    }
                    let p = Matrix { at: scores.as_ptr(), stride: n };
                    product::<FMA>(to.offset(i, 0), p, false, v, m, d, keys, false);
                }
                out.offset(q0, col).round_from(out_room, queries, d);
            }
        }
    }
}

/// # Safety
/// The matrices must have the shapes that [`super::disentangled_attention_backward`] documents for `spec`.
#[allow(clippy::too_many_arguments)]
pub unsafe fn backward<T: Real>(
    to: [MatrixMut<T>; 3],
    dpositions: MatrixMut<T>,
    dout: Matrix<T>,
    qkv: [Matrix<T>; 3],
    positions: Matrix<T>,
    hidden: usize,
    spec: &DisentangledSpec<'_>,
    index: &Index<'_>,
) {
    let (n, d, heads) = (index.count, hidden / spec.attention.heads, spec.attention.heads);
    let part = spec.sides() * n * d;
    let mut parts = vec![0f32; groups(spec) * heads * part];
    let (all, shared) = ((to, dout, qkv, positions), Shared::new(&mut parts));
    let scratch = |p: &Pair<'_>| padded(p.keys) * 2 * (p.d + BLOCK) + (3 * p.queries + 4 * p.keys) * p.d;
    for_groups(hidden, spec, index, scratch, |work, i, room| {
        let (to, dout, qkv, positions) = all;
        // SAFETY: every piece of work has a part of its own.
        let sums = unsafe { shared.range(i * part..(i + 1) * part) };
        backward_group(to, dout, qkv, positions, work, sums, room);
    });
    let parts = &parts;
    for_chunks(n, 8, |_, rows| {
        let mut sum = vec![0f32; d];
        for (row, side, head) in
            rows.flat_map(|r| (0..spec.sides()).flat_map(move |s| (0..heads).map(move |h| (r, s, h))))
        {
            let is_last = side + 1 == spec.sides();
            let at = if spec.content_to_position && is_last { n - 1 - row } else { row };
            sum.fill(0.0);
            for part in parts.chunks_exact(part).skip(head).step_by(heads) {
                sum.iter_mut().zip(&part[(side * n + at) * d..][..d]).for_each(|(s, p)| *s += p);
            }
            // SAFETY: inside the view by the caller's promise, and each row is one thread's.
            unsafe { dpositions.offset(row, side * hidden + head * d).round_from(&sum, 1, d) };
        }
    });
}

simd! {
    fn backward_group[T](
        to: [MatrixMut<T>; 3], dout: Matrix<T>, qkv: [Matrix<T>; 3], positions: Matrix<T>, work: Work<'_>,
        sums: &mut [f32], scratch: &mut [f32],
    ) {
        let mut scratch = scratch;
        let ([q, k, v], n_positions) = (qkv, work.index.count);
        // SAFETY: all views span the batch by the caller's promise, and every (row, head) has its own part of the gradients.
        unsafe {
            let sides = work.sides(positions, &mut scratch);
            let mut room = Room::new(&mut scratch, n_positions);
            for row in work.rows.clone() {
                let pair = work.pair(row);
                let Pair { q0, k0, queries, keys, d, scale, drop, .. } = pair;
                let (mut left, n, col) = (&mut *scratch, padded(keys), work.head * d);
                let (kt, vt) = (take(&mut left, n * d), take(&mut left, n * d));
                let (p, ds) = (take(&mut left, n * BLOCK), take(&mut left, n * BLOCK));
                let [dq_room, dout_room, q_room] = [0; 3].map(|_| take(&mut left, queries * d));
                let [dk_room, dv_room, k_room, v_room] = [0; 4].map(|_| take(&mut left, keys * d));
                let dout = dout.offset(q0, col).widened(dout_room, queries, d);
                let q = q.offset(q0, col).widened(q_room, queries, d);
                let (k, v) = (k.offset(k0, col).widened(k_room, keys, d), v.offset(k0, col).widened(v_room, keys, d));
                transpose(kt, k, keys, d, n);
                transpose(vt, v, keys, d, n);
                let (kt, vt) = (Matrix { at: kt.as_ptr(), stride: n }, Matrix { at: vt.as_ptr(), stride: n });
                dk_room.fill(0.0);
                dv_room.fill(0.0);
                let view = |room: &mut [f32]| MatrixMut { at: room.as_mut_ptr(), stride: d };
                let [dq, dk, dv] = [view(dq_room), view(dk_room), view(dv_room)];
                // The positions' queries come first, and the keys behind them.
                let dqueries = view(sums);
                let dkeys = dqueries.offset(if sides.queries.is_some() { n_positions } else { 0 }, 0);
                for i in (0..queries).step_by(BLOCK) {
                    let m = BLOCK.min(queries - i);
                    let block = Block { first: i, len: m, q: q.offset(i, 0) };
                    let (pm, dsm) = (MatrixMut { at: p.as_mut_ptr(), stride: n }, MatrixMut { at: ds.as_mut_ptr(), stride: n });
                    block_scores::<FMA>(p, block, (k, kt), &pair, sides, &mut room);
                    softmax_rows::<FMA>(&mut p[..m * n], keys, scale, |_| 0..keys);
                    product::<FMA>(dsm, dout.offset(i, 0), false, vt, m, n, d, false);
                    for (r, (p, ds)) in p[..m * n].chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).enumerate() {
                        score_grad_row::<FMA>(p, ds, keys, scale, drop, ((i + r) * keys) as u32);
                    }
                    product::<FMA>(dv, pm.as_const(), true, dout.offset(i, 0), keys, d, m, true);
                    product::<FMA>(dq.offset(i, 0), dsm.as_const(), false, k, m, d, keys, false);
                    product::<FMA>(dk, dsm.as_const(), true, q.offset(i, 0), keys, d, m, true);
                    block_grads::<FMA>(ds, block, k, [dq.offset(i, 0), dk], [dqueries, dkeys], &pair, sides, &mut room);
                }
                to[0].offset(q0, col).round_from(dq_room, queries, d);
                to[1].offset(k0, col).round_from(dk_room, keys, d);
                to[2].offset(k0, col).round_from(dv_room, keys, d);
            }
        }
    }
}
