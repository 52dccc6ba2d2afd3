//! Scores of single-label classification, equal to scikit-learn's.
//!
//! Rows are added one at a time to a [`Confusion`] matrix, so an evaluation streams in memory of `classes²` counts
//! whatever its length; every score is a function of that matrix. The equivalents are `accuracy_score`,
//! `precision_score`, `recall_score`, `f1_score` and `matthews_corrcoef` called with `y_true, y_pred, average=…` and
//! `zero_division=0`, without `labels=`: an average is taken over the classes that occur in truth or prediction, and a
//! ratio with nothing in its denominator is 0. With no row at all every score is NaN.

use super::Metrics;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;

/// The largest number of classes for which the confusion matrix is shown as text.
const MATRIX_CLASSES: usize = 20;
/// Longer class names are cut in the text tables.
const NAME_CHARS: usize = 32;

/// Names of the scores with `classes` classes, in the order of [`Confusion::report`], without `loss`.
pub(super) fn names(classes: usize) -> &'static [&'static str] {
    const ALL: [&str; 12] = [
        "accuracy",
        "precision",
        "recall",
        "f1",
        "macro_precision",
        "macro_recall",
        "macro_f1",
        "micro_f1",
        "weighted_precision",
        "weighted_recall",
        "weighted_f1",
        "mcc",
    ];
    const MULTI: [&str; 9] = [ALL[0], ALL[4], ALL[5], ALL[6], ALL[7], ALL[8], ALL[9], ALL[10], ALL[11]];
    if classes == 2 { &ALL } else { &MULTI }
}

/// Index of the largest score, the first of equals; a NaN counts as the largest, as in numpy. 0 for an empty slice.
pub fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &score) in scores.iter().enumerate() {
        if !scores[best].is_nan() && (score > scores[best] || score.is_nan()) {
            best = i;
        }
    }
    best as u32
}

/// Counts of rows by true and predicted class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`, row = truth.
    counts: Vec<u64>,
}

/// One class against the rest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassScore {
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Rows that truly are of this class.
    pub support: u64,
}

/// Everything that is said about one evaluation, apart from its loss.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassificationReport {
    pub metrics: Metrics,
    /// `[classes, classes]`, row = truth; empty where a row may have several.
    pub confusion: Vec<u64>,
    pub per_class: Vec<ClassScore>,
}

/// Scores whole slices of class indices at once; see [`Confusion`] for streaming.
///
/// Fails when the slices differ in length or hold an index that is not under `classes`.
pub fn score(predicted: &[u32], truth: &[u32], classes: usize) -> Result<ClassificationReport> {
    if predicted.len() != truth.len() {
        return Err(Error::Failed(format!("{} predictions for {} labels", predicted.len(), truth.len())));
    }
    let mut confusion = Confusion::new(classes);
    for (&t, &p) in truth.iter().zip(predicted) {
        confusion.add(t, p)?;
    }
    Ok(confusion.report())
}

impl Confusion {
    /// No rows yet.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts one row. Fails when an index is not under the number of classes.
    pub fn add(&mut self, truth: u32, predicted: u32) -> Result<()> {
        let (t, p) = (truth as usize, predicted as usize);
        if t.max(p) >= self.classes {
            return Err(Error::Failed(format!("class index {} with {} classes", t.max(p), self.classes)));
        }
        self.counts[t * self.classes + p] += 1;
        Ok(())
    }

