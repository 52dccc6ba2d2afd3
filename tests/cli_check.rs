//! `check` as users and scripts see it, and what `train` says of its data.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

const TEXTS: [&str; 6] = [
    "a wonderful and moving film",
    "dull, boring and far too long",
    "i loved every minute of this",
    "nothing but a waste of time",
    "the best cast in years",
    "poor writing, worse acting",
];

/// A directory with a config and 24 + 6 rows that differ.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let rows = |from: usize, n: usize| {
        let row = |i: usize| {
            format!("\"{} {}\",{}\n", TEXTS[i % 6], "so ".repeat(i / 6 + 1) + &words(i), ["good", "bad"][i % 2])
        };
        "text,label\n".to_owned() + &(from..from + n).map(row).collect::<String>()
    };
    write(&dir, "train.csv", &rows(0, 24));
    write(&dir, "test.csv", &rows(24, 6));
    let config = format!(
        "[model]\npath = \"{MODEL}\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"train.csv\"\ntest = \"test.csv\"\n\
         max_length = 32\n[train]\nepochs = 1\nbatch_size = 8\n[output]\ndir = \"run\"\n"
    );
    write(&dir, "cls.toml", &config);
    dir
}

/// Words that tell rows apart.
fn words(i: usize) -> String {
    ["north", "south", "east", "west", "up", "down", "left", "right", "in", "out"][i % 10].to_owned()
        + [" red", " green", " blue"][i / 10 % 3]
        + [" one two three", " four five six"][i / 5 % 2]
}

fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).unwrap();
}

fn append(dir: &TempDir, name: &str, text: &str) {
    let path = dir.path().join(name);
    fs::write(&path, fs::read_to_string(&path).unwrap() + text).unwrap();
}

/// Exit code, standard output, standard error.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("bertft").unwrap().current_dir(dir).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn events(out: &str) -> Vec<Value> {
    out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
}

