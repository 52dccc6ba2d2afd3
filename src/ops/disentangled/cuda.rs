//! CUDA bodies: grids of (tile, head, row) as in plain attention. The gradient of positions is made distance by distance, in one
//! partial sum a group of rows, and then summed up.

use super::{Backward, DisentangledSpec, Forward, GROUPS, check_positions};
use crate::ops::attention::cuda::{Sources, grads, sources};
use crate::ops::gpu::{Args, Gpu, Grid, Memory, THREADS, View, of};
use candle_core::{DType, Result, bail};

/// As in `kernel.cu`: what a block holds, rows of a tile, how far the one and the other are apart, columns at a time, and these
/// with what lies between rows.
const HELD: usize = 16;
const TILE: usize = 32;
const REACHED: usize = HELD + TILE - 1;
const SLICE: usize = 32;
const APART: usize = SLICE + 4;

/// Two matrices held, two of a tile, two that are reached; and weights and places of all pairs.
const FLOATS: usize = 2 * (HELD * SLICE + (TILE + REACHED) * APART + HELD * TILE);

/// Blocks that keep a device busy: rows are one group more as long as there are fewer, each with a partial sum of its own.
const BUSY: usize = 2048;

/// Sizes of a batch, and what all kernels read.
struct Batch<'a> {
    spec: DisentangledSpec<'a>,
    sources: Sources,
    positions: View,
    head_dim: usize,
    dtype: DType,
    distances: Memory,
}

impl<'a> Batch<'a> {
    fn new(name: &str, spec: &DisentangledSpec<'a>, gpu: &Gpu<'_>, src: &[View], dout: Option<&View>) -> Result<Self> {
        let [q, k, v, positions, queries @ ..] = src else { bail!("{name}: four sources or five") };
        check_positions(name, spec, q.cols, (positions.rows, positions.cols))?;
        positions.expect(name, positions.rows, positions.cols, q.dtype)?;
        if let Some(queries) = queries.first() {
            queries.expect_values(name, q.rows, DType::U32)?;
        }
        let (heads, rows) = (spec.attention.heads, spec.attention.cu_keys.len() - 1);
        let mut sources = sources(name, &spec.attention, gpu, [q, k, v], dout, queries)?;
        if rows > 65_535 || heads > 65_535 || q.cols / heads > 256 {
            let wide = q.cols / heads;
            bail!("{name}: {rows} rows of {heads} heads of {wide} columns, the CUDA kernels take up to 65535 and 256");
        }
        let reach = spec.distances.len() / 2;
        sources.n[REACH] = reach;
        let distances = gpu.constant(spec.distances)?;
        Ok(Self { spec: *spec, sources, positions: *positions, head_dim: q.cols / heads, dtype: q.dtype, distances })
    }

    /// Of the rows' longest, in blocks of what they hold.
    fn grid(&self, longest: usize, rows: usize) -> Result<Grid> {
        Grid::new([longest.div_ceil(HELD), self.spec.attention.heads, rows], THREADS).shared(FLOATS)
    }

    fn launch(&self, gpu: &Gpu<'_>, name: &str, grid: Grid, p: [u64; 4], n: [usize; 2]) -> Result<()> {
        let (spec, positions) = (&self.spec, &self.positions);
        let behind = (positions.cols / spec.sides() * positions.dtype.size_in_bytes()) as u64;
        let queries = if spec.position_to_content { positions.at } else { 0 };
        let keys = if spec.position_to_content { positions.at + behind } else { positions.at };
        let at_zero = self.distances.at() + 4 * (spec.distances.len() / 2) as u64;
        let beside = [queries, if spec.content_to_position { keys } else { 0 }, at_zero];
        let (p, n) = ([&p[..], &beside].concat(), [&n[..], &[positions.stride, positions.cols]].concat());
        let width = self.head_dim.div_ceil(SLICE).next_power_of_two();
        gpu.launch(&of(&format!("{name}_{width}"), self.dtype), grid, self.sources.args(&p, &n, &spec.attention)?)
    }
}

/// Where the sources' sizes have the furthest distance.
const REACH: usize = 6;

fn longest(cu: &[u32]) -> usize {
    cu.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
}

pub(super) fn forward(op: &Forward<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let name = "disentangled_attention";
    let ([out], [q, ..]) = (dst, src) else { bail!("{name}: one destination, four sources or five") };
    let batch = Batch::new(name, &op.0, gpu, src, None)?;
    out.expect(name, q.rows, q.cols, q.dtype)?;
    let attention = &op.0.attention;
    let grid = batch.grid(longest(attention.cu_queries), attention.cu_keys.len() - 1)?;
    batch.launch(gpu, "disentangled", grid, [out.at, 0, 0, 0], [out.stride, 0])
}

pub(super) fn backward(op: &Backward<'_>, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
    let name = "disentangled_attention_backward";
    let ([dst @ .., dpositions], [dout, src @ ..]) = (dst, src) else {
        bail!("{name}: two destinations or three, five sources or six")
    };
    let (spec, batch) = (&op.0, Batch::new(name, &op.0, gpu, src, Some(dout))?);
    let (q, k, positions) = (&src[0], &src[1], &batch.positions);
    dout.expect(name, q.rows, q.cols, q.dtype)?;
    dpositions.expect(name, positions.rows, positions.cols, q.dtype)?;
    let ([dq, dk, dv], strides) = grads(name, dst, q, k)?;
    let (heads, rows) = (spec.attention.heads, spec.attention.cu_keys.len() - 1);
    let [logs, means] = [gpu.room(4 * q.rows * heads)?, gpu.room(4 * q.rows * heads)?];
    let grid = batch.grid(longest(spec.attention.cu_queries), rows)?;
    batch.launch(gpu, "disentangled_backward_queries", grid, [dq, logs.at(), means.at(), 0], [strides[0], 0])?;
    let grid = batch.grid(longest(spec.attention.cu_keys), rows)?;
    let p = [dk, logs.at(), means.at(), dv];
    batch.launch(gpu, "disentangled_backward_keys", grid, p, [strides[1], strides[2]])?;

    let (distances, columns) = (spec.distances.len(), positions.cols);
    let groups = (BUSY / (distances.div_ceil(HELD) * heads)).clamp(1, rows.clamp(1, GROUPS));
    let per_group = rows.div_ceil(groups);
    let partial = gpu.room(4 * groups * distances * columns)?;
    let grid = batch.grid(distances, groups)?;
    let p = [partial.at(), logs.at(), means.at(), 0];
    batch.launch(gpu, "disentangled_backward_positions", grid, p, [rows, per_group])?;
    let starts: Vec<u32> =
        (0..=positions.rows).map(|at| spec.distances.partition_point(|&d| (d as usize) < at) as u32).collect();
    let starts = gpu.constant(&starts)?;
    let sizes = [positions.rows, columns, dpositions.stride, groups, distances];
    let args = Args::new(&[dpositions.at, partial.at(), starts.at()], &sizes)?;
    gpu.launch(&of("disentangled_sum_positions", q.dtype), Grid::chunks(positions.rows, columns), args)
}
