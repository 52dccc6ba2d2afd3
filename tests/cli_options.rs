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

/// A row with what `predict` says about it: whether its label is the positive one, that one's probability, the predicted
/// label, the channel.
type Row = (bool, f64, String, String);

/// The rows of a file.
fn predicted(w: &Workplace, model: &str, file: &str) -> Vec<Row> {
    let ran = w.run(&["predict", "--model", model, file]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let answers = ran.out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let mut csv = csv::Reader::from_path(w.path(file)).unwrap();
    let rows = csv.records().map(|r| r.unwrap());
    rows.zip(answers)
        .map(|(row, answer)| {
            let p = number(&answer["scores"][POSITIVE]);
            (&row[2] == POSITIVE, p, answer["label"].as_str().unwrap().to_owned(), row[1].to_owned())
        })
        .collect()
}

/// Share of pairs of a positive and a negative row that the probabilities order rightly, a tie counting half.
fn roc_auc(rows: &[Row]) -> f64 {
    let of = |positive: bool| rows.iter().filter(move |r| r.0 == positive).map(|r| r.1);
    let pairs: Vec<f64> = of(true)
        .flat_map(|p| {
            of(false).map(move |n| {
                if p > n {
                    1.0
                } else if p == n {
                    0.5
                } else {
                    0.0
                }
            })
        })
        .collect();
    pairs.iter().sum::<f64>() / pairs.len() as f64
}

#[test]
fn ranking_threshold_and_slices() {
    let w = Workplace::new();
    let set = ["eval.tune_threshold=f1", "eval.slice_by=channel", "train.metric_for_best_model=roc_auc"];
    let ran = w.train(&set, &[]);
    let evals = ran.events("eval");
    // Two epochs, the tuned eval set, the test set.
    assert_eq!(evals.len(), 4);
    let [tuned, test] = &evals[2..] else { panic!() };
    assert_eq!((tuned["split"].as_str(), test["split"].as_str()), (Some("eval"), Some("test")));
    assert!(evals[1]["metrics"].get("threshold").is_none());
    let threshold = number(&tuned["metrics"]["threshold"]);
    assert_eq!(number(&test["metrics"]["threshold"]), threshold);
    assert_eq!(number(&w.json("run/model/bertft.json")["threshold"]), threshold);
    let done = &ran.events("done")[0]["metrics"];
    assert_eq!((&done["eval"], &done["test"]), (&tuned["metrics"], &test["metrics"]));
    assert_eq!((&done["slices"]["eval"], &done["slices"]["test"]), (&tuned["slices"], &test["slices"]));
    assert_eq!(&w.json("run/metrics.json"), done);

    // What predict says is what was scored: its labels follow the threshold, no other threshold has a better F1.
    let rows = predicted(&w, "run", "dev.csv");
    assert_eq!(rows.len(), 36);
    let f1 = |calls: &dyn Fn(&Row) -> bool| {
        let both = rows.iter().filter(|r| calls(r) && r.0).count() as f64;
        2.0 * both / (rows.iter().filter(|r| calls(r)).count() as f64 + 20.0)
    };
    let got = f1(&|r| r.2 == POSITIVE);
    assert!(rows.iter().all(|r| (r.2 == POSITIVE) == (r.1 >= threshold)));
    assert!((got - number(&tuned["metrics"]["f1"])).abs() < 1e-9, "{got} {tuned}");
    for row in &rows {
        assert!(f1(&|r| r.1 >= row.1) <= got + 1e-9, "{} is better than {threshold}", row.1);
    }
    let auc = number(&tuned["metrics"]["roc_auc"]);
    assert!((roc_auc(&rows) - auc).abs() < 1e-9 && auc > 0.5, "{auc}");
    assert!(number(&tuned["metrics"]["average_precision"]) > 0.5);

    // eval uses the threshold too, and has slices of its own.
    let ran = w.run(&["eval", "--model", "run", "--data", "dev.csv", "--json", "--slice-by", "channel"]);
    let eval = &ran.events("eval")[0];
    assert_eq!(eval["metrics"]["f1"], tuned["metrics"]["f1"]);
    assert_eq!(eval["metrics"]["threshold"], tuned["metrics"]["threshold"]);
    let slices = eval["slices"].as_object().unwrap();
    assert_eq!(slices.keys().collect::<Vec<_>>(), ["app", "post", "web"]);
    for (channel, slice) in slices {
        let rows: Vec<_> = rows.iter().filter(|r| r.3 == *channel).collect();
        assert_eq!(slice["samples"], rows.len());
        let right = rows.iter().filter(|r| (r.2 == POSITIVE) == r.0).count() as f64 / rows.len() as f64;
        assert!((number(&slice["metrics"]["accuracy"]) - right).abs() < 1e-9, "{channel}: {slice}");
    }
    assert!(slices["post"]["metrics"]["roc_auc"].is_number(), "one row of each label");
    let shown = w.run(&["eval", "--model", "run", "--data", "dev.csv", "--slice-by", "channel"]);
    assert!(shown.out.contains("dev.csv      rows        loss    accuracy"), "{}", shown.out);
    assert!(shown.out.lines().any(|l| l.starts_with("post            2  ")), "{}", shown.out);
    // A metric that is not defined does not pass a gate.
    let one = "text,channel,label\nmy card is gone,app,".to_owned() + POSITIVE + "\n";
    fs::write(w.path("one.csv"), one).unwrap();
    let gate = w.run(&["eval", "--model", "run", "--data", "one.csv", "--fail-under", "roc_auc=0"]);
    assert_eq!(gate.code, 3, "{}", gate.err);
    assert!(gate.err.contains("roc_auc is not defined"), "{}", gate.err);
    w.run(&["eval", "--model", "run", "--data", "dev.csv", "--slice-by", "chanel"]).refused(&["chanel", "channel"]);
}

#[test]
fn eval_options_that_cannot_do_anything_are_refused() {
    let w = Workplace::new();
    let refused = |set: &[&str], says: &[&str]| w.train(set, &["--dry-run"]).refused(says);
    refused(&["eval.tune_threshold=f2"], &["eval.tune_threshold is f2", "f1, accuracy, balanced_accuracy, mcc"]);
    refused(&["eval.slice_by=chanel"], &["chanel", "did you mean", "channel", "eval.slice_by"]);
    refused(
        &["eval.slice=channel"],
        &[
            "eval.slice is not a known key",
            "the keys of [eval] are tune_threshold, threshold_per_label, strict_tags, tag_decoding, n_best_size, max_answer_length, null_score_diff_threshold, slice_by",
        ],
    );
    refused(&["eval.tune_threshold=f1", "task.kind=regression"], &["eval.tune_threshold", "regression"]);
    fs::write(w.path("three.csv"), "text,label\na,x\nb,y\nc,z\nd,x\n").unwrap();
    let three = ["data.train=three.csv", "data.eval=three.csv", "data.test=three.csv"];
    refused(&[&three[..], &["eval.tune_threshold=f1"]].concat(), &["eval.tune_threshold", "3 labels"]);
    // Eval rows from the training file bring the column along.
    let ran = w.train(&["data.eval=0.25", "eval.slice_by=channel", "train.max_steps=1"], &[]);
    let eval = &ran.events("eval")[0];
    let counts = eval["slices"].as_object().unwrap().values().map(|s| s["samples"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), eval["samples"].as_u64().unwrap());
}

#[test]
fn batches_of_tokens_resume_to_the_same_bits() {
    let w = Workplace::new();
    for group in ["false", "true"] {
        let dir = |name: &str| format!("{name}-{group}");
        let group = format!("train.group_by_length={group}");
        let set = ["train.batch_tokens=96", "train.gradient_accumulation_steps=2", &group, "train.save_total_limit=0"];
        fs::write(w.path("c.toml"), w.read("c.toml").replace("batch_size = 8\n", "")).unwrap();
        let train = |name: &str, more: &[&str]| {
            w.train(&[&set[..], &["train.save_steps=3"]].concat(), &[&["--output", &dir(name)], more].concat())
        };
        let ran = train("whole", &[]);
        let (start, steps, done) = (&ran.events("start")[0], ran.events("step"), &ran.events("done")[0]);
        assert_eq!(start["total_steps"], done["steps"]);
        assert_eq!(steps.len() as u64, done["steps"].as_u64().unwrap());
        // Two whole epochs, an evaluation at the end of each.
        assert_eq!(done["epochs"], 2.0);
        let ends: Vec<f64> =
            ran.events("eval").iter().filter(|e| e["split"] == "eval").map(|e| number(&e["epoch"])).collect();
        assert_eq!(ends, [1.0, 2.0]);
        let data = &ran.events("data")[0];
        let fewest = 2.0 * number(&data["tokens"]) / (2.0 * 96.0);
        assert!((fewest..1.6 * fewest + 2.0).contains(&number(&done["steps"])), "{done} {fewest}");

        let cut = w.path(&dir("cut"));
        fs::create_dir_all(cut.join("checkpoints/step-6")).unwrap();
        fs::create_dir_all(cut.join("model")).unwrap();
        for file in ["events.jsonl", "checkpoints/step-6/state.json", "checkpoints/step-6/state.safetensors"] {
            fs::copy(w.path(&dir("whole")).join(file), cut.join(file)).unwrap();
        }
        assert_eq!(train("cut", &["--resume"]).events("start")[0]["resumed_from"], 6);
        let file = |name: &str, file: &str| fs::read(w.path(&dir(name)).join(file)).unwrap();
        assert!(file("cut", "model/model.safetensors") == file("whole", "model/model.safetensors"));
        assert_eq!(file("cut", "metrics.json"), file("whole", "metrics.json"));
        let other = w.train(&[&["train.batch_tokens=64"], &set[1..]].concat(), &["--resume", "--output", &dir("cut")]);
        other.refused(&["train.batch_tokens is now 64", "was 96"]);
    }
    w.train(&["train.batch_tokens=64", "train.batch_size=8"], &["--dry-run"])
        .refused(&["train.batch_tokens", "batch_size"]);
}

#[test]
fn several_eval_sets_by_name() {
    let w = Workplace::new();
    // In the order of the file, which is not the alphabet's.
    let sets = "data.eval={ hard = \"dev.csv\", dev = \"test.csv\" }";
    let ran = w.train(&[sets, "train.metric_for_best_model=accuracy"], &[]);
    let names = |events: &[Value]| -> Vec<String> {
        events.iter().map(|e| format!("{}/{}", e["split"].as_str().unwrap(), e["set"].as_str().unwrap_or(""))).collect()
    };
    assert_eq!(names(&ran.events("data")), ["train/", "eval/hard", "eval/dev", "test/"]);
    let evals = ran.events("eval");
    assert_eq!(names(&evals), ["eval/hard", "eval/dev", "eval/hard", "eval/dev", "test/"]);
    // The first decides which model is the best.
    assert_eq!((&evals[0]["best"], &evals[1]["best"]), (&Value::Bool(true), &Value::Bool(false)));
    let metrics = w.json("run/metrics.json");
    let keys: Vec<&String> = metrics.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["eval_hard", "eval_dev", "test"]);
    assert_eq!(metrics["eval_dev"], metrics["test"], "both are test.csv, scored with the best model");
    let best = if evals[2]["best"] == true { 2 } else { 0 };
    assert_eq!(metrics["eval_hard"], evals[best]["metrics"]);
    // Written and read again in that order, and resumed.
    let again = w.run(&["train", "--config", "run/config.toml", "--resume", "--json"]);
    assert_eq!(names(&again.events("data")), ["train/", "eval/hard", "eval/dev", "test/"]);
    assert_eq!(w.json("run/metrics.json"), metrics);

    let dev = w.train(&[sets, "train.metric_for_best_model=dev/f1", "train.max_steps=2"], &["--output", "dev"]);
    let evals = dev.events("eval");
    assert_eq!((&evals[0]["best"], &evals[1]["best"]), (&Value::Bool(false), &Value::Bool(true)));
    let refused = |set: &[&str], says: &[&str]| w.train(set, &["--dry-run", "--output", "no"]).refused(says);
    refused(&[sets, "train.metric_for_best_model=devs/f1"], &["devs", "hard, dev", "did you mean dev"]);
    refused(&["train.metric_for_best_model=dev/f1"], &["data.eval is no table of named sets"]);
    refused(&[sets, "train.metric_for_best_model=dev/pearson"], &["pearson", "accuracy"]);
}

