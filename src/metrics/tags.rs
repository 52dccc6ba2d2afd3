//! Scores of named entities and other spans of words, equal to seqeval's on the spans that it reads from tags.

use super::Metrics;
use super::classification::{Cells, ClassScore};
use std::collections::BTreeMap;

/// Names of the scores, without `loss`, in the order of [`EntityCounts::report`].
pub const NAMES: [&str; 8] =
    ["precision", "recall", "f1", "macro_precision", "macro_recall", "macro_f1", "weighted_f1", "accuracy"];

/// Counts of the sentences so far: in memory of a few numbers a type, however many there are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EntityCounts {
    kinds: BTreeMap<String, Cells>,
    words: u64,
    right: u64,
}

impl EntityCounts {
    /// Counts the true and predicted spans of a sentence: first word, past the last, and type, each in the order of the words.
    pub fn add(&mut self, truth: &[(usize, usize, &str)], predicted: &[(usize, usize, &str)]) {
        for span in truth {
            self.cells(span.2).support += 1;
        }
        for span in predicted {
            self.cells(span.2).predicted += 1;
            if truth.binary_search(span).is_ok() {
                self.cells(span.2).hit += 1;
            }
        }
    }

    /// Counts the tags of a sentence: how many are right, of how many.
    pub fn add_words(&mut self, right: u64, words: u64) {
        self.right += right;
        self.words += words;
    }

    fn cells(&mut self, kind: &str) -> &mut Cells {
        self.kinds.entry(kind.to_owned()).or_default()
    }

    /// Scores of all spans together (micro-averaged: `precision`, `recall`, `f1`), of the mean over types, weighted by their
    /// spans, the share of tags that are right, and the scores of each type. Without any span the means are NaN.
    pub fn report(&self) -> (Metrics, BTreeMap<String, ClassScore>) {
        let per_kind: BTreeMap<String, ClassScore> =
            self.kinds.iter().map(|(kind, cells)| (kind.clone(), cells.score())).collect();
        let total = self.kinds.values().fold(Cells::default(), |sum, c| Cells {
            hit: sum.hit + c.hit,
            support: sum.support + c.support,
            predicted: sum.predicted + c.predicted,
        });
        let micro = total.score();
        let mean = |f: fn(&ClassScore) -> f64| per_kind.values().map(f).sum::<f64>() / per_kind.len() as f64;
        let weighted = per_kind.values().map(|c| c.f1 * c.support as f64).sum::<f64>();
        let values = [
            micro.precision,
            micro.recall,
            micro.f1,
            mean(|c| c.precision),
            mean(|c| c.recall),
            mean(|c| c.f1),
            if total.support == 0 { 0.0 } else { weighted / total.support as f64 },
            self.right as f64 / self.words as f64,
        ];
        (Metrics(NAMES.iter().map(|name| name.to_string()).zip(values).collect()), per_kind)
    }
}
