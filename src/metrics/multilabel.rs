//! Scores of any number of labels a row, equal to scikit-learn's.
//!
//! Rows are added one at a time, so an evaluation streams in memory of a few counts a label. The equivalents are
//! `f1_score`, `precision_score` and `recall_score` with `average=…` and `zero_division=0`, `accuracy_score` (all labels
//! right: subset accuracy) and `hamming_loss` on indicator matrices; unlike those of one label a row, averages take all labels,
//! also those that occur nowhere. `map` and `roc_auc` come from [`super::ranking`]. With no row at all every score is NaN.

use super::Metrics;
use super::classification::{Cells, ClassScore, ClassificationReport};

/// Names of the scores, without `loss`, in the order of [`Counts::report`].
pub(super) const NAMES: [&str; 12] = [
    "micro_f1",
    "macro_f1",
    "weighted_f1",
    "samples_f1",
    "micro_precision",
    "micro_recall",
    "macro_precision",
    "macro_recall",
    "subset_accuracy",
    "hamming_loss",
    "map",
    "roc_auc",
];

/// Counts of the rows so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// `[labels]`
    cells: Vec<Cells>,
    rows: u64,
    exact: u64,
    /// Σ over rows of the F1 of their labels.
    f1: f64,
}

impl Counts {
    /// No rows yet.
    pub fn new(labels: usize) -> Self {
        Self { cells: vec![Cells::default(); labels], rows: 0, exact: 0, f1: 0.0 }
    }

    /// Counts one row by its true and predicted labels, each ascending and below the number of labels.
    pub fn add(&mut self, truth: &[u32], predicted: &[u32]) {
        let mut hits = 0;
        for &label in truth {
            self.cells[label as usize].support += 1;
        }
        for &label in predicted {
            let cell = &mut self.cells[label as usize];
            cell.predicted += 1;
            if truth.binary_search(&label).is_ok() {
                cell.hit += 1;
                hits += 1;
            }
        }
        self.rows += 1;
        self.exact += u64::from(truth == predicted);
        let both = truth.len() + predicted.len();
        self.f1 += if both == 0 { 0.0 } else { f64::from(2 * hits) / both as f64 };
    }

    /// Scores of the rows so far; `ranking`: `[roc_auc, average_precision]` of their probabilities.
    pub fn report(&self, ranking: [f64; 2]) -> ClassificationReport {
        let per_class: Vec<ClassScore> = self.cells.iter().map(Cells::score).collect();
        let total = self.cells.iter().fold(Cells::default(), |sum, cell| Cells {
            hit: sum.hit + cell.hit,
            support: sum.support + cell.support,
            predicted: sum.predicted + cell.predicted,
        });
        let (micro, labels, rows) = (total.score(), per_class.len() as f64, self.rows as f64);
        let mean = |f: fn(&ClassScore) -> f64| per_class.iter().map(f).sum::<f64>() / labels;
        let weighted = per_class.iter().map(|c| c.f1 * c.support as f64).sum::<f64>();
        let weighted = if total.support == 0 { 0.0 } else { weighted / total.support as f64 };
        let wrong = (total.support + total.predicted - 2 * total.hit) as f64;
        let values = [
            micro.f1,
            mean(|c| c.f1),
            weighted,
            self.f1 / rows,
            micro.precision,
            micro.recall,
            mean(|c| c.precision),
            mean(|c| c.recall),
            self.exact as f64 / rows,
            wrong / (rows * labels),
            ranking[1],
            ranking[0],
        ];
        let values = values.map(|v| if self.rows == 0 { f64::NAN } else { v });
        let metrics = Metrics(NAMES.iter().map(|name| name.to_string()).zip(values).collect());
        ClassificationReport { metrics, confusion: vec![], per_class }
    }
}
