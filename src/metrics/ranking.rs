//! Scores of how well probabilities order the rows, equal to scikit-learn's `roc_auc_score` and `average_precision_score`.
//!
//! With two classes the score of class 1 is ranked; with more, each class against the rest, and the mean over classes is
//! taken (`multi_class="ovr"`, `average="macro"`). Rows of equal score are one step of the curve. Where a class has no row,
//! or all of them, both are NaN (scikit-learn refuses, warns, or calls the average precision 0); so they are when a score is NaN.

use rayon::prelude::*;

/// Names of the scores, in the order of [`score`].
pub(super) const NAMES: [&str; 2] = ["roc_auc", "average_precision"];

/// `[roc_auc, average_precision]` of `scores`: `[rows]` of class 1 for two classes, else `[rows, classes]`. `truth: [rows]`.
pub fn score(scores: &[f32], truth: &[u32], classes: usize) -> [f64; 2] {
    if classes < 2 {
        return [f64::NAN; 2];
    }
    if classes == 2 {
        return one_vs_rest(scores.iter().copied().zip(truth.iter().map(|&t| t == 1)));
    }
    let of_class = |c: usize| {
        let column = scores.iter().skip(c).step_by(classes).copied();
        one_vs_rest(column.zip(truth.iter().map(move |&t| t as usize == c)))
    };
    let each: Vec<[f64; 2]> = (0..classes).into_par_iter().map(of_class).collect();
    [0, 1].map(|i| each.iter().map(|pair| pair[i]).sum::<f64>() / classes as f64)
}

/// The same where a row may have several labels: each label by itself, and the mean. `is(row, label)` tells the truth.
/// A label that no row has, or every row, has no `roc_auc`; its average precision is 0 or 1, as in scikit-learn.
pub fn score_sets(scores: &[f32], labels: usize, is: impl Fn(usize, usize) -> bool + Sync) -> [f64; 2] {
    let of_label = |label: usize| {
        let column = || scores.iter().skip(label).step_by(labels).copied();
        let rows = || column().enumerate().map(|(row, score)| (score, is(row, label)));
        let [area, precision] = one_vs_rest(rows());
        match rows().filter(|(_, positive)| *positive).count() {
            _ if column().any(f32::is_nan) => [area, precision],
            0 => [area, 0.0],
            n if n == column().count() => [area, 1.0],
            _ => [area, precision],
        }
    };
    let each: Vec<[f64; 2]> = (0..labels).into_par_iter().map(of_label).collect();
    [0, 1].map(|i| each.iter().map(|pair| pair[i]).sum::<f64>() / labels as f64)
}

/// Of one class: rows with their score and whether they truly are of it.
fn one_vs_rest(rows: impl Iterator<Item = (f32, bool)>) -> [f64; 2] {
    let mut rows: Vec<(f32, bool)> = rows.collect();
    let positives = rows.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = rows.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 || rows.iter().any(|(score, _)| score.is_nan()) {
        return [f64::NAN; 2];
    }
    // Not total_cmp: -0 and 0 are the same score. No score is NaN, so the order is total.
    rows.sort_unstable_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal));
    let (mut hits, mut seen, mut area, mut precision) = (0.0, 0.0, 0.0, 0.0);
    for tied in rows.chunk_by(|a, b| a.0 == b.0) {
        let new = tied.iter().filter(|(_, positive)| *positive).count() as f64;
        // Pairs that are ordered rightly, a tie counting half: exact in f64 up to 2^53 pairs.
        area += (tied.len() as f64 - new) * (hits + new / 2.0);
        hits += new;
        seen += tied.len() as f64;
        precision += new * (hits / seen);
    }
    [area / (positives * negatives), precision / positives]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_half_and_zeros_are_equal() {
        assert_eq!(score(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1], 2)[0], 0.75);
        assert_eq!(score(&[0.5, 0.5], &[0, 1], 2), [0.5, 0.5]);
        assert_eq!(score(&[-0.0, 0.0], &[0, 1], 2), [0.5, 0.5]);
        // The order of rows does not matter.
        assert_eq!(score(&[0.9, 0.9, 0.2], &[1, 0, 0], 2), score(&[0.2, 0.9, 0.9], &[0, 0, 1], 2));
    }

    #[test]
    fn what_is_not_defined_is_nan() {
        let undefined = |pair: [f64; 2]| pair.iter().all(|v| v.is_nan());
        assert!(undefined(score(&[0.1, 0.2], &[1, 1], 2)) && undefined(score(&[0.1, 0.2], &[0, 0], 2)));
        assert!(undefined(score(&[], &[], 2)) && undefined(score(&[0.1], &[0], 1)));
        assert!(undefined(score(&[f32::NAN, 0.2], &[0, 1], 2)));
        // Class 2 has no row.
        assert!(undefined(score(&[0.5, 0.3, 0.2, 0.1, 0.8, 0.1], &[0, 1], 3)));
    }
}
