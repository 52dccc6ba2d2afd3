//! Which device a run computes on, chosen at run time.

pub mod driver;

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{DriverError, result, sys};
use candle_core::{Device, DeviceLocation};

/// Opens the device of `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the best that this build and machine have for the work: a GPU
/// is out where `without_kernels` names what it cannot compute. `ready` loads what computing on a device takes. Beside the
/// device, a note where `auto` found a GPU and it cannot be used.
///
/// # Errors
/// [`Error::Input`] when the name is none of these, or a device that this build or machine does not have, or that cannot
/// do the work.
pub fn open(
    name: &str,
    without_kernels: &[String],
    ready: impl Fn(&Device) -> candle_core::Result<()>,
) -> Result<(Device, Option<String>)> {
    let gpu = |number| {
        let device = cuda(number)?;
        ready(&device).map_err(|e| format!("the kernels cannot be loaded: {e}"))?;
        Ok(device)
    };
    choose(name, without_kernels, cfg!(feature = "cuda"), gpu)
}

fn choose(
    name: &str,
    without_kernels: &[String],
    has_cuda: bool,
    gpu: impl Fn(usize) -> Result<Device, String>,
) -> Result<(Device, Option<String>)> {
    check_name(name)?;
    let asked = ordinal(name);
    if asked.is_none() && (name == "cpu" || !has_cuda) {
        return Ok((Device::Cpu, None));
    }
    let found = if has_cuda && !without_kernels.is_empty() {
        Err(format!("there are no CUDA kernels yet for {}", without_kernels.join(", ")))
    } else {
        gpu(asked.unwrap_or(0))
    };
    match (found, asked) {
        (Ok(device), _) => Ok((device, None)),
        (Err(why), Some(_)) => Err(refusal(name, &why)),
        (Err(why), None) => Ok((Device::Cpu, Some(on_the_cpu(&why)))),
    }
}

/// The error of a device that was asked for.
pub fn refusal(name: &str, why: &str) -> Error {
    Error::input(format!("the device \"{name}\" cannot be used: {why}; or compute with --device cpu"))
}

/// The note of a GPU that was not asked for.
pub fn on_the_cpu(why: &str) -> String {
    format!("computing on the CPU, as the GPU cannot be used: {why}")
}

/// The number of the GPU that `cuda` or `cuda:N` asks for.
pub fn ordinal(name: &str) -> Option<usize> {
    if name == "cuda" { Some(0) } else { name.strip_prefix("cuda:")?.parse().ok() }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device, String> {
    Err("this build has no CUDA".into())
}

/// One stream serves all, so nothing needs to be tracked between streams, and freed memory is kept for the next batch.
#[cfg(feature = "cuda")]
fn cuda(gpu: usize) -> Result<Device, String> {
    let check = || {
        let driver = driver::driver()?;
        driver::this_program_is_for().map_or(Ok(()), |needed| driver::check_version(&driver, needed))?;
        driver::check_gpu(&driver, gpu)
    };
    check().map_err(|why| why.to_string())?;
    let device = Device::new_cuda_with_stream(gpu).map_err(|e| e.to_string())?;
    let cuda = device.as_cuda_device().map_err(|e| e.to_string())?;
    // Kept to the end of the process: behind a fault of the GPU its libraries refuse to be closed, and cudarc then panics.
    std::mem::forget(cuda.clone());
    // SAFETY: `device` has one stream and gives out no other.
    unsafe { cuda.disable_event_tracking() };
    if cuda.cuda_stream().context().has_async_alloc() {
        keep_freed_memory(gpu).map_err(|e| e.to_string())?;
    }
    Ok(device)
}

/// The memory pool of a GPU that is open and has pools.
#[cfg(feature = "cuda")]
fn pool(gpu: usize) -> Result<sys::CUmemoryPool, DriverError> {
    let (number, mut pool) = (result::device::get(gpu as i32)?, std::ptr::null_mut());
    // SAFETY: the driver is started, and writes the pool to its place.
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, number).result()? };
    Ok(pool)
}

