//! Training options on the model's side, as users see them, on rows of Banking77 (`examples/`).

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const LABELS: [&str; 3] = ["lost_or_stolen_card", "compromised_card", "card_arrival"];

/// Questions of two kinds in `two.csv`, of three in `three.csv`, their lengths in `numbers.csv`; 16 rows of each kind.
struct Workplace(TempDir);

impl Workplace {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let mut csv = csv::Reader::from_path(format!("{ROOT}/examples/data/banking77/train.csv")).unwrap();
        let all: Vec<csv::StringRecord> = csv.records().map(|r| r.unwrap()).collect();
        let of = |label: &&str| all.iter().filter(|r| &r[1] == *label).take(16).collect::<Vec<_>>();
        for (name, labels) in [("two.csv", 2), ("three.csv", 3), ("numbers.csv", 2)] {
            let mut csv = csv::Writer::from_path(this.path(name)).unwrap();
            csv.write_record(["text", "label"]).unwrap();
            for row in LABELS[..labels].iter().flat_map(of) {
                let number = format!("{}", row[0].len() as f64 / 50.0);
                csv.write_record([&row[0], if name == "numbers.csv" { &number } else { &row[1] }]).unwrap();
            }
        }
        let toml = format!(
            "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"classification\"\n[data]\n\
             train = \"two.csv\"\neval = \"two.csv\"\nmax_length = 24\n[train]\nepochs = 3\nbatch_size = 8\n\
             learning_rate = 5e-4\nlogging_steps = 1\nsave_total_limit = 0\n[output]\ndir = \"run\"\n"
        );
        fs::write(this.path("c.toml"), toml).unwrap();
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> (i32, String) {
        let mut command = Command::cargo_bin("bertft").unwrap();
        let output = command.current_dir(self.0.path()).args(args).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code().unwrap(), text)
    }

    /// The events of `train --json` with these values over the config.
    #[track_caller]
    fn train(&self, output: &str, set: &[&str], more: &[&str]) -> Vec<Value> {
        let (code, text) = self.run(&[&arguments(output, set)[..], more].concat());
        assert_eq!(code, 0, "{text}");
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[track_caller]
    fn refused(&self, output: &str, set: &[&str], more: &[&str], says: &[&str]) {
        let (code, text) = self.run(&[&arguments(output, set)[..], more].concat());
        assert!(code == 2 && says.iter().all(|s| text.contains(s)), "no {says:?} in {text}");
    }
}

fn arguments<'a>(output: &'a str, set: &[&'a str]) -> Vec<&'a str> {
    let set = set.iter().flat_map(|s| ["--set", *s]);
    ["train", "--config", "c.toml", "--json", "--output", output].into_iter().chain(set).collect()
}

fn events<'a>(all: &'a [Value], kind: &str) -> Vec<&'a Value> {
    all.iter().filter(|e| e["event"] == kind).collect()
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

#[test]
fn a_run_with_all_options_resumes_to_the_same_bits() {
    let w = Workplace::new();
    let common = ["train.ema_decay=0.8", "train.r_drop=1", "train.layer_wise_lr_decay=0.9", "train.reinit_layers=1"];
    let fgm = ["train.fgm_epsilon=0.5", "train.gradient_accumulation_steps=2", "train.lr_scheduler_type=one_cycle"];
    let thaw = ["train.unfreeze_layers_per_epoch=2", "train.gradient_checkpointing=true", "train.precision=bf16"];
    for (name, more) in [("fgm", fgm), ("thaw", thaw)] {
        let (whole, cut, set) = (name.to_owned(), format!("{name}-cut"), [&common[..], &more[..]].concat());
        let ran = w.train(&whole, &set, &[]);
        let at = events(&ran, "done")[0]["steps"].as_u64().unwrap() / 3;
        for file in [format!("step-{at}/state.json"), format!("step-{at}/state.safetensors")] {
            let to = w.path(&cut).join("checkpoints").join(&file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(w.path(&whole).join("checkpoints").join(&file), to).unwrap();
        }
        let log = fs::read_to_string(w.path(&whole).join("events.jsonl")).unwrap();
        fs::write(w.path(&cut).join("events.jsonl"), log).unwrap();
        fs::create_dir_all(w.path(&cut).join("model")).unwrap();
        assert_eq!(events(&w.train(&cut, &set, &["--resume"]), "start")[0]["resumed_from"], at);
        for file in ["metrics.json", "model/model.safetensors"] {
            let [a, b] = [&whole, &cut].map(|run| fs::read(w.path(run).join(file)).unwrap());
            assert!(a == b, "{name}: {file}");
        }
        // What was scored in the run is what it saved.
        let metrics: Value = serde_json::from_slice(&fs::read(w.path(&whole).join("metrics.json")).unwrap()).unwrap();
        let precision = if name == "thaw" { "bf16" } else { "f32" };
        let (code, text) = w.run(&["eval", "--model", &whole, "--data", "two.csv", "--json", "--precision", precision]);
        let scored = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).find(|e| e["event"] == "eval");
        let [in_run, again] = [&metrics["eval"], &scored.unwrap()["metrics"]].map(|m| m["loss"].as_f64().unwrap());
        assert!(code == 0 && (in_run / again - 1.0).abs() < 1e-3, "{name}: {in_run} {again}");
    }
    w.refused("fgm", &common, &["--resume"], &["is now", "was"]);
    w.refused("thaw", &[&common[1..], &thaw].concat(), &["--resume"], &["train.ema_decay is now not set, and was 0.8"]);
}

