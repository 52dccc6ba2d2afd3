//! Which rows make each optimizer step of a run: epochs of shuffled rows, cut into batches of so many rows or tokens, of which
//! `gradient_accumulation_steps` are one step. All of it depends on config, data and seed alone, so a resumed run is at
//! the same place.

use super::config::{DEFAULT_BATCH_SIZE, TrainConfig};
use crate::data::Dataset;
use crate::data::sampler::{cut_by_tokens, epoch_order, grouped_by_length};

/// One epoch's rows in training order, cut into batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    order: Vec<usize>,
    /// Where each batch ends in `order`.
    ends: Vec<usize>,
    per_step: usize,
}

impl Epoch {
    /// The `epoch`-th (from 0) of a run on `data`.
    pub fn new(config: &TrainConfig, data: &Dataset, epoch: u64) -> Self {
        let per_step = config.gradient_accumulation_steps;
        let batch_rows = match config.batch_tokens {
            // Of a batch of rows of average length: only how far grouping by length looks depends on it.
            Some(budget) => (budget * data.len() / data.tokens.total().max(1)).max(1),
            None => config.batch_size.unwrap_or(DEFAULT_BATCH_SIZE),
        };
        let order = if config.group_by_length {
            grouped_by_length(&data.tokens.lengths(), batch_rows * per_step, config.seed, epoch)
        } else {
            epoch_order(data.len(), config.seed, epoch)
        };
        let ends = match config.batch_tokens {
            Some(budget) => cut_by_tokens(&order, |row| data.tokens.len_of(row), budget),
            None => (1..=order.len().div_ceil(batch_rows)).map(|i| (i * batch_rows).min(order.len())).collect(),
        };
        Self { order, ends, per_step }
    }

    /// Optimizer steps.
    pub fn steps(&self) -> u64 {
        self.ends.len().div_ceil(self.per_step) as u64
    }

    /// The rows of each batch of the first `steps` steps.
    pub fn batches(&self, steps: u64) -> impl Iterator<Item = &[usize]> {
        let count = usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(self.per_step).min(self.ends.len());
        (0..count).map(|i| self.batch(i))
    }

    /// The rows of each batch of a step, below [`Self::steps`].
    pub fn window(&self, step: u64) -> impl Iterator<Item = &[usize]> {
        let from = step as usize * self.per_step;
        (from..(from + self.per_step).min(self.ends.len())).map(|i| self.batch(i))
    }

    fn batch(&self, i: usize) -> &[usize] {
        let from = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.order[from..self.ends[i]]
    }
}

/// How the optimizer steps of a run spread over its epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Optimizer steps of the whole run.
    pub total: u64,
    epochs: Epochs,
}

#[derive(Debug, Clone, PartialEq)]
enum Epochs {
    /// So many steps each.
    Alike(u64),
    /// Steps done at the end of each, up to the one in which the run ends.
    Counted(Vec<u64>),
}

impl Plan {
    /// Of a run on `data`. With batches of tokens the epochs have different numbers of steps, and each is drawn to count them.
    pub fn new(config: &TrainConfig, data: &Dataset) -> Self {
        if config.batch_tokens.is_none() {
            let batches = data.len().div_ceil(config.batch_size.unwrap_or(DEFAULT_BATCH_SIZE)) as u64;
            let per_epoch = batches.div_ceil(config.gradient_accumulation_steps as u64);
            let total = config.max_steps.unwrap_or((config.epochs * per_epoch as f64).ceil() as u64);
            return Self { total, epochs: Epochs::Alike(per_epoch) };
        }
        let (mut ends, mut done) = (vec![], 0);
        loop {
            let (epoch, begun) = (ends.len() as u64, done);
            let steps = Epoch::new(config, data, epoch).steps();
            done += steps;
            ends.push(done);
            let share = (config.epochs - epoch as f64).min(1.0);
            let total = match config.max_steps {
                Some(total) => total,
                None => begun + (share * steps as f64).ceil() as u64,
            };
            let over = if config.max_steps.is_some() { done >= total } else { (epoch + 1) as f64 >= config.epochs };
            // Without rows there are no steps to count.
            if over || steps == 0 {
                return Self { total, epochs: Epochs::Counted(ends) };
            }
        }
    }

    /// The epoch that step `step` (both from 0) belongs to, and its number in it.
    pub fn place(&self, step: u64) -> (u64, u64) {
        match &self.epochs {
            Epochs::Alike(per_epoch) => (step / per_epoch, step % per_epoch),
            Epochs::Counted(ends) => {
                let epoch = ends.partition_point(|end| *end <= step);
                (epoch as u64, step - epoch.checked_sub(1).map_or(0, |before| ends[before]))
            }
        }
    }

    /// Epochs behind after `step` steps.
    pub fn epochs(&self, step: u64) -> f64 {
        let (epoch, within) = self.place(step);
        match &self.epochs {
            Epochs::Alike(per_epoch) => step as f64 / *per_epoch as f64,
            Epochs::Counted(ends) => match ends.get(epoch as usize) {
                Some(end) => epoch as f64 + within as f64 / (end - (step - within)) as f64,
                None => epoch as f64,
            },
        }
    }

    /// Whether an epoch is over after `step` steps, at least one.
    pub fn ends_epoch(&self, step: u64) -> bool {
        self.place(step).1 == 0
    }

    /// First step of each of the run's epochs, so many of them at most.
    pub fn epoch_starts(&self, most: usize) -> Vec<u64> {
        let next = |start: &mut u64, (_, steps)| Some(std::mem::replace(start, *start + steps));
        self.by_epoch().take(most).scan(0, next).collect()
    }

