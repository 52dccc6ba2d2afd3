//! The cache of tokenised files as users see it.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

struct Workplace(tempfile::TempDir);

impl Workplace {
    /// A training file just large enough for the cache: few rows, of which `max_length` drops nearly all.
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let row = |i: usize| format!("word{i} {},{}\n", "the cat ".repeat(4000), ["good", "bad"][i % 2]);
        this.write("train.csv", &("text,label\n".to_owned() + &(0..140).map(row).collect::<String>()));
        this.write("dev.csv", "text,label\na cat,good\na dog,bad\n");
        let config = format!(
            "[model]\npath = \"{MODEL}\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"train.csv\"\n\
             eval = \"dev.csv\"\nmax_length = 8\n[train]\nepochs = 1\n[output]\ndir = \"run\"\n"
        );
        this.write("cls.toml", &config);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, cache: &Path, args: &[&str]) -> Output {
        let mut command = Command::cargo_bin("bertft").unwrap();
        command.current_dir(self.0.path()).env("BERTFT_CACHE", cache).args(args).output().unwrap()
    }

    /// The `data` events of a dry run, without what tells where the tokens came from; that; and the warnings.
    fn dry_run(&self, cache: &Path, more: &[&str]) -> (Vec<Value>, Vec<bool>, Vec<String>) {
        let output = self.run(cache, &[&["train", "--config", "cls.toml", "--dry-run", "--json"], more].concat());
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{out}");
        let events: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).cloned().collect::<Vec<_>>();
        let mut data = of("data");
        let take = |e: &mut Value| e.as_object_mut().unwrap().remove("cached").unwrap().as_bool().unwrap();
        let cached = data.iter_mut().map(take).collect();
        // What follows the data is about the rows.
        let loading = events.iter().take_while(|e| e["event"] != "data").filter(|e| e["event"] == "warning");
        let warnings = loading.map(|w| w["message"].as_str().unwrap().to_owned()).collect();
        (data, cached, warnings)
    }

    fn entries(&self, cache: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(cache.join("tokens")).into_iter().flatten().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    }
}

