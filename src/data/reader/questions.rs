//! Questions about texts: SQuAD's JSON (articles of paragraphs of questions), or JSON lines with a question, its context and
//! its answers.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::jsonl::kind_of;
use super::lines::Lines;
use super::source::{decode, decompress};
use super::{Fault, Naming, Skipped, Walk, extensions, name_of, next_row, open_file};
use crate::data::config::{Column, Format};
use crate::data::settings::{Encoding, OnBadRow, STANDARD_INPUT};
use crate::data::span::{Answer, Question};
use crate::error::{Error, Result};

/// How files of questions are read.
#[derive(Debug, Clone, PartialEq)]
pub struct QuestionOptions {
    /// `None`: by extension, and for `.json` and streams by the first line.
    pub format: Option<Format>,
    /// The keys of the question, the context and the answers in JSON lines.
    pub question: String,
    pub context: String,
    pub answers: String,
    /// Whether answers are read.
    pub answered: bool,
    pub encoding: Option<Encoding>,
    pub on_bad_row: OnBadRow,
    pub naming: Naming,
}

impl Default for QuestionOptions {
    fn default() -> Self {
        Self {
            format: None,
            question: "question".into(),
            context: "context".into(),
            answers: "answers".into(),
            answered: true,
            encoding: None,
            on_bad_row: OnBadRow::default(),
            naming: Naming::Config,
        }
    }
}

/// Answers that were not at the place that the file gives, but at one other.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Repaired {
    pub answers: u64,
    /// The ids of the first ten questions with such.
    pub first: Vec<String>,
}

impl Repaired {
    fn add(&mut self, id: &str) {
        self.answers += 1;
        if self.first.len() < 10 && self.first.last().is_none_or(|last| last != id) {
            self.first.push(id.into());
        }
    }

    /// For readers; `None` when there are none.
    pub fn describe(&self) -> Option<String> {
        let (was, were) = (self.answers == 1, if self.answers == 1 { "answer was" } else { "answers were" });
        (self.answers > 0).then(|| {
            let it = if was { "its text stands" } else { "their texts stand" };
            format!(
                "{} {were} not at the given answer_start, and {it} at one other place, which is taken: {}{}",
                self.answers,
                self.first.join(", "),
                if self.answers > self.first.len() as u64 { ", …" } else { "" }
            )
        })
    }
}

/// Questions of files one after the other. JSON lines are read in memory bounded by the longest, a file of SQuAD whole.
pub struct QuestionReader {
    options: QuestionOptions,
    files: VecDeque<PathBuf>,
    source: Option<Source>,
    walk: Walk,
    repaired: Repaired,
    /// Ids so far and their rows, where answers are read.
    ids: HashMap<String, u64>,
}

enum Source {
    JsonLines(Box<Lines>),
    Squad(std::vec::IntoIter<Found>),
}

/// A question in a file, before it is checked.
struct Found {
    line: u64,
    file: Arc<Path>,
    what: Result<Parts, String>,
}

struct Parts {
    id: Option<Value>,
    question: String,
    context: Arc<str>,
    /// Text and place, where one is given; `None` when the key is missing.
    answers: Option<Vec<(String, Option<i64>)>>,
    is_impossible: bool,
}

impl QuestionReader {
    /// # Errors
    /// When the first file cannot be opened, or its format is not one of questions.
    pub fn open(files: &[PathBuf], options: &QuestionOptions) -> Result<Self> {
        let mut reader = Self {
            options: options.clone(),
            files: files.iter().cloned().collect(),
            source: None,
            walk: Walk::default(),
            repaired: Repaired::default(),
            ids: HashMap::new(),
        };
        reader.next_file()?;
        Ok(reader)
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.walk.skipped
    }

    /// The answers that were found elsewhere so far.
    pub fn repaired(&self) -> &Repaired {
        &self.repaired
    }

