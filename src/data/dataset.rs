//! Tokenised rows with their targets, the split into train and eval, and packed batches.

use std::path::PathBuf;

use super::label_sets::LabelSets;
use super::sampler::{Purpose, shuffle};
use super::span::SpanRows;
use super::tagging::{TagRow, TagRows};
use super::tokens::Tokens;
use crate::error::{Error, Result};

/// What the model should predict, one entry a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Class indices.
    Class(Vec<u32>),
    /// Numbers.
    Value(Vec<f32>),
    /// Any number of classes each.
    Sets(LabelSets),
    /// A class for each of some tokens.
    Tags(TagRows),
    /// The places of the first and last token of an answer.
    Spans(SpanRows),
    /// Nothing is known, as in `predict`.
    None,
}

impl Targets {
    /// The targets of these rows in this order. Rows are below the number of targets.
    pub fn subset(&self, rows: &[usize]) -> Self {
        match self {
            Self::Class(classes) => Self::Class(rows.iter().map(|&r| classes[r]).collect()),
            Self::Value(values) => Self::Value(rows.iter().map(|&r| values[r]).collect()),
            Self::Sets(sets) => Self::Sets(sets.subset(rows)),
            Self::Tags(tags) => Self::Tags(tags.subset(rows)),
            Self::Spans(spans) => Self::Spans(spans.subset(rows)),
            Self::None => Self::None,
        }
    }
}

/// A data file, ready to be drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub tokens: Tokens,
    pub targets: Targets,
    /// 1-based line of each row in `file`, for messages.
    pub lines: Vec<u64>,
    pub file: PathBuf,
}

/// Rows packed end to end without padding. `tokens` = the sum of the rows' lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[tokens]`
    pub ids: Vec<u32>,
    /// `[tokens]`
    pub type_ids: Vec<u32>,
    /// `[tokens]`: 0, 1, 2, … from the start of each row.
    pub positions: Vec<u32>,
    /// `[rows + 1]`: where each row begins, then `tokens`.
    pub cu_seqlens: Vec<u32>,
    /// `[rows]`: the data set's row that each came from.
    pub rows: Vec<usize>,
    /// `[rows]`
    pub targets: Targets,
}

impl Dataset {
    /// Rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Packs rows (each `< len()`) in the order given.
    pub fn batch(&self, rows: &[usize]) -> Batch {
        let tokens = rows.iter().map(|&r| self.tokens.len_of(r)).sum();
        let mut batch = Batch {
            ids: Vec::with_capacity(tokens),
            type_ids: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            cu_seqlens: Vec::with_capacity(rows.len() + 1),
            rows: rows.to_vec(),
            targets: self.targets.subset(rows),
        };
        batch.cu_seqlens.push(0);
        for &row in rows {
            self.tokens.copy_row(row, &mut batch.ids);
            batch.type_ids.extend(self.tokens.type_ids_of(row).iter().map(|&t| u32::from(t)));
            batch.positions.extend(0..self.tokens.len_of(row) as u32);
            batch.cu_seqlens.push(batch.ids.len() as u32);
        }
        batch
    }

    /// These rows (each `< len()`) in this order as a data set of its own.
    pub fn subset(&self, rows: &[usize]) -> Self {
        Self {
            tokens: self.tokens.subset(rows),
            targets: self.targets.subset(rows),
            lines: rows.iter().map(|&r| self.lines[r]).collect(),
            file: self.file.clone(),
        }
    }
}

impl Batch {
    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The labelled tokens of [`Targets::Tags`]: where they are in the batch, and their labels.
    pub fn labelled(&self) -> Option<(Vec<u32>, Vec<u32>)> {
        let Targets::Tags(tags) = &self.targets else { return None };
        let of_row = |(row, &start): (&TagRow, &u32)| {
            row.labels.iter().map(move |&(at, label)| (start + at, label)).collect::<Vec<_>>()
        };
        Some(tags.iter().zip(&self.cu_seqlens).flat_map(of_row).unzip())
    }

    /// Where the words that belong to the rows begin in the batch, row after row.
    pub fn word_starts(&self) -> Vec<u32> {
        let Targets::Tags(tags) = &self.targets else { return vec![] };
        tags.iter()
            .zip(&self.cu_seqlens)
            .flat_map(|(row, &start)| row.words.iter().map(move |&(_, at)| start + at))
            .collect()
    }

