//! Rows that are equal or nearly so.

use super::View;
use crate::check::exact::{Exact, exact};
use crate::check::findings::{Finding, Listed, Name, VALUE_TOLERANCE, counted};
use crate::check::minhash::{Edge, Near, near, shingles};
use crate::check::scan::Label;
use crate::data::config::TaskKind;
use std::collections::{HashMap, HashSet};

impl View<'_> {
    /// Equal and nearly equal rows: duplicates, leakage, conflicts.
    pub(super) fn same_rows(&self) -> Vec<Finding> {
        let exact = self.exact();
        let mut found: Vec<Finding> = self.conflicts(&exact).into_iter().collect();
        found.extend((0..self.splits.len()).filter_map(|split| self.duplicates(split, &exact)));
        // Questions about one text are alike for that: their texts are compared in their place.
        if self.scan.kind != TaskKind::Span {
            found.extend(self.alike(&exact));
        }
        found
    }

    /// Contexts of questions: near duplicates, leakage.
    pub(super) fn contexts(&self) -> Vec<Finding> {
        self.alike(&self.exact())
    }

    fn exact(&self) -> Exact {
        let keys = self.all_rows().filter_map(|(number, split, row)| Some((split.keys[row]?, number))).collect();
        let (value_of, tolerance) = self.values();
        exact(keys, |row| self.split_of(row), |row| value_of[row as usize], tolerance)
    }

    fn alike(&self, exact: &Exact) -> Vec<Finding> {
        let near = self.options.near.map(|threshold| self.near(exact, threshold)).unwrap_or_default();
        let of_split = |split| [self.near_duplicates(split, &near), self.leakage(split, exact, &near)];
        (0..self.splits.len()).flat_map(of_split).flatten().collect()
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
            Label::Alike(i) => f64::from(i),
            Label::Unusable => f64::NAN,
        };
        let values: Vec<f64> = self.all_rows().map(|(_, split, row)| value(split.labels[row])).collect();
        if self.scan.kind != TaskKind::Regression {
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
            let split = &self.splits[split];
            shingles(&split.words(row), &split.tokens.type_ids_of(row), &self.scan.special)
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
        let (one_text, more_texts) = match self.scan.kind {
            TaskKind::Span => ("question about one text", "questions about one text"),
            _ => ("text", "texts"),
        };
        let (what, one) = match self.scan.kind {
            TaskKind::Regression => ("numbers further apart than a tenth of train's range", "label is"),
            TaskKind::Tokens => ("different tags", "tags are"),
            TaskKind::Span => ("different answers", "answers are"),
            _ => ("different labels", "label is"),
        };
        let message = format!("{} with {what}, in {rows} {}", counted(texts, one_text, more_texts), self.noun.1);
        let fix = format!("decide which {one} right and fix or drop the other {}", self.noun.1);
        let mut finding = self.finding(Name::Conflicts, None, texts, message, &fix);
        finding.examples = (exact.conflicts.iter().take(self.options.examples))
            .map(|c| {
                let labels = [c.pair.0, c.pair.1].map(|row| self.label_text(row));
                let detail = labels.iter().all(|label| !label.is_empty()).then(|| labels.join(" | "));
                Listed { detail, ..self.listed_pair(c.pair, None) }
            })
            .collect();
        (texts > 0).then_some(finding)
    }

    fn duplicates(&self, split: usize, exact: &Exact) -> Option<Finding> {
        let mine: Vec<_> = exact.repeats.iter().filter(|r| usize::from(self.split_of(r.0)) == split).collect();
        let total = self.splits[split].len();
        let message = format!("{} equal to an earlier {}", self.rows_of(mine.len(), total), self.noun.0);
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
        let total = self.splits[split].len();
        let threshold = self.options.near.unwrap_or(1.0);
        let message = format!(
            "{} nearly equal to another {} (Jaccard similarity of {threshold} or more)",
            self.rows_of(mine.len(), total),
            self.noun.0
        );
        let fix = "look at some; drop what only repeats, or split the data so that what is alike stays together";
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
        let name = &self.splits[split].name;
        let total = self.splits[split].len();
        let message = format!(
            "{} also in train, {} equal and {} nearly equal: scores on {name} will be too good",
            self.rows_of(count, total),
            equal.len(),
            alike.len()
        );
        let fix = format!("drop these {} from train or from {name}", self.noun.1);
        let mut finding = self.finding(Name::Leakage, Some(split), count, message, &fix);
        let equal = equal.iter().map(|leak| self.listed_pair(**leak, None));
        let alike = alike.iter().map(|e| self.listed_pair((e.row, e.other), Some(e.similarity)));
        finding.examples = equal.chain(alike).take(self.options.examples).collect();
        (count > 0).then_some(finding)
    }
}
