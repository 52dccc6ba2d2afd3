//! Files of sentences to tokens and labels.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;

use super::Sentence;
use super::rows::{TagRow, TagRows, windows};
use super::scheme::{Prefix, Reading, Scheme, Tag, first_wrong, spans, tags};
use crate::data::reader::Skipped;
use crate::data::reader::sentences::{SentenceOptions, SentenceReader};
use crate::data::settings::Files;
use crate::data::{Dataset, LabelMap, Targets, Tokenizer, Tokens};
use crate::error::{Error, Result};

/// Sentences that are held as text at a time.
const CHUNK: usize = 1024;

/// The sentences of some files, tokenised, with their tags as the files write them, or converted.
pub struct Loaded {
    sentences: Vec<Encoded>,
    /// Each tag once, and where it first stands.
    names: Vec<(String, PathBuf, u64)>,
    pub skipped: Skipped,
    /// Sentences of words that the tokenizer makes nothing of.
    pub empty: usize,
}

/// A sentence without its text.
struct Encoded {
    ids: Vec<u32>,
    /// The tokens of each word.
    words: Vec<Range<usize>>,
    /// Indices into `names`.
    tags: Vec<u32>,
    line: u64,
}

/// What tags must be, and what becomes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TagForm {
    /// That of the files; a sentence that breaks it is a bad row.
    pub scheme: Option<Scheme>,
    /// What they are converted to.
    pub convert: Option<Scheme>,
}

impl TagForm {
    /// The scheme that tags have in the end, if that is said.
    pub fn written(&self) -> Option<Scheme> {
        self.convert.or(self.scheme)
    }
}

