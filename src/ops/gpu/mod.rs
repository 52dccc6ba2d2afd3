//! What the CUDA bodies share: how a kernel is launched and a product computed, on a device ([`device`]) or, to check the
//! kernels' numbers where there is none, by threads emulated on the CPU ([`emulator`], feature `cuda-emulator`).

#[cfg(feature = "cuda")]
mod device;
#[cfg(not(feature = "cuda"))]
mod emulator;

#[cfg(feature = "cuda")]
pub use device::{Gpu, Memory, Value, Words, upload};
#[cfg(not(feature = "cuda"))]
pub use emulator::{Gpu, Memory};

use crate::ops::dropout::Dropout;
use candle_core::{DType, Result, bail};

/// A source or destination in the device's memory; fields as in [`super::Src`].
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Address of the first value.
    pub at: u64,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

impl View {
    /// Refuses any other shape or format.
    pub fn expect(&self, what: &str, rows: usize, cols: usize, dtype: DType) -> Result<()> {
        if (self.rows, self.cols, self.dtype) != (rows, cols, dtype) {
            let found = (self.rows, self.cols, self.dtype);
            bail!("{what}: [{}, {}] {:?}, expected [{rows}, {cols}] {dtype:?}", found.0, found.1, found.2);
        }
        Ok(())
    }

    /// As [`Self::expect`], and rows that follow one another without gaps.
    pub fn expect_dense(&self, what: &str, rows: usize, cols: usize, dtype: DType) -> Result<()> {
        self.expect(what, rows, cols, dtype)?;
        if rows > 1 && self.stride != cols {
            bail!("{what}: rows {} apart, expected {cols}", self.stride)
        } else {
            Ok(())
        }
    }

    /// As [`Self::expect_dense`] for any shape of `len` values.
    pub fn expect_values(&self, what: &str, len: usize, dtype: DType) -> Result<()> {
        if self.rows * self.cols != len {
            bail!("{what}: [{}, {}], expected {len} values", self.rows, self.cols);
        }
        self.expect_dense(what, self.rows, self.cols, dtype)
    }
}

/// A kernel's name with the format it is for at the end.
pub fn of(name: &str, dtype: DType) -> String {
    format!("{name}_{}", if dtype == DType::BF16 { "bf16" } else { "f32" })
}

/// The one argument of every kernel, as `common.cuh` declares it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Args {
    /// Addresses, and other values of 64 bits.
    p: [u64; 16],
    /// Sizes.
    n: [i32; 16],
    f: [f32; 4],
    drop: [u32; 4],
}

impl Args {
    /// # Errors
    /// When a size does not fit the kernels' 32 bits.
    pub fn new(p: &[u64], n: &[usize]) -> Result<Self> {
        let mut args = Self::default();
        args.p[..p.len()].copy_from_slice(p);
        for (to, n) in args.n.iter_mut().zip(n) {
            *to = size(*n)?;
        }
        Ok(args)
    }

    pub fn float(mut self, x: f32) -> Self {
        self.f[0] = x;
        self
    }

    pub fn dropout(mut self, d: Dropout) -> Self {
        self.drop = d.words();
        self
    }
}

/// A size as kernels and cuBLAS take it.
///
/// # Errors
/// When it does not fit 32 bits.
fn size(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("{n} is too large for a CUDA kernel")))
}

/// How many blocks of how many threads, and how much shared memory beyond what a kernel declares.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: [usize; 3],
    pub threads: usize,
    pub shared_bytes: usize,
}

/// What every device grants a block without being asked.
const SHARED_BYTES: usize = 48 << 10;

/// What of it a kernel that asks for more declares itself: `block_sum` in `common.cuh`.
const DECLARED_BYTES: usize = 32 * 4;

impl Grid {
    pub fn new(blocks: [usize; 3], threads: usize) -> Self {
        Self { blocks, threads, shared_bytes: 0 }
    }

    /// One thread a value of `n` columns, and blocks of their own for each of `rows`.
    pub fn columns(n: usize, rows: usize) -> Self {
        Self::new([rows, n.div_ceil(THREADS), 1], THREADS)
    }

    /// One thread a chunk of values of a matrix.
    pub fn chunks(rows: usize, columns: usize) -> Self {
        Self::new([(rows * columns.div_ceil(CHUNK)).div_ceil(THREADS), 1, 1], THREADS)
    }

    /// One thread a chunk of the columns, and blocks of their own for each of `rows`.
    pub fn column_chunks(columns: usize, rows: usize) -> Self {
        Self::columns(columns.div_ceil(CHUNK), rows)
    }

    /// One block for each of `rows`, which has one thread a chunk of its `columns`.
    ///
    /// # Errors
    /// When that is more than a block may have beside the registers that it needs.
    pub fn rows(rows: usize, columns: usize) -> Result<Self> {
        let threads = columns.div_ceil(CHUNK).next_multiple_of(32);
        if threads > ROW_THREADS {
            bail!("rows of {columns} values, the CUDA kernels of norms take up to {}", ROW_THREADS * CHUNK);
        }
        Ok(Self::new([rows, 1, 1], threads))
    }

