//! Any number of labels a row, as users see it, on rows of GoEmotions (`examples/`).

#[path = "common/workplace.rs"]
mod workplace;

use serde_json::{Value, json};
use std::fs;
use workplace::Workplace;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `c.toml` learns from the example's rows.
fn workplace() -> Workplace {
    Workplace::new(&format!(
        "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"multilabel\"\n[data]\n\
             train = \"{ROOT}/examples/data/goemotions/train.tsv\"\neval = 0.2\n\
             test = \"{ROOT}/examples/data/goemotions/test.tsv\"\nheader = false\ntext = 0\nlabel = 1\nmax_length = 48\n\
             rename_labels = {{ \"27\" = \"neutral\", \"15\" = \"gratitude\" }}\n[train]\nepochs = 8\nbatch_size = 16\n\
             learning_rate = 1e-3\npos_weight = \"balanced\"\n[eval]\ntune_threshold = \"f1\"\n[output]\ndir = \"run\"\n"
    ))
}

/// How many of each label a `data` event counts.
fn count(event: &Value, label: &str) -> u64 {
    let pairs = event["labels"].as_array().unwrap();
    pairs.iter().find(|pair| pair[0] == label).map_or(0, |pair| pair[1].as_u64().unwrap())
}

#[test]
fn train_evaluate_and_predict() {
    let place = workplace();
    let events = place.json(&["train", "--config", "c.toml", "--json"], "");
    let done = events.last().unwrap();
    let test = &done["metrics"]["test"];
    // The mean share of a label among the rows is 0.04: the precision of guessing.
    assert!(test["map"].as_f64().unwrap() > 0.12, "{test}");
    assert!(test["map"].is_f64() && test["subset_accuracy"].is_f64() && test["hamming_loss"].is_f64(), "{test}");
    let counts = events.iter().find(|e| e["event"] == "data" && e["split"] == "train").unwrap();
    assert!(count(counts, "neutral") > 100 && count(counts, "27") == 0, "{counts}");

    let config: Value = serde_json::from_slice(&fs::read(place.path("run/model/config.json")).unwrap()).unwrap();
    assert_eq!(config["problem_type"], "multi_label_classification");
    let extra: Value = serde_json::from_slice(&fs::read(place.path("run/model/bertft.json")).unwrap()).unwrap();
    assert_eq!((extra["task"].clone(), extra["threshold"].clone()), (json!("multilabel"), test["threshold"].clone()));

    // The saved threshold is in force: the same scores once more.
    let data = format!("{ROOT}/examples/data/goemotions/test.tsv");
    let again = &place.json(&["eval", "--model", "run", "--data", &data, "--json"], "")[0];
    for (name, score) in test.as_object().unwrap() {
        let (a, b) = (score.as_f64(), again["metrics"][name].as_f64());
        assert!(a == b || (a.unwrap() - b.unwrap()).abs() < 1e-6, "{name}: {a:?} {b:?}");
    }
    assert!(again["per_class"]["gratitude"]["support"].as_u64().unwrap() > 0 && again["confusion_matrix"].is_null());
    let (code, table, _) = place.run(&["eval", "--model", "run", "--data", &data, "--fail-under", "micro_f1=0.99"], "");
    assert!(code == 3 && table.contains("gratitude") && table.contains("samples_f1"), "{table}");

    let rows = place.json(&["predict", "--model", "run"], "thank you so much!\nI do not know\n");
    assert_eq!((rows.len(), rows[0]["row"].clone()), (2, json!(1)));
    let threshold = extra["threshold"].as_f64().unwrap();
    for row in &rows {
        let scores = row["scores"].as_object().unwrap();
        let reached = scores.iter().filter(|(_, p)| p.as_f64().unwrap() >= threshold).map(|(name, _)| json!(name));
        assert_eq!(row["labels"], Value::Array(reached.collect()), "{row}");
        assert!(row["label"].is_null() && row["score"].is_null(), "{row}");
    }
    assert!(rows[0]["labels"].as_array().unwrap().contains(&json!("gratitude")), "{}", rows[0]);
}

