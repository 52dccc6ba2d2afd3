//! Scaled dot-product attention (Vaswani et al. 2017) on packed rows: every row of the batch attends to its own tokens
//! only, by `cu_seqlens`. Nothing of size rows × rows leaves a thread's scratch; the backward pass computes the scores again.

mod cpu;

use crate::ops::dropout::Dropout;
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};

/// Which tokens see which, and how.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpec<'a> {
    /// Prefix sums of the rows' query counts, `[batch + 1]`. Equal to `cu_keys` unless only some tokens ask.
    pub cu_queries: &'a [u32],
    /// Prefix sums of the rows' lengths, `[batch + 1]`.
    pub cu_keys: &'a [u32],
    pub heads: usize,
    /// On the probabilities; each (row, head) has a key of its own.
    pub dropout: Dropout,
}

/// Queries `[queries, hidden]`, keys and values `[tokens, hidden]`; views with any row stride.
#[derive(Debug, Clone, Copy)]
pub struct Projections<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
}

/// Where the gradients of the projections go.
#[derive(Debug, Clone, Copy)]
pub enum ProjectionGrads<'a> {
    /// One `[tokens, 3·hidden]` tensor: dq, dk, dv side by side.
    Fused(&'a Tensor),
    /// `dq: [queries, hidden]` and `dkv: [tokens, 2·hidden]`.
    Split { dq: &'a Tensor, dkv: &'a Tensor },
}

/// `out[queries, hidden] = dropout(softmax(q·kᵀ / √head_dim))·v`, head by head. All in f32 or all in bf16; the products are f32
/// in both.
pub fn attention(out: &Tensor, p: Projections<'_>, spec: AttentionSpec<'_>) -> Result<()> {
    launch(&Forward(spec), &[out], &[p.q, p.k, p.v])
}

/// Gradients of [`attention`] from `dout: [queries, hidden]`; overwrites its destinations.
pub fn attention_backward(
    to: ProjectionGrads<'_>,
    dout: &Tensor,
    p: Projections<'_>,
    spec: AttentionSpec<'_>,
) -> Result<()> {
    let src = [dout, p.q, p.k, p.v];
    match to {
        ProjectionGrads::Fused(dqkv) => launch(&Backward(spec), &[dqkv], &src),
        ProjectionGrads::Split { dq, dkv } => launch(&Backward(spec), &[dq, dkv], &src),
    }
}

struct Forward<'a>(AttentionSpec<'a>);
struct Backward<'a>(AttentionSpec<'a>);

/// Checks the prefix sums and shapes; gives (queries, tokens, hidden).
fn check(name: &str, spec: &AttentionSpec<'_>, q: &Src<'_>, k: &Src<'_>, v: &Src<'_>) -> Result<(usize, usize, usize)> {
    let prefix = |cu: &[u32], n: usize| {
        cu.first() == Some(&0) && cu.last() == Some(&(n as u32)) && cu.windows(2).all(|w| w[0] <= w[1])
    };
    let hidden = q.cols;
    let empty_row = spec.cu_keys.windows(2).any(|w| w[0] == w[1]);
    if empty_row
        || spec.cu_queries.len() != spec.cu_keys.len()
        || !prefix(spec.cu_queries, q.rows)
        || !prefix(spec.cu_keys, k.rows)
    {
        bail!("{name}: prefix sums do not describe {} queries and {} tokens", q.rows, k.rows);
    }
    if (k.rows, k.cols) != (v.rows, v.cols) || k.cols != hidden || spec.heads == 0 || !hidden.is_multiple_of(spec.heads)
    {
        bail!("{name}: q [.., {hidden}], k [{}, {}], v [{}, {}], {} heads", k.rows, k.cols, v.rows, v.cols, spec.heads);
    }
    Ok((q.rows, k.rows, hidden))
}