    /// All rows, and all of them once more behind.
    pub fn twice(&self) -> Self {
        let all: Vec<usize> = (0..self.len()).chain(0..self.len()).collect();
        let tokens = self.ids.len() as u32;
        Self {
            ids: self.ids.repeat(2),
            type_ids: self.type_ids.repeat(2),
            positions: self.positions.repeat(2),
            cu_seqlens: self
                .cu_seqlens
                .iter()
                .copied()
                .chain(self.cu_seqlens[1..].iter().map(|at| at + tokens))
                .collect(),
            rows: self.rows.repeat(2),
            targets: self.targets.subset(&all),
        }
    }

    /// Tokens of the longest row.
    pub fn max_len(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }
}

/// Splits the rows of `targets` into (train, eval), each in ascending order, `fraction` of them to eval. With classes the
/// split is stratified: each gives its share (largest remainders first, so that the total is right), but keeps one row
/// in train.
///
/// # Errors
/// When `fraction` is not between 0 and 1, or leaves one side empty.
pub fn split_fraction(targets: &Targets, fraction: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::input(format!("data.eval is the fraction {fraction}; it must be above 0 and below 1")));
    }
    // The windows of a sentence, or of a question's context, stay together.
    let wholes = match targets {
        Targets::Tags(tags) => Some(tags.sentences()),
        Targets::Spans(spans) => Some(spans.by_question()),
        _ => None,
    };
    if let Some(wholes) = wholes {
        let (train, eval) = split_fraction(&Targets::Value(vec![0.0; wholes.len()]), fraction, seed)?;
        return Ok([train, eval].map(|of| of.iter().flat_map(|&i| wholes[i].iter().copied()).collect()).into());
    }
    let mut strata = strata(targets);
    let counts = eval_counts(&strata.iter().map(Vec::len).collect::<Vec<_>>(), fraction);
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for (class, (stratum, count)) in strata.iter_mut().zip(counts).enumerate() {
        shuffle(stratum, Purpose::Split, seed, class as u64);
        eval.extend_from_slice(&stratum[..count]);
        train.extend_from_slice(&stratum[count..]);
    }
    if train.is_empty() || eval.is_empty() {
        let side = if train.is_empty() { "train" } else { "eval" };
        return Err(Error::input(format!(
            "data.eval = {fraction} of {} rows leaves no row for {side}; change the fraction or give a file",
            train.len() + eval.len()
        )));
    }
    train.sort_unstable();
    eval.sort_unstable();
    Ok((train, eval))
}

/// Rows by class; one stratum when there are no classes.
fn strata(targets: &Targets) -> Vec<Vec<usize>> {
    let classes = match targets {
        Targets::Class(classes) => classes,
        Targets::Value(values) => return vec![(0..values.len()).collect()],
        // Most combinations are rare, so there is nothing to stratify by.
        Targets::Sets(sets) => return vec![(0..sets.len()).collect()],
        Targets::Tags(tags) => return vec![(0..tags.len()).collect()],
        Targets::Spans(spans) => return vec![(0..spans.len()).collect()],
        Targets::None => return Vec::new(),
    };
    let mut strata = vec![Vec::new(); classes.iter().max().map_or(0, |&c| c as usize + 1)];
    for (row, &class) in classes.iter().enumerate() {
        strata[class as usize].push(row);
    }
    strata
}

