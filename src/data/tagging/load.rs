//! Files of sentences to tokens and labels.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;

use super::Sentence;
use super::rows::{TagRow, TagRows, windows};
use super::scheme::{Prefix, Reading, Scheme, Tag, first_wrong, spans, tags};
use crate::data::reader::Skipped;
use crate::data::reader::sentences::{SentenceOptions, SentenceReader};
use crate::data::settings::Files;
use crate::data::tokens::{Array, Arrays, Piece, Seen};
use crate::data::{Dataset, LabelMap, Places, Targets, Tokenizer, Tokens};
use crate::error::{Error, Result};

/// Sentences that are held as text at a time.
pub const CHUNK: usize = 1024;

/// The sentences of some files, tokenised, with their tags as the files write them, or converted.
pub struct Loaded {
    /// A row a sentence, without special tokens.
    pub(in crate::data) tokens: Tokens,
    /// Where each word's tokens end in its sentence; they begin where those of the word before end.
    pub(in crate::data) word_ends: Array<u32>,
    /// Words up to the end of each sentence.
    pub(in crate::data) ends: Array<u64>,
    /// By word: index into `names`; empty where no tags are read.
    pub(in crate::data) tags: Array<u32>,
    pub(in crate::data) places: Places,
    /// Each tag once, and where it first stands: the index of the file, and the line.
    pub(in crate::data) names: Vec<(String, usize, u64)>,
    pub skipped: Skipped,
    /// Sentences of words that the tokenizer makes nothing of.
    pub empty: usize,
    /// Keys of the renaming that no sentence has as a tag.
    pub unused_renames: Vec<String>,
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
    rename: &BTreeMap<String, String>,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Loaded> {
    let mut reader = SentenceReader::open(files.as_slice(), options)?;
    let mut gathering = Gathering::new(files.as_slice(), form, rename, tokenizer);
    let mut bad = Skipped::default();
    loop {
        let chunk = reader.by_ref().take(CHUNK).collect::<Result<Vec<Sentence>>>()?;
        if chunk.is_empty() {
            break;
        }
        gathering.add(&chunk, &mut |error| bad.skip(error, options.on_bad_row), &mut |_, _| {})?;
        progress(gathering.places.len() as u64)?;
    }
    let mut loaded = gathering.finish();
    loaded.skipped = reader.skipped().clone();
    loaded.skipped.append(bad);
    if loaded.is_empty() {
        let skipped = loaded.skipped.describe().map_or_else(String::new, |s| format!("; {s}"));
        return Err(Error::in_file(files.name(), format!("the file has no sentences{skipped}")));
    }
    Ok(loaded)
}

/// Sentences on their way into [`Loaded`].
pub struct Gathering<'a> {
    form: TagForm,
    rename: &'a BTreeMap<String, String>,
    tokenizer: &'a Tokenizer,
    arrays: Arrays,
    seen: Seen,
    word_ends: Vec<u32>,
    ends: Vec<u64>,
    tags: Vec<u32>,
    places: Places,
    names: Vec<(String, usize, u64)>,
    index: HashMap<String, u32>,
    empty: usize,
    /// Keys of `rename` that were met.
    renamed: HashSet<&'a str>,
    /// Whether sentences without tokens are kept.
    keep_empty: bool,
}

impl<'a> Gathering<'a> {
    /// Of no sentences yet.
    pub fn new(
        files: &[PathBuf],
        form: TagForm,
        rename: &'a BTreeMap<String, String>,
        tokenizer: &'a Tokenizer,
    ) -> Self {
        Self {
            form,
            rename,
            tokenizer,
            arrays: Arrays::default(),
            seen: Seen::default(),
            word_ends: vec![],
            ends: vec![],
            tags: vec![],
            places: Places::new(files),
            names: vec![],
            index: HashMap::new(),
            empty: 0,
            renamed: HashSet::new(),
            keep_empty: false,
        }
    }

