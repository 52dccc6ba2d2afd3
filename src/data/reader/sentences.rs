//! Sentences of words with tags: CoNLL columns (a word a line, a blank line between sentences), or JSON lines with lists of
//! words and tags, or with a text and labelled spans of it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::jsonl::{canonical, kind_of};
use super::lines::Lines;
use super::source::decompress;
use super::{Fault, Naming, Skipped, Walk, extensions, name_of, next_row, open_file};
use crate::data::config::{Column, Format};
use crate::data::settings::{Encoding, OnBadRow, STANDARD_INPUT};
use crate::data::tagging::words::{Word, words_of, words_with_spans};
use crate::data::tagging::{Sentence, Text};
use crate::error::{Error, Result};

/// How files of sentences are read.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceOptions {
    /// `None`: by extension; a stream is jsonl if its first byte is `{`, else one text a line.
    pub format: Option<Format>,
    /// In CoNLL the index of the words' column, in jsonl the key of the list of words or of the text. `None`: the first
    /// column, `words`, `tokens` or `text`.
    pub words: Option<Column>,
    /// That of the tags, or of spans. `None`: the last column, `tags`, `labels` or `spans`.
    pub tags: Option<Column>,
    /// Whether tags are read.
    pub tagged: bool,
    pub encoding: Option<Encoding>,
    pub on_bad_row: OnBadRow,
    pub naming: Naming,
}

/// Sentences of files one after the other, in memory bounded by the longest.
pub struct SentenceReader {
    options: SentenceOptions,
    files: VecDeque<PathBuf>,
    rows: Option<(Lines, Layout)>,
    walk: Walk,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Conll,
    JsonLines,
    /// One text a line, without tags.
    Texts,
}

impl SentenceReader {
    /// # Errors
    /// When the first file cannot be opened or its format is not one of sentences.
    pub fn open(files: &[PathBuf], options: &SentenceOptions) -> Result<Self> {
        let (files, options) = (files.iter().cloned().collect(), options.clone());
        let mut reader = Self { options, files, rows: None, walk: Walk::default() };
        reader.next_file()?;
        Ok(reader)
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.walk.skipped
    }

    fn next_file(&mut self) -> Result<bool> {
        let Some(path) = self.files.pop_front() else { return Ok(false) };
        let name: Arc<Path> = name_of(&path).into();
        let is_stream = path == Path::new(STANDARD_INPUT);
        let (input, compression): (Box<dyn std::io::Read + Send>, _) = match is_stream {
            true => (Box::new(std::io::stdin()), None),
            false => (Box::new(open_file(&path)?), extensions(&path).0),
        };
        let input = decompress(input, compression).map_err(|e| Error::io(&name, e))?;
        let mut lines = Lines::new(input, name, self.options.encoding.map(|e| e.0), self.options.naming)?;
        let layout = match self.options.format.or_else(|| format_of(&path)) {
            Some(Format::Conll) => Layout::Conll,
            Some(Format::Jsonl) => Layout::JsonLines,
            None if is_stream && lines.peek()? && lines.raw().starts_with(b"{") => Layout::JsonLines,
            None if is_stream || extensions(&path).1 == "txt" => Layout::Texts,
            other => {
                let found = other.map_or("no known extension".into(), |f| format!("{} data", f.name()));
                let key = self.options.naming.key("format");
                let message = format!(
                    "the file has {found}, expected sentences: conll (.conll, .bio, .iob, .bmes) or jsonl; set {key} to one"
                );
                return Err(Error::in_file(lines.file(), message));
            }
        };
        if layout == Layout::Texts && self.options.tagged {
            let key = self.options.naming.key("format");
            let message =
                format!("the input is read as one text a line, so it has no tags; give conll or jsonl, or set {key}");
            return Err(Error::in_file(lines.file(), message));
        }
        self.rows = Some((lines, layout));
        Ok(true)
    }

    fn read(&mut self) -> Result<Option<Sentence>, Fault> {
        loop {
            let row = self.walk.row + 1;
            let Some((lines, layout)) = &mut self.rows else { return Ok(None) };
            let read = match layout {
                Layout::Conll => conll(lines, &self.options, row)?,
                Layout::JsonLines => json_line(lines, &self.options, row)?,
                Layout::Texts => text(lines, row)?,
            };
            if read.is_some() || !self.next_file()? {
                return Ok(read);
            }
        }
    }
}

/// The format that an extension tells, as far as it is one of sentences or another known one.
fn format_of(path: &Path) -> Option<Format> {
    super::format_by_extension(path).flatten()
}

impl Iterator for SentenceReader {
    type Item = Result<Sentence>;

    fn next(&mut self) -> Option<Self::Item> {
        next_row(self, |reader| (&mut reader.walk, reader.options.on_bad_row), Self::read)
    }
}

