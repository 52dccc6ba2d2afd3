//! A bias and its gradient where no other op takes them along. Reference: a plain loop on one thread.

use super::{HIDDEN, slice, token_counts};
use crate::common::data::{matrix, values};
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::ops::bias::{add_bias, bias_grad};
use bertft::ops::real::Real;
use candle_core::{DType, Device, Tensor};
use half::bf16;
use std::hint::black_box;

/// Of query, key and value.
const WIDTH: usize = 3 * HIDDEN;

pub fn run(table: &Table) -> Result<()> {
    for tokens in token_counts() {
        add(table, tokens)?;
        grad::<f32>(table, tokens)?;
        grad::<bf16>(table, tokens)?;
    }
    Ok(())
}

fn add(table: &Table, tokens: usize) -> Result<()> {
    let (y, bias) = (matrix(tokens, WIDTH, DType::F32, 1)?, Tensor::zeros(WIDTH, DType::F32, &Device::Cpu)?);
    let (mut y0, bias0) = (values(tokens * WIDTH, 1), vec![0f32; WIDTH]);
    let bytes = tokens * WIDTH * 4;
    let work = Work::Bytes { read: bytes, written: bytes, span: bytes };
    let row = Row { op: "add_bias", shape: format!("[{tokens}, {WIDTH}]"), dtype: DType::F32, work };
    let reference = || {
        for row in y0.chunks_exact_mut(WIDTH) {
            row.iter_mut().zip(&bias0).for_each(|(y, b)| *y += b);
        }
        black_box(&mut y0);
        Ok(())
    };
    table.row(row, reference, || add_bias(&y, &bias))
}

fn grad<T: Real>(table: &Table, tokens: usize) -> Result<()> {
    let (dy, dbias) = (matrix(tokens, WIDTH, T::DTYPE, 1)?, Tensor::zeros(WIDTH, DType::F32, &Device::Cpu)?);
    let (dy0, mut dbias0) = (slice::<T>(tokens * WIDTH, 1), vec![0f32; WIDTH]);
    let read = tokens * WIDTH * size_of::<T>();
    let work = Work::Bytes { read, written: 0, span: read };
    let row = Row { op: "bias_grad", shape: format!("[{tokens}, {WIDTH}]"), dtype: T::DTYPE, work };
    let reference = || {
        dbias0.fill(0.0);
        for row in dy0.chunks_exact(WIDTH) {
            dbias0.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy.to_f32());
        }
        black_box(&mut dbias0);
        Ok(())
    };
    table.row(row, reference, || bias_grad(&dbias, &dy, false))
}
