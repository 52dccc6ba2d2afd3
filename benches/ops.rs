//! Every op beside a plain reference: time, rate, and share of the peak that this bench measures first. See README.md here.

mod cases;
#[allow(dead_code)] // each bench uses its part
mod common;

use bertft::Result;
use candle_core::DType;
use common::peaks::{Peaks, Work};
use common::step::{Source, Training, Workload};
use common::timing::alternate;
use common::{Args, threads_text};
use std::time::Duration;

/// For each row of the table.
const BUDGET: Duration = Duration::from_millis(400);
/// For the whole step, in each format.
const STEP_BUDGET: Duration = Duration::from_secs(5);

/// The table under way.
pub struct Table {
    args: Args,
    peaks: Peaks,
}

/// What a row is about.
pub struct Row<'a> {
    pub op: &'a str,
    pub shape: String,
    pub dtype: DType,
    pub work: Work,
}

impl Table {
    /// Times one op beside its reference and prints the row, if it is wanted.
    pub fn row(
        &self,
        row: Row<'_>,
        mut reference: impl FnMut() -> candle_core::Result<()>,
        mut ours: impl FnMut() -> candle_core::Result<()>,
    ) -> Result<()> {
        let Row { op, shape, dtype, work } = row;
        let format = dtype.as_str();
        if !self.args.wants(&format!("{op} {shape} {format}")) {
            return Ok(());
        }
        let [theirs, ours] = alternate(BUDGET, [&mut reference, &mut ours])?;
        println!(
            "{op:22} {shape:27} {format:6} {:>9} {:>9} {:3.0} % {:6.1}× {:>15} {:6.2}",
            duration(theirs.seconds),
            duration(ours.seconds),
            ours.spread * 100.0,
            theirs.seconds / ours.seconds,
            work.rate(ours.seconds),
            self.peaks.least_seconds(work).map_or(f64::NAN, |s| s / ours.seconds),
        );
        Ok(())
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.1} µs", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}

fn main() -> Result<()> {
    let Some(args) = Args::start() else { return Ok(()) };
    let table = Table { args, peaks: Peaks::measure() };
    println!("{}", table.peaks.describe());
    println!(
        "{:22} {:27} {:6} {:>9} {:>9} {:>5} {:>7} {:>15} {:>6}",
        "op", "shape", "format", "reference", "ours", "±", "ratio", "rate", "share"
    );
    cases::linear::run(&table)?;
    cases::attention::run(&table)?;
    cases::layer_norm::run(&table)?;
    cases::gelu::run(&table)?;
    cases::bias::run(&table)?;
    cases::embedding::run(&table)?;
    cases::adamw::run(&table)?;
    whole_step(&table)
}

/// One thread beside all of them.
fn whole_step(table: &Table) -> Result<()> {
    let name = table.args.model.as_deref().unwrap_or("minilm-l6");
    let [workload, _] = Workload::all();
    let wanted = |dtype: &DType| table.args.wants(&format!("whole step {} {}", workload.name, dtype.as_str()));
    let formats: Vec<DType> = cases::product_formats().filter(wanted).collect();
    if formats.is_empty() {
        return Ok(());
    }
    let source = Source::open(name)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    println!();
    for dtype in formats {
        let times = Training::new(&source, dtype)?.time(&workload, &pool, STEP_BUDGET)?;
        let [one, all] = times.map(|t| workload.tokens() as f64 / t.seconds);
        let (format, threads, rows) = (dtype.as_str(), threads_text(table.args.threads), workload.name);
        println!(
            "whole step, {name}, {rows}, {format}: 1 thread {one:.0} tokens/s, {threads} {all:.0}: {:.2}×",
            all / one
        );
    }
    Ok(())
}