/// The next sentence; of a bad one the rest is passed over.
fn conll(lines: &mut Lines, options: &SentenceOptions, row: u64) -> Result<Option<Sentence>, Fault> {
    let (mut words, mut tags, mut first, mut bad) = (vec![], vec![], None, None);
    while lines.advance()? {
        let blank = lines.bytes().iter().all(u8::is_ascii_whitespace);
        if blank || lines.bytes().starts_with(b"-DOCSTART-") {
            if first.is_some() {
                break;
            }
            continue;
        }
        first.get_or_insert(lines.number());
        match word_line(lines, options) {
            Ok((word, tag)) => {
                words.push(word);
                tags.extend(tag);
            }
            Err(Fault::Stop(e)) => return Err(Fault::Stop(e)),
            Err(Fault::Row(e)) => drop(bad.get_or_insert(e)),
        }
    }
    let Some(line) = first else { return Ok(None) };
    match bad {
        Some(e) => Err(Fault::Row(e)),
        None => Ok(Some(Sentence {
            words,
            tags: options.tagged.then_some(tags),
            text: None,
            id: None,
            row,
            line,
            line_a_word: true,
            file: Arc::clone(lines.file()),
        })),
    }
}

/// The word and the tag of a line: fields between tabs, or between spaces where there is no tab.
fn word_line(lines: &mut Lines, options: &SentenceOptions) -> Result<(String, Option<String>), Fault> {
    let text = lines.text()?;
    let fields: Vec<String> = match text.contains('\t') {
        // Other white space, such as an ideographic space, may be a word.
        true => text.split('\t').map(|f| f.trim_matches(|c: char| c.is_ascii_whitespace()).to_owned()).collect(),
        false => text.split_ascii_whitespace().map(str::to_owned).collect(),
    };
    let field = |column: &Option<Column>, default: usize, key: &str| match column {
        Some(Column::Index(i)) if *i >= fields.len() => {
            let key = options.naming.key(key);
            Err(Fault::Row(lines.error(format!("the line has {} fields, but {key} is {i}; fix it", fields.len()))))
        }
        Some(Column::Index(i)) => Ok(fields[*i].clone()),
        _ => fields.get(default).cloned().ok_or_else(|| Fault::Row(lines.error("the line has no word; fix it"))),
    };
    let word = field(&options.words, 0, "text")?;
    if !options.tagged {
        return Ok((word, None));
    }
    if fields.len() < 2 {
        let message =
            format!("the line has the word \"{}\" and no tag; a line holds both, apart by a tab or a space", fields[0]);
        return Err(Fault::Row(lines.error(message)));
    }
    let tag = field(&options.tags, fields.len() - 1, "label")?;
    if word.is_empty() || tag.is_empty() {
        return Err(Fault::Row(lines.error("the word or the tag is empty; fix the line")));
    }
    Ok((word, Some(tag)))
}

fn text(lines: &mut Lines, row: u64) -> Result<Option<Sentence>, Fault> {
    if !lines.advance()? {
        return Ok(None);
    }
    let text = lines.text()?.to_owned();
    Ok(Some(of_text(text, &[], None, None, row, lines)))
}

/// A sentence of a text's words; with spans, tagged.
fn of_text(
    text: String,
    spans: &[(usize, usize, String)],
    tags: Option<()>,
    id: Option<Value>,
    row: u64,
    lines: &Lines,
) -> Sentence {
    let words: Vec<Word> = if tags.is_some() { words_with_spans(&text, spans) } else { words_of(&text) };
    let tag_of = |i: usize| {
        let inside = |w: &Word, s: &(usize, usize, String)| s.0 <= w.start && w.end <= s.1;
        let span = spans.iter().find(|s| inside(&words[i], s));
        span.map_or("O".to_owned(), |s| {
            let begins = i == 0 || !inside(&words[i - 1], s);
            format!("{}-{}", if begins { "B" } else { "I" }, s.2)
        })
    };
    Sentence {
        tags: tags.map(|()| (0..words.len()).map(tag_of).collect()),
        words: words.iter().map(|w| w.text.to_owned()).collect(),
        text: Some(Text { offsets: words.iter().map(|w| (w.start, w.end)).collect(), text: text.clone() }),
        id,
        row,
        line: lines.number(),
        line_a_word: false,
        file: Arc::clone(lines.file()),
    }
}

fn json_line(lines: &mut Lines, options: &SentenceOptions, row: u64) -> Result<Option<Sentence>, Fault> {
    loop {
        if !lines.advance()? {
            return Ok(None);
        }
        if !lines.bytes().iter().all(u8::is_ascii_whitespace) {
            break;
        }
    }
    lines.check()?;
    json_sentence(lines, options, row).map(Some).map_err(|message| Fault::Row(lines.error(message)))
}