    fn next_file(&mut self) -> Result<bool> {
        let Some(path) = self.files.pop_front() else { return Ok(false) };
        let name: Arc<Path> = name_of(&path).into();
        let is_stream = path == Path::new(STANDARD_INPUT);
        let (input, (compression, extension)): (Box<dyn Read + Send>, _) = match is_stream {
            true => (Box::new(std::io::stdin()), (None, String::new())),
            false => (Box::new(open_file(&path)?), extensions(&path)),
        };
        let input = decompress(input, compression).map_err(|e| Error::io(&name, e))?;
        let encoding = self.options.encoding.map(|e| e.0);
        let by_content = is_stream || extension == "json";
        let is_squad = match self.options.format {
            Some(Format::Squad) => true,
            Some(Format::Jsonl) => false,
            None if by_content || ["jsonl", "ndjson"].contains(&extension.as_str()) => false,
            other => {
                let found = other.map_or("no known extension".into(), |f| format!("{} data", f.name()));
                let key = self.options.naming.key("format");
                let message = format!(
                    "the file has {found}, expected questions: SQuAD's json or jsonl; set {key} to squad or jsonl"
                );
                return Err(Error::in_file(name, message));
            }
        };
        if is_squad {
            let (mut input, _) = decode(input, encoding).map_err(|e| Error::io(&name, e))?;
            let mut text = vec![];
            input.read_to_end(&mut text).map_err(|e| Error::io(&name, e))?;
            self.source = Some(Source::Squad(squad(&text, &name)?.into_iter()));
            return Ok(true);
        }
        let mut lines = Lines::new(input, Arc::clone(&name), encoding, self.options.naming)?;
        // A line of JSON lines is an object of its own; the first of SQuAD begins one, or holds the list of all articles.
        let first_of_squad = |line: &[u8]| {
            serde_json::from_slice::<Map<String, Value>>(line).map_or(true, |object| object.contains_key("data"))
        };
        if self.options.format.is_none() && by_content && lines.peek()? && first_of_squad(lines.raw()) {
            let mut text = vec![];
            while lines.advance()? {
                text.extend_from_slice(lines.raw());
            }
            self.source = Some(Source::Squad(squad(&text, &name)?.into_iter()));
        } else {
            self.source = Some(Source::JsonLines(Box::new(lines)));
        }
        Ok(true)
    }

    fn read(&mut self) -> Result<Option<Question>, Fault> {
        loop {
            let found = match &mut self.source {
                None => return Ok(None),
                Some(Source::Squad(questions)) => questions.next(),
                Some(Source::JsonLines(lines)) => json_line(lines, &self.options)?,
            };
            match found {
                Some(found) => return self.checked(found).map(Some),
                None if self.next_file()? => {}
                None => return Ok(None),
            }
        }
    }

    fn checked(&mut self, found: Found) -> Result<Question, Fault> {
        let Found { line, file, what } = found;
        let row = self.walk.row + 1;
        let wrong = |message: String| Fault::Row(Error::at_line(&file, line, message));
        let Parts { id: given_id, question, context, answers, is_impossible } = what.map_err(wrong)?;
        let id = match &given_id {
            Some(Value::String(id)) => id.clone(),
            Some(other) => other.to_string(),
            None => row.to_string(),
        };
        let wrong = |message: &str| wrong(format!("question \"{id}\": {message}"));
        if question.trim().is_empty() {
            return Err(wrong("the question is empty; fix the row or drop it"));
        }
        if self.options.answered
            && let Some(before) = self.ids.insert(id.clone(), row)
        {
            let message =
                format!("row {row} has the id of row {before}; answers are compared by id, so give each its own");
            return Err(wrong(&message));
        }
        let mut at = vec![];
        if self.options.answered {
            let key = &self.options.answers;
            let answers = answers.ok_or_else(|| {
                wrong(&format!("there are no \"{key}\"; give the list of right answers, [] where there is none"))
            })?;
            if is_impossible && !answers.is_empty() {
                return Err(wrong("is_impossible is true, but there are answers; fix one of the two"));
            }
            for (text, start) in answers {
                let (start, moved) = located(&context, &text, start).map_err(|message| wrong(&message))?;
                if moved {
                    self.repaired.add(&id);
                }
                at.push(Answer { text, start });
            }
        }
        Ok(Question { id, given_id, question, context, answers: at, row, line, file })
    }
}

impl Iterator for QuestionReader {
    type Item = Result<Question>;

    fn next(&mut self) -> Option<Self::Item> {
        next_row(self, |reader| (&mut reader.walk, reader.options.on_bad_row), Self::read)
    }
}

/// The character at which an answer begins, and whether that is not where it was said to.
fn located(context: &str, text: &str, start: Option<i64>) -> Result<(usize, bool), String> {
    if text.is_empty() {
        return Err("an answer is empty; fix the row, or give [] where there is none".into());
    }
    let given = start.and_then(|start| usize::try_from(start).ok());
    let holds = |start: usize| context.char_indices().nth(start).is_some_and(|(at, _)| context[at..].starts_with(text));
    if let Some(start) = given.filter(|&start| holds(start)) {
        return Ok((start, false));
    }
    // Overlapping ones too.
    let mut places = context.char_indices().enumerate().filter(|(_, (at, _))| context[*at..].starts_with(text));
    let (first, others) = (places.next(), places.count());
    let said = start.map_or_else(|| "has no answer_start".into(), |start| format!("is not at character {start}"));
    match (first, others) {
        (Some((at, _)), 0) => Ok((at, start.is_some())),
        (None, _) => Err(format!("the answer \"{text}\" is nowhere in the context; fix the row or drop it")),
        (Some(_), n) => Err(format!("the answer \"{text}\" {said} and stands at {} places; fix answer_start", n + 1)),
    }
}

