//! Answers to questions, in input order.

use crate::data::sampler::length_sorted;
use crate::data::span::{Asked, Question, unanswered};
use crate::data::{Targets, Tokenizer};
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

/// How rows are made of questions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Windows {
    /// Of a row, in tokens.
    pub max_length: usize,
    /// Tokens that neighbours share.
    pub doc_stride: usize,
}

/// Answers questions; rows of like length are computed together.
pub fn predict(
    model: &mut Model,
    tokenizer: &Tokenizer,
    questions: Vec<Question>,
    batch_size: usize,
    windows: Windows,
    decoding: &SpanDecoding,
) -> Result<Vec<SpanPrediction>> {
    let given: Vec<_> = questions.iter().map(|q| (q.row, q.given_id.clone())).collect();
    let data = unanswered(questions, tokenizer, windows.max_length, windows.doc_stride)?;
    let encoder = model.encoder().0.config();
    data.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    let Targets::Spans(spans) = &data.targets else { return Err(Error::Failed("the rows have no questions".into())) };
    let mut best = vec![Best::default(); given.len()];
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
    Ok(given.into_iter().zip(spans.questions().asked.iter().zip(&best)).map(answer).collect())
}
