//! Files of questions to tokens and places of answers.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::rows::{Asked, Context, Questions, SpanRow, SpanRows, answer_in, windows};
use super::{Answer, Question};
use crate::data::places::names_of;
use crate::data::reader::Skipped;
use crate::data::reader::questions::{QuestionOptions, QuestionReader, Repaired};
use crate::data::settings::{Files, OnBadRow};
use crate::data::{Dataset, Targets, Tokenizer, Tokens};
use crate::error::{Error, Result};

/// Questions that are held as text at a time.
pub const CHUNK: usize = 1024;

/// The questions of some files, tokenised.
#[derive(Default)]
pub struct Loaded {
    pub(super) asked: Vec<Encoded>,
    pub(super) questions: Questions,
    /// Token ids of each context.
    pub(super) contexts: Vec<Vec<u32>>,
    pub(super) index: HashMap<Arc<str>, u32>,
    /// Of a row, in tokens.
    pub(super) max_length: usize,
    /// As messages name them.
    pub(super) files: Vec<PathBuf>,
    /// Whether it comes from the cache.
    pub(super) cached: bool,
    pub skipped: Skipped,
    pub repaired: Repaired,
}

/// A question's tokens.
pub(super) struct Encoded {
    pub ids: Vec<u32>,
    /// First character and past the last of the answer to learn.
    pub answer: Option<(usize, usize)>,
    pub line: u64,
}

