//! Predictions of rows without labels, in input order.

pub mod span;
pub mod tags;

use crate::data::config::TaskKind;
use crate::data::sampler::length_sorted;
use crate::data::{Dataset, Example, Targets, Tokenizer};
use crate::error::Result;
use crate::heads::sequence::{probabilities, sigmoids};
use crate::metrics::classification::argmax;
use crate::metrics::threshold::{Threshold, decide, decide_each};
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
    /// The label with the highest probability, or of two the one that the model's threshold decides for; absent for regression
    /// and where a row may have several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its probability, or the regression's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// Where a row may have several labels: those whose probability reaches the threshold, in label order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
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
    threshold: Option<Threshold>,
}

impl<'a> Predictor<'a> {
    pub fn new(model: &'a mut Model, tokenizer: &'a Tokenizer, batch_size: usize, max_length: usize) -> Self {
        Self { model, tokenizer, batch_size, max_length, threshold: None }
    }

    /// Decides between two labels as [`decide`] does, without a threshold for the more probable one; on each of several labels
    /// as [`decide_each`] does, without a threshold from 0.5 on.
    pub fn with_threshold(mut self, threshold: Option<Threshold>) -> Self {
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
        let none = Prediction { row, id, label: None, score: None, labels: None, scores: None };
        let scores = |p: &[f32]| Some(Scores(task.labels.iter().cloned().zip(p.iter().copied()).collect()));
        match task.kind {
            TaskKind::Regression => Prediction { score: Some(logits[0]), ..none },
            // Words and questions have answers of their own, see [`tags`] and [`span`].
            TaskKind::Tokens | TaskKind::Span => none,
            TaskKind::Multilabel => {
                let p = sigmoids(logits);
                let thresholds = self.threshold.as_ref().unwrap_or(&Threshold::One(0.5)).each(&task.labels);
                let labels = decide_each(&p, &thresholds).into_iter().map(|i| task.labels[i as usize].clone());
                Prediction { labels: Some(labels.collect()), scores: scores(&p), ..none }
            }
            TaskKind::Classification => {
                let p = probabilities(logits, logits.len());
                let best = match self.threshold.as_ref().and_then(Threshold::one) {
                    Some(threshold) if p.len() == 2 => decide(p[1], threshold),
                    _ => argmax(logits),
                } as usize;
                Prediction { label: Some(task.labels[best].clone()), score: Some(p[best]), scores: scores(&p), ..none }
            }
        }
    }
}
