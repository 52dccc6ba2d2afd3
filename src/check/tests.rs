//! Data sets with planted faults: each is found with exactly the rows that were planted, and a sound set gives nothing.

mod answers;
mod tags;

use super::findings::Options;
use super::measures::Limits;
use super::*;
use crate::data::Tokenizer;
use crate::data::config::{Column, DataConfig, EvalSource, TaskKind};
use crate::rng::splitmix;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

const WORDS: &str = "time year people way day man thing woman life child world school state family student group country problem \
    hand part place case week company system program question work government number night point home water room mother \
    area money story fact month lot right study book eye job word business issue side kind head house service friend father \
    power hour game line end member law car city community name president team minute idea kid body information back parent \
    face others level office door health person art war history party result change morning reason research girl guy moment \
    air teacher force education";

/// Three splits of rows (text, label), written as csv.
struct Planted {
    splits: [Vec<(String, String)>; 3],
    max_length: usize,
    task: TaskKind,
}

/// A sentence of its own for each number.
fn sentence(number: u64) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let word = |i: u64| words[(splitmix(number * 1000 + i) % words.len() as u64) as usize];
    (0..14).map(word).collect::<Vec<_>>().join(" ")
}

impl Planted {
    /// 200, 50 and 50 rows without a fault; row `i` of a split has the label `i % 3`.
    fn sound() -> Self {
        let rows = |start: u64, n: u64| {
            (0..n).map(|i| (sentence(start + i), ["red", "green", "blue"][i as usize % 3].to_owned())).collect()
        };
        Self { splits: [rows(0, 200), rows(1000, 50), rows(2000, 50)], max_length: 64, task: TaskKind::Classification }
    }

    /// A sound one with numbers for labels.
    fn numbers() -> Self {
        let mut this = Self { task: TaskKind::Regression, ..Self::sound() };
        for rows in &mut this.splits {
            rows.iter_mut().enumerate().for_each(|(i, row)| row.1 = format!("{}", i % 11));
        }
        this
    }

    fn text(&mut self, split: usize, row: usize) -> &mut String {
        &mut self.splits[split][row].0
    }

    fn config(&self, dir: &TempDir) -> DataConfig {
        let path = |name: &str| dir.path().join(name);
        for (name, rows) in ["train.csv", "eval.csv", "test.csv"].into_iter().zip(&self.splits) {
            let mut text = "text,label\n".to_owned();
            rows.iter().for_each(|(t, label)| text += &format!("\"{t}\",{label}\n"));
            std::fs::write(path(name), text).unwrap();
        }
        DataConfig {
            train: path("train.csv").into(),
            eval: Some(EvalSource::Files(path("eval.csv").into())),
            test: Some(path("test.csv").into()),
            max_length: self.max_length,
            ..toml::from_str("train = \"\"").unwrap()
        }
    }

    fn scan(&self) -> (Scan, Vec<Measures>, Vec<Finding>) {
        let dir = tempfile::tempdir().unwrap();
        scan(&self.config(&dir), self.task)
    }

    /// Name, split and count of each finding, with the places of its examples: split and row, from 0.
    fn found(&self) -> Vec<(String, usize, Vec<String>)> {
        let row = |place: &findings::Place| {
            format!("{} {}", place.file.file_stem().unwrap().to_str().unwrap(), place.line - 2)
        };
        let listed = |l: &findings::Listed| match &l.other {
            Some(other) => format!("{} = {}", row(&l.at), row(other)),
            None => row(&l.at),
        };
        let name = |f: &Finding| match &f.split {
            Some(split) => format!("{} {split}", f.name),
            None => f.name.to_string(),
        };
        let found = self.scan().2;
        found.iter().map(|f| (name(f), f.count, f.examples.iter().map(listed).collect())).collect()
    }

    #[track_caller]
    fn gives(&self, expected: &[(&str, usize, &[&str])]) {
        let found = self.found();
        let found: Vec<(&str, usize, Vec<&str>)> =
            found.iter().map(|(n, c, l)| (n.as_str(), *c, l.iter().map(String::as_str).collect())).collect();
        let expected: Vec<_> = expected.iter().map(|(n, c, l)| (*n, *c, l.to_vec())).collect();
        assert_eq!(found, expected);
    }
}