fn json_sentence(lines: &Lines, options: &SentenceOptions, row: u64) -> Result<Sentence, String> {
    let mut object: Map<String, Value> = serde_json::from_slice(lines.bytes().trim_ascii())
        .map_err(|e| format!("this is not a JSON object: {}", e.to_string().split(" at line ").next().unwrap_or("")))?;
    let id = object.shift_remove("id");
    let words = value(&object, &options.words, &["words", "tokens", "text"], "text", options.naming)?;
    let tags = match options.tagged {
        true => Some(value(
            &object,
            &options.tags,
            &["tags", "labels", "ner_tags", "spans", "label"],
            "label",
            options.naming,
        )?),
        false => None,
    };
    match (words, tags) {
        ((key, Value::Array(words)), tags) => {
            let words = words.iter().map(|w| scalar(w, key)).collect::<Result<Vec<_>, _>>()?;
            let tags = match tags {
                None => None,
                Some((key, Value::Array(tags))) => {
                    let tags = tags.iter().map(|t| scalar(t, key)).collect::<Result<Vec<_>, _>>()?;
                    if tags.len() != words.len() {
                        return Err(format!("there are {} words and {} tags; fix the row", words.len(), tags.len()));
                    }
                    Some(tags)
                }
                Some((key, other)) => return Err(format!("\"{key}\" is {}, expected a list of tags", kind_of(other))),
            };
            let (line, file) = (lines.number(), Arc::clone(lines.file()));
            Ok(Sentence { words, tags, text: None, id, row, line, line_a_word: false, file })
        }
        ((_, Value::String(text)), None) => Ok(of_text(text.clone(), &[], None, id, row, lines)),
        ((_, Value::String(text)), Some((key, Value::Array(list)))) => {
            let spans = list.iter().map(|s| span(s, key, text)).collect::<Result<Vec<_>, _>>()?;
            if let Some(pair) = overlap(&spans) {
                return Err(format!("\"{key}\" has spans that overlap at character {pair}; a word has one tag"));
            }
            let words = words_with_spans(text, &spans);
            let empty = |s: &&(usize, usize, String)| !words.iter().any(|w| s.0 <= w.start && w.end <= s.1);
            if let Some((start, end, _)) = spans.iter().find(empty) {
                return Err(format!("\"{key}\" has the span {start} to {end}, which holds no word; fix the row"));
            }
            Ok(of_text(text.clone(), &spans, Some(()), id, row, lines))
        }
        ((_, Value::String(_)), Some((key, other))) => {
            Err(format!("\"{key}\" is {}, expected a list of spans of the text", kind_of(other)))
        }
        ((key, other), _) => Err(format!("\"{key}\" is {}, expected a list of words or a text", kind_of(other))),
    }
}

/// The value of a column's key, or of the first of its usual names that the object has.
fn value<'o>(
    object: &'o Map<String, Value>,
    column: &Option<Column>,
    usual: &[&'o str],
    name: &str,
    naming: Naming,
) -> Result<(&'o str, &'o Value), String> {
    let found = match column {
        Some(Column::Name(key)) => object.get_key_value(key).map(|(k, v)| (k.as_str(), v)),
        Some(Column::Index(i)) => {
            return Err(format!("jsonl has keys, but {} is {i}; set it to a key", naming.key(name)));
        }
        None => usual.iter().find_map(|key| object.get_key_value(*key)).map(|(k, v)| (k.as_str(), v)),
    };
    found.ok_or_else(|| {
        let wanted = match column {
            Some(Column::Name(key)) => format!("key \"{key}\""),
            _ => format!("key among {}", usual.join(", ")),
        };
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        format!("there is no {wanted}, found [{}]; fix the row or set {}", keys.join(", "), naming.key(name))
    })
}

fn scalar(value: &Value, key: &str) -> Result<String, String> {
    match value {
        Value::String(s) if s.trim().is_empty() => Err(format!("\"{key}\" has an empty string; fix the row")),
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) => Ok(canonical(n)),
        other => Err(format!("\"{key}\" holds {}, expected strings", kind_of(other))),
    }
}

/// Start, end (in characters) and label of a span.
fn span(value: &Value, key: &str, text: &str) -> Result<(usize, usize, String), String> {
    let number = |name: &str| value.get(name).and_then(Value::as_u64).map(|n| n as usize);
    let label = ["label", "type", "entity"].iter().find_map(|name| value.get(*name)).and_then(Value::as_str);
    let (Some(start), Some(end), Some(label)) = (number("start"), number("end"), label) else {
        return Err(format!(
            "\"{key}\" holds {value}, expected spans such as {{\"start\":0,\"end\":5,\"label\":\"PER\"}}"
        ));
    };
    let chars = text.chars().count();
    if start >= end || end > chars {
        return Err(format!(
            "\"{key}\" has the span {start} to {end}, but the text has {chars} characters; fix the row"
        ));
    }
    Ok((start, end, label.to_owned()))
}

/// Where two spans overlap.
fn overlap(spans: &[(usize, usize, String)]) -> Option<usize> {
    let mut sorted: Vec<_> = spans.iter().collect();
    sorted.sort();
    sorted.windows(2).find(|pair| pair[1].0 < pair[0].1).map(|pair| pair[1].0)
}