#[test]
fn what_learns_is_told_and_costs_memory() {
    let w = Workplace::new();
    let start = |output: &str, set: &[&str]| {
        let set = [set, &["train.max_steps=1"]].concat();
        events(&w.train(output, &set, &["--dry-run"]), "start")[0].clone()
    };
    let number = |start: &Value, key: &str| start[key].as_u64().unwrap();
    let plain = start("a", &[]);
    let frozen = start("b", &["train.freeze_layers=3"]);
    let all = number(&plain, "parameters");
    assert_eq!(number(&plain, "trainable_parameters"), all);
    // One layer of 128, the pooler and two labels.
    assert_eq!(number(&frozen, "trainable_parameters"), 198_272 + 128 * 128 + 128 + 2 * 129);
    let average = start("c", &["train.ema_decay=0.99"]);
    let key = "estimated_growth_bytes";
    let more = number(&average, key) as f64 - number(&plain, key) as f64;
    assert!((more / (4 * all) as f64 - 1.0).abs() < 0.01, "{more}");
    let drawn = start("d", &["train.reinit_layers=1"]);
    assert_eq!(names(&drawn["initialised"]).len(), names(&plain["initialised"]).len() + 16);
    assert_eq!(number(&drawn, "loaded") + 16, number(&plain, "loaded"));
}

#[test]
fn a_run_too_short_to_thaw_all_is_warned_of() {
    let w = Workplace::new();
    let warned = |set: &[&str]| {
        let ran = w.train("a", &[set, &["train.unfreeze_layers_per_epoch=1"]].concat(), &["--dry-run"]);
        let all = events(&ran, "warning").into_iter().map(|e| e["message"].as_str().unwrap().to_owned());
        all.filter(|m| m.contains("unfreeze")).collect::<Vec<_>>()
    };
    let says = warned(&[]).concat();
    assert!(says.contains("the embeddings and layers 0 to 1; train for 6 epochs or more"), "{says}");
    assert!(says.contains("set train.freeze_layers = 2"), "{says}");
    assert_eq!(warned(&["train.freeze_layers=2"]), [""; 0]);
    assert_eq!(warned(&["train.epochs=6"]), [""; 0]);
    let (code, text) =
        w.run(&["config", "validate", "--config", "c.toml", "--set", "train.unfreeze_layers_per_epoch=2", "--json"]);
    assert!(code == 0 && text.contains("comes to the embeddings; train for 4 epochs"), "{text}");
}

#[test]
fn an_earlier_run_is_a_model_to_begin_with() {
    let w = Workplace::new();
    w.train("first", &["train.max_steps=2", "train.learning_rate=1e-2"], &[]);
    let begin = |output: &str, set: &[&str]| {
        let ran = w.train(output, &[set, &["model.path=first", "train.max_steps=1"]].concat(), &[]);
        let initialised = names(&events(&ran, "start")[0]["initialised"]).join(" ");
        (initialised, events(&ran, "step")[0]["loss"].as_f64().unwrap())
    };
    let head = "classifier.weight classifier.bias";
    assert_eq!(begin("same", &[]).0, "");
    assert_eq!(begin("other", &["data.train=three.csv", "data.eval=three.csv"]).0, head);
    let (initialised, _) =
        begin("numbers", &["task.kind=regression", "data.train=numbers.csv", "data.eval=numbers.csv"]);
    assert_eq!(initialised, head);
    // And back: a run of another kind, whose model knows no labels.
    let ran = w.train("back", &["model.path=numbers", "train.max_steps=1"], &[]);
    assert_eq!(names(&events(&ran, "start")[0]["initialised"]).join(" "), head);
    let shown = fs::read_to_string(w.path("back/config.toml")).unwrap();
    assert!(shown.contains("numbers/model"), "{shown}");
    w.refused("first", &["model.path=first"], &["--overwrite"], &["lies in the run that would be written"]);
}

#[test]
fn options_that_cannot_be_are_refused() {
    let w = Workplace::new();
    let refused = |set: &[&str], says: &[&str]| w.refused("no", set, &["--dry-run"], says);
    refused(&["train.freeze=[\"encoder.layer.*.atention\"]"], &["no module", "encoder.layer.*.attention"]);
    refused(&["train.freeze_layers=9"], &["train.freeze_layers is 9, but the model has 4 layers"]);
    refused(&["train.lr_scheduler_kwargs={ num_cycle = 2 }"], &["num_cycle", "num_cycles"]);
    refused(&["train.lr_scheduler_kwargs={ num_cycles = 2 }"], &["has num_cycles", "it takes none"]);
    refused(&["train.lr_scheduler_type=cosine_with_restart"], &["expected one of linear", "cosine_with_restarts"]);
    refused(&["train.r_drop=1", "task.kind=regression"], &["train.r_drop", "regression has no probabilities"]);
    refused(
        &["train.fgm_epsilon=1", "train.freeze=[\"embeddings\"]"],
        &["train.fgm_epsilon", "kept as they are by train.freeze"],
    );
    let (code, text) = w.run(&["config", "validate", "--config", "c.toml", "--set", "train.reinit_layers=5"]);
    assert!(code == 2 && text.contains("train.reinit_layers is 5"), "{text}");
    let kwargs = "train.lr_scheduler_kwargs={ num_cycles = 2 }";
    let set = ["--set", "train.lr_scheduler_type=cosine", "--set", kwargs];
    let (code, text) = w.run(&[&["config", "show", "--config", "c.toml"], &set[..]].concat());
    assert!(code == 0 && text.contains("num_cycles = 2.0") && text.contains("ema_decay = 0.0"), "{text}");
}
