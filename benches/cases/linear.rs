//! The products. Reference: candle's f32 matmul, for bf16 too (its bf16 matmul is slower), with candle's own operations
//! for bias, GELU and its slope.

use super::product_formats;
use crate::common::data::{matrix, zeros};
use crate::common::peaks::Work;
use crate::{Row, Table};
use bertft::Result;
use bertft::ops::gelu::Activation;
use bertft::ops::gemm::{Weight, linear, linear_act, linear_act_backward, linear_input_grad, linear_weight_grad};
use candle_core::{DType, Device, Result as Candle, Tensor};
use std::hint::black_box;

/// One linear layer in one format, with all that its three products read and write.
struct Layer {
    tokens: usize,
    inp: usize,
    out: usize,
    dtype: DType,
    /// `[tokens, inp]` and `[tokens, out]`, in f32 for the reference and in `dtype` for us.
    x32: Tensor,
    dy32: Tensor,
    x: Tensor,
    dy: Tensor,
    master: Tensor,
    weight: Weight,
    bias: Tensor,
}

impl Layer {
    fn new(tokens: usize, inp: usize, out: usize, dtype: DType) -> Candle<Self> {
        let (x32, dy32) = (matrix(tokens, inp, DType::F32, 1)?, matrix(tokens, out, DType::F32, 2)?);
        let master = matrix(out, inp, DType::F32, 3)?;
        let weight = Weight::Master(master.clone());
        let (x, dy) = (x32.to_dtype(dtype)?, dy32.to_dtype(dtype)?);
        let bias = Tensor::zeros(out, DType::F32, &Device::Cpu)?;
        Ok(Self { tokens, inp, out, dtype, x32, dy32, x, dy, master, weight, bias })
    }

    fn row<'a>(&self, op: &'a str) -> Row<'a> {
        let flops = 2.0 * (self.tokens * self.inp * self.out) as f64;
        let work = if self.dtype == DType::BF16 { Work::Bf16 { flops } } else { Work::F32 { flops } };
        Row { op, shape: format!("[{}, {}] → {}", self.tokens, self.inp, self.out), dtype: self.dtype, work }
    }

    fn forward(&self, table: &Table) -> Result<()> {
        let y = zeros(self.tokens, self.out, self.dtype)?;
        let reference = || self.x32.matmul(&self.master.t()?).map(keep);
        table.row(self.row("linear"), reference, || linear(&y, &self.x, &self.weight, None))
    }

    fn forward_with_bias(&self, table: &Table) -> Result<()> {
        let y = zeros(self.tokens, self.out, self.dtype)?;
        let reference = || self.x32.matmul(&self.master.t()?)?.broadcast_add(&self.bias).map(keep);
        table.row(self.row("linear + bias"), reference, || linear(&y, &self.x, &self.weight, Some(&self.bias)))
    }

    fn forward_with_act(&self, table: &Table) -> Result<()> {
        let (u, g) = (zeros(self.tokens, self.out, self.dtype)?, zeros(self.tokens, self.out, self.dtype)?);
        let reference = || self.x32.matmul(&self.master.t()?)?.broadcast_add(&self.bias)?.gelu_erf().map(keep);
        let ours = || linear_act(&u, &g, &self.x, &self.weight, &self.bias, Activation::Gelu);
        table.row(self.row("linear_act"), reference, ours)
    }

    fn input_grad(&self, table: &Table) -> Result<()> {
        let dx = zeros(self.tokens, self.inp, self.dtype)?;
        let reference = || self.dy32.matmul(&self.master).map(keep);
        table.row(self.row("linear_input_grad"), reference, || linear_input_grad(&dx, &self.dy, &self.weight, false))
    }

    /// The activation is the one below this layer: as wide as its input.
    fn act_backward(&self, table: &Table) -> Result<()> {
        let u32 = (&self.x32 * 2.0)?;
        let (u, du) = (u32.to_dtype(self.dtype)?, zeros(self.tokens, self.inp, self.dtype)?);
        let dbias = Tensor::zeros(self.inp, DType::F32, &Device::Cpu)?;
        let reference = || {
            let du = (self.dy32.matmul(&self.master)? * gelu_slope(&u32)?)?;
            keep((du.sum(0)?, du));
            Ok(())
        };
        let ours = || linear_act_backward(&du, &dbias, &self.dy, &self.weight, &u, Activation::Gelu, false);
        table.row(self.row("linear_act_backward"), reference, ours)
    }

    fn weight_grad(&self, table: &Table) -> Result<()> {
        let dw = zeros(self.out, self.inp, DType::F32)?;
        let reference = || self.dy32.t()?.matmul(&self.x32).map(keep);
        table.row(self.row("linear_weight_grad"), reference, || linear_weight_grad(&dw, &self.dy, &self.x, false))
    }
}

fn keep<T>(result: T) {
    drop(black_box(result));
}

/// Φ(u) + u·φ(u)
fn gelu_slope(u: &Tensor) -> Candle<Tensor> {
    let cdf = ((u * std::f64::consts::FRAC_1_SQRT_2)?.erf()? * 0.5)? + 0.5;
    let density = ((u.sqr()? * -0.5)?.exp()? * (std::f64::consts::TAU.sqrt().recip()))?;
    cdf? + (u * density)?
}

pub fn run(table: &Table) -> Result<()> {
    let [short, full] = super::token_counts();
    for (tokens, hidden, inner) in [(short, 384, 1536), (full, 384, 1536), (short, 768, 3072)] {
        for dtype in product_formats() {
            let layer = |inp, out| Layer::new(tokens, inp, out, dtype);
            let (qkv, output, up, down) =
                (layer(hidden, 3 * hidden)?, layer(hidden, hidden)?, layer(hidden, inner)?, layer(inner, hidden)?);
            qkv.forward_with_bias(table)?;
            output.forward(table)?;
            up.forward_with_act(table)?;
            down.forward(table)?;
            qkv.input_grad(table)?;
            output.input_grad(table)?;
            up.input_grad(table)?;
            down.act_backward(table)?;
            for layer in [qkv, output, up, down] {
                layer.weight_grad(table)?;
            }
        }
    }
    if product_formats().any(|f| f == DType::BF16) {
        for (out, inp) in [(384, 384), (1536, 384), (384, 1536), (3072, 768)] {
            packing(table, out, inp)?;
        }
    }
    Ok(())
}

/// The copy of a weight for evaluation. Reference: a scalar loop that transposes and rounds it, without the kernels' order.
fn packing(table: &Table, out: usize, inp: usize) -> Result<()> {
    use half::bf16;
    let master = matrix(out, inp, DType::F32, 3)?;
    let weight: Vec<f32> = master.flatten_all()?.to_vec1()?;
    let packed = Weight::room(out, inp, DType::BF16, &Device::Cpu)?;
    let (read, written) = (4 * out * inp, 2 * out * inp);
    let work = Work::Bytes { read, written, span: read + written };
    let row = Row { op: "pack_weight", shape: format!("[{out}, {inp}]"), dtype: DType::BF16, work };
    let mut copy = vec![bf16::ZERO; out * inp];
    let reference = || {
        for (i, row) in weight.chunks_exact(inp).enumerate() {
            for (j, w) in row.iter().enumerate() {
                copy[j * out + i] = bf16::from_f32(*w);
            }
        }
        black_box(&mut copy);
        Ok(())
    };
    table.row(row, reference, || packed.pack(&master))
}
