//! Wall time of several tasks in turns, so that what else the machine does meets them alike.

use std::time::{Duration, Instant};

/// Of one task.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Median of one call.
    pub seconds: f64,
    /// Half of the distance between the quartiles, as a share of the median.
    pub spread: f64,
}

/// A sample is as many calls as take about this long, far above the clock's resolution and a thread's wake-up.
const SAMPLE: Duration = Duration::from_millis(2);
const MIN_ROUNDS: usize = 5;
const MAX_ROUNDS: usize = 200;

/// Runs each task once to warm up, then all of them in turns until `budget` is used (five rounds at least).
pub fn alternate<const N: usize, E>(
    budget: Duration,
    mut tasks: [&mut dyn FnMut() -> Result<(), E>; N],
) -> Result<[Timing; N], E> {
    let mut calls = [0; N];
    for (calls, task) in calls.iter_mut().zip(&mut tasks) {
        let mut took = time(task, 1)?;
        if took < 0.05 {
            // The first call met cold caches and fresh pages.
            took = time(task, 1)?;
        }
        *calls = (SAMPLE.as_secs_f64() / took).ceil().max(1.0) as usize;
    }
    let mut samples: [Vec<f64>; N] = std::array::from_fn(|_| vec![]);
    let start = Instant::now();
    while samples[0].len() < MIN_ROUNDS || (start.elapsed() < budget && samples[0].len() < MAX_ROUNDS) {
        for ((samples, task), &calls) in samples.iter_mut().zip(&mut tasks).zip(&calls) {
            samples.push(time(task, calls)?);
        }
    }
    Ok(samples.map(summary))
}

/// Seconds a call.
fn time<E>(task: &mut dyn FnMut() -> Result<(), E>, calls: usize) -> Result<f64, E> {
    let start = Instant::now();
    for _ in 0..calls {
        task()?;
    }
    Ok(start.elapsed().as_secs_f64() / calls as f64)
}

fn summary(mut samples: Vec<f64>) -> Timing {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
    Timing { seconds: at(0.5), spread: (at(0.75) - at(0.25)) / 2.0 / at(0.5) }
}
