//! Matrix products of linear layers, in the three forms that training needs. Weights are `[out, in]` as in PyTorch.
//!
//! Activations are f32 or bf16, and the [`Weight`] is of the same kind: the f32 master itself, or bf16 copies of it packed in
//! the order in which the bf16 kernels read them. Sums are f32 in both; bf16 results are rounded once, after the epilogue.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx_emulator;
mod bf16;
mod f32;
#[cfg(test)]
mod tests;

pub use bf16::{Engine as Bf16Engine, PackedWeight, bf16_engine};

use crate::ops::bias::{add_bias, bias_grad};
use crate::ops::gelu::{Activation, bias_act, bias_act_backward};
use crate::ops::launch;
use candle_core::{DType, Result, Tensor};
use f32::Product;

/// A linear layer's weight as the products read it.
#[derive(Debug, Clone)]
pub enum Weight {
    /// `[out, in]` in f32.
    F32(Tensor),
    Bf16(PackedWeight),
}

/// `y[tokens, out] = x[tokens, in] · wᵀ (+ bias[out])`
pub fn linear(y: &Tensor, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<()> {
    match w {
        Weight::F32(w) => {
            launch(&Product { name: "linear", lhs_t: false, rhs_t: true, accumulate: false }, &[y], &[x, w])?;
            bias.map_or(Ok(()), |b| add_bias(y, b))
        }
        Weight::Bf16(w) => bf16::linear(y, x, w, bias),
    }
}

/// `u = x · wᵀ + bias`, `g = act(u)`; `u` is kept for [`linear_act_backward`].
pub fn linear_act(u: &Tensor, g: &Tensor, x: &Tensor, w: &Weight, bias: &Tensor, act: Activation) -> Result<()> {
    match w {
        Weight::F32(_) => {
            linear(u, x, w, None)?;
            bias_act(u, g, bias, act)
        }
        Weight::Bf16(w) => bf16::linear_act(u, g, x, w, bias, act),
    }
}

/// `dx[tokens, in] = dy[tokens, out] · w`, added to `dx` if `accumulate`.
pub fn linear_input_grad(dx: &Tensor, dy: &Tensor, w: &Weight, accumulate: bool) -> Result<()> {
    match w {
        Weight::F32(w) => {
            launch(&Product { name: "linear_input_grad", lhs_t: false, rhs_t: false, accumulate }, &[dx], &[dy, w])
        }
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
        Weight::F32(_) => {
            linear_input_grad(du, dy, w, false)?;
            bias_act_backward(du, dbias, u, act, accumulate)
        }
        Weight::Bf16(w) => {
            bf16::linear_act_backward(du, dy, w, u, act)?;
            bias_grad(dbias, du, accumulate)
        }
    }
}

/// `dw[out, in] = dy[tokens, out]ᵀ · x[tokens, in]` in f32, added to `dw` if `accumulate`; `dy` and `x` in f32 or bf16.
pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    if dy.dtype() == DType::BF16 {
        return bf16::linear_weight_grad(dw, dy, x, accumulate);
    }
    launch(&Product { name: "linear_weight_grad", lhs_t: true, rhs_t: false, accumulate }, &[dw], &[dy, x])
}