/// One column of names, a JSON list, and columns of 0 and 1 are the same rows to a run.
#[test]
fn labels_are_written_in_three_ways() {
    let place = workplace();
    let (mut list, mut flags) = (String::new(), String::from("text,joy,fear,anger\n"));
    let mut cell = String::from("text,labels\n");
    let all = [(vec!["joy"], "100"), (vec![], "000"), (vec!["anger", "joy"], "101"), (vec!["fear"], "010")];
    for i in 0..24 {
        let (names, bits) = &all[i % 4];
        list += &format!("{}\n", json!({"text": format!("row {i}"), "labels": names}));
        flags += &format!("row {i},{}\n", bits.chars().map(String::from).collect::<Vec<_>>().join(","));
        cell += &format!("row {i},{}\n", names.join(";"));
    }
    for (name, text) in [("list.jsonl", &list), ("flags.csv", &flags), ("cell.csv", &cell)] {
        fs::write(place.path(name), text).unwrap();
    }
    let mut losses = vec![];
    for (file, keys) in [
        ("list.jsonl", vec!["data.label=labels"]),
        ("flags.csv", vec!["data.label=[\"joy\",\"fear\",\"anger\"]", "data.labels=[\"anger\",\"fear\",\"joy\"]"]),
        ("cell.csv", vec!["data.label=labels", "data.label_delimiter=;"]),
    ] {
        let toml = format!(
            "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"multilabel\"\n[data]\n\
             train = \"{file}\"\neval = \"{file}\"\nmax_length = 16\n[train]\nepochs = 1\npos_weight = \"balanced\"\n\
             [eval]\ntune_threshold = \"f1\"\nthreshold_per_label = true\n[output]\ndir = \"run-{file}\"\n"
        );
        fs::write(place.path("d.toml"), toml).unwrap();
        let sets: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        let events = place.json(&[&["train", "--config", "d.toml", "--json"], &sets[..]].concat(), "");
        losses.push(events.last().unwrap()["metrics"]["eval"].clone());
        // What the run remembers reads the file again.
        let again = &place.json(&["eval", "--model", &format!("run-{file}"), "--data", file, "--json"], "")[0];
        assert!(again["metrics"]["micro_f1"].is_f64(), "{again}");
        let path = place.path(&format!("run-{file}/model/bertft.json"));
        let extra: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(extra["threshold"].as_object().unwrap().len(), 3, "{extra}");
    }
    assert!(losses[0] == losses[1] && losses[1] == losses[2], "{losses:?}");
    // Columns of 0 and 1 can be renamed too, and two of them to one label.
    let renamed = [
        "data.train=flags.csv",
        "data.eval=flags.csv",
        "data.label=[\"joy\",\"fear\",\"anger\"]",
        "data.rename_labels={ joy = \"up\", fear = \"down\", anger = \"down\" }",
        "train.max_steps=1",
        "output.dir=renamed",
    ];
    let sets: Vec<&str> = renamed.iter().flat_map(|key| ["--set", key]).collect();
    let events = place.json(&[&["train", "--config", "d.toml", "--json"], &sets[..]].concat(), "");
    let data = events.iter().find(|e| e["event"] == "data").unwrap();
    assert_eq!(data["labels"], json!([["up", 12], ["down", 12]]));
    assert!(!events.iter().any(|e| e.to_string().contains("rename_labels")), "{events:?}");
    let again = &place.json(&["eval", "--model", "renamed", "--data", "flags.csv", "--json"], "")[0];
    assert_eq!(again["per_class"]["down"]["support"], 12);

    // A label without a column would count as one that no row has.
    let partly = ["eval", "--model", "run-flags.csv", "--data", "flags.csv", "--label", "joy", "--label", "fear"];
    place.refused(&partly, &["2 columns of 0 and 1, but none is for the model's [anger]"]);
    let numbered = ["eval", "--model", "run-flags.csv", "--data", "flags.csv", "--label", "1", "--label", "2"];
    place.refused(&numbered, &["2 columns of 0 and 1, but the model has 3 labels"]);

    // `check` counts sets of labels.
    let (code, report, _) = place.run(
        &[
            "check",
            "--config",
            "d.toml",
            "--no-timing",
            "--set",
            "data.label=labels",
            "--set",
            "data.label_delimiter=;",
        ],
        "",
    );
    assert!(code == 0 && report.contains("anger") && report.contains("(always \"joy\")"), "{report}");
}

#[test]
fn mistakes_are_told() {
    let place = workplace();
    let train = |set: &[&'static str]| {
        let mut args = vec!["train", "--config", "c.toml", "--output", "x", "--dry-run"];
        set.iter().for_each(|s| args.extend(["--set", s]));
        args
    };
    fs::write(place.path("bad.csv"), "text,joy,fear\na,1,0\nb,2,0\n").unwrap();
    let flags = ["data.train=bad.csv", "data.header=true", "data.text=text", "data.label=[\"joy\",\"fear\"]"];
    place.refused(&train(&flags), &["bad.csv:3", "label column \"joy\" is \"2\", expected 0 or 1"]);
    // One such column by itself is one of labels, of which it may not have been thought.
    fs::write(place.path("one.csv"), "text,joy\na,1\nb,0\nc,1\nd,0\ne,1\n").unwrap();
    let one = ["data.train=one.csv", "data.header=true", "data.text=text", "data.label=joy", "data.test=one.csv"];
    let (code, _, err) = place.run(&train(&one), "");
    assert!(code == 0 && err.contains("data.label = \"joy\" holds 0 or 1") && err.contains("classification"), "{err}");
    let unknown = ["data.labels=[\"neutral\",\"1\"]"];
    place.refused(&train(&unknown), &["train.tsv:", "is not one of [neutral, 1]"]);
    for (set, says) in [
        ("train.class_weights=balanced", "train.pos_weight in its place"),
        ("train.label_smoothing_factor=0.1", "multilabel has no labels to smooth"),
        ("train.focal_gamma=2", "multilabel has no focal loss"),
        ("train.r_drop=1", "multilabel has no"),
        ("task.kind=classification", "weights the labels of multilabel"),
        ("train.metric_for_best_model=accuracy", "expected a metric of multilabel"),
    ] {
        let more = if set.contains("kind") { "eval.threshold_per_label=true" } else { "train.seed=1" };
        place.refused(&train(&[set, more]), &[says]);
    }
    place.refused(
        &train(&["task.kind=classification", "data.label_delimiter=;"]),
        &["data.label_delimiter", "one label"],
    );
    place.refused(&train(&["task.kind=classification", "data.label=[1,2]"]), &["data.label has 2 columns"]);
    place.refused(
        &train(&["task.kind=classification", "train.pos_weight=balanced"]),
        &["train.class_weights in its place"],
    );
    place.refused(&train(&["train.pos_weight={ joyy = 2 }"]), &["train.pos_weight has \"joyy\"", "not one of"]);
}
