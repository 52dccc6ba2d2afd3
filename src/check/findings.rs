//! What is wrong with the data: each finding with its name, how many rows it touches, examples with file and line, and the fix.

use super::exact::{Exact, exact};
use super::measures::Measures;
use super::minhash::{Near, near, shingles};
use super::scan::{Label, Marks, Scan, Split, read_options};
use super::text;
use crate::data::config::DataConfig;
use crate::data::tokenize::Tokenizer;
use crate::data::{Example, Reader};
use crate::suggest::did_you_mean;
use serde::{Serialize, Serializer};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The share of rows that may lose text without a word about it.
pub const TRUNCATED_SHARE: f64 = 0.01;
/// The share of tokens that the vocabulary may lack.
pub const UNKNOWN_SHARE: f64 = 0.01;
/// How many times the smallest class the largest may be.
pub const IMBALANCE: f64 = 10.0;
/// Training rows that a class wants at least.
pub const FEW_ROWS: usize = 10;
/// How far apart the numbers of one text may be in regression, in ranges of the training rows.
pub const VALUE_TOLERANCE: f64 = 0.1;

/// The names of findings, which gates ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Name {
    Leakage,
    Conflicts,
    Duplicates,
    NearDuplicates,
    BadLabels,
    MissingLabels,
    Empty,
    Truncation,
    UnknownTokens,
    Mojibake,
    Html,
    Imbalance,
    TinyClasses,
}

impl Name {
    /// In the order in which they are shown.
    pub const ALL: [Self; 13] = [
        Self::BadLabels,
        Self::MissingLabels,
        Self::Leakage,
        Self::Conflicts,
        Self::Duplicates,
        Self::NearDuplicates,
        Self::Empty,
        Self::Truncation,
        Self::UnknownTokens,
        Self::Mojibake,
        Self::Html,
        Self::Imbalance,
        Self::TinyClasses,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leakage => "leakage",
            Self::Conflicts => "conflicts",
            Self::Duplicates => "duplicates",
            Self::NearDuplicates => "near-duplicates",
            Self::BadLabels => "bad-labels",
            Self::MissingLabels => "missing-labels",
            Self::Empty => "empty",
            Self::Truncation => "truncation",
            Self::UnknownTokens => "unknown-tokens",
            Self::Mojibake => "mojibake",
            Self::Html => "html",
            Self::Imbalance => "imbalance",
            Self::TinyClasses => "tiny-classes",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|name| name.as_str() == s).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str);
            format!("there is no finding {s:?}, only {}, all{}", names.join(", "), did_you_mean(s, names))
        })
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

/// Something wrong with the data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub name: Name,
    /// `None` when it is of several splits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Rows; for conflicts texts, for labels and classes these.
    pub count: usize,
    pub message: String,
    pub fix: String,
    /// The first or the worst ones.
    pub examples: Vec<Listed>,
}

/// A row of a data file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Place {
    pub file: PathBuf,
    /// 1-based.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One example of a finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub at: Place,
    /// The row that it repeats or contradicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<Place>,
    /// Jaccard similarity to that row, for one that is nearly equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// Its labels, lengths or words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The beginning of its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The beginning of a near-equal row's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_text: Option<String>,
}

/// What the search for findings is told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Least Jaccard similarity of near duplicates; `None` does not look for any.
    pub near: Option<f64>,
    /// Most examples a finding.
    pub examples: usize,
}

