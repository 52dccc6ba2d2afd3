//! Maths without weights: one folder an op, each with its contract, a plain reference and a fused body a device.
//!
//! An op is a [`Kernel`]: destinations it writes, sources it reads, all candle tensors. [`launch`] hands it their memory
//! through candle's in-place ops, so candle picks the device. A destination may be a view of a larger tensor; it may
//! not share its storage with a source or another destination (candle locks storages, not ranges).

pub mod adamw;
pub mod attention;
pub mod average;
pub mod bias;
pub mod convolution;
pub mod cpu;
pub mod disentangled;
pub mod distance_bias;
pub mod dropout;
pub mod embedding;
pub mod gated;
pub mod gelu;
pub mod gemm;
#[cfg(gpu)]
pub(crate) mod gpu;
pub mod index;
pub mod layer_norm;
pub mod perturb;
pub mod pool;
pub mod readback;
pub mod real;
pub mod rotary;
pub mod rows;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;
use real::Real;
use std::cell::RefCell;
use std::ops::{Deref, Range};

/// A source as a kernel sees it: `rows` of `cols` values, `stride` apart (a vector is one row).
#[derive(Clone, Copy)]
pub struct Src<'a> {
    data: SrcData<'a>,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

#[cfg_attr(
    all(gpu, not(feature = "cuda")),
    allow(dead_code, reason = "the emulator takes the place of the CPU bodies")
)]
#[derive(Clone, Copy)]
enum SrcData<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    U32(&'a [u32]),
}

impl<'a> Src<'a> {
    /// The values in the format `T`, from the first to the last one of the view.
    pub fn values<T: Real>(&self) -> Result<&'a [T]> {
        let found = match self.data {
            SrcData::F32(s) => T::of_f32s(s),
            SrcData::Bf16(s) => T::of_bf16s(s),
            SrcData::U32(_) => None,
        };
        found.ok_or_else(|| candle_core::Error::Msg(format!("a kernel expected a {:?} source", T::DTYPE)))
    }

    pub fn dtype(&self) -> DType {
        match self.data {
            SrcData::F32(_) => DType::F32,
            SrcData::Bf16(_) => DType::BF16,
            SrcData::U32(_) => DType::U32,
        }
    }

    /// The values of an f32 source.
    pub fn f32(&self) -> Result<&'a [f32]> {
        self.values()
    }

    /// The values of an index source.
    pub fn u32(&self) -> Result<&'a [u32]> {
        match self.data {
            SrcData::U32(s) => Ok(s),
            _ => bail!("a kernel expected a u32 source"),
        }
    }
}

/// A destination as a kernel sees it; fields as in [`Src`].
pub struct Dst<'a> {
    data: DstData<'a>,
    pub rows: usize,
    pub cols: usize,
    pub stride: usize,
}

#[cfg_attr(
    all(gpu, not(feature = "cuda")),
    allow(dead_code, reason = "the emulator takes the place of the CPU bodies")
)]
enum DstData<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl Dst<'_> {
    /// The values in the format `T`, from the first to the last one of the view.
    pub fn values<T: Real>(&mut self) -> Result<&mut [T]> {
        let found = match &mut self.data {
            DstData::F32(s) => T::of_f32s_mut(s),
            DstData::Bf16(s) => T::of_bf16s_mut(s),
        };
        found.ok_or_else(|| candle_core::Error::Msg(format!("a kernel expected a {:?} destination", T::DTYPE)))
    }

    /// The values of an f32 destination.
    pub fn f32(&mut self) -> Result<&mut [f32]> {
        self.values()
    }

    pub fn dtype(&self) -> DType {
        match self.data {
            DstData::F32(_) => DType::F32,
            DstData::Bf16(_) => DType::BF16,
        }
    }
}

/// Runs an expression with the type `$t` standing for the format of an argument.
macro_rules! by_format {
    ($of:expr, $t:ident => $body:expr) => {
        if $of.dtype() == candle_core::DType::BF16 {
            type $t = half::bf16;
            $body
        } else {
            type $t = f32;
            $body
        }
    };
}
pub(crate) use by_format;

