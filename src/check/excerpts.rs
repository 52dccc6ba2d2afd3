//! The texts of the listed rows: none was kept, so the files are read once more.

use super::findings::{Finding, Name, Place, listed_names, short};
use super::text;
use crate::data::reader::questions::{QuestionOptions, QuestionReader};
use crate::data::reader::sentences::{SentenceOptions, SentenceReader};
use crate::data::settings::OnBadRow;
use crate::data::span::Question;
use crate::data::tagging::Sentence;
use crate::data::{Example, ReadOptions, Reader, Tokenizer};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the files are read; bad rows are passed over.
pub enum Source {
    Rows(ReadOptions),
    Sentences(SentenceOptions),
    Questions(QuestionOptions),
}

/// Line, and id of a question; what stands there, once it was read.
type Lines = BTreeMap<(u64, Option<String>), Option<Arc<Shown>>>;

/// What is shown of a row.
struct Shown {
    texts: Vec<String>,
    label: Option<String>,
    /// Words and tags of a sentence.
    words: Vec<(String, String)>,
}

/// Reads the listed rows again for their texts, and for the words behind unknown tokens or the damaged piece. A file that
/// cannot be read again leaves examples without text.
pub fn excerpts(findings: &mut [Finding], source: &Source, tokenizer: &Tokenizer) {
    let mut wanted: HashMap<PathBuf, Lines> = HashMap::new();
    for listed in findings.iter().flat_map(|f| &f.examples) {
        for place in [Some(&listed.at), listed.other.as_ref()].into_iter().flatten() {
            wanted.entry(place.file.clone()).or_default().insert((place.line, place.id.clone()), None);
        }
    }
    for (file, lines) in &mut wanted {
        source.read(file, lines);
    }
    let row = |place: &Place| wanted.get(&place.file)?.get(&(place.line, place.id.clone()))?.as_deref();
    for finding in findings {
        for listed in &mut finding.examples {
            let Some(shown) = row(&listed.at) else { continue };
            listed.texts = shown.excerpt();
            let other = listed.other.as_ref().and_then(row);
            if listed.similarity.is_some() {
                listed.other_texts = other.map(Shown::excerpt).unwrap_or_default();
            }
            let texts = || shown.texts.iter().map(String::as_str);
            match finding.name {
                Name::UnknownTokens => {
                    let words: Vec<String> = texts().flat_map(|t| tokenizer.unknown_words(t)).collect();
                    listed.detail =
                        Some(format!("{} unknown: {}", words.len(), listed_names(words.iter().map(String::as_str))));
                }
                Name::Mojibake => listed.detail = texts().find_map(text::mojibake).map(|t| format!("{t:?}")),
                Name::Html => listed.detail = texts().find_map(text::html).map(short),
                Name::BadLabels if listed.detail.is_none() => {
                    listed.detail = shown.label.as_deref().map(|l| format!("{:?}", short(l)));
                }
                Name::Conflicts if listed.detail.is_none() => {
                    listed.detail = other.and_then(|other| shown.differs(other));
                }
                _ => {}
            }
        }
    }
}

impl Source {
    /// Fills in what stands on some lines of a file.
    fn read(&self, file: &Path, lines: &mut Lines) {
        let last = lines.keys().next_back().map_or(0, |(line, _)| *line);
        let mut fill = |from: u64, past: u64, shown: &dyn Fn() -> Shown| {
            let mut made = None;
            for (_, slot) in lines.range_mut((from, None)..(past, None)) {
                *slot = Some(Arc::clone(made.get_or_insert_with(|| Arc::new(shown()))));
            }
        };
        match self {
            Self::Questions(options) => {
                let options = QuestionOptions { on_bad_row: OnBadRow::Skip, ..options.clone() };
                let Ok(reader) = QuestionReader::open(&[file.to_owned()], &options) else { return };
                for question in reader.map_while(Result::ok).take_while(|question| question.line <= last) {
                    if let Some(slot) = lines.get_mut(&(question.line, Some(question.id.clone()))) {
                        *slot = Some(Arc::new(Shown::of_question(&question)));
                    }
                }
            }
            Self::Rows(options) => {
                let options = ReadOptions { on_bad_row: OnBadRow::Skip, ..options.clone() };
                let Ok(reader) = Reader::open(file, &options) else { return };
                for row in reader.map_while(Result::ok).take_while(|row| row.line <= last) {
                    fill(row.line, row.line + 1, &|| Shown::of_row(&row));
                }
            }
            Self::Sentences(options) => {
                let options = SentenceOptions { on_bad_row: OnBadRow::Skip, ..options.clone() };
                let Ok(reader) = SentenceReader::open(&[file.to_owned()], &options) else { return };
                for sentence in reader.map_while(Result::ok).take_while(|s| s.line <= last) {
                    let lines = if sentence.line_a_word { sentence.words.len() as u64 } else { 1 };
                    fill(sentence.line, sentence.line + lines, &|| Shown::of_sentence(&sentence));
                }
            }
        }
    }
}

impl Shown {
    fn of_row(row: &Example) -> Self {
        let texts = std::iter::once(&row.text).chain(&row.text_pair).cloned().collect();
        Self { texts, label: row.label.clone(), words: vec![] }
    }

    fn of_sentence(sentence: &Sentence) -> Self {
        let tags = sentence.tags.clone().unwrap_or_default();
        let words = sentence.words.iter().cloned().zip(tags).collect();
        Self { texts: vec![sentence.words.join(" ")], label: None, words }
    }

    fn of_question(question: &Question) -> Self {
        let answers: Vec<&str> = question.answers.iter().map(|answer| answer.text.as_str()).collect();
        let label = if answers.is_empty() { "no answer".into() } else { listed_names(answers.iter().copied()) };
        let texts = vec![question.question.clone(), question.context.to_string()];
        Self { texts, label: Some(label), words: vec![] }
    }

    /// The beginnings of a row's texts, each in one line.
    fn excerpt(&self) -> Vec<String> {
        let cut = |text: &String| {
            let mut chars = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
            let head: String = chars.by_ref().take(120).collect();
            if chars.next().is_some() { head + "…" } else { head }
        };
        self.texts.iter().map(cut).collect()
    }

    /// The answers, or the first word whose tags differ and how many do: `"Paris": B-PER | B-LOC, and 2 more words`.
    fn differs(&self, other: &Self) -> Option<String> {
        if let (Some(own), Some(other)) = (&self.label, &other.label) {
            return Some(format!("{own} | {other}"));
        }
        let differ = || self.words.iter().zip(&other.words).filter(|(a, b)| a.1 != b.1);
        let (a, b) = differ().next()?;
        let more = match differ().count() - 1 {
            0 => String::new(),
            1 => ", and 1 more word".into(),
            n => format!(", and {n} more words"),
        };
        Some(format!("\"{}\": {} | {}{more}", short(&a.0), a.1, b.1))
    }
}
