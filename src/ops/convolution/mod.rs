//! What a convolution over the tokens of each row is made of, beside its product: the neighbours of every token as a matrix
//! (`im2col`), the way back, and dropout and activation in the order that DeBERTa-v2 has them (He et al. 2021). Beyond a row's
//! ends there are zeros, as padding has them.
//!
//! A weight `[out, in, kernel]` lies in a checkpoint as `[out, in·kernel]`, so the columns here are in that order and the
//! convolution is a linear layer of them.

#[cfg(gpu)]
mod cuda;

use crate::ops::cpu::{self, Shared, for_chunks, simd};
use crate::ops::dropout::Dropout;
use crate::ops::gelu::{Activation, by_activation};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::index::Index;
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};

/// Rows a thread gets at least.
const GRAIN: usize = 4;

/// Whose neighbours are gathered.
#[derive(Debug, Clone, Copy)]
pub struct Neighbours<'a> {
    /// Prefix sums of the rows' lengths, `[batch + 1]`.
    pub cu_seqlens: &'a [u32],
    /// The tokens that are read above, ascending; `None`: all.
    pub queries: Option<&'a Index>,
    /// An odd number: a token, and as many to each side.
    pub kernel: usize,
}

/// `col[q, c·kernel + j] = x[t + j − kernel / 2, c]` for the `q`-th token `t` that is read, 0 outside its row;
/// `x: [tokens, hidden]`, `col: [queries, hidden·kernel]` in f32 or bf16.
pub fn unfold<'a>(col: &Tensor, x: &'a Tensor, of: Neighbours<'a>) -> Result<()> {
    launch(&Unfold(of), &[col], &of.with_queries(x))
}

/// Adds to `dx: [tokens, hidden]` what `dcol: [queries, hidden·kernel]` says; backward of [`unfold`].
pub fn fold<'a>(dx: &Tensor, dcol: &'a Tensor, of: Neighbours<'a>) -> Result<()> {
    launch(&Fold(of), &[dx], &of.with_queries(dcol))
}

impl<'a> Neighbours<'a> {
    /// A source, and behind it the tokens that are read where these are not all.
    fn with_queries(&self, src: &'a Tensor) -> Vec<&'a Tensor> {
        std::iter::once(src).chain(self.queries.map(Index::tensor)).collect()
    }

    /// The bounds of every token's row.
    fn rows(&self) -> Vec<(usize, usize)> {
        let row = |w: &[u32]| std::iter::repeat_n((w[0] as usize, w[1] as usize), (w[1] - w[0]) as usize);
        self.cu_seqlens.windows(2).flat_map(row).collect()
    }

    /// The tokens that are read.
    fn tokens(&self, all: usize) -> Vec<usize> {
        self.queries.map_or_else(|| (0..all).collect(), |q| q.values().iter().map(|&t| t as usize).collect())
    }

    fn check(&self, name: &str, x: (usize, usize, usize), col: (usize, usize, usize)) -> Result<()> {
        let ((tokens, hidden, stride), cu) = (x, self.cu_seqlens);
        let queries = self.queries.map_or(tokens, Index::len);
        let is_prefix = cu.first() == Some(&0)
            && cu.last().is_some_and(|&n| n as usize == tokens)
            && cu.windows(2).all(|w| w[0] <= w[1]);
        let wide = (queries, hidden * self.kernel, hidden * self.kernel);
        if !is_prefix || self.kernel.is_multiple_of(2) || col != wide || stride != hidden {
            bail!("{name}: [{tokens}, {hidden}] with a kernel of {} is not {col:?}", self.kernel);
        }
        self.queries.map_or(Ok(()), |q| q.expect(name, queries, tokens))
    }
}

struct Unfold<'a>(Neighbours<'a>);