/// Everything that is wrong, in the order of [`Name::ALL`]. `measures` are those of the scan's splits.
pub fn find(scan: &Scan, measures: &[Measures], options: Options) -> Vec<Finding> {
    let view = View::new(scan, options);
    let mut found = view.same_rows();
    for (i, (split, measures)) in scan.splits.iter().zip(measures).enumerate() {
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
            Label::Name(i) => self.scan.labels[i as usize].clone(),
            Label::Value(v) => v.to_string(),
            Label::Unusable => "no label".into(),
        }
    }

    fn place(&self, split: usize, row: usize) -> Place {
        let split = &self.scan.splits[split];
        Place { file: split.data.file.clone(), line: split.data.lines[row] }
    }

    fn listed(&self, split: usize, row: usize) -> Listed {
        Listed { at: self.place(split, row), other: None, similarity: None, detail: None, text: None, other_text: None }
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
            Label::Name(i) => self.scan.class_of[i as usize].map_or(f64::from(i) + 1e9, f64::from),
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
            let tokens = &self.scan.splits[split].data.tokens;
            shingles(tokens.row(row), tokens.type_ids_of(row), &self.scan.special)
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
            .flat_map(|edge| {
                copies.get(&edge.row).into_iter().flatten().map(|&row| super::minhash::Edge { row, ..*edge })
            })
            .collect();
        near.leaks.extend(repeated);
        near.leaks.sort_by_key(|e| e.row);
        near
    }

    fn conflicts(&self, exact: &Exact) -> Option<Finding> {
        let texts = exact.conflicts.len();
        let rows: usize = exact.conflicts.iter().map(|c| c.rows).sum();
        let what = if self.scan.classes.is_empty() {
            format!("numbers further apart than {} of train's range", percent(VALUE_TOLERANCE))
        } else {
            "different labels".into()
        };
        let message = format!("texts with {what}: {texts}, in {rows} rows");
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
        let message = format!("rows that equal an earlier row: {}", with_share(mine.len(), total));
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
            "rows that nearly equal another row (Jaccard similarity of {threshold} or more): {}",
            with_share(mine.len(), total)
        );
        let fix = "look at some; drop what only repeats, or split the data so that alike rows stay together";
        let mut finding = self.finding(Name::NearDuplicates, Some(split), mine.len(), message, fix);
        let listed = |e: &&super::minhash::Edge| self.listed_pair((e.row, e.other), Some(e.similarity));
        finding.examples = mine.iter().take(self.options.examples).map(|e| listed(e)).collect();
        (!mine.is_empty()).then_some(finding)
    }

    fn leakage(&self, split: usize, exact: &Exact, near: &Near) -> Option<Finding> {
        let is_mine = |row: u32| usize::from(self.split_of(row)) == split;
        let equal: Vec<_> = exact.leaks.iter().filter(|leak| is_mine(leak.0)).collect();
        let alike: Vec<_> = near.leaks.iter().filter(|edge| is_mine(edge.row)).collect();
        let count = equal.len() + alike.len();
        let name = self.scan.splits[split].name;
        let total = self.scan.splits[split].len();
        let message = format!(
            "rows that are in train too: {}, of which {} equal and {} nearly equal; scores on {name} will be too good",
            with_share(count, total),
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
        let message = format!("rows {what}: {}", with_share(found.len(), total));
        let mut finding = self.finding(name, Some(split), found.len(), message, fix);
        finding.examples = found.iter().take(self.options.examples).map(|&row| self.listed(split, row)).collect();
        (!found.is_empty()).then_some(finding)
    }

    fn labels_of(&self, split: usize) -> HashSet<u32> {
        let name = |label: &Label| if let Label::Name(i) = label { Some(*i) } else { None };
        self.scan.splits[split].labels.iter().filter_map(name).collect()
    }

    fn bad_labels(&self, split: usize) -> Option<Finding> {
        let labels = &self.scan.splits[split].labels;
        let in_train = self.labels_of(0);
        let found = self.rows_where(split, |row| match labels[row] {
            Label::Unusable => true,
            Label::Name(i) => self.scan.class_of[i as usize].is_none() && in_train.contains(&i),
            Label::Value(_) => false,
        });
        let what = match self.scan.classes.is_empty() {
            true => "without a finite number as label, which training refuses",
            false => "with an empty label, or one that data.labels does not list, which training refuses",
        };
        self.about(Name::BadLabels, split, &found, what, "fix the labels or drop the rows")
    }

    fn missing_labels(&self, split: usize) -> Vec<Finding> {
        if split == 0 || self.scan.classes.is_empty() {
            return vec![];
        }
        let name = self.scan.splits[split].name;
        let counts = [0, split].map(|s| self.scan.class_counts(&self.scan.splits[s]));
        let in_train = self.labels_of(0);
        let is_foreign = |label: &Label| match *label {
            Label::Name(i) => match self.scan.class_of[i as usize] {
                Some(class) => counts[0][class as usize] == 0,
                None => !in_train.contains(&i),
            },
            _ => false,
        };
        let labels = &self.scan.splits[split].labels;
        let mut seen = HashSet::new();
        let first = self.rows_where(split, |row| is_foreign(&labels[row]));
        let first: Vec<(usize, u32)> = (first.into_iter())
            .filter_map(|row| if let Label::Name(i) = labels[row] { Some((row, i)) } else { None })
            .filter(|(_, label)| seen.insert(*label))
            .collect();
        let mut found = vec![];
        if !first.is_empty() {
            let names = first.iter().map(|&(_, i)| self.scan.labels[i as usize].as_str());
            let message =
                format!("{name} has {} that train has not: {}", labels_word(first.len()), listed_names(names));
            let fix =
                "add rows with these labels to train, or drop them here; without that no model can be right about them";
            let mut finding = self.finding(Name::MissingLabels, Some(split), first.len(), message, fix);
            finding.examples = (first.iter().take(self.options.examples))
                .map(|&(row, i)| Listed {
                    detail: Some(self.scan.labels[i as usize].clone()),
                    ..self.listed(split, row)
                })
                .collect();
            found.push(finding);
        }
        let absent: Vec<usize> =
            (0..self.scan.classes.len()).filter(|&c| counts[0][c] > 0 && counts[1][c] == 0).collect();
        if !absent.is_empty() {
            let names = absent.iter().map(|&c| self.scan.classes[c].as_str());
            let message = format!("{name} lacks {} of train: {}", labels_word(absent.len()), listed_names(names));
            let fix = format!("add rows with these labels to {name}; else its scores say nothing about them");
            found.push(self.finding(Name::MissingLabels, Some(split), absent.len(), message, &fix));
        }
        found
    }

    fn empty(&self, split: usize) -> Vec<Finding> {
        let this = &self.scan.splits[split];
        let total = this.len();
        let mut found = vec![];
        let columns: [(&str, fn(&Marks) -> bool, bool); 2] = [
            ("data.text", |m| m.empty_text, this.constant_text),
            ("data.text_pair", |m| m.empty_pair, this.constant_pair),
        ];
        for (key, is_empty, constant) in columns.into_iter().take(1 + usize::from(self.scan.pairs)) {
            let rows = self.rows_where(split, |row| is_empty(&this.marks[row]));
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
        let found = self.rows_where(split, |row| this.data.tokens.truncated[row]);
        if (found.len() as f64) <= TRUNCATED_SHARE * this.len() as f64 {
            return None;
        }
        let what = format!(
            "longer than data.max_length = {}, which lose {} tokens ({} of all)",
            cut.max_length,
            cut.tokens,
            percent(cut.token_share)
        );
        let mut finding =
            self.about(Name::Truncation, split, &found, &what, &truncation_fix(cut.max_length_for_99_percent))?;
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
        let encoding = "that look as if they had been read in a wrong encoding";
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

pub(super) const IMBALANCE_FIX: &str =
    "judge by macro_f1 or mcc (train.metric_for_best_model), and add rows of the small classes";
pub(super) const UNKNOWN_FIX: &str = "use a model whose vocabulary has the language and script of the data";

pub(super) fn truncation_fix(keeps_99_percent: u32) -> String {
    format!(
        "set data.max_length = {keeps_99_percent} to keep 99 % of the rows whole, if the model allows and time is no matter"
    )
}

/// The classes must not be empty.
pub(super) fn imbalance(counts: &[(String, usize)]) -> String {
    let most = counts.iter().max_by_key(|(_, n)| *n);
    let least = counts.iter().filter(|(_, n)| *n > 0).min_by_key(|(_, n)| *n);
    let of = |end: Option<&(String, usize)>| end.map_or_else(String::new, |(name, n)| format!("{}: {n}", short(name)));
    let ratio = most.zip(least).map_or(1.0, |(m, l)| m.1 as f64 / l.1 as f64);
    format!("the largest class is {ratio:.1} times the smallest: {}, {}", of(most), of(least))
}

fn counted(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// `12 (0.5 %)`
pub(super) fn with_share(n: usize, total: usize) -> String {
    format!("{n} ({})", share(n, total))
}

fn labels_word(n: usize) -> String {
    counted(n, "label", "labels")
}

pub(super) fn share(n: usize, total: usize) -> String {
    percent(n as f64 / total.max(1) as f64)
}

/// 0.0213 as `2.1 %`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        p if p == 0.0 => "0 %".into(),
        p if p < 0.01 => "<0.01 %".into(),
        p if p < 1.0 => format!("{p:.2} %"),
        p if p < 99.95 => format!("{p:.1} %"),
        _ => "100 %".into(),
    }
}

fn short(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let head: String = chars.by_ref().take(30).collect();
    if chars.next().is_some() { head + "…" } else { head }
}

pub(super) fn listed_names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let total = names.len();
    let shown: Vec<String> = names.take(8).map(short).collect();
    let more = if total > 8 { format!(" and {} more", total - 8) } else { String::new() };
    shown.join(", ") + &more
}

/// Reads the listed rows again for their texts, and for the words behind unknown tokens or the damaged piece. A file that
/// cannot be read again leaves examples without text.
pub fn excerpts(findings: &mut [Finding], data: &DataConfig, tokenizer: &Tokenizer) {
    let mut wanted: HashMap<PathBuf, HashMap<u64, Option<Example>>> = HashMap::new();
    for listed in findings.iter().flat_map(|f| &f.examples) {
        for place in [Some(&listed.at), listed.other.as_ref()].into_iter().flatten() {
            wanted.entry(place.file.clone()).or_default().insert(place.line, None);
        }
    }
    for (file, lines) in &mut wanted {
        read_lines(file, data, lines);
    }
    let row = |place: &Place| wanted.get(&place.file)?.get(&place.line)?.as_ref();
    for finding in findings {
        for listed in &mut finding.examples {
            let Some(example) = row(&listed.at) else { continue };
            listed.text = Some(excerpt(example));
            if listed.similarity.is_some() {
                listed.other_text = listed.other.as_ref().and_then(row).map(excerpt);
            }
            let texts = || std::iter::once(example.text.as_str()).chain(example.text_pair.as_deref());
            match finding.name {
                Name::UnknownTokens => {
                    let words: Vec<String> = texts().flat_map(|t| tokenizer.unknown_words(t)).collect();
                    listed.detail =
                        Some(format!("{} unknown: {}", words.len(), listed_names(words.iter().map(String::as_str))));
                }
                Name::Mojibake => listed.detail = texts().find_map(text::mojibake).map(|t| format!("{t:?}")),
                Name::Html => listed.detail = texts().find_map(text::html).map(short),
                Name::BadLabels => listed.detail = example.label.as_deref().map(|l| format!("{:?}", short(l))),
                _ => {}
            }
        }
    }
}

fn read_lines(file: &Path, data: &DataConfig, lines: &mut HashMap<u64, Option<Example>>) {
    let last = lines.keys().copied().max().unwrap_or(0);
    let Ok(reader) = Reader::open(file, &read_options(data)) else { return };
    for example in reader.map_while(Result::ok).take_while(|e| e.line <= last) {
        if let Some(slot) = lines.get_mut(&example.line) {
            *slot = Some(example);
        }
    }
}

/// The beginning of a row's text in one line.
fn excerpt(example: &Example) -> String {
    let half = if example.text_pair.is_some() { 60 } else { 120 };
    let cut = |text: &str| {
        let mut chars = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
        let head: String = chars.by_ref().take(half).collect();
        if chars.next().is_some() { head + "…" } else { head }
    };
    match &example.text_pair {
        Some(pair) => format!("{} | {}", cut(&example.text), cut(pair)),
        None => cut(&example.text),
    }
}
