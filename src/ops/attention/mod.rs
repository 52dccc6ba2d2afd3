//! Scaled dot-product attention (Vaswani et al. 2017) on packed rows: every row of the batch attends to its own tokens
//! only, by `cu_seqlens`. Nothing of size rows × rows leaves a thread's scratch; the backward pass computes the scores again.

mod cpu;
#[cfg(gpu)]
pub(super) mod cuda;
pub(super) mod tiles;

pub(super) use cpu::head_dropout;

use crate::ops::dropout::Dropout;
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::index::Index;
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
    /// Added to the scaled scores.
    pub bias: Option<DistanceBias<'a>>,
    /// Keys further than this from their query are not seen, and nothing is computed for them.
    pub window: Option<usize>,
    /// The queries' rows in the packed batch, `[queries]`, where not every token asks. A bias and a window read it.
    pub queries: Option<&'a Index>,
}

/// A bias by the distance of key and query ([`crate::ops::distance_bias`]).
#[derive(Debug, Clone, Copy)]
pub struct DistanceBias<'a> {
    /// f32 `[heads, 2·reach + 1]`: that of `key − query` is in column `key − query + reach`. Rows have up to `reach + 1` tokens.
    pub values: &'a Tensor,
    /// To which the backward pass adds their gradient, if somebody reads it.
    pub grad: Option<&'a Tensor>,
}

impl<'a> AttentionSpec<'a> {
    /// Every token asks and sees its row's.
    pub fn plain(cu_seqlens: &'a [u32], heads: usize, dropout: Dropout) -> Self {
        Self { cu_queries: cu_seqlens, cu_keys: cu_seqlens, heads, dropout, bias: None, window: None, queries: None }
    }

    /// Behind a kernel's other sources: the bias's values, and the queries' rows where anything depends on them.
    fn with_extras<const N: usize>(&self, src: [&'a Tensor; N]) -> Vec<&'a Tensor> {
        let queries = self.queries.filter(|_| self.reads_queries()).map(Index::tensor);
        src.into_iter().chain(self.bias.map(|b| b.values)).chain(queries).collect()
    }

    fn reads_queries(&self) -> bool {
        self.bias.is_some() || self.window.is_some()
    }

    /// Checks that a bias and a window find each query among its row's tokens.
    fn check_queries(&self, name: &str) -> Result<()> {
        if self.reads_queries() { self.place_queries(name) } else { Ok(()) }
    }

    /// Checks that each query is among its row's tokens.
    pub(super) fn place_queries(&self, name: &str) -> Result<()> {
        let inside = |queries: &Index| {
            let (queries, mut rows) = (queries.values(), self.cu_queries.windows(2).zip(self.cu_keys.windows(2)));
            queries.len() == self.cu_queries.last().map_or(0, |&n| n as usize)
                && rows.all(|(q, k)| {
                    let of_row = queries.get(q[0] as usize..q[1] as usize);
                    of_row.is_some_and(|of_row| of_row.iter().all(|i| (k[0]..k[1]).contains(i)))
                })
        };
        if !self.queries.map_or(self.cu_queries == self.cu_keys, inside) {
            bail!("{name}: it does not know where the queries stand");
        }
        Ok(())
    }
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

/// `out[queries, hidden] = dropout(softmax(q·kᵀ / √head_dim + bias))·v`, head by head. All in f32 or all in bf16; the products are f32
/// in both, but that tensor cores take the weights of a sum in bf16. A window leaves keys out of the softmax.
pub fn attention<'a>(out: &Tensor, p: Projections<'a>, spec: AttentionSpec<'a>) -> Result<()> {
    spec.check_queries("attention")?;
    launch(&Forward(spec), &[out], &spec.with_extras([p.q, p.k, p.v]))
}

/// Gradients of [`attention`] from `dout: [queries, hidden]`; overwrites its destinations, but adds to that of the bias.
pub fn attention_backward<'a>(
    to: ProjectionGrads<'a>,
    dout: &'a Tensor,
    p: Projections<'a>,
    spec: AttentionSpec<'a>,
) -> Result<()> {
    spec.check_queries("attention_backward")?;
    let src = spec.with_extras([dout, p.q, p.k, p.v]);
    let mut dst = match to {
        ProjectionGrads::Fused(dqkv) => vec![dqkv],
        ProjectionGrads::Split { dq, dkv } => vec![dq, dkv],
    };
    dst.extend(spec.bias.and_then(|b| b.grad));
    launch(&Backward(spec), &dst, &src)
}

struct Forward<'a>(AttentionSpec<'a>);
struct Backward<'a>(AttentionSpec<'a>);

