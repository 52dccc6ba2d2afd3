//! Which device a run computes on, chosen at run time.

pub mod driver;

use crate::error::{Error, Result};
use candle_core::{Device, DeviceLocation};

/// The device of `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the best that this build and machine have.
///
/// # Errors
/// [`Error::Input`] when the name is none of these, or a device that this build or machine does not have.
pub fn parse(name: &str) -> Result<Device> {
    if !is_name(name) {
        return Err(Error::input(format!("the device \"{name}\" is not one of auto, cpu, cuda, cuda:N")));
    }
    match ordinal(name) {
        Some(gpu) => cuda(gpu).map_err(|why| Error::input(format!("the device \"{name}\" cannot be used: {why}"))),
        None if name == "auto" => Ok(cuda(0).unwrap_or(Device::Cpu)),
        None => Ok(Device::Cpu),
    }
}

/// The number of the GPU that `cuda` or `cuda:N` asks for.
pub fn ordinal(name: &str) -> Option<usize> {
    if name == "cuda" { Some(0) } else { name.strip_prefix("cuda:")?.parse().ok() }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device, String> {
    Err("this build has no CUDA; use cpu or auto".into())
}

/// One stream serves all, so nothing needs to be tracked between streams, and freed memory is kept for the next batch.
#[cfg(feature = "cuda")]
fn cuda(gpu: usize) -> Result<Device, String> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};
    let driver = driver::driver().map_err(|why| why.to_string())?;
    driver::check_ordinal(&driver, gpu).map_err(|why| why.to_string())?;
    let device = Device::new_cuda_with_stream(gpu).map_err(|e| e.to_string())?;
    let cuda = device.as_cuda_device().map_err(|e| e.to_string())?;
    // SAFETY: `device` has one stream and gives out no other; the pool is that of a device which was opened just now.
    unsafe {
        cuda.disable_event_tracking();
        let keep = u64::MAX;
        let mut pool = std::ptr::null_mut();
        let number = result::device::get(gpu as i32).map_err(|e| e.to_string())?;
        let release_at = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuDeviceGetDefaultMemPool(&mut pool, number)
            .result()
            .and_then(|()| sys::cuMemPoolSetAttribute(pool, release_at, (&raw const keep).cast_mut().cast()).result())
            .map_err(|e| e.to_string())?;
    }
    Ok(device)
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

/// Whether `name` is spelled like a device, in this build or another.
pub fn is_name(name: &str) -> bool {
    match name.strip_prefix("cuda:") {
        Some(n) => !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && n.parse::<usize>().is_ok(),
        None => matches!(name, "auto" | "cpu" | "cuda"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(parse("cpu").unwrap().is_cpu());
        if cfg!(not(feature = "cuda")) {
            assert!(parse("auto").unwrap().is_cpu());
            for name in ["cuda", "cuda:0", "cuda:12"] {
                assert!(parse(name).unwrap_err().to_string().contains("no CUDA"), "{name}");
            }
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CPU"] {
            assert!(parse(name).unwrap_err().to_string().contains("not one of"), "{name}");
        }
        assert_eq!(["auto", "cpu", "cuda", "cuda:3"].map(ordinal), [None, None, Some(0), Some(3)]);
    }
}
