//! What the `[data]` table says of labels.

use super::{DataConfig, Invalid, TaskKind};
use crate::data::label_sets::{LabelForm, flag_names};

impl DataConfig {
    /// How the files write the labels of a task.
    pub fn label_form(&self, task: TaskKind) -> LabelForm {
        LabelForm::of(task, self.label_delimiter.as_deref())
    }

    /// The labels in the order of their ids, where the config tells: `labels`, or the names of several label columns.
    pub fn known_labels(&self) -> Option<Vec<String>> {
        let columns = || flag_names(&self.label, &self.rename_labels);
        self.labels.clone().or_else(columns)
    }

    pub(super) fn check_labels(&self, task: TaskKind) -> Result<(), Invalid> {
        let columns = self.label.as_slice().len();
        if task != TaskKind::Multilabel && columns > 1 {
            let message =
                format!("has {columns} columns, expected one for {task}; task.kind = \"multilabel\" takes several");
            return Err(Invalid::new("data.label", message));
        }
        if let Some(delimiter) = &self.label_delimiter {
            let wrong = |message: String| Err(Invalid::new("data.label_delimiter", message));
            match task {
                TaskKind::Multilabel if delimiter.is_empty() => {
                    return wrong("is empty, expected what stands between labels, such as \";\"".into());
                }
                TaskKind::Multilabel if columns > 1 => {
                    return wrong("is set, but data.label has a column for each label; remove the key".into());
                }
                TaskKind::Multilabel => {}
                _ => return wrong(format!("is set, but a row has one label in {task}; remove the key")),
            }
        }
        if task == TaskKind::Regression && !self.rename_labels.is_empty() {
            let message = "is set, but regression has no labels; remove the key";
            return Err(Invalid::new("data.rename_labels", message));
        }
        let Some(labels) = &self.labels else { return Ok(()) };
        let wrong = |message: String| Err(Invalid::new("data.labels", message));
        if task == TaskKind::Regression {
            return wrong("is set, but regression has no labels; remove the key".into());
        }
        if labels.len() < 2 {
            return wrong(format!("has {} entries, expected two or more", labels.len()));
        }
        for (i, label) in labels.iter().enumerate() {
            if labels[..i].contains(label) {
                return wrong(format!("has \"{label}\" twice; each label once"));
            }
        }
        Ok(())
    }
}
