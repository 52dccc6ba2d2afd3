//! The bf16 products, with kernels of our own: AMX tiles where the machine has them, AVX512-BF16 otherwise.
//!
//! All three forms are one: row-major `a` times a packed `b` ([`pack`]), tile by tile ([`super::drive`]), each finished tile
//! handed to an epilogue ([`super::epilogue`]) that adds the bias, applies the activation or its slope, or adds what was there, and rounds.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod operands;
pub(super) mod pack;

use super::epilogue::{Form, Out};
use crate::ops::cpu::{Level, has_avx512_bf16, level};
use crate::ops::gelu::Activation;
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use operands::Product;
use std::cell::Cell;

/// Which kernel computes the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Avx512,
    Amx,
}

impl Engine {
    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "AVX512-BF16",
            Self::Amx => "AMX",
        }
    }
}

/// The engine of this machine at its [`level`]; `None`: it has no bf16 products.
pub fn bf16_engine() -> Option<Engine> {
    match level() {
        Level::Amx => Some(Engine::Amx),
        Level::Avx512 if has_avx512_bf16() => Some(Engine::Avx512),
        _ => None,
    }
}

fn engine() -> Result<Engine> {
    match bf16_engine() {
        Some(engine) => Ok(engine),
        None => bail!("this CPU has no bf16 products (AVX512-BF16 or AMX)"),
    }
}

/// bf16 copies of an f32 weight `[out, in]`, packed for the products that read it.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    out: usize,
    inp: usize,
    /// For `x · wᵀ`: panels over `out`, depth `in`.
    forward: Tensor,
    /// For `dy · w`: panels over `in`, depth `out`. Absent in evaluation.
    input_grad: Option<Tensor>,
}

impl PackedWeight {
    /// Room for a weight `[out, inp]`, to be filled by [`Self::pack`].
    pub fn new(out: usize, inp: usize, training: bool, device: &Device) -> Result<Self> {
        let room = |depth: usize, cols: usize| Tensor::zeros(pack::packed_len(depth, cols), DType::BF16, device);
        let input_grad = if training { Some(room(out, inp)?) } else { None };
        Ok(Self { out, inp, forward: room(inp, out)?, input_grad })
    }

    /// Fills the copies from `w: [out, in]`, once after each change of the weights.
    pub fn pack(&self, w: &Tensor) -> Result<()> {
        launch(&Pack { transpose: true }, &[&self.forward], &[w])?;
        self.input_grad.as_ref().map_or(Ok(()), |t| launch(&Pack { transpose: false }, &[t], &[w]))
    }

    /// Bytes that the copies of a weight take.
    pub fn bytes(out: usize, inp: usize, training: bool) -> usize {
        2 * (pack::packed_len(inp, out) + if training { pack::packed_len(out, inp) } else { 0 })
    }

    fn input_grad(&self) -> Result<&Tensor> {
        match &self.input_grad {
            Some(t) => Ok(t),
            None => bail!("this weight was packed for evaluation only"),
        }
    }
}

struct Pack {
    transpose: bool,
}

impl Kernel for Pack {
    fn name(&self) -> &'static str {
        "pack_weight"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([to], [w]) = (dst, src) else { bail!("pack_weight: one destination, one source") };
        let (depth, cols) = if self.transpose { (w.cols, w.rows) } else { (w.rows, w.cols) };
        engine()?;
        let to = to.values::<bf16>()?;
        if to.len() != pack::packed_len(depth, cols) {
            bail!("pack_weight: {} values for [{depth}, {cols}]", to.len());
        }
        if self.transpose {
            pack::columns_of_rows(to, w.f32()?, w.rows, w.cols, w.stride);
        } else {
            pack::rows(to, w.f32()?, w.rows, w.cols, w.stride);
        }
        Ok(())
    }
}

pub fn linear(y: &Tensor, x: &Tensor, w: &PackedWeight, bias: Option<&Tensor>) -> Result<()> {
    let kernel = |form| Packed { name: "linear", depth: w.inp, cols: w.out, form };
    match bias {
        Some(b) => launch(&kernel(Form::Biased), &[y], &[x, &w.forward, b]),
        None => launch(&kernel(Form::Plain { add: false }), &[y], &[x, &w.forward]),
    }
}