/// How many rows of each stratum go to eval.
fn eval_counts(sizes: &[usize], fraction: f64) -> Vec<usize> {
    let total = (sizes.iter().sum::<usize>() as f64 * fraction).round() as usize;
    let share = |i: usize| sizes[i] as f64 * fraction;
    let most = |i: usize| sizes[i].saturating_sub(1);
    let mut counts: Vec<usize> = (0..sizes.len()).map(|i| (share(i) as usize).min(most(i))).collect();
    let mut by_remainder: Vec<usize> = (0..sizes.len()).filter(|&i| counts[i] < most(i)).collect();
    by_remainder.sort_by(|&a, &b| share(b).fract().total_cmp(&share(a).fract()));
    let missing = total.saturating_sub(counts.iter().sum());
    for i in by_remainder.into_iter().take(missing) {
        counts[i] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Three rows of 2, 3 and 1 tokens.
    fn dataset() -> Dataset {
        let rows: [(&[u32], &[u8], bool); 3] =
            [(&[10, 11], &[0, 0], false), (&[20, 21, 22], &[0, 1, 1], true), (&[30], &[0], false)];
        let tokens = Tokens::from_rows(rows);
        Dataset { tokens, targets: Targets::Class(vec![0, 1, 2]), lines: vec![2, 4, 5], file: "train.csv".into() }
    }

    #[test]
    fn a_batch_is_its_rows_end_to_end() {
        let batch = dataset().batch(&[2, 1]);
        assert_eq!(batch.ids, [30, 20, 21, 22]);
        assert_eq!(batch.type_ids, [0, 0, 1, 1]);
        assert_eq!(batch.positions, [0, 0, 1, 2]);
        assert_eq!(batch.cu_seqlens, [0, 1, 4]);
        assert_eq!(batch.rows, [2, 1]);
        assert_eq!(batch.targets, Targets::Class(vec![2, 1]));
        assert_eq!((batch.len(), batch.max_len()), (2, 3));
        assert_eq!(dataset().batch(&[]).cu_seqlens, [0]);
    }

    #[test]
    fn a_subset_keeps_targets_and_lines_beside_the_tokens() {
        let subset = dataset().subset(&[2, 0]);
        assert_eq!(subset.lines, [5, 2]);
        assert_eq!(subset.targets, Targets::Class(vec![2, 0]));
        assert_eq!(subset.batch(&[0, 1]).ids, [30, 10, 11]);
        assert_eq!(subset.file, dataset().file);
    }

    fn split(sizes: &[usize], fraction: f64) -> Vec<usize> {
        let classes: Vec<u32> = sizes.iter().enumerate().flat_map(|(c, &n)| vec![c as u32; n]).collect();
        let (train, eval) = split_fraction(&Targets::Class(classes.clone()), fraction, 42).unwrap();
        let all: BTreeSet<_> = train.iter().chain(&eval).copied().collect();
        assert_eq!((all.len(), train.len() + eval.len()), (classes.len(), classes.len()));
        assert!(train.is_sorted() && eval.is_sorted());
        (0..sizes.len()).map(|c| eval.iter().filter(|&&r| classes[r] as usize == c).count()).collect()
    }

    #[test]
    fn a_split_is_stratified_and_leaves_every_class_in_train() {
        assert_eq!(split(&[100, 50, 10], 0.1), [10, 5, 1]);
        // 0.1 · 26 = 3 rows: two whole shares, and one for the largest remainder.
        assert_eq!(split(&[11, 6, 9], 0.1), [1, 1, 1]);
        assert_eq!(split(&[12, 14], 0.1), [1, 2]);
        // A single row stays in train, a class of two keeps one.
        assert_eq!(split(&[1, 2, 97], 0.9), [0, 1, 88]);
        assert_eq!(split(&[2, 2], 0.9), [1, 1]);
        // A class number that no row has.
        assert_eq!(split(&[10, 0, 10], 0.5), [5, 0, 5]);
    }

    #[test]
    fn a_split_depends_on_the_seed_alone() {
        let targets = Targets::Value((0..1000).map(|i| i as f32).collect());
        let (train, eval) = split_fraction(&targets, 0.2, 1).unwrap();
        assert_eq!((train.len(), eval.len()), (800, 200));
        assert_eq!(split_fraction(&targets, 0.2, 1).unwrap(), (train, eval.clone()));
        assert_ne!(split_fraction(&targets, 0.2, 2).unwrap().1, eval);
    }

    #[test]
    fn a_split_that_leaves_a_side_empty_is_an_error() {
        let few = Targets::Class(vec![0, 0, 1, 1]);
        for wrong in [0.0, 1.0, -0.1, f64::NAN, 0.01] {
            assert_eq!(split_fraction(&few, wrong, 42).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert!(split_fraction(&Targets::Class(vec![0, 1]), 0.5, 42).unwrap_err().to_string().contains("for eval"));
        assert!(split_fraction(&Targets::None, 0.5, 42).is_err());
    }
}
