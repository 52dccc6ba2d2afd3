//! The f32 products: with a kernel of our own where the machine has AVX-512, by the `gemm` crate otherwise.
//!
//! Ours reads both operands where they lie, in all forms but `x · wᵀ`, whose weight is transposed into panels first; the
//! crate packs both every time, and bias and activation take further passes over its results. In training of MiniLM on
//! SST-2 (2 cores, AVX-512) that was 7 % of the time for the packing and as much for threads that waited.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod library;
mod operands;

use super::epilogue::{Form, Out};
use crate::ops::bias::{add_bias, bias_grad};
use crate::ops::cpu::{Level, level};
use crate::ops::gelu::{Activation, bias_act, bias_act_backward};
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};
use operands::{Panels, Product, pack_transposed, packed_len};
use std::cell::Cell;

/// Whether this machine runs our kernel.
pub fn ours() -> bool {
    cfg!(target_arch = "x86_64") && level() >= Level::Avx512
}

/// A weight for `x · wᵀ`.
#[derive(Clone, Copy)]
pub enum Forward<'a> {
    /// `[out, in]`
    Rows(&'a Tensor),
    /// Its transpose, packed once by [`pack`].
    Packed(&'a Tensor),
}

/// Values of a packed weight.
pub fn pack_len(out: usize, inp: usize) -> usize {
    packed_len(inp, out)
}

/// Fills `to` with the panels of a weight `[out, in]`.
pub fn pack(to: &Tensor, w: &Tensor) -> Result<()> {
    launch(&Pack, &[to], &[w])
}

struct Pack;

impl Kernel for Pack {
    fn name(&self) -> &'static str {
        "pack_weight"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([to], [w]) = (dst, src) else { bail!("pack_weight: one destination, one source") };
        let to = to.f32()?;
        if to.len() != packed_len(w.cols, w.rows) {
            bail!("pack_weight: {} values for [{}, {}]", to.len(), w.rows, w.cols);
        }
        pack_transposed(to, w.f32()?, w.rows, w.cols, w.stride);
        Ok(())
    }
}

pub fn linear(y: &Tensor, x: &Tensor, w: Forward<'_>, bias: Option<&Tensor>) -> Result<()> {
    let name = "linear";
    let (w, weight) = match w {
        Forward::Rows(w) if !ours() => {
            library::product(name, y, (x, false), (w, true), false)?;
            return bias.map_or(Ok(()), |b| add_bias(y, b));
        }
        Forward::Rows(w) => (w, WeightIs::Transposed),
        Forward::Packed(w) => (w, WeightIs::Packed),
    };
    match bias {
        Some(b) => launch(&WithWeight { name, weight, form: Form::Biased }, &[y], &[x, w, b]),
        None => launch(&WithWeight { name, weight, form: Form::Plain { add: false } }, &[y], &[x, w]),
    }
}

pub fn linear_act(u: &Tensor, g: &Tensor, x: &Tensor, w: Forward<'_>, bias: &Tensor, act: Activation) -> Result<()> {
    let (name, form) = ("linear_act", Form::Act(act));
    match w {
        Forward::Rows(_) if !ours() => {
            linear(u, x, w, None)?;
            bias_act(u, g, bias, act)
        }
        Forward::Rows(w) => launch(&WithWeight { name, weight: WeightIs::Transposed, form }, &[u, g], &[x, w, bias]),
        Forward::Packed(w) => launch(&WithWeight { name, weight: WeightIs::Packed, form }, &[u, g], &[x, w, bias]),
    }
}

pub fn linear_input_grad(dx: &Tensor, dy: &Tensor, w: &Tensor, accumulate: bool) -> Result<()> {
    let name = "linear_input_grad";
    if ours() {
        let form = Form::Plain { add: accumulate };
        return launch(&WithWeight { name, weight: WeightIs::Plain, form }, &[dx], &[dy, w]);
    }
    library::product(name, dx, (dy, false), (w, false), accumulate)
}

