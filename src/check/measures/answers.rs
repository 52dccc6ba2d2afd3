//! Figures of questions and their answers.

use super::{Lengths, lengths};
use crate::check::scan::questions::{Answered, Questions};
use serde::Serialize;

/// The questions of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    /// Texts that the questions are about.
    pub contexts: usize,
    pub without_answer: usize,
    /// Answers that do not stand where the file says, but at one other place.
    pub moved: u64,
    /// In tokens.
    pub question_length: Lengths,
    pub context_length: Lengths,
    /// Of the answers that are learnt: the first of each question.
    pub answer_length: Lengths,
    /// Questions none of whose answers begins and ends where tokens do.
    pub inexact: usize,
    /// Questions whose answer no window holds whole.
    pub lost: usize,
    /// Questions all of whose answers have more tokens than `max_answer_length`.
    pub too_long: usize,
    pub max_answer_length: usize,
}

impl Answers {
    pub(super) fn new(questions: &Questions, max_answer_length: usize) -> Self {
        let sorted = |lengths_of: &mut dyn Iterator<Item = u32>| {
            let mut all: Vec<u32> = lengths_of.collect();
            all.sort_unstable();
            lengths(&all)
        };
        let notes = &questions.notes;
        let answered = || notes.iter().filter_map(|note| note.answer.as_ref());
        let count = |is: &dyn Fn(&&Answered) -> bool| answered().filter(is).count();
        Self {
            contexts: questions.contexts.len(),
            without_answer: notes.len() - answered().count(),
            moved: questions.moved.answers,
            question_length: sorted(&mut notes.iter().map(|note| note.length)),
            context_length: sorted(&mut questions.contexts.lengths.iter().copied()),
            answer_length: sorted(&mut answered().map(|answer| answer.tokens)),
            inexact: count(&|answer| answer.instead.is_some()),
            lost: count(&|answer| !answer.in_window),
            too_long: count(&|answer| answer.shortest as usize > max_answer_length),
            max_answer_length,
        }
    }
}