impl Kernel for Forward<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([out], [q, k, v]) = (dst, src) else { bail!("attention: one destination, three sources") };
        let (queries, _, hidden) = check("attention", &self.0, q, k, v)?;
        if (out.rows, out.cols) != (queries, hidden) {
            bail!("attention: output [{}, {}] for [{queries}, {hidden}]", out.rows, out.cols);
        }
        by_format!(out, T => {
            let to = cpu::MatrixMut::<T> { stride: out.stride, at: out.values()?.as_mut_ptr() };
            let (q, k, v) = (source::<T>(q)?, source::<T>(k)?, source::<T>(v)?);
            // SAFETY: shapes and prefix sums were checked against the views above.
            unsafe { cpu::forward(to, q, k, v, hidden, &self.0) };
        });
        Ok(())
    }
}

fn source<T: Real>(s: &Src<'_>) -> Result<cpu::Matrix<T>> {
    Ok(cpu::Matrix { at: s.values()?.as_ptr(), stride: s.stride })
}

/// The columns of a destination from `skip` on.
fn columns<T: Real>(d: &mut Dst<'_>, skip: usize) -> Result<cpu::MatrixMut<T>> {
    Ok(cpu::MatrixMut { stride: d.stride, at: d.values::<T>()?[skip..].as_mut_ptr() })
}

