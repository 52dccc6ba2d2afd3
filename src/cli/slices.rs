//! The metrics of slices for readers.

use super::ui::{headline_names, score};
use crate::data::shortened;
use crate::train::eval::SliceScores;
use serde::Deserialize;

/// The slices of a `done` event's metrics, by split.
pub(super) fn slices_of(metrics: &serde_json::Value) -> Vec<(String, SliceScores)> {
    let Some(splits) = metrics["slices"].as_object() else { return vec![] };
    let scores =
        |(split, slices): (&String, &serde_json::Value)| Some((split.clone(), SliceScores::deserialize(slices).ok()?));
    splits.iter().filter_map(scores).collect()
}

/// A row a slice: the rows that it has, and the metrics that fit a line.
pub(super) fn slices_table(split: &str, slices: &SliceScores) -> String {
    let Some((_, first)) = slices.0.first() else { return String::new() };
    let names: Vec<&str> = headline_names(&first.metrics).filter(|name| first.metrics.get(name).is_some()).collect();
    let heads: Vec<String> = slices.0.iter().map(|(value, _)| shortened(value)).collect();
    let width = heads.iter().map(|h| h.chars().count()).chain([split.chars().count()]).max().unwrap_or(0);
    let row = |head: &str, samples: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|c| format!("  {c:>10}")).collect();
        format!("{head:<width$}  {samples:>8}{cells}\n")
    };
    let mut table = row(split, "rows", names.iter().map(|n| n.to_string()).collect());
    for (head, (_, slice)) in heads.iter().zip(&slices.0) {
        let cells = names.iter().map(|name| slice.metrics.get(name).map(score).unwrap_or_default()).collect();
        table += &row(head, &slice.samples.to_string(), cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_a_slice_with_its_size() {
        let metrics = json!({
            "eval": {"loss": 0.5},
            "slices": {"eval": {
                "a": {"samples": 12, "metrics": {"loss": 0.25, "accuracy": 1.0, "f1": null, "macro_f1": 0.5, "mcc": 0.0}},
                "longer": {"samples": 1, "metrics": {"loss": 1.5, "accuracy": 0.0, "f1": 0.0, "macro_f1": 0.0, "mcc": 0.0}},
            }},
        });
        let [(split, slices)] = &slices_of(&metrics)[..] else { panic!() };
        assert_eq!(
            slices_table(split, slices),
            "eval        rows        loss    accuracy          f1         mcc\n\
             a             12      0.2500      1.0000   undefined      0.0000\n\
             longer         1      1.5000      0.0000      0.0000      0.0000\n"
        );
        assert_eq!(slices_of(&json!({"eval": {}})), []);
    }
}
