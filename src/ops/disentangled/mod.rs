//! Disentangled attention (He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention") on packed rows:
//! to the products of queries and keys come those of queries with the keys of relative positions (content to position) and of
//! keys with the queries of relative positions (position to content). Positions are numbered by the distance of query and
//! key. As in [`crate::ops::attention`] nothing of size rows × rows leaves a thread's scratch.

mod cpu;
#[cfg(gpu)]
mod cuda;
#[cfg(test)]
mod tests;

pub use cpu::GROUPS;

use crate::ops::attention::{AttentionSpec, ProjectionGrads, Projections, check, columns, source};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::index::Index;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};

/// Which tokens see which, and where distances find their positions.
#[derive(Debug, Clone, Copy)]
pub struct DisentangledSpec<'a> {
    /// Without bias or window.
    pub attention: AttentionSpec<'a>,
    /// The position of each `query − key` from `−reach` to `reach`, `[2·reach + 1]`, never falling. Rows have up to
    /// `reach + 1` tokens.
    pub distances: &'a [u32],
    /// Whether queries meet the keys of positions.
    pub content_to_position: bool,
    /// Whether keys meet the queries of positions.
    pub position_to_content: bool,
}

impl DisentangledSpec<'_> {
    /// How many projections of positions there are.
    pub fn sides(&self) -> usize {
        usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }
}

/// `out[queries, hidden] = dropout(softmax((q·kᵀ + q·pkᵀ + pq·kᵀ) / √(head_dim·(1 + sides))))·v`, head by head, where
/// `pk` and `pq` are those of each query's and key's distance. `positions: [positions, sides·hidden]` holds the queries of
/// positions, then the keys, as far as there are such. All in f32 or all in bf16; the products are f32 in both.
pub fn disentangled_attention<'a>(
    out: &Tensor,
    p: Projections<'a>,
    positions: &'a Tensor,
    spec: DisentangledSpec<'a>,
) -> Result<()> {
    spec.attention.place_queries("disentangled_attention")?;
    launch(&Forward(spec), &[out], &with_queries([p.q, p.k, p.v, positions], &spec))
}

/// Gradients of [`disentangled_attention`] from `dout: [queries, hidden]`, `dpositions` that of the positions; overwrites its
/// destinations.
pub fn disentangled_attention_backward<'a>(
    to: ProjectionGrads<'a>,
    dpositions: &'a Tensor,
    dout: &'a Tensor,
    p: Projections<'a>,
    positions: &'a Tensor,
    spec: DisentangledSpec<'a>,
) -> Result<()> {
    spec.attention.place_queries("disentangled_attention_backward")?;
    let mut dst = match to {
        ProjectionGrads::Fused(dqkv) => vec![dqkv],
        ProjectionGrads::Split { dq, dkv } => vec![dq, dkv],
    };
    dst.push(dpositions);
    launch(&Backward(spec), &dst, &with_queries([dout, p.q, p.k, p.v, positions], &spec))
}

/// The bucket of a distance of query and key: the distance itself up to half of `buckets`, then so many for all up to
/// `longest` as f32 logarithms give; beyond, it goes on. `longest` is above half of `buckets` plus 1.
pub fn log_bucket(distance: i64, buckets: usize, longest: usize) -> i64 {
    let mid = (buckets / 2) as i64;
    if distance.abs() <= mid {
        return distance;
    }
    let part = (distance.abs() as f32 / mid as f32).ln() / ((longest - 1) as f32 / mid as f32).ln();
    ((part * (mid - 1) as f32).ceil() as i64 + mid) * distance.signum()
}

fn with_queries<'a, const N: usize>(src: [&'a Tensor; N], spec: &DisentangledSpec<'a>) -> Vec<&'a Tensor> {
    src.into_iter().chain(spec.attention.queries.map(Index::tensor)).collect()
}

struct Forward<'a>(DisentangledSpec<'a>);
struct Backward<'a>(DisentangledSpec<'a>);

