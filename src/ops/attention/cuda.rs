//! CUDA bodies: a grid of (tile, head, row), so no batch is padded; tiles beyond a row's end do nothing.

use super::{AttentionSpec, Backward, Forward};
use crate::ops::gpu::{Args, Gpu, Grid, Memory, THREADS, View, of};
use candle_core::{DType, Result, bail};

/// Keys or queries of a tile, as in `kernel.cu`.
const TILE: usize = 32;

/// Sizes of a batch.
struct Batch {
    rows: usize,
    heads: usize,
    /// Registers a lane holds of a head's columns; names the kernel.
    width: usize,
    longest: [usize; 2],
}

impl Batch {
    fn new(name: &str, spec: &AttentionSpec<'_>, hidden: usize) -> Result<Self> {
        let head_dim = hidden / spec.heads;
        let Some(width) = [1, 2, 4].into_iter().find(|w| head_dim <= 32 * w) else {
            bail!("{name}: heads of {head_dim} columns, the CUDA kernels take up to 128")
        };
        let longest =
            [spec.cu_queries, spec.cu_keys].map(|cu| cu.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0));
        let rows = spec.cu_keys.len() - 1;
        if rows > 65_535 || spec.heads > 65_535 {
            bail!("{name}: {rows} rows of {} heads, the CUDA kernels take up to 65535", spec.heads);
        }
        Ok(Self { rows, heads: spec.heads, width, longest })
    }

    /// Of blocks over `longest` queries or keys, with two tiles and two blocks of rows in shared memory.
    fn grid(&self, longest: usize, blocks: usize) -> Result<Grid> {
        // As in `kernel.cu`: 12 or 16 queries or keys a block.
        let (d, block) = (32 * self.width, if self.width == 4 { 12 } else { 16 });
        Grid::new([longest.div_ceil(block), self.heads, self.rows], THREADS)
            .shared(2 * TILE * (d + 1) + blocks * block * d)
    }

    fn kernel(&self, name: &str, dtype: DType) -> String {
        of(&format!("{name}_{}", self.width), dtype)
    }
}

/// The arguments that all kernels of the op begin with; `dout` is none going forward.
struct Sources {
    p: Vec<u64>,
    n: Vec<usize>,
    _constants: [Memory; 2],
}

fn sources(
    name: &str,
    spec: &AttentionSpec<'_>,
    gpu: &Gpu<'_>,
    [q, k, v]: [&View; 3],
    dout: Option<&View>,
    bias: &[View],
) -> Result<Sources> {
    if spec.window.is_some() {
        bail!("{name}: local attention has no CUDA kernel yet; compute with --device cpu");
    }
    super::check(name, spec, (q.rows, q.cols), (k.rows, k.cols), (v.rows, v.cols))?;
    for view in [Some(q), Some(k), Some(v), dout].into_iter().flatten() {
        view.expect(name, view.rows, q.cols, q.dtype)?;
    }
    let reach = match bias {
        [] => 0,
        [values, queries @ ..] => {
            super::check_bias(name, spec, (values.rows, values.cols, values.stride))?;
            match queries {
                [] if spec.cu_queries == spec.cu_keys => {}
                [queries] => queries.expect_values(name, q.rows, DType::U32)?,
                _ => bail!("{name}: the bias does not know where the queries stand"),
            }
            values.cols / 2
        }
    };
    let constants = [gpu.constant(spec.cu_queries)?, gpu.constant(spec.cu_keys)?];
    let at = |view: Option<&View>| view.map_or(0, |v| v.at);
    let p = vec![q.at, k.at, v.at, at(dout), constants[0].at(), constants[1].at(), at(bias.first()), at(bias.get(1))];
    let strides = [q.stride, k.stride, v.stride, dout.map_or(0, |v| v.stride)];
    let n = strides.into_iter().chain([q.cols / spec.heads, spec.heads, reach]).collect();
    Ok(Sources { p, n, _constants: constants })
}

impl Sources {
    fn args(&self, p: &[u64], n: &[usize], spec: &AttentionSpec<'_>) -> Result<Args> {
        Ok(Args::new(&[&self.p, p].concat(), &[&self.n, n].concat())?.dropout(spec.dropout))
    }
}

pub(super) fn forward(op: &Forward<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([out], [q, k, v, bias @ ..]) = (dst, src) else { bail!("attention: one destination, three sources") };
    let spec = &op.0;
    let sources = sources("attention", spec, gpu, [q, k, v], None, bias)?;
    out.expect("attention", q.rows, q.cols, q.dtype)?;
    let batch = Batch::new("attention", spec, q.cols)?;
    let args = sources.args(&[out.at], &[out.stride], spec)?;
    gpu.launch(&batch.kernel("attention", q.dtype), batch.grid(batch.longest[0], 1)?, args)
}

pub(super) fn backward(op: &Backward<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let name = "attention_backward";
    let [dout, q, k, v, bias @ ..] = src else { bail!("{name}: four sources") };
    let spec = &op.0;
    let (dst, dbias) = match (spec.bias.and_then(|b| b.grad), dst.split_last()) {
        (Some(_), Some((last, dst))) => (dst, Some(last)),
        _ => (dst, None),
    };
    let sources = sources(name, spec, gpu, [q, k, v], Some(dout), bias)?;
    dout.expect(name, q.rows, q.cols, q.dtype)?;
    let (queries, tokens, hidden) = (q.rows, k.rows, q.cols);
    let columns = |view: &View, skip: usize| view.at + (skip * view.dtype.size_in_bytes()) as u64;
    let (at, strides) = match dst {
        [all] if queries == tokens => {
            all.expect(name, tokens, 3 * hidden, q.dtype)?;
            ([0, 1, 2].map(|i| columns(all, i * hidden)), [all.stride; 3])
        }
        [dq, dkv] => {
            dq.expect(name, queries, hidden, q.dtype)?;
            dkv.expect(name, tokens, 2 * hidden, q.dtype)?;
            ([dq.at, dkv.at, columns(dkv, hidden)], [dq.stride, dkv.stride, dkv.stride])
        }
        _ => bail!("{name}: {} destinations for {queries} queries and {tokens} tokens", dst.len()),
    };
    let batch = Batch::new(name, spec, hidden)?;
    let [logs, means] = [gpu.room(4 * queries * spec.heads)?, gpu.room(4 * queries * spec.heads)?];
    let args = sources.args(&[at[0], logs.at(), means.at()], &[strides[0]], spec)?;
    let kernel = batch.kernel("attention_backward_queries", q.dtype);
    gpu.launch(&kernel, batch.grid(batch.longest[0], 2)?, args)?;
    let args = sources.args(&[at[1], logs.at(), means.at(), at[2]], &[strides[1], strides[2]], spec)?;
    gpu.launch(&batch.kernel("attention_backward_keys", q.dtype), batch.grid(batch.longest[1], 2)?, args)?;
    let (Some(dbias), [values, ..]) = (dbias, bias) else { return Ok(()) };
    dbias.expect_values(name, values.rows * values.cols, DType::F32)?;
    let args = sources.args(&[dbias.at, logs.at(), means.at()], &[batch.rows], spec)?;
    gpu.launch(&of("attention_bias_grad", q.dtype), Grid::new([values.cols, spec.heads, 1], THREADS), args)
}