/// One fused operation. The order of destinations and sources is part of each op's contract.
pub trait Kernel {
    fn name(&self) -> &'static str;
    /// Runs on the CPU, on all threads of the current rayon pool.
    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()>;
    /// Asks a CUDA device for the same.
    #[cfg(gpu)]
    fn cuda(&self, gpu: &gpu::Gpu<'_>, dst: &[gpu::View], src: &[gpu::View]) -> Result<()>;
}

/// Whether ops over tensors of this device run their CUDA bodies: there, or on every device when CUDA is emulated.
pub fn on_gpu(device: &Device) -> bool {
    cfg!(all(gpu, not(feature = "cuda"))) || device.is_cuda()
}

/// Loads what ops on this device take, so that a device that lacks it is known before the work begins.
pub fn make_ready(device: &Device) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        gpu::Gpu::new(device)?;
    }
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        // candle's own kernels are loaded when they are first used, and may have been compiled for other GPUs.
        Tensor::ones(1, DType::F32, device)?.affine(2.0, 0.0)?.to_dtype(DType::F64)?;
    }
    _ = device;
    Ok(())
}

/// `(range, rows, cols, stride)` of a vector or a matrix whose last dimension is dense.
fn matrix(layout: &Layout) -> Result<(Range<usize>, usize, usize, usize)> {
    let (dims, strides, start) = (layout.dims(), layout.stride(), layout.start_offset());
    let (rows, cols, stride) = match *dims {
        [n] if n <= 1 || strides[0] == 1 => (1, n, n),
        [m, n] if n <= 1 || strides[1] == 1 => (m, n, if m <= 1 { n } else { strides[0] }),
        _ => bail!("a kernel takes vectors and matrices with a dense last dimension, not {layout:?}"),
    };
    let span = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
    Ok((start..start + span, rows, cols, stride))
}

/// Where a CPU tensor's storage begins; tells whether two tensors share it.
fn storage_address(t: &Tensor) -> Option<usize> {
    match &*t.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F32(v)) => Some(v.as_ptr() as usize),
        Storage::Cpu(CpuStorage::BF16(v)) => Some(v.as_ptr() as usize),
        Storage::Cpu(CpuStorage::U32(v)) => Some(v.as_ptr() as usize),
        #[cfg(feature = "cuda")]
        Storage::Cuda(s) => cuda_address(s).ok().map(|(at, _)| at as usize),
        _ => None,
    }
}

/// Where a CUDA tensor's storage begins, and its format.
#[cfg(feature = "cuda")]
fn cuda_address(storage: &candle_core::CudaStorage) -> Result<(u64, DType)> {
    use candle_core::cuda_backend::CudaStorageSlice;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    let stream = storage.device.cuda_stream();
    Ok(match &storage.slice {
        CudaStorageSlice::F32(s) => (s.device_ptr(&stream).0, DType::F32),
        CudaStorageSlice::BF16(s) => (s.device_ptr(&stream).0, DType::BF16),
        CudaStorageSlice::U32(s) => (s.device_ptr(&stream).0, DType::U32),
        // Read back, never a kernel's.
        CudaStorageSlice::F64(s) => (s.device_ptr(&stream).0, DType::F64),
        _ => bail!("a kernel takes f32, bf16 and u32"),
    })
}

/// What a CUDA body sees of a storage that begins at `start`.
#[cfg(gpu)]
fn gpu_view((start, dtype): (u64, DType), layout: &Layout) -> Result<gpu::View> {
    if dtype == DType::F64 {
        bail!("a kernel takes f32, bf16 and u32, not f64");
    }
    let (range, rows, cols, stride) = matrix(layout)?;
    Ok(gpu::View { at: start + (range.start * dtype.size_in_bytes()) as u64, dtype, rows, cols, stride })
}

/// Hands the values of a dense f32 tensor to `f`, without a copy if they are in this machine's memory.
pub fn with_values<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(v)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(f(&v[start..end]));
    }
    drop(storage);
    Ok(f(&t.flatten_all()?.to_vec1()?))
}

#[cfg(not(feature = "cuda"))]
pub use candle_core::WithDType as Value;

/// What tensors are made of, on a GPU too.
#[cfg(feature = "cuda")]
pub trait Value: candle_core::WithDType + gpu::Value {}
#[cfg(feature = "cuda")]
impl<T: candle_core::WithDType + gpu::Value> Value for T {}

/// A tensor of values on a device, which is not waited for.
pub fn to_device<T: Value>(values: &[T], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let shape = shape.into();
        if shape.elem_count() != values.len() {
            bail!("{} values for a tensor of the shape {shape:?}", values.len());
        }
        return gpu::upload(values, shape, device);
    }
    Tensor::from_slice(values, shape.into(), device)
}

/// Runs `kernel` on the device where the tensors live.
pub fn launch(kernel: &dyn Kernel, dst: &[&Tensor], src: &[&Tensor]) -> Result<()> {
    // Taking a storage's write lock while its read lock is held would wait for ever, so refuse first.
    for (i, d) in dst.iter().enumerate() {
        let at = storage_address(d);
        if at.is_some() && dst[..i].iter().chain(src).any(|t| storage_address(t) == at) {
            bail!("{}: destination {i} shares its storage with another argument", kernel.name());
        }
    }
    let Some((first, rest)) = dst.split_first() else { bail!("{}: no destination", kernel.name()) };
    first.inplace_op1(&Launch {
        kernel,
        rest,
        src,
        locked: RefCell::default(),
        #[cfg(feature = "cuda")]
        views: RefCell::default(),
    })
}

