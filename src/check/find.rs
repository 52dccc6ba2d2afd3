//! The search for what is wrong with the data.

use super::exact::{Exact, exact};
use super::findings::{
    FEW_ROWS, Finding, IMBALANCE, IMBALANCE_FIX, Listed, Name, Options, Place, TRUNCATED_SHARE, UNKNOWN_FIX,
    UNKNOWN_SHARE, VALUE_TOLERANCE, counted, imbalance, listed_names, percent, rows_of,
};
use super::measures::Measures;
use super::minhash::{Edge, Near, near, shingles};
use super::scan::{Label, Scan, Split};
use crate::data::{LabelMap, label_sets};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// Everything that is wrong, in the order of [`Name::ALL`]. `measures` are those of the scan's splits.
pub fn find(scan: &Scan, measures: &[Measures], options: Options) -> Vec<Finding> {
    let view = View::new(scan, options);
    let mut found = view.same_rows();
    for (i, (split, measures)) in scan.splits.iter().zip(measures).enumerate() {
        found.extend(view.bad_rows(i));
        found.extend(view.bad_labels(i));
        found.extend(view.missing_labels(i));
        found.extend(view.empty(i));
        found.extend(view.truncation(i, measures));
        found.extend(view.unknown(i, measures));
        found.extend(view.marked(i));
        if split.name == "train" {
            found.extend(view.classes(measures));
        }
    }
    // Stable, so splits stay in their order.
    found.sort_by_key(|f| Name::ALL.iter().position(|n| *n == f.name));
    found
}

/// Rows numbered through all splits.
struct View<'a> {
    scan: &'a Scan,
    options: Options,
    /// First number of each split, then the number of all rows.
    starts: Vec<usize>,
}

impl<'a> View<'a> {
    fn new(scan: &'a Scan, options: Options) -> Self {
        let mut starts = vec![0];
        for split in &scan.splits {
            starts.push(starts[starts.len() - 1] + split.len());
        }
        Self { scan, options, starts }
    }

    /// Split and row in it of a number.
    fn locate(&self, row: u32) -> (usize, usize) {
        let split = self.starts.partition_point(|&start| start <= row as usize) - 1;
        (split, row as usize - self.starts[split])
    }

    fn split_of(&self, row: u32) -> u8 {
        self.locate(row).0 as u8
    }

    fn all_rows(&self) -> impl Iterator<Item = (u32, &'a Split, usize)> {
        self.scan
            .splits
            .iter()
            .flat_map(|split| (0..split.len()).map(move |row| (split, row)))
            .zip(0..)
            .map(|((split, row), number)| (number, split, row))
    }

    fn label_text(&self, row: u32) -> String {
        let (split, row) = self.locate(row);
        match self.scan.splits[split].labels[row] {
            Label::Name(i) => self.scan.label_text(i),
            Label::Value(v) => v.to_string(),
            Label::Unusable => "no label".into(),
        }
    }

    fn place(&self, split: usize, row: usize) -> Place {
        let split = &self.scan.splits[split];
        let (file, line) = split.place(row);
        Place { file: file.to_owned(), line }
    }

    fn listed(&self, split: usize, row: usize) -> Listed {
        Listed::at(self.place(split, row))
    }

    fn listed_pair(&self, (row, other): (u32, u32), similarity: Option<f64>) -> Listed {
        let (at, other) = (self.locate(row), self.locate(other));
        Listed { other: Some(self.place(other.0, other.1)), similarity, ..self.listed(at.0, at.1) }
    }

    fn finding(&self, name: Name, split: Option<usize>, count: usize, message: String, fix: &str) -> Finding {
        let split = split.map(|i| self.scan.splits[i].name.to_owned());
        Finding { name, split, count, message, fix: fix.into(), examples: vec![] }
    }

    /// Equal and nearly equal rows: duplicates, leakage, conflicts.
    fn same_rows(&self) -> Vec<Finding> {
        let keys = self.all_rows().filter_map(|(number, split, row)| Some((split.keys[row]?, number))).collect();
        let (value_of, tolerance) = self.values();
        let exact = exact(keys, |row| self.split_of(row), |row| value_of[row as usize], tolerance);
        let near = self.options.near.map(|threshold| self.near(&exact, threshold)).unwrap_or_default();
        let mut found: Vec<Finding> = self.conflicts(&exact).into_iter().collect();
        for split in 0..self.scan.splits.len() {
            found.extend(self.duplicates(split, &exact));
            found.extend(self.near_duplicates(split, &near));
            found.extend(self.leakage(split, &exact, &near));
        }
        found
    }

