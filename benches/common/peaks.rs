//! What the machine can do at most, measured on the threads in use: the denominators of all shares.

use super::kernels::{Arithmetic, bf16_arithmetic, f32_arithmetic, read, update};
use super::threads_text;
use std::sync::Barrier;
use std::time::Instant;

/// What an operation has to do, however it is done.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// f32 multiply-adds.
    F32 { flops: f64 },
    /// Multiply-adds of bf16 pairs.
    Bf16 { flops: f64 },
    /// Bytes that must be read and written at least once; `span`: of all buffers together, which decides the cache.
    Bytes { read: usize, written: usize, span: usize },
}

impl Work {
    /// The rate reached in `seconds`, with its unit.
    pub fn rate(&self, seconds: f64) -> String {
        match *self {
            Self::F32 { flops } | Self::Bf16 { flops } => format!("{:.1} GFLOP/s", flops / seconds / 1e9),
            Self::Bytes { read, written, .. } => format!("{:.1} GB/s", (read + written) as f64 / seconds / 1e9),
        }
    }
}

/// Bytes a second over buffers of `span` bytes in all.
#[derive(Debug)]
struct Bandwidth {
    span: usize,
    read: f64,
    /// In place: reads and writes counted.
    update: f64,
}

/// The peaks of all threads together.
#[derive(Debug)]
pub struct Peaks {
    threads: usize,
    f32: (&'static str, f64),
    bf16: Option<(&'static str, f64)>,
    /// By ascending span; empty if only arithmetic was asked for.
    bandwidth: Vec<Bandwidth>,
}

impl Peaks {
    /// Of the arithmetic alone, on the current pool.
    pub fn of_arithmetic() -> Self {
        let best = |a: Arithmetic| (a.name, best_arithmetic(a));
        Self {
            threads: rayon::current_num_threads(),
            f32: best(f32_arithmetic()),
            bf16: bf16_arithmetic().map(best),
            bandwidth: vec![],
        }
    }

    /// Of arithmetic and memory, on the current pool.
    pub fn measure() -> Self {
        let (kib, mib) = (1 << 10, 1 << 20);
        // From the second-level cache to far above the last one.
        let spans = [256 * kib, mib, 4 * mib, 16 * mib, 64 * mib, memory_span()];
        let mut bandwidth = spans.map(bandwidth);
        // A smaller buffer is no slower, whatever disturbed its windows.
        for i in (1..spans.len()).rev() {
            bandwidth[i - 1].read = bandwidth[i - 1].read.max(bandwidth[i].read);
            bandwidth[i - 1].update = bandwidth[i - 1].update.max(bandwidth[i].update);
        }
        Self { bandwidth: bandwidth.into(), ..Self::of_arithmetic() }
    }

    /// The least time that `work` takes at these peaks; `None` where the machine has no such arithmetic.
    pub fn least_seconds(&self, work: Work) -> Option<f64> {
        Some(match work {
            Work::F32 { flops } => flops / self.f32.1,
            Work::Bf16 { flops } => flops / self.bf16?.1,
            Work::Bytes { read, written, span } => {
                // The nearest probe that fits no worse into a cache.
                let at = self.bandwidth.iter().rev().find(|b| b.span <= span).or(self.bandwidth.first())?;
                let only_read = read.saturating_sub(written) as f64;
                (read + written) as f64 / at.update - only_read / at.update + only_read / at.read
            }
        })
    }

    /// A few lines for the reader.
    pub fn describe(&self) -> String {
        let rate = |(name, flops): (&str, f64)| format!("{:.0} GFLOP/s ({name})", flops / 1e9);
        let bf16 = self.bf16.map_or_else(|| "none on this CPU".into(), rate);
        let mut text = format!("peak of {}: f32 {}, bf16 {bf16}\n", threads_text(self.threads), rate(self.f32));
        for b in &self.bandwidth {
            let (size, unit) = if b.span < 1 << 20 { (b.span >> 10, "KiB") } else { (b.span >> 20, "MiB") };
            let (read, update) = (b.read / 1e9, b.update / 1e9);
            text +=
                &format!("  over {size:4} {unit}: read {read:6.1} GB/s, read and write in place {update:6.1} GB/s\n");
        }
        text
    }
}

/// The best rate of several windows in which all threads work at once: `f` does `amount` of work on each thread.
fn best_rate<S>(windows: usize, amount: f64, state: impl Fn(usize) -> S + Sync, f: impl Fn(&mut S) + Sync) -> f64 {
    let barrier = Barrier::new(rayon::current_num_threads());
    let times: Vec<Vec<f64>> = rayon::broadcast(|context| {
        let mut state = state(context.index());
        let window = |_| {
            barrier.wait();
            let start = Instant::now();
            f(&mut state);
            start.elapsed().as_secs_f64()
        };
        (0..windows).map(window).collect()
    });
    let slowest = |w: usize| times.iter().map(|t| t[w]).fold(0.0, f64::max);
    let best = (0..windows).map(slowest).fold(f64::MAX, f64::min);
    times.len() as f64 * amount / best
}

/// FLOP/s in windows of about two milliseconds: short enough to fall between whatever else runs.
fn best_arithmetic(a: Arithmetic) -> f64 {
    let (mut rounds, mut took) = (1 << 10, 0.0);
    while took < 1e-3 {
        rounds *= 2;
        let start = Instant::now();
        (a.run)(rounds);
        took = start.elapsed().as_secs_f64();
    }
    best_rate(150, (rounds * a.flops_a_round) as f64, |_| (), |()| (a.run)(rounds))
}

/// Bytes far above the last cache: at least 256 MiB, at most 1 GiB.
fn memory_span() -> usize {
    let cache = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
    let kib: usize = cache.trim().trim_end_matches('K').parse().unwrap_or(64 << 10);
    ((8 * kib) << 10).clamp(256 << 20, 1 << 30)
}

fn bandwidth(span: usize) -> Bandwidth {
    let share = span / 4 / rayon::current_num_threads();
    // Several passes where one would be too short to time.
    let passes = (32 << 20) / span + 1;
    let windows = if span <= 64 << 20 { 100 } else { 15 };
    let bytes = (4 * share * passes) as f64;
    let buffer = |seed: usize| vec![seed as u32; share];
    let read = best_rate(windows, bytes, buffer, |values| (0..passes).for_each(|_| read(values)));
    let update = best_rate(windows, 2.0 * bytes, buffer, |values| (0..passes).for_each(|_| update(values)));
    Bandwidth { span, read, update }
}