fn limits(max_length: usize) -> Limits {
    Limits { max_length, max_answer_length: 30 }
}

fn scan(config: &DataConfig, task: TaskKind) -> (Scan, Vec<Measures>, Vec<Finding>) {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let scan = Scan::new(config, task, &tokenizer, None, 42).unwrap();
    let measures: Vec<_> = (0..scan.splits.len()).map(|i| Measures::new(&scan, i, limits(config.max_length))).collect();
    let mut findings = find(&scan, &measures, Options { near: Some(0.8), examples: 5, positions: 512 });
    excerpts(&mut findings, &Source::Rows(config.read_options(TaskKind::Classification)), &tokenizer);
    (scan, measures, findings)
}

#[test]
fn a_sound_set_gives_nothing() {
    Planted::sound().gives(&[]);
    Planted::numbers().gives(&[]);
}

#[test]
fn duplicates_conflicts_and_leakage_of_equal_texts() {
    let mut data = Planted::sound();
    // The same label: 4 % 3 == 10 % 3.
    *data.text(0, 10) = sentence(4).to_uppercase();
    // Another label.
    *data.text(0, 21) = format!(" {} ", sentence(7).replace(' ', "  "));
    data.splits[1][5] = (sentence(8), "blue".into());
    data.splits[2][9] = (sentence(9), "green".into());
    data.gives(&[
        ("leakage eval", 1, &["eval 5 = train 8"]),
        ("leakage test", 1, &["test 9 = train 9"]),
        ("conflicts", 2, &["train 7 = train 21", "train 9 = test 9"]),
        ("duplicates train", 2, &["train 10 = train 4", "train 21 = train 7"]),
    ]);
}

#[test]
fn near_duplicates_and_near_leakage() {
    let mut data = Planted::sound();
    *data.text(0, 30) = sentence(3) + " indeed";
    *data.text(0, 60) = sentence(6).replacen(' ', ", ", 1);
    *data.text(1, 7) = "well ".to_owned() + &sentence(12);
    *data.text(2, 8) = sentence(2001) + "!";
    // A repeat of a row that leaks leaks too.
    *data.text(1, 10) = "Well ".to_owned() + &sentence(12);
    // Half of the words are not near.
    *data.text(0, 90) = sentence(9)[..40].to_owned() + &sentence(500)[40..];
    data.gives(&[
        ("leakage eval", 2, &["eval 7 = train 12", "eval 10 = train 12"]),
        ("duplicates eval", 1, &["eval 10 = eval 7"]),
        ("near-duplicates train", 2, &["train 30 = train 3", "train 60 = train 6"]),
        ("near-duplicates test", 1, &["test 8 = test 1"]),
    ]);
}

#[test]
fn near_can_be_switched_off() {
    let mut data = Planted::sound();
    *data.text(0, 30) = sentence(3) + " indeed";
    let (scan, measures, found) = data.scan();
    assert_eq!(found.len(), 1);
    assert_eq!(find(&scan, &measures, Options { near: None, examples: 5, positions: 512 }), []);
    let listed = &find(&scan, &measures, Options { near: Some(0.8), examples: 0, positions: 512 })[0];
    assert_eq!((listed.count, listed.examples.len()), (1, 0));
}

#[test]
fn numbers_of_one_text_conflict_when_they_are_far_apart() {
    let mut data = Planted::numbers();
    data.splits[0][20] = (sentence(1), "1.5".into()); // 0.5 of a range of 10
    data.splits[0][40] = (sentence(2), "7".into());
    data.gives(&[
        ("conflicts", 1, &["train 2 = train 40"]),
        ("duplicates train", 2, &["train 20 = train 1", "train 40 = train 2"]),
    ]);
}

#[test]
fn truncation_is_told_beyond_one_percent() {
    let mut data = Planted::sound();
    data.max_length = 20;
    data.text(0, 0).push_str(" one two three four five");
    data.text(0, 1).push_str(" five six seven eight nine ten");
    data.gives(&[]);
    *data.text(0, 2) = (0..50).map(|_| "so ").collect();
    let (_, measures, found) = data.scan();
    assert_eq!((found.len(), found[0].name, found[0].count), (1, Name::Truncation, 3));
    assert_eq!(found[0].examples[0].detail.as_deref(), Some("52 tokens"));
    assert_eq!(found[0].examples[0].at.line, 4);
    let cut = measures[0].truncation.as_ref().unwrap();
    assert_eq!((cut.rows, cut.tokens, cut.max_length_for_99_percent), (3, 1 + 2 + 32, 21));
    assert_eq!((measures[0].length.max, measures[0].length.p50), (52, 16));
}