/// Reads and tokenises tagged sentences; `progress` is told how many there are so far, and an error from it ends the work.
///
/// # Errors
/// Of the first bad sentence, unless such are skipped; files without any; a tokenizer that fails.
pub fn load(
    files: &Files,
    options: &SentenceOptions,
    form: TagForm,
    rename: &std::collections::BTreeMap<String, String>,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Loaded> {
    let mut reader = SentenceReader::open(files.as_slice(), options)?;
    let mut loaded = Loaded { sentences: vec![], names: vec![], skipped: Skipped::default(), empty: 0 };
    let mut index: HashMap<String, u32> = HashMap::new();
    let mut bad = Skipped::default();
    loop {
        let chunk = reader.by_ref().take(CHUNK).collect::<Result<Vec<Sentence>>>()?;
        if chunk.is_empty() {
            break;
        }
        let encoded: Vec<_> = chunk.par_iter().map(|sentence| tokenizer.encode_words(&sentence.words)).collect();
        for (sentence, encoded) in chunk.into_iter().zip(encoded) {
            let (ids, words) = encoded.map_err(|e| Error::at_line(&sentence.file, sentence.line, e))?;
            let written = match prepared(&sentence, form, rename) {
                Ok(written) => written,
                Err((word, message)) => {
                    let error = Error::at_line(&sentence.file, sentence.line_of(word), message);
                    bad.skip(error, options.on_bad_row)?;
                    continue;
                }
            };
            if ids.is_empty() {
                loaded.empty += 1;
                continue;
            }
            let code = |(word, tag): (usize, String)| {
                *index.entry(tag).or_insert_with_key(|tag| {
                    loaded.names.push((tag.clone(), sentence.file.to_path_buf(), sentence.line_of(word)));
                    loaded.names.len() as u32 - 1
                })
            };
            let tags = written.into_iter().enumerate().map(code).collect();
            loaded.sentences.push(Encoded { ids, words, tags, line: sentence.line });
        }
        progress(loaded.sentences.len() as u64)?;
    }
    loaded.skipped = reader.skipped().clone();
    loaded.skipped.append(bad);
    if loaded.sentences.is_empty() {
        let skipped = loaded.skipped.describe().map_or_else(String::new, |s| format!("; {s}"));
        return Err(Error::in_file(files.name(), format!("the file has no sentences{skipped}")));
    }
    Ok(loaded)
}

/// A sentence's tags, checked, converted and renamed; else the word at which they are wrong, and why.
fn prepared(
    sentence: &Sentence,
    form: TagForm,
    rename: &std::collections::BTreeMap<String, String>,
) -> Result<Vec<String>, (usize, String)> {
    let written = sentence.tags.as_deref().unwrap_or_default();
    let renamed: Vec<String> = written.iter().map(|tag| rename.get(tag).unwrap_or(tag).clone()).collect();
    if form == TagForm::default() {
        return Ok(renamed);
    }
    let parse = |(i, tag)| {
        Tag::parse(tag)
            .map_err(|message| (i, format!("{message}; fix it, or remove data.tag_scheme and data.convert_tags")))
    };
    let parsed = renamed.iter().map(String::as_str).enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let reading = match form.scheme {
        None => Reading::Lenient,
        Some(scheme) => {
            if let Some(wrong) = first_wrong(&parsed, scheme) {
                let open = |tag: Option<&Tag>| tag.is_some_and(|t| matches!(t.prefix, Prefix::B | Prefix::I));
                let is_last_and_open = scheme == Scheme::Iobes && wrong + 1 == parsed.len() && open(parsed.last());
                let why = match (is_last_and_open, wrong) {
                    (true, _) => "ends the sentence, and E or S must".into(),
                    (_, 0) => "may not begin a sentence".into(),
                    _ => format!("may not stand after \"{}\"", renamed[wrong - 1]),
                };
                let message = format!(
                    "tag \"{}\" of \"{}\" {why} in data.tag_scheme = \"{}\"; fix the sentence, set data.on_bad_row = \"skip\", \
                     or remove data.tag_scheme",
                    renamed[wrong],
                    sentence.words[wrong],
                    scheme.name()
                );
                return Err((wrong, message));
            }
            Reading::Strict(scheme)
        }
    };
    let Some(convert) = form.convert else { return Ok(renamed) };
    Ok(tags(&spans(&parsed, reading), parsed.len(), convert).iter().map(Tag::to_string).collect())
}

impl Loaded {
    /// Each tag once, in the order of their first words.
    pub fn names(&self) -> Vec<String> {
        self.names.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// Rows of at most `max_length` tokens. With `all` each token of a word is learnt to have its label, else its first.
    ///
    /// # Errors
    /// When a tag is not in `labels`, or `max_length` leaves no room for text.
    pub fn rows(
        &self,
        labels: &LabelMap,
        tokenizer: &Tokenizer,
        max_length: usize,
        all: bool,
        files: &Files,
    ) -> Result<Dataset> {
        tokenizer.check_max_length(max_length, false)?;
        let class = |(name, file, line): &(String, PathBuf, u64)| {
            labels.class(name).map_err(|message| Error::at_line(file, *line, message))
        };
        let classes = self.names.iter().map(class).collect::<Result<Vec<u32>>>()?;
        let inside = classes.iter().map(|&c| inside_of(c, labels)).collect::<Vec<u32>>();
        let (mut tokens, mut rows, mut lines, mut truth) = (vec![], vec![], vec![], vec![]);
        let room = max_length - tokenizer.special_tokens_count(false);
        for (number, sentence) in self.sentences.iter().enumerate() {
            for window in windows(&sentence.words, room) {
                let from = sentence.words[window.words.start].start;
                let to = sentence.words[window.words.end - 1].end.min(from + room);
                let framed = tokenizer.framed(&sentence.ids[from..to]);
                let place = |token: usize| (framed.before + token - from) as u32;
                let mut row = TagRow { sentence: number as u32, ..TagRow::default() };
                for word in window.own {
                    let own = sentence.words[word].clone();
                    if own.is_empty() {
                        continue;
                    }
                    let code = sentence.tags.get(word).map(|&code| code as usize);
                    row.words.push((word as u32, place(own.start)));
                    if let Some(code) = code {
                        row.labels.push((place(own.start), classes[code]));
                        let more = if all { own.start + 1..own.end.min(to) } else { 0..0 };
                        row.labels.extend(more.map(|token| (place(token), inside[code])));
                    }
                }
                if row.words.is_empty() {
                    continue;
                }
                let cut = sentence.words[window.words.end - 1].end > to;
                tokens.push((framed.ids, framed.type_ids, cut));
                rows.push(row);
                lines.push(sentence.line);
            }
            truth.push(sentence.tags.iter().map(|&code| classes[code as usize]).collect());
        }
        let targets = Targets::Tags(TagRows::new(rows, truth));
        Ok(Dataset { tokens: Tokens::from_rows(tokens), targets, lines, file: files.name() })
    }
}

/// The label of a word's further tokens: I of its B, as far as there is one.
fn inside_of(class: u32, labels: &LabelMap) -> u32 {
    let name = &labels.names()[class as usize];
    let inside = name.strip_prefix("B-").and_then(|kind| labels.index(&format!("I-{kind}")));
    inside.map_or(class, |i| i as u32)
}

/// Sentences whose tags are to be found, as rows.
///
/// # Errors
/// When the tokenizer fails.
pub fn unlabelled(sentences: &[Sentence], tokenizer: &Tokenizer, max_length: usize) -> Result<Dataset> {
    let encode = |sentence: &Sentence| {
        let (ids, words) = tokenizer
            .encode_words(&sentence.words)
            .map_err(|message| Error::at_line(&sentence.file, sentence.line, message))?;
        Ok(Encoded { ids, words, tags: vec![], line: sentence.line })
    };
    let sentences = sentences.par_iter().map(encode).collect::<Result<_>>()?;
    let loaded = Loaded { sentences, names: vec![], skipped: Skipped::default(), empty: 0 };
    let none = LabelMap::new(vec!["O".into()])?;
    loaded.rows(&none, tokenizer, max_length, false, &Files::from(PathBuf::new()))
}
