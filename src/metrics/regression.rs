//! Scores of a predicted number, computed in f64 from all rows: scipy's `pearsonr` and `spearmanr`, scikit-learn's
//! `mean_squared_error`, `mean_absolute_error` and `r2_score`.

use super::Metrics;
use crate::error::{Error, Result};

/// Names of the scores, in the order of [`score`], without `loss`.
pub(super) const NAMES: [&str; 5] = ["pearson", "spearman", "mse", "mae", "r2"];

/// `pearson spearman mse mae r2` of the rows.
///
/// A correlation is NaN, as in scipy, when either side is constant (so also for fewer than two rows) or holds a NaN.
/// `r2` of a constant truth is 1 if every prediction is exact and else 0, as in scikit-learn; for fewer than two rows
/// it is NaN. Fails when the slices differ in length.
pub fn score(predicted: &[f32], truth: &[f32]) -> Result<Metrics> {
    if predicted.len() != truth.len() {
        return Err(Error::Failed(format!("{} predictions for {} labels", predicted.len(), truth.len())));
    }
    let p: Vec<f64> = predicted.iter().map(|&v| v.into()).collect();
    let t: Vec<f64> = truth.iter().map(|&v| v.into()).collect();
    let errors = || p.iter().zip(&t).map(|(p, t)| p - t);
    let squared: f64 = errors().map(|e| e * e).sum();
    let values = [
        pearson(&p, &t),
        spearman(&p, &t),
        squared / p.len() as f64,
        errors().map(f64::abs).sum::<f64>() / p.len() as f64,
        r2(squared, &t),
    ];
    Ok(Metrics(NAMES.map(String::from).into_iter().zip(values).collect()))
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// Told by equality: the mean of equal numbers may round to something else, which would leave a spread of noise.
fn constant(x: &[f64]) -> bool {
    x.windows(2).all(|w| w[0] == w[1])
}

fn r2(squared_error: f64, truth: &[f64]) -> f64 {
    if truth.len() < 2 {
        return f64::NAN;
    }
    if constant(truth) {
        return if squared_error.is_nan() { f64::NAN } else { f64::from(squared_error == 0.0) };
    }
    let m = mean(truth);
    1.0 - squared_error / truth.iter().map(|t| (t - m).powi(2)).sum::<f64>()
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    if constant(x) || constant(y) {
        return f64::NAN;
    }
    let (mx, my) = (mean(x), mean(y));
    let norm = |v: &[f64], m: f64| v.iter().map(|v| (v - m).powi(2)).sum::<f64>().sqrt();
    let (nx, ny) = (norm(x, mx), norm(y, my));
    // Rounding may leave a perfect correlation a hair outside; clamp keeps NaN.
    x.iter().zip(y).map(|(x, y)| (x - mx) / nx * ((y - my) / ny)).sum::<f64>().clamp(-1.0, 1.0)
}

fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|v| v.is_nan()) {
        return f64::NAN;
    }
    pearson(&ranks(x), &ranks(y))
}

/// 1-based ranks; equal values share the mean of theirs. `x` holds no NaN.
fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_unstable_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut ranks = vec![0.0; x.len()];
    let mut before = 0;
    // By `==`, which takes −0 and 0 for equal; `total_cmp` has put them side by side.
    for tied in order.chunk_by(|&a, &b| x[a] == x[b]) {
        let rank = before as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0, -0.0, 2.0, 3.0]), [6.0, 3.0, 6.0, 1.5, 1.5, 4.0, 6.0]);
    }

    #[test]
    fn undefined_scores_are_nan() {
        let get = |p: &[f32], t: &[f32]| {
            let m = score(p, t).unwrap();
            NAMES.map(|n| m.get(n).unwrap())
        };
        assert!(get(&[], &[]).iter().all(|v| v.is_nan()));
        let [pearson, spearman, mse, mae, r2] = get(&[1.0], &[3.0]);
        assert!(pearson.is_nan() && spearman.is_nan() && r2.is_nan());
        assert_eq!((mse, mae), (4.0, 2.0));
        // 0.1f32 three times: the mean rounds, and only the test by equality sees a constant.
        let [pearson, spearman, _, mae, r2] = get(&[0.1; 3], &[1.0, 2.0, 3.5]);
        assert!(pearson.is_nan() && spearman.is_nan() && mae > 1.0 && r2 < 0.0);
        assert!(get(&[1.0, f32::NAN, 2.0], &[1.0, 2.0, 3.0]).iter().all(|v| v.is_nan()));
        assert!(get(&[1.0, f32::NAN], &[1.0, 1.0])[4].is_nan());
    }

    #[test]
    fn lengths_must_agree() {
        assert!(score(&[1.0], &[]).unwrap_err().to_string().contains("1 predictions for 0 labels"));
    }
}
