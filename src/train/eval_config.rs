//! The `[eval]` table: what evaluations say beyond the metrics of the whole set.

use crate::data::config::{Column, Invalid, TaskKind};
use crate::heads::span::SpanDecoding;
use crate::heads::tags::TagDecoding;
use crate::metrics::span::Of;
use crate::metrics::threshold::Criterion;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The score that a threshold is tuned for; each task has some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TuneBy {
    F1,
    Accuracy,
    BalancedAccuracy,
    Mcc,
    ExactMatch,
}

impl TuneBy {
    /// The name in config files.
    fn name(self) -> &'static str {
        match self {
            Self::F1 => "f1",
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::Mcc => "mcc",
            Self::ExactMatch => "exact_match",
        }
    }

    /// As a score of labels that are predicted or not, if it is one.
    pub fn of_labels(self) -> Option<Criterion> {
        match self {
            Self::F1 => Some(Criterion::F1),
            Self::Accuracy => Some(Criterion::Accuracy),
            Self::BalancedAccuracy => Some(Criterion::BalancedAccuracy),
            Self::Mcc => Some(Criterion::Mcc),
            Self::ExactMatch => None,
        }
    }

    /// As a score of answers, if it is one.
    pub fn of_answers(self) -> Option<Of> {
        match self {
            Self::F1 => Some(Of::F1),
            Self::ExactMatch => Some(Of::Exact),
            Self::Accuracy | Self::BalancedAccuracy | Self::Mcc => None,
        }
    }
}

/// The `[eval]` table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// For two labels, or any number a row: after training, the decision threshold that is best on the eval data by this score is
    /// saved with the model; for multilabel by the score of all decisions together, so that f1 is micro-averaged. For span, where
    /// questions may have no answer: the threshold of null_score_diff_threshold that is best by f1 or exact_match. Default: none,
    /// the more probable label is predicted, or each from a probability of 0.5 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune_threshold: Option<TuneBy>,
    /// For multilabel: tune a threshold for each label by itself. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub threshold_per_label: bool,
    /// For tokens: entities count only if their tags keep to the scheme (seqeval's strict mode), IOBES where any tag begins with
    /// E or S, else IOB2. Default false: as conlleval reads them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict_tags: bool,
    /// For tokens: how tags are found, here and with the model. Viterbi's algorithm needs tags of a scheme: that of
    /// data.convert_tags or data.tag_scheme, else IOBES where any tag begins with E or S, else IOB2. Default argmax.
    #[serde(skip_serializing_if = "TagDecoding::is_argmax")]
    pub tag_decoding: TagDecoding,
    /// For span: so many of the highest scores to begin and to end an answer are tried with each other. Default 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub n_best_size: Option<usize>,
    /// For span: the longest answer in tokens. Default 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_answer_length: Option<usize>,
    /// For span, where questions may have no answer: one has none where that scores by more than this above the best piece.
    /// Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_score_diff_threshold: Option<f64>,
    /// A column of the eval and test data for each of whose values there are metrics. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_by: Option<Column>,
}

impl EvalConfig {
    /// Checks that what is set can do something.
    pub fn check(&self, task: TaskKind, has_eval: bool, has_test: bool) -> Result<(), Invalid> {
        if self.tune_threshold.is_some() && matches!(task, TaskKind::Regression | TaskKind::Tokens) {
            let message = format!("is set, but {task} has no threshold; remove the key");
            return Err(Invalid::new("eval.tune_threshold", message));
        }
        if self.slice_by.is_some() && matches!(task, TaskKind::Tokens | TaskKind::Span) {
            let message = format!("is set, but {task} reads no such column; remove the key");
            return Err(Invalid::new("eval.slice_by", message));
        }
        self.check_answers(task)?;
        if self.strict_tags && task != TaskKind::Tokens {
            return Err(Invalid::new("eval.strict_tags", format!("is true, but {task} has no tags; remove the key")));
        }
        if !self.tag_decoding.is_argmax() && task != TaskKind::Tokens {
            let message = format!("is \"{}\", but {task} has no tags; remove the key", self.tag_decoding.name());
            return Err(Invalid::new("eval.tag_decoding", message));
        }
        if self.threshold_per_label {
            let message = match (task, self.tune_threshold) {
                (TaskKind::Multilabel, Some(_)) => None,
                (TaskKind::Multilabel, None) => {
                    Some("is true, but eval.tune_threshold, such as \"f1\", is not set".into())
                }
                _ => Some(format!("is true, but {task} has one threshold at most; remove the key")),
            };
            if let Some(message) = message {
                return Err(Invalid::new("eval.threshold_per_label", message));
            }
        }
        let needs_eval = "is set, but there is no eval data; set data.eval to a file or to a fraction such as 0.1";
        if self.tune_threshold.is_some() && !has_eval {
            return Err(Invalid::new("eval.tune_threshold", needs_eval));
        }
        if self.slice_by.is_some() && !has_eval && !has_test {
            return Err(Invalid::new("eval.slice_by", needs_eval));
        }
        Ok(())
    }

    /// Keys that only answers have, and the scores that thresholds are tuned by.
    fn check_answers(&self, task: TaskKind) -> Result<(), Invalid> {
        let keys = [
            ("eval.n_best_size", self.n_best_size.is_some()),
            ("eval.max_answer_length", self.max_answer_length.is_some()),
            ("eval.null_score_diff_threshold", self.null_score_diff_threshold.is_some()),
        ];
        if let Some((key, _)) = keys.iter().find(|(_, set)| *set && task != TaskKind::Span) {
            return Err(Invalid::new(key, format!("is set, but {task} has no answers to read; remove the key")));
        }
        for (key, n, most) in [
            ("eval.n_best_size", self.n_best_size, 1000),
            ("eval.max_answer_length", self.max_answer_length, 1_000_000),
        ] {
            if let Some(n) = n.filter(|n| !(1..=most).contains(n)) {
                return Err(Invalid::new(key, format!("is {n}, expected 1 to {most}")));
            }
        }
        if let Some(threshold) = self.null_score_diff_threshold.filter(|t| !t.is_finite()) {
            let message = format!("is {threshold}, expected a finite number");
            return Err(Invalid::new("eval.null_score_diff_threshold", message));
        }
        let Some(by) = self.tune_threshold else { return Ok(()) };
        let (known, expected) = match task {
            TaskKind::Span => (by.of_answers().is_some(), "f1 or exact_match"),
            _ => (by.of_labels().is_some(), "f1, accuracy, balanced_accuracy or mcc"),
        };
        if known {
            return Ok(());
        }
        Err(Invalid::new("eval.tune_threshold", format!("is \"{}\", expected {expected} for {task}", by.name())))
    }

    /// How answers are read from scores; `with_none`: whether a question of the data has none.
    pub fn span_decoding(&self, with_none: bool) -> SpanDecoding {
        let none = self.null_score_diff_threshold.or(with_none.then_some(0.0));
        SpanDecoding {
            n_best_size: self.n_best_size.unwrap_or(SpanDecoding::N_BEST_SIZE),
            max_answer_length: self.max_answer_length.unwrap_or(SpanDecoding::MAX_ANSWER_LENGTH),
            null_threshold: none,
        }
    }

    /// Whether there is nothing to write.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
