//! CUDA bodies: a product by cuBLAS, then what becomes of it in one pass. In bf16 the f32 master is rounded to a copy first,
//! and results are rounded by the product and by the pass.

use super::epilogue::Form;
use super::weight::{Source, TimesWeight};
use crate::ops::gpu::{Args, Gpu, Grid, View, of, product, round, rounded};
use candle_core::{DType, Result, bail};

pub(super) fn pack(gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([to], [w]) = (dst, src) else { bail!("pack_weight: one destination, one source") };
    let n = w.rows * w.cols;
    if to.dtype == DType::F32 {
        w.expect_dense("pack_weight", w.rows, w.cols, DType::F32)?;
        to.expect_values("pack_weight", n, DType::F32)?;
        return gpu.copy(to.at, w.at, 4 * n);
    }
    round(gpu, *to, *w)
}

pub(super) fn times_weight(op: &TimesWeight, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let (Some(y), [a, w, beside @ ..]) = (dst.first(), src) else { bail!("{}: a destination, two sources", op.name) };
    // A packed copy on a device is `[out, in]` in bf16.
    let mut w = *w;
    if op.is == Source::Packed {
        w.expect_values(op.name, y.cols * a.cols, a.dtype)?;
        w = View { rows: y.cols, cols: a.cols, stride: a.cols, ..w };
    }
    let mut copy = None;
    if a.dtype != w.dtype {
        let made = rounded(gpu, w)?;
        w = made.0;
        copy = Some(made.1);
    }
    y.expect(op.name, a.rows, y.cols, a.dtype)?;
    let add = matches!(op.form, Form::Plain { add: true });
    product(gpu, *y, (*a, false), (w, op.is != Source::Rows), add)?;
    drop(copy);
    let grid = Grid::chunks(y.rows, y.cols);
    match (&op.form, dst, beside) {
        (Form::Plain { .. }, [_], []) => Ok(()),
        (Form::Biased, [_], [bias]) => {
            bias.expect_values(op.name, y.cols, DType::F32)?;
            gpu.launch(&of("epilogue_bias", y.dtype), grid, Args::new(&[y.at, bias.at], &[y.rows, y.cols, y.stride])?)
        }
        (Form::Act(act), [u, g], [bias]) => {
            bias.expect_values(op.name, u.cols, DType::F32)?;
            g.expect(op.name, u.rows, u.cols, u.dtype)?;
            let args = Args::new(&[u.at, g.at, bias.at], &[u.rows, u.cols, u.stride, g.stride, act.number()])?;
            gpu.launch(&of("epilogue_act", u.dtype), grid, args)
        }
        (Form::Slope(act), [du], [u]) => {
            u.expect(op.name, du.rows, du.cols, du.dtype)?;
            let args = Args::new(&[du.at, u.at], &[du.rows, du.cols, du.stride, u.stride, act.number()])?;
            gpu.launch(&of("epilogue_slope", du.dtype), grid, args)
        }
        _ => bail!("{}: {} destinations and {} sources", op.name, dst.len(), src.len()),
    }
}

pub(super) fn weight_grad(accumulate: bool, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([dw], [dy, x]) = (dst, src) else { bail!("linear_weight_grad: one destination, two sources") };
    dw.expect("linear_weight_grad", dy.cols, x.cols, DType::F32)?;
    product(gpu, *dw, (*dy, true), (*x, false), accumulate)
}
