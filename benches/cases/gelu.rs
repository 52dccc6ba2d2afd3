//! Bias and GELU in f32 (in bf16 they are epilogues of the products). Reference: a plain loop on one thread with libm's erf.

use super::{INNER, token_counts};
use crate::common::data::{matrix, values, zeros};
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::ops::gelu::{Activation, bias_act, bias_act_backward};
use candle_core::{DType, Device, Tensor};
use std::hint::black_box;

pub fn run(table: &Table) -> Result<()> {
    for tokens in token_counts() {
        forward(table, tokens)?;
        backward(table, tokens)?;
    }
    Ok(())
}

fn row(op: &str, tokens: usize, read: usize, written: usize) -> Row<'_> {
    let bytes = tokens * INNER * 4;
    let work = Work::Bytes { read: read * bytes, written: written * bytes, span: 2 * bytes };
    Row { op, shape: format!("[{tokens}, {INNER}]"), dtype: DType::F32, work }
}

fn cdf(x: f32) -> f32 {
    0.5 + 0.5 * libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)
}

fn forward(table: &Table, tokens: usize) -> Result<()> {
    let (u, g) = (matrix(tokens, INNER, DType::F32, 1)?, zeros(tokens, INNER, DType::F32)?);
    // Zero, as `u` is updated in place again and again.
    let bias = Tensor::zeros(INNER, DType::F32, &Device::Cpu)?;
    let (mut u0, bias0) = (values(tokens * INNER, 1), vec![0f32; INNER]);
    let mut g0 = u0.clone();
    let reference = || {
        for (u, g) in u0.chunks_exact_mut(INNER).zip(g0.chunks_exact_mut(INNER)) {
            for j in 0..INNER {
                u[j] += bias0[j];
                g[j] = u[j] * cdf(u[j]);
            }
        }
        black_box((&mut u0, &mut g0));
        Ok(())
    };
    table.row(row("bias_act", tokens, 1, 2), reference, || bias_act(&u, &g, &bias, Activation::Gelu))
}

fn backward(table: &Table, tokens: usize) -> Result<()> {
    // At 8 the slope is 1: elsewhere the gradient, updated in place again and again, would end in denormals.
    let u = Tensor::full(8f32, (tokens, INNER), &Device::Cpu)?;
    let (dg, dbias) = (matrix(tokens, INNER, DType::F32, 2)?, Tensor::zeros(INNER, DType::F32, &Device::Cpu)?);
    let (u0, dg0) = (values(tokens * INNER, 1), values(tokens * INNER, 2));
    let (mut du0, mut dbias0) = (dg0.clone(), vec![0f32; INNER]);
    let reference = || {
        dbias0.fill(0.0);
        for ((u, dg), du) in u0.chunks_exact(INNER).zip(dg0.chunks_exact(INNER)).zip(du0.chunks_exact_mut(INNER)) {
            for j in 0..INNER {
                let density = (-0.5 * u[j] * u[j]).exp() / std::f32::consts::TAU.sqrt();
                du[j] = dg[j] * (cdf(u[j]) + u[j] * density);
                dbias0[j] += du[j];
            }
        }
        black_box((&mut du0, &mut dbias0));
        Ok(())
    };
    let ours = || bias_act_backward(&dg, &dbias, &u, Activation::Gelu, false);
    table.row(row("bias_act_backward", tokens, 2, 1), reference, ours)
}
