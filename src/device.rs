//! Which device a run computes on, chosen at run time.

use crate::error::{Error, Result};
use candle_core::{Device, DeviceLocation};

/// The device of `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the best that this build and machine have: the CPU.
///
/// # Errors
/// [`Error::Input`] when the name is none of these, or a device that this build does not have.
pub fn parse(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        _ if is_name(name) => {
            Err(Error::input(format!("the device \"{name}\" is not in this build, which has no CUDA; use cpu or auto")))
        }
        _ => Err(Error::input(format!("the device \"{name}\" is not one of auto, cpu, cuda, cuda:N"))),
    }
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
        assert!(parse("auto").unwrap().is_cpu());
        assert!(parse("cpu").unwrap().is_cpu());
        for name in ["cuda", "cuda:0", "cuda:12"] {
            assert!(parse(name).unwrap_err().to_string().contains("no CUDA"), "{name}");
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CPU"] {
            assert!(parse(name).unwrap_err().to_string().contains("not one of"), "{name}");
        }
    }
}
