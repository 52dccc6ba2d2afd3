//! `bertft info`: what this build and this machine offer.

use super::Globals;
use super::ui::Ui;
use crate::data::cache::directory;
use crate::device::driver::{Driver, Gpu, Missing, check_gpu, check_version, driver, this_program_is_for, usable};
use crate::error::Result;
use crate::hub::Settings;
use crate::ops::cpu::{Level, has_amx, has_avx512_bf16, level};
use crate::ops::gemm::{Bf16Engine, bf16_engine};
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
    let cache = directory();
    let models = Settings::from_env(globals.offline)?.cache;
    let cuda = cuda();
    if ui.is_json() {
        let has: serde_json::Map<_, _> = features.iter().map(|(name, has)| (name.to_string(), json!(has))).collect();
        return ui.out_json(&json!({
            "event": "info",
            "version": version,
            "target": target,
            "devices": devices(&cuda),
            "cuda": {
                "gpus": cuda.iter().flat_map(|driver| &driver.gpus).map(|gpu| &gpu.name).collect::<Vec<_>>(),
                "missing": cuda.as_ref().err().map(ToString::to_string),
            },
            "device": globals.device,
            "cpu_features": has,
            "kernels": kernels(),
            "bf16_products": bf16_engine().map(Bf16Engine::name),
            "cache_paths": cache.iter().chain(&models).collect::<Vec<_>>(),
            "threads": globals.threads(),
        }));
    }
    let yes_no: Vec<_> =
        features.iter().map(|(name, has)| format!("{name} {}", if *has { "yes" } else { "no" })).collect();
    ui.out(&format!(
        "version       {version} ({target})\n\
         devices       {}; chosen: {}\n\
         CUDA          {}\n\
         CPU features  {}\n\
         kernels       {}; bf16 products by {}\n\
         threads       {}\n\
         cache         {}\n\
         models        {}",
        devices(&cuda).join(", "),
        globals.device,
        cuda.map_or_else(|why| format!("not used: {why}"), |driver| gpus(&driver)),
        if yes_no.is_empty() { "none known for this CPU".into() } else { yes_no.join(", ") },
        kernels(),
        bf16_engine().map_or("none, computed in f32", Bf16Engine::name),
        globals.threads(),
        cache.map_or_else(
            || "none: none of BERTFT_CACHE, XDG_CACHE_HOME and HOME is set".into(),
            |dir| format!("{} (tokens of large data files)", dir.display())
        ),
        models.map_or_else(
            || "none: none of HF_HOME and HOME is set".into(),
            |dir| format!("{} (of the hub)", dir.display())
        ),
    ))
}

/// What the driver says, where any of the GPUs can be used.
fn cuda() -> Result<Driver, Missing> {
    let driver = match this_program_is_for() {
        Some(needed) => driver().and_then(|driver| check_version(&driver, needed).map(|()| driver))?,
        None => usable()?.driver,
    };
    let all: Vec<_> = (0..driver.gpus.len()).map(|i| check_gpu(&driver, i)).collect();
    if all.iter().all(Result::is_err) {
        all.into_iter().collect::<Result<(), _>>()?
    }
    Ok(driver)
}

fn devices(cuda: &Result<Driver, Missing>) -> Vec<String> {
    let usable = |driver: &Driver| (0..driver.gpus.len()).filter(|&i| check_gpu(driver, i).is_ok()).collect::<Vec<_>>();
    let gpus = cuda.as_ref().map_or(vec![], usable);
    std::iter::once("cpu".to_owned()).chain(gpus.iter().map(|i| format!("cuda:{i}"))).collect()
}

fn gpus(driver: &Driver) -> String {
    let describe = |gpu: &Gpu| format!("{} (compute capability {}.{})", gpu.name, gpu.capability.0, gpu.capability.1);
    driver.gpus.iter().map(describe).collect::<Vec<_>>().join(", ")
}

/// The instruction set that the fused loops use.
fn kernels() -> &'static str {
    match level() {
        Level::Baseline => "baseline",
        Level::Avx2 => "AVX2",
        Level::Avx512 | Level::Amx => "AVX-512",
    }
}

/// The instruction sets that matter here, and whether this CPU and its operating system have them.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<(&'static str, bool)> {
    vec![
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
        ("AVX512-BF16", has_avx512_bf16()),
        ("AMX", has_amx()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<(&'static str, bool)> {
    vec![]
}
