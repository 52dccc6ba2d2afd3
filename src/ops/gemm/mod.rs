//! Matrix products of linear layers, in the three forms that training needs. Weights are `[out, in]` as in PyTorch.
//!
//! Activations are f32 or bf16, and so are the operands; sums are f32 in both, and bf16 results are rounded once. A product
//! is a row-major `a` times panels of `b` ([`drive`]), tile by tile, each finished tile handed to an epilogue ([`epilogue`])
//! that adds the bias, applies the activation or its slope, or adds what was there. The kernels need AVX2 (f32) or
//! AVX512-BF16 (bf16); f32 products of other machines, and the weight
//! gradients below AVX-512, are the [`library`]'s.

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx_emulator;
mod bf16;
#[cfg(gpu)]
mod cuda;
mod drive;
mod epilogue;
mod f32;
mod library;
#[cfg(test)]
mod tests;
mod weight;

pub use bf16::{Engine as Bf16Engine, allow_plain_bf16, bf16_engine};
pub use weight::Weight;

use crate::ops::bias::{add_bias, bias_grad};
use crate::ops::gelu::{Activation, bias_act, bias_act_backward};
use crate::ops::on_gpu;
use candle_core::{DType, Device, Result, Tensor};
use epilogue::Form;
use weight::{times_rows, times_transposed, weight_grad};

/// Whether to keep packed copies of the weights, not to pack them for each product: where no step changes them, on machines
/// whose products are ours. On a GPU a copy is rounded and no more, so it serves the passes of a step in training too.
pub fn keeps_packed(space: (DType, &Device), training: bool) -> bool {
    let (dtype, device) = space;
    if on_gpu(device) { dtype == DType::BF16 } else { !training && (dtype == DType::BF16 || f32::ours()) }
}

/// Lets CUDA devices round the operands of f32 products to TF32, ours and candle's, from now on.
pub fn allow_tf32(on: bool) {
    #[cfg(feature = "cuda")]
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(on);
    _ = on;
}

/// Whether a tensor's products are kernels of ours, not the library's.
fn ours(x: &Tensor) -> bool {
    on_gpu(x.device()) || x.dtype() == DType::BF16 || f32::ours()
}

/// `y[tokens, out] = x[tokens, in] · wᵀ (+ bias[out])`
pub fn linear(y: &Tensor, x: &Tensor, w: &Weight, bias: Option<&Tensor>) -> Result<()> {
    if let (Weight::Master(w), false) = (w, ours(x)) {
        library::product("linear", y, (x, false), (w, true), false)?;
        return bias.map_or(Ok(()), |b| add_bias(y, b));
    }
    let form = if bias.is_some() { Form::Biased } else { Form::Plain { add: false } };
    times_transposed("linear", &[y], (x, w), form, bias)
}

/// `u = x · wᵀ + bias`, `g = act(u)`; `u` is kept for [`linear_act_backward`].
pub fn linear_act(u: &Tensor, g: &Tensor, x: &Tensor, w: &Weight, bias: &Tensor, act: Activation) -> Result<()> {
    if !ours(x) {
        linear(u, x, w, None)?;
        return bias_act(u, g, bias, act);
    }
    times_transposed("linear_act", &[u, g], (x, w), Form::Act(act), Some(bias))
}

/// `dx[tokens, in] = dy[tokens, out] · w`, added to `dx` if `accumulate`.
pub fn linear_input_grad(dx: &Tensor, dy: &Tensor, w: &Weight, accumulate: bool) -> Result<()> {
    let name = "linear_input_grad";
    match w {
        Weight::Master(w) if !ours(dy) => library::product(name, dx, (dy, false), (w, false), accumulate),
        _ => times_rows(name, dx, (dy, w), Form::Plain { add: accumulate }, None),
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
    if !ours(dy) {
        linear_input_grad(du, dy, w, false)?;
        return bias_act_backward(du, dbias, u, act, accumulate);
    }
    times_rows("linear_act_backward", du, (dy, w), Form::Slope(act), Some(u))?;
    bias_grad(dbias, du, accumulate)
}

/// `dw[out, in] = dy[tokens, out]ᵀ · x[tokens, in]` in f32, added to `dw` if `accumulate`; `dy` and `x` in f32 or bf16.
pub fn linear_weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    if !on_gpu(dy.device()) && dy.dtype() == DType::F32 && !f32::reads_in_place() {
        return library::product("linear_weight_grad", dw, (dy, true), (x, false), accumulate);
    }
    weight_grad(dw, dy, x, accumulate)
}
