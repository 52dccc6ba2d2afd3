//! One pass over the data files. Texts are read, tokenised, measured and dropped; what stays of a row is its tokens as the model
//! will read them, a key under which equal texts meet, and a few numbers.

use super::text;
use crate::data::config::{DataConfig, EvalSource, TaskKind};
use crate::data::label_sets::{self, LabelSets};
use crate::data::labels::value;
use crate::data::settings::{Files, OnBadRow};
use crate::data::tokenize::Tokenizer;
use crate::data::{Dataset, Example, LabelMap, ReadOptions, Reader, Skipped, Targets, Tokens, split_fraction};
use crate::error::{Error, Result};
use crate::rng::splitmix;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows that are held as text at a time.
const CHUNK_ROWS: usize = 8192;
/// Longer than any text.
const UNLIMITED: usize = u32::MAX as usize;

/// Signs that a row's text carries.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Marks {
    pub empty_text: bool,
    pub empty_pair: bool,
    pub mojibake: bool,
    pub html: bool,
}

/// A row's label as the file has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Label {
    /// Index into [`Scan::labels`].
    Name(u32),
    Value(f32),
    /// Empty, or for regression not a finite number: training refuses it.
    Unusable,
}

/// What stays of the rows of one split.
#[derive(Debug, Clone)]
pub struct Split {
    /// `train`, `eval` (or `eval_` and the name of a set) or `test`.
    pub name: String,
    /// As training sees it: tokens cut at `max_length`; labels that it would refuse count as the first class, or as 0.
    pub data: Dataset,
    /// The files, and which of them each row is from.
    files: Vec<Arc<Path>>,
    file_of: Vec<u32>,
    /// Rows that could not be read and were left out.
    pub skipped: Skipped,
    /// Tokens of each row before the cut, special ones included.
    pub lengths: Vec<u32>,
    /// How many of them are the unknown token.
    pub unknown: Vec<u32>,
    /// For rows with unknown tokens, their tokens with a hash of each unknown word in its place: rows that differ in such words
    /// alone are the same to the model, and yet no duplicates.
    told_apart: HashMap<u32, Box<[u32]>>,
    /// See [`text::key`]; `None` for a row without text.
    pub keys: Vec<Option<u128>>,
    pub labels: Vec<Label>,
    pub marks: Vec<Marks>,
    /// Whether all rows have the same first text, and the same second.
    pub constant_text: bool,
    pub constant_pair: bool,
}

/// What stays of all data of a run.
#[derive(Debug)]
pub struct Scan {
    /// `train`, then `eval` and `test` if there are any.
    pub splits: Vec<Split>,
    /// Label strings in the order in which they were met.
    pub labels: Vec<String>,
    /// The classes as training will number them; empty for regression.
    pub classes: Vec<String>,
    /// The classes of each of `labels`: one, or any number where a row may have several; `None` where training knows no such
    /// label.
    pub classes_of: Vec<Option<Vec<u32>>>,
    /// Whether a row may have several labels; each of `labels` then stands for all of a row's ([`label_sets`]).
    pub several: bool,
    /// Whether rows are pairs.
    pub pairs: bool,
    /// Tokens around every row, which are no words.
    pub special: Vec<u32>,
    /// How many of them a row has.
    pub frame: usize,
}