impl Kernel for Unfold<'_> {
    fn name(&self) -> &'static str {
        "unfold"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([col], [x, ..], of) = (dst, src, &self.0) else { bail!("unfold: one destination, one source or two") };
        of.check("unfold", (x.rows, x.cols, x.stride), (col.rows, col.cols, col.stride))?;
        let (h, k, rows, tokens) = (x.cols, of.kernel, of.rows(), of.tokens(x.rows));
        by_format!(col, T => {
            let (x, col) = (x.values::<T>()?, Shared::new(col.values::<T>()?));
            for_chunks(tokens.len(), GRAIN, |_, r| {
                // SAFETY: chunks of rows are disjoint.
                let col = unsafe { col.range(r.start * h * k..r.end * h * k) };
                for (col, &t) in col.chunks_exact_mut(h * k).zip(&tokens[r]) {
                    for j in 0..k {
                        let column = col[j..].iter_mut().step_by(k);
                        match neighbour(t, j, k, rows[t]) {
                            Some(s) => column.zip(&x[s * h..(s + 1) * h]).for_each(|(to, from)| *to = *from),
                            None => column.for_each(|to| *to = T::from_f32(0.0)),
                        }
                    }
                }
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::unfold(&self.0, gpu, dst, src)
    }
}

/// The `j`-th of a token's `k` neighbours, if it lies in the same row.
fn neighbour(token: usize, j: usize, k: usize, (start, end): (usize, usize)) -> Option<usize> {
    (token + j).checked_sub(k / 2).filter(|s| (start..end).contains(s))
}

struct Fold<'a>(Neighbours<'a>);

impl Kernel for Fold<'_> {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dx], [dcol, ..], of) = (dst, src, &self.0) else { bail!("fold: one destination, one source or two") };
        of.check("fold", (dx.rows, dx.cols, dx.stride), (dcol.rows, dcol.cols, dcol.stride))?;
        let (h, k, rows, n) = (dx.cols, of.kernel, of.rows(), dx.rows);
        let mut place = vec![None; n];
        of.tokens(n).into_iter().enumerate().for_each(|(q, t)| place[t] = Some(q));
        by_format!(dx, T => {
            let (dcol, dx) = (dcol.values::<T>()?, Shared::new(dx.values::<T>()?));
            for_chunks(n, GRAIN, |_, r| {
                let mut sum = vec![0f32; h];
                for s in r {
                    // SAFETY: chunks of rows are disjoint.
                    let dx = unsafe { dx.range(s * h..(s + 1) * h) };
                    dx.iter().zip(&mut sum).for_each(|(dx, sum)| *sum = dx.to_f32());
                    // The tokens whose j-th neighbour this is, seen from it.
                    for j in 0..k {
                        let Some(q) = neighbour(s, k - 1 - j, k, rows[s]).and_then(|t| place[t]) else { continue };
                        let column = dcol[q * h * k + j..(q + 1) * h * k].iter().step_by(k);
                        sum.iter_mut().zip(column).for_each(|(sum, d)| *sum += d.to_f32());
                    }
                    dx.iter_mut().zip(&sum).for_each(|(dx, sum)| *dx = T::from_f32(*sum));
                }
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::fold(&self.0, gpu, dst, src)
    }
}

/// `config.json`'s `conv_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvolutionActivation {
    Tanh,
    Of(Activation),
}

/// `u += bias`, `y = act(dropout(u))`; `u, y: [tokens, hidden]` in f32 or bf16, `u` kept for the backward pass.
pub fn bias_dropped_act(
    u: &Tensor,
    y: &Tensor,
    bias: &Tensor,
    act: ConvolutionActivation,
    dropout: Dropout,
) -> Result<()> {
    launch(&Forward { act, dropout }, &[u, y], &[bias])
}

/// `du = dropout(dy ∘ act'(dropout(u)))` from `dy` and the `u` that [`bias_dropped_act`] left.
pub fn bias_dropped_act_backward(
    du: &Tensor,
    dy: &Tensor,
    u: &Tensor,
    act: ConvolutionActivation,
    dropout: Dropout,
) -> Result<()> {
    launch(&Backward { act, dropout }, &[du], &[dy, u])
}

struct Forward {
    act: ConvolutionActivation,
    dropout: Dropout,
}

impl Kernel for Forward {
    fn name(&self) -> &'static str {
        "bias_dropped_act"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([u, y], [bias]) = (dst, src) else { bail!("bias_dropped_act: two destinations, one source") };
        let (rows, n, bias) = (u.rows, u.cols, bias.f32()?);
        if (y.rows, y.cols, y.stride, u.stride, bias.len()) != (rows, n, n, n, n) {
            bail!("bias_dropped_act: u [{rows}, {n}], y [{}, {}], bias [{}]", y.rows, y.cols, bias.len());
        }
        by_format!(y, T => {
            let (u, y) = (Shared::new(u.values::<T>()?), Shared::new(y.values::<T>()?));
            for_chunks(rows, GRAIN, |_, r| {
                let range = r.start * n..r.end * n;
                // SAFETY: chunks of rows are disjoint.
                let (u, y) = unsafe { (u.range(range.clone()), y.range(range)) };
                forward_rows(u, y, bias, self.act, self.dropout, r.start);
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self, gpu, dst, src)
    }
}

struct Backward {
    act: ConvolutionActivation,
    dropout: Dropout,
}

impl Kernel for Backward {
    fn name(&self) -> &'static str {
        "bias_dropped_act_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([du], [dy, u]) = (dst, src) else { bail!("bias_dropped_act_backward: one destination, two sources") };
        let (rows, n) = (du.rows, du.cols);
        if [(dy.rows, dy.cols, dy.stride), (u.rows, u.cols, u.stride)] != [(rows, n, n); 2] || du.stride != n {
            bail!("bias_dropped_act_backward: du [{rows}, {n}], dy [{}, {}]", dy.rows, dy.cols);
        }
        by_format!(du, T => {
            let (du, dy, u) = (Shared::new(du.values::<T>()?), dy.values::<T>()?, u.values::<T>()?);
            for_chunks(rows, GRAIN, |_, r| {
                let range = r.start * n..r.end * n;
                // SAFETY: chunks of rows are disjoint.
                let du = unsafe { du.range(range.clone()) };
                backward_rows(du, &dy[range.clone()], &u[range], n, self.act, self.dropout, r.start);
            });
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self, gpu, dst, src)
    }
}

/// (tanh(x), tanh'(x))
#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    let t = cpu::tanh::<FMA>(x);
    (t, 1.0 - t * t)
}

/// As [`by_activation`], with tanh too.
macro_rules! by_convolution_activation {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            ConvolutionActivation::Tanh => {
                let $f = tanh::<FMA>;
                $body
            }
            ConvolutionActivation::Of(act) => by_activation!(act, $f => $body),
        }
    };
}

simd! {
    fn forward_rows[T](
        u: &mut [T], y: &mut [T], bias: &[f32], act: ConvolutionActivation, drop: Dropout, first: usize,
    ) {
        let n = bias.len();
        by_convolution_activation!(act, f => {
            for (r, (u, y)) in u.chunks_exact_mut(n).zip(y.chunks_exact_mut(n)).enumerate() {
                let (base, off) = (((first + r) * n) as u32, drop.is_off());
                for j in 0..n {
                    u[j] = T::from_f32(u[j].to_f32() + bias[j]);
                    let kept = if off { 1.0 } else { drop.factor(base.wrapping_add(j as u32)) };
                    y[j] = T::from_f32(f(u[j].to_f32() * kept).0);
                }
            }
        })
    }
}

simd! {
    fn backward_rows[T](
        du: &mut [T], dy: &[T], u: &[T], n: usize, act: ConvolutionActivation, drop: Dropout, first: usize,
    ) {
        by_convolution_activation!(act, f => {
            for (r, ((du, dy), u)) in du.chunks_exact_mut(n).zip(dy.chunks_exact(n)).zip(u.chunks_exact(n)).enumerate() {
                let (base, off) = (((first + r) * n) as u32, drop.is_off());
                for j in 0..n {
                    let kept = if off { 1.0 } else { drop.factor(base.wrapping_add(j as u32)) };
                    du[j] = T::from_f32(dy[j].to_f32() * f(u[j].to_f32() * kept).1 * kept);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, flat, matrix, rounded, values, vector, wide, zeros};

    const CU: [u32; 5] = [0, 1, 6, 8, 17];

    /// Every case: the kernel, and the queries if they are not all tokens.
    fn cases() -> Vec<(usize, Option<Index>)> {
        let some = || Index::new(&[0, 1, 5, 6, 9, 16], &candle_core::Device::Cpu).unwrap();
        [1, 3, 5, 7].into_iter().flat_map(|k| [(k, None), (k, Some(some()))]).collect()
    }

    #[test]
    fn neighbours_of_the_same_row_and_zeros_beyond() {
        for (kernel, queries) in cases() {
            let of = Neighbours { cu_seqlens: &CU, queries: queries.as_ref(), kernel };
            let (h, n) = (3, queries.as_ref().map_or(17, Index::len));
            let (x, col) = (matrix(17, h, 1), matrix(n, h * kernel, 2));
            unfold(&col, &x, of).unwrap();
            let (x, got) = (flat(&x), flat(&col));
            let row = |t: usize| CU.partition_point(|&start| start as usize <= t);
            for (q, t) in of.tokens(17).into_iter().enumerate() {
                for (c, j) in (0..h).flat_map(|c| (0..kernel).map(move |j| (c, j))) {
                    let s = t as isize + j as isize - (kernel / 2) as isize;
                    let inside = (0..17).contains(&s) && row(s as usize) == row(t);
                    let want = if inside { x[s as usize * h + c] } else { 0.0 };
                    assert_eq!(got[(q * h + c) * kernel + j], want, "{kernel} {q} {c} {j}");
                }
            }
        }
    }

    /// ⟨unfold(x), y⟩ = ⟨x, fold(y)⟩, and what was there is added to.
    #[test]
    fn fold_is_the_transpose() {
        for (kernel, queries) in cases() {
            let of = Neighbours { cu_seqlens: &CU, queries: queries.as_ref(), kernel };
            let n = queries.as_ref().map_or(17, Index::len);
            for h in [5, 16] {
                let (x, y, col, dx) =
                    (matrix(17, h, 1), matrix(n, h * kernel, 2), zeros(n, h * kernel), matrix(17, h, 3));
                let before = flat(&dx);
                unfold(&col, &x, of).unwrap();
                fold(&dx, &y, of).unwrap();
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                let added: Vec<f32> = flat(&dx).iter().zip(&before).map(|(a, b)| a - b).collect();
                let (a, b) = (dot(&flat(&col), &flat(&y)), dot(&flat(&x), &added));
                assert!((a - b).abs() < 1e-4, "{kernel} {h}: {a} {b}");
                let half = bf16(&matrix(17, h, 3));
                let want = wide(&half);
                fold(&half, &bf16(&y), of).unwrap();
                fold(&want, &wide(&bf16(&y)), of).unwrap();
                rounded(&half, &want, 0.0, "dx");
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let (x, col) = (zeros(17, 4), zeros(17, 12));
        let of = Neighbours { cu_seqlens: &CU, queries: None, kernel: 3 };
        unfold(&col, &x, of).unwrap();
        for of in [Neighbours { kernel: 2, ..of }, Neighbours { cu_seqlens: &CU[..4], ..of }] {
            assert!(unfold(&col, &x, of).is_err() && fold(&x, &col, of).is_err());
        }
        assert!(unfold(&zeros(17, 8), &x, of).is_err());
    }

    #[test]
    fn values_and_slopes() {
        let all = [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu];
        for act in all.map(ConvolutionActivation::Of).into_iter().chain([ConvolutionActivation::Tanh]) {
            for (t, n, p) in [(1, 1, 0.0), (3, 7, 0.3), (50, 33, 0.0), (5, 48, 0.2)] {
                let (start, bias, dy, drop) =
                    ((matrix(t, n, 1) * 3.0).unwrap(), vector(n, 2), matrix(t, n, 3), Dropout::new(p, 4));
                let run = |start: &[f32]| {
                    let u = Tensor::from_slice(start, (t, n), bias.device()).unwrap();
                    let y = zeros(t, n);
                    bias_dropped_act(&u, &y, &bias, act, drop).unwrap();
                    (u, y)
                };
                let (u, y) = run(&flat(&start));
                let biased: Vec<f32> = flat(&start).iter().enumerate().map(|(i, u)| u + flat(&bias)[i % n]).collect();
                assert_eq!(flat(&u), biased);
                if act == ConvolutionActivation::Tanh {
                    let want: Vec<f64> =
                        (0u32..).zip(&biased).map(|(i, u)| f64::from(u * drop.factor(i)).tanh()).collect();
                    crate::ops::testing::close(&flat(&y), &want, 1e-6, "y");
                }
                let du = zeros(t, n);
                bias_dropped_act_backward(&du, &dy, &u, act, drop).unwrap();
                // Along a direction: the sum of dy·y moves by du·direction.
                let (direction, w) = (values(t * n, 8), flat(&dy));
                let at = |by: f32| {
                    let moved: Vec<f32> = flat(&start).iter().zip(&direction).map(|(u, d)| u + by * d).collect();
                    flat(&run(&moved).1).iter().zip(&w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                };
                let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
                let want: f64 = flat(&du).iter().zip(&direction).map(|(a, b)| f64::from(a * b)).sum();
                let size = w.iter().map(|v| f64::from(v.abs())).sum::<f64>();
                assert!((slope - want).abs() <= 1e-3 * size, "{act:?} {t} {n}: {slope} {want}");

                let (half, half_y, half_du) = (bf16(&start), bf16(&y), bf16(&dy));
                bias_dropped_act(&half, &half_y, &bias, act, drop).unwrap();
                let (exact, exact_y, exact_du) = (wide(&half), zeros(t, n), zeros(t, n));
                bias_dropped_act(&exact, &exact_y, &zeros(1, n).flatten_all().unwrap(), act, drop).unwrap();
                rounded(&half_y, &exact_y, 0.0, "y");
                bias_dropped_act_backward(&half_du, &bf16(&dy), &half, act, drop).unwrap();
                bias_dropped_act_backward(&exact_du, &wide(&bf16(&dy)), &exact, act, drop).unwrap();
                rounded(&half_du, &exact_du, 0.0, "du");
            }
        }
    }
}
