//! Attention, with dropout in ours only. Reference: candle's f32 matmul and elementwise operations, one batch row at a time.

use super::{FORMATS, HEADS, HIDDEN, dropout};
use crate::common::data::{ROWS, matrix, prefix_sums, sentence_lengths, zeros};
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::ops::attention::{AttentionSpec, ProjectionGrads, Projections, attention, attention_backward};
use candle_core::{D, DType, Result as Candle, Tensor};
use std::hint::black_box;

pub fn run(table: &Table) -> Result<()> {
    for (lengths, name) in [
        (sentence_lengths(), format!("{ROWS} rows of about 22")),
        (vec![128; ROWS], format!("{ROWS} rows of 128")),
        (vec![512; 4], "4 rows of 512".into()),
    ] {
        for dtype in FORMATS {
            forward(table, &lengths, &name, dtype)?;
            backward(table, &lengths, &name, dtype)?;
        }
    }
    Ok(())
}

/// Two products a pair of tokens forward, five backward (the scores again). f32 arithmetic in both formats.
fn row<'a>(op: &'a str, name: &str, dtype: DType, products: usize, lengths: &[usize]) -> Row<'a> {
    let pairs: usize = lengths.iter().map(|l| l * l).sum();
    let work = Work::F32 { flops: (2 * products * pairs * HIDDEN) as f64 };
    Row { op, shape: name.into(), dtype, work }
}

fn forward(table: &Table, lengths: &[usize], name: &str, dtype: DType) -> Result<()> {
    let cu = prefix_sums(lengths);
    let tokens = lengths.iter().sum();
    let qkv32 = matrix(tokens, 3 * HIDDEN, DType::F32, 1)?;
    let (qkv, out) = (qkv32.to_dtype(dtype)?, zeros(tokens, HIDDEN, dtype)?);
    let [q, k, v] = parts(&qkv)?;
    let reference = || {
        for (&start, &len) in cu.iter().zip(lengths) {
            let [q, k, v] = parts(&qkv32.narrow(0, start as usize, len)?)?;
            let context = probabilities(&heads(&q)?, &heads(&k)?)?.matmul(&heads(&v)?)?;
            black_box(together(&context)?);
        }
        Ok(())
    };
    let mut call = 0;
    let ours = || {
        let spec = AttentionSpec::plain(&cu, HEADS, dropout(&mut call));
        attention(&out, Projections { q: &q, k: &k, v: &v }, spec)
    };
    table.row(row("attention", name, dtype, 2, lengths), reference, ours)
}

fn backward(table: &Table, lengths: &[usize], name: &str, dtype: DType) -> Result<()> {
    let cu = prefix_sums(lengths);
    let tokens = lengths.iter().sum();
    let (qkv32, dout32) = (matrix(tokens, 3 * HIDDEN, DType::F32, 1)?, matrix(tokens, HIDDEN, DType::F32, 2)?);
    let (qkv, dout, dqkv) = (qkv32.to_dtype(dtype)?, dout32.to_dtype(dtype)?, zeros(tokens, 3 * HIDDEN, dtype)?);
    let [q, k, v] = parts(&qkv)?;
    let reference = || {
        for (&start, &len) in cu.iter().zip(lengths) {
            let row = |t: &Tensor| t.narrow(0, start as usize, len);
            black_box(reference_backward(&row(&qkv32)?, &row(&dout32)?)?);
        }
        Ok(())
    };
    let mut call = 0;
    let ours = || {
        let spec = AttentionSpec::plain(&cu, HEADS, dropout(&mut call));
        attention_backward(ProjectionGrads::Fused(&dqkv), &dout, Projections { q: &q, k: &k, v: &v }, spec)
    };
    table.row(row("attention_backward", name, dtype, 5, lengths), reference, ours)
}

/// dq, dk and dv side by side, for one batch row.
fn reference_backward(qkv: &Tensor, dout: &Tensor) -> Candle<Tensor> {
    let [q, k, v] = parts(qkv)?;
    let (q, k, v, dout) = (heads(&q)?, heads(&k)?, heads(&v)?, heads(dout)?);
    let p = probabilities(&q, &k)?;
    let dp = dout.matmul(&v.t()?)?;
    let dot = (&p * &dp)?.sum_keepdim(D::Minus1)?;
    let ds = ((&p * dp.broadcast_sub(&dot)?)? * scale())?;
    let (dq, dk, dv) = (ds.matmul(&k)?, ds.t()?.matmul(&q)?, p.t()?.matmul(&dout)?);
    Tensor::cat(&[together(&dq)?, together(&dk)?, together(&dv)?], 1)
}

fn scale() -> f64 {
    1.0 / ((HIDDEN / HEADS) as f64).sqrt()
}

fn parts(qkv: &Tensor) -> Candle<[Tensor; 3]> {
    Ok([qkv.narrow(1, 0, HIDDEN)?, qkv.narrow(1, HIDDEN, HIDDEN)?, qkv.narrow(1, 2 * HIDDEN, HIDDEN)?])
}

/// `[len, hidden]` → `[heads, len, head_dim]`
fn heads(x: &Tensor) -> Candle<Tensor> {
    x.contiguous()?.reshape((x.dim(0)?, HEADS, HIDDEN / HEADS))?.transpose(0, 1)?.contiguous()
}

/// `[heads, len, head_dim]` → `[len, hidden]`
fn together(x: &Tensor) -> Candle<Tensor> {
    x.transpose(0, 1)?.contiguous()?.reshape((x.dim(1)?, HIDDEN))
}

fn probabilities(q: &Tensor, k: &Tensor) -> Candle<Tensor> {
    let scores = (q.matmul(&k.t()?)? * scale())?;
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
