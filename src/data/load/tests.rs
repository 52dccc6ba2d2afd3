use super::*;
use crate::data::config::Column;
use std::path::PathBuf;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn options() -> ReadOptions {
    ReadOptions { label: Some(Column::Name("label".into())), ..ReadOptions::default() }
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train.csv");
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

/// Rows with texts of many lengths, some quoted over two lines.
fn rows(n: usize) -> String {
    let row = |i: usize| format!("\"{}\n{}\",{}\n", "the cat ".repeat(i % 50), i * 7919 % 1000, i % 5);
    "text,label\n".to_owned() + &(0..n).map(row).collect::<String>()
}

/// What loading gives, and the most chunks of texts that were in memory at once.
fn loaded(file: &Path, threads: usize) -> (Result<Loaded>, usize) {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let source = Source::new(Reader::open(file, &options()).unwrap());
    let size = Some(std::fs::metadata(file).unwrap().len());
    let check = |label: &str| if label == "bad" { Err("this label is bad".into()) } else { Ok(()) };
    let mut watch = Watch { progress: &mut |_| Ok(()), check_label: &check };
    let loaded = source.run(threads, &tokenizer, 32, file, size, &mut watch);
    assert_eq!(source.live.load(Ordering::Relaxed), 0, "threads={threads}");
    (loaded, source.most_live.load(Ordering::Relaxed))
}

fn message(file: &Path, threads: usize) -> String {
    let message = loaded(file, threads).0.err().expect("loading must fail").to_string();
    message.rsplit_once("train.csv:").unwrap().1.to_owned()
}

#[test]
fn rows_are_those_of_the_reader_in_its_order_for_any_number_of_threads() {
    let (_dir, file) = written(&rows(3000));
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let examples: Vec<Example> = Reader::open(&file, &options()).unwrap().collect::<Result<_>>().unwrap();
    let expected = tokenizer.encode(&examples, 32, &mut |_, _| Ok(())).unwrap();
    for threads in [1, 2, 3, 7] {
        let (loaded, most) = loaded(&file, threads);
        let loaded = loaded.unwrap();
        assert_eq!(loaded.tokens, expected);
        assert_eq!(loaded.tokens.digest(), expected.digest());
        assert_eq!(loaded.lines(), examples.iter().map(|e| e.line).collect::<Vec<_>>());
        assert_eq!(loaded.labels.names(), ["0", "1", "2", "3", "4"]);
        let labels = loaded.labels.map(loaded.lines(), &file, |l| Ok(l.parse::<usize>().unwrap())).unwrap();
        assert_eq!(labels, (0..3000).map(|i| i % 5).collect::<Vec<_>>());
        assert!((1..=threads).contains(&most), "{most} chunks of texts for {threads} threads");
    }
}

#[test]
fn the_first_bad_row_is_reported_whatever_is_wrong_with_it() {
    let good = |from: usize, to: usize| (from..to).map(|i| format!("text {i},{}\n", i % 3)).collect::<String>();
    let with = |first: &str, second: &str| {
        format!("text,label\n{}{first}\n{}{second}\n{}", good(0, 1000), good(0, 500), good(0, 500))
    };
    let (ragged, label) = ("x,0,1", "x,bad");
    for threads in [1, 3] {
        let (_dir, file) = written(&with(ragged, label));
        assert!(message(&file, threads).starts_with("1002: the row has 3 fields"));
        let (_dir, file) = written(&with(label, ragged));
        assert_eq!(message(&file, threads), "1002: this label is bad");
        // In one chunk.
        let (_dir, file) = written(&format!("text,label\n{label}\n{ragged}\n"));
        assert_eq!(message(&file, threads), "2: this label is bad");
        let (_dir, file) = written(&format!("text,label\na,0\n{ragged}\n{label}\n"));
        assert!(message(&file, threads).starts_with("3: the row has 3 fields"));
    }
}

#[test]
fn an_error_from_progress_ends_the_work() {
    let (_dir, file) = written(&rows(20_000));
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let mut calls = 0;
    let mut progress = |_| {
        calls += 1;
        if calls < 3 { Ok(()) } else { Err(Error::Interrupted { resumable: false }) }
    };
    let mut watch = Watch { progress: &mut progress, check_label: &|_| Ok(()) };
    let result = load(&file, &options(), &tokenizer, 32, &mut watch);
    assert!(matches!(result, Err(Error::Interrupted { .. })));
    assert_eq!(calls, 3);
}

#[test]
fn progress_tells_rows_and_the_share_of_the_file() {
    let (_dir, file) = written(&rows(5000));
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let mut seen = vec![];
    let mut progress = |p: LoadProgress| {
        seen.push((p.rows, p.share.unwrap()));
        Ok(())
    };
    let mut watch = Watch { progress: &mut progress, check_label: &|_| Ok(()) };
    load(&file, &options(), &tokenizer, 32, &mut watch).unwrap();
    assert!(seen.is_sorted() && seen.len() > 10);
    assert_eq!(seen.last(), Some(&(5000, 1.0)));
}

#[test]
fn a_file_without_rows_is_an_error() {
    let (_dir, file) = written("text,label\n");
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let mut watch = Watch { progress: &mut |_| Ok(()), check_label: &|_| Ok(()) };
    let error = load(&file, &options(), &tokenizer, 32, &mut watch).err().unwrap().to_string();
    assert!(error.ends_with("the file has no rows of data"), "{error}");
    let error = load(&file, &options(), &tokenizer, 2, &mut watch).err().unwrap().to_string();
    assert!(error.contains("set data.max_length to 3 or more"), "{error}");
}