    /// Steps of each epoch that the run begins, with its number.
    pub fn by_epoch(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut step = 0;
        std::iter::from_fn(move || {
            if step >= self.total {
                return None;
            }
            let (epoch, _) = self.place(step);
            let end = match &self.epochs {
                Epochs::Alike(per_epoch) => step + per_epoch,
                Epochs::Counted(ends) => ends.get(epoch as usize).copied().unwrap_or(self.total),
            };
            let steps = end.min(self.total) - step;
            step += steps;
            Some((epoch, steps))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Targets, Tokens};

    /// Rows of these lengths.
    fn rows(lengths: &[usize]) -> Dataset {
        let tokens = Tokens::from_rows(lengths.iter().map(|&n| (vec![1; n], vec![0; n], false)));
        let targets = Targets::Class(vec![0; lengths.len()]);
        Dataset { tokens, targets, lines: vec![1; lengths.len()], file: "t".into() }
    }

    fn varied() -> Dataset {
        rows(&(0..200).map(|i| 2 + (i * 37) % 61).collect::<Vec<_>>())
    }

    fn by_tokens(group_by_length: bool) -> TrainConfig {
        TrainConfig {
            batch_tokens: Some(100),
            gradient_accumulation_steps: 3,
            epochs: 2.5,
            group_by_length,
            ..TrainConfig::default()
        }
    }

    #[test]
    fn every_row_once_an_epoch_and_no_batch_over_the_budget() {
        let data = varied();
        for group in [false, true] {
            let config = by_tokens(group);
            let epochs = [0, 1].map(|e| Epoch::new(&config, &data, e));
            assert_ne!(epochs[0], epochs[1]);
            for epoch in epochs {
                let windows: Vec<Vec<&[usize]>> = (0..epoch.steps()).map(|s| epoch.window(s).collect()).collect();
                let batches: Vec<&[usize]> = epoch.batches(u64::MAX).collect();
                assert_eq!(windows.concat(), batches);
                assert!(windows[..windows.len() - 1].iter().all(|w| w.len() == 3));
                let mut all = batches.concat();
                let tokens = |rows: &[usize]| rows.iter().map(|&r| data.tokens.len_of(r)).sum::<usize>();
                assert!(batches.iter().all(|b| tokens(b) <= 100));
                // As full as they can be: the next row did not fit.
                assert!(batches.windows(2).all(|w| tokens(w[0]) + data.tokens.len_of(w[1][0]) > 100));
                all.sort_unstable();
                assert_eq!(all, (0..200).collect::<Vec<_>>());
            }
        }
        // Longer rows than the budget are alone.
        let config = TrainConfig { batch_tokens: Some(10), ..TrainConfig::default() };
        let epoch = Epoch::new(&config, &rows(&[50, 3, 50, 4]), 0);
        assert!(epoch.batches(9).all(|b| b.len() == 1 || !b.contains(&0) && !b.contains(&2)));
    }

    #[test]
    fn steps_are_counted_as_they_are_walked() {
        let data = varied();
        for group in [false, true] {
            let config = by_tokens(group);
            let counts = [0, 1, 2].map(|e| Epoch::new(&config, &data, e).steps());
            let plan = Plan::new(&config, &data);
            assert_eq!(plan.total, counts[0] + counts[1] + counts[2].div_ceil(2));
            let places: Vec<(u64, u64)> = (0..plan.total).map(|s| plan.place(s)).collect();
            let walked = (0..3).flat_map(|e| (0..counts[e as usize]).map(move |i| (e, i)));
            assert_eq!(places, walked.take(plan.total as usize).collect::<Vec<_>>());
            assert!(plan.ends_epoch(counts[0]) && !plan.ends_epoch(1) && plan.ends_epoch(counts[0] + counts[1]));
            assert_eq!(plan.epochs(counts[0] + counts[1]), 2.0);
            assert!((plan.epochs(plan.total) - 2.5).abs() <= 1.0 / counts[2] as f64);
            assert_eq!(
                plan.by_epoch().collect::<Vec<_>>(),
                [(0, counts[0]), (1, counts[1]), (2, counts[2].div_ceil(2))]
            );
            // max_steps, to the end of an epoch and into the next.
            for more in [0, 1] {
                let max_steps = Some(counts[0] + more);
                let plan = Plan::new(&TrainConfig { max_steps, ..config.clone() }, &data);
                assert_eq!((Some(plan.total), plan.place(0)), (max_steps, (0, 0)));
                assert_eq!(plan.epochs(counts[0]), 1.0);
            }
        }
    }

    #[test]
    fn batches_of_rows_are_cut_alike() {
        let config = TrainConfig { batch_size: Some(8), gradient_accumulation_steps: 2, ..TrainConfig::default() };
        let data = rows(&[5; 37]);
        let plan = Plan::new(&config, &data);
        // Five batches are three steps.
        assert_eq!((plan.total, plan.place(7), plan.epochs(9)), (9, (2, 1), 3.0));
        assert_eq!(plan.by_epoch().collect::<Vec<_>>(), [(0, 3), (1, 3), (2, 3)]);
        assert_eq!((plan.epoch_starts(9), plan.epoch_starts(2)), (vec![0, 3, 6], vec![0, 3]));
        let epoch = Epoch::new(&config, &data, 1);
        assert_eq!(epoch.steps(), 3);
        assert_eq!(epoch.window(2).map(<[usize]>::len).collect::<Vec<_>>(), [5]);
        assert_eq!(epoch.batches(1).collect::<Vec<_>>().concat(), epoch_order(37, 42, 1)[..16]);
    }
}
