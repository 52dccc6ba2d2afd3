//! The kinds of tasks.

use schemars::JsonSchema;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the model learns to say about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One of a fixed set of labels for a text or a pair of texts.
    Classification,
    /// Any number of a fixed set of labels for a text or a pair of texts.
    Multilabel,
    /// One number for a text or a pair of texts.
    Regression,
    /// One of a fixed set of tags for each word of a sentence: named entities, parts of speech.
    Tokens,
    /// A piece of a text as the answer to a question about it.
    Span,
}

impl TaskKind {
    /// The kinds of the config format that this version knows by name only.
    const LATER: [&str; 3] = ["mlm", "choice", "embedding"];
    const NAMES: [&str; 5] = ["classification", "multilabel", "regression", "tokens", "span"];

    /// How the names of its classes in `transformers` end.
    pub fn class(self) -> &'static str {
        match self {
            Self::Tokens => "ForTokenClassification",
            Self::Span => "ForQuestionAnswering",
            Self::Classification | Self::Multilabel | Self::Regression => "ForSequenceClassification",
        }
    }

    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Multilabel => "multilabel",
            Self::Regression => "regression",
            Self::Tokens => "tokens",
            Self::Span => "span",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TaskKind {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Kind;
        impl Visitor<'_> for Kind {
            type Value = TaskKind;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a task, such as \"classification\"")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<TaskKind, E> {
                match v {
                    "classification" => Ok(TaskKind::Classification),
                    "multilabel" => Ok(TaskKind::Multilabel),
                    "regression" => Ok(TaskKind::Regression),
                    "tokens" => Ok(TaskKind::Tokens),
                    "span" => Ok(TaskKind::Span),
                    _ if TaskKind::LATER.contains(&v) => Err(E::custom(format!(
                        "the task \"{v}\" is not in this version; it has {}",
                        TaskKind::NAMES.join(", ")
                    ))),
                    _ => Err(E::unknown_variant(v, &TaskKind::NAMES)),
                }
            }
        }
        d.deserialize_str(Kind)
    }
}