/// Checks the prefix sums and shapes (rows, columns) of queries, keys and values; gives (queries, tokens, hidden).
pub(super) fn check(
    name: &str,
    spec: &AttentionSpec<'_>,
    (queries, hidden): (usize, usize),
    k: (usize, usize),
    v: (usize, usize),
) -> Result<(usize, usize, usize)> {
    let prefix = |cu: &[u32], n: usize| {
        cu.first() == Some(&0) && cu.last() == Some(&(n as u32)) && cu.windows(2).all(|w| w[0] <= w[1])
    };
    let empty_row = spec.cu_keys.windows(2).any(|w| w[0] == w[1]);
    if empty_row
        || spec.cu_queries.len() != spec.cu_keys.len()
        || !prefix(spec.cu_queries, queries)
        || !prefix(spec.cu_keys, k.0)
    {
        bail!("{name}: prefix sums do not describe {queries} queries and {} tokens", k.0);
    }
    if k != v || k.1 != hidden || spec.heads == 0 || !hidden.is_multiple_of(spec.heads) {
        bail!("{name}: q [.., {hidden}], k [{}, {}], v [{}, {}], {} heads", k.0, k.1, v.0, v.1, spec.heads);
    }
    Ok((queries, k.0, hidden))
}

/// Checks a bias's values (rows, columns, stride) against the rows.
fn check_bias(name: &str, spec: &AttentionSpec<'_>, values: (usize, usize, usize)) -> Result<()> {
    let (rows, cols, stride) = values;
    let longest = spec.cu_keys.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
    if rows != spec.heads || cols.is_multiple_of(2) || stride != cols || longest > cols / 2 + 1 {
        bail!("{name}: a bias [{rows}, {cols}] for {} heads and rows of {longest} tokens", spec.heads);
    }
    Ok(())
}

/// What [`AttentionSpec::with_extras`] put behind the other sources, as the bodies read it.
fn extras<'a>(name: &str, spec: &AttentionSpec<'_>, src: &[Src<'a>]) -> Result<cpu::Extras<'a>> {
    let (bias, src) = match (spec.bias, src.split_first()) {
        (None, _) => (None, src),
        (Some(_), Some((values, rest))) => (Some(bias(name, spec, values)?), rest),
        (Some(_), None) => bail!("{name}: a bias without values"),
    };
    let queries = src.first().map(Src::u32).transpose()?;
    Ok(cpu::Extras { bias, window: spec.window, queries, first: 0 })
}

fn bias<'a>(name: &str, spec: &AttentionSpec<'_>, values: &Src<'a>) -> Result<cpu::Bias<'a>> {
    let reach = values.cols / 2;
    check_bias(name, spec, (values.rows, values.cols, values.stride))?;
    Ok(cpu::Bias { values: values.f32()?, reach })
}

impl Kernel for Forward<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([out], [q, k, v, rest @ ..]) = (dst, src) else { bail!("attention: one destination, three sources") };
        let (queries, _, hidden) = check("attention", &self.0, (q.rows, q.cols), (k.rows, k.cols), (v.rows, v.cols))?;
        let extras = extras("attention", &self.0, rest)?;
        if (out.rows, out.cols) != (queries, hidden) {
            bail!("attention: output [{}, {}] for [{queries}, {hidden}]", out.rows, out.cols);
        }
        by_format!(out, T => {
            let to = tiles::MatrixMut::<T> { stride: out.stride, at: out.values()?.as_mut_ptr() };
            let (q, k, v) = (source::<T>(q)?, source::<T>(k)?, source::<T>(v)?);
            // SAFETY: shapes and prefix sums were checked against the views above.
            unsafe { cpu::forward(to, q, k, v, hidden, &self.0, extras) };
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self, gpu, dst, src)
    }
}

