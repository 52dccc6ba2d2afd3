//! The optimizer's passes over the arenas, at the size of MiniLM-L6's layers. Reference: plain loops on one thread.

use crate::common::data::values;
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::ops::adamw::{AdamWStep, Segment, adamw, sum_squares};
use bertft::ops::average::average;
use candle_core::{DType, Device, Tensor};
use std::hint::black_box;

const PARAMETERS: usize = 6 * (4 * 384 * 384 + 2 * 384 * 1536);

pub fn run(table: &Table) -> Result<()> {
    step(table)?;
    norm(table)?;
    moving_average(table)
}

fn moving_average(table: &Table) -> Result<()> {
    let n = PARAMETERS;
    let (a, w) = (vector(1)?, vector(2)?);
    let (mut a0, w0) = (values(n, 1), values(n, 2));
    let work = Work::Bytes { read: 8 * n, written: 4 * n, span: 8 * n };
    let row = Row { op: "average", shape: format!("[{n}]"), dtype: DType::F32, work };
    let reference = || {
        a0.iter_mut().zip(&w0).for_each(|(a, w)| *a += 0.001 * (w - *a));
        black_box(&mut a0);
        Ok(())
    };
    let all = 0..n;
    table.row(row, reference, || average(&a, &w, 0.001, std::slice::from_ref(&all)))
}

fn vector(seed: u32) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values(PARAMETERS, seed), PARAMETERS, &Device::Cpu)
}

fn step(table: &Table) -> Result<()> {
    let n = PARAMETERS;
    let zeros = || Tensor::zeros(n, DType::F32, &Device::Cpu);
    let (w, g, m, v) = (vector(1)?, vector(2)?, zeros()?, zeros()?);
    let (mut w0, g0, mut m0, mut v0) = (values(n, 1), values(n, 2), vec![0f32; n], vec![0f32; n]);
    let scalars =
        AdamWStep { learning_rate: 1e-5, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, step: 1000, max_grad_norm: 1.0 };
    let squares = sum_squares(&g, std::slice::from_ref(&(0..n)))?;
    let segments = [Segment::new(0..n, 0.01)];
    let work = Work::Bytes { read: 16 * n, written: 12 * n, span: 16 * n };
    let row = Row { op: "adamw", shape: format!("[{n}]"), dtype: DType::F32, work };
    let reference = || {
        for i in 0..n {
            let g = g0[i] * 0.5;
            m0[i] = 0.9 * m0[i] + 0.1 * g;
            v0[i] = 0.999 * v0[i] + 0.001 * g * g;
            w0[i] = w0[i] * (1.0 - 1e-7) - 1e-5 * m0[i] / (v0[i].sqrt() + 1e-8);
        }
        black_box((&mut w0, &mut m0, &mut v0));
        Ok(())
    };
    table.row(row, reference, || adamw(&w, &m, &v, (&g, &squares), scalars, &segments))
}

fn norm(table: &Table) -> Result<()> {
    let n = PARAMETERS;
    let (g, g0) = (vector(2)?, values(n, 2));
    let work = Work::Bytes { read: 4 * n, written: 0, span: 4 * n };
    let row = Row { op: "sum_squares", shape: format!("[{n}]"), dtype: DType::F32, work };
    let reference = || {
        black_box(g0.iter().map(|g| *g as f64 * *g as f64).sum::<f64>());
        Ok(())
    };
    let all = 0..n;
    table.row(row, reference, || sum_squares(&g, std::slice::from_ref(&all)).map(|s| _ = black_box(s)))
}
