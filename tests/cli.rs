//! `train`, `eval` and `predict` as users and scripts see them: output, files, exit codes and messages.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

/// A directory with a small two-class task that a few steps learn.
struct Workplace(TempDir);

impl Workplace {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let rows = |n: usize| {
            let texts = [
                "a wonderful and moving film",
                "dull, boring and far too long",
                "i loved every minute",
                "a waste of time",
            ];
            let row = |i: usize| format!("\"{} {i}\",{}\r\n", texts[i % 4], ["good", "bad"][i % 2]);
            "text,label\r\n".to_owned() + &(0..n).map(row).collect::<String>()
        };
        this.write("train.csv", rows(48));
        this.write("dev.csv", rows(8));
        this.write("cls.toml", config("eval = \"dev.csv\"\ntest = \"dev.csv\"", ""));
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_with_input(args, "")
    }

    fn run_with_input(&self, args: &[&str], input: &str) -> Ran {
        let mut command = Command::cargo_bin("bertft").unwrap();
        let output = command.current_dir(self.0.path()).args(args).write_stdin(input).output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn trained() -> Self {
        let this = Self::new();
        let ran = this.run(&["train", "--config", "cls.toml"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        this
    }
}

fn config(data: &str, train: &str) -> String {
    format!(
        "[model]\npath = \"{MODEL}\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"train.csv\"\n{data}\n\
         max_length = 32\n[train]\nepochs = 4\nbatch_size = 8\nlearning_rate = 1e-3\n{train}\n[output]\ndir = \"run\"\n"
    )
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
    }

    /// Failed as bad input does, with all of these in the message.
    #[track_caller]
    fn refused(&self, says: &[&str]) {
        assert_eq!(self.code, 2, "{}{}", self.out, self.err);
        for s in says {
            assert!(self.err.contains(s), "no {s:?} in: {}", self.err);
        }
        assert!(!self.err.contains("panicked"), "{}", self.err);
    }
}

#[test]
fn train_speaks_json_and_writes_the_run_directory() {
    let w = Workplace::new();
    let ran = w.run(&["train", "--config", "cls.toml", "--json", "--set", "train.logging_steps=5"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let events = ran.lines();
    let kinds: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(kinds[..4], ["start", "data", "data", "data"]);
    for (kind, count) in [("step", 4), ("eval", 5), ("done", 1)] {
        assert_eq!(kinds.iter().filter(|k| **k == kind).count(), count, "{kind}: {kinds:?}");
    }
    let done = events.last().unwrap();
    assert_eq!((done["steps"].as_u64(), done["epochs"].as_f64()), (Some(24), Some(4.0)));
    for key in ["train_seconds", "samples_per_second", "tokens_per_second", "first_step_seconds", "peak_rss_bytes"] {
        assert!(done[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(done["metrics"]["test"]["accuracy"], 1.0, "the task is easy");
    assert_eq!(serde_json::from_str::<Value>(&w.read("run/metrics.json")).unwrap(), done["metrics"]);
    // events.jsonl holds the same events, each with its time.
    let logged: Vec<Value> = w.read("run/events.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(logged.len(), events.len());
    for (mut logged, event) in logged.into_iter().zip(&events) {
        assert!(logged.as_object_mut().unwrap().remove("time").unwrap().as_f64().unwrap() > 1e9);
        assert_eq!(&logged, event);
    }
    let manifest: Value = serde_json::from_str(&w.read("run/run.json")).unwrap();
    assert_eq!(manifest["labels"], serde_json::json!(["bad", "good"]));
    assert_eq!(manifest["data"]["train"]["sha256"].as_str().unwrap().len(), 64);
    let model: Value = serde_json::from_str(&w.read("run/model/config.json")).unwrap();
    assert_eq!(model["id2label"]["1"], "good");
    assert_eq!(model["problem_type"], "single_label_classification");
    for file in
        ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md", "bertft.json"]
    {
        assert!(w.path("run/model").join(file).is_file(), "{file}");
    }
    // The saved config reproduces the run.
    let again = w.run(&["train", "--config", "run/config.toml", "--output", "again", "--quiet"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert_eq!(w.read("again/metrics.json"), w.read("run/metrics.json"));
    assert!(
        fs::read(w.path("again/model/model.safetensors")).unwrap()
            == fs::read(w.path("run/model/model.safetensors")).unwrap()
    );
}

#[test]
fn eval_scores_and_gates() {
    let w = Workplace::trained();
    let ran = w.run(&["eval", "--model", "run", "--data", "dev.csv", "--json"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let [eval] = &ran.lines()[..] else { panic!("{}", ran.out) };
    assert_eq!((eval["event"].as_str(), eval["samples"].as_u64()), (Some("eval"), Some(8)));
    let logged: Value = serde_json::from_str(&w.read("run/metrics.json")).unwrap();
    assert_eq!(eval["metrics"], logged["test"]);
    assert_eq!(eval["confusion_matrix"], serde_json::json!([[4, 0], [0, 4]]));

    let shown = w.run(&["eval", "--model", "run/model", "--data", "dev.csv"]);
    assert!(shown.out.contains("accuracy") && shown.out.contains("good"), "{}", shown.out);
    let gate = |args: &[&str]| w.run(&[&["eval", "--model", "run", "--data", "dev.csv"], args].concat());
    assert_eq!(gate(&["--fail-under", "accuracy=0.9", "--fail-over", "loss=5"]).code, 0);
    let missed = gate(&["--fail-over", "loss=0"]);
    assert_eq!(missed.code, 3);
    assert!(missed.err.contains("loss"), "{}", missed.err);
    gate(&["--fail-under", "acuracy=0.9"]).refused(&["acuracy", "accuracy"]);
    gate(&["--fail-under", "accuracy=high"]).refused(&["accuracy=high"]);
    w.write("bad.csv", "text,label\nfine,good\nwhat,goood\n");
    w.run(&["eval", "--model", "run", "--data", "bad.csv"]).refused(&["bad.csv:3: ", "goood", "good"]);
    let json = w.run(&["eval", "--model", "run", "--data", "bad.csv", "--json"]);
    let error = &json.lines()[0];
    assert_eq!(
        (error["event"].as_str(), error["code"].as_u64(), error["line"].as_u64()),
        (Some("error"), Some(2), Some(3))
    );
    assert_eq!(error["file"], "bad.csv");
}

#[test]
fn predict_keeps_order_and_ids() {
    let w = Workplace::trained();
    let texts = "i loved it\n\na waste of time, dull and boring\n".to_owned() + &"a wonderful film\n".repeat(3000);
    let ran = w.run_with_input(&["predict", "--model", "run"], &texts);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let rows = ran.lines();
    assert_eq!(rows.len(), 3003);
    assert!(rows.iter().enumerate().all(|(i, r)| r["row"].as_u64() == Some(i as u64 + 1)));
    assert_eq!((rows[0]["label"].as_str(), rows[2]["label"].as_str()), (Some("good"), Some("bad")));
    let scores = rows[2]["scores"].as_object().unwrap();
    assert!((scores.values().map(|v| v.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-6);
    assert_eq!(rows[2]["score"], scores["bad"]);

    w.write("in.jsonl", "{\"id\": \"x\", \"text\": \"i loved it\"}\n{\"id\": 7, \"text\": \"boring\"}\n");
    let ran = w.run(&["predict", "--model", "run", "in.jsonl", "--output", "out.jsonl"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    let ids: Vec<Value> =
        w.read("out.jsonl").lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["id"].clone()).collect();
    assert_eq!(ids, ["x".into(), Value::from(7)]);
    // The output may be the input.
    let ran = w.run(&["predict", "--model", "run", "in.jsonl", "--output", "in.jsonl"]);
    assert_eq!((ran.code, w.read("in.jsonl")), (0, w.read("out.jsonl")));
    // JSONL on standard input, told by its first byte.
    let ran = w.run_with_input(&["predict", "--model", "run", "-"], "{\"text\": \"boring\"}\n{\"text\": 3}\n{broken\n");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("standard input:"), "{}", ran.err);
    w.run(&["predict", "--model", "./nowhere"]).refused(&["nowhere", "not a directory"]);
    w.run(&["predict", "--model", MODEL]).refused(&["no classifier"]);
}

#[test]
fn an_existing_run_is_refused_overwritten_or_resumed() {
    let w = Workplace::trained();
    w.run(&["train", "--config", "cls.toml"]).refused(&["already holds a run", "--resume", "--overwrite"]);
    let first = fs::read(w.path("run/model/model.safetensors")).unwrap();
    // A finished run resumes to the same result.
    let ran = w.run(&["train", "--config", "cls.toml", "--resume", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert_eq!(ran.lines()[0]["resumed_from"], 24);
    assert!(fs::read(w.path("run/model/model.safetensors")).unwrap() == first);
    w.write("run/mine.txt", "keep me");
    assert_eq!(w.run(&["train", "--config", "cls.toml", "--overwrite", "--set", "train.max_steps=2"]).code, 0);
    assert_eq!(w.read("run/mine.txt"), "keep me");
    assert!(fs::read(w.path("run/model/model.safetensors")).unwrap() != first);
    w.run(&["train", "--config", "cls.toml", "--output", "new", "--resume"]).refused(&["no checkpoint"]);
    // Other rows, labels or batches would make another run of it.
    let resume = |set: &str| w.run(&["train", "--config", "cls.toml", "--resume", "--set", set]);
    resume("train.seed=7").refused(&["train.seed is now 7", "was 42"]);
    resume("train.batch_size=4").refused(&["train.batch_size"]);
    resume("data.labels=[\"good\", \"bad\"]").refused(&["the list of labels"]);
    resume("data.train=dev.csv").refused(&["digest of the train rows"]);
    // Nothing that is read may be written over.
    let args = ["train", "--config", "cls.toml", "--overwrite", "--set", "model.path=./run/model"];
    w.run(&args).refused(&["run/model", "another --output"]);
    assert!(w.path("run/model/tokenizer.json").is_file());
    w.run(&["train", "--config", "cls.toml", "--resume", "--overwrite"]).refused(&["cannot be used with"]);
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let w = Workplace::new();
    let args =
        ["train", "--config", "cls.toml", "--json", "--set", "train.logging_steps=3", "--set", "train.save_steps=4"];
    assert_eq!(w.run(&[&args[..], &["--output", "whole", "--set", "train.save_total_limit=0"]].concat()).code, 0);
    // Back to step 16, in the middle of an epoch.
    fs::create_dir_all(w.path("cut")).unwrap();
    let copy = |name: &str| fs::copy(w.path("whole").join(name), w.path("cut").join(name)).unwrap();
    fs::create_dir_all(w.path("cut/checkpoints/step-16")).unwrap();
    fs::create_dir_all(w.path("cut/model")).unwrap();
    for file in ["events.jsonl", "checkpoints/step-16/state.json", "checkpoints/step-16/state.safetensors"] {
        copy(file);
    }
    let ran = w.run(&[&args[..], &["--output", "cut", "--resume"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.out);
    assert_eq!(ran.lines()[0]["resumed_from"], 16);
    assert_eq!(w.read("cut/metrics.json"), w.read("whole/metrics.json"));
    let weights = |run: &str| fs::read(w.path(run).join("model/model.safetensors")).unwrap();
    assert!(weights("cut") == weights("whole"));
    let losses = |run: &str| -> Vec<(u64, f64)> {
        let events = w.read(&format!("{run}/events.jsonl"));
        let events = events.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        events
            .filter(|e| e["event"] == "step")
            .map(|e| (e["step"].as_u64().unwrap(), e["loss"].as_f64().unwrap()))
            .collect()
    };
    assert_eq!(losses("cut"), losses("whole"));
    assert_eq!(losses("whole").len(), 8);
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_does_not_stop_training() {
    let w = Workplace::new();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("bertft"))
        .current_dir(w.0.path())
        .args(["train", "--config", "cls.toml", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(w.read("run/events.jsonl").lines().last().unwrap().contains("\"done\""));
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_a_checkpoint_and_exits_with_4() {
    use std::os::unix::process::CommandExt;
    let w = Workplace::new();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("bertft"));
    // A shell that runs the tests in the background has them ignore the signal, and `bertft` would respect that.
    // SAFETY: `signal` may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        })
    };
    let mut child = command
        .current_dir(w.0.path())
        .args([
            "train",
            "--config",
            "cls.toml",
            "--json",
            "--set",
            "train.epochs=100000",
            "--set",
            "train.logging_steps=1",
        ])
        .args(["--set", "train.eval_steps=100000000", "--set", "train.save_steps=100000000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    lines.by_ref().find(|l| l.as_ref().unwrap().contains("\"step\"")).unwrap().unwrap();
    // SAFETY: the child is alive, its pid is its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let last = lines.last().unwrap().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let error: Value = serde_json::from_str(&last).unwrap();
    assert!(error["code"] == 4 && error["message"].as_str().unwrap().contains("--resume"), "{last}");
    assert_eq!(fs::read_dir(w.path("run/checkpoints")).unwrap().count(), 1);
}

#[test]
fn a_dry_run_checks_and_writes_nothing() {
    let w = Workplace::new();
    let ran = w.run(&["train", "--config", "cls.toml", "--dry-run"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("24 steps") && ran.err.contains("newly initialised"), "{}", ran.err);
    assert!(ran.out.contains("cls.toml: valid"), "{}", ran.out);
    assert!(!w.path("run").exists());
}

#[test]
fn a_diverging_run_stops_with_the_step_and_the_rows() {
    let w = Workplace::new();
    let ran = w.run(&[
        "train",
        "--config",
        "cls.toml",
        "--set",
        "train.learning_rate=1e30",
        "--set",
        "train.max_grad_norm=0",
    ]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    for says in ["step ", "train.csv lines ", "learning_rate"] {
        assert!(ran.err.contains(says), "{}", ran.err);
    }
    assert!(!w.path("run/model").exists());
}

#[test]
fn bad_data_is_refused_with_its_place() {
    let w = Workplace::new();
    let train = |args: &[&str]| w.run(&[&["train", "--config", "cls.toml"], args].concat());
    train(&["--set", "data.train=missing.csv"]).refused(&["missing.csv"]);
    w.write("empty.csv", "");
    train(&["--set", "data.train=empty.csv"]).refused(&["empty.csv"]);
    w.write("header.csv", "text,label\n");
    train(&["--set", "data.train=header.csv"]).refused(&["header.csv", "no rows"]);
    train(&["--set", "data.text=txt"]).refused(&["train.csv", "txt", "text"]);
    w.write("ragged.csv", "text,label\na,good\n\"two\nlines\",bad\nb,good,extra\n");
    train(&["--set", "data.train=ragged.csv"]).refused(&["ragged.csv:5: ", "3", "2"]);
    train(&["--set", "data.labels=[\"good\", \"fine\"]"]).refused(&["train.csv:3: ", "bad", "good"]);
    w.write("new.csv", "text,label\nx,unheard\n");
    train(&["--set", "data.test=new.csv"]).refused(&["new.csv:2: ", "unheard"]);
    w.write("latin.csv", b"text,label\ncaf\xe9,good\n");
    train(&["--set", "data.train=latin.csv"]).refused(&["latin.csv:2", "UTF-8"]);
    w.write("numbers.csv", "text,label\na,1.5\nb,high\n");
    train(&["--set", "task.kind=regression", "--set", "data.train=numbers.csv", "--set", "data.eval=0.5"])
        .refused(&["numbers.csv:3: ", "high"]);
    assert!(!w.path("run").exists(), "nothing is written before all is checked");
}

#[test]
fn bad_settings_are_refused() {
    let w = Workplace::new();
    let train = |args: &[&str]| w.run(&[&["train", "--config", "cls.toml"], args].concat());
    w.write("typo.toml", config("", "learning_rat = 1e-4"));
    w.run(&["train", "--config", "typo.toml"]).refused(&["typo.toml:13", "learning_rat", "learning_rate"]);
    train(&["--set", "train.learning_rate=-1"]).refused(&["learning_rate", "-1"]);
    train(&["--set", "data.max_length=513"]).refused(&["max_length", "513", "512"]);
    train(&["--set", "data.max_length=2"]).refused(&["max_length", "3"]);
    train(&["--set", "train.metric_for_best_model=accurracy"]).refused(&["accurracy", "accuracy"]);
    train(&["--device", "cuda"]).refused(&["cuda"]);
    train(&["--output", "train.csv"]).refused(&["train.csv", "file"]);
    let ran = Command::cargo_bin("bertft").unwrap().env("BERTFT_CPU", "avx22").arg("info").output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    train(&["--set", "train.precision=bf17"]).refused(&["bf17", "bf16"]);
}

/// A copy of the example model to damage.
fn model_copy(w: &Workplace, name: &str) -> PathBuf {
    let dir = w.path(name);
    fs::create_dir(&dir).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(MODEL).join(file), dir.join(file)).unwrap();
    }
    dir
}

#[test]
fn bad_models_are_refused() {
    let w = Workplace::new();
    let train = |model: &Path| {
        w.run(&["train", "--config", "cls.toml", "--set", &format!("model.path={:?}", model.to_str().unwrap())])
    };
    let edit = |dir: &Path, from: &str, to: &str| {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let dir = model_copy(&w, "cut");
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    train(&dir).refused(&["model.safetensors", "not a whole safetensors file"]);
    let dir = model_copy(&w, "deep");
    edit(&dir, "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
    train(&dir).refused(&["model.safetensors", "16 tensors are missing", "does not match"]);
    let dir = model_copy(&w, "wide");
    edit(&dir, "\"intermediate_size\": 512", "\"intermediate_size\": 256");
    train(&dir).refused(&["intermediate.dense.weight", "[512, 128]", "[256, 128]"]);
    let dir = model_copy(&w, "other");
    edit(&dir, "\"model_type\": \"bert\"", "\"model_type\": \"gpt2\"");
    train(&dir).refused(&["config.json", "gpt2", "supported: bert"]);
    let dir = model_copy(&w, "untokenised");
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    train(&dir).refused(&["tokenizer.json"]);
    let dir = model_copy(&w, "garbled");
    fs::write(dir.join("config.json"), "{\n\"model_type\": \"bert\",\n").unwrap();
    train(&dir).refused(&["config.json:3", "JSON"]);
}

#[test]
fn pairs_and_regression_train_and_predict() {
    let w = Workplace::new();
    let rows: String = (0..40)
        .map(|i| {
            format!(
                "a man plays guitar {i}\t{}\t{}\n",
                ["a person plays music", "the stock fell \"sharply"][i % 2],
                [4.5, 0.5][i % 2]
            )
        })
        .collect();
    w.write("sts.tsv", rows);
    let sets = [
        "task.kind=regression",
        "data.train=sts.tsv",
        "data.eval=0.2",
        "data.header=false",
        "data.text=0",
        "data.text_pair=1",
        "data.label=2",
    ];
    let mut args = vec![
        "train",
        "--config",
        "cls.toml",
        "--json",
        "--set",
        "train.metric_for_best_model=pearson",
        "--set",
        "data.test=sts.tsv",
    ];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let ran = w.run(&args);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let done = ran.lines().pop().unwrap();
    assert!(done["metrics"]["test"]["pearson"].as_f64().unwrap() > 0.9, "{done}");
    assert_eq!(done["metrics"]["eval"].as_object().unwrap().len(), 6);
    let ran = w.run_with_input(&["predict", "--model", "run"], "{\"text\": \"a man\", \"text_pair\": \"a person\"}\n");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let row = &ran.lines()[0];
    assert!(row["score"].is_f64() && row.get("label").is_none(), "{row}");
    assert_eq!(w.run(&["eval", "--model", "run", "--data", "sts.tsv", "--fail-under", "pearson=0.9"]).code, 0);
}

#[test]
fn early_stopping_and_the_best_model() {
    let w = Workplace::new();
    // After the peak the rate is so high that the score falls: the best model is an earlier one.
    let ran = w.run(&[
        "train",
        "--config",
        "cls.toml",
        "--json",
        "--set",
        "train.eval_steps=2",
        "--set",
        "train.early_stopping_patience=3",
        "--set",
        "train.epochs=50",
        "--set",
        "train.learning_rate=0.05",
        "--set",
        "train.lr_scheduler_type=constant",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.out);
    let events = ran.lines();
    let evals: Vec<&Value> = events.iter().filter(|e| e["event"] == "eval" && e["split"] == "eval").collect();
    let best = evals.iter().rposition(|e| e["best"] == true).unwrap();
    assert_eq!(best + 1 + 3, evals.len(), "stops after three evaluations without gain");
    let done = events.last().unwrap();
    assert!(done["steps"].as_u64().unwrap() < 300);
    assert_eq!(done["metrics"]["eval"], evals[best]["metrics"]);
    assert!(
        evals
            .iter()
            .all(|e| e["metrics"]["loss"].as_f64().unwrap() >= evals[best]["metrics"]["loss"].as_f64().unwrap())
    );
    // dev.csv is also the test file: the test score is that of the best model.
    assert_eq!(done["metrics"]["test"], evals[best]["metrics"]);
}
