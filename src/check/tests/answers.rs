//! Questions that have planted faults.

use super::super::findings::{Listed, Options};
use super::super::*;
use super::{MODEL, limits, sentence};
use crate::data::Tokenizer;
use crate::data::config::{DataConfig, EvalSource, TaskKind};
use serde_json::{Value, json};

/// Questions as lines of JSON.
struct Planted {
    splits: [Vec<Value>; 2],
    config: DataConfig,
}

/// What the check says.
struct Said {
    scan: Scan,
    measures: Vec<Measures>,
    findings: Vec<Finding>,
}

/// Question `number` of a split that begins at `start`, about a text of two sentences that it shares with one other; its
/// answer is a word, but every fourth has none.
fn question(start: u64, number: u64) -> Value {
    let context = format!("{}. {}", sentence(start + number / 2), sentence(start + 500 + number / 2));
    let word = context.split(' ').nth(3).unwrap();
    let at = context.find(&format!(" {word} ")).unwrap() + 1;
    let answers = if number % 4 == 3 { json!([]) } else { json!([{"text": word, "answer_start": at}]) };
    json!({"id": format!("q{}", start + number), "question": format!("what is {}?", sentence(start + 900 + number)),
        "context": context, "answers": answers})
}

impl Planted {
    fn sound() -> Self {
        let rows = |start: u64, n: u64| (0..n).map(|i| question(start, i)).collect();
        let mut config = DataConfig { max_length: 64, doc_stride: Some(16), ..toml::from_str("train = \"\"").unwrap() };
        config.fill_in_questions(|_| false);
        config.max_length = 64;
        Self { splits: [rows(0, 40), rows(2000, 20)], config }
    }

    fn said(&self) -> Said {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, rows: &[Value]| {
            let path = dir.path().join(name);
            std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
            path
        };
        let eval = self.config.eval.clone();
        let config = DataConfig {
            train: file("train.jsonl", &self.splits[0]).into(),
            eval: eval.or(Some(EvalSource::Files(file("eval.jsonl", &self.splits[1]).into()))),
            ..self.config.clone()
        };
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let scan = Scan::new(&config, TaskKind::Span, &tokenizer, None, 42).unwrap();
        let limits = limits(config.max_length);
        let measures: Vec<_> = (0..scan.splits.len()).map(|i| Measures::new(&scan, i, limits)).collect();
        let mut findings = find(&scan, &measures, Options { near: Some(0.8), examples: 5, positions: 512 });
        excerpts(&mut findings, &Source::Questions(config.question_options()), &tokenizer);
        Said { scan, measures, findings }
    }