    /// Labels as numbers, and how far apart two may be.
    fn values(&self) -> (Vec<f64>, f64) {
        let value = |label: Label| match label {
            Label::Value(v) => f64::from(v),
            // Equal sets of labels are equal strings.
            Label::Name(i) if self.scan.several => f64::from(i),
            Label::Name(i) => match self.scan.classes_of(label) {
                Some(&[class]) => f64::from(class),
                _ => f64::from(i) + 1e9,
            },
            Label::Unusable => f64::NAN,
        };
        let values: Vec<f64> = self.all_rows().map(|(_, split, row)| value(split.labels[row])).collect();
        if !self.scan.classes.is_empty() {
            return (values, 0.5);
        }
        let train = &values[..self.starts[1]];
        let (least, most) =
            (train.iter().copied().fold(f64::NAN, f64::min), train.iter().copied().fold(f64::NAN, f64::max));
        let tolerance = VALUE_TOLERANCE * (most - least);
        (values, if tolerance.is_nan() { 0.0 } else { tolerance })
    }

    /// Rows that are alike, among those that differ.
    fn near(&self, exact: &Exact, threshold: f64) -> Near {
        let repeats: HashSet<u32> = exact.repeats.iter().map(|r| r.0).collect();
        let rows: Vec<u32> = self.all_rows().map(|(number, ..)| number).filter(|n| !repeats.contains(n)).collect();
        let splits: Vec<u8> = rows.iter().map(|&row| self.split_of(row)).collect();
        let set = |i: usize| {
            let (split, row) = self.locate(rows[i]);
            let split = &self.scan.splits[split];
            shingles(&split.words(row), &split.data.tokens.type_ids_of(row), &self.scan.special)
        };
        let mut near = near(&splits, &set, threshold);
        for edge in near.within.iter_mut().chain(&mut near.leaks) {
            (edge.row, edge.other) = (rows[edge.row as usize], rows[edge.other as usize]);
        }
        // A row that is equal to one of train is no news, and neither are its repeats.
        let equal: HashSet<u32> = exact.leaks.iter().map(|leak| leak.0).collect();
        near.leaks.retain(|edge| !equal.contains(&edge.row));
        let mut copies: HashMap<u32, Vec<u32>> = HashMap::new();
        exact.repeats.iter().for_each(|&(row, first)| copies.entry(first).or_default().push(row));
        let repeated: Vec<_> = near
            .leaks
            .iter()
            .flat_map(|edge| copies.get(&edge.row).into_iter().flatten().map(|&row| Edge { row, ..*edge }))
            .collect();
        near.leaks.extend(repeated);
        near.leaks.sort_by_key(|e| e.row);
        near
    }

    fn conflicts(&self, exact: &Exact) -> Option<Finding> {
        let texts = exact.conflicts.len();
        let rows: usize = exact.conflicts.iter().map(|c| c.rows).sum();
        let what = if self.scan.classes.is_empty() {
            "numbers further apart than a tenth of train's range"
        } else {
            "different labels"
        };
        let message = format!("{} with {what}, in {rows} rows", counted(texts, "text", "texts"));
        let fix = "decide which label is right and fix or drop the other rows";
        let mut finding = self.finding(Name::Conflicts, None, texts, message, fix);
        finding.examples = (exact.conflicts.iter().take(self.options.examples))
            .map(|c| {
                let detail = format!("{} | {}", self.label_text(c.pair.0), self.label_text(c.pair.1));
                Listed { detail: Some(detail), ..self.listed_pair(c.pair, None) }
            })
            .collect();
        (texts > 0).then_some(finding)
    }

