//! What a config file means, and the message for each way to get it wrong.

use super::*;
use crate::data::config::{Column, EvalSource};
use crate::train::class_weights::ClassWeights;
use crate::train::scheduler::Scheduler;
use std::fs;
use tempfile::TempDir;

/// A directory with a model directory, three data files, and `c.toml`.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(train: &str) -> Self {
        Self::with(&format!(
            "[model]\npath = \"model\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"train.csv\"\n\
             [output]\ndir = \"runs/x\"\n[train]\n{train}\n"
        ))
    }

    fn with(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/config.json"), "{}").unwrap();
        for file in ["train.csv", "dev.csv", "test.csv"] {
            fs::write(dir.path().join(file), "text,label\n").unwrap();
        }
        fs::write(dir.path().join("c.toml"), config).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        // Temporary directories may lie behind a link.
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn load(&self, set: &[&str]) -> Result<RunConfig> {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        RunConfig::load(&self.path("c.toml"), &set)
    }

    /// The message without the temporary directory.
    fn error(&self, set: &[&str]) -> String {
        let message = self.load(set).unwrap_err().to_string();
        message.replace(&format!("{}/", self.path("").display().to_string().trim_end_matches('/')), "")
    }
}

/// The line of the first key in [train] of [`Place::new`].
const LINE: u64 = 10;

