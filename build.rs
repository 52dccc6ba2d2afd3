//! Compiles the CUDA kernels where a feature asks for them, and does nothing otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(gpu)");
    println!("cargo::rerun-if-changed=build.rs");
    let has = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if !has("CUDA") && !has("CUDA_EMULATOR") {
        return;
    }
    // The CUDA bodies of the ops, on a device or emulated.
    println!("cargo::rustc-cfg=gpu");
    println!("cargo::rerun-if-changed=src/ops");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    if has("CUDA") { compile_for_devices(&out) } else { compile_for_the_emulator(&out) }
}

/// Code for compute capability 9.0 and portable PTX of 8.0 in one file, which the driver chooses from.
fn compile_for_devices(out: &Path) {
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let nvcc = std::env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17"]);
    command.args(["-gencode", "arch=compute_80,code=compute_80", "-gencode", "arch=compute_90,code=sm_90"]);
    command.arg("-o").arg(out.join("kernels.fatbin")).arg("src/ops/gpu/all.cu");
    run(command, "the feature `cuda` needs the CUDA toolkit: set CUDA_HOME, or see scripts/cuda-toolkit.sh");
}

/// The same sources as C++ in a shared library.
fn compile_for_the_emulator(out: &Path) {
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or("g++".into()));
    command.args(["-shared", "-fPIC", "-O2", "-std=c++17", "-w"]);
    command.arg("-o").arg(out.join("libkernels.so")).arg("src/ops/gpu/emulator.cpp");
    run(command, "the feature `cuda-emulator` needs a C++ compiler: set CXX");
    println!("cargo::rustc-link-search=native={}", out.display());
}

fn run(mut command: Command, hint: &str) {
    let done = command.status();
    assert!(done.as_ref().is_ok_and(|status| status.success()), "{command:?}: {done:?}; {hint}");
}
