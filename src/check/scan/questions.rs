//! Questions about texts, as rows of a [`Scan`]; each text about which they are is a row of a [`Split`] of its own.

use super::look::Texts;
use super::{Label, Scan, Split, read_splits};
use crate::data::config::{DOC_STRIDE, DataConfig, TaskKind};
use crate::data::reader::questions::{QuestionOptions, QuestionReader, Repaired};
use crate::data::settings::{Files, OnBadRow};
use crate::data::span::{CHUNK, Loaded, Question};
use crate::data::{Skipped, Targets, Tokenizer, Tokens};
use crate::error::{Error, Result};
use crate::metrics::span::normalised;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};

/// What only questions have, beside the rows of a [`Split`].
pub struct Questions {
    pub notes: Vec<Note>,
    /// The texts that the questions are about, each once, at its first question.
    pub contexts: Split,
    /// Answers that were not at the given place, and the rows of the first ten questions with such.
    pub moved: Repaired,
    pub moved_rows: Vec<usize>,
}

/// What is kept of a question beside its tokens.
#[derive(Clone)]
pub struct Note {
    /// Row of its context.
    pub context: usize,
    /// Tokens of the question alone.
    pub length: u32,
    /// `None` where the context has none.
    pub answer: Option<Answered>,
}

/// How the answers of a question lie among the tokens of its context.
#[derive(Clone)]
pub struct Answered {
    /// Tokens of the first answer, and of the shortest.
    pub tokens: u32,
    pub shortest: u32,
    /// What the tokens of the first answer hold in place of it, where no answer begins and ends where tokens do.
    pub instead: Option<String>,
    /// Whether a window holds the first answer whole.
    pub in_window: bool,
}

impl Questions {
    pub(super) fn subset(&self, rows: &[usize]) -> Self {
        let mut notes: Vec<Note> = rows.iter().map(|&row| self.notes[row].clone()).collect();
        let used: Vec<usize> = notes.iter().map(|note| note.context).collect::<BTreeSet<_>>().into_iter().collect();
        for note in &mut notes {
            note.context = used.partition_point(|&context| context < note.context);
        }
        let mut moved = self.moved.clone();
        let moved_rows = (0..rows.len()).filter(|&i| self.moved_rows.contains(&rows[i])).collect::<Vec<_>>();
        if rows.len() < self.notes.len() {
            // The ids beyond the first ten are not known.
            moved.answers = moved_rows.len() as u64;
        }
        let contexts = self.contexts.pick(self.contexts.name.clone(), self.contexts.data.clone(), &used);
        Self { notes, contexts, moved, moved_rows }
    }
}

impl Scan {
    /// [`Self::new`] of questions.
    pub(super) fn of_questions(data: &DataConfig, tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        let mut answers = HashMap::new();
        let splits = read_splits(data, |name, files| {
            let mut split = Split::empty(name, files.name());
            split.read_questions(files, data, tokenizer, &mut answers)?;
            Ok(split)
        })?;
        let mut scan = Self { splits, ..Self::new_of(TaskKind::Span, tokenizer, true) };
        scan.split_eval(data, seed)?;
        Ok(scan)
    }
}

impl Split {
    fn read_questions(
        &mut self,
        files: &Files,
        data: &DataConfig,
        tokenizer: &Tokenizer,
        answers: &mut AnswerSets,
    ) -> Result<()> {
        // One bad row must not hide the others.
        let options = QuestionOptions { on_bad_row: OnBadRow::Skip, ..data.question_options() };
        let mut reader = QuestionReader::open(files.as_slice(), &options)?;
        let mut loaded = Loaded::new(data.max_length);
        let mut found = Gathered { contexts: Split::empty(self.name.clone(), files.name()), ..Gathered::new() };
        let mut bad = Skipped::default();
        loop {
            let chunk = reader.by_ref().take(CHUNK).collect::<Result<Vec<Question>>>()?;
            if chunk.is_empty() {
                break;
            }
            let mut kept = vec![];
            let see = &mut |question: &Question, context: u32, ids: &[u32]| {
                kept.push((question.clone(), context, ids.to_vec()));
            };
            loaded.add(chunk, tokenizer, &mut |_, error| bad.skip(error, OnBadRow::Skip), see)?;
            found.add(self, &kept, &loaded, tokenizer, answers);
        }
        self.skipped = reader.skipped().clone();
        self.skipped.append(bad);
        if loaded.is_empty() {
            let skipped = self.skipped.describe().map_or_else(String::new, |s| format!("; {s}"));
            return Err(Error::in_file(&self.data.file, format!("the file has no questions{skipped}")));
        }
        let moved = reader.repaired().clone();
        let first: HashSet<&str> = moved.first.iter().map(String::as_str).collect();
        let moved_rows = (0..self.ids.len()).filter(|&row| first.contains(self.ids[row].as_str())).collect();
        let Gathered { mut notes, mut contexts, context_tokens, .. } = found;
        contexts.tokens = Tokens::from_rows(context_tokens.iter().map(|ids| (ids, vec![0; ids.len()], false)));
        self.data = loaded.rows(tokenizer, data.doc_stride.unwrap_or(DOC_STRIDE), files);
        if let Targets::Spans(spans) = &self.data.targets {
            for row in spans.iter().filter(|row| row.answer != [0, 0]) {
                if let Some(answer) = &mut notes[row.question as usize].answer {
                    answer.in_window = true;
                }
            }
        }
        self.questions = Some(Box::new(Questions { notes, contexts, moved, moved_rows }));
        Ok(())
    }
}