#[test]
fn a_sound_set_passes_every_gate_and_shows_its_figures() {
    let dir = workplace();
    let (code, out, err) = run(dir.path(), &["check", "--config", "cls.toml", "--fail-on", "all"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(err, "timing a few training steps\n");
    for part in
        ["cls.toml: classification with ", "accuracy of a constant", "lengths of train in tokens", "no findings"]
    {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    assert!(out.contains("\nmemory  about ") && out.contains("\ntime    about ") && out.contains(" ± "), "{out}");
    assert!(!out.contains('\u{1b}') && out.lines().all(|l| l.chars().count() <= 100), "{out}");
    assert!(!dir.path().join("run").exists());
    let (code, _, err) = run(dir.path(), &["train", "--config", "cls.toml", "--dry-run"]);
    assert_eq!(code, 0);
    assert!(!err.contains("warning"), "{err}");
}

#[test]
fn findings_name_their_rows_and_gates_end_with_3() {
    let dir = workplace();
    append(&dir, "train.csv", "\"a  Wonderful and moving FILM so north red one two three\",bad\n");
    append(&dir, "test.csv", "\"dull, boring and far too long so south red one two three\",bad\n");
    let check = ["check", "--config", "cls.toml", "--no-timing"];
    let (code, out, err) = run(dir.path(), &check);
    assert_eq!((code, err.as_str()), (0, ""));
    for part in [
        "leakage in test: 1 row (14.3 %) also in train, 1 equal and 0 nearly equal: scores on test",
        "  test.csv:8 = train.csv:3\n      dull, boring and far too long so south",
        "conflicts: 1 text with different labels, in 2 rows",
        "  train.csv:2 = line 26  [good | bad]",
        "duplicates in train: 1 row (4.0 %) equal to an earlier row",
        "\n  fix: ",
    ] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    let gated = |on: &str| run(dir.path(), &[&check[..], &["--fail-on", on]].concat());
    let (code, out, err) = gated("leakage,conflicts");
    assert_eq!(code, 3);
    assert_eq!(err, "error: quality gate not met: leakage in test (1); conflicts (1)\n");
    assert!(out.contains("leakage in test"));
    assert_eq!(gated("all").0, 3);
    assert_eq!(gated("mojibake, truncation").0, 0);
    let (code, _, err) = gated("leakages");
    assert_eq!(code, 2);
    assert!(
        err.contains("--fail-on: there is no finding \"leakages\"") && err.contains("did you mean leakage?"),
        "{err}"
    );
}

#[test]
fn json_is_one_object_a_line() {
    let dir = workplace();
    append(&dir, "test.csv", "\"dull, boring and far too long so south red one two three\",awful\n");
    let (code, out, err) = run(dir.path(), &["check", "-c", "cls.toml", "--json", "--fail-on", "missing-labels"]);
    assert_eq!((code, err.as_str()), (3, ""));
    let events = events(&out);
    let kinds: Vec<_> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["data", "data", "check", "error"]);
    assert_eq!((&events[0]["rows"], &events[1]["split"]), (&24.into(), &"test".into()));
    let check = &events[2];
    assert_eq!(check["splits"][0]["labels"]["majority_accuracy"], 0.5);
    assert!(check["memory"]["estimated_peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(check["timing"]["train_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(check["timing"]["total_steps"], 3);
    let names: Vec<_> = check["findings"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["missing-labels", "leakage", "conflicts"]);
    let leak = &check["findings"][1];
    assert_eq!((&leak["split"], &leak["count"]), (&"test".into(), &1.into()));
    assert_eq!(leak["examples"][0]["line"], 8);
    assert_eq!(leak["examples"][0]["other"]["line"], 3);
    assert!(leak["examples"][0]["file"].as_str().unwrap().ends_with("test.csv"));
    assert_eq!(events[3]["code"], 3);
}

#[test]
fn wrong_configs_and_arguments_end_with_2() {
    let dir = workplace();
    let refused = |args: &[&str], says: &str| {
        let (code, _, err) = run(dir.path(), &[&["check", "--no-timing"], args].concat());
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(says), "no {says:?} in {err}");
    };
    refused(&["-c", "none.toml"], "none.toml");
    refused(&["-c", "cls.toml", "--set", "data.train=none.csv"], "data.train");
    refused(&["-c", "cls.toml", "--set", "data.text=body"], "body");
    refused(&["-c", "cls.toml", "--set", "data.max_length=4000"], "positions");
    refused(&["-c", "cls.toml", "--set", "train.metric_for_best_model=pearson"], "pearson");
    refused(&["-c", "cls.toml", "--near", "2"], "--near 2: expected a number above 0");
    refused(&["-c", "cls.toml", "--fail-on", ""], "there is no finding");
}

#[test]
fn training_says_in_short_what_is_wrong() {
    let dir = workplace();
    append(&dir, "train.csv", "\"a  Wonderful and moving FILM so north red one two three\",bad\n");
    append(&dir, "test.csv", "\"dull, boring and far too long so south red one two three\",bad\n");
    let (code, _, err) = run(dir.path(), &["train", "--config", "cls.toml", "--dry-run"]);
    assert_eq!(code, 0, "{err}");
    let warnings: Vec<_> = err.lines().filter(|l| l.starts_with("warning: ")).collect();
    assert_eq!(
        warnings,
        [
            "warning: test: 1 row (14.3 %) also in train; drop them from one of the two",
            "warning: 2 rows with the text of others and different labels; fix or drop the wrong ones",
            "warning: train: 1 row (4.0 %) equal to others; drop them unless they are meant to count more",
            "warning: bertft check --config cls.toml lists the rows",
        ]
    );
    let (_, out, _) = run(dir.path(), &["train", "--config", "cls.toml", "--json"]);
    let warnings = events(&out).into_iter().filter(|e| e["event"] == "warning").count();
    assert_eq!(warnings, 4);
}
