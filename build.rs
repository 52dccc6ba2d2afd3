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

/// Code for compute capability 8.0 (for 8.6 and 8.9 too) and 9.0, and portable PTX of 8.0, in one file, which the driver chooses
/// from.
fn compile_for_devices(out: &Path) {
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let nvcc: PathBuf = std::env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-O3", "-std=c++17"]);
    command.args(["-gencode", "arch=compute_80,code=[sm_80,compute_80]", "-gencode", "arch=compute_90,code=sm_90"]);
    command.arg("-o").arg(out.join("kernels.fatbin")).arg("src/ops/gpu/all.cu");
    run(command, HINT);
    println!("cargo::rustc-env=BERTFT_CUDA_VERSION={}", version(&nvcc));
    // CUDA's libraries may lie beside the program; theirs of one another are found there too, as it is no "new" tag.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-link-arg-bin=bertft-cuda=-Wl,--disable-new-dtags,-rpath,$ORIGIN");
    }
}

const HINT: &str = "the feature `cuda` needs the CUDA toolkit: set CUDA_HOME, or see scripts/cuda-toolkit.sh";

/// The toolkit's version as drivers count it: 13010 for 13.1.
fn version(nvcc: &Path) -> u32 {
    let output = Command::new(nvcc).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let number = || {
        let (_, rest) = text.split_once("release ")?;
        let (major, rest) = rest.split_once('.')?;
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(1000 * major.parse::<u32>().ok()? + 10 * minor.parse::<u32>().ok()?)
    };
    number().unwrap_or_else(|| panic!("{} --version names no release: {text:?}; {HINT}", nvcc.display()))
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
