//! One pass over the data files. Texts are read, tokenised, measured and dropped; what stays of a row is its tokens as the model
//! will read them, a key under which equal texts meet, and a few numbers. A row is here what a file has: of words with tags a
//! sentence ([`sentences`]), of questions with answers a question ([`questions`]), however many windows it is cut into.

mod look;
pub mod questions;
pub mod sentences;

use self::look::Texts;
use self::questions::Questions;
use self::sentences::Sentences;
use crate::data::config::{DataConfig, EvalSource, TaskKind};
use crate::data::label_sets::{self, LabelSets};
use crate::data::labels::value;
use crate::data::settings::{Files, OnBadRow};
use crate::data::tagging::scheme::Scheme;
use crate::data::tokenize::Tokenizer;
use crate::data::{Dataset, Example, LabelMap, ReadOptions, Reader, Skipped, Targets, Tokens, split_fraction};
use crate::error::{Error, Result};
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
    /// The tags of a sentence or the answers to a question, as a number that equal ones share.
    Alike(u32),
    /// Empty, or for regression not a finite number: training refuses it.
    Unusable,
}

/// What stays of the rows of one split.
pub struct Split {
    /// `train`, `eval` (or `eval_` and the name of a set) or `test`.
    pub name: String,
    /// As training sees it: tokens cut at `max_length`; labels that it would refuse count as the first class, or as 0.
    pub data: Dataset,
    /// The files, and which of them each row is from.
    files: Vec<Arc<Path>>,
    file_of: Vec<u32>,
    /// 1-based.
    lines: Vec<u64>,
    /// Of questions, which may all stand on one line; empty for others.
    ids: Vec<String>,
    /// Rows that could not be read and were left out.
    pub skipped: Skipped,
    /// Of each row what it is compared by.
    pub tokens: Tokens,
    /// Tokens of each row before the cut, special ones included.
    pub lengths: Vec<u32>,
    /// How many of them are the unknown token.
    pub unknown: Vec<u32>,
    /// For rows with unknown tokens, their tokens with a hash of each unknown word in its place: rows that differ in such words
    /// alone are the same to the model, and yet no duplicates.
    told_apart: HashMap<u32, Box<[u32]>>,
    /// See [`super::text::key`]; `None` for a row without text.
    pub keys: Vec<Option<u128>>,
    pub labels: Vec<Label>,
    pub marks: Vec<Marks>,
    /// The texts of the first row.
    first: Option<(String, Option<String>)>,
    /// Whether all rows have the same first text, and the same second.
    pub constant_text: bool,
    pub constant_pair: bool,
    /// Of words with tags.
    pub sentences: Option<Sentences>,
    /// Of questions.
    pub questions: Option<Box<Questions>>,
}

/// What stays of all data of a run.
pub struct Scan {
    pub kind: TaskKind,
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
    /// The scheme that tags are to be in, as the config says.
    pub scheme: Option<Scheme>,
    /// Tokens around every row, which are no words.
    pub special: Vec<u32>,
    /// How many of them a row has.
    pub frame: usize,
    /// The token that stands for what the vocabulary does not have.
    pub unknown: Option<u32>,
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
        match task {
            TaskKind::Tokens => return Self::of_sentences(data, tokenizer, checkpoint, seed),
            TaskKind::Span => return Self::of_questions(data, tokenizer, seed),
            TaskKind::Classification | TaskKind::Multilabel | TaskKind::Regression => {}
        }
        let mut names = Names::default();
        // One bad row must not hide the others.
        let options = ReadOptions { on_bad_row: OnBadRow::Skip, ..data.read_options(task) };
        let splits = read_splits(data, |name, files| {
            let mut reader = Reader::open_all(files.as_slice(), &options)?;
            let mut split = Split::empty(name, files.name());
            split.read(&mut reader, tokenizer, data.max_length, task, &mut names)?;
            reader.check_not_empty(split.len())?;
            split.skipped = reader.skipped().clone();
            Ok(split)
        })?;
        let labels = names.list;
        let classes = match task {
            TaskKind::Classification | TaskKind::Multilabel => classes(data, task, &splits[0], &labels, checkpoint)?,
            TaskKind::Regression | TaskKind::Tokens | TaskKind::Span => vec![],
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
        let pairs = data.text_pair.is_some();
        let mut scan = Self { splits, labels, classes, classes_of, several, ..Self::new_of(task, tokenizer, pairs) };
        for i in 0..scan.splits.len() {
            scan.splits[i].data.targets = scan.targets(&scan.splits[i]);
        }
        scan.split_eval(data, seed)?;
        Ok(scan)
    }

    /// Without rows yet.
    fn new_of(kind: TaskKind, tokenizer: &Tokenizer, pairs: bool) -> Self {
        Self {
            kind,
            splits: vec![],
            labels: vec![],
            classes: vec![],
            classes_of: vec![],
            several: false,
            pairs,
            scheme: None,
            special: tokenizer.special_ids(),
            frame: tokenizer.special_tokens_count(pairs),
            unknown: tokenizer.unknown_id(),
        }
    }

