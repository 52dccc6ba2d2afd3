//! Training and evaluation options on the data's side, as users see them, on rows of Banking77 (`examples/`).

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const POSITIVE: &str = "lost_or_stolen_card";
const NEGATIVE: &str = "compromised_card";

/// Two kinds of questions, 24 of one and 72 of the other to learn from, with a column to slice by.
struct Workplace(TempDir);

impl Workplace {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let mut rows = [POSITIVE, NEGATIVE].map(|label| questions(label).into_iter());
        let mut take = |name: &str, counts: [usize; 2]| {
            let mut csv = csv::Writer::from_path(this.path(name)).unwrap();
            csv.write_record(["text", "channel", "label"]).unwrap();
            for (i, (rows, label)) in rows.iter_mut().zip([POSITIVE, NEGATIVE]).enumerate() {
                for (j, text) in rows.take(counts[i]).enumerate() {
                    let channel = if j == 0 { "post" } else { ["web", "app"][j % 2] };
                    csv.write_record([text.as_str(), channel, label]).unwrap();
                }
            }
            csv.flush().unwrap();
        };
        take("train.csv", [24, 48]);
        take("dev.csv", [20, 16]);
        take("test.csv", [20, 16]);
        let toml = format!(
            "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"classification\"\n[data]\n\
             train = \"train.csv\"\neval = \"dev.csv\"\ntest = \"test.csv\"\nmax_length = 32\n[train]\nepochs = 2\nbatch_size = 8\n\
             learning_rate = 5e-4\nlogging_steps = 1\n[output]\ndir = \"run\"\n"
        );
        fs::write(this.path("c.toml"), toml).unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::cargo_bin("bertft").unwrap();
        let output = command.current_dir(self.0.path()).args(args).output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `train --json` with these values over the config.
    fn train(&self, set: &[&str], more: &[&str]) -> Ran {
        let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
        self.run(&[&["train", "--config", "c.toml", "--json"], &set[..], more].concat())
    }
}

fn questions(label: &str) -> Vec<String> {
    let mut csv = csv::Reader::from_path(format!("{ROOT}/examples/data/banking77/train.csv")).unwrap();
    let rows = csv.records().map(|r| r.unwrap());
    rows.filter(|r| &r[1] == label).map(|r| r[0].trim().to_owned()).collect()
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn events(&self, kind: &str) -> Vec<Value> {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        let lines = self.out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter(|e| e["event"] == kind).collect()
    }

    #[track_caller]
    fn refused(&self, says: &[&str]) {
        assert_eq!(self.code, 2, "{}{}", self.out, self.err);
        for s in says {
            assert!(self.out.contains(s) || self.err.contains(s), "no {s:?} in: {}{}", self.out, self.err);
        }
    }
}

/// Accuracy and F1 are in the contract's order before what came later; figures are f64.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn class_weights_and_focal_loss() {
    let w = Workplace::new();
    let first_loss = |set: &[&str], dir: &str| {
        let ran = w.train(&[set, &["train.max_steps=1", "data.eval=dev.csv"]].concat(), &["--output", dir]);
        number(&ran.events("step")[0]["loss"])
    };
    let plain = first_loss(&[], "plain");
    // Near the start every row's loss is about ln 2, and a mean of equal losses does not see weights.
    let weighted = first_loss(&["train.class_weights=balanced"], "balanced");
    assert!(weighted != plain && (weighted - plain).abs() < 0.2, "{weighted} {plain}");
    // 24 and 48 rows: 72 / (2·24) and 72 / (2·48).
    let table = format!("train.class_weights={{ {POSITIVE} = 1.5, {NEGATIVE} = 0.75 }}");
    assert_eq!(first_loss(&[&table], "table"), weighted);
    // (1 − p)² is about a quarter.
    let focal = first_loss(&["train.focal_gamma=2"], "focal");
    assert!((focal / plain - 0.25).abs() < 0.15, "{focal} {plain}");

    let refused = |set: &str, says: &[&str]| w.train(&[set], &["--output", "no"]).refused(says);
    refused(
        &format!("train.class_weights={{ lost_or_stolen = 1.5, {NEGATIVE} = 1 }}"),
        &["lost_or_stolen", "did you mean", POSITIVE],
    );
    refused(&format!("train.class_weights={{ {NEGATIVE} = 1 }}"), &["no weight for", POSITIVE]);
    refused("train.class_weights=even", &["balanced"]);
    // Part of what a resumed run must share.
    let resume = |set: &str, dir: &str| w.train(&[set, "train.max_steps=2"], &["--resume", "--output", dir]);
    resume("train.focal_gamma=1", "plain").refused(&["train.focal_gamma is now 1.0", "was not set"]);
    resume("train.class_weights=balanced", "plain").refused(&["train.class_weights"]);
    resume("train.focal_gamma=0", "focal").refused(&["train.focal_gamma"]);
    assert_eq!(resume(&table, "balanced").code, 0);
    assert!(w.read("balanced/config.toml").contains("1.5"));
}