#[test]
fn unknown_tokens_are_told_with_their_words() {
    let mut data = Planted::sound();
    *data.text(0, 5) = "𝔘𝔫𝔨𝔫 time 𓀀𓀁".into();
    data.gives(&[]);
    for row in 0..17 {
        *data.text(1, row) = sentence(1000 + row as u64) + " 𓀀";
    }
    let (_, measures, found) = data.scan();
    assert_eq!((found.len(), found[0].name, found[0].count), (1, Name::UnknownTokens, 17));
    assert_eq!(found[0].examples[0].detail.as_deref(), Some("1 unknown: 𓀀"));
    assert_eq!((measures[1].unknown.tokens, measures[1].unknown.rows), (17, 17));
    let words = 50 * 14 + 17;
    assert!((measures[1].unknown.share - 17.0 / words as f64).abs() < 1e-12);
}

#[test]
fn damaged_text_is_told() {
    let mut data = Planted::sound();
    data.text(0, 3).push_str(" cafÃ©");
    data.text(2, 4).push_str(" AT&amp;T <br />");
    data.gives(&[("mojibake train", 1, &["train 3"]), ("html test", 1, &["test 4"])]);
    let (.., found) = data.scan();
    assert_eq!(found[0].examples[0].detail.as_deref(), Some("\"Ã©\""));
    assert_eq!(found[1].examples[0].detail.as_deref(), Some("&amp;"));
    assert!(found[0].examples[0].texts[0].ends_with(" cafÃ©"));
}

#[test]
fn empty_and_constant_columns_are_told() {
    let mut data = Planted::sound();
    *data.text(1, 3) = "  ".into();
    *data.text(1, 8) = String::new();
    data.gives(&[("empty eval", 2, &["eval 3", "eval 8"])]);
    let mut data = Planted::sound();
    data.splits[2].iter_mut().for_each(|row| row.0 = "the same".into());
    let names: Vec<_> = data.found().into_iter().map(|f| (f.0, f.1)).collect();
    assert_eq!(names, [("conflicts".into(), 1), ("duplicates test".into(), 49), ("empty test".into(), 50)]);
    let mut data = Planted::sound();
    data.splits[0].iter_mut().for_each(|row| row.1 = "red".into());
    let names: Vec<_> = data.found().into_iter().map(|f| (f.0, f.1)).collect();
    assert_eq!(
        names,
        [("missing-labels eval".into(), 2), ("missing-labels test".into(), 2), ("empty train".into(), 200)]
    );
}

#[test]
fn labels_of_one_split_only_and_unusable_ones() {
    let mut data = Planted::sound();
    data.splits[2][7].1 = "violet".into();
    data.splits[1].retain(|row| row.1 != "blue");
    data.splits[0][2].1 = String::new();
    data.gives(&[
        ("bad-rows train", 1, &["train 2"]),
        ("missing-labels eval", 1, &[]),
        ("missing-labels test", 1, &["test 7"]),
    ]);
    let (.., found) = data.scan();
    assert!(found[1].message.starts_with("eval lacks 1 label of train: blue"), "{}", found[1].message);
    assert!(found[2].message.ends_with("train has not: violet"), "{}", found[2].message);
    let mut data = Planted::numbers();
    data.splits[2][7].1 = "high".into();
    data.gives(&[("bad-labels test", 1, &["test 7"])]);
}

