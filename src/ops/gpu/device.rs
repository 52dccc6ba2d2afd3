//! A CUDA device: kernels from the module that `build.rs` compiled, products by cuBLAS, all on candle's stream, so in the order
//! in which they are asked for. Nothing here waits for the device but [`Words`] when
//! they are read or dropped.

use super::{Args, Gemm, Grid, size};
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, PinnedHostSlice, result,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDType, WrapErr, gemm_reduced_precision_f32};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Result, Shape, Storage, Tensor};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// All kernels: code for compute capability 8.x and 9.0, and PTX of 8.0 that the driver compiles for others.
static MODULE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// A device during one launch of an op.
pub struct Gpu<'a> {
    device: &'a CudaDevice,
    stream: Arc<CudaStream>,
    state: Arc<State>,
}

/// What a stream of a device keeps from launch to launch.
struct State {
    /// Kept alive, so that no other stream has its address.
    _stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    constants: Mutex<HashMap<Vec<u32>, Arc<CudaSlice<u32>>>>,
    /// Host memory that a device can write, of [`Words`] that were read. To ask for some waits for the device.
    pinned: Mutex<Vec<PinnedHostSlice<u64>>>,
}

/// Constants kept before they are all dropped: prefix sums of batches and lists of parameters, which come again.
const KEPT: usize = 64;