/// Checks all shapes; gives (queries, tokens, hidden) and how distances are found.
fn prepare<'a>(
    name: &str,
    spec: &DisentangledSpec<'a>,
    [q, k, v, positions]: [&Src<'a>; 4],
    queries: Option<&Src<'a>>,
) -> Result<((usize, usize, usize), cpu::Index<'a>)> {
    let sizes = check(name, &spec.attention, (q.rows, q.cols), (k.rows, k.cols), (v.rows, v.cols))?;
    check_positions(name, spec, sizes.2, (positions.rows, positions.cols))?;
    Ok((sizes, cpu::Index::new(spec.distances, positions.rows, queries.map(Src::u32).transpose()?)))
}

/// Checks positions (rows, columns) and their distances against the rows of heads of `hidden` columns in all.
fn check_positions(name: &str, spec: &DisentangledSpec<'_>, hidden: usize, positions: (usize, usize)) -> Result<()> {
    let ((rows, columns), attention) = (positions, &spec.attention);
    if attention.bias.is_some() || attention.window.is_some() || spec.sides() == 0 {
        bail!("{name}: positions, and no bias or window beside them");
    }
    let longest = attention.cu_keys.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
    let distances = spec.distances;
    let rises = distances.is_sorted() && distances.last().is_some_and(|&last| (last as usize) < rows);
    if distances.len().is_multiple_of(2) || longest > distances.len() / 2 + 1 || !rises {
        let n = distances.len();
        bail!("{name}: {n} distances to {rows} positions for rows of {longest} tokens");
    }
    if columns != spec.sides() * hidden {
        bail!("{name}: positions [{rows}, {columns}] for heads of {hidden} columns in all");
    }
    Ok(())
}

impl Kernel for Forward<'_> {
    fn name(&self) -> &'static str {
        "disentangled_attention"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([out], [q, k, v, positions, rest @ ..]) = (dst, src) else {
            bail!("{}: one destination, four sources or five", self.name())
        };
        let ((queries, _, hidden), index) = prepare(self.name(), &self.0, [q, k, v, positions], rest.first())?;
        if (out.rows, out.cols) != (queries, hidden) {
            bail!("{}: output [{}, {}] for [{queries}, {hidden}]", self.name(), out.rows, out.cols);
        }
        by_format!(out, T => {
            let to = columns::<T>(out, 0)?;
            let qkv = [source::<T>(q)?, source::<T>(k)?, source::<T>(v)?];
            // SAFETY: shapes and prefix sums were checked against the views above.
            unsafe { cpu::forward(to, qkv, source::<T>(positions)?, hidden, &self.0, &index) };
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self, gpu, dst, src)
    }
}

impl Kernel for Backward<'_> {
    fn name(&self) -> &'static str {
        "disentangled_attention_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dst @ .., dpositions], [dout, q, k, v, positions, rest @ ..]) = (dst, src) else {
            bail!("{}: two destinations or three, five sources or six", self.name())
        };
        let ((queries, tokens, hidden), index) = prepare(self.name(), &self.0, [q, k, v, positions], rest.first())?;
        let shapes: Vec<_> = dst.iter().map(|d| (d.rows, d.cols)).collect();
        let same = (dpositions.rows, dpositions.cols) == (positions.rows, positions.cols);
        if (dout.rows, dout.cols) != (queries, hidden) || !same {
            bail!("{}: gradients of other shapes than what they are of", self.name());
        }
        by_format!(dout, T => {
            let to = match dst {
                [all] if shapes == [(tokens, 3 * hidden)] && queries == tokens => {
                    [columns::<T>(all, 0)?, columns(all, hidden)?, columns(all, 2 * hidden)?]
                }
                [dq, dkv] if shapes == [(queries, hidden), (tokens, 2 * hidden)] => {
                    [columns::<T>(dq, 0)?, columns(dkv, 0)?, columns(dkv, hidden)?]
                }
                _ => bail!("{}: destinations {shapes:?} for {queries} queries, {tokens} tokens", self.name()),
            };
            let to_positions = columns::<T>(dpositions, 0)?;
            let (dout, positions) = (source::<T>(dout)?, source::<T>(positions)?);
            let qkv = [source::<T>(q)?, source::<T>(k)?, source::<T>(v)?];
            // SAFETY: shapes and prefix sums were checked against the views above.
            unsafe { cpu::backward(to, to_positions, dout, qkv, positions, hidden, &self.0, &index) };
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self, gpu, dst, src)
    }
}