impl Scan {
    /// Reads all files of a config. `checkpoint` are the model's labels, which classes keep the order of if they are the
    /// data's; `seed` is that of the split of `data.eval`.
    ///
    /// # Errors
    /// What reading and tokenising report. Labels that training would refuse are no error here.
    pub fn new(
        data: &DataConfig,
        task: TaskKind,
        tokenizer: &Tokenizer,
        checkpoint: Option<&[String]>,
        seed: u64,
    ) -> Result<Self> {
        let mut names = Names::default();
        // One bad row must not hide the others.
        let options = ReadOptions { on_bad_row: OnBadRow::Skip, ..data.read_options(task) };
        let mut read = |name: String, files: &Files| {
            let mut reader = Reader::open_all(files.as_slice(), &options)?;
            let mut split = Split::empty(name, files.name());
            split.read(&mut reader, tokenizer, data.max_length, task, &mut names)?;
            reader.check_not_empty(split.len())?;
            split.skipped = reader.skipped().clone();
            Ok::<_, Error>(split)
        };
        let train = read("train".into(), &data.train)?;
        let mut others = vec![];
        for (name, files) in data.eval_sets() {
            others.push(read(name, files)?);
        }
        if let Some(files) = &data.test {
            others.push(read("test".into(), files)?);
        }
        let labels = names.list;
        let classes = match task {
            TaskKind::Regression => vec![],
            TaskKind::Tokens | TaskKind::Span => {
                return Err(Error::Failed("words with tags and answers are not scanned".into()));
            }
            TaskKind::Classification | TaskKind::Multilabel => classes(data, task, &train, &labels, checkpoint)?,
        };
        let several = task == TaskKind::Multilabel;
        let classes_of = |map: &LabelMap, label: &String| match several {
            true => map.set(label).ok(),
            false => map.class(label).ok().map(|class| vec![class]),
        };
        let classes_of = match LabelMap::new(classes.clone()) {
            Ok(map) => labels.iter().map(|label| classes_of(&map, label)).collect(),
            Err(_) => vec![None; labels.len()],
        };
        let mut scan = Self {
            splits: vec![train],
            labels,
            classes,
            classes_of,
            several,
            pairs: data.text_pair.is_some(),
            special: tokenizer.special_ids(),
            frame: tokenizer.special_tokens_count(data.text_pair.is_some()),
        };
        scan.splits.extend(others);
        for i in 0..scan.splits.len() {
            scan.splits[i].data.targets = scan.targets(&scan.splits[i]);
        }
        if let Some(EvalSource::Fraction(share)) = &data.eval {
            let (rows, eval_rows) = split_fraction(&scan.splits[0].data.targets, *share, seed)?;
            let eval = scan.splits[0].subset("eval", &eval_rows);
            scan.splits[0] = scan.splits[0].subset("train", &rows);
            scan.splits.insert(1, eval);
        }
        Ok(scan)
    }

    /// The classes of a row; `None` for one that training refuses, and for regression.
    pub fn classes_of(&self, label: Label) -> Option<&[u32]> {
        match label {
            Label::Name(i) => self.classes_of[i as usize].as_deref(),
            _ => None,
        }
    }

    /// A row's label or labels as people read them.
    pub fn label_text(&self, i: u32) -> String {
        let label = &self.labels[i as usize];
        match (self.several, label_sets::shown(label)) {
            (false, _) => label.clone(),
            (true, shown) if shown.is_empty() => "none".into(),
            (true, shown) => shown,
        }
    }

    /// Rows of a split by class.
    pub fn class_counts(&self, split: &Split) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        split.labels.iter().filter_map(|&l| self.classes_of(l)).flatten().for_each(|&c| counts[c as usize] += 1);
        counts
    }

    fn targets(&self, split: &Split) -> Targets {
        if self.classes.is_empty() {
            let value = |label: &Label| if let Label::Value(v) = label { *v } else { 0.0 };
            return Targets::Value(split.labels.iter().map(value).collect());
        }
        let classes = split.labels.iter().map(|&label| self.classes_of(label).unwrap_or_default());
        match self.several {
            true => Targets::Sets(LabelSets::new(classes.map(<[u32]>::to_vec).collect())),
            false => Targets::Class(classes.map(|of_row| of_row.first().copied().unwrap_or(0)).collect()),
        }
    }
}