#[test]
fn batches_that_were_made_smaller_stay_so_and_tf32_is_for_gpus() {
    let w = Workplace::new();
    let auto = "train.auto_find_batch_size=true";
    let warnings = |ran: &Ran| ran.events("warning").iter().map(|e| e["message"].to_string()).collect::<String>();
    let ran = w.train(&[auto, "train.tf32=true", "train.max_steps=2"], &[]);
    let said = warnings(&ran);
    // What is free is enough for these batches.
    assert!(said.contains("train.tf32 is for NVIDIA GPUs") && !said.contains("auto_find_batch_size"), "{said}");
    let with_batches_of = |rows: usize, step: usize| {
        let file = format!("run/checkpoints/step-{step}/state.json");
        let mut state = w.json(&file);
        assert!(state["state"]["batch_size"].is_null());
        state["state"]["batch_size"] = rows.into();
        fs::write(w.path(&file), state.to_string()).unwrap();
    };
    with_batches_of(2, 2);
    let ran = w.train(&[auto, "train.max_steps=3"], &["--resume"]);
    assert!(warnings(&ran).contains("batches have 2 rows, 4 of them to a step"), "{}", ran.out);
    assert_eq!((&ran.events("step")[0]["step"], ran.events("start")[0]["total_steps"].as_u64()), (&3.into(), Some(3)));
    let state = w.json("run/checkpoints/step-3/state.json");
    assert_eq!((&state["state"]["batch_size"], &state["state"]["samples"]), (&2.into(), &24.into()));
    fs::write(
        w.path("run/checkpoints/step-3/state.json"),
        state.to_string().replace("\"batch_size\":2", "\"batch_size\":3"),
    )
    .unwrap();
    w.train(&[auto, "train.max_steps=4"], &["--resume"])
        .refused(&["batches of 3 rows are no part of train.batch_size"]);
}
