//! The command line as users see it: exit codes, messages, and what goes to which stream.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// `bertft` without the settings of whoever runs the tests.
fn bertft(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("bertft").unwrap();
    command
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("BERTFT_DEVICE")
        .env_remove("RAYON_NUM_THREADS");
    command
}

struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(args: &[&str]) -> Output {
    let output = bertft(args).output().unwrap();
    Output {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The JSON objects on standard output, one a line.
fn json_lines(output: &Output) -> Vec<Value> {
    assert_eq!(output.stderr, "");
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn config_file(text: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

const QUICKSTART: [&str; 2] = ["--config", "configs/quickstart.toml"];

#[test]
fn the_quick_start_is_valid() {
    let output = run(&["config", "validate", QUICKSTART[0], QUICKSTART[1]]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "configs/quickstart.toml: valid\n"), "{}", output.stderr);
    let output = run(&["config", "validate", QUICKSTART[0], QUICKSTART[1], "--json"]);
    assert_eq!(json_lines(&output), [serde_json::json!({"event": "valid", "file": "configs/quickstart.toml"})]);
}

#[test]
fn show_prints_a_config_that_shows_the_same() {
    let first = run(&["config", "show", QUICKSTART[0], QUICKSTART[1], "--set", "train.epochs=7"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(first.stdout.contains("epochs = 7.0\n"), "{}", first.stdout);
    let (_dir, path) = config_file(&first.stdout);
    assert_eq!(run(&["config", "show", "--config", &path]).stdout, first.stdout);
    let json = json_lines(&run(&["config", "show", "--config", &path, "--json"]));
    assert_eq!(json[0]["config"]["train"]["epochs"], 7.0);
    assert!(Path::new(json[0]["config"]["data"]["train"].as_str().unwrap()).is_absolute());
}

#[test]
fn a_wrong_config_names_its_line_on_standard_error() {
    let (_dir, path) = config_file("[model]\npath = \".\"\n\n[train]\nlearning_rat = 3\n");
    let output = run(&["config", "validate", "--config", &path]);
    assert_eq!((output.code, output.stdout.as_str()), (2, ""));
    let expected = format!("error: {path}:5: train.learning_rat is not a known key; did you mean learning_rate?\n");
    assert_eq!(output.stderr, expected);
}

#[test]
fn with_json_an_error_is_an_event() {
    let (_dir, path) = config_file("[train]\nepochs = 0.0\nlearning_rat = 3\n");
    let output = run(&["config", "validate", "--config", &path, "--json"]);
    assert_eq!(output.code, 2);
    let events = json_lines(&output);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event"], "error");
    assert_eq!(events[0]["code"], 2);
    assert_eq!(events[0]["file"], path.as_str());
    assert_eq!(events[0]["line"], 3);
    assert!(events[0]["message"].as_str().unwrap().contains("learning_rat "));
}

#[test]
fn set_is_named_in_errors() {
    let output = run(&["config", "show", QUICKSTART[0], QUICKSTART[1], "--set", "train.epochs=many"]);
    assert_eq!(output.code, 2);
    assert_eq!(output.stderr, "error: --set train.epochs=many: train.epochs is many, expected a number\n");
}

#[test]
fn a_missing_config_is_named() {
    let output = run(&["config", "validate", "--config", "none.toml"]);
    assert_eq!(output.code, 2);
    assert!(output.stderr.starts_with("error: none.toml: "), "{}", output.stderr);
}

#[test]
fn init_writes_a_template_that_runs_with_paths_filled_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pair.toml");
    let path = path.to_str().unwrap();
    let output = run(&["config", "init", "--task", "pair", "--output", path]);
    assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{}", output.stderr);
    let again = run(&["config", "init", "--task", "pair", "--output", path]);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("exists; remove it or give another --output"), "{}", again.stderr);

    let model = "model.path=examples/models/bert-tiny-4l-128h";
    let rows: String = (0..20).map(|i| format!("a {i},b {i},{}\n", i % 2)).collect();
    fs::write(dir.path().join("train.csv"), "sentence1,sentence2,label\n".to_owned() + &rows).unwrap();
    let train = &format!("data.train={}", dir.path().join("train.csv").display());
    let unfilled = run(&["config", "validate", "--config", path, "--set", model]);
    assert_eq!(unfilled.code, 2);
    assert!(unfilled.stderr.contains("data.train is "), "{}", unfilled.stderr);
    let filled = run(&["config", "validate", "--config", path, "--set", model, "--set", train]);
    assert_eq!(filled.code, 0, "{}", filled.stderr);
}

#[test]
fn the_schema_is_json_and_knows_every_shown_key() {
    let output = run(&["config", "schema"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let schema: Value = serde_json::from_str(&output.stdout).unwrap();
    let json = json_lines(&run(&["config", "schema", "--json"]));
    assert_eq!(json, [serde_json::json!({"event": "config_schema", "schema": schema})]);
    let shown = json_lines(&run(&["config", "show", QUICKSTART[0], QUICKSTART[1], "--json"]));
    for (table, keys) in shown[0]["config"].as_object().unwrap() {
        for key in keys.as_object().unwrap().keys() {
            assert!(schema["properties"][table]["properties"][key].is_object(), "{table}.{key}");
        }
    }
}

#[test]
fn what_is_not_in_this_version_says_so() {
    for args in [
        vec!["config", "init", "--task", "mlm"],
        vec!["config", "show", QUICKSTART[0], QUICKSTART[1], "--set", "task.kind=mlm"],
    ] {
        let output = run(&args);
        assert_eq!(output.code, 2, "{args:?}");
        assert!(output.stderr.contains("not in this version"), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [
        vec![],
        vec!["tarin"],
        vec!["train"],
        vec!["train", "--config", "c.toml", "--resume", "--overwrite"],
        vec!["info", "--threads", "0"],
        vec!["info", "--device", "gpu"],
        vec!["eval", "--model", "m", "--data", "d.csv", "--fail-under", "accuracy"],
        vec!["eval", "--model", "m", "--data", "d.csv", "--fail-over", "loss=nan"],
        vec!["predict", "--model", "m", "--batch-size", "0"],
        vec!["predict", "--model", "m", "--format", "xml"],
    ] {
        let output = run(&args);
        assert_eq!(output.code, 2, "{args:?}");
        assert_eq!(output.stdout, "", "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    let output = run(&["tarin", "--json"]);
    assert_eq!(output.code, 2);
    let events = json_lines(&output);
    assert_eq!((&events[0]["event"], &events[0]["code"]), (&Value::from("error"), &Value::from(2)));
    assert_eq!(events[0]["message"], "unrecognized subcommand 'tarin'");
}

#[test]
fn every_command_has_help_with_examples() {
    for command in [
        vec!["train"],
        vec!["eval"],
        vec!["predict"],
        vec!["info"],
        vec!["models"],
        vec!["config", "init"],
        vec!["config", "show"],
        vec!["config", "validate"],
    ] {
        let output = run(&[command.clone(), vec!["--help"]].concat());
        assert_eq!(output.code, 0);
        let example = format!("bertft {}", command.join(" "));
        let examples = output.stdout.split("Examples:").nth(1).unwrap_or_else(|| panic!("{command:?} has no examples"));
        assert!(examples.matches(&example).count() >= 2, "{command:?}: {examples}");
    }
}

#[test]
fn info_tells_version_and_threads() {
    let output = run(&["info", "--json", "--threads", "3"]);
    assert_eq!(output.code, 0);
    let info = &json_lines(&output)[0];
    assert_eq!(info["event"], "info");
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["threads"], 3);
    let from_env = bertft(&["info", "--json"]).env("RAYON_NUM_THREADS", "5").output().unwrap();
    assert!(String::from_utf8(from_env.stdout).unwrap().contains("\"threads\":5"));
}

#[test]
fn the_environment_chooses_the_device_and_a_flag_wins() {
    let device = |args: &[&str], env| {
        let output = bertft(args).env("BERTFT_DEVICE", env).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, info) = device(&["info", "--json"], "cuda:1");
    assert!(code == 0 && info.contains("\"device\":\"cuda:1\""), "{info}");
    for args in [["--device", "cpu", "info", "--json"], ["info", "--json", "--device", "cpu"]] {
        let (code, info) = device(&args, "gpu");
        assert!(code == 0 && info.contains("\"device\":\"cpu\""), "{info}");
    }
    let (code, error) = device(&["info", "--json"], "gpu");
    assert!(code == 2 && error.contains("not one of auto, cpu, cuda, cuda:N"), "{error}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [vec!["info"], vec!["info", "--json"], vec!["config", "show", QUICKSTART[0], QUICKSTART[1]]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_bertft"))
            .args(&args)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bertft")).arg("info").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: standard output: cannot be written: No space left"), "{stderr}");
}