/// The classes as training numbers them. Labels that are all the same are one class here, which training refuses.
fn classes(
    data: &DataConfig,
    task: TaskKind,
    train: &Split,
    labels: &[String],
    checkpoint: Option<&[String]>,
) -> Result<Vec<String>> {
    if let Some(names) = data.known_labels() {
        return Ok(names);
    }
    let mut in_train = vec![false; labels.len()];
    for label in &train.labels {
        if let Label::Name(i) = label {
            in_train[*i as usize] = true;
        }
    }
    let known = labels.iter().zip(in_train).filter(|(_, known)| *known);
    let names: Vec<String> = match task {
        TaskKind::Multilabel => {
            let every = known.flat_map(|(label, _)| label_sets::names(label)).collect::<BTreeSet<_>>();
            every.into_iter().map(str::to_owned).collect()
        }
        _ => known.map(|(name, _)| name.clone()).collect(),
    };
    match LabelMap::from_names(&names, checkpoint, &train.data.file) {
        Ok(map) => Ok(map.names().to_vec()),
        Err(_) if names.is_empty() => Err(Error::in_file(&train.data.file, "no row has a label")),
        Err(_) => Ok(names),
    }
}

/// Label strings with their numbers.
#[derive(Default)]
struct Names {
    list: Vec<String>,
    index: HashMap<String, u32>,
}

impl Names {
    fn index(&mut self, name: &str) -> u32 {
        if let Some(&i) = self.index.get(name) {
            return i;
        }
        let i = self.list.len() as u32;
        self.list.push(name.to_owned());
        self.index.insert(name.to_owned(), i);
        i
    }
}

impl Split {
    fn read(
        &mut self,
        reader: &mut Reader,
        tokenizer: &Tokenizer,
        max_length: usize,
        task: TaskKind,
        names: &mut Names,
    ) -> Result<()> {
        let unknown = tokenizer.unknown_id();
        let (mut first, mut parts): (Option<Example>, Vec<Tokens>) = (None, vec![]);
        loop {
            let chunk = reader.by_ref().take(CHUNK_ROWS).collect::<Result<Vec<Example>>>()?;
            let Some(row) = chunk.first() else {
                self.data.tokens = Tokens::concat(parts);
                return Ok(());
            };
            let first = first.get_or_insert_with(|| row.clone());
            self.constant_text &= chunk.iter().all(|e| e.text == first.text);
            self.constant_pair &= chunk.iter().all(|e| e.text_pair == first.text_pair);
            parts.push(self.add(&chunk, tokenizer, max_length, unknown)?);
            let label = |e: &Example| match (task, e.label.as_deref()) {
                (TaskKind::Regression, Some(number)) => value(number).map_or(Label::Unusable, Label::Value),
                (TaskKind::Classification, Some(name)) if !name.trim().is_empty() => Label::Name(names.index(name)),
                (TaskKind::Multilabel, Some(labels)) => Label::Name(names.index(labels)),
                _ => Label::Unusable,
            };
            self.labels.extend(chunk.iter().map(label));
        }
    }

    /// The file and line of a row.
    pub fn place(&self, row: usize) -> (&Path, u64) {
        (&self.files[self.file_of[row] as usize], self.data.lines[row])
    }

    fn empty(name: String, file: PathBuf) -> Self {
        let tokens = Tokens::concat(vec![]);
        Self {
            name,
            data: Dataset { tokens, targets: Targets::None, lines: vec![], file },
            files: vec![],
            file_of: vec![],
            skipped: Skipped::default(),
            lengths: vec![],
            unknown: vec![],
            told_apart: HashMap::new(),
            keys: vec![],
            labels: vec![],
            marks: vec![],
            constant_text: true,
            constant_pair: true,
        }
    }

