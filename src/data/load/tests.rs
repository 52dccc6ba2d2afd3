use super::*;
use crate::data::config::Column;
use crate::data::settings::OnBadRow;
use std::path::Path;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn options() -> ReadOptions {
    ReadOptions { label: Some(Column::Name("label".into()).into()), ..ReadOptions::default() }
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
    let (files, options) = (Files::from(file.to_owned()), options());
    let source = Source::new(&files, &options).unwrap();
    let check = |label: &str| if label == "bad" { Err("this label is bad".into()) } else { Ok(()) };
    let mut watch = Watch { progress: &mut |_| Ok(()), check_label: &check };
    let loaded = source.run(threads, &tokenizer, 32, &mut watch);
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
        assert_eq!(loaded.places.lines(), examples.iter().map(|e| e.line).collect::<Vec<_>>());
        assert_eq!(loaded.labels.names(), ["0", "1", "2", "3", "4"]);
        let labels = loaded.labels.map(&loaded.places, |l| Ok(l.parse::<usize>().unwrap())).unwrap();
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

/// Three files, the second without rows and the third compressed, to be read with a column of groups, skipping and renaming.
fn several(dir: &Path) -> (Files, ReadOptions) {
    use std::io::Write;
    let text = |from: usize, to: usize| {
        let rows =
            (from..to).map(|i| format!("text {i},{},s{}\n{}", i % 3, i % 2, if i % 100 == 7 { "bad\n" } else { "" }));
        "text,label,source\n".to_owned() + &rows.collect::<String>()
    };
    let path = |name: &str| dir.join(name);
    std::fs::write(path("a.csv"), text(0, 400)).unwrap();
    std::fs::write(path("b.csv"), text(0, 0)).unwrap();
    let mut gz = flate2::write::GzEncoder::new(vec![], flate2::Compression::default());
    gz.write_all(text(400, 1000).as_bytes()).unwrap();
    std::fs::write(path("c.csv.gz"), gz.finish().unwrap()).unwrap();
    let options = ReadOptions {
        slice: Some(Column::Name("source".into())),
        on_bad_row: OnBadRow::Skip,
        rename_labels: [("1", "one"), ("9", "nine")].map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
        ..options()
    };
    (Files::new(["a.csv", "b.csv", "c.csv.gz"].map(path).to_vec()).unwrap(), options)
}

#[test]
fn several_files_are_one_with_places_groups_and_skipped_rows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let (files, options) = several(dir.path());
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let examples: Vec<Example> = Reader::open_all(files.as_slice(), &options).unwrap().collect::<Result<_>>().unwrap();
    let expected = tokenizer.encode(&examples, 32, &mut |_, _| Ok(())).unwrap();
    for threads in [1, 3] {
        let mut shares = vec![];
        let mut progress = |p: LoadProgress| {
            shares.push(p.share.unwrap());
            Ok(())
        };
        let mut watch = Watch { progress: &mut progress, check_label: &|_| Ok(()) };
        let loaded = Source::new(&files, &options).unwrap().run(threads, &tokenizer, 32, &mut watch).unwrap();
        assert_eq!(loaded.tokens, expected);
        assert_eq!(loaded.labels.names(), ["0", "one", "2"]);
        let slices = loaded.slices.unwrap();
        for (row, example) in examples.iter().enumerate() {
            assert_eq!((loaded.places.file(row), loaded.places.lines()[row]), (&*example.file, example.line));
            let name = |c: &Labels| c.names[c.codes[row] as usize].clone();
            assert_eq!(
                (name(&loaded.labels), name(&slices)),
                (example.label.clone().unwrap(), example.slice.clone().unwrap())
            );
        }
        assert_eq!(loaded.skipped.rows, 10);
        let last = loaded.skipped.first.last().unwrap();
        // 500 rows and 5 others after the header.
        assert_eq!((&*last.file, last.line), (&*files.as_slice()[2].display().to_string(), Some(515)));
        assert_eq!(loaded.unused_renames, ["9"]);
        assert!(shares.is_sorted() && shares.last() == Some(&1.0), "{shares:?}");
        // The label of the first row of the last file is refused there.
        let check = |label: &str| if label == "2" { Err("no".to_owned()) } else { Ok(()) };
        let error = loaded.labels.map(&loaded.places, check).unwrap_err().to_string();
        assert!(error.ends_with("a.csv:4: no"), "{error}");
    }
}

#[test]
fn messages_name_the_file_of_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let (files, options) = several(dir.path());
    std::fs::write(dir.path().join("b.csv"), "text,label,source\na,0,s\nb,odd,s\n").unwrap();
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let check = |label: &str| if label == "odd" { Err("this label is odd".into()) } else { Ok(()) };
    let mut watch = Watch { progress: &mut |_| Ok(()), check_label: &check };
    let error = load(&files, &options, &tokenizer, 32, &mut watch).err().unwrap().to_string();
    assert!(error.ends_with("b.csv:3: this label is odd"), "{error}");
    let rows: String = (0..1001).map(|i| format!("a,0,s{i}\n")).collect();
    std::fs::write(dir.path().join("b.csv"), "text,label,source\n".to_owned() + &rows).unwrap();
    let error = load(&files, &options, &tokenizer, 32, &mut watch).err().unwrap().to_string();
    assert!(error.contains("b.csv: eval.slice_by has more than 1000 values"), "{error}");
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
    let result = load(&file.clone().into(), &options(), &tokenizer, 32, &mut watch);
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
    load(&file.clone().into(), &options(), &tokenizer, 32, &mut watch).unwrap();
    assert!(seen.is_sorted() && seen.len() > 10);
    assert_eq!(seen.last(), Some(&(5000, 1.0)));
}

#[test]
fn a_file_without_rows_is_an_error() {
    let (_dir, file) = written("text,label\n");
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let mut watch = Watch { progress: &mut |_| Ok(()), check_label: &|_| Ok(()) };
    let error = load(&file.clone().into(), &options(), &tokenizer, 32, &mut watch).err().unwrap().to_string();
    assert!(error.ends_with("the file has no rows of data"), "{error}");
    let error = load(&file.clone().into(), &options(), &tokenizer, 2, &mut watch).err().unwrap().to_string();
    assert!(error.contains("set data.max_length to 3 or more"), "{error}");
}