pub fn linear_act_backward(
    du: &Tensor,
    dbias: &Tensor,
    dy: &Tensor,
    w: &Tensor,
    u: &Tensor,
    act: Activation,
    accumulate: bool,
) -> Result<()> {
    if ours() {
        let kernel = WithWeight { name: "linear_act_backward", weight: WeightIs::Plain, form: Form::Slope(act) };
        launch(&kernel, &[du], &[dy, w, u])?;
        return bias_grad(dbias, du, accumulate);
    }
    linear_input_grad(du, dy, w, false)?;
    bias_act_backward(du, dbias, u, act, accumulate)
}

pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    if ours() {
        return launch(&WeightGrad { accumulate }, &[dw], &[dy, x]);
    }
    library::product("linear_weight_grad", dw, (dy, true), (x, false), accumulate)
}

/// `a` times a weight.
struct WithWeight {
    name: &'static str,
    weight: WeightIs,
    form: Form,
}

/// How the source that holds the weight is to be read.
#[derive(Clone, Copy, PartialEq)]
enum WeightIs {
    Plain,
    Transposed,
    Packed,
}

impl Kernel for WithWeight {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let [a, w, rest @ ..] = src else { bail!("{}: two or three sources", self.name) };
        let (m, k) = (a.rows, a.cols);
        let n = match self.weight {
            WeightIs::Plain => w.cols,
            WeightIs::Transposed => w.rows,
            WeightIs::Packed => dst.first().map_or(0, |d| d.cols),
        };
        let fits = match self.weight {
            WeightIs::Plain => w.rows == k,
            WeightIs::Transposed => w.cols == k,
            WeightIs::Packed => w.rows * w.cols == packed_len(k, n),
        };
        if k == 0 || !fits {
            bail!("{}: [{m}, {k}] by a weight of [{}, {}]", self.name, w.rows, w.cols);
        }
        let out = self.form.out(self.name, (m, n), dst, rest)?;
        let product = |b: &[f32], panels| {
            let product = Product { m, n, k, a: a.f32()?, lda: a.stride, a_transposed: false, b, panels };
            // SAFETY: the views of `out` are [m, n] and no two arguments share memory; `b` and its panels are made for
            // each other below.
            unsafe { product.run(out) };
            Ok(())
        };
        match self.weight {
            WeightIs::Plain => product(w.f32()?, Panels::InPlace { stride: w.stride }),
            WeightIs::Packed => product(w.f32()?, Panels::Packed),
            WeightIs::Transposed => {
                // Kept from product to product. Taken out and put back, as this thread may run others while it waits.
                thread_local!(static ROOM: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
                let mut room = ROOM.take();
                if room.len() < packed_len(k, n) {
                    room.resize(packed_len(k, n), 0.0);
                }
                pack_transposed(&mut room[..packed_len(k, n)], w.f32()?, n, k, w.stride);
                let done = product(&room, Panels::Packed);
                ROOM.set(room);
                done
            }
        }
    }
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
        let (m, n, k) = (dy.cols, x.cols, dy.rows);
        if k == 0 || x.rows != k || (dw.rows, dw.cols) != (m, n) {
            let (r, c) = (dw.rows, dw.cols);
            bail!("linear_weight_grad: [{k}, {m}]ᵀ · [{}, {n}] does not give [{r}, {c}]", x.rows);
        }
        let panels = Panels::InPlace { stride: x.stride };
        let product = Product { m, n, k, a: dy.f32()?, lda: dy.stride, a_transposed: true, b: x.f32()?, panels };
        let stride = dw.stride;
        // SAFETY: `dw` is [m, n], checked above, and shares no memory with the operands.
        unsafe { product.run(Out::Sum { c: (dw.f32()?.as_mut_ptr(), stride), add: self.accumulate }) };
        Ok(())
    }
}
