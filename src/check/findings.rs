//! What findings are: names, thresholds, examples with file and line, and the words for them.

use crate::suggest::did_you_mean;
use serde::{Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;
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
    BadRows,
    BadTags,
    BadLabels,
    MissingLabels,
    Empty,
    LostWords,
    MovedAnswers,
    LostAnswers,
    LongAnswers,
    InexactAnswers,
    Truncation,
    UnknownTokens,
    Mojibake,
    Html,
    Imbalance,
    TinyClasses,
}

impl Name {
    /// In the order in which they are shown.
    pub const ALL: [Self; 20] = [
        Self::BadRows,
        Self::BadTags,
        Self::BadLabels,
        Self::MissingLabels,
        Self::Leakage,
        Self::Conflicts,
        Self::Duplicates,
        Self::NearDuplicates,
        Self::Empty,
        Self::LostWords,
        Self::MovedAnswers,
        Self::LostAnswers,
        Self::LongAnswers,
        Self::InexactAnswers,
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
            Self::BadRows => "bad-rows",
            Self::BadTags => "bad-tags",
            Self::BadLabels => "bad-labels",
            Self::MissingLabels => "missing-labels",
            Self::Empty => "empty",
            Self::LostWords => "lost-words",
            Self::MovedAnswers => "moved-answers",
            Self::LostAnswers => "lost-answers",
            Self::LongAnswers => "long-answers",
            Self::InexactAnswers => "inexact-answers",
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
    /// Of a question, as one line may hold them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        self.id.as_ref().map_or(Ok(()), |id| write!(f, " {id}"))
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
    /// The beginning of its text, or of both texts of a pair.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// Those of the other row when it is not equal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_texts: Vec<String>,
}

impl Listed {
    /// The row alone.
    pub fn at(at: Place) -> Self {
        Self { at, other: None, similarity: None, detail: None, texts: vec![], other_texts: vec![] }
    }
}

/// What the search for findings is told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Least Jaccard similarity of near duplicates; `None` does not look for any.
    pub near: Option<f64>,
    /// Most examples a finding.
    pub examples: usize,
    /// The longest row that the model can read, in tokens.
    pub positions: usize,
}

pub(super) const IMBALANCE_FIX: &str =
    "judge by macro_f1 (train.metric_for_best_model), and add rows of the small classes";
pub(super) const UNKNOWN_FIX: &str = "use a model whose vocabulary has the language and script of the data";

/// The classes must not be empty.
pub(super) fn imbalance(counts: &[(String, usize)]) -> String {
    let most = counts.iter().max_by_key(|(_, n)| *n);
    let least = counts.iter().filter(|(_, n)| *n > 0).min_by_key(|(_, n)| *n);
    let of = |end: Option<&(String, usize)>| end.map_or_else(String::new, |(name, n)| format!("{}: {n}", short(name)));
    let ratio = most.zip(least).map_or(1.0, |(m, l)| m.1 as f64 / l.1 as f64);
    format!("the largest class is {ratio:.1} times the smallest: {}, {}", of(most), of(least))
}

pub(super) fn counted(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

/// `12 rows (0.5 %)`
pub(super) fn rows_of(n: usize, total: usize) -> String {
    format!("{} ({})", counted(n, "row", "rows"), share(n, total))
}

pub(super) fn share(n: usize, total: usize) -> String {
    percent(n as f64 / total.max(1) as f64)
}

/// 0.0213 as `2.1 %`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0 %".into(),
        p if p < 0.01 => "<0.01 %".into(),
        p if p < 1.0 => format!("{p:.2} %"),
        p if p < 99.95 => format!("{p:.1} %"),
        _ => "100 %".into(),
    }
}

pub(super) fn short(text: &str) -> String {
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
