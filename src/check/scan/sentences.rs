//! Sentences of words with tags, as rows of a [`Scan`].

use super::super::findings::Place;
use super::look::Texts;
use super::{Label, Scan, Split, read_splits};
use crate::data::config::{DataConfig, TaskKind};
use crate::data::reader::sentences::{SentenceOptions, SentenceReader};
use crate::data::settings::OnBadRow;
use crate::data::tagging::scheme::{Reading, Scheme, Span, Tag, first_wrong, spans};
use crate::data::tagging::{CHUNK, Gathering, Loaded, Sentence, TagForm, renamed};
use crate::data::{LabelMap, Skipped, Tokenizer};
use crate::error::{Error, Result};
use crate::rng::splitmix;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// In the order in which [`Note::wrong`] has them.
pub const SCHEMES: [Scheme; 3] = [Scheme::Iob2, Scheme::Iob1, Scheme::Iobes];

/// What only words with tags have, beside the rows of a [`Split`].
#[derive(Clone)]
pub struct Sentences {
    loaded: Arc<Loaded>,
    /// Of each of the loaded names its class; `None` where training knows no such tag.
    pub classes: Vec<Option<u32>>,
    /// Of each row its number among the loaded.
    index: Vec<usize>,
    notes: Vec<Note>,
    /// Sentences that the tokenizer makes nothing of, which are no rows.
    pub empty: Vec<Place>,
}

/// What is kept of a sentence beside its tokens and tags.
#[derive(Clone)]
pub struct Note {
    /// The first word whose tag breaks each of [`SCHEMES`].
    pub wrong: [Option<u32>; 3],
    /// Whether each word has a line of its own.
    pub line_a_word: bool,
    /// A hash of the words and the type of each entity, without regard to case.
    pub mentions: Vec<u64>,
}

impl Sentences {
    /// The tags that there are, as the files write them or converted.
    pub fn names(&self) -> Vec<String> {
        self.loaded.names()
    }

    /// Of each word of a row its tag, as an index into [`Self::names`].
    pub fn tags(&self, row: usize) -> &[u32] {
        self.loaded.tags(self.index[row])
    }

    /// Words of each class; those whose tag training does not know are left out.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        let tags = self.index.iter().flat_map(|&row| self.loaded.tags(row));
        tags.filter_map(|&tag| self.classes[tag as usize]).for_each(|class| counts[class as usize] += 1);
        counts
    }

    pub fn note(&self, row: usize) -> &Note {
        &self.notes[row]
    }

    /// Words of a row without tokens, and words with none but `unknown`.
    pub fn unseen_words(&self, row: usize, unknown: Option<u32>) -> (Vec<usize>, usize) {
        let (ids, words) = (self.loaded.ids(self.index[row]), self.loaded.words(self.index[row]));
        let lost = (0..words.len()).filter(|&word| words[word].is_empty()).collect();
        let unknown = |word: &Range<usize>| !word.is_empty() && ids[word.clone()].iter().all(|&id| Some(id) == unknown);
        (lost, words.iter().filter(|word| unknown(word)).count())
    }

    pub(super) fn subset(&self, rows: &[usize]) -> Self {
        Self {
            loaded: Arc::clone(&self.loaded),
            classes: self.classes.clone(),
            index: rows.iter().map(|&row| self.index[row]).collect(),
            notes: rows.iter().map(|&row| self.notes[row].clone()).collect(),
            empty: self.empty.clone(),
        }
    }
}

impl Scan {
    /// [`Self::new`] of words with tags. What breaks `data.tag_scheme` is told and stays.
    pub(super) fn of_sentences(
        data: &DataConfig,
        tokenizer: &Tokenizer,
        checkpoint: Option<&[String]>,
        seed: u64,
    ) -> Result<Self> {
        tokenizer.check_max_length(data.max_length, false)?;
        let mut sequences = HashMap::new();
        let splits = read_splits(data, |name, files| {
            let mut split = Split::empty(name, files.name());
            split.read_sentences(files.as_slice(), data, tokenizer, &mut sequences)?;
            Ok(split)
        })?;
        let mut scan = Self { splits, scheme: data.tag_scheme, ..Self::new_of(TaskKind::Tokens, tokenizer, false) };
        let names = scan.splits[0].sentences.as_ref().map(Sentences::names).unwrap_or_default();
        let file = &scan.splits[0].data.file;
        scan.classes = match data.labels.clone() {
            Some(labels) => labels,
            // Words that all have one tag are told, which training refuses.
            None => LabelMap::from_names(&names, checkpoint, file).map_or(names, |map| map.names().to_vec()),
        };
        let map = LabelMap::new(scan.classes.clone())?;
        for split in &mut scan.splits {
            let Some(sentences) = &mut split.sentences else { continue };
            sentences.classes = sentences.names().iter().map(|name| map.class(name).ok()).collect();
            let classes: Vec<u32> = sentences.classes.iter().map(|class| class.unwrap_or(0)).collect();
            let files = split.data.file.clone().into();
            let all = data.label_all_tokens;
            split.data = sentences.loaded.cut(&classes, &map, tokenizer, data.max_length, all, &files);
        }
        scan.split_eval(data, seed)?;
        Ok(scan)
    }