    /// Takes the rows for `eval` out of `train` where `data.eval` is a share.
    fn split_eval(&mut self, data: &DataConfig, seed: u64) -> Result<()> {
        if let Some(EvalSource::Fraction(share)) = &data.eval {
            let (rows, eval_rows) = split_fraction(&self.splits[0].data.targets, *share, seed)?;
            let eval = self.splits[0].subset("eval", &eval_rows);
            self.splits[0] = self.splits[0].subset("train", &rows);
            self.splits.insert(1, eval);
        }
        Ok(())
    }

    /// The texts that the questions of each split are about, as rows.
    pub fn contexts(&self) -> Option<Vec<&Split>> {
        self.splits.iter().map(|split| Some(&split.questions.as_ref()?.contexts)).collect()
    }

    /// Whether a row has a class, or several.
    pub fn has_classes(&self) -> bool {
        matches!(self.kind, TaskKind::Classification | TaskKind::Multilabel)
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

    /// Rows of a split by class, or words by tag.
    pub fn class_counts(&self, split: &Split) -> Vec<usize> {
        if let Some(sentences) = &split.sentences {
            return sentences.class_counts(self.classes.len());
        }
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

/// What `read` makes of the files of each split, `train` first.
fn read_splits(data: &DataConfig, mut read: impl FnMut(String, &Files) -> Result<Split>) -> Result<Vec<Split>> {
    let mut splits = vec![read("train".into(), &data.train)?];
    for (name, files) in data.eval_sets() {
        splits.push(read(name, files)?);
    }
    if let Some(files) = &data.test {
        splits.push(read("test".into(), files)?);
    }
    Ok(splits)
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
        let mut parts = vec![];
        loop {
            let chunk = reader.by_ref().take(CHUNK_ROWS).collect::<Result<Vec<Example>>>()?;
            if chunk.is_empty() {
                self.tokens = Tokens::concat(parts);
                self.data = Dataset { tokens: self.tokens.clone(), lines: self.lines.clone(), ..self.data.clone() };
                return Ok(());
            }
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
        (&self.files[self.file_of[row] as usize], self.lines[row])
    }

    fn empty(name: String, file: PathBuf) -> Self {
        let tokens = Tokens::concat(vec![]);
        Self {
            name,
            data: Dataset { tokens: tokens.clone(), targets: Targets::None, lines: vec![], file },
            files: vec![],
            file_of: vec![],
            lines: vec![],
            ids: vec![],
            skipped: Skipped::default(),
            tokens,
            lengths: vec![],
            unknown: vec![],
            told_apart: HashMap::new(),
            keys: vec![],
            labels: vec![],
            marks: vec![],
            first: None,
            constant_text: true,
            constant_pair: true,
            sentences: None,
            questions: None,
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
            self.count(&ids, 0, unknown);
        }
        let texts: Vec<Texts> = rows.iter().map(Texts::of_row).collect();
        self.look(&texts, &|row| (cut.row(row), cut.type_ids_of(row)), unknown, tokenizer);
        Ok(cut)
    }

    /// The id of a question.
    pub fn id(&self, row: usize) -> Option<&str> {
        self.ids.get(row).map(String::as_str)
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Never: a file without rows is an error.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The tokens of a row, unknown words told apart.
    pub fn words(&self, row: usize) -> Cow<'_, [u32]> {
        match self.told_apart.get(&(row as u32)) {
            Some(ids) => Cow::Borrowed(ids),
            None => Cow::Owned(self.tokens.row(row)),
        }
    }

    /// The rows of `data` with these numbers as a split of their own.
    fn subset(&self, name: &str, of_data: &[usize]) -> Self {
        let data = self.data.subset(of_data);
        let rows = match &data.targets {
            Targets::Tags(tags) => tags.numbers(),
            Targets::Spans(spans) => spans.numbers(),
            _ => of_data.to_vec(),
        };
        self.pick(name.into(), data, &rows)
    }

    /// These rows in this order, and what training makes of them.
    fn pick(&self, name: String, data: Dataset, rows: &[usize]) -> Self {
        fn pick<T: Clone>(from: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|&row| from[row].clone()).collect()
        }
        Self {
            name,
            data,
            files: self.files.clone(),
            file_of: pick(&self.file_of, rows),
            lines: pick(&self.lines, rows),
            ids: if self.ids.is_empty() { vec![] } else { pick(&self.ids, rows) },
            skipped: self.skipped.clone(),
            tokens: self.tokens.subset(rows),
            lengths: pick(&self.lengths, rows),
            unknown: pick(&self.unknown, rows),
            told_apart: (rows.iter().zip(0..))
                .filter_map(|(&row, number)| Some((number, self.told_apart.get(&(row as u32))?.clone())))
                .collect(),
            keys: pick(&self.keys, rows),
            labels: pick(&self.labels, rows),
            marks: pick(&self.marks, rows),
            first: self.first.clone(),
            constant_text: self.constant_text,
            constant_pair: self.constant_pair,
            sentences: self.sentences.as_ref().map(|s| s.subset(rows)),
            questions: self.questions.as_ref().map(|q| Box::new(q.subset(rows))),
        }
    }
}
