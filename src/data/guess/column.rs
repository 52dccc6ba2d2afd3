//! What a column holds, as far as its values and its name tell.

use std::collections::HashMap;

use crate::data::config::Column;
use crate::data::shortened;

/// Names of labels, the surest first.
const LABELS: [&str; 22] = [
    "label",
    "labels",
    "gold_label",
    "class",
    "category",
    "target",
    "sentiment",
    "score",
    "similarity",
    "intent",
    "emotion",
    "polarity",
    "topic",
    "quality",
    "is_duplicate",
    "rating",
    "stars",
    "relevance",
    "stance",
    "tag",
    "type",
    "y",
];
/// Names of texts, the surest first.
const TEXTS: [&str; 13] = [
    "text",
    "sentence",
    "review",
    "content",
    "body",
    "tweet",
    "comment",
    "message",
    "utterance",
    "question",
    "string",
    "document",
    "title",
];
/// Names of the two texts of a pair.
const PAIRS: [(&str, &str); 19] = [
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("#1 string", "#2 string"),
    ("premise", "hypothesis"),
    ("question", "answer"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "title"),
    ("query", "text"),
    ("claim", "evidence"),
    ("context", "response"),
    ("title", "body"),
];
/// Names, or words of names, of what tells rows apart.
const IDENTIFIERS: [&str; 13] =
    ["id", "idx", "index", "uid", "uuid", "guid", "qid", "url", "link", "date", "time", "timestamp", "key"];

/// A column by what the first rows hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub column: Column,
    /// In lower case; empty without a header.
    name: String,
    pub rows: usize,
    /// Values by how often they occur, the most frequent first.
    pub counts: Vec<(String, usize)>,
    /// Rows without a value, or with an empty one.
    pub missing: usize,
    /// Means over the rows, in characters and words.
    pub chars: f64,
    words: f64,
    pub numeric: bool,
    pub fractional: bool,
}

impl Seen {
    pub(super) fn new<'v>(column: Column, values: impl Iterator<Item = Option<&'v str>>) -> Self {
        let name = if let Column::Name(name) = &column { name.trim().to_lowercase() } else { String::new() };
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let (mut rows, mut missing, mut chars, mut words) = (0, 0, 0, 0);
        for value in values {
            rows += 1;
            let Some(value) = value.filter(|v| !v.trim().is_empty()) else {
                missing += 1;
                continue;
            };
            chars += value.chars().count();
            words += value.split_whitespace().count();
            *counts.entry(value).or_default() += 1;
        }
        let number = |v: &&str| v.trim().parse::<f64>().ok().filter(|f| f.is_finite());
        let numeric = !counts.is_empty() && counts.keys().all(|v| number(v).is_some());
        let fractional = numeric && counts.keys().filter_map(number).any(|f| f.fract() != 0.0);
        let mut counts: Vec<_> = counts.into_iter().map(|(value, n)| (value.to_owned(), n)).collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let mean = |sum: usize| sum as f64 / rows.max(1) as f64;
        Self { column, name, rows, counts, missing, chars: mean(chars), words: mean(words), numeric, fractional }
    }

    /// The place of its name among those of labels; `None` if it is none of them.
    pub(super) fn label_name(&self) -> Option<usize> {
        LABELS.iter().position(|n| *n == self.name).or_else(|| {
            let part = |n: &&str| self.name.split(|c: char| !c.is_alphanumeric()).any(|w| w == *n);
            LABELS.iter().position(part).filter(|_| !self.identifies_by_name()).map(|place| place + LABELS.len())
        })
    }

    /// The place of its name among those of texts.
    pub(super) fn text_name(&self) -> Option<usize> {
        TEXTS.iter().position(|n| *n == self.name)
    }

    /// Whether the names of two columns say that they are a pair.
    pub(super) fn pairs_with(&self, second: &Self) -> bool {
        PAIRS.contains(&(self.name.as_str(), second.name.as_str()))
    }

    fn identifies_by_name(&self) -> bool {
        self.name.split(|c: char| !c.is_alphanumeric()).any(|w| IDENTIFIERS.contains(&w))
    }

    /// Whether it only tells rows apart.
    pub(super) fn identifies(&self) -> bool {
        let words = self.counts.iter().all(|(v, _)| v.is_ascii() && !v.trim().contains(' '));
        self.identifies_by_name()
            || words
                && self.counts.len() == self.rows
                && self.rows > 2
                && !self.fractional
                && self.label_name().is_none()
    }

    /// Whether its values are those of a label. `whole`: no rows are there but those looked at.
    pub(super) fn labels(&self, whole: bool) -> bool {
        let named = self.label_name().is_some();
        let (rows, distinct) = (self.rows, self.counts.len());
        let short = self.chars <= 40.0;
        let few = if named { distinct * 2 <= rows } else { distinct <= 150 && distinct * 4 <= rows };
        let enough = distinct >= 2 || named && distinct == 1 && !whole;
        self.missing == 0 && !self.identifies_by_name() && enough && (short && few || self.fractional)
    }

    /// Whether it holds numbers to be learnt rather than the numbers of classes.
    pub(super) fn measures(&self) -> bool {
        self.numeric && (self.fractional || self.counts.len() > 20)
    }

    /// Whether its values are texts, if it is no label.
    pub(super) fn reads(&self) -> bool {
        let long = self.words >= 3.0 || self.chars >= 12.0 || self.text_name().is_some();
        !self.numeric && !self.identifies() && long && self.missing * 10 <= self.rows && !self.counts.is_empty()
    }

    /// What it holds, for a comment or a message.
    pub fn describe(&self) -> String {
        let missing = match self.missing {
            0 => String::new(),
            n => format!(", {n} of {} rows without", self.rows),
        };
        let distinct = self.counts.len();
        if self.measures() && distinct * 20 > self.rows || self.fractional {
            let numbers = || self.counts.iter().filter_map(|(v, _)| v.trim().parse::<f64>().ok());
            let (least, most) = (numbers().fold(f64::MAX, f64::min), numbers().fold(f64::MIN, f64::max));
            return format!("numbers from {least} to {most}{missing}");
        }
        if distinct * 4 > self.rows || self.chars > 40.0 {
            return format!("{:.0} characters on average{missing}", self.chars);
        }
        let share = |n: usize| format!("{:.0} %", 100.0 * n as f64 / self.rows.max(1) as f64);
        let mut shown: Vec<_> =
            self.counts.iter().take(4).map(|(v, n)| format!("{} {}", shortened(v), share(*n))).collect();
        if distinct > 4 {
            shown.push("…".into());
        }
        let plural = if distinct == 1 { "" } else { "s" };
        format!("{distinct} value{plural}, {}{missing}", shown.join(", "))
    }
}
