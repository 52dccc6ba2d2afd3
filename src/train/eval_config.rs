//! The `[eval]` table: what evaluations say beyond the metrics of the whole set.

use crate::data::config::{Column, Invalid, TaskKind};
use crate::metrics::threshold::Criterion;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[eval]` table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// For two labels, or any number a row: after training, the decision threshold that is best on the eval data by this score is
    /// saved with the model; for multilabel by the score of all decisions together, so that f1 is micro-averaged. Default: none,
    /// the more probable label is predicted, or each from a probability of 0.5 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune_threshold: Option<Criterion>,
    /// For multilabel: tune a threshold for each label by itself. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub threshold_per_label: bool,
    /// For tokens: entities count only if their tags keep to the scheme (seqeval's strict mode), IOBES where any tag begins with
    /// E or S, else IOB2. Default false: as conlleval reads them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict_tags: bool,
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
        if self.slice_by.is_some() && task == TaskKind::Tokens {
            return Err(Invalid::new(
                "eval.slice_by",
                "is set, but words with tags have no such column; remove the key",
            ));
        }
        if self.strict_tags && task != TaskKind::Tokens {
            return Err(Invalid::new("eval.strict_tags", format!("is true, but {task} has no tags; remove the key")));
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

    /// Whether there is nothing to write.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
