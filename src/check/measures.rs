//! Figures of a split: rows, labels, lengths, what truncation takes, unknown tokens, and the score of a constant answer.

mod answers;
mod tags;

pub use answers::Answers;
pub use tags::{Entities, Fit, Tags, Type};

use super::scan::{Label, Scan, Split};
use crate::data::config::TaskKind;
use serde::Serialize;

/// What a run sets bounds to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of a row, in tokens.
    pub max_length: usize,
    /// Of an answer, in tokens.
    pub max_answer_length: usize,
}

/// The figures of one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measures {
    pub split: String,
    pub file: String,
    pub rows: usize,
    /// Classification and multilabel only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// Regression only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Values>,
    /// Words with tags only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    /// Questions only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<Answers>,
    /// In tokens, before truncation or the cut into windows, special tokens included.
    pub length: Lengths,
    /// Where rows lose what does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncation: Option<Truncation>,
    /// Where rows are cut into windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<Windows>,
    pub unknown: Unknown,
}

/// How the rows spread over the classes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Labels {
    /// Rows by class, in the order of the classes' ids.
    pub counts: Vec<(String, usize)>,
    /// Rows of the largest class over rows of the smallest that has any.
    pub imbalance: f64,
    /// The most frequent label of the training rows, or the most frequent labels of a row.
    pub majority: String,
    /// Accuracy of always answering `majority`; of several labels all must be right.
    pub majority_accuracy: f64,
}

/// How the numbers to predict spread.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Values {
    pub mean: f64,
    /// Of the rows as a population.
    pub std: f64,
    pub min: f64,
    pub max: f64,
    /// Mean squared error of always answering the mean of the training rows.
    pub mean_predictor_mse: f64,
}

/// Percentiles by nearest rank, and a histogram.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lengths {
    pub mean: f64,
    pub p50: u32,
    pub p90: u32,
    pub p95: u32,
    pub p99: u32,
    pub max: u32,
    pub histogram: Vec<Bin>,
}

/// Rows of `from` to `to` tokens, both included.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    pub from: u32,
    pub to: u32,
    pub rows: usize,
}

/// What does not fit in `max_length`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Truncation {
    pub max_length: usize,
    pub rows: usize,
    /// Tokens that are cut off.
    pub tokens: u64,
    /// Of all tokens before the cut.
    pub token_share: f64,
    /// The `max_length` that leaves 99 % of the rows whole.
    pub max_length_for_99_percent: u32,
}

/// What rows become that do not fit in `max_length`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Windows {
    pub max_length: usize,
    /// Rows that are cut into several windows.
    pub rows: usize,
    /// Windows of all rows: what training calls rows.
    pub windows: usize,
    /// The `max_length` that leaves 99 % of the rows whole.
    pub max_length_for_99_percent: u32,
}

/// Tokens that the vocabulary does not have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unknown {
    pub tokens: u64,
    /// Of all tokens but the special ones, before the cut.
    pub share: f64,
    pub rows: usize,
}

impl Measures {
    /// The figures of `scan.splits[split]`.
    pub fn new(scan: &Scan, split: usize, limits: Limits) -> Self {
        let (train, split) = (&scan.splits[0], &scan.splits[split]);
        let mut sorted = split.lengths.clone();
        sorted.sort_unstable();
        let p99 = percentile(&sorted, 99);
        let has_windows = matches!(scan.kind, TaskKind::Tokens | TaskKind::Span);
        Self {
            split: split.name.clone(),
            file: split.data.file.display().to_string(),
            rows: split.len(),
            labels: scan.has_classes().then(|| labels(scan, train, split)),
            values: (scan.kind == TaskKind::Regression).then(|| values(train, split)),
            tags: split.sentences.as_ref().map(|sentences| Tags::new(scan, split, sentences)),
            answers: split.questions.as_ref().map(|questions| Answers::new(questions, limits.max_answer_length)),
            truncation: (!has_windows).then(|| truncation(split, limits.max_length, p99)),
            windows: has_windows.then(|| windows(split, limits.max_length, p99)),
            unknown: unknown(scan, split),
            length: lengths(&sorted),
        }
    }

    /// The longest row that stays whole.
    pub fn max_length(&self) -> usize {
        let of_windows = || self.windows.as_ref().map_or(0, |w| w.max_length);
        self.truncation.as_ref().map_or_else(of_windows, |t| t.max_length)
    }
}

fn windows(split: &Split, max_length: usize, p99: u32) -> Windows {
    Windows {
        max_length,
        rows: split.lengths.iter().filter(|&&length| length as usize > max_length).count(),
        windows: split.data.len(),
        max_length_for_99_percent: p99,
    }
}

fn labels(scan: &Scan, train: &Split, split: &Split) -> Labels {
    let counts = scan.class_counts(split);
    let (majority, hits) = constant(scan, train, split);
    let smallest = counts.iter().copied().filter(|&n| n > 0).min().unwrap_or(1);
    Labels {
        imbalance: counts.iter().copied().max().unwrap_or(0) as f64 / smallest as f64,
        majority,
        majority_accuracy: hits as f64 / split.len() as f64,
        counts: scan.classes.iter().cloned().zip(counts).collect(),
    }
}

