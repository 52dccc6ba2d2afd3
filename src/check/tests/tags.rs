//! Sentences of words with tags that have planted faults.

use super::super::findings::{Listed, Options};
use super::super::*;
use super::{MODEL, limits, sentence};
use crate::data::Tokenizer;
use crate::data::config::{DataConfig, EvalSource, Format, TaskKind};
use crate::data::tagging::scheme::Scheme;
use tempfile::TempDir;

/// Sentences as words and tags.
type Rows = Vec<Vec<(String, String)>>;

/// Sentence `number`: fourteen words, of which the fourth and fifth are a PER in two of three sentences, and the ninth a LOC.
fn tagged(number: u64) -> Vec<(String, String)> {
    let tag = |i: usize| match i {
        3 if !number.is_multiple_of(3) => "B-PER",
        4 if !number.is_multiple_of(3) => "I-PER",
        8 => "B-LOC",
        _ => "O",
    };
    sentence(number).split(' ').enumerate().map(|(i, word)| (word.to_owned(), tag(i).to_owned())).collect()
}

struct Planted {
    /// Of train and eval.
    splits: [Rows; 2],
    config: DataConfig,
}

/// What the check says.
struct Said {
    scan: Scan,
    measures: Vec<Measures>,
    findings: Vec<Finding>,
}

impl Planted {
    fn sound() -> Self {
        let rows = |start: u64, n: u64| (start..start + n).map(tagged).collect();
        let config = DataConfig {
            format: Some(Format::Conll),
            tag_scheme: Some(Scheme::Iob2),
            max_length: 32,
            ..toml::from_str("train = \"\"").unwrap()
        };
        Self { splits: [rows(0, 60), rows(1000, 30)], config }
    }

    fn tag(&mut self, split: usize, row: usize, word: usize) -> &mut String {
        &mut self.splits[split][row][word].1
    }

    fn write(&self, dir: &TempDir) -> DataConfig {
        let file = |name: &str, rows: &Rows| {
            let line = |(word, tag): &(String, String)| format!("{word}\t{tag}\n");
            let text: Vec<String> = rows.iter().map(|row| row.iter().map(line).collect()).collect();
            let path = dir.path().join(name);
            std::fs::write(&path, text.join("\n")).unwrap();
            path
        };
        let eval = self.config.eval.clone();
        DataConfig {
            train: file("train", &self.splits[0]).into(),
            eval: eval.or(Some(EvalSource::Files(file("eval", &self.splits[1]).into()))),
            ..self.config.clone()
        }
    }

    fn said(&self) -> Said {
        let dir = tempfile::tempdir().unwrap();
        let config = self.write(&dir);
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let scan = Scan::new(&config, TaskKind::Tokens, &tokenizer, None, 42).unwrap();
        let measures: Vec<_> =
            (0..scan.splits.len()).map(|i| Measures::new(&scan, i, limits(config.max_length))).collect();
        let mut findings = find(&scan, &measures, Options { near: Some(0.8), examples: 5, positions: 512 });
        excerpts(&mut findings, &Source::Sentences(config.sentence_options()), &tokenizer);
        Said { scan, measures, findings }
    }

