//! Models of the hub as users see them: training from an id, offline, and the list of what is cached.

mod mock;

use assert_cmd::Command;
use mock::{COMMIT, Hub};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

struct Place {
    hub: Hub,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/classification/model");
        let read = |name: &str| std::fs::read(model.join(name)).unwrap();
        let names = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"];
        let contents = names.map(read);
        let files: Vec<_> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
        let dir = tempfile::tempdir().unwrap();
        let rows: String = (0..12).map(|i| format!("a b {i},{}\n", ["x", "y"][i % 2])).collect();
        std::fs::write(dir.path().join("train.csv"), "text,label\n".to_owned() + &rows).unwrap();
        let config = "[model]\npath = \"org/tiny\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"train.csv\"\n\
                      max_length = 8\n[train]\nepochs = 1\n[output]\ndir = \"run\"\n";
        std::fs::write(dir.path().join("cls.toml"), config).unwrap();
        Self { hub: Hub::new(&files), dir }
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::cargo_bin("bertft").unwrap();
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.dir.path().join("hf"));
        let output = command.current_dir(self.dir.path()).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn training_starts_from_an_id() {
    let place = Place::new();
    let (code, _, stderr) = place.run(&["train", "--config", "cls.toml", "--offline"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("model.path: the model org/tiny at revision main is not wholly in"), "{stderr}");
    assert_eq!(place.hub.take(), [""; 0]);

    let (code, stdout, stderr) = place.run(&["train", "--config", "cls.toml", "--json"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(stderr, "", "a script hears of events only");
    let run = |file: &str| std::fs::read_to_string(place.dir.path().join("run").join(file)).unwrap();
    let manifest: Value = serde_json::from_str(&run("run.json")).unwrap();
    assert_eq!((&manifest["model"], &manifest["model_commit"]), (&"org/tiny".into(), &COMMIT.into()));
    assert!(run("config.toml").contains("path = \"org/tiny\""), "{}", run("config.toml"));
    assert!(run("model/README.md").contains("base_model: org/tiny"), "{}", run("model/README.md"));
    assert!(run("model/tokenizer.json").contains("WordPiece"), "made from vocab.txt");
    place.hub.take();

    let (code, _, stderr) = place.run(&["config", "validate", "--config", "run/config.toml", "--offline"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(place.hub.take(), [""; 0]);
    let (code, stdout, stderr) = place.run(&["models", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let model: Value = serde_json::from_str(stdout.trim()).unwrap();
    assert_eq!(
        (&model["event"], &model["id"], &model["commit"]),
        (&"model".into(), &"org/tiny".into(), &COMMIT.into())
    );
    assert!(model["whole"] == true && model["bytes"].as_u64().unwrap() > 70_000, "{model}");
    assert_eq!(model["revisions"], serde_json::json!(["main"]));
    let (_, stdout, _) = place.run(&["models"]);
    assert!(stdout.lines().nth(1).unwrap().starts_with("org/tiny  main      0123456789ab  "), "{stdout}");
}

#[test]
fn a_wrong_revision_names_the_key() {
    let place = Place::new();
    place.hub.hook(|_| Some(mock::Answer::new(404).with("X-Error-Code", "RevisionNotFound")));
    let (code, _, stderr) = place.run(&["train", "--config", "cls.toml", "--set", "model.revision=v9"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.starts_with("error: model.path: the model org/tiny has no revision v9"), "{stderr}");
    assert_eq!(place.hub.take(), ["GET /api/models/org/tiny/revision/v9"]);
    let (code, _, stderr) = place.run(&["models"]);
    assert_eq!(code, 0);
    assert!(stderr.contains("no models of the hub in"), "{stderr}");
}

#[test]
fn eval_predict_and_config_init_take_an_id() {
    let place = Place::new();
    let write = |name: &str, text: &str| std::fs::write(place.dir.path().join(name), text).unwrap();
    write("rows.txt", "The film was good.\n\ngreat!\n");
    write("rows.csv", "text,label\nThe film was good.,cold\ngreat!,good\n");
    for args in [
        &["predict", "--model", "org/tiny", "rows.txt", "--offline"][..],
        &["eval", "--model", "org/tiny", "--data", "rows.csv", "--offline"],
        &["config", "init", "--data", "train.csv", "--model", "org/tiny", "--offline"],
    ] {
        let (code, stdout, stderr) = place.run(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains("--model: the model org/tiny at revision main is not wholly in"), "{stderr}");
        assert!(stderr.contains("there is no directory org/tiny either"), "a slip in a directory's name: {stderr}");
    }
    assert_eq!(place.hub.take(), [""; 0]);

    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/classification/model");
    let (code, expected, stderr) = place.run(&["predict", "--model", model.to_str().unwrap(), "rows.txt"]);
    assert_eq!((code, expected.lines().count()), (0, 3), "{stderr}");
    let (code, found, stderr) = place.run(&["predict", "--model", "org/tiny", "--revision", "v2", "rows.txt"]);
    assert_eq!((code, &found), (0, &expected), "{stderr}");
    assert_eq!(place.hub.take()[0], "GET /api/models/org/tiny/revision/v2");
    // Now without a network, by the commit and by the tag.
    for revision in [COMMIT, "v2"] {
        let args = ["predict", "--model", "org/tiny", "--revision", revision, "rows.txt", "--offline"];
        assert_eq!(place.run(&args), (0, expected.clone(), String::new()));
    }
    let (code, stdout, _) =
        place.run(&["eval", "--model", "org/tiny", "--revision", "v2", "--data", "rows.csv", "--offline", "--json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&stdout).unwrap()["samples"].as_u64()), (0, Some(2)), "{stdout}");
    assert_eq!(place.hub.take(), [""; 0]);

    // Models of ours bring how they read files.
    let extra = r#"{"version": "0", "task": "classification", "text": "review", "label": "label", "header": true, "max_length": 16}"#;
    place.hub.edit(|s| {
        s.commit = COMMIT.replace('0', "e");
        s.files.insert("bertft.json".into(), (extra.into(), false));
    });
    write("reviews.csv", "review\nThe film was good.\n\"\"\ngreat!\n");
    let (code, found, stderr) = place.run(&["predict", "--model", "org/tiny", "reviews.csv"]);
    assert_eq!((code, found), (0, expected), "{stderr}");

    let init = ["config", "init", "--data", "train.csv", "--model", "org/tiny"];
    let (code, written, stderr) = place.run(&[&init[..], &["--output", "init.toml", "--revision", "v2"]].concat());
    assert_eq!((code, written.as_str()), (0, ""), "{stderr}");
    let written = std::fs::read_to_string(place.dir.path().join("init.toml")).unwrap();
    assert!(written.contains("[model]\npath = \"org/tiny\"") && written.contains("\nrevision = \"v2\"\n"), "{written}");
    let (code, _, stderr) = place.run(&["config", "validate", "--config", "init.toml", "--offline"]);
    assert_eq!(code, 0, "{stderr}");

    place.hub.hook(|_| Some(mock::Answer::new(401).with("X-Error-Code", "RepoNotFound")));
    let (code, _, stderr) = place.run(&["eval", "--model", "org/tyni", "--data", "rows.csv"]);
    assert!(code == 2 && stderr.contains("--model: ") && stderr.contains("has no model org/tyni"), "{stderr}");
    for (args, says) in [
        (["--model", "../x", "--revision", "v2"], "--revision is set, but --model is a directory"),
        (["--model", "org/tiny", "--revision", "../v2"], "--revision: \"../v2\" is no revision"),
        (["--model", "a/b/c", "--revision", "v2"], "--model: there is no directory a/b/c, and \"a/b/c\" is neither"),
    ] {
        let (code, _, stderr) = place.run(&[&["predict"][..], &args].concat());
        assert!(code == 2 && stderr.contains(says), "{stderr}");
    }
    // A directory goes first.
    std::fs::create_dir_all(place.dir.path().join("org/tiny")).unwrap();
    place.hub.take();
    let (code, _, stderr) = place.run(&["predict", "--model", "org/tiny", "rows.txt"]);
    assert!(code == 2 && stderr.contains("org/tiny: has no config.json"), "{stderr}");
    assert_eq!(place.hub.take(), [""; 0]);
}