    /// Measures some rows; gives their tokens.
    fn add(
        &mut self,
        rows: &[Example],
        tokenizer: &Tokenizer,
        max_length: usize,
        unknown: Option<u32>,
    ) -> Result<Tokens> {
        // Also says when `max_length` leaves no room.
        let cut = tokenizer.encode(rows, max_length, &mut |_, _| Ok(()))?;
        let long: Vec<Example> = (0..rows.len()).filter(|&i| cut.is_truncated(i)).map(|i| rows[i].clone()).collect();
        let whole = tokenizer.encode(&long, UNLIMITED, &mut |_, _| Ok(()))?;
        let mut whole = (0..whole.len()).map(|i| whole.row(i));
        for row in 0..cut.len() {
            // A row that lost nothing is whole.
            let ids = if cut.is_truncated(row) { whole.next().unwrap_or_default() } else { cut.row(row) };
            self.lengths.push(ids.len() as u32);
            self.unknown.push(ids.iter().filter(|&&id| Some(id) == unknown).count() as u32);
        }
        let first_row = self.data.lines.len() as u32;
        if let Some(unknown) = unknown {
            let apart = (0..cut.len()).into_par_iter().map(|row| (row, cut.row(row)));
            let apart = apart.filter(|(_, ids)| ids.contains(&unknown)).map(|(row, ids)| {
                let types = cut.type_ids_of(row);
                (first_row + row as u32, tell_apart(&rows[row], &ids, &types, unknown, tokenizer))
            });
            self.told_apart.par_extend(apart);
        }
        self.data.lines.extend(rows.iter().map(|e| e.line));
        for row in rows {
            // Rows of one file come one after the other.
            if self.files.last() != Some(&row.file) {
                self.files.push(row.file.clone());
            }
            self.file_of.push(self.files.len() as u32 - 1);
        }
        let read = rows.par_iter().map_init(String::new, |buffer, e| {
            let pair = e.text_pair.as_deref();
            let texts = || std::iter::once(e.text.as_str()).chain(pair);
            let marks = Marks {
                empty_text: e.text.trim().is_empty(),
                empty_pair: pair.is_some_and(|p| p.trim().is_empty()),
                mojibake: texts().any(|t| text::mojibake(t).is_some()),
                html: texts().any(|t| text::html(t).is_some()),
            };
            (text::key(&e.text, pair, buffer), marks)
        });
        let read: Vec<_> = read.collect();
        self.keys.extend(read.iter().map(|(key, _)| *key));
        self.marks.extend(read.iter().map(|(_, marks)| *marks));
        Ok(cut)
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Never: a file without rows is an error.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The tokens of a row, unknown words told apart.
    pub fn words(&self, row: usize) -> Cow<'_, [u32]> {
        match self.told_apart.get(&(row as u32)) {
            Some(ids) => Cow::Borrowed(ids),
            None => Cow::Owned(self.data.tokens.row(row)),
        }
    }

    /// These rows as a split of their own.
    fn subset(&self, name: &str, rows: &[usize]) -> Self {
        fn pick<T: Copy>(from: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|&row| from[row]).collect()
        }
        Self {
            name: name.into(),
            data: self.data.subset(rows),
            files: self.files.clone(),
            file_of: pick(&self.file_of, rows),
            skipped: self.skipped.clone(),
            lengths: pick(&self.lengths, rows),
            unknown: pick(&self.unknown, rows),
            told_apart: (rows.iter().zip(0..))
                .filter_map(|(&row, number)| Some((number, self.told_apart.get(&(row as u32))?.clone())))
                .collect(),
            keys: pick(&self.keys, rows),
            labels: pick(&self.labels, rows),
            marks: pick(&self.marks, rows),
            constant_text: self.constant_text,
            constant_pair: self.constant_pair,
        }
    }
}

/// A row's tokens with hashes for unknown words, which no vocabulary's ids reach.
fn tell_apart(row: &Example, ids: &[u32], type_ids: &[u8], unknown: u32, tokenizer: &Tokenizer) -> Box<[u32]> {
    let hash = |word: String| word.bytes().fold(0, |key, b| splitmix(key ^ u64::from(b))) as u32 | 1 << 31;
    let words = |text: Option<&str>| tokenizer.unknown_words(text.unwrap_or_default()).into_iter().map(hash);
    let mut of_texts = [words(Some(&row.text)), words(row.text_pair.as_deref())];
    let own = |(&id, &text): (&u32, &u8)| match id == unknown {
        true => of_texts[usize::from(text & 1)].next().unwrap_or(id),
        false => id,
    };
    ids.iter().zip(type_ids).map(own).collect()
}