/// Lets it give nothing back to the driver.
#[cfg(feature = "cuda")]
fn keep_freed_memory(gpu: usize) -> Result<(), DriverError> {
    let (keep, release_at) = (u64::MAX, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD);
    // SAFETY: the pool of a GPU; the value is of the attribute's type.
    unsafe { sys::cuMemPoolSetAttribute(pool(gpu)?, release_at, (&raw const keep).cast_mut().cast()).result() }
}

/// Has it give back what is free now.
#[cfg(feature = "cuda")]
fn release_pool(gpu: usize) -> Result<(), DriverError> {
    // SAFETY: the pool of a GPU.
    unsafe { sys::cuMemPoolTrimTo(pool(gpu)?, 0).result() }
}

/// Memory of a GPU that nobody holds, in bytes; `None` for the CPU.
pub fn free_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        device.cuda_stream().context().bind_to_thread().ok()?;
        let (free, _) = result::mem_get_info().ok()?;
        return Some(free as u64);
    }
    _ = device;
    None
}

/// Has a GPU give back what [`open`] lets it keep of freed memory: pieces too small for what is asked next.
pub fn release_freed(device: &Device) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device
        && gpu.cuda_stream().context().has_async_alloc()
    {
        use candle_core::cuda_backend::WrapErr;
        device.synchronize()?;
        release_pool(gpu.cuda_stream().context().ordinal()).w()?;
    }
    _ = device;
    Ok(())
}

/// Whether an error says that a device had no memory left.
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    // The driver's and cuBLAS's names for it; candle hands them on as text.
    let text = error.to_string();
    ["OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|name| text.contains(name))
}

/// What a device is called in output.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// That `name` is spelled like a device, in this build or another.
///
/// # Errors
/// [`Error::Input`] when it is not.
pub fn check_name(name: &str) -> Result<()> {
    let is_name = match name.strip_prefix("cuda:") {
        Some(n) => !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && n.parse::<usize>().is_ok(),
        None => matches!(name, "auto" | "cpu" | "cuda"),
    };
    if is_name {
        return Ok(());
    }
    Err(Error::input(format!("the device \"{name}\" is not one of auto, cpu, cuda, cuda:N")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Result<(Device, Option<String>)> {
        open(name, &[], |_| Ok(()))
    }

    #[test]
    fn names() {
        assert!(parse("cpu").unwrap().0.is_cpu());
        if cfg!(not(feature = "cuda")) {
            assert!(matches!(parse("auto"), Ok((Device::Cpu, None))));
            for name in ["cuda", "cuda:0", "cuda:12"] {
                assert!(parse(name).unwrap_err().to_string().contains("no CUDA"), "{name}");
                let lacks = ["everything".to_owned()];
                assert!(open(name, &lacks, |_| Ok(())).unwrap_err().to_string().contains("no CUDA"), "{name}");
            }
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CPU"] {
            assert!(parse(name).unwrap_err().to_string().contains("not one of"), "{name}");
        }
        assert_eq!(["auto", "cpu", "cuda", "cuda:3"].map(ordinal), [None, None, Some(0), Some(3)]);
    }

    /// Where a GPU does not open, and where the work has no kernels, `auto` says why it is not used.
    #[test]
    fn auto_falls_back_with_the_reason() {
        let broken = |number: usize| Err(format!("GPU {number} is out of order"));
        let lacks = ["rotary positions".to_owned(), "train.ema_decay".to_owned()];
        // The CPU stands for a GPU that opens.
        let works = |_| Ok(Device::Cpu);
        for (lacks, gpu, says) in [
            (&[][..], &broken as &dyn Fn(usize) -> Result<Device, String>, "GPU 0 is out of order"),
            (&lacks[..], &works, "no CUDA kernels yet for rotary positions, train.ema_decay"),
        ] {
            let note = choose("auto", lacks, true, gpu).unwrap().1.unwrap();
            assert!(note.starts_with("computing on the CPU") && note.contains(says), "{note}");
            let error = choose("cuda:0", lacks, true, gpu).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(says), "{error}");
            assert_eq!(choose("cpu", lacks, true, gpu).unwrap().1, None);
        }
        assert_eq!(choose("auto", &[], true, works).unwrap().1, None);
        assert!(choose("cuda:3", &[], true, broken).unwrap_err().to_string().contains("GPU 3"));
    }
}