#[derive(Deserialize)]
struct Squad<'a> {
    #[serde(borrow)]
    data: Vec<Article<'a>>,
}

#[derive(Deserialize)]
struct Article<'a> {
    #[serde(borrow)]
    paragraphs: Vec<Paragraph<'a>>,
}

#[derive(Deserialize)]
struct Paragraph<'a> {
    context: String,
    #[serde(borrow)]
    qas: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Qa {
    id: Option<Value>,
    question: String,
    answers: Option<Vec<SquadAnswer>>,
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct SquadAnswer {
    text: String,
    answer_start: Option<i64>,
}

/// The questions of a file of SQuAD, v1.1 or v2.0.
fn squad(bytes: &[u8], file: &Arc<Path>) -> Result<Vec<Found>> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64 + 1;
        Error::at_line(file, line, "the file is not UTF-8; save it as UTF-8, or set its encoding")
    })?;
    let squad: Squad = serde_json::from_str(text).map_err(|e| {
        let message = format!(
            "this is neither SQuAD's JSON ({{\"data\": [{{\"paragraphs\": [{{\"context\": …, \"qas\": […]}}]}}]}}) nor JSON \
             lines: {}",
            reason(&e)
        );
        Error::at_line(file, e.line() as u64, message)
    })?;
    let (mut found, mut line, mut counted) = (vec![], 1, 0);
    for paragraph in squad.data.into_iter().flat_map(|article| article.paragraphs) {
        let context: Arc<str> = paragraph.context.into();
        for qa in paragraph.qas {
            // A raw value is a piece of the text.
            let at = qa.get().as_ptr() as usize - text.as_ptr() as usize;
            line += text.as_bytes()[counted..at].iter().filter(|b| **b == b'\n').count() as u64;
            counted = at;
            let what = match serde_json::from_str::<Qa>(qa.get()) {
                Ok(Qa { id, question, answers, is_impossible }) => {
                    let pair = |answer: SquadAnswer| (answer.text, answer.answer_start);
                    let answers = answers.map(|answers| answers.into_iter().map(pair).collect());
                    Ok(Parts { id, question, context: Arc::clone(&context), answers, is_impossible })
                }
                Err(e) => Err(format!("this is no question of SQuAD: {}", reason(&e))),
            };
            found.push(Found { line, file: Arc::clone(file), what });
        }
    }
    Ok(found)
}

/// What is wrong with some JSON, without the place.
fn reason(error: &serde_json::Error) -> String {
    error.to_string().split(" at line ").next().unwrap_or_default().to_owned()
}

fn json_line(lines: &mut Lines, options: &QuestionOptions) -> Result<Option<Found>, Fault> {
    loop {
        if !lines.advance()? {
            return Ok(None);
        }
        if !lines.bytes().iter().all(u8::is_ascii_whitespace) {
            break;
        }
    }
    lines.check()?;
    let what = flat(lines.bytes().trim_ascii(), options);
    Ok(Some(Found { line: lines.number(), file: Arc::clone(lines.file()), what }))
}

/// A question by itself, with its context.
fn flat(bytes: &[u8], options: &QuestionOptions) -> Result<Parts, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|e| format!("this is not a JSON object of a question: {}", reason(&e)))?;
    let mut text = |key: &str, name: &str| match object.get_mut(key) {
        Some(Value::String(text)) => Ok(std::mem::take(text)),
        Some(other) => Err(format!("\"{key}\" is {}, expected a string", kind_of(other))),
        None => {
            let keys: Vec<&str> = object.keys().map(String::as_str).collect();
            let set = options.naming.key(name);
            Err(format!("there is no key \"{key}\", found [{}]; fix the row or set {set}", keys.join(", ")))
        }
    };
    let (question, context) = (text(&options.question, "text")?, text(&options.context, "text_pair")?);
    let answers = match object.get(&options.answers) {
        None => None,
        Some(value) => Some(answers(value, object.get("answer_start")).map_err(|expected| {
            let found = value.to_string();
            let found = if found.chars().count() > 80 { kind_of(value).into() } else { found };
            format!("\"{}\" is {found}, expected {expected}", options.answers)
        })?),
    };
    let is_impossible = object.get("is_impossible").and_then(Value::as_bool).unwrap_or_default();
    Ok(Parts { id: object.remove("id"), question, context: context.into(), answers, is_impossible })
}

