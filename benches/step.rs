//! One whole training step: tokens/s, GFLOP/s and its share of the peak, on one thread and on all. See README.md here.

#[allow(dead_code)] // each bench uses its part
mod common;

use bertft::Result;
use bertft::ops::gemm::bf16_engine;
use candle_core::DType;
use common::peaks::Peaks;
use common::step::{Source, Training, Workload};
use common::{Args, threads_text};
use std::time::Duration;

/// For each workload in each format.
const BUDGET: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let Some(args) = Args::start() else { return Ok(()) };
    let source = Source::open(args.model.as_deref().unwrap_or("examples/models/bert-tiny-4l-128h"))?;
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let peaks = [one.install(Peaks::of_arithmetic), Peaks::of_arithmetic()];
    println!("{}{}", peaks[0].describe(), peaks[1].describe());
    println!("one training step of {}, batch of {} rows, dropout on", source.name, common::data::ROWS);
    println!(
        "{:15} {:6} {:>7}  {:10} {:>10} {:>9} {:>5} {:>14} {:>6} {:>8}",
        "rows", "format", "tokens", "threads", "step", "tokens/s", "±", "rate", "share", "scaling"
    );
    for (dtype, format) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
        if dtype == DType::BF16 && bf16_engine().is_none() {
            println!("bf16: this CPU has no bf16 products");
            continue;
        }
        let mut training = None;
        for workload in Workload::all() {
            if !args.wants(&format!("{} {format}", workload.name)) {
                continue;
            }
            if training.is_none() {
                training = Some(Training::new(&source, dtype)?);
            }
            let training = training.as_mut().expect("made above");
            let (tokens, work) = (workload.tokens(), training.work(&workload));
            let times = training.time(&workload, &one, BUDGET)?;
            for ((t, peaks), threads) in times.iter().zip(&peaks).zip([1, args.threads]) {
                println!(
                    "{:15} {format:6} {tokens:7}  {:10} {:7.2} ms {:9.0} {:3.0} % {:>14} {:6.2} {:7.2}×",
                    workload.name,
                    threads_text(threads),
                    t.seconds * 1e3,
                    tokens as f64 / t.seconds,
                    t.spread * 100.0,
                    work.rate(t.seconds),
                    peaks.least_seconds(work).map_or(f64::NAN, |s| s / t.seconds),
                    times[0].seconds / t.seconds
                );
            }
        }
    }
    Ok(())
}
