//! Predictions of rows without labels, in input order.

use crate::data::config::TaskKind;
use crate::data::sampler::length_sorted;
use crate::data::{Dataset, Example, Targets, Tokenizer};
use crate::error::Result;
use crate::heads::sequence::probabilities;
use crate::metrics::classification::argmax;
use crate::metrics::threshold::decide;
use crate::model::Model;
use serde::{Serialize, Serializer};

/// One row's answer, as `predict` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// 1-based row of the input.
    pub row: u64,
    /// Copied when the input has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// The label with the highest probability, or of two the one that the model's threshold decides for; absent for regression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its probability, or the regression's value.
    pub score: f32,
    /// Every label's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scores: Option<Scores>,
}

/// Label and probability, in label order; an object in JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(pub Vec<(String, f32)>);

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(label, p)| (label, p)))
    }
}

/// A model ready to answer.
pub struct Predictor<'a> {
    model: &'a mut Model,
    tokenizer: &'a Tokenizer,
    batch_size: usize,
    max_length: usize,
    threshold: Option<f64>,
}

impl<'a> Predictor<'a> {
    pub fn new(model: &'a mut Model, tokenizer: &'a Tokenizer, batch_size: usize, max_length: usize) -> Self {
        Self { model, tokenizer, batch_size, max_length, threshold: None }
    }

    /// Decides between two labels as [`decide`] does; without a threshold the more probable one is taken.
    pub fn with_threshold(mut self, threshold: Option<f64>) -> Self {
        self.threshold = threshold;
        self
    }

    /// Answers rows, in their order; rows of like length are computed together.
    pub fn predict(&mut self, rows: &[Example]) -> Result<Vec<Prediction>> {
        let tokens = self.tokenizer.encode(rows, self.max_length, &mut |_, _| Ok(()))?;
        let encoder = self.model.encoder().0.config();
        tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
        let lengths = tokens.lengths();
        let data = Dataset { tokens, targets: Targets::None, lines: vec![], file: Default::default() };
        let outputs = self.model.task().outputs();
        let mut logits = vec![0f32; rows.len() * outputs];
        for batch_rows in length_sorted(&lengths, self.batch_size) {
            let flat: Vec<f32> = self.model.logits(&data.batch(&batch_rows))?.flatten_all()?.to_vec1()?;
            for (&row, values) in batch_rows.iter().zip(flat.chunks_exact(outputs)) {
                logits[row * outputs..(row + 1) * outputs].copy_from_slice(values);
            }
        }
        Ok(rows.iter().zip(logits.chunks_exact(outputs)).map(|(row, logits)| self.answer(row, logits)).collect())
    }

    fn answer(&self, row: &Example, logits: &[f32]) -> Prediction {
        let (row, id) = (row.row, row.id.clone());
        let task = self.model.task();
        if task.kind == TaskKind::Regression {
            return Prediction { row, id, label: None, score: logits[0], scores: None };
        }
        let p = probabilities(logits, logits.len());
        let best = match self.threshold {
            Some(threshold) if p.len() == 2 => decide(p[1], threshold),
            _ => argmax(logits),
        } as usize;
        let scores = Scores(task.labels.iter().cloned().zip(p.iter().copied()).collect());
        Prediction { row, id, label: Some(task.labels[best].clone()), score: p[best], scores: Some(scores) }
    }
}