pub fn linear_act(u: &Tensor, g: &Tensor, x: &Tensor, w: &PackedWeight, b: &Tensor, act: Activation) -> Result<()> {
    let kernel = Packed { name: "linear_act", depth: w.inp, cols: w.out, form: Form::Act(act) };
    launch(&kernel, &[u, g], &[x, &w.forward, b])
}

pub fn linear_input_grad(dx: &Tensor, dy: &Tensor, w: &PackedWeight, accumulate: bool) -> Result<()> {
    let form = Form::Plain { add: accumulate };
    launch(&Packed { name: "linear_input_grad", depth: w.out, cols: w.inp, form }, &[dx], &[dy, w.input_grad()?])
}

pub fn linear_act_backward(du: &Tensor, dy: &Tensor, w: &PackedWeight, u: &Tensor, act: Activation) -> Result<()> {
    let kernel = Packed { name: "linear_act_backward", depth: w.out, cols: w.inp, form: Form::Slope(act) };
    launch(&kernel, &[du], &[dy, w.input_grad()?, u])
}

/// A product with a packed weight.
struct Packed {
    name: &'static str,
    depth: usize,
    cols: usize,
    form: Form,
}

impl Kernel for Packed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let [a, b, rest @ ..] = src else { bail!("{}: two or three sources", self.name) };
        let (m, n, k) = (a.rows, self.cols, self.depth);
        if k == 0 || a.cols != k || b.rows * b.cols != pack::packed_len(k, n) {
            bail!("{}: [{m}, {}] · [{k}, {n}] in {} values", self.name, a.cols, b.rows * b.cols);
        }
        let out = self.form.out(self.name, (m, n), dst, rest)?;
        let product = Product { m, n, k, a: a.values::<bf16>()?, lda: a.stride, b: b.values::<bf16>()? };
        // SAFETY: the views of `out` are [m, n], checked above, and no two arguments share memory.
        unsafe { operands::run(engine()?, product, out) };
        Ok(())
    }
}

/// `dw[out, in] (+)= dyᵀ · x`: both operands are packed first, with the tokens as depth.
pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    launch(&WeightGrad { accumulate }, &[dw], &[dy, x])
}

struct WeightGrad {
    accumulate: bool,
}

impl Kernel for WeightGrad {
    fn name(&self) -> &'static str {
        "linear_weight_grad"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dw], [dy, x]) = (dst, src) else { bail!("linear_weight_grad: one destination, two sources") };
        let (m, n, tokens) = (dy.cols, x.cols, dy.rows);
        if tokens == 0 || x.rows != tokens || (dw.rows, dw.cols) != (m, n) {
            let (r, c) = (dw.rows, dw.cols);
            bail!("linear_weight_grad: [{tokens}, {m}]ᵀ · [{}, {n}] does not give [{r}, {c}]", x.rows);
        }
        let engine = engine()?;
        thread_local!(static ROOM: Cell<Vec<bf16>> = const { Cell::new(Vec::new()) });
        // Taken out and put back, so that a task that this thread picks up while it waits may use its own.
        let mut room = ROOM.take();
        let depth = pack::padded_depth(tokens);
        let lda = pack::row_stride(depth);
        let (a_len, b_len) = (m * lda, pack::packed_len(tokens, n));
        if room.len() < a_len + b_len {
            room.resize(a_len + b_len, bf16::ZERO);
        }
        let (a, b) = room[..a_len + b_len].split_at_mut(a_len);
        pack::transpose(a, dy.values::<bf16>()?, tokens, m, dy.stride);
        pack::rows(b, x.values::<bf16>()?, tokens, n, x.stride);
        let stride = dw.stride;
        let out = Out::Sum { c: (dw.f32()?.as_mut_ptr(), stride), add: self.accumulate };
        // SAFETY: `dw` is [m, n], checked above, and shares no memory with the operands.
        unsafe { operands::run(engine, Product { m, n, k: depth, a, lda, b }, out) };
        ROOM.set(room);
        Ok(())
    }
}