    fn duplicates(&self, split: usize, exact: &Exact) -> Option<Finding> {
        let mine: Vec<_> = exact.repeats.iter().filter(|r| usize::from(self.split_of(r.0)) == split).collect();
        let total = self.scan.splits[split].len();
        let message = format!("{} equal to an earlier row", rows_of(mine.len(), total));
        let fix = if split == 0 {
            "drop them, or keep them if they are meant to count more"
        } else {
            "drop them: they count more than once in the scores"
        };
        let mut finding = self.finding(Name::Duplicates, Some(split), mine.len(), message, fix);
        finding.examples = mine.iter().take(self.options.examples).map(|r| self.listed_pair(**r, None)).collect();
        (!mine.is_empty()).then_some(finding)
    }

    fn near_duplicates(&self, split: usize, near: &Near) -> Option<Finding> {
        let mine: Vec<_> = near.within.iter().filter(|e| usize::from(self.split_of(e.row)) == split).collect();
        let total = self.scan.splits[split].len();
        let threshold = self.options.near.unwrap_or(1.0);
        let message = format!(
            "{} nearly equal to another row (Jaccard similarity of {threshold} or more)",
            rows_of(mine.len(), total)
        );
        let fix = "look at some; drop what only repeats, or split the data so that alike rows stay together";
        let mut finding = self.finding(Name::NearDuplicates, Some(split), mine.len(), message, fix);
        let listed = |e: &&Edge| self.listed_pair((e.row, e.other), Some(e.similarity));
        finding.examples = mine.iter().take(self.options.examples).map(listed).collect();
        (!mine.is_empty()).then_some(finding)
    }

    fn leakage(&self, split: usize, exact: &Exact, near: &Near) -> Option<Finding> {
        let is_mine = |row: u32| usize::from(self.split_of(row)) == split;
        let equal: Vec<_> = exact.leaks.iter().filter(|leak| is_mine(leak.0)).collect();
        let alike: Vec<_> = near.leaks.iter().filter(|edge| is_mine(edge.row)).collect();
        let count = equal.len() + alike.len();
        let name = &self.scan.splits[split].name;
        let total = self.scan.splits[split].len();
        let message = format!(
            "{} also in train, {} equal and {} nearly equal: scores on {name} will be too good",
            rows_of(count, total),
            equal.len(),
            alike.len()
        );
        let fix = format!("drop these rows from train or from {name}");
        let mut finding = self.finding(Name::Leakage, Some(split), count, message, &fix);
        let equal = equal.iter().map(|leak| self.listed_pair(**leak, None));
        let alike = alike.iter().map(|e| self.listed_pair((e.row, e.other), Some(e.similarity)));
        finding.examples = equal.chain(alike).take(self.options.examples).collect();
        (count > 0).then_some(finding)
    }

