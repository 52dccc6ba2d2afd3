//! CUDA bodies: a grid of (tile, head, row), so no batch is padded; tiles beyond a row's end do nothing. In bf16 on tensor
//! cores where the head and the places of its rows allow it, else as f32.

use super::{AttentionSpec, Backward, Forward};
use crate::ops::gpu::{Args, Gpu, Grid, Memory, THREADS, View, of};
use candle_core::{DType, Result, bail};

/// Keys or queries of a tile, as in `kernel.cu`.
const TILE: usize = 32;
/// Queries, or keys, a block has in `tensor.cu`.
const ROWS: usize = 64;

/// Which kernels take a head.
#[derive(Clone, Copy)]
enum Body {
    /// `kernel.cu`; registers a lane holds of a head's columns.
    Plain(usize),
    /// `tensor.cu`; columns it reckons with.
    Tensor(usize),
}

impl Body {
    fn new(name: &str, head_dim: usize, views: &[&View]) -> Result<Self> {
        // Tensor cores take bf16, and copies past the registers take 16 bytes at a time.
        let aligned = |v: &View| v.dtype == DType::BF16 && v.at.is_multiple_of(16) && v.stride.is_multiple_of(8);
        let tensor = [32, 64, 128].into_iter().find(|&d| head_dim <= d);
        if let Some(d) = tensor.filter(|_| head_dim.is_multiple_of(8) && views.iter().all(|v| aligned(v))) {
            return Ok(Self::Tensor(d));
        }
        match [1, 2, 4, 8].into_iter().find(|w| head_dim <= 32 * w) {
            Some(width) => Ok(Self::Plain(width)),
            None => bail!("{name}: heads of {head_dim} columns, the CUDA kernels take up to 256"),
        }
    }

    fn kernel(self, name: &str, dtype: DType) -> String {
        match self {
            Self::Plain(width) => of(&format!("{name}_{width}"), dtype),
            Self::Tensor(d) => of(&format!("{name}_tensor_{d}"), dtype),
        }
    }
}

/// Sizes of a batch.
struct Batch {
    rows: usize,
    heads: usize,
    longest: [usize; 2],
    body: Body,
}

impl Batch {
    fn new(name: &str, spec: &AttentionSpec<'_>, hidden: usize, views: &[&View]) -> Result<Self> {
        let longest =
            [spec.cu_queries, spec.cu_keys].map(|cu| cu.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0));
        let rows = spec.cu_keys.len() - 1;
        if rows > 65_535 || spec.heads > 65_535 {
            bail!("{name}: {rows} rows of {} heads, the CUDA kernels take up to 65535", spec.heads);
        }
        Ok(Self { rows, heads: spec.heads, longest, body: Body::new(name, hidden / spec.heads, views)? })
    }

    /// Of blocks over `longest` queries or keys; a block of the plain kernels keeps `kept` matrices of its rows in shared
    /// memory.
    fn grid(&self, longest: usize, kept: usize) -> Result<Grid> {
        let (block, floats) = match self.body {
            Body::Plain(width) => {
                // As in `kernel.cu`.
                let (d, tiles) = (32 * width, if width == 8 { 1 } else { 2 });
                let block = 4 * [4, 4, 3, 1][width.ilog2() as usize];
                (block, tiles * TILE * (d + 4) + kept * block * d)
            }
            // Two rounds of two tiles, before which two matrices of 64 rows lie there; in bf16.
            Body::Tensor(d) => (ROWS, if d == 128 { 2 * ROWS } else { 4 * ROWS } * (d + 8) / 2),
        };
        Grid::new([longest.div_ceil(block), self.heads, self.rows], THREADS).shared(floats)
    }
}

/// The arguments that all kernels of the op begin with; `dout` is none going forward.
pub(in crate::ops) struct Sources {
    p: Vec<u64>,
    pub n: Vec<usize>,
    _constants: [Memory; 2],
}

