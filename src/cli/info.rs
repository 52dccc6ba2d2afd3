//! `bertft info`: what this build and this machine offer.

use super::Globals;
use super::ui::Ui;
use crate::error::Result;
use crate::ops::cpu::{Level, level};
use clap::Args;
use serde_json::json;

/// Show version, devices, CPU features and threads
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  What a bug report needs:
    bertft info
  Whether a machine has AMX, for a script:
    bertft info --json")]
pub struct InfoArgs {}

/// Runs the command.
pub fn run(_args: &InfoArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let target = format!("{} {}", std::env::consts::ARCH, std::env::consts::OS);
    let features = cpu_features();
    if ui.is_json() {
        let has: serde_json::Map<_, _> = features.iter().map(|(name, has)| (name.to_string(), json!(has))).collect();
        return ui.out_json(&json!({
            "event": "info",
            "version": version,
            "target": target,
            "devices": ["cpu"],
            "device": globals.device,
            "cpu_features": has,
            "kernels": kernels(),
            "cache_paths": [],
            "threads": globals.threads(),
        }));
    }
    let yes_no: Vec<_> =
        features.iter().map(|(name, has)| format!("{name} {}", if *has { "yes" } else { "no" })).collect();
    ui.out(&format!(
        "version       {version} ({target})\n\
         devices       cpu (this build has no CUDA); chosen: {}\n\
         CPU features  {}\n\
         kernels       {}\n\
         threads       {}\n\
         cache paths   none: hub download is not in this version",
        globals.device,
        if yes_no.is_empty() { "none known for this CPU".into() } else { yes_no.join(", ") },
        kernels(),
        globals.threads()
    ))
}

/// The instruction set that the fused loops use.
fn kernels() -> &'static str {
    match level() {
        Level::Baseline => "baseline",
        Level::Avx2 => "AVX2",
        Level::Avx512 => "AVX-512",
    }
}

/// The instruction sets that matter here, and whether this CPU and its operating system have them.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<(&'static str, bool)> {
    vec![
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
        ("AVX512-BF16", is_x86_feature_detected!("avx512bf16")),
        ("AMX", has_amx()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<(&'static str, bool)> {
    vec![]
}

/// AMX tiles with bf16: the CPU has them and Linux grants them to this process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    let has_leaf_7 = std::arch::x86_64::__cpuid(0).eax >= 7;
    let edx = if has_leaf_7 { std::arch::x86_64::__cpuid_count(7, 0).edx } else { 0 };
    let (amx_bf16, amx_tile) = (edx >> 22 & 1, edx >> 24 & 1);
    // SAFETY: `arch_prctl` with this request reads and writes none of our memory.
    let granted = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 };
    amx_bf16 == 1 && amx_tile == 1 && granted()
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_amx() -> bool {
    false
}
