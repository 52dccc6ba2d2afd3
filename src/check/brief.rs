//! What training says about its data before it begins: one line a finding, from token ids and targets alone, at a small part of
//! the cost of tokenising. Rows are equal here when the model reads the same tokens.

use super::exact::exact;
use super::findings::{
    IMBALANCE, IMBALANCE_FIX, TRUNCATED_SHARE, UNKNOWN_FIX, UNKNOWN_SHARE, VALUE_TOLERANCE, imbalance, listed_names,
    rows_of, share,
};
use crate::data::{Dataset, Targets};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The share of training rows that may repeat others without a word about it.
const REPEATED_SHARE: f64 = 0.01;

/// What is wrong with the splits, `train` first, as a sentence each with its fix; empty when all is fine. `labels` are the
/// classes by id, `frame` the number of special tokens of a row, `unknown` the unknown token.
pub fn brief(splits: &[(&str, &Dataset)], labels: &[String], frame: usize, unknown: Option<u32>) -> Vec<String> {
    let Some((_, train)) = splits.first() else { return vec![] };
    let counts: Vec<Vec<usize>> = splits.iter().map(|(_, data)| counts(&data.targets, labels.len())).collect();
    let mut found = missing(splits, labels, &counts);
    found.extend(same_rows(splits, train));
    for (name, data) in splits {
        found.extend(truncation(name, data));
        found.extend(unknown.and_then(|unknown| unknown_tokens(name, data, frame, unknown)));
    }
    let of_train: Vec<(String, usize)> = labels.iter().cloned().zip(counts[0].iter().copied()).collect();
    let present = of_train.iter().map(|(_, n)| *n).filter(|n| *n > 0);
    // Most words are in no entity, which is as it should be.
    let of_words = matches!(train.targets, Targets::Tags(_));
    if let (Some(most), Some(least)) = (present.clone().max(), present.min())
        && !of_words
        && most as f64 >= IMBALANCE * least as f64
    {
        found.push(format!("train: {}; {IMBALANCE_FIX}", imbalance(&of_train)));
    }
    found
}

fn counts(targets: &Targets, classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    match targets {
        Targets::Class(of_rows) => of_rows.iter().for_each(|&c| counts[c as usize] += 1),
        Targets::Sets(sets) => sets.iter().flatten().for_each(|&c| counts[c as usize] += 1),
        Targets::Tags(tags) => tags.labels().for_each(|c| counts[c as usize] += 1),
        Targets::Value(_) | Targets::Spans(_) | Targets::None => {}
    }
    counts
}

fn missing(splits: &[(&str, &Dataset)], labels: &[String], counts: &[Vec<usize>]) -> Vec<String> {
    let mut found = vec![];
    for ((name, _), counted) in splits.iter().zip(counts).skip(1) {
        for (has, has_counts, lacks, lacks_counts) in
            [(*name, counted, "train", &counts[0]), ("train", &counts[0], *name, counted)]
        {
            let only: Vec<&str> = (0..labels.len())
                .filter(|&c| has_counts[c] > 0 && lacks_counts[c] == 0)
                .map(|c| labels[c].as_str())
                .collect();
            if !only.is_empty() {
                let names = listed_names(only.iter().copied());
                found.push(format!("{has} has labels that {lacks} has not ({names}); add rows with them to {lacks}"));
            }
        }
    }
    found
}

fn same_rows(splits: &[(&str, &Dataset)], train: &Dataset) -> Vec<String> {
    let mut starts = vec![0];
    splits.iter().for_each(|(_, data)| starts.push(starts[starts.len() - 1] + data.len()));
    let locate = |row: u32| {
        let split = starts.partition_point(|&start| start <= row as usize) - 1;
        (split, row as usize - starts[split])
    };
    let keys_of = |(start, data): (&usize, &Dataset)| {
        let start = *start as u32;
        let key = |row: usize| (row_hash(&data.tokens.row(row), &data.tokens.type_ids_of(row)), start + row as u32);
        (0..data.len()).into_par_iter().map(key).collect::<Vec<_>>()
    };
    let keys = starts.iter().zip(splits.iter().map(|(_, data)| *data)).flat_map(keys_of).collect();
    let mut sets = BTreeMap::new();
    for targets in splits.iter().map(|(_, data)| &data.targets) {
        let Targets::Sets(of_rows) = targets else { continue };
        for set in of_rows.iter() {
            let number = sets.len();
            sets.entry(set).or_insert(number);
        }
    }
    let value_of = |row: u32| {
        let (split, row) = locate(row);
        match &splits[split].1.targets {
            Targets::Class(classes) => f64::from(classes[row]),
            Targets::Value(values) => f64::from(values[row]),
            Targets::Sets(of_rows) => sets.get(of_rows.of(row)).map_or(f64::NAN, |&number| number as f64),
            // Equal sentences, or windows of a context, have no single label to differ in.
            Targets::Tags(_) | Targets::Spans(_) => 0.0,
            Targets::None => f64::NAN,
        }
    };
    let same = exact(keys, |row| locate(row).0 as u8, value_of, tolerance(&train.targets));
    let mut found = vec![];
    for (split, (name, data)) in splits.iter().enumerate().skip(1) {
        let leaks = same.leaks.iter().filter(|leak| locate(leak.0).0 == split).count();
        if leaks > 0 {
            let leaks = rows_of(leaks, data.len());
            found.push(format!("{name}: {leaks} also in train; drop them from one of the two"));
        }
    }
    if !same.conflicts.is_empty() {
        let what = if matches!(train.targets, Targets::Value(_)) { "numbers" } else { "labels" };
        let touched: usize = same.conflicts.iter().map(|c| c.rows).sum();
        found.push(format!("{touched} rows with the text of others and different {what}; fix or drop the wrong ones"));
    }
    let repeats = same.repeats.iter().filter(|r| locate(r.0).0 == 0).count();
    if repeats as f64 > REPEATED_SHARE * train.len() as f64 {
        let repeats = rows_of(repeats, train.len());
        found.push(format!("train: {repeats} equal to others; drop them unless they are meant to count more"));
    }
    found
}