/// One destination is locked per level of recursion; the innermost level runs the kernel.
struct Launch<'a> {
    kernel: &'a dyn Kernel,
    rest: &'a [&'a Tensor],
    src: &'a [&'a Tensor],
    locked: RefCell<Vec<RawDst>>,
    /// Instead of these, on a device.
    #[cfg(feature = "cuda")]
    views: RefCell<Vec<gpu::View>>,
}

#[derive(Clone, Copy)]
struct RawDst {
    data: RawData,
    rows: usize,
    cols: usize,
    stride: usize,
}

#[derive(Clone, Copy)]
enum RawData {
    F32(*mut [f32]),
    Bf16(*mut [bf16]),
}

impl InplaceOp1 for Launch<'_> {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (range, rows, cols, stride) = matrix(layout)?;
        let data = match storage {
            CpuStorage::F32(v) => RawData::F32(&mut v[range]),
            CpuStorage::BF16(v) => RawData::Bf16(&mut v[range]),
            _ => bail!("{}: destinations are f32 or bf16", self.kernel.name()),
        };
        let mut locked = self.locked.take();
        locked.push(RawDst { data, rows, cols, stride });
        if let Some((next, rest)) = self.rest.split_first() {
            let inner = Launch {
                kernel: self.kernel,
                rest,
                src: self.src,
                locked: RefCell::new(locked),
                #[cfg(feature = "cuda")]
                views: RefCell::default(),
            };
            return next.inplace_op1(&inner);
        }
        let guards: Vec<_> = self.src.iter().map(|t| t.storage_and_layout()).collect();
        #[cfg(all(gpu, not(feature = "cuda")))]
        return self.emulate(&locked, &guards);
        #[cfg(any(not(gpu), feature = "cuda"))]
        self.run_on_cpu(&locked, &guards)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let mut views = self.views.take();
        views.push(gpu_view(cuda_address(storage)?, layout)?);
        if let Some((next, rest)) = self.rest.split_first() {
            let (kernel, src, views) = (self.kernel, self.src, RefCell::new(views));
            return next.inplace_op1(&Launch { kernel, rest, src, locked: RefCell::default(), views });
        }
        let guards: Vec<_> = self.src.iter().map(|t| t.storage_and_layout()).collect();
        let src = guards
            .iter()
            .map(|(storage, layout)| match &**storage {
                Storage::Cuda(s) => gpu_view(cuda_address(s)?, layout),
                _ => bail!("{}: sources are on the destination's device", self.kernel.name()),
            })
            .collect::<Result<Vec<_>>>()?;
        self.kernel.cuda(&gpu::Gpu::new(&storage.device)?, &views, &src)
    }
}