/// Texts and places: a list of objects or strings, an object of two lists (as the `datasets` library writes them), or one string
/// with its place beside it.
fn answers(value: &Value, beside: Option<&Value>) -> Result<Vec<(String, Option<i64>)>, &'static str> {
    const EXPECTED: &str = "{\"text\": [\"…\"], \"answer_start\": [0]}, [{\"text\": \"…\", \"answer_start\": 0}], or [] where \
                            there is no answer";
    let one = |answer: &Value| match answer {
        Value::String(text) => Ok((text.clone(), None)),
        Value::Object(answer) => match (answer.get("text"), answer.get("answer_start")) {
            (Some(Value::String(text)), None) => Ok((text.clone(), None)),
            (Some(Value::String(text)), Some(start)) if start.is_i64() => Ok((text.clone(), start.as_i64())),
            _ => Err(EXPECTED),
        },
        _ => Err(EXPECTED),
    };
    match value {
        Value::Null => Ok(vec![]),
        Value::String(text) if text.is_empty() => Ok(vec![]),
        Value::String(text) => Ok(vec![(text.clone(), beside.and_then(Value::as_i64))]),
        Value::Array(list) => list.iter().map(one).collect(),
        Value::Object(object) => match (object.get("text"), object.get("answer_start")) {
            (Some(Value::Array(texts)), Some(Value::Array(starts))) if texts.len() == starts.len() => {
                let pair = |(text, start): (&Value, &Value)| Some((text.as_str()?.to_owned(), Some(start.as_i64()?)));
                texts.iter().zip(starts).map(pair).collect::<Option<_>>().ok_or(EXPECTED)
            }
            _ => one(value).map(|answer| vec![answer]),
        },
        _ => Err(EXPECTED),
    }
}