    /// Adds sentences. `bad` says what becomes of one whose tags are wrong; `seen` is shown all others with their tokens, of which
    /// those without any are left out.
    ///
    /// # Errors
    /// What `bad` returns; a tokenizer that fails.
    pub fn add<'s>(
        &mut self,
        chunk: &'s [Sentence],
        bad: &mut dyn FnMut(Error) -> Result<()>,
        seen: &mut dyn FnMut(&'s Sentence, &[u32]),
    ) -> Result<()> {
        let encoded: Vec<_> = chunk.par_iter().map(|sentence| self.tokenizer.encode_words(&sentence.words)).collect();
        let mut piece = Piece::default();
        for (sentence, encoded) in chunk.iter().zip(encoded) {
            let (ids, words) = encoded.map_err(|e| Error::at_line(&sentence.file, sentence.line, e))?;
            let met = sentence.tags.iter().flatten().filter_map(|tag| self.rename.get_key_value(tag));
            self.renamed.extend(met.map(|(key, _)| key.as_str()));
            let written = match prepared(sentence, self.form, self.rename) {
                Ok(written) => written,
                Err((word, message)) => {
                    bad(Error::at_line(&sentence.file, sentence.line_of(word), message))?;
                    continue;
                }
            };
            seen(sentence, &ids);
            if ids.is_empty() && !self.keep_empty {
                self.empty += 1;
                continue;
            }
            let file = self.places.file_from(&sentence.file);
            let code = |(word, tag): (usize, String)| {
                *self.index.entry(tag).or_insert_with_key(|tag| {
                    self.names.push((tag.clone(), file, sentence.line_of(word)));
                    self.names.len() as u32 - 1
                })
            };
            self.tags.extend(written.into_iter().enumerate().map(code));
            self.word_ends.extend(words.iter().map(|word| word.end as u32));
            self.ends.push(self.word_ends.len() as u64);
            self.places.push(file as u32, sentence.line);
            piece.ids.extend(ids);
            piece.ends.push(piece.ids.len());
            piece.truncated.push(0);
        }
        piece.type_ids.resize(piece.ids.len(), 0);
        self.seen.add(&piece.ids);
        self.arrays.append(&piece);
        Ok(())
    }

    /// All that were kept.
    pub fn finish(self) -> Loaded {
        let unused = self.rename.keys().filter(|key| !self.renamed.contains(key.as_str()));
        Loaded {
            unused_renames: unused.cloned().collect(),
            tokens: self.arrays.finish(self.seen),
            word_ends: Array::Owned(self.word_ends),
            ends: Array::Owned(self.ends),
            tags: Array::Owned(self.tags),
            places: self.places,
            names: self.names,
            skipped: Skipped::default(),
            empty: self.empty,
        }
    }
}

/// A sentence's tags as they are called in the end.
pub fn renamed(sentence: &Sentence, rename: &BTreeMap<String, String>) -> Vec<String> {
    let written = sentence.tags.as_deref().unwrap_or_default();
    written.iter().map(|tag| rename.get(tag).unwrap_or(tag).clone()).collect()
}

