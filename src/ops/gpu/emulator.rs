//! The kernels' sources compiled as C++ (`build.rs`), their threads run one after another on the CPU: for tests of every
//! kernel, and of what launches it, on machines without a GPU. Memory is the program's own.

use super::{Args, Gemm, Grid, size};
use candle_core::{DType, Result, bail};
use std::ffi::{CString, c_void};
use std::marker::PhantomData;

type Kernel = unsafe extern "C" fn(Args);

#[link(name = "kernels")]
unsafe extern "C" {
    fn emulator_launch(kernel: Kernel, args: *const Args, grid: *const u32, threads: u32, shared: u32);
    fn emulator_gemm(n: *const i32, a: *const c_void, b: *const c_void, c: *mut c_void, beta: f32);
}

/// Stands for a device.
pub struct Gpu<'a>(PhantomData<&'a ()>);

/// Memory of the device until it is dropped.
pub struct Memory(Vec<u64>);

impl Memory {
    pub fn at(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

impl Gpu<'_> {
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Runs a kernel. Does nothing for an empty grid.
    pub fn launch(&self, name: &str, grid: Grid, args: Args) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let symbol = CString::new(name).expect("kernels have plain names");
        // SAFETY: looks a name up among the symbols of this process.
        let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
        if at.is_null() {
            bail!("there is no kernel {name}");
        }
        // SAFETY: every kernel takes one `Args` by value; the launch states what it may read and write.
        unsafe {
            let kernel = std::mem::transmute::<*mut c_void, Kernel>(at);
            let blocks = grid.blocks.map(|n| n as u32);
            emulator_launch(kernel, &args, blocks.as_ptr(), grid.threads as u32, grid.shared_bytes as u32);
        }
        Ok(())
    }

    /// As `cublasGemmEx` would.
    pub fn gemm(&self, g: Gemm) -> Result<()> {
        let half = |dtype| i32::from(dtype == DType::BF16);
        let [a, b] = g.operands;
        let [m, n, k] = g.sizes;
        let [ta, tb] = g.transposed.map(i32::from);
        let numbers = [
            ta,
            tb,
            size(m)?,
            size(n)?,
            size(k)?,
            size(a.stride)?,
            size(b.stride)?,
            size(g.result.stride)?,
            half(a.dtype),
            half(g.result.dtype),
        ];
        let beta = f32::from(u8::from(g.accumulate));
        // SAFETY: sizes and strides are those of views that live in this process.
        unsafe {
            emulator_gemm(
                numbers.as_ptr(),
                a.at as *const c_void,
                b.at as *const c_void,
                g.result.at as *mut c_void,
                beta,
            );
        }
        Ok(())
    }

    /// Memory whose content is whatever was there.
    pub fn room(&self, bytes: usize) -> Result<Memory> {
        Ok(Memory(vec![u64::MAX; bytes.div_ceil(8)]))
    }

    /// The same values on the device.
    pub fn constant(&self, values: &[u32]) -> Result<Memory> {
        let mut words = vec![0u64; values.len().div_ceil(2)];
        bytemuck::cast_slice_mut::<u64, u32>(&mut words)[..values.len()].copy_from_slice(values);
        Ok(Memory(words))
    }

    /// Copies memory.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: two views' memory in this process, which share none, by the launch that asks.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    /// Zeroes memory.
    pub fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: a view's memory in this process, by the launch that asks.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }
}
