//! The search for what is wrong with the data.

mod answers;
mod labels;
mod same;
mod tags;

use super::findings::{
    Finding, Listed, Name, Options, Place, TRUNCATED_SHARE, UNKNOWN_FIX, UNKNOWN_SHARE, counted, percent, share,
};
use super::measures::Measures;
use super::scan::{Label, Scan, Split};
use crate::data::config::TaskKind;
use std::cmp::Reverse;

/// Everything that is wrong, in the order of [`Name::ALL`]. `measures` are those of the scan's splits.
pub fn find(scan: &Scan, measures: &[Measures], options: Options) -> Vec<Finding> {
    let noun = match scan.kind {
        TaskKind::Tokens => ("sentence", "sentences"),
        TaskKind::Span => ("question", "questions"),
        _ => ("row", "rows"),
    };
    let view = View::new(scan, scan.splits.iter().collect(), noun, options);
    let mut found = view.same_rows();
    if let Some(contexts) = scan.contexts() {
        found.extend(View::new(scan, contexts, ("context", "contexts"), options).contexts());
    }
    for (i, (split, measures)) in scan.splits.iter().zip(measures).enumerate() {
        found.extend(view.bad_rows(i));
        found.extend(view.empty(i));
        found.extend(view.truncation(i, measures));
        found.extend(view.unknown(i, measures));
        found.extend(view.marked(i));
        match scan.kind {
            TaskKind::Tokens => found.extend(view.tags(i, measures)),
            TaskKind::Span => found.extend(view.answers(i, measures)),
            _ => {}
        }
        found.extend(view.bad_labels(i));
        found.extend(view.missing_labels(i));
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
    splits: Vec<&'a Split>,
    /// What a row is called, and several.
    noun: (&'static str, &'static str),
    options: Options,
    /// First number of each split, then the number of all rows.
    starts: Vec<usize>,
}

impl<'a> View<'a> {
    fn new(scan: &'a Scan, splits: Vec<&'a Split>, noun: (&'static str, &'static str), options: Options) -> Self {
        let mut starts = vec![0];
        for split in &splits {
            starts.push(starts[starts.len() - 1] + split.len());
        }
        Self { scan, splits, noun, options, starts }
    }

    fn counted(&self, n: usize) -> String {
        counted(n, self.noun.0, self.noun.1)
    }

    /// `12 rows (0.5 %)`
    fn rows_of(&self, n: usize, total: usize) -> String {
        format!("{} ({})", self.counted(n), share(n, total))
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
        self.splits
            .iter()
            .copied()
            .flat_map(|split| (0..split.len()).map(move |row| (split, row)))
            .zip(0..)
            .map(|((split, row), number)| (number, split, row))
    }

    fn place(&self, split: usize, row: usize) -> Place {
        let split = &self.splits[split];
        let (file, line) = split.place(row);
        Place { file: file.to_owned(), line, id: split.id(row).map(str::to_owned) }
    }

    fn listed(&self, split: usize, row: usize) -> Listed {
        Listed::at(self.place(split, row))
    }

    fn listed_pair(&self, (row, other): (u32, u32), similarity: Option<f64>) -> Listed {
        let (at, other) = (self.locate(row), self.locate(other));
        Listed { other: Some(self.place(other.0, other.1)), similarity, ..self.listed(at.0, at.1) }
    }

    fn finding(&self, name: Name, split: Option<usize>, count: usize, message: String, fix: &str) -> Finding {
        let split = split.map(|i| self.splits[i].name.to_owned());
        Finding { name, split, count, message, fix: fix.into(), examples: vec![] }
    }

    /// Rows of a split that fulfil a condition.
    fn rows_where(&self, split: usize, is: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.splits[split].len()).filter(|&row| is(row)).collect()
    }

    /// A finding about rows, unless there are none.
    fn about(&self, name: Name, split: usize, found: &[usize], what: &str, fix: &str) -> Option<Finding> {
        let total = self.splits[split].len();
        let message = format!("{} {what}", self.rows_of(found.len(), total));
        let mut finding = self.finding(name, Some(split), found.len(), message, fix);
        finding.examples = found.iter().take(self.options.examples).map(|&row| self.listed(split, row)).collect();
        (!found.is_empty()).then_some(finding)
    }

    fn bad_rows(&self, split: usize) -> Option<Finding> {
        let skipped = &self.splits[split].skipped;
        let count = usize::try_from(skipped.rows).unwrap_or(usize::MAX);
        let message = format!("{} cannot be read", self.counted(count));
        let fix = "fix the rows, or set data.on_bad_row = \"skip\" to train without them";
        let mut finding = self.finding(Name::BadRows, Some(split), count, message, fix);
        for row in skipped.first.iter().take(self.options.examples) {
            let at = Place { file: row.file.clone().into(), line: row.line.unwrap_or(0), id: None };
            let detail = Some(row.message.clone());
            finding.examples.push(Listed { detail, ..Listed::at(at) });
        }
        (count > 0).then_some(finding)
    }

    fn empty(&self, split: usize) -> Vec<Finding> {
        let this = &self.splits[split];
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
            // Questions may well be about one text.
            if constant && total > 1 && rows.len() < total && self.scan.kind != TaskKind::Span {
                let message = format!("all {total} {} have the same text in the column {key}", self.noun.1);
                let fix = format!("set {key} to the column with the text");
                found.push(self.finding(Name::Empty, Some(split), total, message, &fix));
            }
        }
        let has_label = matches!(this.labels.first(), Some(Label::Name(_) | Label::Value(_)));
        if total > 1 && has_label && this.labels.iter().all(|l| *l == this.labels[0]) {
            let message =
                format!("all {total} rows have the same label, {}", self.label_text(self.starts[split] as u32));
            let fix = "set data.label to the column with the labels, or add rows with others";
            found.push(self.finding(Name::Empty, Some(split), total, message, fix));
        }
        found
    }

    /// More than a few rows that lose text, or are cut into windows.
    fn truncation(&self, split: usize, measures: &Measures) -> Option<Finding> {
        let this = &self.splits[split];
        // Windows are what questions are for; a share of them is no fault.
        if measures.answers.is_some() {
            return None;
        }
        let max_length = measures.max_length();
        let found = self.rows_where(split, |row| this.lengths[row] as usize > max_length);
        if (found.len() as f64) <= TRUNCATED_SHARE * this.len() as f64 {
            return None;
        }
        let (what, keeps) = match (&measures.truncation, &measures.windows) {
            (Some(cut), _) => {
                let share = percent(cut.token_share);
                let what = format!("losing {} tokens ({share} of all)", cut.tokens);
                (what, cut.max_length_for_99_percent)
            }
            (None, Some(cut)) => {
                let what = format!("{} windows of all in place of {}", cut.windows, self.counted(this.len()));
                (what, cut.max_length_for_99_percent)
            }
            (None, None) => return None,
        };
        let what = format!("longer than data.max_length = {max_length}, {what}");
        let fix = truncation_fix(keeps, self.options.positions, self.noun.1);
        let mut finding = self.about(Name::Truncation, split, &found, &what, &fix)?;
        let mut longest = found;
        longest.sort_by_key(|&row| Reverse(this.lengths[row]));
        finding.examples = (longest.into_iter().take(self.options.examples))
            .map(|row| Listed { detail: Some(format!("{} tokens", this.lengths[row])), ..self.listed(split, row) })
            .collect();
        Some(finding)
    }

    fn unknown(&self, split: usize, measures: &Measures) -> Option<Finding> {
        let (this, unknown) = (&self.splits[split], &measures.unknown);
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
        let marks = &self.splits[split].marks;
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
}

fn truncation_fix(keeps_99_percent: u32, positions: usize, rows: &str) -> String {
    if keeps_99_percent as usize > positions {
        return format!(
            "the model reads {positions} tokens at most: put what matters first, split the texts, or use a model with more"
        );
    }
    format!(
        "set data.max_length = {keeps_99_percent} to keep 99 % of the {rows} whole, at the price of time and memory"
    )
}