/// The keys of columns that a config or flags give.
///
/// # Errors
/// What is wrong with the column.
pub fn key_of(column: &Column) -> Result<String, String> {
    match column {
        Column::Name(name) => Ok(name.clone()),
        Column::Index(i) => Err(format!("is {i}, expected a key: questions are JSON, whose columns have names")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(name: &str, text: &str, options: &QuestionOptions) -> (Vec<Result<Question>>, Skipped, Repaired) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        match QuestionReader::open(&[path], options) {
            Ok(mut reader) => {
                let all = reader.by_ref().collect();
                (all, reader.skipped().clone(), reader.repaired().clone())
            }
            Err(e) => (vec![Err(e)], Skipped::default(), Repaired::default()),
        }
    }

    fn squad(qas: &str) -> String {
        format!(
            r#"{{"version":"v2.0","data":[{{"title":"t","paragraphs":[{{"context":"🙂 a cat sat, a cat ran.","qas":[{qas}]}}]}}]}}"#
        )
    }

    const GOOD: &str =
        r#"{"id":"a","question":"Who?","answers":[{"text":"cat","answer_start":4}],"is_impossible":false}"#;
    const NONE: &str = r#"{"id":"b","question":"When?","answers":[],"is_impossible":true,"plausible_answers":[{"text":"x","answer_start":9}]}"#;

    #[test]
    fn squad_and_flat_lines_give_the_same_questions() {
        let options = QuestionOptions::default();
        let (of_squad, ..) = read("a.json", &squad(&format!("{GOOD},\n{NONE}")), &options);
        let context = "🙂 a cat sat, a cat ran.";
        let flat = [
            format!(
                r#"{{"id":"a","question":"Who?","context":"{context}","answers":{{"text":["cat"],"answer_start":[4]}}}}"#
            ),
            format!(
                r#"{{"id":"b","question":"When?","context":"{context}","answers":{{"text":[],"answer_start":[]}}}}"#
            ),
        ];
        for name in ["a.jsonl", "a.json"] {
            let (lines, ..) = read(name, &flat.join("\n"), &options);
            assert_eq!(lines.len(), 2);
            for (a, b) in of_squad.iter().zip(&lines) {
                let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
                assert_eq!((&a.id, &a.question, &a.context, &a.answers), (&b.id, &b.question, &b.context, &b.answers));
            }
            assert_eq!(lines[1].as_ref().unwrap().line, 2);
        }
        let first = of_squad[0].as_ref().unwrap();
        assert_eq!((first.answers[0].start, first.answers[0].end(), first.line), (4, 7, 1));
        assert_eq!(of_squad[1].as_ref().unwrap().line, 2);
        // Over several lines too.
        let value: Value = serde_json::from_str(&squad(GOOD)).unwrap();
        let (pretty, ..) = read("p.json", &serde_json::to_string_pretty(&value).unwrap(), &options);
        assert_eq!((pretty.len(), pretty[0].as_ref().unwrap().line), (1, 10));
    }

    #[test]
    fn answers_are_written_in_many_ways() {
        let line = |answers: &str| format!(r#"{{"question":"q","context":"one two","answers":{answers}}}"#);
        for answers in [
            r#"[{"text":"two","answer_start":4}]"#,
            r#"{"text":["two"],"answer_start":[4]}"#,
            r#"{"text":"two","answer_start":4}"#,
            r#"["two"]"#,
            r#""two","answer_start":4"#,
        ] {
            let (questions, ..) = read("a.jsonl", &line(answers), &QuestionOptions::default());
            assert_eq!(questions[0].as_ref().unwrap().answers, [Answer { text: "two".into(), start: 4 }], "{answers}");
        }
        for wrong in ["3", r#"{"text":["two"],"answer_start":[]}"#, r#"[{"text":3}]"#] {
            let (questions, ..) = read("a.jsonl", &line(wrong), &QuestionOptions::default());
            let message = questions[0].as_ref().unwrap_err().to_string();
            assert!(message.contains("a.jsonl:1: \"answers\" is") && message.contains("expected {"), "{message}");
        }
    }

    #[test]
    fn a_wrong_place_is_repaired_where_there_is_one_other() {
        let qa = |text: &str, start: i64| {
            squad(&format!(r#"{{"id":"a","question":"q","answers":[{{"text":"{text}","answer_start":{start}}}]}}"#))
        };
        let (questions, _, repaired) = read("a.json", &qa("sat", 0), &QuestionOptions::default());
        assert_eq!(questions[0].as_ref().unwrap().answers[0].start, 8);
        let says = repaired.describe().unwrap();
        assert!(says.contains("1 answer was not at") && says.ends_with(": a"), "{says}");
        for (text, start, says) in [
            ("cat", 0, "\"cat\" is not at character 0 and stands at 2 places"),
            ("cat", -4, "stands at 2 places"),
            ("cat", 1 << 40, "stands at 2 places"),
            ("dog", 4, "\"dog\" is nowhere in the context"),
            ("", 4, "an answer is empty"),
        ] {
            let (questions, ..) = read("a.json", &qa(text, start), &QuestionOptions::default());
            let message = questions[0].as_ref().unwrap_err().to_string();
            assert!(message.contains(says) && message.contains("question \"a\""), "{message}");
            let skip = QuestionOptions { on_bad_row: OnBadRow::Skip, ..QuestionOptions::default() };
            let (questions, skipped, _) = read("a.json", &qa(text, start), &skip);
            assert_eq!((questions.len(), skipped.rows), (0, 1));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let options = QuestionOptions::default();
        for (name, text, says) in [
            ("a.json", squad(&format!("{GOOD},{GOOD}")), "question \"a\": row 2 has the id of row 1"),
            ("a.json", squad(r#"{"id":"c","question":"q"}"#), "there are no \"answers\""),
            ("a.json", squad(r#"{"id":"c","question":3,"answers":[]}"#), "no question of SQuAD: invalid type"),
            ("a.json", squad(r#"{"id":"c","question":" ","answers":[]}"#), "the question is empty"),
            (
                "a.json",
                GOOD.replace("false", "true").replace(r#""id""#, r#""context":"a cat","id""#),
                "is_impossible is true",
            ),
            ("a.json", "{\n\"data\": 3}".into(), "a.json:2: this is neither SQuAD's JSON"),
            ("a.json", "{\"data\"".into(), "a.json:1: this is neither"),
            ("a.jsonl", "{\"question\":\"q\"}".into(), "no key \"context\", found [question]"),
            ("a.jsonl", "[1]".into(), "not a JSON object"),
            ("a.csv", "q,c".into(), "expected questions: SQuAD's json or jsonl; set data.format"),
        ] {
            let (questions, ..) = read(name, &text, &options);
            let message = questions.into_iter().find_map(Result::err).unwrap().to_string();
            assert!(message.contains(says), "{says}: {message}");
        }
        // Without answers none are missed, and ids may repeat.
        let options = QuestionOptions { answered: false, ..options };
        let (questions, ..) = read("a.json", &squad(&format!("{GOOD},{GOOD},{{\"question\":\"q\"}}")), &options);
        assert!(questions.iter().all(Result::is_ok) && questions[2].as_ref().unwrap().id == "3");
    }
}