/// Numbers for the sets of answers, the same in all splits.
type AnswerSets = HashMap<Vec<String>, u32>;

/// Questions on their way.
struct Gathered {
    notes: Vec<Note>,
    contexts: Split,
    context_tokens: Vec<Vec<u32>>,
    /// The row of each loaded context.
    rows: HashMap<u32, usize>,
}

impl Gathered {
    fn new() -> Self {
        Self {
            notes: vec![],
            contexts: Split::empty(String::new(), "".into()),
            context_tokens: vec![],
            rows: HashMap::new(),
        }
    }

    fn add(
        &mut self,
        split: &mut Split,
        kept: &[(Question, u32, Vec<u32>)],
        loaded: &Loaded,
        tokenizer: &Tokenizer,
        sets: &mut AnswerSets,
    ) {
        let (frame, unknown) = (tokenizer.special_tokens_count(true), tokenizer.unknown_id());
        let mut new = vec![];
        for (question, number, _) in kept {
            let next = self.context_tokens.len();
            if let Entry::Vacant(slot) = self.rows.entry(*number) {
                slot.insert(next);
                let ids = loaded.context_ids(*number);
                self.contexts.count(ids, 0, unknown);
                self.context_tokens.push(ids.to_vec());
                self.contexts.ids.push(question.id.clone());
                new.push((question, ids));
            }
        }
        let texts: Vec<Texts> = new.iter().map(|(question, _)| Texts::of_context(question)).collect();
        self.contexts.look(&texts, &|row| (new[row].1.to_vec(), vec![0; new[row].1.len()]), unknown, tokenizer);
        self.contexts.labels.resize(self.context_tokens.len(), Label::Unusable);
        let texts: Vec<Texts> = kept.iter().map(|(question, ..)| Texts::of_question(question)).collect();
        // Questions are not searched for ones nearly equal, so their unknown words need not be told apart.
        split.look(&texts, &|_| (vec![], vec![]), None, tokenizer);
        for (question, number, ids) in kept {
            let context = self.rows[number];
            let all: Vec<u32> = ids.iter().chain(&self.context_tokens[context]).copied().collect();
            split.count(&all, frame, unknown);
            let mut answers: Vec<String> = question.answers.iter().map(|answer| normalised(&answer.text)).collect();
            answers.sort_unstable();
            answers.dedup();
            let next = sets.len() as u32;
            split.labels.push(Label::Alike(*sets.entry(answers).or_insert(next)));
            let answer = Answered::new(question, *number, loaded);
            self.notes.push(Note { context, length: ids.len() as u32, answer });
            split.ids.push(question.id.clone());
        }
    }
}

impl<'a> Texts<'a> {
    fn of_question(question: &'a Question) -> Self {
        Self { text: question.question.trim_start(), pair: Some(&question.context), ..Self::of_context(question) }
    }

    fn of_context(question: &'a Question) -> Self {
        Self { text: &question.context, pair: None, file: &question.file, line: question.line }
    }
}

impl Answered {
    fn new(question: &Question, context: u32, loaded: &Loaded) -> Option<Self> {
        let placed: Vec<_> = question.answers.iter().map(|answer| (answer, loaded.covered(context, answer))).collect();
        let (_, first) = placed.first()?;
        let lengths = || placed.iter().filter_map(|(_, covered)| Some(covered.as_ref()?.0.len() as u32));
        let exact = placed.iter().any(|(answer, covered)| {
            covered.as_ref().is_some_and(|(_, text)| normalised(text) == normalised(&answer.text))
        });
        let read = || first.as_ref().map_or_else(String::new, |(_, text)| (*text).to_owned());
        Some(Self {
            tokens: first.as_ref().map_or(0, |(tokens, _)| tokens.len() as u32),
            shortest: lengths().min().unwrap_or(0),
            instead: (!exact).then(read),
            in_window: false,
        })
    }
}