/// How far apart two targets of one text may be.
fn tolerance(targets: &Targets) -> f64 {
    let Targets::Value(values) = targets else { return 0.5 };
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    VALUE_TOLERANCE * f64::from(most - least)
}

/// 64 bits of what the model reads; among a million rows, two that differ meet once in 40 million data sets. A product's two
/// halves, xored, mix 8 bytes at a time (as in wyhash).
fn row_hash(ids: &[u32], type_ids: &[u8]) -> u64 {
    let fold = |key: u64, word: u64| {
        let product = u128::from(key ^ 0xa076_1d64_78bd_642f) * u128::from(word ^ 0xe703_7ed1_a0b4_28db);
        (product ^ (product >> 64)) as u64
    };
    let mut key = ids.len() as u64;
    for pair in ids.chunks(2) {
        key = fold(key, u64::from(pair[0]) | pair.get(1).map_or(0, |&id| u64::from(id) << 32));
    }
    // Type ids are zeros, then ones: where the second text begins says it all.
    fold(key, type_ids.iter().rposition(|&t| t == 0).unwrap_or(0) as u64)
}

fn truncation(name: &str, data: &Dataset) -> Option<String> {
    let cut = data.tokens.truncated();
    (cut as f64 > TRUNCATED_SHARE * data.len() as f64).then(|| {
        let cut = rows_of(cut, data.len());
        format!("{name}: {cut} longer than data.max_length; raise it if what they lose matters")
    })
}

fn unknown_tokens(name: &str, data: &Dataset, frame: usize, unknown: u32) -> Option<String> {
    if data.tokens.distinct().binary_search(&unknown).is_err() {
        return None;
    }
    let of_row = |row: usize| data.tokens.row(row).iter().filter(|&&id| id == unknown).count();
    let count = (0..data.len()).into_par_iter().map(of_row).sum::<usize>();
    let words = data.tokens.total().saturating_sub(data.len() * frame);
    let found = count as f64 > UNKNOWN_SHARE * words as f64;
    found.then(|| format!("{name}: {} of the tokens are unknown; {UNKNOWN_FIX}", share(count, words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokens;

    /// Rows of token ids between 101 and 102, with classes.
    fn dataset(rows: &[(&[u32], u32)]) -> Dataset {
        let row = |(ids, _): &(&[u32], u32)| {
            let ids = [&[101], *ids, &[102]].concat();
            let type_ids = vec![0u8; ids.len()];
            (ids, type_ids, false)
        };
        let tokens = Tokens::from_rows(rows.iter().map(row));
        let targets = Targets::Class(rows.iter().map(|r| r.1).collect());
        Dataset { tokens, targets, lines: (2..rows.len() as u64 + 2).collect(), file: "train.csv".into() }
    }

    fn found(splits: &[(&str, &Dataset)]) -> Vec<String> {
        brief(splits, &["no".into(), "yes".into()], 2, Some(100))
    }

    #[test]
    fn sound_data_is_passed_over_in_silence() {
        let train = dataset(&[(&[1, 2], 0), (&[2, 1], 1), (&[3], 0), (&[3, 0], 1)]);
        let eval = dataset(&[(&[4], 0), (&[5], 1)]);
        assert_eq!(found(&[("train", &train), ("eval", &eval)]), [""; 0]);
        assert_eq!(found(&[("train", &train)]), [""; 0]);
    }

    #[test]
    fn each_fault_is_a_line() {
        let mut rows: Vec<(&[u32], u32)> = vec![(&[1, 2], 0), (&[1, 2], 1), (&[7], 0), (&[7], 0), (&[100, 9], 0)];
        let more: Vec<[u32; 2]> = (0..20).map(|i| [i, 500 + i]).collect();
        rows.extend(more.iter().map(|ids| (ids.as_slice(), 0)));
        let mut train = dataset(&rows);
        let cut = |row| (train.tokens.row(row), train.tokens.type_ids_of(row), row == 4);
        train.tokens = Tokens::from_rows((0..train.len()).map(cut));
        let eval = dataset(&[(&[1, 2], 0), (&[8], 0)]);
        let found = found(&[("train", &train), ("eval", &eval)]);
        let parts = [
            "train has labels that eval has not (yes); add rows with them to eval",
            "eval: 1 row (50.0 %) also in train",
            "3 rows with the text of others and different labels",
            "train: 2 rows (8.0 %) equal to others",
            "train: 1 row (4.0 %) longer than data.max_length",
            "train: 2.1 % of the tokens are unknown",
            "train: the largest class is 24.0 times the smallest: no: 24, yes: 1",
        ];
        assert_eq!(found.len(), parts.len(), "{found:#?}");
        for (found, part) in found.iter().zip(parts) {
            assert!(found.starts_with(part), "{found} does not begin with {part}");
        }
    }

    #[test]
    fn a_hash_tells_where_the_second_text_begins() {
        let hash = |second: usize| row_hash(&[1, 2, 3, 4], &std::array::from_fn::<u8, 4, _>(|i| u8::from(i >= second)));
        assert_ne!(hash(2), hash(3));
        assert_ne!(row_hash(&[1, 2], &[0, 0]), row_hash(&[1, 2, 0], &[0, 0, 0]));
        assert_ne!(row_hash(&[], &[]), row_hash(&[0], &[0]));
    }
}