    /// Scores of the rows so far.
    pub fn report(&self) -> ClassificationReport {
        let cells: Vec<Cells> = (0..self.classes).map(|c| self.cells(c)).collect();
        let per_class: Vec<ClassScore> = cells.iter().map(Cells::score).collect();
        let rows = self.counts.iter().sum::<u64>() as f64;
        let hits = cells.iter().map(|c| c.hit).sum::<u64>() as f64;
        let weighted =
            |f: fn(&ClassScore) -> f64| per_class.iter().map(|c| f(c) * c.support as f64).sum::<f64>() / rows;
        let occurring = cells.iter().filter(|c| c.occurs()).count() as f64;
        // A class that does not occur adds a score of 0 and no count.
        let macro_mean = |f: fn(&ClassScore) -> f64| per_class.iter().map(f).sum::<f64>() / occurring;

        let mut values = vec![hits / rows];
        if self.classes == 2 {
            let none = rows == 0.0;
            let positive = per_class[1];
            values.extend([positive.precision, positive.recall, positive.f1].map(|v| if none { f64::NAN } else { v }));
        }
        values.extend([macro_mean(|c| c.precision), macro_mean(|c| c.recall), macro_mean(|c| c.f1)]);
        // Each wrong row is one false positive and one false negative, so micro-averaged F1 is the accuracy.
        values.push(hits / rows);
        values.extend([weighted(|c| c.precision), weighted(|c| c.recall), weighted(|c| c.f1)]);
        values.push(mcc(&cells, hits, rows));

        let metrics = Metrics(names(self.classes).iter().map(|n| n.to_string()).zip(values).collect());
        ClassificationReport { metrics, confusion: self.counts.clone(), per_class }
    }

    fn cells(&self, class: usize) -> Cells {
        let n = self.classes;
        Cells {
            hit: self.counts[class * n + class],
            support: self.counts[class * n..(class + 1) * n].iter().sum(),
            predicted: (0..n).map(|t| self.counts[t * n + class]).sum(),
        }
    }
}

/// The marginals of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cells {
    pub hit: u64,
    pub support: u64,
    pub predicted: u64,
}

impl Cells {
    fn occurs(&self) -> bool {
        self.support + self.predicted > 0
    }

    pub fn score(&self) -> ClassScore {
        ClassScore {
            precision: ratio(self.hit, self.predicted),
            recall: ratio(self.hit, self.support),
            f1: ratio(2 * self.hit, self.support + self.predicted),
            support: self.support,
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Matthews' correlation for any number of classes (Gorodkin 2004); 0 when truth or prediction is one class only.
fn mcc(cells: &[Cells], hits: f64, rows: f64) -> f64 {
    if rows == 0.0 {
        return f64::NAN;
    }
    let sum = |f: fn(&Cells) -> f64| cells.iter().map(f).sum::<f64>();
    let covariance = hits * rows - sum(|c| c.support as f64 * c.predicted as f64);
    let truth = rows * rows - sum(|c| (c.support as f64).powi(2));
    let predicted = rows * rows - sum(|c| (c.predicted as f64).powi(2));
    if truth * predicted == 0.0 { 0.0 } else { covariance / (truth * predicted).sqrt() }
}

impl ClassificationReport {
    /// The per-class table and, up to 20 classes, the confusion matrix as aligned text. `labels` are the class names
    /// in index order; a class without one is shown by its index alone.
    pub fn tables<'a>(&'a self, labels: &'a [String]) -> Tables<'a> {
        Tables { report: self, labels }
    }
}

/// Text of a report; see [`ClassificationReport::tables`].
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    report: &'a ClassificationReport,
    labels: &'a [String],
}

impl Tables<'_> {
    /// `index  name`, each padded to its column.
    fn heads(&self) -> Vec<String> {
        let names: Vec<String> = (0..self.report.per_class.len())
            .map(|i| self.labels.get(i).map_or(String::new(), |name| shorten(name)))
            .collect();
        let wide = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
        let digits = digits(names.len().saturating_sub(1) as u64);
        names.iter().enumerate().map(|(i, name)| format!("{i:>digits$}  {name:<wide$}")).collect()
    }
}

impl fmt::Display for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = self.heads();
        let wide = heads.first().map_or(0, |h| h.chars().count());
        writeln!(f, "{:wide$}  precision  recall      f1  support", "")?;
        for (head, c) in heads.iter().zip(&self.report.per_class) {
            writeln!(f, "{head}  {:>9.4}  {:>6.4}  {:>6.4}  {:>7}", c.precision, c.recall, c.f1, c.support)?;
        }
        if heads.len() > MATRIX_CLASSES || self.report.confusion.is_empty() {
            return Ok(());
        }
        let largest = self.report.confusion.iter().copied().max().unwrap_or(0);
        let column = digits(largest.max(heads.len().saturating_sub(1) as u64)) + 2;
        writeln!(f, "\nconfusion matrix (row: true class, column: predicted class)")?;
        write!(f, "{:wide$}", "")?;
        for i in 0..heads.len() {
            write!(f, "{i:>column$}")?;
        }
        for (head, row) in heads.iter().zip(self.report.confusion.chunks(heads.len().max(1))) {
            write!(f, "\n{head}")?;
            for n in row {
                write!(f, "{n:>column$}")?;
            }
        }
        writeln!(f)
    }
}

