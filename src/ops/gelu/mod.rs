//! The feed-forward activation fused with its linear layer's bias (Hendrycks & Gimpel 2016 for GELU), in f32; in bf16 it is
//! part of the products' epilogues (`crate::ops::gemm`).

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{self, Shared, chunk_count, for_chunks, madd, reduce_partials, simd};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};

/// Rows a thread gets at least.
const GRAIN: usize = 4;

/// `config.json`'s `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·Φ(x), exact by erf.
    Gelu,
    /// The tanh approximation (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    Relu,
    /// x·σ(x) (`silu`, `swish`).
    Silu,
}

impl Activation {
    /// The names that `config.json` uses.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("gelu", Self::Gelu),
        ("gelu_python", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("relu", Self::Relu),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];

    /// By the name that `config.json` uses.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, act)| *act)
    }
}

/// `u += bias`, `g = act(u)`; `u, g: [tokens, inner]`. `u` is kept for the backward pass.
pub fn bias_act(u: &Tensor, g: &Tensor, bias: &Tensor, act: Activation) -> Result<()> {
    launch(&Forward(act), &[u, g], &[bias])
}

/// In place `dg ← du = dg·act'(u)` and `dbias = Σ_tokens du`, added to if `accumulate`.
pub fn bias_act_backward(dg: &Tensor, dbias: &Tensor, u: &Tensor, act: Activation, accumulate: bool) -> Result<()> {
    launch(&Backward { act, accumulate }, &[dg, dbias], &[u])
}

struct Forward(Activation);

impl Kernel for Forward {
    fn name(&self) -> &'static str {
        "bias_act"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([u, g], [bias]) = (dst, src) else { bail!("bias_act: two destinations, one source") };
        let (n, rows, bias) = (u.cols, u.rows, bias.f32()?);
        if (g.rows, g.cols) != (rows, n) || bias.len() != n {
            bail!("bias_act: u [{rows}, {n}], g [{}, {}], bias [{}]", g.rows, g.cols, bias.len());
        }
        let (u, g) = (Shared::new(u.f32()?), Shared::new(g.f32()?));
        for_chunks(rows, GRAIN, |_, r| {
            let range = r.start * n..r.end * n;
            // SAFETY: chunks of rows are disjoint.
            let (u, g) = unsafe { (u.range(range.clone()), g.range(range)) };
            match self.0 {
                Activation::Gelu => gelu_rows(u, g, bias),
                Activation::GeluTanh => gelu_tanh_rows(u, g, bias),
                Activation::Relu => relu_rows(u, g, bias),
                Activation::Silu => silu_rows(u, g, bias),
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self.0, gpu, dst, src)
    }
}

struct Backward {
    act: Activation,
    accumulate: bool,
}

impl Kernel for Backward {
    fn name(&self) -> &'static str {
        "bias_act_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dg, db], [u]) = (dst, src) else { bail!("bias_act_backward: two destinations, one source") };
        let (n, rows) = (dg.cols, dg.rows);
        let db = db.f32()?;
        if (u.rows, u.cols) != (rows, n) || db.len() != n {
            bail!("bias_act_backward: dg [{rows}, {n}], u [{}, {}], dbias [{}]", u.rows, u.cols, db.len());
        }
        let u = u.f32()?;
        let mut partial = vec![0f32; chunk_count(rows, GRAIN) * n];
        let (dg, shared) = (Shared::new(dg.f32()?), Shared::new(&mut partial));
        for_chunks(rows, GRAIN, |c, r| {
            let range = r.start * n..r.end * n;
            // SAFETY: chunks of rows, and the chunks' partial sums, are disjoint.
            let (dg, p) = unsafe { (dg.range(range.clone()), shared.range(c * n..(c + 1) * n)) };
            match self.act {
                Activation::Gelu => gelu_backward_rows(dg, p, &u[range]),
                Activation::GeluTanh => gelu_tanh_backward_rows(dg, p, &u[range]),
                Activation::Relu => relu_backward_rows(dg, p, &u[range]),
                Activation::Silu => silu_backward_rows(dg, p, &u[range]),
            }
        });
        reduce_partials(db, &partial, self.accumulate);
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self.act, self.accumulate, gpu, dst, src)
    }
}

const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// 1/√(2π)
const PDF: f32 = 0.398_942_3;
/// √(2/π) and the cubic coefficient of the tanh form.
const TANH_A: f32 = 0.797_884_6;
const TANH_B: f32 = 0.044_715;

