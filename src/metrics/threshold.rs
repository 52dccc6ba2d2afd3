//! The decision threshold that is best by some score on labelled rows: of two classes, or of labels that a row may have
//! several of.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The score that a threshold is tuned for, as scikit-learn defines it; F1 is that of class 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criterion {
    F1,
    Accuracy,
    BalancedAccuracy,
    Mcc,
}

impl Criterion {
    /// Of rows of class 1 (`hits` of `positives` found) and class 0 (`alarms` of `negatives` taken for class 1).
    fn of(self, hits: f64, positives: f64, alarms: f64, negatives: f64) -> f64 {
        let (misses, rejected) = (positives - hits, negatives - alarms);
        match self {
            Self::F1 => 2.0 * hits / (positives + hits + alarms),
            Self::Accuracy => (hits + rejected) / (positives + negatives),
            // (hits/positives + rejected/negatives) / 2 over one denominator, so that equal scores are equal numbers.
            Self::BalancedAccuracy => (hits * negatives + rejected * positives) / (2.0 * positives * negatives),
            Self::Mcc => {
                let spread = (hits + alarms) * (misses + rejected) * positives * negatives;
                if spread == 0.0 { 0.0 } else { (hits * rejected - alarms * misses) / spread.sqrt() }
            }
        }
    }
}

/// The class of two that a probability of class 1 means.
pub fn decide(probability: f32, threshold: f64) -> u32 {
    u32::from(f64::from(probability) >= threshold)
}

/// The labels, ascending, whose probability reaches their threshold.
pub fn decide_each(probabilities: &[f32], thresholds: &[f64]) -> Vec<u32> {
    let reached = |(i, (p, t)): (u32, (&f32, &f64))| (f64::from(*p) >= *t).then_some(i);
    (0u32..).zip(probabilities.iter().zip(thresholds)).filter_map(reached).collect()
}

/// From which probability on labels are predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Threshold {
    /// The same for all.
    One(f64),
    /// By the name of the label; 0.5 for those that are not named.
    PerLabel(BTreeMap<String, f64>),
}

impl Threshold {
    /// That of each of `labels`.
    pub fn each(&self, labels: &[String]) -> Vec<f64> {
        match self {
            Self::One(threshold) => vec![*threshold; labels.len()],
            Self::PerLabel(table) => labels.iter().map(|label| table.get(label).copied().unwrap_or(0.5)).collect(),
        }
    }

    /// The one of all labels.
    pub fn one(&self) -> Option<f64> {
        match self {
            Self::One(threshold) => Some(*threshold),
            Self::PerLabel(_) => None,
        }
    }

    /// Checks what a file says for a model with these labels, of which a row may have `several`.
    ///
    /// # Errors
    /// The end of a message.
    pub fn check(&self, labels: &[String], several: bool) -> Result<(), String> {
        match self {
            Self::One(t) if !(0.0..=1.0).contains(t) => Err(format!("has the threshold {t}, expected one from 0 to 1")),
            Self::One(_) if !several && labels.len() != 2 => {
                Err(format!("has a threshold, but the model has {} labels, and it decides between two", labels.len()))
            }
            Self::PerLabel(_) if !several => Err("has thresholds by label, but a row has one label".into()),
            Self::PerLabel(table) => {
                for (name, t) in table {
                    if !labels.contains(name) {
                        return Err(format!("has a threshold for \"{name}\", which is no label of the model"));
                    }
                    if !(0.0..=1.0).contains(t) {
                        return Err(format!("has the threshold {t} for \"{name}\", expected one from 0 to 1"));
                    }
                }
                Ok(())
            }
            Self::One(_) => Ok(()),
        }
    }
}

/// A threshold and its score: class 1 is predicted where its probability is `threshold` or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuned {
    pub threshold: f64,
    pub score: f64,
}

