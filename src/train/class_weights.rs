//! `train.class_weights` and `train.pos_weight`: a weight a label in the loss, from a table or from how often each label occurs.

use crate::data::{LabelMap, Targets, listed, shortened};
use crate::error::{Error, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// The value of `train.class_weights` or `train.pos_weight`.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassWeights {
    /// rows / (labels · rows of the label), as scikit-learn's `compute_class_weight("balanced")`; where a row may have several
    /// labels, rows without the label / rows with it, and 1 where all rows have it, as with 0 it would never be learnt.
    Balanced,
    /// By label name; every label has one. Where a row may have several labels those that are not named have 1.
    Table(BTreeMap<String, f64>),
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Balanced => s.serialize_str("balanced"),
            Self::Table(table) => table.serialize(s),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Weights;
        impl<'de> Visitor<'de> for Weights {
            type Value = ClassWeights;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"balanced\" or a table of weights by label, such as { positive = 2.0, negative = 1.0 }")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<ClassWeights, E> {
                if v == "balanced" {
                    Ok(ClassWeights::Balanced)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(v), &self))
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ClassWeights, A::Error> {
                BTreeMap::deserialize(de::value::MapAccessDeserializer::new(map)).map(ClassWeights::Table)
            }
        }
        d.deserialize_any(Weights)
    }
}

impl JsonSchema for ClassWeights {
    fn schema_name() -> Cow<'static, str> {
        "ClassWeights".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "const": "balanced", "description": "Rarer labels weigh more: rows / (labels · rows of the label), for multilabel rows without it / rows with it." },
            { "type": "object", "additionalProperties": { "type": "number", "exclusiveMinimum": 0 } },
        ]})
    }
}

impl ClassWeights {
    /// The weights in the order of `labels`, for training on `targets`.
    ///
    /// # Errors
    /// [`Error::Input`] when a name of the table is no label, a label has no weight or two, or, balanced, no row.
    pub fn resolve(&self, labels: &[String], targets: &Targets) -> Result<Vec<f32>> {
        let several = matches!(targets, Targets::Sets(_));
        let wrong = |message| {
            let key = if several { "train.pos_weight" } else { "train.class_weights" };
            Error::input(format!("{key} {message}"))
        };
        match self {
            Self::Balanced => balanced(labels, targets, &wrong),
            Self::Table(table) => by_name(table, labels, several, &wrong),
        }
    }
}

fn balanced(labels: &[String], targets: &Targets, wrong: &dyn Fn(String) -> Error) -> Result<Vec<f32>> {
    let (rows, counts) = match targets {
        Targets::Class(classes) => {
            let mut counts = vec![0u64; labels.len()];
            classes.iter().for_each(|&c| counts[c as usize] += 1);
            (classes.len(), counts)
        }
        Targets::Sets(sets) => (sets.len(), sets.counts(labels.len())),
        Targets::Tags(tags) => {
            let mut counts = vec![0u64; labels.len()];
            tags.labels().for_each(|c| counts[c as usize] += 1);
            (counts.iter().sum::<u64>() as usize, counts)
        }
        _ => return Err(Error::Failed("the rows have no classes".into())),
    };
    if let Some(i) = counts.iter().position(|&n| n == 0) {
        let label = shortened(&labels[i]);
        return Err(wrong(format!(
            "is \"balanced\", but no training row has the label \"{label}\"; remove it from data.labels, or give a table of weights"
        )));
    }
    let rows = rows as f64;
    let of_class = |n: f64| match targets {
        Targets::Sets(_) if n == rows => 1.0,
        Targets::Sets(_) => (rows - n) / n,
        _ => rows / labels.len() as f64 / n,
    };
    Ok(counts.iter().map(|&n| of_class(n as f64) as f32).collect())
}

fn by_name(
    table: &BTreeMap<String, f64>,
    labels: &[String],
    several: bool,
    wrong: &dyn Fn(String) -> Error,
) -> Result<Vec<f32>> {
    let map = LabelMap::new(labels.to_vec())?;
    let mut weights = vec![None; labels.len()];
    for (name, &weight) in table {
        let Some(i) = map.index(name) else {
            let names = labels.iter().map(String::as_str);
            let hint = crate::data::did_you_mean(name, names.clone());
            return Err(wrong(format!(
                "has \"{}\", which is not one of {}{hint}; fix the name",
                shortened(name),
                listed(names)
            )));
        };
        if weights[i].replace(weight as f32).is_some() {
            return Err(wrong(format!("has two weights for the label \"{}\"; give one", shortened(&labels[i]))));
        }
    }
    let missing: Vec<&str> =
        labels.iter().zip(&weights).filter(|(_, w)| w.is_none()).map(|(label, _)| label.as_str()).collect();
    if several {
        return Ok(weights.into_iter().map(|w| w.unwrap_or(1.0)).collect());
    }
    if !missing.is_empty() {
        let message = format!("has no weight for {}; every label needs one", listed(missing.into_iter()));
        return Err(wrong(message));
    }
    Ok(weights.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::LabelSets;

    fn labels() -> Vec<String> {
        ["bad", "good", "1"].map(String::from).to_vec()
    }

    fn table(pairs: &[(&str, f64)]) -> ClassWeights {
        ClassWeights::Table(pairs.iter().map(|(n, w)| (n.to_string(), *w)).collect())
    }

    #[test]
    fn balanced_weights_are_scikit_learns() {
        // compute_class_weight("balanced", classes=[0, 1, 2], y=[0, 0, 0, 1, 1, 2])
        let targets = Targets::Class(vec![0, 0, 0, 1, 1, 2]);
        assert_eq!(ClassWeights::Balanced.resolve(&labels(), &targets).unwrap(), [6.0 / 9.0, 1.0, 2.0]);
        let none = ClassWeights::Balanced.resolve(&labels(), &Targets::Class(vec![0, 2])).unwrap_err();
        assert!(none.to_string().contains("no training row has the label \"good\""), "{none}");
        assert_eq!(none.exit_code(), 2);
    }

    #[test]
    fn balanced_weights_of_several_labels_are_what_is_lacking_for_each() {
        let targets = Targets::Sets(LabelSets::new(vec![vec![0, 2], vec![2], vec![0, 2], vec![0, 1, 2]]));
        // All rows have the last label.
        assert_eq!(ClassWeights::Balanced.resolve(&labels(), &targets).unwrap(), [1.0 / 3.0, 3.0, 1.0]);
    }

    #[test]
    fn a_table_names_every_label_once() {
        let resolve =
            |pairs: &[(&str, f64)]| table(pairs).resolve(&labels(), &Targets::None).map_err(|e| e.to_string());
        assert_eq!(resolve(&[("good", 2.0), ("1.0", 3.0), ("bad", 0.5)]), Ok(vec![0.5, 2.0, 3.0]));
        let unknown = resolve(&[("goood", 2.0)]).unwrap_err();
        assert_eq!(
            unknown,
            "train.class_weights has \"goood\", which is not one of [bad, good, 1] (did you mean \"good\"?); fix the name"
        );
        let missing = resolve(&[("good", 2.0)]).unwrap_err();
        assert_eq!(missing, "train.class_weights has no weight for [bad, 1]; every label needs one");
        let twice = resolve(&[("1", 1.0), ("1.0", 2.0), ("bad", 1.0), ("good", 1.0)]).unwrap_err();
        assert!(twice.contains("two weights for the label \"1\""), "{twice}");
    }
}