pub(super) fn source<T: Real>(s: &Src<'_>) -> Result<tiles::Matrix<T>> {
    Ok(tiles::Matrix { at: s.values()?.as_ptr(), stride: s.stride })
}

/// The columns of a destination from `skip` on.
pub(super) fn columns<T: Real>(d: &mut Dst<'_>, skip: usize) -> Result<tiles::MatrixMut<T>> {
    Ok(tiles::MatrixMut { stride: d.stride, at: d.values::<T>()?[skip..].as_mut_ptr() })
}

impl Kernel for Backward<'_> {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let [dout, q, k, v, rest @ ..] = src else { bail!("attention_backward: four sources") };
        let (queries, tokens, hidden) =
            check("attention_backward", &self.0, (q.rows, q.cols), (k.rows, k.cols), (v.rows, v.cols))?;
        let extras = extras("attention_backward", &self.0, rest)?;
        let (dst, dbias) = match (self.0.bias.and_then(|b| b.grad), dst.split_last_mut()) {
            (Some(_), Some((last, dst))) => (dst, Some(last)),
            _ => (dst, None),
        };
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
            unsafe { cpu::backward(to, dout, qkv, hidden, &self.0, extras, dbias)? };
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self, gpu, dst, src)
    }
}

#[cfg(test)]
mod bf16_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::on_gpu;
    use crate::ops::testing::{bf16, close, flat, matrix, near, rounded, wide, zeros};

    /// Forward and gradients by the definition in f64, dense in the row-major [rows, hidden] arrays.
    #[allow(clippy::needless_range_loop)]
    fn reference(
        q: &[f32],
        k: &[f32],
        v: &[f32],
        dout: &[f32],
        hidden: usize,
        spec: &AttentionSpec<'_>,
    ) -> [Vec<f64>; 5] {
        let d = hidden / spec.heads;
        let scale = 1.0 / (d as f64).sqrt();
        let bias = spec.bias.map_or(vec![], |b| flat(b.values));
        let queries = spec.queries.map(Index::values);
        let columns = bias.len() / spec.heads;
        let mut r =
            [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()], vec![0.0; bias.len()]];
        let [out, dq, dk, dv, dbias] = &mut r;
        for row in 0..spec.cu_keys.len() - 1 {
            let (q0, q1) = (spec.cu_queries[row] as usize, spec.cu_queries[row + 1] as usize);
            let (k0, k1) = (spec.cu_keys[row] as usize, spec.cu_keys[row + 1] as usize);
            for head in 0..spec.heads {
                let drop = cpu::head_dropout(spec, row, head);
                let at = |i: usize, c: usize| i * hidden + head * d + c;
                for i in q0..q1 {
                    let mut score: Vec<f64> = (k0..k1)
                        .map(|j| (0..d).map(|c| q[at(i, c)] as f64 * k[at(j, c)] as f64).sum::<f64>() * scale)
                        .collect();
                    let place = queries.as_ref().map_or(i, |q| q[i] as usize);
                    let distance = |j: usize| head * columns + columns / 2 + k0 + j - place;
                    let near = |j: usize| spec.window.is_none_or(|w| (k0 + j).abs_diff(place) <= w);
                    if columns > 0 {
                        score.iter_mut().enumerate().for_each(|(j, s)| *s += bias[distance(j)] as f64);
                    }
                    score.iter_mut().enumerate().filter(|(j, _)| !near(*j)).for_each(|(_, s)| *s = f64::NEG_INFINITY);
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
                        if columns > 0 {
                            dbias[distance(j)] += p[j] * (dp[j] - dot);
                        }
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
        for (heads, d, p) in [
            (1, 1, 0.0),
            (2, 8, 0.2),
            (3, 16, 0.1),
            (2, 32, 0.0),
            (1, 50, 0.1),
            (2, 64, 0.1),
            (1, 100, 0.0),
            (1, 250, 0.1),
        ] {
            let hidden = heads * d;
            let lengths = [1u32, 2, 17, 5, 33, 130];
            for queries in [lengths, [1, 1, 1, 1, 1, 1], [0, 2, 3, 0, 33, 70]] {
                let (cu_k, cu_q) = (prefix(&lengths), prefix(&queries));
                let (t, n) = (*cu_k.last().unwrap() as usize, *cu_q.last().unwrap() as usize);
                let spec = AttentionSpec {
                    cu_queries: &cu_q,
                    cu_keys: &cu_k,
                    heads,
                    dropout: Dropout::new(p, 77),
                    bias: None,
                    window: None,
                    queries: None,
                };
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
    fn a_bias_by_distance_and_its_gradient() {
        for (heads, d, p) in [(2, 8, 0.2), (3, 5, 0.0), (1, 64, 0.1)] {
            let hidden = heads * d;
            let lengths = [1u32, 70, 3, 33];
            // The tokens that ask: all, the first of each row, or any.
            let some: (&[u32], &[u32]) = (&[0, 2, 1, 3], &[5, 68, 72, 75, 100, 106]);
            let every: Vec<u32> = (0..107).collect();
            for (counts, asking) in [(&lengths[..], &every[..]), (&[1; 4], &[0, 1, 71, 74]), some] {
                let (cu_k, cu_q) = (prefix(&lengths), prefix(counts));
                let n = asking.len();
                let (values, grad) = ((matrix(heads, 2 * 80 + 1, 7) * 2.0).unwrap(), matrix(heads, 161, 8));
                let queries = Index::new(asking, values.device()).unwrap();
                let queries = (n < every.len()).then_some(&queries);
                let spec = |grad| AttentionSpec {
                    cu_queries: &cu_q,
                    cu_keys: &cu_k,
                    heads,
                    dropout: Dropout::new(p, 3),
                    bias: Some(DistanceBias { values: &values, grad }),
                    window: None,
                    queries,
                };
                let (q, kv, dout) = (matrix(n, hidden, 1), matrix(107, 2 * hidden, 2), matrix(n, hidden, 3));
                let (k, v) = (kv.narrow(1, 0, hidden).unwrap(), kv.narrow(1, hidden, hidden).unwrap());
                let want = reference(&flat(&q), &flat(&k), &flat(&v), &flat(&dout), hidden, &spec(None));
                let (out, p) = (matrix(n, hidden, 9), Projections { q: &q, k: &k, v: &v });
                attention(&out, p, spec(None)).unwrap();
                close(&flat(&out), &want[0], 5e-6, "out");
                let (dq, dkv) = (matrix(n, hidden, 4), matrix(107, 2 * hidden, 5));
                let start: Vec<f64> = flat(&grad).iter().zip(&want[4]).map(|(&g, w)| g as f64 + w).collect();
                let to = ProjectionGrads::Split { dq: &dq, dkv: &dkv };
                attention_backward(to, &dout, p, spec(Some(&grad))).unwrap();
                close(&flat(&dq), &want[1], 1e-5, "dq");
                close(&flat(&dkv.narrow(1, 0, hidden).unwrap()), &want[2], 1e-5, "dk");
                close(&flat(&dkv.narrow(1, hidden, hidden).unwrap()), &want[3], 1e-5, "dv");
                close(&flat(&grad), &start, 1e-5, "dbias");
                let kept = flat(&dkv);
                attention_backward(to, &dout, p, spec(None)).unwrap();
                assert_eq!(flat(&dkv), kept);
                // Rows that reach further than the values, and queries outside their rows.
                let short = matrix(heads, 2 * 68 + 1, 7);
                let wrong = Index::new(&vec![0; n], values.device()).unwrap();
                let bias = Some(DistanceBias { values: &short, grad: None });
                assert!(attention(&out, p, AttentionSpec { bias, ..spec(None) }).is_err());
                assert!(attention(&out, p, AttentionSpec { queries: Some(&wrong), ..spec(None) }).is_err());
            }
        }
    }

    /// Windows of one key to more than a row, over rows shorter and longer than a block of queries.
    #[test]
    fn a_window_leaves_far_keys_out() {
        let lengths = [1u32, 15, 17, 31, 200, 33];
        let (cu_k, tokens) = (prefix(&lengths), 297);
        let every: Vec<u32> = (0..tokens).collect();
        let some: (&[u32], &[u32]) = (&[1, 0, 2, 1, 5, 1], &[0, 16, 32, 60, 64, 100, 130, 200, 263, 270]);
        for (window, heads, d, p) in
            [(0, 1, 4, 0.0), (4, 2, 8, 0.2), (16, 1, 5, 0.1), (64, 1, 16, 0.1), (500, 2, 8, 0.0)]
        {
            let hidden = heads * d;
            for (counts, asking) in [(&lengths[..], &every[..]), (&[1; 6], &[0, 1, 16, 33, 64, 264]), some] {
                let (cu_q, n) = (prefix(counts), asking.len());
                let (values, grad) = (matrix(heads, 2 * 210 + 1, 7), zeros(heads, 421));
                let queries = Index::new(asking, values.device()).unwrap();
                let bias = (window == 16).then_some(DistanceBias { values: &values, grad: Some(&grad) });
                let spec = AttentionSpec {
                    cu_queries: &cu_q,
                    bias,
                    window: Some(window),
                    queries: (n < every.len()).then_some(&queries),
                    ..AttentionSpec::plain(&cu_k, heads, Dropout::new(p, 3))
                };
                let (q, kv, dout) =
                    (matrix(n, hidden, 1), matrix(tokens as usize, 2 * hidden, 2), matrix(n, hidden, 3));
                let (k, v) = (kv.narrow(1, 0, hidden).unwrap(), kv.narrow(1, hidden, hidden).unwrap());
                let want = reference(&flat(&q), &flat(&k), &flat(&v), &flat(&dout), hidden, &spec);
                let (out, p) = (matrix(n, hidden, 9), Projections { q: &q, k: &k, v: &v });
                attention(&out, p, spec).unwrap();
                close(&flat(&out), &want[0], 5e-6, "out");
                let (dq, dkv) = (matrix(n, hidden, 4), matrix(tokens as usize, 2 * hidden, 5));
                attention_backward(ProjectionGrads::Split { dq: &dq, dkv: &dkv }, &dout, p, spec).unwrap();
                close(&flat(&dq), &want[1], 1e-5, "dq");
                close(&flat(&dkv.narrow(1, 0, hidden).unwrap()), &want[2], 1e-5, "dk");
                close(&flat(&dkv.narrow(1, hidden, hidden).unwrap()), &want[3], 1e-5, "dv");
                if window == 16 {
                    close(&flat(&grad), &want[4], 1e-5, "dbias");
                }
                let lost = AttentionSpec { queries: None, ..spec };
                assert_eq!(attention(&out, p, lost).is_err(), n < every.len());
            }
        }
    }

    #[test]
    fn large_scores_stay_finite_and_wrong_prefixes_are_refused() {
        let (q, kv) = ((matrix(4, 8, 1) * 1e4).unwrap(), (matrix(4, 8, 2) * 1e4).unwrap());
        let good = AttentionSpec::plain(&[0, 4], 2, Dropout::OFF);
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
                let spec = AttentionSpec { cu_queries, ..AttentionSpec::plain(&cu, heads, dropout) };
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
                    let tensor_cores = on_gpu(got.device()) && d % 8 == 0;
                    if tensor_cores { near(got, want, what) } else { rounded(got, want, 0.0, what) }
                }
            }
        }
    }
}
