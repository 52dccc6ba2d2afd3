//! `config init --data`: the config that it writes for a file is valid and trains.

use assert_cmd::Command;
use std::fs;
use std::io::Write;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn run(dir: &TempDir, args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("bertft").unwrap().current_dir(dir.path()).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn rows(row: impl Fn(usize) -> String) -> String {
    (0..40).map(row).collect()
}

fn latin1(text: &str) -> Vec<u8> {
    encoding_rs::WINDOWS_1252.encode(text).0.into_owned()
}

fn gz(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Files such as the data sets of `configs/` are, with lines that their configs must have.
fn files() -> Vec<(&'static str, Vec<u8>, Vec<&'static str>)> {
    let sentiment = ["negative", "neutral", "positive"];
    vec![
        (
            "sst2.tsv",
            rows(|i| format!("a film {i} 's charm is \"odd\t{}\n", i % 2)).into(),
            vec!["header = false", "text = 0", "label = 1", "2 values, 0 50 %, 1 50 %"],
        ),
        (
            "banking.csv.gz",
            gz(format!("text,category\n{}", rows(|i| format!("\"Where, is\nmy card {i}?\",card_{}\n", i % 4)))
                .as_bytes()),
            vec!["# gzip data", "text = \"text\"", "label = \"category\"", "max_length = 64"],
        ),
        (
            "phrasebank.txt",
            latin1(&rows(|i| format!("Caf\u{e9} profit rose , by {i} mn .@{}\n", sentiment[i % 3]))),
            vec!["format = \"csv\"", "delimiter = \"@\"", "encoding = ", "header = false", "label = 1"],
        ),
        (
            "ag_news.csv",
            rows(|i| format!("\"{}\",\"Title {i} of it\",\"A longer, fuller \"\"story\"\" {i}\"\n", i % 4 + 1)).into(),
            vec!["text = 1", "text_pair = 2", "label = 0", "header = false"],
        ),
        (
            "mrpc.txt",
            format!(
                "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n{}",
                rows(|i| format!("{}\t{}\t{}\t\"He said {i}\tHe said \"so {i}\r\n", i % 2, 7000 + i, 9000 + i))
            )
            .into(),
            vec![
                "format = \"tsv\"",
                "byte order mark",
                "text_pair = \"#2 String\"",
                "label = \"Quality\"",
                "\"#1 ID\"",
            ],
        ),
        (
            "stsb.csv",
            rows(|i| format!("A man {i} walks.,\"A man, {i}, runs.\",{}.{}\n", i % 5, i % 7)).into(),
            vec!["kind = \"regression\"", "text_pair = 1", "label = 2", "\"pearson\""],
        ),
        (
            "imdb.tsv",
            format!("Sentiment\tText\n{}", rows(|i| format!("{}\t\"A \"\"film\"\" {i}\"\n", sentiment[i % 3]))).into(),
            vec!["quoting = true", "text = \"Text\"", "label = \"Sentiment\""],
        ),
        (
            "rows.jsonl",
            rows(|i| format!("{{\"id\": {i}, \"premise\": \"A {i}\", \"hypothesis\": \"B\", \"label\": {}}}\n", i % 2))
                .into(),
            vec!["text = \"premise\"", "text_pair = \"hypothesis\"", "label = \"label\""],
        ),
        (
            "TREC.train",
            latin1(&rows(|i| format!("{}:x Who or what is Ren\u{e9} {i} ?\n", ["HUM", "LOC"][i % 2]))),
            vec!["pattern = ", "encoding = ", "label = \"label\""],
        ),
    ]
}

#[test]
fn what_it_writes_is_valid_and_trains() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in files() {
        fs::write(dir.path().join(name), bytes).unwrap();
        let (code, out, err) = run(&dir, &["config", "init", "--data", name, "--model", MODEL]);
        assert_eq!(code, 0, "{name}: {err}");
        for says in expected {
            assert!(out.contains(says), "{name}: {says} is not in\n{out}");
        }
        fs::write(dir.path().join("c.toml"), out).unwrap();
        for args in [["config", "validate", "--config", "c.toml"], ["train", "--dry-run", "--config", "c.toml"]] {
            let (code, _, err) = run(&dir, &args);
            assert_eq!(code, 0, "{name}: {err}");
        }
    }
}

#[test]
fn flags_go_before_guesses_and_a_config_elsewhere_finds_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let text = rows(|i| format!("title {i} here,body {i} of it,{},{}\n", i % 2, i % 3));
    fs::write(dir.path().join("d.csv"), format!("title,body,label,score\n{text}")).unwrap();
    fs::create_dir(dir.path().join("configs")).unwrap();
    let args = ["config", "init", "--data", "d.csv", "--eval", "d.csv", "--task", "regression", "--label", "score"];
    let more = ["--text", "body", "--text-pair", "0", "--model", MODEL, "--output", "configs/c.toml"];
    let (code, _, err) = run(&dir, &[&args[..], &more].concat());
    assert_eq!(code, 0, "{err}");
    let written = fs::read_to_string(dir.path().join("configs/c.toml")).unwrap();
    for says in
        ["kind = \"regression\"", "text = \"body\"", "text_pair = \"title\"", "label = \"score\"", "column \"label\""]
    {
        assert!(written.contains(says), "{says} is not in\n{written}");
    }
    let (code, _, err) = run(&dir, &["config", "validate", "--config", "configs/c.toml"]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn what_cannot_be_told_names_columns_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("d.tsv"), rows(|i| format!("{i}\tonly a text {i}\n"))).unwrap();
    let (code, _, err) = run(&dir, &["config", "init", "--data", "d.tsv"]);
    assert_eq!(code, 2);
    assert!(err.contains("d.tsv: ") && err.contains("--label") && err.contains("column 1: "), "{err}");
    assert_eq!(run(&dir, &["config", "init"]).0, 2, "neither a task nor a file");
    assert_eq!(run(&dir, &["config", "init", "--task", "pair", "--label", "0"]).0, 2, "--label is for --data");
}