impl Launch<'_> {
    /// Runs the CUDA body on this machine's memory.
    #[cfg(all(gpu, not(feature = "cuda")))]
    fn emulate<S: Deref<Target = Storage>>(&self, locked: &[RawDst], guards: &[(S, &Layout)]) -> Result<()> {
        let dst: Vec<_> = locked
            .iter()
            .map(|d| {
                let (at, dtype) = match d.data {
                    RawData::F32(v) => (v.cast::<f32>() as u64, DType::F32),
                    RawData::Bf16(v) => (v.cast::<bf16>() as u64, DType::BF16),
                };
                gpu::View { at, dtype, rows: d.rows, cols: d.cols, stride: d.stride }
            })
            .collect();
        let src = guards
            .iter()
            .map(|(storage, layout)| {
                let start = match &**storage {
                    Storage::Cpu(CpuStorage::F32(v)) => (v.as_ptr() as u64, DType::F32),
                    Storage::Cpu(CpuStorage::BF16(v)) => (v.as_ptr() as u64, DType::BF16),
                    Storage::Cpu(CpuStorage::U32(v)) => (v.as_ptr() as u64, DType::U32),
                    _ => bail!("{}: sources are f32, bf16 or u32 on the CPU", self.kernel.name()),
                };
                gpu_view(start, layout)
            })
            .collect::<Result<Vec<_>>>()?;
        self.kernel.cuda(&gpu::Gpu::new(), &dst, &src)
    }

    #[cfg(any(not(gpu), feature = "cuda"))]
    fn run_on_cpu<S: Deref<Target = Storage>>(&self, locked: &[RawDst], guards: &[(S, &Layout)]) -> Result<()> {
        let src = guards
            .iter()
            .map(|(storage, layout)| {
                let (range, rows, cols, stride) = matrix(layout)?;
                let data = match &**storage {
                    Storage::Cpu(CpuStorage::F32(v)) => SrcData::F32(&v[range]),
                    Storage::Cpu(CpuStorage::BF16(v)) => SrcData::Bf16(&v[range]),
                    Storage::Cpu(CpuStorage::U32(v)) => SrcData::U32(&v[range]),
                    _ => bail!("{}: sources are f32, bf16 or u32 on the CPU", self.kernel.name()),
                };
                Ok(Src { data, rows, cols, stride })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut dst: Vec<Dst> = locked
            .iter()
            .map(|d| Dst {
                // SAFETY: each comes from a `&mut CpuStorage` that an outer level of this recursion still holds, and
                // `launch` made sure that no two arguments share a storage.
                data: unsafe {
                    match d.data {
                        RawData::F32(v) => DstData::F32(&mut *v),
                        RawData::Bf16(v) => DstData::Bf16(&mut *v),
                    }
                },
                rows: d.rows,
                cols: d.cols,
                stride: d.stride,
            })
            .collect();
        self.kernel.cpu(&mut dst, &src)
    }
}

#[cfg(test)]
mod tests {
    use super::cpu::LEVEL_VARIABLE;

    /// The level is fixed in a process, so the lower ones get processes of their own.
    #[test]
    fn every_body_passes_the_tests_of_the_ops() {
        if std::env::var_os(LEVEL_VARIABLE).is_some() {
            return;
        }
        for level in ["baseline", "avx2", "avx512", "amx"] {
            let tests = std::env::current_exe().unwrap();
            let output = std::process::Command::new(tests).arg("ops::").env(LEVEL_VARIABLE, level).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{level}: {text}");
            assert!(!text.contains("running 0 tests"), "{level}: {text}");
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the ops' tests share.
    use candle_core::{DType, Device, Tensor};

    /// Repeatable values in about [-1, 1].
    pub fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| crate::rng::bits(seed, seed ^ 7, i) as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
    }

    pub fn matrix(rows: usize, cols: usize, seed: u32) -> Tensor {
        Tensor::from_vec(values(rows * cols, seed), (rows, cols), &Device::Cpu).unwrap()
    }

    pub fn vector(n: usize, seed: u32) -> Tensor {
        Tensor::from_vec(values(n, seed), n, &Device::Cpu).unwrap()
    }

    pub fn zeros(rows: usize, cols: usize) -> Tensor {
        Tensor::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap()
    }

    /// The values, widened if they are bf16.
    pub fn flat(t: &Tensor) -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The same values in bf16, rounded.
    pub fn bf16(t: &Tensor) -> Tensor {
        t.to_dtype(DType::BF16).unwrap()
    }

    /// Widened to f32.
    pub fn wide(t: &Tensor) -> Tensor {
        t.to_dtype(DType::F32).unwrap()
    }

    /// That a bf16 result is the f32 one of the same inputs but for rounding: half a step (2⁻⁸) of itself, and of values that
    /// were rounded on the way (`scale`, the largest among them).
    pub fn rounded(got: &Tensor, want: &Tensor, scale: f32, what: &str) {
        assert_eq!(got.dtype(), DType::BF16, "{what}");
        for (i, (g, w)) in flat(got).iter().zip(flat(want)).enumerate() {
            assert!((g - w).abs() <= (w.abs() + scale) / 255.0 + 1e-6, "{what}[{i}]: {g} is not {w}");
        }
    }

    /// That a bf16 result is the f32 one of the same inputs, row by row, but for what weights rounded to bf16 on the way leave,
    /// as tensor cores take them.
    pub fn near(got: &Tensor, want: &Tensor, what: &str) {
        assert_eq!((got.dtype(), got.dims()), (DType::BF16, want.dims()), "{what}");
        let columns = want.dims()[1];
        for (row, (g, w)) in flat(got).chunks(columns).zip(flat(want).chunks(columns)).enumerate() {
            let size = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
            let (off, whole) = (size(&mut g.iter().zip(w).map(|(g, w)| g - w)), size(&mut w.iter().copied()));
            assert!(off <= 0.01 * whole + 1e-5, "{what}, row {row}: {off} of {whole}");
        }
    }

    pub fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
        assert_eq!(got.len(), want.len(), "{what}: length");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((*g as f64 - w).abs() <= tolerance * (1.0 + w.abs()), "{what}[{i}]: {g} is not {w}");
        }
    }
}
