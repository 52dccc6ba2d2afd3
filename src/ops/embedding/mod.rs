//! BERT's input: word + position + token-type embedding, layer norm, dropout; and its gradient, which touches only the
//! rows that the batch used. Without rows in a table of positions or types nothing of it is added.
//!
//! The parameters lie in one `[vocab + positions + types + 2, hidden]` block in checkpoint order: the three tables,
//! then gamma and beta.

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{Shared, chunk_count, for_chunks, reduce_partials, simd};
use crate::ops::dropout::Dropout;
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::index::Index;
use crate::ops::layer_norm::cpu::{norm_row, norm_row_backward};
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// Rows a thread gets at least.
const GRAIN: usize = 16;

/// Sizes of the three tables and the layer norm's epsilon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingShape {
    pub vocab: usize,
    /// 0 when nothing is added for a position.
    pub positions: usize,
    /// 0 when the family has no token types.
    pub types: usize,
    pub eps: f32,
}

impl EmbeddingShape {
    /// Rows of the parameter block.
    pub fn rows(&self) -> usize {
        self.vocab + self.positions + self.types + 2
    }
}

/// The three index vectors of a packed batch, each `[tokens]`.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddingIndex<'a> {
    pub ids: &'a Index,
    pub positions: &'a Index,
    pub types: &'a Index,
}

impl EmbeddingIndex<'_> {
    /// Refuses what lies outside the tables, and vectors of another length.
    fn check(&self, name: &str, shape: &EmbeddingShape, tokens: usize) -> Result<()> {
        let positions = if shape.positions == 0 { usize::MAX } else { shape.positions };
        self.ids.expect(name, tokens, shape.vocab)?;
        self.positions.expect(name, tokens, positions)?;
        self.types.expect(name, tokens, shape.types.max(1))
    }
}

/// `s = word[id] + position[p] + type[t]`, `y = dropout(norm(s))`; `s, y: [tokens, hidden]` in f32 or bf16, `s` kept for the
/// backward.
pub fn embed(
    s: &Tensor,
    y: &Tensor,
    block: &Tensor,
    at: EmbeddingIndex<'_>,
    shape: EmbeddingShape,
    dropout: Dropout,
) -> Result<()> {
    at.check("embed", &shape, s.dim(0)?)?;
    let [ids, positions, types] = [at.ids, at.positions, at.types].map(Index::tensor);
    launch(&Forward { shape, dropout }, &[s, y], &[block, ids, positions, types])
}

/// Adds the gradients of the five parameters to `dblock`, from `dy: [tokens, hidden]`; `ds` is scratch of `dy`'s shape.
pub fn embed_backward(
    dblock: &Tensor,
    ds: &Tensor,
    dy: &Tensor,
    s: &Tensor,
    block: &Tensor,
    at: EmbeddingIndex<'_>,
    shape: EmbeddingShape,
    dropout: Dropout,
) -> Result<()> {
    at.check("embed_backward", &shape, ds.dim(0)?)?;
    let [ids, positions, types] = [at.ids, at.positions, at.types].map(Index::tensor);
    launch(&Backward { shape, dropout }, &[dblock, ds], &[dy, s, block, ids, positions, types])
}

struct Forward {
    shape: EmbeddingShape,
    dropout: Dropout,
}

/// The index vectors as slices, which [`EmbeddingIndex::check`] has seen.
fn indices<'a>(name: &str, shape: &EmbeddingShape, block: usize, src: &[Src<'a>]) -> Result<[&'a [u32]; 3]> {
    if block != shape.rows() {
        bail!("{name}: parameter block of {block} rows, expected {}", shape.rows());
    }
    let [ids, positions, types] = src else { bail!("{name}: three index vectors") };
    Ok([ids.u32()?, positions.u32()?, types.u32()?])
}