    /// Name, split and count of each finding, with its examples' files, lines and details.
    fn found(&self) -> Vec<(String, usize, Vec<String>)> {
        let place = |p: &findings::Place| format!("{} {}", p.file.file_name().unwrap().to_str().unwrap(), p.line);
        let listed = |l: &Listed| {
            let other = l.other.as_ref().map_or_else(String::new, |other| format!(" = {}", place(other)));
            let detail = l.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
            format!("{}{other}{detail}", place(&l.at))
        };
        let name = |f: &Finding| f.name.to_string() + &f.split.as_ref().map_or_else(String::new, |s| format!(" {s}"));
        self.said().findings.iter().map(|f| (name(f), f.count, f.examples.iter().map(listed).collect())).collect()
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

#[test]
fn sound_sentences_give_nothing_and_are_counted() {
    let planted = Planted::sound();
    planted.gives(&[]);
    let Said { scan, measures, .. } = planted.said();
    let tags = measures[0].tags.as_ref().unwrap();
    assert_eq!((measures[0].rows, tags.words, tags.words_per_sentence.max), (60, 840, 14));
    let count = |name: &str| tags.counts.iter().find(|c| c.0 == name).unwrap().1;
    assert_eq!((count("B-PER"), count("I-PER"), count("B-LOC"), count("O")), (40, 40, 60, 700));
    assert_eq!((tags.majority.as_str(), tags.majority_accuracy), ("O", 700.0 / 840.0));
    let entities = tags.entities.as_ref().unwrap();
    let types: Vec<_> = entities.types.iter().map(|t| (t.name.as_str(), t.entities, t.words, t.sentences)).collect();
    assert_eq!(types, [("LOC", 60, 60, 60), ("PER", 40, 80, 40)]);
    assert_eq!((entities.count, entities.outside_share, entities.imbalance), (100, 700.0 / 840.0, 1.5));
    assert_eq!((entities.scheme.configured, entities.scheme.guessed), (Some("iob2"), Some("iob2")));
    assert_eq!(entities.scheme.sentences, [("iob1", 0), ("iob2", 60), ("iobes", 0)].into());
    assert!(entities.seen_in_train.is_none());
    let windows = measures[0].windows.as_ref().unwrap();
    assert_eq!((windows.rows, windows.windows, measures[0].truncation.is_none()), (0, 60, true));
    assert_eq!(scan.class_counts(&scan.splits[0]).iter().sum::<usize>(), 840);
}

#[test]
fn entities_of_eval_that_train_has_are_counted_by_words_and_type() {
    let mut planted = Planted::sound();
    for (row, word, tag) in [(0, "Zürich", "LOC"), (1, "ZÜRICH", "LOC"), (2, "Zürich", "PER")] {
        let split = usize::from(row > 0);
        planted.splits[split][row][12] = (word.to_owned(), format!("B-{tag}"));
    }
    let known =
        |planted: &Planted| planted.said().measures[1].tags.as_ref().unwrap().entities.clone().unwrap().seen_in_train;
    let all = known(&planted).unwrap();
    planted.splits[0][0][12].0 = "Bern".into();
    assert_eq!(known(&planted).unwrap(), all - 1);
}

#[test]
fn equal_sentences_leak_repeat_and_contradict() {
    let mut planted = Planted::sound();
    planted.splits[0][10] = tagged(4);
    planted.splits[0][20] = tagged(7);
    *planted.tag(0, 20, 3) = "B-ORG".into();
    *planted.tag(0, 20, 4) = "I-ORG".into();
    planted.splits[1][5] = tagged(8);
    let word = sentence(7).split(' ').nth(3).unwrap().to_owned();
    // A sentence takes fourteen lines and a blank one.
    let conflict = format!("train 106 = train 301: \"{word}\": B-PER | B-ORG, and 1 more word");
    planted.gives(&[
        ("missing-labels eval", 1, &[]),
        ("leakage eval", 1, &["eval 76 = train 121"]),
        ("conflicts", 1, &[&conflict]),
        ("duplicates train", 2, &["train 151 = train 61", "train 301 = train 106"]),
        ("imbalance train", 3, &[]),
        ("tiny-classes train", 1, &[]),
    ]);
}

#[test]
fn tags_that_break_the_scheme_are_told_with_their_line() {
    let mut planted = Planted::sound();
    *planted.tag(0, 2, 3) = "O".into();
    *planted.tag(1, 0, 0) = "I-PER".into();
    let faults: [(&str, usize, &[&str]); 2] = [
        ("bad-tags train", 1, &["train 35: \"I-PER\" may not stand after \"O\""]),
        ("bad-tags eval", 1, &["eval 1: \"I-PER\" may not begin a sentence"]),
    ];
    planted.gives(&faults);
    // The others tell which scheme is meant.
    planted.config.tag_scheme = None;
    planted.gives(&faults);
    let said = planted.said();
    assert!(said.findings[0].message.contains("break iob2, to which the others keep"), "{:?}", said.findings[0]);
    planted.config.tag_scheme = Some(Scheme::Iobes);
    let said = planted.said();
    let finding = &said.findings[0];
    assert_eq!((finding.name, finding.count), (Name::BadTags, 60));
    assert!(finding.message.contains("its tags look like iob2 (59 sentences of 60 keep to it)"), "{}", finding.message);
    assert!(finding.fix.starts_with("set data.tag_scheme = \"iob2\""), "{}", finding.fix);
}

#[test]
fn tags_of_one_split_only_and_those_not_listed() {
    let mut planted = Planted::sound();
    *planted.tag(1, 4, 0) = "B-DATE".into();
    planted.splits[1].iter_mut().flatten().filter(|w| w.1.ends_with("PER")).for_each(|w| w.1 = "O".into());
    planted.gives(&[("missing-labels eval", 1, &["eval 61: B-DATE"]), ("missing-labels eval", 1, &[])]);
    let said = planted.said();
    assert!(said.findings[1].message.ends_with("eval lacks 1 type of train: PER"), "{}", said.findings[1].message);
    let mut planted = Planted::sound();
    planted.config.labels = Some(["O", "B-PER", "I-PER"].map(String::from).to_vec());
    let found = planted.found();
    assert_eq!((found[0].0.as_str(), found[0].1, found[0].2[0].as_str()), ("bad-labels train", 60, "train 9: B-LOC"));
    planted.config.labels = None;
    planted.config.rename_labels = [("B-LOC".to_owned(), "O".to_owned())].into();
    planted.gives(&[]);
}

#[test]
fn words_without_tokens_and_long_sentences() {
    let mut planted = Planted::sound();
    planted.splits[0][1][2].0 = "\u{200b}".into();
    planted.splits[1][3] = vec![("\u{200b}".into(), "O".into())];
    planted.gives(&[("empty eval", 1, &["eval 46"]), ("lost-words train", 1, &["train 18: word 3"])]);
    let mut planted = Planted::sound();
    let long: Vec<_> = (0..4).flat_map(|i| tagged(500 + i)).collect();
    planted.splits[0][7] = long;
    planted.gives(&[("truncation train", 1, &["train 106: 58 tokens"])]);
    let said = planted.said();
    let windows = said.measures[0].windows.as_ref().unwrap();
    assert_eq!(
        (windows.rows, windows.windows, windows.max_length_for_99_percent),
        (1, said.scan.splits[0].data.len(), 58)
    );
    assert!(windows.windows > 61, "{windows:?}");
    assert!(said.findings[0].fix.contains("data.max_length = 58"), "{}", said.findings[0].fix);
}

#[test]
fn parts_of_speech_are_counted_by_word() {
    let mut planted = Planted::sound();
    planted.config.tag_scheme = None;
    for word in planted.splits.iter_mut().flatten().flatten() {
        word.1 = if word.0.len().is_multiple_of(2) { "NOUN" } else { "VERB" }.into();
    }
    planted.gives(&[]);
    let said = planted.said();
    assert!(!said.scan.has_entities() && said.measures[0].tags.as_ref().unwrap().entities.is_none());
}

#[test]
fn a_share_for_eval_keeps_sentences_with_what_is_known_of_them() {
    let mut planted = Planted::sound();
    planted.config.eval = Some(EvalSource::Fraction(0.25));
    planted.config.max_length = 12;
    let said = planted.said();
    let rows: Vec<_> = said.measures.iter().map(|m| (m.split.as_str(), m.rows)).collect();
    assert_eq!(rows, [("train", 45), ("eval", 15)]);
    let words: usize = said.measures.iter().map(|m| m.tags.as_ref().unwrap().words).sum();
    assert_eq!(words, 840);
    for split in &said.scan.splits {
        for row in 0..split.len() {
            // Lines tell which sentence it is.
            let tags = split.sentences.as_ref().unwrap().tags(row);
            let number = (split.place(row).1 - 1) / 15;
            let of = |i: usize| split.sentences.as_ref().unwrap().names()[tags[i] as usize].clone();
            assert_eq!(of(3) == "B-PER", !number.is_multiple_of(3), "{number}");
        }
    }
}
