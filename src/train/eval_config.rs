//! The `[eval]` table: what evaluations say beyond the metrics of the whole set.

use crate::data::config::{Column, Invalid, TaskKind};
use crate::metrics::threshold::Criterion;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[eval]` table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// For two labels: after training, the decision threshold that is best on the eval data by this score is saved with the
    /// model. Default: none, the more probable label is predicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tune_threshold: Option<Criterion>,
    /// A column of the eval and test data for each of whose values there are metrics. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slice_by: Option<Column>,
}

impl EvalConfig {
    /// Checks that what is set can do something.
    pub fn check(&self, task: TaskKind, has_eval: bool, has_test: bool) -> Result<(), Invalid> {
        if self.tune_threshold.is_some() && task == TaskKind::Regression {
            let message = "is set, but regression decides between no labels; remove the key";
            return Err(Invalid::new("eval.tune_threshold", message));
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