/// Reads and tokenises questions with their answers, for rows of at most `max_length` tokens; `progress` is told how many there are so far, and an error from it ends
/// the work.
///
/// # Errors
/// Of the first bad question, unless such are skipped; files without any; a tokenizer that fails.
pub fn load(
    files: &Files,
    options: &QuestionOptions,
    tokenizer: &Tokenizer,
    max_length: usize,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Loaded> {
    let mut reader = QuestionReader::open(files.as_slice(), options)?;
    let mut loaded = Loaded { files: names_of(files.as_slice()), ..Loaded::new(max_length) };
    let mut bad = Skipped::default();
    loop {
        let chunk = reader.by_ref().take(CHUNK).collect::<Result<Vec<Question>>>()?;
        if chunk.is_empty() {
            break;
        }
        loaded.add(chunk, tokenizer, &mut |_, error| bad.skip(error, options.on_bad_row), &mut |_, _, _| {})?;
        progress(loaded.asked.len() as u64)?;
    }
    loaded.skipped = reader.skipped().clone();
    loaded.skipped.append(bad);
    loaded.repaired = reader.repaired().clone();
    if loaded.asked.is_empty() {
        let skipped = loaded.skipped.describe().map_or_else(String::new, |s| format!("; {s}"));
        return Err(Error::in_file(files.name(), format!("the file has no questions{skipped}")));
    }
    Ok(loaded)
}

/// Questions whose answers are to be found.
pub struct Unanswered {
    /// As rows.
    pub data: Dataset,
    /// The rows of the input that were left out.
    pub left_out: HashSet<u64>,
    pub skipped: Skipped,
    /// Why the questions end before the last one.
    pub failed: Option<Error>,
}

/// Makes rows of questions as far as they can be: to the first that leaves no room for its context, unless such are skipped, or
/// at which the tokenizer fails.
pub fn unanswered(
    questions: Vec<Question>,
    tokenizer: &Tokenizer,
    (max_length, stride): (usize, usize),
    on_bad_row: OnBadRow,
) -> Unanswered {
    let mut loaded = Loaded::new(max_length);
    let (mut skipped, mut left_out) = (Skipped::default(), HashSet::new());
    let file = questions.first().map(|q| q.file.to_path_buf()).unwrap_or_default();
    let mut bad = |question: &Question, error| {
        skipped.skip(error, on_bad_row)?;
        left_out.insert(question.row);
        Ok(())
    };
    let failed = loaded.add(questions, tokenizer, &mut bad, &mut |_, _, _| {}).err();
    Unanswered { data: loaded.rows(tokenizer, stride, &Files::from(file)), left_out, skipped, failed }
}

impl Loaded {
    /// Of no questions yet, for rows of at most `max_length` tokens.
    pub fn new(max_length: usize) -> Self {
        Self { max_length, ..Self::default() }
    }

    /// Adds questions; `bad` says what becomes of one that leaves less than [`LEAST_ROOM`] tokens of a row to its context. `seen` is
    /// shown the others with the number of their context and their tokens.
    ///
    /// # Errors
    /// What `bad` returns; a tokenizer that fails.
    pub fn add(
        &mut self,
        chunk: Vec<Question>,
        tokenizer: &Tokenizer,
        bad: &mut dyn FnMut(&Question, Error) -> Result<()>,
        seen: &mut dyn FnMut(&Question, u32, &[u32]),
    ) -> Result<()> {
        let mut new: Vec<&Question> = vec![];
        let mut numbers = Vec::with_capacity(chunk.len());
        for question in &chunk {
            let next = (self.contexts.len() + new.len()) as u32;
            let number = *self.index.entry(Arc::clone(&question.context)).or_insert_with(|| {
                new.push(question);
                next
            });
            numbers.push(number);
        }
        let failed = |question: &Question, message| Error::at_line(&question.file, question.line, message);
        let context = |question: &&Question| {
            let (ids, offsets) =
                tokenizer.encode_with_offsets(&question.context).map_err(|message| failed(question, message))?;
            Ok::<_, Error>((ids, Context { text: Arc::clone(&question.context), offsets }))
        };
        for encoded in new.par_iter().map(context).collect::<Vec<_>>() {
            let (ids, context) = encoded?;
            self.contexts.push(ids);
            self.questions.contexts.push(context);
        }
        // White space before a question is no part of it; some sets have it.
        let encode = |question: &Question| {
            tokenizer.encode_text(question.question.trim_start()).map_err(|message| failed(question, message))
        };
        let encoded: Vec<_> = chunk.par_iter().map(encode).collect();
        for ((question, ids), context) in chunk.into_iter().zip(encoded).zip(numbers) {
            let ids = ids?;
            let room = self.room(tokenizer, &ids);
            if room < LEAST_ROOM.min(self.contexts[context as usize].len()) {
                let message = format!(
                    "question \"{}\" has {} tokens, which leaves {room} of max_length {} for its context; shorten it, or raise \
                     data.max_length (--max-length)",
                    question.id,
                    ids.len(),
                    self.max_length
                );
                bad(&question, failed(&question, message))?;
                continue;
            }
            seen(&question, context, &ids);
            let answer = question.answers.first().map(|answer: &Answer| (answer.start, answer.end()));
            self.asked.push(Encoded { ids, answer, line: question.line });
            let answers = question.answers.into_iter().map(|answer| answer.text).collect();
            self.questions.asked.push(Asked { id: question.id, context, answers });
        }
        Ok(())
    }

    /// Token ids of a context, without special ones.
    pub fn context_ids(&self, context: u32) -> &[u32] {
        &self.contexts[context as usize]
    }

    /// The tokens of a context that an answer begins and ends in, and the text that they stand for; `None` where it has no tokens.
    pub fn covered(&self, context: u32, answer: &Answer) -> Option<(Range<usize>, &str)> {
        let Context { text: _, offsets } = &self.questions.contexts[context as usize];
        let [first, last] = answer_in(&(0..offsets.len()), offsets, (answer.start, answer.end()))?;
        let (start, end) = (offsets.get(first)?.0 as usize, offsets.get(last)?.1 as usize);
        Some((first..last + 1, self.questions.contexts[context as usize].excerpt(start, end)))
    }

    /// Tokens of a row that a question leaves to its context.
    fn room(&self, tokenizer: &Tokenizer, question: &[u32]) -> usize {
        self.max_length.saturating_sub(tokenizer.special_tokens_count(true) + question.len())
    }

    /// Questions.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Rows; windows of one context share `stride` tokens, or, where a long question leaves no room for that, half of theirs.
    pub fn rows(self, tokenizer: &Tokenizer, stride: usize, files: &Files) -> Dataset {
        let (mut tokens, mut rows, mut lines) = (vec![], vec![], vec![]);
        for (number, (question, asked)) in self.asked.iter().zip(&self.questions.asked).enumerate() {
            let room = self.room(tokenizer, &question.ids);
            let context = &self.contexts[asked.context as usize];
            let stride = if stride < room { stride } else { room / 2 };
            let offsets = &self.questions.contexts[asked.context as usize].offsets;
            for window in windows(context.len(), room.max(1), stride) {
                let framed = tokenizer.framed_pair(&question.ids, &context[window.clone()]);
                let at = framed.before as u32;
                let place = question.answer.and_then(|answer| answer_in(&window, offsets, answer));
                rows.push(SpanRow {
                    question: number as u32,
                    len: framed.ids.len() as u32,
                    context: at..at + window.len() as u32,
                    from: window.start as u32,
                    answer: place.map_or([0, 0], |places| places.map(|place| at + place as u32)),
                });
                tokens.push((framed.ids, framed.type_ids, false));
                lines.push(question.line);
            }
        }
        let tokens = Tokens::from_rows(tokens).made_from_cache(self.cached);
        let targets = Targets::Spans(SpanRows::new(rows, self.questions));
        Dataset { tokens, targets, lines, file: files.name() }
    }
}

/// With fewer tokens of context in a row there is nothing to read an answer from.
const LEAST_ROOM: usize = 8;