    /// Rows of a split that fulfil a condition.
    fn rows_where(&self, split: usize, is: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.scan.splits[split].len()).filter(|&row| is(row)).collect()
    }

    /// A finding about rows, unless there are none.
    fn about(&self, name: Name, split: usize, found: &[usize], what: &str, fix: &str) -> Option<Finding> {
        let total = self.scan.splits[split].len();
        let message = format!("{} {what}", rows_of(found.len(), total));
        let mut finding = self.finding(name, Some(split), found.len(), message, fix);
        finding.examples = found.iter().take(self.options.examples).map(|&row| self.listed(split, row)).collect();
        (!found.is_empty()).then_some(finding)
    }

    fn labels_of(&self, split: usize) -> HashSet<u32> {
        let name = |label: &Label| if let Label::Name(i) = label { Some(*i) } else { None };
        self.scan.splits[split].labels.iter().filter_map(name).collect()
    }

    fn bad_rows(&self, split: usize) -> Option<Finding> {
        let skipped = &self.scan.splits[split].skipped;
        let count = usize::try_from(skipped.rows).unwrap_or(usize::MAX);
        let message = format!("{} cannot be read", counted(count, "row", "rows"));
        let fix = "fix the rows, or set data.on_bad_row = \"skip\" to train without them";
        let mut finding = self.finding(Name::BadRows, Some(split), count, message, fix);
        for row in skipped.first.iter().take(self.options.examples) {
            let at = Place { file: row.file.clone().into(), line: row.line.unwrap_or(0) };
            let detail = Some(row.message.clone());
            finding.examples.push(Listed { detail, ..Listed::at(at) });
        }
        (count > 0).then_some(finding)
    }

    fn bad_labels(&self, split: usize) -> Option<Finding> {
        let labels = &self.scan.splits[split].labels;
        let in_train = self.labels_of(0);
        let found = self.rows_where(split, |row| match labels[row] {
            Label::Unusable => true,
            Label::Name(i) => self.scan.classes_of[i as usize].is_none() && in_train.contains(&i),
            Label::Value(_) => false,
        });
        let what = match self.scan.classes.is_empty() {
            true => "without a finite number as label, which training refuses",
            false => "with a label that data.labels does not list, which training refuses",
        };
        self.about(Name::BadLabels, split, &found, what, "fix the labels or drop the rows")
    }

    fn missing_labels(&self, split: usize) -> Vec<Finding> {
        if split == 0 || self.scan.classes.is_empty() {
            return vec![];
        }
        let name = &self.scan.splits[split].name;
        let counts = [0, split].map(|s| self.scan.class_counts(&self.scan.splits[s]));
        let in_train = self.labels_of(0);
        let names_of = |i: u32| -> Vec<&str> {
            let label = &self.scan.labels[i as usize];
            if self.scan.several { label_sets::names(label).collect() } else { vec![label] }
        };
        let known: HashSet<&str> = in_train.iter().flat_map(|&i| names_of(i)).collect();
        let map = LabelMap::new(self.scan.classes.clone()).ok();
        let is_foreign = |name: &str| match map.as_ref().and_then(|map| map.index(name)) {
            Some(class) => counts[0][class] == 0,
            None => !known.contains(name),
        };
        let labels = &self.scan.splits[split].labels;
        // Each foreign name with its first row.
        let (mut first, mut looked, mut seen) = (vec![], HashSet::new(), HashSet::new());
        for (row, label) in labels.iter().enumerate() {
            let Label::Name(i) = *label else { continue };
            if looked.insert(i) {
                let foreign = names_of(i).into_iter().filter(|name| is_foreign(name) && seen.insert(*name));
                first.extend(foreign.map(|name| (row, name)));
            }
        }
        let mut found = vec![];
        if !first.is_empty() {
            let names = first.iter().map(|&(_, name)| name);
            let message = format!(
                "{name} has {} that train has not: {}",
                counted(first.len(), "label", "labels"),
                listed_names(names)
            );
            let fix =
                "add rows with these labels to train, or drop them here; without that no model can be right about them";
            let mut finding = self.finding(Name::MissingLabels, Some(split), first.len(), message, fix);
            finding.examples = (first.iter().take(self.options.examples))
                .map(|&(row, name)| Listed { detail: Some(name.into()), ..self.listed(split, row) })
                .collect();
            found.push(finding);
        }
        let absent: Vec<usize> =
            (0..self.scan.classes.len()).filter(|&c| counts[0][c] > 0 && counts[1][c] == 0).collect();
        if !absent.is_empty() {
            let names = absent.iter().map(|&c| self.scan.classes[c].as_str());
            let message =
                format!("{name} lacks {} of train: {}", counted(absent.len(), "label", "labels"), listed_names(names));
            let fix = format!("add rows with these labels to {name}; else its scores say nothing about them");
            found.push(self.finding(Name::MissingLabels, Some(split), absent.len(), message, &fix));
        }
        found
    }

    fn empty(&self, split: usize) -> Vec<Finding> {
        let this = &self.scan.splits[split];
        let total = this.len();
        let mut found = vec![];
        let columns = [
            ("data.text", self.rows_where(split, |row| this.marks[row].empty_text), this.constant_text),
            ("data.text_pair", self.rows_where(split, |row| this.marks[row].empty_pair), this.constant_pair),
        ];
        for (key, rows, constant) in columns.into_iter().take(1 + usize::from(self.scan.pairs)) {
            let fix = if rows.len() == total {
                format!("set {key} to the column with the text")
            } else {
                "fill in the text or drop the rows".into()
            };
            found.extend(self.about(Name::Empty, split, &rows, &format!("without text in the column {key}"), &fix));
            if constant && total > 1 && rows.len() < total {
                let message = format!("all {total} rows have the same text in the column {key}");
                let fix = format!("set {key} to the column with the text");
                found.push(self.finding(Name::Empty, Some(split), total, message, &fix));
            }
        }
        if total > 1 && this.labels.iter().all(|l| *l == this.labels[0]) && this.labels[0] != Label::Unusable {
            let message =
                format!("all {total} rows have the same label, {}", self.label_text(self.starts[split] as u32));
            let fix = "set data.label to the column with the labels, or add rows with others";
            found.push(self.finding(Name::Empty, Some(split), total, message, fix));
        }
        found
    }

    fn truncation(&self, split: usize, measures: &Measures) -> Option<Finding> {
        let (this, cut) = (&self.scan.splits[split], &measures.truncation);
        let found = self.rows_where(split, |row| this.data.tokens.is_truncated(row));
        if (found.len() as f64) <= TRUNCATED_SHARE * this.len() as f64 {
            return None;
        }
        let what = format!(
            "longer than data.max_length = {}, losing {} tokens ({} of all)",
            cut.max_length,
            cut.tokens,
            percent(cut.token_share)
        );
        let mut finding = self.about(
            Name::Truncation,
            split,
            &found,
            &what,
            &truncation_fix(cut.max_length_for_99_percent, self.options.positions),
        )?;
        let mut longest = found;
        longest.sort_by_key(|&row| Reverse(this.lengths[row]));
        finding.examples = (longest.into_iter().take(self.options.examples))
            .map(|row| Listed { detail: Some(format!("{} tokens", this.lengths[row])), ..self.listed(split, row) })
            .collect();
        Some(finding)
    }

    fn unknown(&self, split: usize, measures: &Measures) -> Option<Finding> {
        let (this, unknown) = (&self.scan.splits[split], &measures.unknown);
        if unknown.share <= UNKNOWN_SHARE {
            return None;
        }
        let found = self.rows_where(split, |row| this.unknown[row] > 0);
        let what = format!(
            "with {} unknown tokens ({} of all), which the model cannot tell apart",
            unknown.tokens,
            percent(unknown.share)
        );
        let mut finding = self.about(Name::UnknownTokens, split, &found, &what, UNKNOWN_FIX)?;
        let mut worst = found;
        worst.sort_by_key(|&row| Reverse(this.unknown[row]));
        finding.examples = worst.into_iter().take(self.options.examples).map(|row| self.listed(split, row)).collect();
        Some(finding)
    }

    fn marked(&self, split: usize) -> Vec<Finding> {
        let marks = &self.scan.splits[split].marks;
        let mojibake = self.rows_where(split, |row| marks[row].mojibake);
        let html = self.rows_where(split, |row| marks[row].html);
        let encoding = "with text that was once read in a wrong encoding";
        let fix = "write the file anew from its source in the right encoding";
        let found = [
            self.about(Name::Mojibake, split, &mojibake, encoding, fix),
            self.about(
                Name::Html,
                split,
                &html,
                "with HTML entities or tags",
                "unescape entities and remove tags, in all splits alike",
            ),
        ];
        found.into_iter().flatten().collect()
    }

    fn classes(&self, measures: &Measures) -> Vec<Finding> {
        let Some(labels) = &measures.labels else { return vec![] };
        let mut found = vec![];
        if labels.imbalance >= IMBALANCE {
            found.push(self.finding(
                Name::Imbalance,
                Some(0),
                labels.counts.len(),
                imbalance(&labels.counts),
                IMBALANCE_FIX,
            ));
        }
        let few: Vec<&str> =
            labels.counts.iter().filter(|(_, n)| *n > 0 && *n < FEW_ROWS).map(|(name, _)| name.as_str()).collect();
        if !few.is_empty() {
            let message = format!(
                "{} in train with fewer than {FEW_ROWS} rows: {}",
                counted(few.len(), "class", "classes"),
                listed_names(few.iter().copied())
            );
            found.push(self.finding(
                Name::TinyClasses,
                Some(0),
                few.len(),
                message,
                "collect more rows, or merge these classes with others",
            ));
        }
        found
    }
}

fn truncation_fix(keeps_99_percent: u32, positions: usize) -> String {
    if keeps_99_percent as usize > positions {
        return format!(
            "the model reads {positions} tokens at most: put what matters first, split the texts, or use a model with more"
        );
    }
    format!("set data.max_length = {keeps_99_percent} to keep 99 % of the rows whole, at the price of time and memory")
}
