//! The embeddings and their gradient. Reference: a plain loop over the tokens on one thread, without dropout.

use super::layer_norm::stats;
use super::{EPS, HIDDEN, dropout, slice};
use crate::common::data::{ROWS, VOCAB, batch, matrix, sentence_lengths, values, zeros};
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::data::Batch;
use bertft::ops::embedding::{EmbeddingIndex, EmbeddingShape, embed, embed_backward};
use bertft::ops::index::Index;
use bertft::ops::real::Real;
use candle_core::{DType, Device, Tensor};
use half::bf16;
use std::hint::black_box;

const SHAPE: EmbeddingShape = EmbeddingShape { vocab: VOCAB, positions: 512, types: 2, eps: EPS };

pub fn run(table: &Table) -> Result<()> {
    let block = matrix(SHAPE.rows(), HIDDEN, DType::F32, 9)?;
    for lengths in [sentence_lengths(), vec![128; ROWS]] {
        let batch = batch(&lengths);
        forward::<f32>(table, &block, &batch)?;
        backward::<f32>(table, &block, &batch)?;
        forward::<bf16>(table, &block, &batch)?;
        backward::<bf16>(table, &block, &batch)?;
    }
    Ok(())
}

/// Tables are read and written in f32 by word rows; positions and types stay in the first cache.
fn row<'a, T: Real>(op: &'a str, batch: &Batch, [read, written]: [usize; 2]) -> Row<'a> {
    let tokens = batch.ids.len();
    let [read, written] = [read, written].map(|bytes| bytes * tokens * HIDDEN);
    let work = Work::Bytes { read, written, span: read + written };
    Row { op, shape: format!("[{tokens}, {HIDDEN}]"), dtype: T::DTYPE, work }
}

fn indices(batch: &Batch) -> candle_core::Result<[Index; 3]> {
    let vector = |v: &[u32]| Index::new(v, &Device::Cpu);
    Ok([vector(&batch.ids)?, vector(&batch.positions)?, vector(&batch.type_ids)?])
}

/// The rows of the tables that a token reads.
fn table_rows(batch: &Batch, token: usize) -> [usize; 3] {
    let position = SHAPE.vocab + batch.positions[token] as usize;
    [batch.ids[token] as usize, position, SHAPE.vocab + SHAPE.positions + batch.type_ids[token] as usize]
}

fn forward<T: Real>(table: &Table, block: &Tensor, batch: &Batch) -> Result<()> {
    let tokens = batch.ids.len();
    let (s, y) = (zeros(tokens, HIDDEN, T::DTYPE)?, zeros(tokens, HIDDEN, T::DTYPE)?);
    let [ids, positions, types] = &indices(batch)?;
    let block0 = values(SHAPE.rows() * HIDDEN, 9);
    let (mut s0, mut y0) = (slice::<T>(tokens * HIDDEN, 1), slice::<T>(tokens * HIDDEN, 2));
    let reference = || {
        reference_forward(&mut s0, &mut y0, &block0, batch);
        black_box((&mut s0, &mut y0));
        Ok(())
    };
    let mut call = 0;
    let ours = || embed(&s, &y, block, EmbeddingIndex { ids, positions, types }, SHAPE, dropout(&mut call));
    table.row(row::<T>("embed", batch, [4, 2 * size_of::<T>()]), reference, ours)
}

fn reference_forward<T: Real>(s: &mut [T], y: &mut [T], block: &[f32], batch: &Batch) {
    let h = HIDDEN;
    let (gamma, beta) = (&block[(SHAPE.rows() - 2) * h..], &block[(SHAPE.rows() - 1) * h..]);
    for (t, (s, y)) in s.chunks_exact_mut(h).zip(y.chunks_exact_mut(h)).enumerate() {
        let at = table_rows(batch, t);
        for j in 0..h {
            s[j] = T::from_f32(at.iter().map(|row| block[row * h + j]).sum());
        }
        let (mean, rstd) = stats(s);
        for j in 0..h {
            y[j] = T::from_f32((s[j].to_f32() - mean) * rstd * gamma[j] + beta[j]);
        }
    }
}

fn backward<T: Real>(table: &Table, block: &Tensor, batch: &Batch) -> Result<()> {
    let tokens = batch.ids.len();
    let (dy, s) = (matrix(tokens, HIDDEN, T::DTYPE, 1)?, matrix(tokens, HIDDEN, T::DTYPE, 2)?);
    let (dblock, ds) = (zeros(SHAPE.rows(), HIDDEN, DType::F32)?, zeros(tokens, HIDDEN, T::DTYPE)?);
    let [ids, positions, types] = &indices(batch)?;
    let (block0, dy0, s0) =
        (values(SHAPE.rows() * HIDDEN, 9), slice::<T>(tokens * HIDDEN, 1), slice::<T>(tokens * HIDDEN, 2));
    let mut dblock0 = vec![0f32; SHAPE.rows() * HIDDEN];
    let reference = || {
        reference_backward(&mut dblock0, &dy0, &s0, &block0, batch);
        black_box(&mut dblock0);
        Ok(())
    };
    let mut call = 0;
    let ours = || {
        let at = EmbeddingIndex { ids, positions, types };
        embed_backward(&dblock, &ds, &dy, &s, block, at, SHAPE, dropout(&mut call))
    };
    table.row(row::<T>("embed_backward", batch, [2 * size_of::<T>() + 4, 4]), reference, ours)
}

fn reference_backward<T: Real>(dblock: &mut [f32], dy: &[T], s: &[T], block: &[f32], batch: &Batch) {
    let h = HIDDEN;
    let norm = SHAPE.rows() - 2;
    let gamma = &block[norm * h..];
    for (t, (dy, s)) in dy.chunks_exact(h).zip(s.chunks_exact(h)).enumerate() {
        let (mean, rstd) = stats(s);
        let normed = |j: usize| (s[j].to_f32() - mean) * rstd;
        let (mut mean_g, mut mean_gx) = (0f32, 0f32);
        for j in 0..h {
            let g = dy[j].to_f32() * gamma[j] / h as f32;
            mean_g += g;
            mean_gx += g * normed(j);
        }
        let at = table_rows(batch, t);
        for j in 0..h {
            let (dy, x) = (dy[j].to_f32(), normed(j));
            for row in at {
                dblock[row * h + j] += rstd * (dy * gamma[j] - mean_g - x * mean_gx);
            }
            dblock[norm * h + j] += dy * x;
            dblock[(norm + 1) * h + j] += dy;
        }
    }
}
