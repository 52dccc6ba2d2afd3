//! Scores of predictions against labels; one file a family. Nothing here knows a model.

pub mod classification;
pub mod gate;
pub mod multilabel;
pub mod ranking;
pub mod regression;
pub mod span;
pub mod tags;
pub mod threshold;

pub use gate::Gate;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Named scores in the order they are shown. A score that is not defined is NaN (`null` in JSON).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics(pub Vec<(String, f64)>);

impl Metrics {
    /// Appends a score.
    pub fn push(&mut self, name: impl Into<String>, value: f64) {
        self.0.push((name.into(), value));
    }

    /// Puts the loss, which the caller has summed, before the scores.
    pub fn with_loss(mut self, loss: f64) -> Self {
        self.0.insert(0, ("loss".into(), loss));
        self
    }

    /// Appends the scores of [`ranking::score`].
    pub fn with_ranking(mut self, scores: [f64; 2]) -> Self {
        self.0.extend(ranking::NAMES.map(String::from).into_iter().zip(scores));
        self
    }

    /// The score of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::deserialize(d)?;
        Ok(Self(map.into_iter().map(|(k, v)| (k, v.as_f64().unwrap_or(f64::NAN))).collect()))
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut m = s.serialize_map(Some(self.0.len()))?;
        for (k, v) in &self.0 {
            m.serialize_entry(k, v)?;
        }
        m.end()
    }
}

/// The families of metrics, as far as their names depend on the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Single-label classification; two classes also have `precision`, `recall` and `f1` of the class with index 1.
    Classification {
        classes: usize,
    },
    /// Any number of labels a row.
    Multilabel,
    /// Tags of words.
    Tags,
    Regression,
    /// Answers that are pieces of a text.
    Span {
        /// Whether a question may have none.
        with_none: bool,
    },
}

/// Names of all scores of an evaluation, `loss` first, in the order in which they are shown.
pub fn names(family: Family) -> Vec<&'static str> {
    let (scores, ranking) = match family {
        Family::Classification { classes } => (classification::names(classes), &ranking::NAMES[..]),
        Family::Multilabel => (&multilabel::NAMES[..], &[][..]),
        Family::Tags => (&tags::NAMES[..], &[][..]),
        Family::Regression => (&regression::NAMES[..], &[][..]),
        Family::Span { with_none: false } => (&span::NAMES[..], &[][..]),
        Family::Span { with_none: true } => (&span::NAMES_WITH_NONE[..], &[][..]),
    };
    ["loss"].iter().chain(scores).chain(ranking).copied().collect()
}

/// Whether more of this metric is better: true but for losses and errors.
pub fn greater_is_better(name: &str) -> bool {
    !matches!(name, "loss" | "mse" | "mae" | "perplexity" | "hamming_loss")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_loss_and_match_the_scores() {
        let report =
            classification::score(&[0, 1], &[1, 1], 2).unwrap().metrics.with_loss(0.5).with_ranking([0.5, 1.0]);
        let got: Vec<&str> = report.0.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(got, names(Family::Classification { classes: 2 }));
        let report = regression::score(&[0.0, 1.0], &[1.0, 3.0]).unwrap().with_loss(2.0);
        let got: Vec<&str> = report.0.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(got, names(Family::Regression));
    }

    #[test]
    fn an_undefined_score_is_null_in_json() {
        let metrics = Metrics(vec![("b".into(), 0.25), ("a".into(), f64::NAN)]);
        assert_eq!(serde_json::to_string(&metrics).unwrap(), r#"{"b":0.25,"a":null}"#);
    }
}
