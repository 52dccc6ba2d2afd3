//! Classes and numbers of rows.

use super::View;
use crate::check::findings::{
    FEW_ROWS, Finding, IMBALANCE, IMBALANCE_FIX, Listed, Name, counted, imbalance, listed_names,
};
use crate::check::measures::Measures;
use crate::check::scan::Label;
use crate::data::{LabelMap, label_sets};
use std::collections::HashSet;

impl View<'_> {
    pub(super) fn label_text(&self, row: u32) -> String {
        let (split, row) = self.locate(row);
        match self.splits[split].labels[row] {
            Label::Name(i) => self.scan.label_text(i),
            Label::Value(v) => v.to_string(),
            // What differs is told once the texts were read again.
            Label::Alike(_) => String::new(),
            Label::Unusable => "no label".into(),
        }
    }

    fn labels_of(&self, split: usize) -> HashSet<u32> {
        let name = |label: &Label| if let Label::Name(i) = label { Some(*i) } else { None };
        self.splits[split].labels.iter().filter_map(name).collect()
    }

    pub(super) fn bad_labels(&self, split: usize) -> Option<Finding> {
        let labels = &self.splits[split].labels;
        let in_train = self.labels_of(0);
        let found = self.rows_where(split, |row| match labels[row] {
            Label::Unusable => true,
            Label::Name(i) => self.scan.classes_of[i as usize].is_none() && in_train.contains(&i),
            Label::Value(_) | Label::Alike(_) => false,
        });
        let what = match self.scan.has_classes() {
            false => "without a finite number as label, which training refuses",
            true => "with a label that data.labels does not list, which training refuses",
        };
        self.about(Name::BadLabels, split, &found, what, "fix the labels or drop the rows")
    }

    pub(super) fn missing_labels(&self, split: usize) -> Vec<Finding> {
        if split == 0 || !self.scan.has_classes() {
            return vec![];
        }
        let name = &self.splits[split].name;
        let counts = [0, split].map(|s| self.scan.class_counts(self.splits[s]));
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
        let labels = &self.splits[split].labels;
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

    pub(super) fn classes(&self, measures: &Measures) -> Vec<Finding> {
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
