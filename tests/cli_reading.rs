//! How the commands read files that are not plain csv, and what they say of rows that they cannot read.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::io::Write;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(dir: &TempDir, args: &[&str], input: &[u8]) -> Ran {
    let mut command = Command::cargo_bin("bertft").unwrap();
    let output = command.current_dir(dir.path()).args(args).write_stdin(input).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn gz(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Lines `LABEL@sentence` in Latin-1 in two files, one of them compressed, with a row in each that cannot be read.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..12).map(|i| format!("{}@caf\u{e9} number {i}\n", i % 2)).collect();
    let text = encoding_rs::WINDOWS_1252.encode(&(text + "neither\n")).0.into_owned();
    fs::write(dir.path().join("part1.txt"), &text).unwrap();
    fs::write(dir.path().join("part2.txt.gz"), gz(&text)).unwrap();
    let config = format!(
        "[model]\npath = \"{MODEL}\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"part*\"\neval = 0.25\n\
         pattern = '^(?P<label>[01])@(?P<text>.*)$'\nencoding = \"latin-1\"\non_bad_row = \"skip\"\n\
         rename_labels = {{ 0 = \"no\", 1 = \"yes\", 2 = \"perhaps\" }}\nmax_length = 16\n\
         [train]\nmax_steps = 2\nbatch_size = 8\n[output]\ndir = \"run\"\n"
    );
    fs::write(dir.path().join("c.toml"), config).unwrap();
    dir
}

fn events(ran: &Ran) -> Vec<Value> {
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_run_reads_patterns_encodings_and_globs_and_its_model_remembers_them() {
    let dir = workplace();
    let events = events(&run(&dir, &["train", "--config", "c.toml", "--json"], b""));
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).cloned().collect::<Vec<_>>();
    let data = &of("data")[0];
    assert_eq!((data["rows"].as_u64(), data["skipped"].as_u64()), (Some(18), Some(2)));
    assert_eq!(data["skipped_rows"][1]["line"], 13);
    assert!(data["skipped_rows"][1]["file"].as_str().unwrap().ends_with("part2.txt.gz"));
    assert_eq!(data["labels"], serde_json::json!([["no", 9], ["yes", 9]]));
    assert!(of("warning").iter().any(|w| w["message"].as_str().unwrap().contains("rename_labels has \"2\"")));
    let manifest: Value = serde_json::from_slice(&fs::read(dir.path().join("run/run.json")).unwrap()).unwrap();
    assert_eq!(manifest["data"]["train"].as_array().unwrap().len(), 2);

    // The same layout needs no flags, also where the text is UTF-8.
    fs::write(dir.path().join("more.txt"), "1@caf\u{e9}\n0@th\u{e9}\n").unwrap();
    for files in [vec!["part1.txt", "--on-bad-row", "skip"], vec!["more.txt"], vec!["part*", "--on-bad-row=skip"]] {
        let args = [&["eval", "--model", "run", "--json", "--data"], files.as_slice()].concat();
        let ran = run(&dir, &args, b"");
        assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    }
    let ran = run(&dir, &["eval", "--model", "run", "--data", "part1.txt"], b"");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("part1.txt:13: the line does not match --pattern: \"neither\""), "{}", ran.err);
    // Plain texts, and files whose extension says what they are.
    let ran = run(&dir, &["predict", "--model", "run"], "caf\u{e9}\nth\u{e9}\n".as_bytes());
    assert_eq!((ran.code, ran.out.lines().count()), (0, 2), "{}", ran.err);
    fs::write(dir.path().join("t.csv.gz"), gz(b"id;text\n7;a\n8\n9;\"b\nc\"\n")).unwrap();
    let args = ["predict", "--model", "run", "t.csv.gz", "--delimiter", ";", "--on-bad-row", "skip"];
    let ran = run(&dir, &args, b"");
    let rows: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let ids: Vec<_> = rows.iter().map(|r| (r["row"].as_u64().unwrap(), r["id"].as_str().unwrap())).collect();
    assert_eq!(ids, [(1, "7"), (3, "9")], "{}", ran.err);
    assert!(ran.err.contains("1 row was skipped:\n  t.csv.gz:3: the row has 1 field"), "{}", ran.err);
}

#[test]
fn training_reads_standard_input() {
    let dir = workplace();
    let rows: String = (0..12).map(|i| format!("{{\"text\":\"row {i}\",\"label\":{}}}\n", i % 2 == 0)).collect();
    let set = ["--set", "data.train=-", "--set", "data.format=jsonl"];
    let config = fs::read_to_string(dir.path().join("c.toml")).unwrap();
    let kept: String = config
        .lines()
        .filter(|l| !l.starts_with("pattern") && !l.starts_with("rename"))
        .map(|l| format!("{l}\n"))
        .collect();
    fs::write(dir.path().join("c.toml"), kept).unwrap();
    let ran = run(&dir, &[&["train", "--config", "c.toml", "--json"], set.as_slice()].concat(), &gz(rows.as_bytes()));
    let data = events(&ran).into_iter().find(|e| e["event"] == "data").unwrap();
    assert_eq!(data["labels"], serde_json::json!([["false", 4], ["true", 5]]), "{data}");
}

#[test]
fn messages_name_flags_where_there_are_flags() {
    let dir = workplace();
    assert_eq!(run(&dir, &["train", "--config", "c.toml", "--quiet"], b"").code, 0);
    let refused = |args: &[&str], says: &str| {
        let ran = run(&dir, &[&["eval", "--model", "run", "--data"], args].concat(), b"");
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(ran.err.contains(says) && !ran.err.contains("data."), "{}", ran.err);
    };
    fs::write(dir.path().join("t.csv"), "txt,label\na,yes\nb,no\n").unwrap();
    refused(
        &["t.csv"],
        "there is no column \"text\" among [txt, label] (did you mean \"txt\"?); set --text, or --no-header if this row is data",
    );
    refused(&["no*.csv"], "--data is \"no*.csv\", which no file matches");
    refused(
        &["t.csv", "--format", "pattern", "--pattern", "(?P<x>.*)"],
        "--pattern has no group \"text\" among [x]; set --text",
    );
    fs::write(dir.path().join("l.csv"), b"text,label\ncaf\xe9,yes\n").unwrap();
    refused(&["l.csv", "--encoding", "utf-8"], "l.csv:2: byte 0xe9 at column 4 is not UTF-8");
}