impl Kernel for Forward {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([s, y], [block, rest @ ..]) = (dst, src) else { bail!("embed: two destinations, four sources") };
        let (h, tokens) = (s.cols, s.rows);
        let [ids, positions, types] = indices("embed", &self.shape, block.rows, rest)?;
        if block.cols != h || (y.rows, y.cols) != (tokens, h) {
            bail!("embed: s [{tokens}, {h}], y [{}, {}], block of {}", y.rows, y.cols, block.cols);
        }
        let block = block.f32()?;
        by_format!(y, T => {
            let (s, y) = (Shared::new(s.values::<T>()?), Shared::new(y.values::<T>()?));
            for_chunks(tokens, GRAIN, |_, r| {
                let range = r.start * h..r.end * h;
                // SAFETY: chunks of rows are disjoint.
                let (s, y) = unsafe { (s.range(range.clone()), y.range(range)) };
                let index = [&ids[r.clone()], &positions[r.clone()], &types[r.clone()]];
                forward_rows(s, y, block, index, h, self.shape, self.dropout, r.start);
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self, gpu, dst, src)
    }
}

simd! {
    fn forward_rows[T](
        s: &mut [T], y: &mut [T], block: &[f32], at: [&[u32]; 3], h: usize, shape: EmbeddingShape, drop: Dropout, first: usize,
    ) {
        let row = |i: usize| &block[i * h..(i + 1) * h];
        let (gamma, beta) = (row(shape.rows() - 2), row(shape.rows() - 1));
        let (mut room, mut normed) = (vec![0f32; h], vec![0f32; h]);
        for (r, (s, y)) in s.chunks_exact_mut(h).zip(y.chunks_exact_mut(h)).enumerate() {
            let word = row(at[0][r] as usize);
            // Without tables the rows are others and not read.
            let position = row(if shape.positions > 0 { shape.vocab + at[1][r] as usize } else { 0 });
            let kind = row(if shape.types > 0 { shape.vocab + shape.positions + at[2][r] as usize } else { 0 });
            for j in 0..h {
                let word = if shape.types > 0 { word[j] + kind[j] } else { word[j] };
                s[j] = T::from_f32(if shape.positions > 0 { word + position[j] } else { word });
            }
            norm_row::<f32, FMA>(&mut normed, T::widen(s, &mut room), gamma, beta, shape.eps);
            mask(&mut normed, drop, ((first + r) * h) as u32);
            for (y, v) in y.iter_mut().zip(&normed) {
                *y = T::from_f32(*v);
            }
        }
    }
}

#[inline(always)]
fn mask(y: &mut [f32], drop: Dropout, base: u32) {
    if !drop.is_off() {
        for (j, y) in y.iter_mut().enumerate() {
            *y *= drop.factor(base.wrapping_add(j as u32));
        }
    }
}

struct Backward {
    shape: EmbeddingShape,
    dropout: Dropout,
}

impl Kernel for Backward {
    fn name(&self) -> &'static str {
        "embed_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dblock, ds], [dy, s, block, rest @ ..]) = (dst, src) else {
            bail!("embed_backward: two destinations, six sources")
        };
        let (h, tokens, shape) = (ds.cols, ds.rows, self.shape);
        let [ids, positions, types] = indices("embed_backward", &shape, dblock.rows, rest)?;
        if dblock.cols != h || (dy.rows, dy.cols) != (tokens, h) || (s.rows, s.cols) != (tokens, h) {
            bail!("embed_backward: shapes differ");
        }
        let gamma = &block.f32()?[(shape.rows() - 2) * h..(shape.rows() - 1) * h];
        let (tables, norm) = dblock.f32()?.split_at_mut((shape.rows() - 2) * h);
        by_format!(ds, T => {
            let (dy, s, ds) = (dy.values::<T>()?, s.values::<T>()?, ds.values::<T>()?);
            let mut partial = vec![0f32; chunk_count(tokens, GRAIN) * 2 * h];
            let (shared, shared_p) = (Shared::new(ds), Shared::new(&mut partial));
            for_chunks(tokens, GRAIN, |c, r| {
                let range = r.start * h..r.end * h;
                // SAFETY: chunks of rows, and the chunks' partial sums, are disjoint.
                let (ds, p) = unsafe { (shared.range(range.clone()), shared_p.range(c * 2 * h..(c + 1) * 2 * h)) };
                norm_rows(ds, p, &dy[range.clone()], &s[range], gamma, shape.eps, self.dropout, r.start);
            });
            reduce_partials(norm, &partial, true);
            scatter(tables, ds, [ids, positions, types], h, shape);
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self, gpu, dst, src)
    }
}

/// Adds each token's gradient to its rows of the tables. Each thread adds its own columns of all tokens: no two write the
/// same place, and a table row's sum has the same order whatever the thread count.
fn scatter<T: Real>(tables: &mut [f32], ds: &[T], at: [&[u32]; 3], h: usize, shape: EmbeddingShape) {
    let tables = Shared::new(tables);
    for_chunks(h, 16, |_, cols| scatter_columns(tables, ds, at, h, shape, cols));
}

simd! {
    fn scatter_columns[T](
        tables: Shared<'_, f32>, ds: &[T], at: [&[u32]; 3], h: usize, shape: EmbeddingShape, cols: Range<usize>,
    ) {
        let [ids, positions, types] = at;
        for t in 0..ids.len() {
            let grad = &ds[t * h + cols.start..t * h + cols.end];
            let word = ids[t] as usize;
            let position = shape.vocab + positions[t] as usize;
            let kind = shape.vocab + shape.positions + types[t] as usize;
            for (row, is_there) in [(word, true), (position, shape.positions > 0), (kind, shape.types > 0)] {
                if !is_there {
                    continue;
                }
                // SAFETY: these columns belong to this thread.
                let out = unsafe { tables.range(row * h + cols.start..row * h + cols.end) };
                for (o, g) in out.iter_mut().zip(grad) {
                    *o += g.to_f32();
                }
            }
        }
    }
}

simd! {
    fn norm_rows[T](
        ds: &mut [T], partial: &mut [f32], dy: &[T], s: &[T], gamma: &[f32], eps: f32, drop: Dropout, first: usize,
    ) {
        let h = gamma.len();
        let (dgamma, dbeta) = partial.split_at_mut(h);
        let (mut masked, mut room) = (vec![0f32; h], vec![0f32; h]);
        for (r, ((ds, dy), s)) in ds.chunks_exact_mut(h).zip(dy.chunks_exact(h)).zip(s.chunks_exact(h)).enumerate() {
            for (m, v) in masked.iter_mut().zip(dy) {
                *m = v.to_f32();
            }
            mask(&mut masked, drop, ((first + r) * h) as u32);
            norm_row_backward::<T, FMA>(ds, dgamma, dbeta, &masked, T::widen(s, &mut room), gamma, eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, close, flat, matrix, rounded, wide, zeros};
    use candle_core::Device;

    fn forward(block: &[f32], at: [&[u32]; 3], h: usize, shape: EmbeddingShape, drop: Dropout) -> Vec<f64> {
        let get = |row: usize, j: usize| block[row * h + j] as f64;
        let mut out = vec![];
        for t in 0..at[0].len() {
            let s: Vec<f64> = (0..h)
                .map(|j| {
                    let kind =
                        if shape.types > 0 { get(shape.vocab + shape.positions + at[2][t] as usize, j) } else { 0.0 };
                    let position = if shape.positions > 0 { get(shape.vocab + at[1][t] as usize, j) } else { 0.0 };
                    get(at[0][t] as usize, j) + position + kind
                })
                .collect();
            let mean = s.iter().sum::<f64>() / h as f64;
            let rstd = 1.0 / (s.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / h as f64 + shape.eps as f64).sqrt();
            for (j, v) in s.iter().enumerate() {
                let y = (v - mean) * rstd * get(shape.rows() - 2, j) + get(shape.rows() - 1, j);
                out.push(y * drop.factor((t * h + j) as u32) as f64);
            }
        }
        out
    }

    #[test]
    fn forward_and_gradients_match_the_definition() {
        for (h, types, positions, p) in
            [(5, 2, 6, 0.0), (33, 2, 6, 0.2), (18, 0, 6, 0.1), (17, 0, 0, 0.1), (15, 2, 0, 0.0), (24, 2, 6, 0.1)]
        {
            let shape = EmbeddingShape { vocab: 11, positions, types, eps: 1e-6 };
            let block = matrix(shape.rows(), h, 1);
            let ids: Vec<u32> = vec![3, 3, 10, 0, 7, 3];
            let positions: Vec<u32> = vec![0, 1, 2, 0, 1, 5];
            let kinds: Vec<u32> = vec![0, 0, u32::from(types > 0), 0, u32::from(types > 0), 0];
            let [a, b, c] = [&ids, &positions, &kinds].map(|v| Index::new(v, &Device::Cpu).unwrap());
            let at = EmbeddingIndex { ids: &a, positions: &b, types: &c };
            let drop = Dropout::new(p, 5);
            let (s, y) = (zeros(6, h), zeros(6, h));
            embed(&s, &y, &block, at, shape, drop).unwrap();
            let bv = flat(&block);
            let f = |b: &[f32]| forward(b, [&ids, &positions, &kinds], h, shape, drop);
            close(&flat(&y), &f(&bv), 1e-5, "y");
            let dy = matrix(6, h, 2);
            let w = flat(&dy);
            let (dblock, ds) = (matrix(shape.rows(), h, 7), zeros(6, h));
            let start = flat(&dblock);
            embed_backward(&dblock, &ds, &dy, &s, &block, at, shape, drop).unwrap();
            let loss = |b: &[f32]| f(b).iter().zip(&w).map(|(a, b)| a * *b as f64).sum::<f64>();
            let want: Vec<f64> = (0..bv.len())
                .map(|i| {
                    let (mut up, mut down) = (bv.clone(), bv.clone());
                    up[i] += 1e-3;
                    down[i] -= 1e-3;
                    start[i] as f64 + (loss(&up) - loss(&down)) / (up[i] as f64 - down[i] as f64)
                })
                .collect();
            close(&flat(&dblock), &want, 3e-3, "dblock");
        }
    }

    #[test]
    fn an_index_outside_its_table_is_refused() {
        let shape = EmbeddingShape { vocab: 3, positions: 2, types: 1, eps: 1e-6 };
        let index = |v: u32| Index::new(&[v], &Device::Cpu).unwrap();
        for (at, fits) in [([2, 1, 0], true), ([3, 0, 0], false), ([0, 2, 0], false), ([0, 0, 1], false)] {
            let [ids, positions, types] = &at.map(index);
            let at = EmbeddingIndex { ids, positions, types };
            let (s, y, ds, block, dblock) = (zeros(1, 4), zeros(1, 4), zeros(1, 4), matrix(8, 4, 1), zeros(8, 4));
            assert_eq!(embed(&s, &y, &block, at, shape, Dropout::OFF).is_ok(), fits);
            assert_eq!(embed_backward(&dblock, &ds, &y, &s, &block, at, shape, Dropout::OFF).is_ok(), fits);
        }
        let (one, two) = (index(0), Index::new(&[0, 0], &Device::Cpu).unwrap());
        let at = EmbeddingIndex { ids: &two, positions: &one, types: &one };
        assert!(embed(&zeros(1, 4), &zeros(1, 4), &matrix(8, 4, 1), at, shape, Dropout::OFF).is_err());
    }

    #[test]
    fn bf16_is_f32_rounded() {
        let (tokens, h) = (37, 33);
        let shape = EmbeddingShape { vocab: 11, positions: 37, types: 2, eps: 1e-6 };
        let index =
            |f: fn(u32) -> u32| Index::new(&(0..tokens as u32).map(f).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let (ids, positions, types) = (index(|i| i * 7 % 11), index(|i| i), index(|i| i % 2));
        let at = EmbeddingIndex { ids: &ids, positions: &positions, types: &types };
        let (block, dy, drop) = (matrix(shape.rows(), h, 1), bf16(&matrix(tokens, h, 2)), Dropout::new(0.1, 3));
        let run = |dy: &Tensor, kept: Option<&Tensor>| {
            let (s, y, ds) = (dy.zeros_like().unwrap(), dy.zeros_like().unwrap(), dy.zeros_like().unwrap());
            embed(&s, &y, &block, at, shape, drop).unwrap();
            let dblock = zeros(shape.rows(), h);
            embed_backward(&dblock, &ds, dy, kept.unwrap_or(&s), &block, at, shape, drop).unwrap();
            (s, y, dblock)
        };
        let got = run(&dy, None);
        let want = run(&wide(&dy), Some(&wide(&got.0)));
        rounded(&got.0, &want.0, 0.0, "s");
        rounded(&got.1, &want.1, 3.0, "y");
        // Sums of up to four rounded gradients.
        let want: Vec<f64> = flat(&want.2).iter().map(|&v| v as f64).collect();
        close(&flat(&got.2), &want, 0.02, "dblock");
    }
}