impl Kernel for Backward<'_> {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let [dout, q, k, v] = src else { bail!("attention_backward: four sources") };
        let (queries, tokens, hidden) = check("attention_backward", &self.0, q, k, v)?;
        if (dout.rows, dout.cols) != (queries, hidden) {
            bail!("attention_backward: gradient [{}, {}] for [{queries}, {hidden}]", dout.rows, dout.cols);
        }
        let shapes: Vec<_> = dst.iter().map(|d| (d.rows, d.cols)).collect();
        by_format!(dout, T => {
            let to = match dst {
                [all] if shapes == [(tokens, 3 * hidden)] && queries == tokens => {
                    [columns::<T>(all, 0)?, columns(all, hidden)?, columns(all, 2 * hidden)?]
                }
                [dq, dkv] if shapes == [(queries, hidden), (tokens, 2 * hidden)] => {
                    [columns::<T>(dq, 0)?, columns(dkv, 0)?, columns(dkv, hidden)?]
                }
                _ => {
                    bail!("attention_backward: destinations {shapes:?} for {queries} queries, {tokens} tokens of {hidden}")
                }
            };
            let (dout, qkv) = (source::<T>(dout)?, [source::<T>(q)?, source::<T>(k)?, source::<T>(v)?]);
            // SAFETY: shapes and prefix sums were checked against the views above.
            unsafe { cpu::backward(to, dout, qkv, hidden, &self.0) };
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, close, flat, matrix, rounded, wide, zeros};

    /// Forward and gradients by the definition in f64, dense in the row-major [rows, hidden] arrays.
    #[allow(clippy::needless_range_loop)]
    fn reference(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        dout: &[f32],
        hidden: usize,
        spec: &AttentionSpec<'_>,
    ) -> [Vec<f64>; 4] {
        let d = hidden / spec.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let mut r = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()]];
        let [out, dq, dk, dv] = &mut r;
        for row in 0..spec.cu_keys.len() - 1 {
            let (q0, q1) = (spec.cu_queries[row] as usize, spec.cu_queries[row + 1] as usize);
            let (k0, k1) = (spec.cu_keys[row] as usize, spec.cu_keys[row + 1] as usize);
            for head in 0..spec.heads {
                let drop = cpu::head_dropout(spec, row, head);
                let at = |i: usize, c: usize| i * hidden + head * d + c;
                for i in q0..q1 {
                    let score: Vec<f64> = (k0..k1)
                        .map(|j| (0..d).map(|c| q[at(i, c)] as f64 * k[at(j, c)] as f64).sum::<f64>() * scale)
                        .collect();
                    let top = score.iter().cloned().fold(f64::MIN, f64::max);
                    let total: f64 = score.iter().map(|s| (s - top).exp()).sum();
                    let p: Vec<f64> = score.iter().map(|s| (s - top).exp() / total).collect();
                    let f: Vec<f64> =
                        (0..p.len()).map(|j| drop.factor(((i - q0) * (k1 - k0) + j) as u32) as f64).collect();
                    let dp: Vec<f64> = (0..p.len())
                        .map(|j| f[j] * (0..d).map(|c| dout[at(i, c)] as f64 * v[at(k0 + j, c)] as f64).sum::<f64>())
                        .collect();
                    let dot: f64 = (0..p.len()).map(|j| p[j] * dp[j]).sum();
                    for j in 0..p.len() {
                        let ds = p[j] * (dp[j] - dot) * scale;
                        for c in 0..d {
                            out[at(i, c)] += p[j] * f[j] * v[at(k0 + j, c)] as f64;
                            dv[at(k0 + j, c)] += p[j] * f[j] * dout[at(i, c)] as f64;
                            dq[at(i, c)] += ds * k[at(k0 + j, c)] as f64;
                            dk[at(k0 + j, c)] += ds * q[at(i, c)] as f64;
                        }
                    }
                }
            }
        }
        r
    }

    fn prefix(lengths: &[u32]) -> Vec<u32> {
        std::iter::once(0)
            .chain(lengths.iter().scan(0, |sum, l| {
                *sum += l;
                Some(*sum)
            }))
            .collect()
    }

    #[test]
    fn matches_the_definition_on_odd_shapes() {
        for (heads, d, p) in [(1, 1, 0.0), (2, 8, 0.2), (3, 16, 0.1), (2, 32, 0.0), (1, 50, 0.1), (2, 64, 0.1)] {
            let hidden = heads * d;
            let lengths = [1u32, 2, 17, 5, 33, 130];
            for queries in [lengths, [1, 1, 1, 1, 1, 1], [0, 2, 3, 0, 33, 70]] {
                let (cu_k, cu_q) = (prefix(&lengths), prefix(&queries));
                let (t, n) = (*cu_k.last().unwrap() as usize, *cu_q.last().unwrap() as usize);
                let spec = AttentionSpec { cu_queries: &cu_q, cu_keys: &cu_k, heads, dropout: Dropout::new(p, 77) };
                let (q, kv, dout) = (
                    (matrix(n, hidden, 1) * 3.0).unwrap(),
                    (matrix(t, 2 * hidden, 2) * 2.0).unwrap(),
                    matrix(n, hidden, 3),
                );
                let (k, v) = (kv.narrow(1, 0, hidden).unwrap(), kv.narrow(1, hidden, hidden).unwrap());
                let want = reference(&flat(&q), &flat(&k), &flat(&v), &flat(&dout), hidden, &spec);
                let out = matrix(n, hidden, 9);
                attention(&out, Projections { q: &q, k: &k, v: &v }, spec).unwrap();
                close(&flat(&out), &want[0], 5e-6, "out");
                let (dq, dkv) = (matrix(n, hidden, 4), matrix(t, 2 * hidden, 5));
                let to = ProjectionGrads::Split { dq: &dq, dkv: &dkv };
                attention_backward(to, &dout, Projections { q: &q, k: &k, v: &v }, spec).unwrap();
                close(&flat(&dq), &want[1], 1e-5, "dq");
                close(&flat(&dkv.narrow(1, 0, hidden).unwrap()), &want[2], 1e-5, "dk");
                close(&flat(&dkv.narrow(1, hidden, hidden).unwrap()), &want[3], 1e-5, "dv");
                if queries == lengths {
                    let dqkv = matrix(t, 3 * hidden, 6);
                    attention_backward(ProjectionGrads::Fused(&dqkv), &dout, Projections { q: &q, k: &k, v: &v }, spec)
                        .unwrap();
                    assert_eq!(flat(&dqkv.narrow(1, 0, hidden).unwrap()), flat(&dq));
                    assert_eq!(flat(&dqkv.narrow(1, hidden, 2 * hidden).unwrap()), flat(&dkv));
                }
            }
        }
    }

    #[test]
    fn large_scores_stay_finite_and_wrong_prefixes_are_refused() {
        let (q, kv) = ((matrix(4, 8, 1) * 1e4).unwrap(), (matrix(4, 8, 2) * 1e4).unwrap());
        let good = AttentionSpec { cu_queries: &[0, 4], cu_keys: &[0, 4], heads: 2, dropout: Dropout::OFF };
        let p = Projections { q: &q, k: &kv, v: &kv };
        let out = zeros(4, 8);
        attention(&out, p, good).unwrap();
        assert!(flat(&out).iter().all(|v| v.is_finite()));
        for cu in [&[0u32, 5][..], &[0, 3], &[1, 4], &[0, 3, 2, 4], &[0, 2, 2, 4], &[]] {
            assert!(attention(&out, p, AttentionSpec { cu_queries: cu, cu_keys: cu, ..good }).is_err(), "{cu:?}");
        }
    }

    /// Rows of one token and of 512; both forms of gradients. f32 is tested against the definition above.
    #[test]
    fn bf16_is_f32_rounded() {
        for (lens, heads, d) in [(vec![1, 17, 33], 2, 8), (vec![512, 1], 1, 32), (vec![31, 15], 3, 5)] {
            let hidden = heads * d;
            let cu: Vec<u32> = std::iter::once(0)
                .chain(lens.iter().scan(0, |s, l| {
                    *s += l;
                    Some(*s)
                }))
                .collect();
            let tokens = *cu.last().unwrap() as usize;
            let first: Vec<u32> = (0..=lens.len() as u32).collect();
            let qkv = bf16(&(matrix(tokens, 3 * hidden, 1) * 2.0).unwrap());
            let picked = bf16(&matrix(lens.len(), hidden, 2));
            for selected in [false, true] {
                let dropout = Dropout::new(0.2, 5);
                let cu_queries = if selected { &first } else { &cu };
                let spec = AttentionSpec { cu_queries, cu_keys: &cu, heads, dropout };
                let run = |qkv: &Tensor, picked: &Tensor| {
                    let part = |i| qkv.narrow(1, i * hidden, hidden).unwrap();
                    let q = if selected { picked.clone() } else { part(0) };
                    let zeros = |r, c| Tensor::zeros((r, c), qkv.dtype(), qkv.device()).unwrap();
                    let n = q.dims()[0];
                    let (k, v, out) = (part(1), part(2), zeros(n, hidden));
                    let p = Projections { q: &q, k: &k, v: &v };
                    attention(&out, p, spec).unwrap();
                    let dout = matrix(n, hidden, 3).to_dtype(qkv.dtype()).unwrap().to_dtype(candle_core::DType::BF16);
                    let dout = dout.unwrap().to_dtype(qkv.dtype()).unwrap();
                    let (dq, dkv) = (zeros(n, hidden), zeros(tokens, 2 * hidden));
                    attention_backward(ProjectionGrads::Split { dq: &dq, dkv: &dkv }, &dout, p, spec).unwrap();
                    if !selected {
                        let all = zeros(tokens, 3 * hidden);
                        attention_backward(ProjectionGrads::Fused(&all), &dout, p, spec).unwrap();
                        assert_eq!(flat(&all.narrow(1, 0, hidden).unwrap()), flat(&dq));
                        assert_eq!(flat(&all.narrow(1, hidden, 2 * hidden).unwrap()), flat(&dkv));
                    }
                    [out, dq, dkv]
                };
                let (got, want) = (run(&qkv, &picked), run(&wide(&qkv), &wide(&picked)));
                for ((got, want), what) in got.iter().zip(&want).zip(["out", "dq", "dkv"]) {
                    rounded(got, want, 0.0, what);
                }
            }
        }
    }
}