    /// Whether tags are those of entities: O, or a prefix and a type. Else each word counts by itself, as parts of speech do.
    pub fn has_entities(&self) -> bool {
        let of_split = |split: &Split| split.sentences.as_ref().map(Sentences::names).unwrap_or_default();
        self.splits.iter().flat_map(of_split).all(|name| Tag::parse(&name).is_ok())
    }
}

impl Split {
    fn read_sentences(
        &mut self,
        files: &[PathBuf],
        data: &DataConfig,
        tokenizer: &Tokenizer,
        sequences: &mut HashMap<u64, u32>,
    ) -> Result<()> {
        let options = SentenceOptions {
            // One bad row must not hide the others.
            on_bad_row: OnBadRow::Skip,
            ..data.sentence_options()
        };
        let form = TagForm { scheme: None, convert: data.convert_tags };
        let mut reader = SentenceReader::open(files, &options)?;
        let mut gathering = Gathering::new(files, form, &data.rename_labels, tokenizer);
        let (mut bad, mut notes, mut empty) = (Skipped::default(), vec![], vec![]);
        let (frame, unknown) = (tokenizer.special_tokens_count(false), tokenizer.unknown_id());
        loop {
            let chunk = reader.by_ref().take(CHUNK).collect::<Result<Vec<Sentence>>>()?;
            if chunk.is_empty() {
                break;
            }
            let mut kept: Vec<(&Sentence, Vec<u32>)> = vec![];
            gathering.add(&chunk, &mut |error| bad.skip(error, OnBadRow::Skip), &mut |sentence, ids| match ids
                .is_empty()
            {
                true => empty.push(Place { file: sentence.file.to_path_buf(), line: sentence.line, id: None }),
                false => kept.push((sentence, ids.to_vec())),
            })?;
            let texts: Vec<String> = kept.iter().map(|(sentence, _)| sentence.words.join(" ")).collect();
            let rows: Vec<Texts> = (texts.iter().zip(&kept))
                .map(|(text, (sentence, _))| Texts { text, pair: None, file: &sentence.file, line: sentence.line })
                .collect();
            let tokens = |row: usize| (kept[row].1.clone(), vec![0; kept[row].1.len()]);
            self.look(&rows, &tokens, unknown, tokenizer);
            for (sentence, ids) in &kept {
                self.count(ids, frame, unknown);
                let tags = renamed(sentence, &data.rename_labels);
                let next = sequences.len() as u32;
                self.labels.push(Label::Alike(*sequences.entry(hash(tags.iter())).or_insert(next)));
                notes.push(Note::new(sentence, &tags));
            }
        }
        self.skipped = reader.skipped().clone();
        self.skipped.append(bad);
        let loaded = gathering.finish();
        if loaded.is_empty() {
            let skipped = self.skipped.describe().map_or_else(String::new, |s| format!("; {s}"));
            return Err(Error::in_file(&self.data.file, format!("the file has no sentences{skipped}")));
        }
        self.tokens = loaded.tokens().clone();
        let index = (0..loaded.len()).collect();
        self.sentences = Some(Sentences { loaded: Arc::new(loaded), classes: vec![], index, notes, empty });
        Ok(())
    }
}

impl Note {
    fn new(sentence: &Sentence, tags: &[String]) -> Self {
        let parsed: Option<Vec<Tag>> = tags.iter().map(|tag| Tag::parse(tag).ok()).collect();
        let parsed = parsed.unwrap_or_default();
        let mention = |span: &Span| {
            let words = sentence.words[span.start..span.end].iter().map(|word| word.to_lowercase());
            hash(words.chain([span.kind.to_owned()]))
        };
        Self {
            wrong: SCHEMES.map(|scheme| first_wrong(&parsed, scheme).map(|word| word as u32)),
            line_a_word: sentence.line_a_word,
            mentions: spans(&parsed, Reading::Lenient).iter().map(mention).collect(),
        }
    }
}

fn hash(parts: impl Iterator<Item = impl AsRef<str>>) -> u64 {
    let one = |key, part: &str| part.bytes().fold(splitmix(key), |key, b| splitmix(key ^ u64::from(b)));
    parts.fold(0, |key, part| one(key, part.as_ref()))
}