#[test]
fn imbalance_and_tiny_classes_are_told() {
    let mut data = Planted::sound();
    data.splits[0].iter_mut().filter(|row| row.1 == "blue").skip(9).for_each(|row| row.1 = "red".into());
    let (_, measures, found) = data.scan();
    let labels = measures[0].labels.as_ref().unwrap();
    assert_eq!(labels.counts, [("blue".into(), 9), ("green".into(), 67), ("red".into(), 124)]);
    assert_eq!((labels.majority.as_str(), labels.majority_accuracy), ("red", 0.62));
    assert_eq!(measures[1].labels.as_ref().unwrap().majority_accuracy, 17.0 / 50.0);
    let names: Vec<_> = found.iter().map(|f| f.name).collect();
    assert_eq!(names, [Name::Imbalance, Name::TinyClasses]);
    assert!(found[0].message.contains("13.8 times the smallest: red: 124, blue: 9"), "{}", found[0].message);
}

#[test]
fn figures_of_a_regression() {
    let (scan, measures, _) = Planted::numbers().scan();
    let values = measures[0].values.as_ref().unwrap();
    // 0 to 10 eighteen times, then 0 and 1.
    let mean = (18.0 * 55.0 + 1.0) / 200.0;
    let square = (18.0 * 385.0 + 1.0) / 200.0;
    assert!((values.mean - mean).abs() < 1e-9 && (values.std - (square - mean * mean).sqrt()).abs() < 1e-9);
    assert_eq!((values.min, values.max), (0.0, 10.0));
    assert!((values.mean_predictor_mse - values.std.powi(2)).abs() < 1e-9);
    let other = measures[1].values.as_ref().unwrap();
    let rows: Vec<f64> = (0..50).map(|i| f64::from(i % 11)).collect();
    let exact = rows.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 50.0;
    assert!((other.mean_predictor_mse - exact).abs() < 1e-9);
    assert!(scan.classes.is_empty());
}

#[test]
fn a_pair_is_judged_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "a,b,label\n".to_owned();
    for i in 0..40 {
        // Every first text comes twice, which is no fault.
        text += &format!("{},{},{}\n", sentence(i / 2), sentence(100 + i), i % 4 / 2);
    }
    text += &format!("{},{},1\n", sentence(0), sentence(100));
    text += &format!("{},{} indeed,0\n", sentence(1), sentence(102));
    text += &format!("{},,0\n", sentence(30));
    std::fs::write(dir.path().join("train.csv"), text).unwrap();
    let config = DataConfig {
        train: dir.path().join("train.csv").into(),
        text: Column::Name("a".into()).into(),
        text_pair: Some(Column::Name("b".into())),
        ..toml::from_str("train = \"\"").unwrap()
    };
    let (scan, measures, found) = scan(&config, TaskKind::Classification);
    assert_eq!((scan.splits.len(), scan.frame, measures[0].rows), (1, 3, 43));
    let names: Vec<_> = found.iter().map(|f| (f.name, f.count, f.examples[0].at.line)).collect();
    let expected =
        [(Name::Conflicts, 1, 2), (Name::Duplicates, 1, 42), (Name::NearDuplicates, 1, 43), (Name::Empty, 1, 44)];
    assert_eq!(names, expected);
}

#[test]
fn a_fraction_is_the_split_of_training() {
    let dir = tempfile::tempdir().unwrap();
    let data = Planted::sound();
    let config = DataConfig { eval: Some(EvalSource::Fraction(0.2)), ..data.config(&dir) };
    let (scan, measures, found) = scan(&config, TaskKind::Classification);
    assert_eq!(found, []);
    let rows: Vec<_> = measures.iter().map(|m| (m.split.as_str(), m.rows)).collect();
    assert_eq!(rows, [("train", 160), ("eval", 40), ("test", 50)]);
    let all = crate::data::Targets::Class((0..200).map(|i| [2, 1, 0][i % 3]).collect());
    let (train, _) = crate::data::split_fraction(&all, 0.2, 42).unwrap();
    assert_eq!(scan.splits[0].data.lines, train.iter().map(|&r| r as u64 + 2).collect::<Vec<_>>());
}

#[test]
fn unknown_words_are_told_apart() {
    let mut data = Planted::sound();
    *data.text(0, 10) = "𓀀 𓀁 𓀂 𓀃 𓀄 time".into();
    *data.text(0, 20) = "𓀅 𓀆 𓀇 𓀈 𓀉 time".into();
    *data.text(0, 33) = "𓀀 𓀁 𓀂 𓀃 𓀄 time 𓀊".into();
    data.gives(&[("near-duplicates train", 1, &["train 33 = train 10"])]);
}