#[track_caller]
fn assert_error(train: &str, expected: &str) {
    let place = Place::new(train);
    assert_eq!(place.error(&[]), format!("c.toml:{LINE}: {expected}"));
    match place.load(&[]).unwrap_err() {
        Error::Input { file, line, .. } => {
            assert_eq!(file, Some(place.path("c.toml")));
            assert_eq!(line, Some(LINE));
        }
        e => panic!("{e:?}"),
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = Place::new("").load(&[]).unwrap();
    assert_eq!(config.train, TrainConfig { batch_size: Some(8), ..TrainConfig::default() });
    assert_eq!(config.train.learning_rate, 5e-5);
    assert_eq!(config.data.text, Column::Name("text".into()).into());
    assert_eq!(config.data.label, Column::Name("label".into()).into());
    assert!(config.data.header);
    assert_eq!(config.data.max_length, 128);
    assert_eq!(config.data.eval, None);
    assert_eq!(config.output.dir, Path::new("runs/x"));
}

#[test]
fn values_are_read() {
    let place = Place::new("epochs = 2\nlr_scheduler_type = \"constant_with_warmup\"\nsave_total_limit = 0");
    let config = place.load(&[]).unwrap();
    assert_eq!(config.train.epochs, 2.0);
    assert_eq!(config.train.lr_scheduler_type, Scheduler::ConstantWithWarmup);
    assert_eq!(config.train.save_total_limit, None);
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_error("learning_rat = 1", "train.learning_rat is not a known key; did you mean learning_rate?");
    assert_error("max_length = 64", "train.max_length is not a known key; did you mean data.max_length?");
    assert_error("num_train_epochs = 1", "train.num_train_epochs is not a known key; did you mean train.epochs?");
    let message = Place::new("xyz = 1").error(&[]);
    assert!(message.contains("the keys of [train] are epochs, max_steps, batch_size,"), "{message}");
    assert_eq!(Place::with("[modle]\n").error(&[]), "c.toml:1: modle is not a known key; did you mean model?");
    assert_eq!(
        Place::with("\nepochs = 1\n").error(&[]),
        "c.toml:2: epochs is not a known key; did you mean train.epochs?"
    );
}

#[test]
fn unknown_values_name_the_nearest() {
    assert_error(
        "lr_scheduler_type = \"cosin\"",
        "train.lr_scheduler_type is \"cosin\", expected one of linear, cosine, cosine_with_restarts, polynomial, \
         constant, constant_with_warmup, inverse_sqrt, one_cycle; did you mean cosine?",
    );
    let message = Place::new("metric_for_best_model = \"acuracy\"").error(&[]);
    assert!(message.starts_with("c.toml:10: train.metric_for_best_model is \"acuracy\""), "{message}");
    assert!(message.ends_with("did you mean accuracy?"), "{message}");
}

#[test]
fn wrong_types_say_found_and_expected() {
    assert_error("epochs = \"three\"", "train.epochs is \"three\", expected a number");
    assert_error("batch_size = 8.0", "train.batch_size is 8.0, expected a whole number, 0 or above");
    assert_error("batch_size = -8", "train.batch_size is -8, expected a whole number, 0 or above");
    assert_error("group_by_length = 1", "train.group_by_length is 1, expected true or false");
    assert_error("precision = 32", "train.precision is 32, expected a string");
    assert_error("seed = 0x8000000000000000", "train.seed is 0x8000000000000000, expected a whole number below 2^63");
    assert_eq!(Place::with("\ndata = 3\n").error(&[]), "c.toml:2: data is 3, expected a table");
}

#[test]
fn wrong_ranges_say_found_and_expected() {
    assert_error("batch_size = 0", "train.batch_size is 0, expected 1 to 1000000");
    assert_error("learning_rate = nan", "train.learning_rate is NaN, expected a finite number above 0");
    assert_error(
        "early_stopping_patience = 2",
        "train.early_stopping_patience is set, but there is no eval data; set data.eval to a file or to a fraction such as 0.1",
    );
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(Place::with("").error(&[]), "c.toml: model is missing; add [model] with path = \"DIR\"");
    let config =
        "\n[model]\npath = \".\"\n[task]\nkind = \"regression\"\n[data]\ntext = \"a\"\n[output]\ndir = \"x\"\n";
    assert_eq!(
        Place::with(config).error(&[]),
        "c.toml:6: data.train is missing; add train = \"FILE\", the rows to learn from"
    );
}

#[test]
fn bad_toml_has_its_line() {
    let message = Place::new("epochs = 3\nepochs = 4").error(&[]);
    assert_eq!(message, "c.toml:11: is not valid TOML: duplicate key");
    let place = Place::new("");
    fs::write(place.path("c.toml"), b"[model]\npath = \"\xff\"\n").unwrap();
    assert_eq!(place.error(&[]), "c.toml:2: is not UTF-8 text; save the file as UTF-8");
}

#[test]
fn tasks_of_later_versions_are_told_from_typos() {
    let place = Place::new("");
    let later = place.error(&["task.kind=mlm"]);
    assert!(later.contains("\"mlm\" is not in this version; it has classification, multilabel"), "{later}");
    assert!(place.error(&["task.kind=regresion"]).ends_with("; did you mean regression?"));
}

#[test]
fn class_weights_are_a_word_or_a_table() {
    let place = Place::new("class_weights = { \"very good\" = 2, bad = 0.5 }\nfocal_gamma = 1");
    let config = place.load(&[]).unwrap();
    let table = [("bad".to_owned(), 0.5), ("very good".to_owned(), 2.0)].into();
    assert_eq!(config.train.class_weights, Some(ClassWeights::Table(table)));
    // Written and read again.
    let copy = place.path("copy.toml");
    fs::write(&copy, config.to_toml().unwrap()).unwrap();
    assert_eq!(RunConfig::load(&copy, &[]).unwrap(), config);
    let set = place.load(&["train.class_weights=balanced"]).unwrap();
    assert_eq!(set.train.class_weights, Some(ClassWeights::Balanced));
    let set = place.load(&["train.class_weights.bad=3"]).unwrap().train.class_weights;
    assert_eq!(set, Some(ClassWeights::Table([("bad".to_owned(), 3.0), ("very good".to_owned(), 2.0)].into())));
    let expected = "expected \"balanced\" or a table of weights by label, such as { positive = 2.0, negative = 1.0 }";
    assert_error("class_weights = \"balance\"", &format!("train.class_weights is \"balance\", {expected}"));
    assert_error("class_weights = 2.0", &format!("train.class_weights is 2.0, {expected}"));
    assert_error("class_weights = { a = \"x\" }", "train.class_weights.a is \"x\", expected a number");
    assert_error(
        "class_weights = { a = 0 }",
        "train.class_weights has 0 for the label \"a\", expected a number above 0, at most 1e6",
    );
    assert_error("focal_gamma = -1", "train.focal_gamma is -1, expected a number from 0 (off) to 10");
}

#[test]
fn a_batch_is_so_many_rows_or_so_many_tokens() {
    let place = Place::new("batch_tokens = 512");
    let config = place.load(&[]).unwrap();
    assert_eq!((config.train.batch_size, config.train.batch_tokens), (None, Some(512)));
    let copy = place.path("copy.toml");
    fs::write(&copy, config.to_toml().unwrap()).unwrap();
    assert_eq!(RunConfig::load(&copy, &[]).unwrap(), config);
    assert_eq!(
        place.error(&["train.batch_size=8"]),
        "c.toml:10: train.batch_tokens is set beside train.batch_size, and a batch is either so many tokens or so many rows; \
         remove one"
    );
    assert_error("batch_tokens = 0", "train.batch_tokens is 0, expected 1 to 100000000");
}

#[test]
fn set_goes_over_the_file() {
    let place = Place::new("epochs = 3\nbatch_size = 16");
    let config = place
        .load(&["train.epochs=1", "train.epochs = 5", "data.text=2", "data.label=a#b", "data.labels=[\"x\", \"y\"]"])
        .unwrap();
    assert_eq!(config.train.epochs, 5.0);
    assert_eq!(config.train.batch_size, Some(16));
    assert_eq!(config.data.text, Column::Index(2).into());
    assert_eq!(config.data.label, Column::Name("a#b".into()).into());
    assert_eq!(config.data.labels, Some(vec!["x".into(), "y".into()]));
    // A right value repairs a wrong one in the file, before anything is checked.
    assert_eq!(Place::new("epochs = -1").load(&["train.epochs=1"]).unwrap().train.epochs, 1.0);
}

#[test]
fn set_makes_tables() {
    let place = Place::with("[model]\npath = \"model\"\n[data]\ntrain = \"train.csv\"\n");
    let config = place.load(&["task.kind=regression", "output.dir=3", "train.epochs=1"]);
    assert_eq!(config.unwrap_err().to_string(), "--set output.dir=3: output.dir is 3, expected a file name (string)");
    let config = place.load(&["task.kind=regression", "output.dir=o", "train.epochs=1"]).unwrap();
    assert_eq!(config.task.kind, TaskKind::Regression);
}

#[test]
fn errors_of_set_name_the_argument() {
    let place = Place::new("epochs = 3");
    let cases = [
        ("train.lr=1", "train.lr is not a known key; did you mean train.learning_rate?"),
        ("train.epochs=many", "train.epochs is many, expected a number"),
        ("train.epochs=0", "train.epochs is 0, expected a number above 0, at most 1e6"),
        ("train.epochs.x=0", "train.epochs is not a table; check the key's path"),
        ("data.labels=[\"a\", 3]", "data.labels is 3, expected a string"),
        ("data.labels=[\"a\"", "the value is not valid TOML; check quotes and brackets"),
        ("epochs=3", "expected key=value with the key's whole path, such as train.epochs=3"),
        ("train.epochs", "expected key=value with the key's whole path, such as train.epochs=3"),
        ("foo.bar=3", "foo is not a known key; the tables are model, task, data, train, eval, output"),
    ];
    for (argument, expected) in cases {
        assert_eq!(place.error(&[argument]), format!("--set {}: {expected}", argument));
        // The place is the argument's, also behind others.
        assert_eq!(place.error(&["train.seed=1", argument]), format!("--set {}: {expected}", argument));
    }
}

#[test]
fn data_keys_must_fit_each_other() {
    let place = Place::new("");
    let cases: [(&[&str], &str); 9] = [
        (&["data.header=false", "data.label=1"], "c.toml: data.text is \"text\", expected a 0-based index such as 0"),
        (&["data.train=a.jsonl", "data.label=3"], "--set data.label=3: data.label is 3, expected a name"),
        (&["data.train=a.jsonl", "data.header=false"], "--set data.header=false: data.header is false, but a.jsonl"),
        (&["data.label=text"], "--set data.label=text: data.label is \"text\", the same column as data.text"),
        (&["data.max_length=2"], "--set data.max_length=2: data.max_length is 2, expected 3 to 1000000"),
        (&["data.max_length=4", "data.text_pair=b"], "--set data.max_length=4: data.max_length is 4, expected 5"),
        (&["data.labels=[\"a\", \"a\"]"], "--set data.labels=[\"a\", \"a\"]: data.labels has \"a\" twice"),
        (&["data.eval=1.0"], "--set data.eval=1.0: data.eval is 1.0, expected a file name (string) or a list"),
        (&["data.test="], "--set data.test=: data.test is empty, expected a file name"),
    ];
    for (set, expected) in cases {
        let message = place.error(set);
        assert!(message.starts_with(expected), "{message}");
    }
    let indices = place.load(&["data.header=false", "data.text=0", "data.label=1"]).unwrap();
    assert_eq!(indices.data.label, Column::Index(1).into());
    assert_eq!(place.load(&["data.eval=0.25"]).unwrap().data.eval, Some(EvalSource::Fraction(0.25)));
}

#[test]
fn paths_are_relative_to_file_or_working_directory() {
    let place = Place::new("");
    let config = place.load(&["data.test=some/test.csv", "data.eval=../dev.csv"]).unwrap();
    assert_eq!(config.model.path, place.path("model").to_str().unwrap());
    assert_eq!(config.data.train, place.path("train.csv").into());
    // Seen from the working directory, which is not the file's.
    assert_eq!(config.data.test, Some(PathBuf::from("some/test.csv").into()));
    let above = std::env::current_dir().unwrap().parent().unwrap().join("dev.csv");
    assert_eq!(config.data.eval, Some(EvalSource::Files(above.into())));
    assert_eq!(config.output.dir, Path::new("runs/x"));
}

#[test]
fn model_path_tells_directories_from_hub_ids() {
    let place = Place::new("");
    let message = place.error(&["model.path=path/to/model"]);
    assert!(message.contains("\"path/to/model\": there is no directory"), "{message}");
    assert!(message.ends_with("neither a directory nor an id of the hub such as org/name"), "{message}");
    let config = place.load(&["model.path=org/some-model", "model.revision=v2"]).unwrap();
    assert_eq!(config.model.hub, Some(ModelId { id: "org/some-model".into(), revision: "v2".into() }));
    assert_eq!(config.model.path, "org/some-model");
    let shown = config.to_toml().unwrap();
    assert!(shown.contains("path = \"org/some-model\"\nrevision = \"v2\"\n"), "{shown}");
    let message = place.error(&["model.path=org/some-model", "model.revision=../v2"]);
    assert!(message.contains("model.revision is wrong: \"../v2\" is no revision"), "{message}");
    // Says that it is a directory; whether it is there is for the run to ask.
    for path in ["./none", "../none", "/none"] {
        assert!(place.load(&[&format!("model.path={path}")]).is_ok(), "{path}");
    }
    let message = place.error(&["model.revision=main"]);
    assert!(message.contains("model.revision is set, but model.path is a directory"), "{message}");
}

#[test]
fn a_run_needs_its_inputs() {
    let place = Place::new("");
    let file = place.path("c.toml");
    let run = |set: &str| RunConfig::load_for_run(&file, &[set.to_owned()], None).map_err(|e| e.to_string());
    assert!(run("train.seed=1").is_ok());
    assert!(
        run("data.test=none.csv").unwrap_err().starts_with("--set data.test=none.csv: data.test is none.csv, which")
    );
    assert!(run("data.test=.").unwrap_err().contains("a directory, expected a file"));
    assert!(run("model.path=./none").unwrap_err().contains("which is not a directory"));
    fs::remove_file(place.path("model/config.json")).unwrap();
    assert!(run("train.seed=1").unwrap_err().contains("c.toml:2: model.path is "));
    assert!(run("train.seed=1").unwrap_err().contains("which has no config.json"));
}

#[test]
fn the_output_flag_is_a_path_as_it_stands() {
    let place =
        Place::with("[model]\npath = \"model\"\n[task]\nkind = \"regression\"\n[data]\ntrain = \"train.csv\"\n");
    let run = |dir: &str| RunConfig::load_for_run(&place.path("c.toml"), &[], Some(Path::new(dir)));
    assert_eq!(run("2024").unwrap().output.dir, Path::new("2024"));
    let message = run("").unwrap_err().to_string();
    assert_eq!(message, "--output : output.dir is empty, expected a directory to write");
}

#[test]
fn the_resolved_config_reads_as_an_equal_one_anywhere() {
    let place = Place::new(
        "epochs = 1.5\nlearning_rate = 3e-5\nmax_steps = 7\neval_steps = 2\nsave_total_limit = 0\n\
         greater_is_better = true\nearly_stopping_patience = 2\nwarmup_steps = 3",
    );
    let config = place
        .load(&[
            "data.test=test data.csv",
            "data.eval=0.1",
            "data.text=0",
            "data.text_pair=1",
            "data.labels=[\"yes \\\"1\\\"\", \"no\"]",
            "data.format=tsv",
        ])
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("config.toml");
    fs::write(&copy, config.to_toml().unwrap()).unwrap();
    assert_eq!(RunConfig::load(&copy, &[]).unwrap(), config);
}

#[test]
fn the_shipped_configs_load() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    RunConfig::load_for_run(&configs.join("quickstart.toml"), &[], None).unwrap();
    let model = format!("model.path={}/examples/models/bert-tiny-4l-128h", env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = fs::read_dir(&configs).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(files.len() >= 16, "{files:?}");
    for file in files {
        let config = RunConfig::load(&file, std::slice::from_ref(&model)).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert_eq!(config.output.dir, Path::new("runs").join(name));
        assert!(
            text.contains(&format!("--config {name}.toml")) || text.contains("--config FILE") || name == "quickstart"
        );
    }
}

#[test]
fn files_are_one_or_many_with_patterns_and_named_sets() {
    let place = Place::new("");
    let run = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        RunConfig::load_for_run(&place.path("c.toml"), &set, None).map_err(|e| e.to_string())
    };
    let pattern = |name: &str| format!("data.train={}", place.path(name).display());
    let config = run(&[&pattern("t*.csv"), "data.eval={ b = \"-\", a = [\"src/main.rs\", \"src/li?.rs\"] }"]).unwrap();
    assert_eq!(config.data.train.as_slice(), [place.path("test.csv"), place.path("train.csv")], "sorted");
    let Some(EvalSource::Named(sets)) = &config.data.eval else { panic!("{:?}", config.data.eval) };
    assert_eq!(sets[1].1.as_slice(), [PathBuf::from("src/main.rs"), "src/lib.rs".into()]);
    let files: Vec<_> = config.data.files().into_iter().map(|(key, _)| key).collect();
    assert_eq!(files, ["data.train", "data.train", "data.eval", "data.eval", "data.eval"]);
    // What is saved is what was found.
    let copy = place.path("copy.toml");
    fs::write(&copy, config.to_toml().unwrap()).unwrap();
    assert_eq!(RunConfig::load(&copy, &[]).unwrap(), config);
    let message = run(&[&pattern("no*.csv")]).unwrap_err();
    assert!(message.contains("data.train is ") && message.ends_with("which no file matches"), "{message}");
    for (set, expected) in [
        ("data.train=[]", "data.train is [], expected a file name (string) or a list of them"),
        ("data.train=3", "data.train is 3, expected a file name (string)"),
        ("data.eval={}", "data.eval is an empty table"),
        ("data.eval={ train = \"a.csv\" }", "data.eval names a set \"train\"; choose another name"),
        ("data.train=[\"-\", \"-\"]", "data.train is \"-\", but standard input can be read only once"),
    ] {
        let message = run(&[set]).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn keys_of_the_layout_must_fit_the_files() {
    let place = Place::new("");
    for (set, expected) in [
        (vec!["data.encoding=latin"], "data.encoding: \"latin\" is not a known encoding; give a name such as utf-8"),
        (vec!["data.delimiter=;;"], "data.delimiter: expected one ASCII character"),
        (vec!["data.pattern=(.*)"], "has no named group"),
        (vec!["data.pattern=(?P<text>"], "is not a regular expression: unclosed group"),
        (vec!["data.format=pattern"], "data.format is \"pattern\"; add data.pattern"),
        (vec!["data.format=csv", "data.pattern=(?P<text>.)"], "data.pattern is set, but data.format is \"csv\""),
        (
            vec!["data.train=a.jsonl.gz", "data.delimiter=;"],
            "data.delimiter is set, but a.jsonl.gz is jsonl; it is for",
        ),
        (vec!["data.train=a.jsonl.gz", "data.text=[0, 1]"], "data.text is 0, expected a name: a.jsonl.gz is jsonl"),
        (vec!["data.text=[\"a\", \"a\"]"], "data.text has \"a\" twice; each column once"),
        (vec!["data.text=[\"a\", \"label\"]"], "data.label is \"label\", the same column as data.text"),
        (vec!["data.on_bad_row=drop"], "data.on_bad_row is drop, expected one of error, skip"),
        (vec!["data.rename_labels={ a = 1 }"], "data.rename_labels.a is 1, expected a string"),
        (vec!["task.kind=regression", "data.rename_labels.a=b"], "data.rename_labels is set, but regression has"),
    ] {
        let message = place.error(&set);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn keys_behind_hash_signs_in_templates_are_keys() {
    let place = Place::new("");
    for name in ["classification", "pair", "regression"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name).with_extension("toml");
        let text = fs::read_to_string(path).unwrap();
        let is_key = |line: &str| line.split(' ').nth(1) == Some("=");
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(all.lines().any(|l| l.starts_with("save_total_limit")), "{name}: nothing was uncommented");
        fs::write(place.path("c.toml"), all).unwrap();
        let model = format!("model.path={}", place.path("model").display());
        place.load(&[&model]).unwrap();
    }
}