    /// Name, split and count of each finding, with the ids of its examples and their details.
    #[track_caller]
    fn gives(&self, expected: &[(&str, usize, &[&str])]) {
        let id = |p: &findings::Place| p.id.clone().unwrap_or_else(|| format!("line {}", p.line));
        let listed = |l: &Listed| {
            let other = l.other.as_ref().map_or_else(String::new, |other| format!(" = {}", id(other)));
            let detail = l.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
            format!("{}{other}{detail}", id(&l.at))
        };
        let name = |f: &Finding| f.name.to_string() + &f.split.as_ref().map_or_else(String::new, |s| format!(" {s}"));
        let found: Vec<(String, usize, Vec<String>)> = (self.said().findings.iter())
            .map(|f| (name(f), f.count, f.examples.iter().map(listed).collect()))
            .collect();
        let expected: Vec<_> = (expected.iter())
            .map(|(n, c, l)| (n.to_string(), *c, l.iter().map(|l| l.to_string()).collect::<Vec<_>>()))
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn sound_questions_give_nothing_and_are_counted() {
    let planted = Planted::sound();
    planted.gives(&[]);
    let Said { scan, measures, .. } = planted.said();
    let answers = measures[0].answers.as_ref().unwrap();
    assert_eq!((measures[0].rows, answers.contexts, answers.without_answer), (40, 20, 10));
    assert_eq!((answers.moved, answers.inexact, answers.lost, answers.too_long), (0, 0, 0, 0));
    assert_eq!((answers.answer_length.max, answers.max_answer_length), (1, 30));
    // Two sentences of fourteen words and a full stop; "what is", fourteen words and a mark.
    assert_eq!((answers.context_length.p50, answers.question_length.p50, measures[0].length.p50), (29, 17, 49));
    let windows = measures[0].windows.as_ref().unwrap();
    assert_eq!((windows.rows, windows.windows), (0, 40));
    assert_eq!(scan.splits[0].id(3), Some("q3"));
}

#[test]
fn equal_questions_and_texts_of_both_splits() {
    let mut planted = Planted::sound();
    let again = |row: usize, id: &str| {
        let mut copy = planted.splits[0][row].clone();
        copy["id"] = json!(id);
        copy
    };
    let (repeated, mut other) = (again(2, "again"), again(4, "other"));
    let context = other["context"].as_str().unwrap().to_owned();
    let word = |i: usize| context.split(' ').nth(i).unwrap();
    let at = context.find(&format!(" {} ", word(5))).unwrap() + 1;
    other["answers"] = json!([{"text": word(5), "answer_start": at}]);
    planted.splits[0].extend([repeated, other]);
    let conflict = format!("q4 = other: {} | {}", word(3), word(5));
    planted.splits[1][6]["context"] = planted.splits[0][8]["context"].clone();
    planted.splits[1][6]["answers"] = json!([]);
    let near = planted.splits[0][30]["context"].as_str().unwrap().to_owned() + " indeed";
    planted.splits[1][9]["context"] = json!(near);
    planted.splits[1][9]["answers"] = json!([]);
    planted.gives(&[
        ("leakage eval", 2, &["q2006 = q8", "q2009 = q30"]),
        ("conflicts", 1, &[&conflict]),
        ("duplicates train", 2, &["again = q2", "other = q4"]),
    ]);
}

#[test]
fn answers_that_a_model_cannot_give() {
    let mut planted = Planted::sound();
    let context = |planted: &Planted, row: usize| planted.splits[0][row]["context"].as_str().unwrap().to_owned();
    let answer = |text: &str, start: usize| json!([{"text": text, "answer_start": start}]);
    // Within the first word; more than any window has; one that stands elsewhere.
    let first = context(&planted, 4).split(' ').next().unwrap().to_owned();
    planted.splits[0][4]["answers"] = answer(&first[..first.len() - 1], 0);
    let long = [70, 71, 72, 73].map(sentence).join(" ");
    planted.splits[0][12]["context"] = json!(long);
    planted.splits[0][12]["answers"] = answer(&long, 0);
    let words: Vec<String> = context(&planted, 16).split(' ').take(3).map(str::to_owned).collect();
    planted.splits[0][16]["answers"] = answer(&words.join(" "), 3);
    let said = planted.said();
    let names: Vec<_> = said.findings.iter().map(|f| (f.name.as_str(), f.count)).collect();
    assert_eq!(names, [("moved-answers", 1), ("lost-answers", 1), ("long-answers", 1), ("inexact-answers", 1)]);
    let example =
        |i: usize| (said.findings[i].examples[0].at.id.clone().unwrap(), said.findings[i].examples[0].detail.clone());
    assert_eq!(example(0).0, "q16");
    assert_eq!(example(1), ("q12".into(), Some("56 tokens".into())));
    assert_eq!(example(2), ("q12".into(), Some("56 tokens".into())));
    assert!(said.findings[2].fix.contains("eval.max_answer_length = 56"), "{}", said.findings[2].fix);
    assert_eq!(example(3), ("q4".into(), Some(format!("read as {first:?}"))));
    let answers = said.measures[0].answers.as_ref().unwrap();
    assert_eq!((answers.moved, answers.lost, answers.too_long, answers.inexact), (1, 1, 1, 1));
    assert!(said.measures[0].windows.as_ref().unwrap().windows > 40);
}

#[test]
fn questions_that_cannot_be_read_are_listed_by_their_message() {
    let mut planted = Planted::sound();
    planted.splits[1][2]["answers"] = json!([{"text": "nowhere to be seen", "answer_start": 0}]);
    planted.splits[1][5]["id"] = json!("q2004");
    let said = planted.said();
    assert_eq!((said.findings.len(), said.findings[0].name, said.findings[0].count), (1, Name::BadRows, 2));
    let details: Vec<_> = said.findings[0].examples.iter().filter_map(|l| l.detail.clone()).collect();
    assert!(
        details[0].contains("is nowhere in the context") && details[1].contains("has the id of row"),
        "{details:?}"
    );
}

#[test]
fn a_share_for_eval_parts_questions_about_one_text() {
    let mut planted = Planted::sound();
    planted.config.eval = Some(EvalSource::Fraction(0.25));
    let said = planted.said();
    let rows: Vec<_> = said.measures.iter().map(|m| (m.split.as_str(), m.rows)).collect();
    assert_eq!(rows, [("train", 30), ("eval", 10)]);
    let contexts: Vec<usize> = said.measures.iter().map(|m| m.answers.as_ref().unwrap().contexts).collect();
    assert_eq!((said.findings[0].name, said.findings.len()), (Name::Leakage, 1));
    assert_eq!(contexts[0] + contexts[1] - said.findings[0].count, 20);
}