pub(in crate::ops) fn sources(
    name: &str,
    spec: &AttentionSpec<'_>,
    gpu: &Gpu<'_>,
    [q, k, v]: [&View; 3],
    dout: Option<&View>,
    extras: &[View],
) -> Result<Sources> {
    super::check(name, spec, (q.rows, q.cols), (k.rows, k.cols), (v.rows, v.cols))?;
    for view in [Some(q), Some(k), Some(v), dout].into_iter().flatten() {
        view.expect(name, view.rows, q.cols, q.dtype)?;
    }
    let (bias, places) = match (spec.bias, extras) {
        (Some(_), [values, places @ ..]) => (Some(values), places),
        (_, places) => (None, places),
    };
    if let Some(values) = bias {
        values.expect(name, values.rows, values.cols, DType::F32)?;
        super::check_bias(name, spec, (values.rows, values.cols, values.stride))?;
    }
    if bias.is_some() || spec.window.is_some() {
        match places {
            [] if spec.cu_queries == spec.cu_keys => {}
            [places] => places.expect_values(name, q.rows, DType::U32)?,
            _ => bail!("{name}: a bias or a window does not know where the queries stand"),
        }
    }
    let constants = [gpu.constant(spec.cu_queries)?, gpu.constant(spec.cu_keys)?];
    let at = |view: Option<&View>| view.map_or(0, |v| v.at);
    let p = vec![q.at, k.at, v.at, at(dout), constants[0].at(), constants[1].at(), at(bias), at(places.first())];
    let strides = [q.stride, k.stride, v.stride, dout.map_or(0, |v| v.stride)];
    let reach = bias.map_or(0, |v| v.cols / 2);
    // One more than the window, 0 for none; no row is as long as the widest that the kernels know.
    let window = spec.window.map_or(0, |w| w.min(1 << 28) + 1);
    let n = strides.into_iter().chain([q.cols / spec.heads, spec.heads, reach, window, q.rows]).collect();
    Ok(Sources { p, n, _constants: constants })
}

impl Sources {
    pub fn args(&self, p: &[u64], n: &[usize], spec: &AttentionSpec<'_>) -> Result<Args> {
        Ok(Args::new(&[&self.p, p].concat(), &[&self.n, n].concat())?.dropout(spec.dropout))
    }
}

pub(super) fn forward(op: &Forward<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let ([out], [q, k, v, extras @ ..]) = (dst, src) else { bail!("attention: one destination, three sources") };
    let spec = &op.0;
    let sources = sources("attention", spec, gpu, [q, k, v], None, extras)?;
    out.expect("attention", q.rows, q.cols, q.dtype)?;
    let batch = Batch::new("attention", spec, q.cols, &[q, k, v, out])?;
    let args = sources.args(&[out.at], &[out.stride], spec)?;
    gpu.launch(&batch.body.kernel("attention", q.dtype), batch.grid(batch.longest[0], 1)?, args)
}

/// Where the gradients of queries, keys and values go, and their strides.
pub(in crate::ops) fn grads(name: &str, dst: &[View], q: &View, k: &View) -> Result<([u64; 3], [usize; 3])> {
    let (queries, tokens, hidden) = (q.rows, k.rows, q.cols);
    let columns = |view: &View, skip: usize| view.at + (skip * view.dtype.size_in_bytes()) as u64;
    Ok(match dst {
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
    })
}

pub(super) fn backward(op: &Backward<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let name = "attention_backward";
    let [dout, q, k, v, extras @ ..] = src else { bail!("{name}: four sources") };
    let spec = &op.0;
    let (dst, dbias) = match (spec.bias.and_then(|b| b.grad), dst.split_last()) {
        (Some(_), Some((last, dst))) => (dst, Some(last)),
        _ => (dst, None),
    };
    let sources = sources(name, spec, gpu, [q, k, v], Some(dout), extras)?;
    dout.expect(name, q.rows, q.cols, q.dtype)?;
    let (queries, hidden) = (q.rows, q.cols);
    let (at, strides) = grads(name, dst, q, k)?;
    let views: Vec<_> = [q, k, v, dout].into_iter().chain(dst).collect();
    let batch = Batch::new(name, spec, hidden, &views)?;
    let [logs, means] = [gpu.room(4 * queries * spec.heads)?, gpu.room(4 * queries * spec.heads)?];
    let args = sources.args(&[at[0], logs.at(), means.at()], &[strides[0]], spec)?;
    let kernel = batch.body.kernel("attention_backward_queries", q.dtype);
    gpu.launch(&kernel, batch.grid(batch.longest[0], 2)?, args)?;
    let args = sources.args(&[at[1], logs.at(), means.at(), at[2]], &[strides[1], strides[2]], spec)?;
    gpu.launch(&batch.body.kernel("attention_backward_keys", q.dtype), batch.grid(batch.longest[1], 2)?, args)?;
    let (Some(dbias), [values, ..]) = (dbias, extras) else { return Ok(()) };
    dbias.expect_values(name, values.rows * values.cols, DType::F32)?;
    let args = sources.args(&[dbias.at, logs.at(), means.at()], &[batch.rows], spec)?;
    gpu.launch(&of("attention_bias_grad", q.dtype), Grid::new([values.cols, spec.heads, 1], THREADS), args)
}
