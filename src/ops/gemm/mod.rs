//! Matrix products of linear layers, in the three forms that training needs. Weights are `[out, in]` as in PyTorch.
//!
//! Activations are f32 or bf16, and the [`Weight`] is of the same kind: the f32 master itself, or bf16 copies of it packed in
//! the order in which the bf16 kernels read them. Sums are f32 in both; bf16 results are rounded once, after the epilogue.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx_emulator;
mod bf16;
mod drive;
mod epilogue;
mod f32;
#[cfg(test)]
mod tests;

use bf16::PackedWeight;
pub use bf16::{Engine as Bf16Engine, bf16_engine};

use crate::ops::bias::bias_grad;
use crate::ops::gelu::Activation;
use candle_core::{DType, Device, Result, Tensor, bail};
use f32::Forward;

/// A linear layer's weight as the products read it.
#[derive(Debug, Clone)]
pub enum Weight {
    /// The master, `[out, in]` in f32.
    F32(Tensor),
    /// A copy of it, packed for `x · wᵀ` only.
    F32Packed(Tensor),
    /// bf16 copies of it.
    Bf16(PackedWeight),
}

impl Weight {
    /// Whether it pays to keep copies of the weights instead of reading the master: always in bf16, and in f32 on machines
    /// with our own kernels where the same weights serve many batches.
    pub fn has_copies(dtype: DType, training: bool) -> bool {
        dtype == DType::BF16 || !training && f32::ours()
    }

    /// Room for copies of a weight `[out, inp]`, to be filled by [`Self::pack`]; with those of the backward pass if
    /// `training`.
    pub fn room(out: usize, inp: usize, dtype: DType, training: bool, device: &Device) -> Result<Self> {
        Ok(match dtype {
            DType::BF16 => Self::Bf16(PackedWeight::new(out, inp, training, device)?),
            _ => Self::F32Packed(Tensor::zeros(f32::pack_len(out, inp), DType::F32, device)?),
        })
    }

    /// Fills the copies from the master `[out, in]`, after each change of it.
    pub fn pack(&self, master: &Tensor) -> Result<()> {
        match self {
            Self::F32(_) => Ok(()),
            Self::F32Packed(to) => f32::pack(to, master),
            Self::Bf16(w) => w.pack(master),
        }
    }

    /// Bytes that the copies of a weight `[out, inp]` take.
    pub fn copied_bytes(out: usize, inp: usize, dtype: DType, training: bool) -> usize {
        match dtype {
            _ if !Self::has_copies(dtype, training) => 0,
            DType::BF16 => PackedWeight::bytes(out, inp, training),
            _ => 4 * f32::pack_len(out, inp),
        }
    }
}

/// `y[tokens, out] = x[tokens, in] · wᵀ (+ bias[out])`
pub fn linear(y: &Tensor, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<()> {
    match w {
        Weight::F32(w) => f32::linear(y, x, Forward::Rows(w), bias),
        Weight::F32Packed(w) => f32::linear(y, x, Forward::Packed(w), bias),
        Weight::Bf16(w) => bf16::linear(y, x, w, bias),
    }
}

/// `u = x · wᵀ + bias`, `g = act(u)`; `u` is kept for [`linear_act_backward`].
pub fn linear_act(u: &Tensor, g: &Tensor, x: &Tensor, w: &Weight, bias: &Tensor, act: Activation) -> Result<()> {
    match w {
        Weight::F32(w) => f32::linear_act(u, g, x, Forward::Rows(w), bias, act),
        Weight::F32Packed(w) => f32::linear_act(u, g, x, Forward::Packed(w), bias, act),
        Weight::Bf16(w) => bf16::linear_act(u, g, x, w, bias, act),
    }
}

/// `dx[tokens, in] = dy[tokens, out] · w`, added to `dx` if `accumulate`.
pub fn linear_input_grad(dx: &Tensor, dy: &Tensor, w: &Weight, accumulate: bool) -> Result<()> {
    match w {
        Weight::F32(w) => f32::linear_input_grad(dx, dy, w, accumulate),
        Weight::F32Packed(_) => bail!("this weight was packed for evaluation only"),
        Weight::Bf16(w) => bf16::linear_input_grad(dx, dy, w, accumulate),
    }
}

/// Back through a linear layer and the activation below it, whose [`linear_act`] kept `u`: `du = (dy · w) ∘ act'(u)` and
/// `dbias = Σ_tokens du`, added to if `accumulate`.
pub fn linear_act_backward(
    du: &Tensor,
    dbias: &Tensor,
    dy: &Tensor,
    w: &Weight,
    u: &Tensor,
    act: Activation,
    accumulate: bool,
) -> Result<()> {
    match w {
        Weight::F32(w) => f32::linear_act_backward(du, dbias, dy, w, u, act, accumulate),
        Weight::F32Packed(_) => bail!("this weight was packed for evaluation only"),
        Weight::Bf16(w) => {
            bf16::linear_act_backward(du, dy, w, u, act)?;
            bias_grad(dbias, du, accumulate)
        }
    }
}

/// `dw[out, in] = dy[tokens, out]ᵀ · x[tokens, in]` in f32, added to `dw` if `accumulate`; `dy` and `x` in f32 or bf16.
pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    match dy.dtype() {
        DType::BF16 => bf16::linear_weight_grad(dw, dy, x, accumulate),
        _ => f32::linear_weight_grad(dw, dy, x, accumulate),
    }
}