/// The answer that is most often right in train, and the rows of `split` for which it is.
fn constant(scan: &Scan, train: &Split, split: &Split) -> (String, usize) {
    if scan.several {
        let count = |split: &Split| {
            let mut counts = vec![0; scan.labels.len()];
            split.labels.iter().for_each(|label| {
                if let Label::Name(i) = label {
                    counts[*i as usize] += 1
                }
            });
            counts
        };
        let in_train: Vec<usize> = count(train);
        let most = (0..in_train.len()).rev().max_by_key(|&i| in_train[i]).unwrap_or(0);
        return (scan.label_text(most as u32), count(split)[most]);
    }
    let in_train = scan.class_counts(train);
    // The first of several, as argmax takes it.
    let most = (0..in_train.len()).rev().max_by_key(|&c| in_train[c]).unwrap_or(0);
    (scan.classes[most].clone(), scan.class_counts(split)[most])
}

fn values(train: &Split, split: &Split) -> Values {
    let of = |split: &Split| -> Vec<f64> {
        let value = |label: &Label| if let Label::Value(v) = label { Some(f64::from(*v)) } else { None };
        split.labels.iter().filter_map(value).collect()
    };
    let own = of(split);
    let mean_of = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let mean = mean_of(&own);
    let from = |center: f64| own.iter().map(|v| (v - center).powi(2)).sum::<f64>() / own.len() as f64;
    Values {
        mean,
        std: from(mean).sqrt(),
        min: own.iter().copied().fold(f64::NAN, f64::min),
        max: own.iter().copied().fold(f64::NAN, f64::max),
        mean_predictor_mse: from(mean_of(&of(train))),
    }
}

/// By nearest rank: the smallest value that at least `percent` of all do not exceed. 0 for none.
fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn lengths(sorted: &[u32]) -> Lengths {
    Lengths {
        mean: sorted.iter().map(|&l| f64::from(l)).sum::<f64>() / sorted.len().max(1) as f64,
        p50: percentile(sorted, 50),
        p90: percentile(sorted, 90),
        p95: percentile(sorted, 95),
        p99: percentile(sorted, 99),
        max: sorted.last().copied().unwrap_or(0),
        histogram: histogram(sorted),
    }
}

/// Bins of a round width, about ten up to the 99th percentile; the last takes all that is longer.
fn histogram(sorted: &[u32]) -> Vec<Bin> {
    let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { return vec![] };
    let spread = percentile(sorted, 99).saturating_sub(least) + 1;
    let width = (0..).flat_map(|e| [1, 2, 5].map(|m| m * 10u32.pow(e))).take(24).find(|w| spread.div_ceil(*w) <= 12);
    let width = width.unwrap_or(spread);
    let mut bins = vec![];
    let mut from = least / width * width;
    let mut rest = sorted;
    while !rest.is_empty() {
        // A tail of few rows is one bin.
        let is_last = bins.len() >= 12;
        let to = if is_last { most } else { from + width - 1 };
        let rows = rest.partition_point(|&l| l <= to);
        bins.push(Bin { from, to: to.min(most), rows });
        rest = &rest[rows..];
        from = to.saturating_add(1);
    }
    bins
}

fn truncation(split: &Split, max_length: usize, p99: u32) -> Truncation {
    let before: u64 = split.lengths.iter().map(|&l| u64::from(l)).sum();
    let lost = before - split.data.tokens.total() as u64;
    Truncation {
        max_length,
        rows: split.data.tokens.truncated(),
        tokens: lost,
        token_share: lost as f64 / before.max(1) as f64,
        max_length_for_99_percent: p99,
    }
}

fn unknown(scan: &Scan, split: &Split) -> Unknown {
    let tokens = split.unknown.iter().map(|&n| u64::from(n)).sum();
    let frame = scan.frame as u64 * split.len() as u64;
    let words = split.lengths.iter().map(|&l| u64::from(l)).sum::<u64>().saturating_sub(frame);
    Unknown {
        tokens,
        share: tokens as f64 / words.max(1) as f64,
        rows: split.unknown.iter().filter(|&&n| n > 0).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sorted: Vec<u32> = (1..=200).collect();
        assert_eq!([50, 90, 99, 100].map(|p| percentile(&sorted, p)), [100, 180, 198, 200]);
        assert_eq!(percentile(&[7], 50), 7);
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn a_histogram_holds_every_row_once() {
        for sorted in [vec![3; 5], (3..40).collect(), (0..1000).map(|i| i * i / 100).collect(), vec![5, 100_000]] {
            let bins = histogram(&sorted);
            assert!(bins.len() <= 13, "{bins:?}");
            assert_eq!(bins.iter().map(|b| b.rows).sum::<usize>(), sorted.len());
            assert!(bins.windows(2).all(|w| w[1].from == w[0].to + 1), "{bins:?}");
            for bin in &bins {
                let inside = sorted.iter().filter(|l| (bin.from..=bin.to).contains(l)).count();
                assert_eq!(inside, bin.rows, "{bin:?}");
            }
        }
    }
}