fn digits(n: u64) -> usize {
    n.checked_ilog10().unwrap_or(0) as usize + 1
}

/// One line, at most [`NAME_CHARS`] characters.
fn shorten(name: &str) -> String {
    let mut chars = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let start: String = chars.by_ref().take(NAME_CHARS - 1).collect();
    let rest: Vec<char> = chars.take(2).collect();
    match rest[..] {
        [] => start,
        [last] => start + &last.to_string(),
        _ => start + "…",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_report() {
        for classes in [1, 2, 3, 20] {
            let report = Confusion::new(classes).report();
            let got: Vec<&str> = report.metrics.0.iter().map(|(n, _)| n.as_str()).collect();
            assert_eq!(got, names(classes));
            assert!(report.metrics.0.iter().all(|(_, v)| v.is_nan()), "no rows, {classes} classes");
        }
        assert!(names(2).contains(&"f1") && !names(3).contains(&"f1") && names(3).len() == 9);
    }

    #[test]
    fn argmax_is_numpys() {
        assert_eq!(argmax(&[-1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(argmax(&[1.0, f32::NAN, 9.0, f32::NAN]), 1);
        assert_eq!(argmax(&[f32::NAN, 9.0]), 0);
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), 0);
    }

    #[test]
    fn wrong_indices_and_lengths_are_errors() {
        assert!(score(&[0, 1], &[0], 2).unwrap_err().to_string().contains("2 predictions for 1 labels"));
        assert!(Confusion::new(2).add(2, 0).unwrap_err().to_string().contains("class index 2 with 2 classes"));
        assert!(Confusion::new(2).add(0, 7).is_err());
    }

    #[test]
    fn tables_are_aligned() {
        let report = score(&[0, 1, 1, 2, 2, 2], &[0, 1, 0, 2, 2, 2], 4).unwrap();
        let labels = ["nein", "für", "x"].map(String::from);
        let expected = "         precision  recall      f1  support
0  nein     1.0000  0.5000  0.6667        2
1  für      0.5000  1.0000  0.6667        1
2  x        1.0000  1.0000  1.0000        3
3           0.0000  0.0000  0.0000        0

confusion matrix (row: true class, column: predicted class)
         0  1  2  3
0  nein  1  1  0  0
1  für   0  1  0  0
2  x     0  0  3  0
3        0  0  0  0
";
        assert_eq!(report.tables(&labels).to_string(), expected);
    }

    #[test]
    fn many_classes_show_no_matrix_and_long_names_are_cut() {
        let report = score(&[20], &[20], 21).unwrap();
        let mut labels = vec![String::from("a\nb"); 20];
        labels.push("é".repeat(40));
        let text = report.tables(&labels).to_string();
        assert_eq!(text.lines().count(), 22);
        assert!(text.contains(&format!("20  {}…  ", "é".repeat(31))) && text.contains(" 0  a b  "), "{text}");
        let widths: Vec<usize> = text.lines().map(|l| l.chars().count()).collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "{text}");
        assert_eq!(shorten(&"b".repeat(32)), "b".repeat(32));
        assert!(Confusion::new(0).report().tables(&[]).to_string().contains("support"));
    }
}