/// The best threshold for `scores: [rows]`, the probabilities of class 1, in [0, 1]: the midpoint of two neighbouring
/// scores (of the least and 0, of the largest and 1, to call all or none class 1), of equally good ones the nearest to 0.5,
/// of equally near ones the lower. `None` when a class has no row or a score is not in [0, 1].
pub fn best(scores: &[f32], truth: &[u32], criterion: Criterion) -> Option<Tuned> {
    let mut rows: Vec<(f32, bool)> = scores.iter().copied().zip(truth.iter().map(|&t| t == 1)).collect();
    let positives = rows.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = rows.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 || !scores.iter().all(|s| (0.0..=1.0).contains(s)) {
        return None;
    }
    rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let (mut hits, mut alarms, mut above) = (0.0, 0.0, 1.0);
    let mut best: Option<Tuned> = None;
    let groups = rows.chunk_by(|a, b| a.0 == b.0).map(Some).chain([None]);
    for group in groups {
        // What lies above the group is called class 1.
        let score = criterion.of(hits, positives, alarms, negatives);
        let at = group.map_or(0.0, |rows| f64::from(rows[0].0));
        let threshold = (above + at) / 2.0;
        let far = |t: f64| (t - 0.5).abs();
        let better = best.is_none_or(|b| score > b.score || score == b.score && far(threshold) <= far(b.threshold));
        // No threshold tells a score of 1 from what lies above; 0 calls all class 1.
        if better && (threshold > at || group.is_none()) {
            best = Some(Tuned { threshold, score });
        }
        for (_, positive) in group.unwrap_or_default() {
            if *positive { hits += 1.0 } else { alarms += 1.0 }
        }
        above = at;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::classification;

    const ALL: [Criterion; 4] = [Criterion::F1, Criterion::Accuracy, Criterion::BalancedAccuracy, Criterion::Mcc];

    fn at(scores: &[f32], truth: &[u32], criterion: Criterion) -> f64 {
        best(scores, truth, criterion).unwrap().threshold
    }

    #[test]
    fn midpoints_nearest_to_a_half() {
        assert_eq!(at(&[0.125, 0.25, 0.75, 0.875], &[0, 0, 1, 1], Criterion::Accuracy), 0.5);
        assert_eq!(at(&[0.125, 0.25, 0.375], &[0, 1, 1], Criterion::F1), 0.1875);
        // All are of class 1 best: between 0 and the least score.
        assert_eq!(at(&[0.5, 0.25, 0.75], &[1, 1, 0], Criterion::F1), 0.125);
        // No row is best called class 1.
        assert_eq!(at(&[0.75, 0.25, 0.125, 0.0], &[0, 0, 1, 0], Criterion::Accuracy), 0.875);
        // 0.25 and 0.75 are equally good and equally near.
        assert_eq!(at(&[0.125, 0.375, 0.625, 0.875], &[0, 1, 0, 1], Criterion::Accuracy), 0.25);
        // Scores of 0 and 1: nothing lies beyond.
        assert_eq!(at(&[1.0, 1.0, 0.0], &[0, 0, 1], Criterion::Accuracy), 0.0);
        for none in [(&[0.5f32, 0.6][..], [1u32, 1]), (&[f32::NAN, 0.5], [0, 1]), (&[0.5, 1.5], [0, 1])] {
            assert_eq!(best(none.0, &none.1, Criterion::F1), None);
        }
    }

    /// No threshold on a fine grid is better, and the score is what the threshold gives.
    #[test]
    fn nothing_beats_the_best() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        for _ in 0..200 {
            let n = 2 + next() as usize % 12;
            let scores: Vec<f32> = (0..n).map(|_| (next() % 17) as f32 / 16.0).collect();
            let truth: Vec<u32> = (0..n).map(|_| next() % 2).collect();
            for criterion in ALL {
                let Some(tuned) = best(&scores, &truth, criterion) else { continue };
                let achieved = |t: f64| {
                    let called: Vec<u32> = scores.iter().map(|&s| u32::from(f64::from(s) >= t)).collect();
                    let report = classification::score(&called, &truth, 2).unwrap();
                    match criterion {
                        Criterion::BalancedAccuracy => (report.per_class[0].recall + report.per_class[1].recall) / 2.0,
                        Criterion::F1 => report.metrics.get("f1").unwrap(),
                        Criterion::Accuracy => report.metrics.get("accuracy").unwrap(),
                        Criterion::Mcc => report.metrics.get("mcc").unwrap(),
                    }
                };
                let what = format!("{criterion:?} {scores:?} {truth:?} {tuned:?}");
                assert!((achieved(tuned.threshold) - tuned.score).abs() < 1e-12, "{what}");
                for grid in 0..=320 {
                    let t = f64::from(grid) / 320.0;
                    assert!(achieved(t) <= tuned.score + 1e-12, "{what}: {t} is better");
                }
            }
        }
    }
}