    /// With room for so many f32 in shared memory.
    ///
    /// # Errors
    /// When that is more than a device has.
    pub fn shared(self, floats: usize) -> Result<Self> {
        let most = SHARED_BYTES - DECLARED_BYTES;
        if 4 * floats > most {
            bail!("rows this wide need {} bytes of shared memory, the CUDA kernels have {most}", 4 * floats);
        }
        Ok(Self { shared_bytes: 4 * floats, ..self })
    }
}

/// The most threads of a block that has a row, as in `common.cuh`.
const ROW_THREADS: usize = 512;

/// Threads of a block, where nothing else decides.
pub const THREADS: usize = 128;

/// Values that a thread works on, as in `common.cuh`.
pub const CHUNK: usize = 8;

/// Rows of a chunk whose partial sums one block makes: enough blocks to fill a device, at most 1024 partial sums. Depends
/// on nothing but the number of rows, so that sums have one order.
pub fn rows_per_chunk(rows: usize) -> usize {
    rows.div_ceil(1024).max(8)
}

/// A row-major product `c[m, n] (+)= op(a) · op(b)`; `true` beside an operand transposes it.
pub fn product(gpu: &Gpu<'_>, c: View, a: (View, bool), b: (View, bool), accumulate: bool) -> Result<()> {
    let sizes = |(v, t): (View, bool)| if t { (v.cols, v.rows) } else { (v.rows, v.cols) };
    let ((m, k), (kb, n)) = (sizes(a), sizes(b));
    if k == 0 || k != kb || (c.rows, c.cols) != (m, n) || a.0.dtype != b.0.dtype {
        bail!(
            "product: [{m}, {k}] · [{kb}, {n}] in {:?} and {:?} does not give [{}, {}]",
            a.0.dtype,
            b.0.dtype,
            c.rows,
            c.cols
        );
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    // Column by column, the same memory holds the transposes: cᵀ = op(b)ᵀ · op(a)ᵀ.
    gpu.gemm(Gemm { transposed: [b.1, a.1], sizes: [n, m, k], operands: [b.0, a.0], result: c, accumulate })
}

/// A product as cuBLAS names it: column-major, `sizes` = m, n, k.
pub struct Gemm {
    pub transposed: [bool; 2],
    pub sizes: [usize; 3],
    pub operands: [View; 2],
    pub result: View,
    pub accumulate: bool,
}

/// As in `kernel.cu`.
const SLICES: usize = 16;

/// `out[n] (+)= Σ_c partial[c, n]`
pub fn sum_partials(
    gpu: &Gpu<'_>,
    out: u64,
    partial: &Memory,
    n: usize,
    chunks: usize,
    accumulate: bool,
) -> Result<()> {
    let args = Args::new(&[out, partial.at()], &[n, chunks, usize::from(accumulate)])?;
    gpu.launch("sum_partials", Grid::new([n.div_ceil(32), 1, 1], 32 * SLICES), args)
}

/// `out[cols] (+)= Σ_rows x[rows, cols]`
pub fn column_sums(gpu: &Gpu<'_>, out: u64, x: View, accumulate: bool) -> Result<()> {
    let per_chunk = rows_per_chunk(x.rows);
    let chunks = x.rows.div_ceil(per_chunk);
    let partial = gpu.room(4 * chunks * x.cols)?;
    let args = Args::new(&[partial.at(), x.at], &[x.rows, x.cols, x.stride, per_chunk])?;
    gpu.launch(&of("column_sums", x.dtype), Grid::column_chunks(x.cols, chunks), args)?;
    sum_partials(gpu, out, &partial, x.cols, chunks, accumulate)
}

/// A bf16 copy of an f32 matrix, in memory of its own.
pub fn rounded(gpu: &Gpu<'_>, w: View) -> Result<(View, Memory)> {
    let room = gpu.room(2 * w.rows * w.cols)?;
    let to = View { at: room.at(), dtype: DType::BF16, stride: w.cols, ..w };
    round(gpu, to, w)?;
    Ok((to, room))
}

/// `to = from` in bf16, both dense.
pub fn round(gpu: &Gpu<'_>, to: View, from: View) -> Result<()> {
    let n = from.rows * from.cols;
    from.expect_dense("round", from.rows, from.cols, DType::F32)?;
    to.expect_values("round", n, DType::BF16)?;
    gpu.launch("round_to_bf16", Grid::chunks(1, n), Args::new(&[to.at, from.at, n as u64], &[])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The norm's backward pass asks for three rows: of 4085 values they fit beside what its kernel declares, of 4086 not.
    #[test]
    fn sizes_beyond_32_bits_are_refused() {
        assert_eq!(Args::new(&[], &[3, i32::MAX as usize]).unwrap().n[..2], [3, i32::MAX]);
        assert!(Args::new(&[], &[1 << 31]).err().unwrap().to_string().contains("2147483648 is too large"));
    }

    #[test]
    fn declared_shared_memory_counts() {
        let grid = |hidden: usize| Grid::new([1; 3], THREADS).shared(3 * hidden);
        assert_eq!(grid(4085).unwrap().shared_bytes, 3 * 4085 * 4);
        assert!(grid(4086).unwrap_err().to_string().contains("49032 bytes of shared memory"));
    }
}