#[test]
fn the_second_run_takes_the_tokens_of_a_large_file_from_the_cache() {
    let w = Workplace::new();
    let cache = w.path("cache");
    let first = w.dry_run(&cache, &[]);
    assert_eq!((&first.1[..], &first.2[..]), (&[false, false][..], &[][..]));
    let entry = w.entries(&cache);
    assert_eq!(entry.len(), 1, "the small file is read again");
    for threads in ["1", "3"] {
        let second = w.dry_run(&cache, &["--threads", threads]);
        assert_eq!(second, (first.0.clone(), vec![true, false], vec![]));
    }
    let human = w.run(&cache, &["train", "--config", "cls.toml", "--dry-run"]);
    let human = String::from_utf8(human.stderr).unwrap();
    assert_eq!(human.matches("; tokens from the cache").count(), 1, "{human}");

    // Another setting, no cache, a damaged entry, another file: nothing old is taken.
    assert_eq!(w.dry_run(&cache, &["--set", "data.max_length=9"]).1, [false, false]);
    assert_eq!(w.dry_run(&cache, &["--set", "data.cache=false"]), first);
    let mut bytes = fs::read(&entry[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&entry[0], bytes).unwrap();
    assert_eq!(w.dry_run(&cache, &[]), first);
    assert_eq!(w.dry_run(&cache, &[]).1, [true, false]);
    let text = fs::read_to_string(w.path("train.csv")).unwrap();
    w.write("train.csv", &text.replacen("word0", "dog0", 1));
    assert_eq!(w.dry_run(&cache, &[]).1, [false, false]);
    assert_eq!(w.entries(&cache).len(), 3);
    // What the labels must be is no part of the entry, and is checked all the same.
    let refused = w.run(&cache, &["train", "--config", "cls.toml", "--set", "data.labels=[\"good\", \"so-so\"]"]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(message.contains("train.csv:3: label \"bad\" is not one of [good, so-so]"), "{message}");
}

#[test]
fn a_resumed_run_may_find_its_tokens_in_the_cache() {
    let w = Workplace::new();
    let cache = w.path("cache");
    let train = |more: &[&str]| {
        let output = w.run(&cache, &[&["train", "--config", "cls.toml", "--json"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(train(&["--set", "train.max_steps=2"]).contains("\"cached\":false"));
    let resumed = train(&["--resume", "--set", "train.max_steps=4"]);
    assert!(resumed.contains("\"cached\":true") && resumed.contains("\"resumed_from\":2"), "{resumed}");
    let manifest: Value = serde_json::from_slice(&fs::read(w.path("run/run.json")).unwrap()).unwrap();
    assert_eq!(manifest["data"]["train"]["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn several_files_with_groups_skipped_rows_and_unused_names_are_one_entry() {
    let w = Workplace::new();
    let cache = w.path("cache");
    w.write("more.csv", "text,label\na cow,good\nragged\na pig,bad\n");
    let flags = [
        "--set=data.train=[\"train.csv\", \"more.csv\"]",
        "--set=data.on_bad_row=skip",
        "--set=data.eval=0.5",
        "--set=data.rename_labels={ dreadful = \"bad\" }",
        "--set=eval.slice_by=label",
    ];
    let (data, cached, warnings) = w.dry_run(&cache, &flags);
    assert_eq!((&cached[..], warnings.len()), (&[false, false][..], 1));
    assert_eq!(data[0]["skipped"], 1);
    let skipped = &data[0]["skipped_rows"][0];
    assert!(skipped["file"].as_str().unwrap().ends_with("more.csv") && skipped["line"] == 3, "{skipped}");
    assert_eq!(w.dry_run(&cache, &flags), (data, vec![true, true], warnings));
    assert_eq!(w.entries(&cache).len(), 1);
    let ran = w.run(
        &cache,
        &[&["train", "--config", "cls.toml", "--json", "--set=train.max_steps=1", "--output=other"], &flags[..]]
            .concat(),
    );
    let out = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success() && out.contains("\"slices\":{\"bad\":"), "{out}");
    let manifest: Value = serde_json::from_slice(&fs::read(w.path("other/run.json")).unwrap()).unwrap();
    let sha256 = |i: usize| manifest["data"]["train"][i]["sha256"].as_str().unwrap().to_owned();
    assert!(sha256(0).len() == 64 && sha256(0) != sha256(1), "{manifest}");
    // The order of the files is that of the rows, and the last file's rows are named by it from the cache too.
    let swapped = "--set=data.train=[\"more.csv\", \"train.csv\"]";
    assert_eq!(w.dry_run(&cache, &[&flags[1..], &[swapped]].concat()).1, [false, false]);
    w.write("more.csv", "text,label\na cow,good\nragged\na pig,odd\n");
    assert_eq!(w.dry_run(&cache, &flags).1, [false, false]);
    let labels = "--set=data.labels=[\"good\", \"bad\"]";
    let refused = w.run(&cache, &[&["train", "--config", "cls.toml", labels], &flags[..]].concat());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("more.csv:4: label \"odd\" is not one of [good, bad]"), "{message}");
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let w = Workplace::new();
    w.write("cache", "a file stands in the way");
    let (data, cached, warnings) = w.dry_run(&w.path("cache"), &[]);
    assert_eq!((data.len(), cached), (2, vec![false, false]));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("train.csv are not kept for the next run"), "{}", warnings[0]);
}

#[test]
fn info_tells_where_the_cache_is() {
    let w = Workplace::new();
    let out = |args: &[&str]| String::from_utf8(w.run(&w.path("my-cache"), args).stdout).unwrap();
    assert!(out(&["info"]).contains("my-cache (tokens of large data files)"));
    let json: Value = serde_json::from_str(&out(&["info", "--json"])).unwrap();
    assert!(json["cache_paths"][0].as_str().unwrap().ends_with("my-cache"));
}

/// Tagged words and questions are kept like rows, with what is said of them.
#[test]
fn tags_and_questions_come_from_the_cache_too() {
    let w = Workplace::new();
    let cache = w.path("cache");
    // Words that are too long to be anything but unknown make large files of few tokens.
    let sentence = |i: usize| format!("{} O\ncat{i} B-X\n\n", "x".repeat(30_000));
    w.write("train.conll", &((0..145).map(sentence).collect::<String>() + "bad\n\n\u{200b} O\n"));
    w.write("dev.conll", "a O\ncat B-X\n");
    let question = |i: usize| {
        let (context, start) = (format!("{} cat {i}", "x".repeat(30_000)), if i == 7 { 3 } else { 30_001 });
        let answers = serde_json::json!([{"text": "cat", "answer_start": start}]);
        serde_json::json!({"id": i, "question": "who?", "context": context, "answers": answers}).to_string() + "\n"
    };
    w.write("train.jsonl", &((0..145).map(question).collect::<String>() + "{}\n"));
    w.write("dev.jsonl", &question(0));
    let tokens = ["1 sentences are left out", "rename_labels has \"B-Y\""];
    for (kind, train, eval, other, more, warned) in [
        (
            "tokens",
            "train.conll",
            "dev.conll",
            "data.convert_tags=iobes",
            "rename_labels = { B-Y = \"B-X\" }\n",
            &tokens[..],
        ),
        ("span", "train.jsonl", "dev.jsonl", "data.max_length=33", "", &["1 answer was not at"]),
    ] {
        let config = format!(
            "[model]\npath = \"{MODEL}\"\n[task]\nkind = \"{kind}\"\n[data]\ntrain = \"{train}\"\neval = \"{eval}\"\n\
             max_length = 32\non_bad_row = \"skip\"\n{more}[train]\nepochs = 1\n[output]\ndir = \"run\"\n"
        );
        w.write("cls.toml", &config);
        let before = w.entries(&cache).len();
        let first = w.dry_run(&cache, &[]);
        assert_eq!((&first.1[..], first.2.len()), (&[false, false][..], warned.len()), "{first:?}");
        assert!(first.2.iter().zip(warned).all(|(message, warned)| message.contains(warned)), "{first:?}");
        assert_eq!(first.0[0]["skipped"], 1, "{first:?}");
        assert_eq!(w.entries(&cache).len(), before + 1, "the small file is read again");
        let from_cache = (first.0.clone(), vec![true, false], first.2.clone());
        assert_eq!(w.dry_run(&cache, &["--threads", "1"]), from_cache);
        assert_eq!(w.dry_run(&cache, &["--set", other]).1, [false, false]);
        assert_eq!(w.dry_run(&cache, &["--set", "data.cache=false"]), first);
        // A damaged entry is made again.
        for entry in w.entries(&cache) {
            let mut bytes = fs::read(&entry).unwrap();
            let at = bytes.len() / 3;
            bytes[at..at + 200].iter_mut().for_each(|byte| *byte ^= 1);
            fs::write(&entry, bytes).unwrap();
        }
        assert_eq!(w.dry_run(&cache, &[]), first);
        assert_eq!(w.dry_run(&cache, &[]), from_cache);
        assert_eq!(w.dry_run(&cache, &["--set", "data.eval=0.5"]).1, [true, true]);
    }
}