/// Memory of the device, given back in the stream's order.
pub enum Memory {
    Room(u64, #[allow(dead_code, reason = "owns the memory")] CudaSlice<u8>),
    Constant(u64, #[allow(dead_code, reason = "owns the memory")] Arc<CudaSlice<u32>>),
}

impl Memory {
    pub fn at(&self) -> u64 {
        match self {
            Self::Room(at, _) | Self::Constant(at, _) => *at,
        }
    }
}

impl<'a> Gpu<'a> {
    pub fn new(device: &'a CudaDevice) -> Result<Self> {
        // Memory belongs to a stream: what another one of the same device wrote may not be there yet.
        type Key = (usize, usize);
        static STATES: OnceLock<Mutex<HashMap<Key, Arc<State>>>> = OnceLock::new();
        let stream = device.cuda_stream();
        let key = (stream.context().ordinal(), stream.cu_stream() as usize);
        let mut states = lock(STATES.get_or_init(Mutex::default));
        let state = match states.get(&key) {
            Some(state) => state.clone(),
            None => {
                let module = stream.context().load_module(Ptx::from_binary(MODULE.to_vec())).w()?;
                // Sums in f32 also where a product over a great depth is cut in parts.
                let exact = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
                // SAFETY: the handle of a device that is open.
                unsafe { blas::cublasSetMathMode(*device.cublas_handle().handle(), exact) }.result().w()?;
                let (functions, constants, pinned) = (Mutex::default(), Mutex::default(), Mutex::default());
                let state = Arc::new(State { _stream: stream.clone(), module, functions, constants, pinned });
                states.insert(key, state.clone());
                state
            }
        };
        Ok(Self { device, stream, state })
    }

    /// Runs a kernel. Does nothing for an empty grid.
    pub fn launch(&self, name: &str, grid: Grid, args: Args) -> Result<()> {
        let [x, y, z] = grid.blocks.map(|n| n as u32);
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut functions = lock(&self.state.functions);
        if !functions.contains_key(name) {
            functions.insert(name.to_owned(), self.state.module.load_function(name).w()?);
        }
        let function = functions[name].cu_function();
        self.stream.context().bind_to_thread().w()?;
        let (threads, shared) = ((grid.threads as u32, 1, 1), grid.shared_bytes as u32);
        let mut arguments = [(&raw const args).cast_mut().cast::<c_void>()];
        // SAFETY: every kernel takes one `Args`; the launch beside it states what it may read and write.
        unsafe {
            result::launch_kernel(function, (x, y, z), threads, shared, self.stream.cu_stream(), &mut arguments).w()?;
        }
        Ok(())
    }

    /// `cublasGemmEx` with sums in f32; f32 operands are rounded to TF32 where candle's are.
    pub fn gemm(&self, g: Gemm) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        let handle = self.device.cublas_handle();
        let format =
            |d| if d == DType::BF16 { blas::cudaDataType_t::CUDA_R_16BF } else { blas::cudaDataType_t::CUDA_R_32F };
        let op = |t| if t { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N };
        let compute = if g.operands[0].dtype == DType::F32 && gemm_reduced_precision_f32() {
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let [a, b] = g.operands;
        let ([m, n, k], [lda, ldb, ldc]) = (g.sizes, [a.stride, b.stride, g.result.stride]);
        let ([m, n, k], [lda, ldb, ldc]) = ([size(m)?, size(n)?, size(k)?], [size(lda)?, size(ldb)?, size(ldc)?]);
        let (alpha, beta) = (1f32, f32::from(u8::from(g.accumulate)));
        // SAFETY: sizes and strides are those of views that live on this device.
        unsafe {
            cublas::gemm_ex(
                *handle.handle(),
                op(g.transposed[0]),
                op(g.transposed[1]),
                m,
                n,
                k,
                (&raw const alpha).cast::<c_void>(),
                a.at as *const c_void,
                format(a.dtype),
                lda,
                b.at as *const c_void,
                format(b.dtype),
                ldb,
                (&raw const beta).cast::<c_void>(),
                g.result.at as *mut c_void,
                format(g.result.dtype),
                ldc,
                compute,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }

    /// Memory whose content is whatever was there.
    pub fn room(&self, bytes: usize) -> Result<Memory> {
        // SAFETY: kernels write it before they read it.
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.w()?;
        let at = slice.device_ptr(&self.stream).0;
        Ok(Memory::Room(at, slice))
    }

    /// The same values on the device; copied once for all launches that ask for them.
    pub fn constant(&self, values: &[u32]) -> Result<Memory> {
        // No memory is of no size.
        let values = if values.is_empty() { &[0] } else { values };
        let mut constants = lock(&self.state.constants);
        let slice = match constants.get(values) {
            Some(slice) => slice.clone(),
            None => {
                if constants.len() >= KEPT {
                    constants.clear();
                }
                let slice = Arc::new(copied(&self.stream, values)?);
                constants.insert(values.to_vec(), slice.clone());
                slice
            }
        };
        let at = slice.device_ptr(&self.stream).0;
        Ok(Memory::Constant(at, slice))
    }

    /// Copies words of 64 bits to the host, behind the work that the stream was given before.
    pub fn fetch(&self, from: &[u64]) -> Result<Words> {
        let context = self.stream.context();
        let mut pinned = lock(&self.state.pinned);
        let fits = pinned.iter().position(|room| room.len() >= from.len());
        let mut room = match fits {
            Some(i) => pinned.swap_remove(i),
            // SAFETY: what is read of it was written before.
            None => unsafe { context.alloc_pinned_with_flags(from.len().next_multiple_of(LEAST_PINNED), 0) }.w()?,
        };
        context.bind_to_thread().w()?;
        for (to, at) in room.as_mut_slice().w()?.chunks_exact_mut(1).zip(from) {
            // SAFETY: a number in this device's memory; what it goes to lives until the event has come.
            unsafe { result::memcpy_dtoh_async(to, *at, self.stream.cu_stream()) }.w()?;
        }
        let event = self.stream.record_event(None).w()?;
        Ok(Words { event, room: Some(room), count: from.len(), state: self.state.clone() })
    }

    /// Copies memory.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: two views' memory on this device, which share none, by the launch that asks.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.w()
    }

    /// Zeroes memory.
    pub fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: a view's memory on this device, by the launch that asks.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }.w()
    }
}

/// Words that a device copies to the host.
pub struct Words {
    event: CudaEvent,
    /// There until this is dropped.
    room: Option<PinnedHostSlice<u64>>,
    count: usize,
    state: Arc<State>,
}

/// Words of host memory that are asked for at once: a window's losses, and more of them seldom.
const LEAST_PINNED: usize = 64;

impl Words {
    /// Waits until they are there.
    pub fn wait(self) -> Result<Vec<u64>> {
        self.event.synchronize().w()?;
        let room = self.room.as_ref().map(PinnedHostSlice::as_slice).transpose().w()?;
        Ok(room.unwrap_or_default()[..self.count].to_vec())
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // Nobody else may get the memory while the device may still write it.
        if let (Some(room), Ok(())) = (self.room.take(), self.event.synchronize()) {
            lock(&self.state.pinned).push(room);
        }
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} words of a device", self.count)
    }
}

/// What lies in a device's memory.
pub trait Value: CudaDType + DeviceRepr {}
impl<T: CudaDType + DeviceRepr> Value for T {}

/// A tensor of these values.
pub fn upload<T: Value>(values: &[T], shape: Shape, device: &CudaDevice) -> Result<Tensor> {
    let slice = copied(&device.cuda_stream(), values)?;
    let storage = Storage::Cuda(T::wrap_cuda_slice(slice, device.clone()));
    Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
}

/// Bytes of the host's memory that CUDA copies to a device without waiting for it ("Asynchronous Concurrent Execution" in
/// its programming guide): it keeps them beside the command.
const INLINE_BYTES: usize = 64 << 10;

/// Values on the device, copied in pieces that nobody waits for.
fn copied<T: DeviceRepr>(stream: &Arc<CudaStream>, values: &[T]) -> Result<CudaSlice<T>> {
    // SAFETY: all of it is written below.
    let slice = unsafe { stream.alloc::<T>(values.len().max(1)) }.w()?;
    stream.context().bind_to_thread().w()?;
    let mut at = slice.device_ptr(stream).0;
    for piece in values.chunks(INLINE_BYTES / size_of::<T>()) {
        // SAFETY: within what was just allocated.
        unsafe { result::memcpy_htod_async(at, piece, stream.cu_stream()) }.w()?;
        at += size_of_val(piece) as u64;
    }
    Ok(slice)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
