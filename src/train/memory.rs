//! How much memory a training will take, told before it begins.

use super::config::TrainConfig;
use super::plan::{Epoch, Plan};
use crate::data::Dataset;
use crate::data::sampler::length_sorted;
use crate::model::{Model, TrainingPlan};
use candle_core::Device;

/// What a training will take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The process's peak of resident memory, in bytes.
    pub peak_rss_bytes: u64,
    /// How much of the memory that it is computed in is not held yet.
    pub growth_bytes: u64,
    /// What a GPU holds instead, weights included; 0 on the CPU.
    pub device_bytes: u64,
}

/// The memory of a process that trains `model` on `data` and scores it on `scored`: what it holds now, and what training
/// will touch. Data and weights are loaded already; the rest is arithmetic over the largest batch.
pub fn estimate_memory(model: &Model, data: &Dataset, scored: &[&Dataset], config: &TrainConfig) -> Estimate {
    let eval_tokens = scored.iter().map(|data| {
        let lengths = data.tokens.lengths();
        // Longest first.
        let rows = length_sorted(&lengths, config.eval_batch_size).into_iter().next().unwrap_or_default();
        rows.iter().map(|&r| lengths[r]).sum()
    });
    let passes = if config.r_drop > 0.0 { 2 } else { 1 };
    let (tokens, rows) = largest_batch(data, config);
    let words = data.tokens.distinct();
    let of_window = (tokens * config.gradient_accumulation_steps).min(words.len());
    let (tokens, rows) = (passes * tokens, passes * rows);
    let longest = scored.iter().copied().chain([data]).flat_map(|data| data.tokens.lengths()).max();
    let plan = TrainingPlan {
        tokens,
        eval_tokens: eval_tokens.max().unwrap_or(0),
        rows,
        longest: longest.unwrap_or(1),
        words,
        moved_words: if config.fgm_epsilon > 0.0 { of_window } else { 0 },
        page_bytes: page_bytes(),
        weight_decay: config.weight_decay,
        recompute: config.gradient_checkpointing,
    };
    let training_bytes = model.training_bytes(&plan) as u64;
    if !model.params.device().is_cpu() {
        let device_bytes = 4 * model.params.arena_len() as u64 + training_bytes;
        let growth_bytes = model.buffer_bytes(&plan) as u64;
        return Estimate { peak_rss_bytes: peak_rss_bytes(), growth_bytes, device_bytes };
    }
    let growth_bytes = training_bytes + SCRATCH_BYTES * rayon::current_num_threads() as u64;
    Estimate { peak_rss_bytes: (rss_bytes() + growth_bytes).max(peak_rss_bytes()), growth_bytes, device_bytes: 0 }
}

/// What a thread's packing of operands and attention scratch were seen to take.
const SCRATCH_BYTES: u64 = 4 << 20;

/// Epochs whose batches are looked at for the largest: more find hardly a larger one and cost time at the start.
const EPOCHS: usize = 5;

/// Tokens and rows of the largest batches of the run's first epochs.
fn largest_batch(data: &Dataset, config: &TrainConfig) -> (usize, usize) {
    let (mut tokens, mut rows) = (0, 0);
    for (epoch, steps) in Plan::new(config, data).by_epoch().take(EPOCHS) {
        for batch in Epoch::new(config, data, epoch).batches(steps) {
            tokens = tokens.max(batch.iter().map(|&r| data.tokens.len_of(r)).sum());
            rows = rows.max(batch.len());
        }
    }
    (tokens, rows)
}

/// The unit in which the system hands out large allocations: huge pages where Linux has them, as the allocator asks for
/// them.
fn page_bytes() -> usize {
    let modes = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if modes.is_ok_and(|modes| !modes.contains("[never]")) { 2 << 20 } else { 4 << 10 }
}

/// The most memory that the process has held so far, in bytes.
pub fn peak_rss_bytes() -> u64 {
    // SAFETY: getrusage fills the zeroed struct it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    usage.ru_maxrss as u64 * unit
}

/// The memory that the process holds now, in bytes; its peak so far where the system does not say.
fn rss_bytes() -> u64 {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        // SAFETY: sysconf reads nothing of ours.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Some(pages * u64::try_from(page).ok()?)
    };
    resident().unwrap_or_else(peak_rss_bytes)
}

/// `config` with the largest batches that fit: those it has, or else smaller ones ([`TrainConfig::with_smaller_batches`]), with what
/// `estimate` says of them, until they take no more than is free or cannot be smaller.
pub fn fitting_batches(
    config: &TrainConfig,
    free: Option<u64>,
    estimate: impl Fn(&TrainConfig) -> Estimate,
) -> (TrainConfig, Estimate) {
    let mut fitting = (config.clone(), estimate(config));
    while free.is_some_and(|free| fitting.1.growth_bytes > free)
        && let Some(smaller) = fitting.0.with_smaller_batches()
    {
        let memory = estimate(&smaller);
        fitting = (smaller, memory);
    }
    fitting
}

/// Memory that a device still has, in bytes, where it says: a GPU's own, or what [`available_bytes`] finds.
pub fn free_bytes(device: &Device) -> Option<u64> {
    if device.is_cpu() { available_bytes() } else { crate::device::free_bytes(device) }
}

/// Memory that can still be had without swapping, in bytes, where the system says: the machine's, or less in a container
/// with a limit of its own.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    let number = |file: &str| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max"); // "max" is no number and no limit
    let left = limit.zip(number("/sys/fs/cgroup/memory.current")).map(|(max, used)| max.saturating_sub(used));
    Some((kib * 1024).min(left.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_until_they_fit() {
        let config = TrainConfig { batch_size: Some(24), gradient_accumulation_steps: 2, ..TrainConfig::default() };
        // A gigabyte a row.
        let estimate = |config: &TrainConfig| {
            let growth_bytes = config.batch_size.unwrap() as u64 * 1_000_000_000;
            Estimate { peak_rss_bytes: 0, growth_bytes, device_bytes: 0 }
        };
        let fit = |free: Option<u64>| {
            let (fitting, memory) = fitting_batches(&config, free, estimate);
            assert_eq!(memory, estimate(&fitting));
            (fitting.batch_size.unwrap(), fitting.gradient_accumulation_steps)
        };
        let free = [30, 24, 23, 11, 5, 2, 0].map(|n| fit(Some(n * 1_000_000_000)));
        assert_eq!(free, [(24, 2), (24, 2), (12, 4), (6, 8), (3, 16), (1, 48), (1, 48)]);
        assert_eq!(fit(None), (24, 2));
    }
}