/// A sentence's tags, checked, converted and renamed; else the word at which they are wrong, and why.
fn prepared(
    sentence: &Sentence,
    form: TagForm,
    rename: &BTreeMap<String, String>,
) -> Result<Vec<String>, (usize, String)> {
    let renamed = renamed(sentence, rename);
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
                let message = format!(
                    "tag \"{}\" of \"{}\" {} in data.tag_scheme = \"{}\"; fix the sentence, set data.on_bad_row = \"skip\", \
                     or remove data.tag_scheme",
                    renamed[wrong],
                    sentence.words[wrong],
                    why_wrong(&parsed, wrong, scheme, &renamed),
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

/// Why the tag of word `wrong` ([`first_wrong`]) breaks a scheme: `may not begin a sentence`; `written` are the tags as they
/// stand.
pub fn why_wrong(parsed: &[Tag], wrong: usize, scheme: Scheme, written: &[impl AsRef<str>]) -> String {
    let open = |tag: Option<&Tag>| tag.is_some_and(|t| matches!(t.prefix, Prefix::B | Prefix::I));
    let is_last_and_open = scheme == Scheme::Iobes && wrong + 1 == parsed.len() && open(parsed.last());
    match (is_last_and_open, wrong) {
        (true, _) => "ends the sentence, and E or S must".into(),
        (_, 0) => "may not begin a sentence".into(),
        _ => format!("may not stand after \"{}\"", written[wrong - 1].as_ref()),
    }
}

impl Loaded {
    /// Sentences.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Each tag once, in the order of their first words.
    pub fn names(&self) -> Vec<String> {
        self.names.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// The words of sentence `i < len()` among all.
    pub(super) fn words_of(&self, i: usize) -> Range<usize> {
        let before = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        before as usize..self.ends[i] as usize
    }

    /// A row a sentence, without special tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The token ids of sentence `i < len()`, without special ones.
    pub fn ids(&self, i: usize) -> Vec<u32> {
        self.tokens.row(i)
    }

    /// Of each word of sentence `i < len()` its tokens.
    pub fn words(&self, i: usize) -> Vec<Range<usize>> {
        let mut at = 0;
        let word = |&end: &u32| std::mem::replace(&mut at, end as usize)..end as usize;
        self.word_ends[self.words_of(i)].iter().map(word).collect()
    }

    /// Of each word of sentence `i < len()` its tag as an index into [`Self::names`]; empty where no tags were read.
    pub fn tags(&self, i: usize) -> &[u32] {
        if self.tags.is_empty() { &[] } else { &self.tags[self.words_of(i)] }
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
        let class = |(name, file, line): &(String, usize, u64)| {
            labels.class(name).map_err(|message| Error::at_line(self.places.name(*file), *line, message))
        };
        let classes = self.names.iter().map(class).collect::<Result<Vec<u32>>>()?;
        Ok(self.cut(&classes, labels, tokenizer, max_length, all, files))
    }

    /// [`Self::rows`] with a class for each of [`Self::names`], and a `max_length` that leaves room.
    pub fn cut(
        &self,
        classes: &[u32],
        labels: &LabelMap,
        tokenizer: &Tokenizer,
        max_length: usize,
        all: bool,
        files: &Files,
    ) -> Dataset {
        let inside = classes.iter().map(|&c| inside_of(c, labels)).collect::<Vec<u32>>();
        let (mut tokens, mut rows, mut lines, mut truth) = (vec![], vec![], vec![], vec![]);
        let room = max_length - tokenizer.special_tokens_count(false);
        for number in 0..self.len() {
            let (ids, words, tags) = (self.ids(number), self.words(number), self.tags(number));
            for window in windows(&words, room) {
                let from = words[window.words.start].start;
                let to = words[window.words.end - 1].end.min(from + room);
                let framed = tokenizer.framed(&ids[from..to]);
                let place = |token: usize| (framed.before + token - from) as u32;
                let mut row = TagRow { sentence: number as u32, ..TagRow::default() };
                for word in window.own {
                    let own = words[word].clone();
                    if own.is_empty() {
                        continue;
                    }
                    let code = tags.get(word).map(|&code| code as usize);
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
                let cut = words[window.words.end - 1].end > to;
                tokens.push((framed.ids, framed.type_ids, cut));
                rows.push(row);
                lines.push(self.places.lines()[number]);
            }
            truth.push(tags.iter().map(|&code| classes[code as usize]).collect());
        }
        let targets = Targets::Tags(TagRows::new(rows, truth));
        Dataset {
            tokens: Tokens::from_rows(tokens).made_from_cache(self.tokens.cached()),
            targets,
            lines,
            file: files.name(),
        }
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
    let rename = BTreeMap::new();
    let new = Gathering::new(&[], TagForm::default(), &rename, tokenizer);
    let mut gathering = Gathering { keep_empty: true, ..new };
    gathering.add(sentences, &mut Err, &mut |_, _| {})?;
    let none = LabelMap::new(vec!["O".into()])?;
    gathering.finish().rows(&none, tokenizer, max_length, false, &Files::from(PathBuf::new()))
}
