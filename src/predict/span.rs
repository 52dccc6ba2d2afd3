//! Answers to questions, in input order.

use crate::data::sampler::length_sorted;
use crate::data::settings::OnBadRow;
use crate::data::span::{Asked, Question, Unanswered, unanswered};
use crate::data::{Skipped, Targets, Tokenizer};
use crate::error::{Error, Result};
use crate::heads::span::{Best, SpanDecoding, add_rows};
use crate::model::Model;
use serde::Serialize;

/// One question's answer, as `predict` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpanPrediction {
    /// 1-based row of the input.
    pub row: u64,
    /// Copied when the input has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// Empty where there is none.
    pub answer: String,
    /// First character of the context and past the last; absent where there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<usize>,
    /// The probability among the answers that are considered.
    pub score: f64,
    /// Where a question may have no answer: by how much that scores above the best piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub null_odds: Option<f64>,
}

/// The answers to some questions.
pub struct Answered {
    /// In the order of the questions.
    pub predictions: Vec<SpanPrediction>,
    pub skipped: Skipped,
    /// Why there is no answer to the question behind the last of them.
    pub failed: Option<Error>,
}

/// How rows are made of questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Windows {
    /// Of a row, in tokens.
    pub max_length: usize,
    /// Tokens that neighbours share.
    pub doc_stride: usize,
    /// What becomes of a question that leaves no room for its context.
    pub on_bad_row: OnBadRow,
}

/// Answers questions; rows of like length are computed together.
pub fn predict(
    model: &mut Model,
    tokenizer: &Tokenizer,
    questions: Vec<Question>,
    batch_size: usize,
    windows: Windows,
    decoding: &SpanDecoding,
) -> Result<Answered> {
    let mut given: Vec<_> = questions.iter().map(|q| (q.row, q.given_id.clone())).collect();
    let lengths = (windows.max_length, windows.doc_stride);
    let Unanswered { data, left_out, skipped, failed } = unanswered(questions, tokenizer, lengths, windows.on_bad_row);
    given.retain(|(row, _)| !left_out.contains(row));
    let encoder = model.encoder().0.config();
    data.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    let Targets::Spans(spans) = &data.targets else { return Err(Error::Failed("the rows have no questions".into())) };
    let mut best = vec![Best::default(); spans.questions().asked.len()];
    for rows in length_sorted(&data.tokens.lengths(), batch_size) {
        let logits: Vec<f32> = model.logits(&data.batch(&rows))?.flatten_all()?.to_vec1()?;
        add_rows(&mut best, &spans.subset(&rows), &logits, decoding);
    }
    let answer = |((row, id), (asked, best)): ((u64, Option<serde_json::Value>), (&Asked, &Best))| {
        let found = best.found(&spans.questions().contexts[asked.context as usize], decoding);
        let decided = best.decided(&found, decoding.null_threshold);
        SpanPrediction {
            row,
            id,
            answer: decided.map_or_else(String::new, |f| f.text.to_owned()),
            start: decided.and_then(|f| f.place).map(|(start, _)| start),
            end: decided.and_then(|f| f.place).map(|(_, end)| end),
            score: decided.map_or(0.0, |f| f.probability),
            null_odds: best.answer().filter(|_| decoding.null_threshold.is_some()).map(|(_, odds)| odds),
        }
    };
    let predictions = given.into_iter().zip(spans.questions().asked.iter().zip(&best)).map(answer).collect();
    Ok(Answered { predictions, skipped, failed })
}