/// Runs a loop with `$f` standing for the function x ↦ (act(x), act'(x)) of `$act`: chosen outside the loop, which then
/// becomes vector code. The epilogues of the products use it.
macro_rules! by_activation {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            $crate::ops::gelu::Activation::Gelu => {
                let $f = $crate::ops::gelu::gelu::<FMA>;
                $body
            }
            $crate::ops::gelu::Activation::GeluTanh => {
                let $f = $crate::ops::gelu::gelu_tanh::<FMA>;
                $body
            }
            $crate::ops::gelu::Activation::Relu => {
                let $f = $crate::ops::gelu::relu::<FMA>;
                $body
            }
            $crate::ops::gelu::Activation::Silu => {
                let $f = $crate::ops::gelu::silu::<FMA>;
                $body
            }
        }
    };
}
pub(crate) use by_activation;

#[inline(always)]
pub(crate) fn gelu<const FMA: bool>(x: f32) -> (f32, f32) {
    let cdf = 0.5 + 0.5 * cpu::erf::<FMA>(x * SQRT_HALF);
    (x * cdf, madd::<FMA>(x * PDF, cpu::exp::<FMA>(-0.5 * x * x), cdf))
}

#[inline(always)]
pub(crate) fn gelu_tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    let t = cpu::tanh::<FMA>(TANH_A * madd::<FMA>(TANH_B * x * x, x, x));
    let slope = TANH_A * madd::<FMA>(3.0 * TANH_B * x, x, 1.0);
    (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
}

#[inline(always)]
pub(crate) fn relu<const FMA: bool>(x: f32) -> (f32, f32) {
    if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
}

#[inline(always)]
pub(crate) fn silu<const FMA: bool>(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + cpu::exp::<FMA>(-x));
    (x * s, s * madd::<FMA>(x, 1.0 - s, 1.0))
}

macro_rules! activation_rows {
    ($forward:ident, $backward:ident, $act:ident) => {
        simd! {
            fn $forward(u: &mut [f32], g: &mut [f32], bias: &[f32]) {
                let n = bias.len();
                for (u, g) in u.chunks_exact_mut(n).zip(g.chunks_exact_mut(n)) {
                    for j in 0..n {
                        let x = u[j] + bias[j];
                        u[j] = x;
                        g[j] = $act::<FMA>(x).0;
                    }
                }
            }
        }
        simd! {
            fn $backward(dg: &mut [f32], dbias: &mut [f32], u: &[f32]) {
                let n = dbias.len();
                for (dg, u) in dg.chunks_exact_mut(n).zip(u.chunks_exact(n)) {
                    for j in 0..n {
                        let du = dg[j] * $act::<FMA>(u[j]).1;
                        dg[j] = du;
                        dbias[j] += du;
                    }
                }
            }
        }
    };
}
activation_rows!(gelu_rows, gelu_backward_rows, gelu);
activation_rows!(gelu_tanh_rows, gelu_tanh_backward_rows, gelu_tanh);
activation_rows!(relu_rows, relu_backward_rows, relu);
activation_rows!(silu_rows, silu_backward_rows, silu);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, flat, matrix, vector};

    fn reference(act: Activation, x: f64) -> (f64, f64) {
        let f = |x: f64| match act {
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
        };
        (f(x), (f(x + 1e-5) - f(x - 1e-5)) / 2e-5)
    }

    #[test]
    fn values_and_gradients() {
        for act in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            for (t, n) in [(1, 1), (3, 7), (50, 33), (5, 48)] {
                let scale = 6.0;
                let (u, bias, dg) = ((matrix(t, n, 1) * scale).unwrap(), vector(n, 2), matrix(t, n, 3));
                let (x, b, d) = (flat(&u), flat(&bias), flat(&dg));
                let g = crate::ops::testing::zeros(t, n);
                bias_act(&u, &g, &bias, act).unwrap();
                let want: Vec<_> = (0..t * n).map(|i| reference(act, (x[i] + b[i % n]) as f64)).collect();
                close(&flat(&g), &want.iter().map(|w| w.0).collect::<Vec<_>>(), 1e-6, "g");
                let db = vector(n, 5);
                let start = flat(&db);
                bias_act_backward(&dg, &db, &u, act, true).unwrap();
                let du: Vec<f64> = (0..t * n).map(|i| d[i] as f64 * want[i].1).collect();
                close(&flat(&dg), &du, 2e-6, "du");
                let sums: Vec<f64> =
                    (0..n).map(|j| start[j] as f64 + (0..t).map(|i| du[i * n + j]).sum::<f64>()).collect();
                close(&flat(&db), &sums, 1e-5, "dbias");
            }
        }
    }
}
