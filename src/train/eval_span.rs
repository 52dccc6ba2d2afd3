//! Scoring answers: of the windows of a question's context the best pieces are kept, which are compared with the right answers.

use super::eval::Evaluation;
use super::log::{Phase, Progress, Reporter};
use crate::data::sampler::length_sorted;
use crate::data::span::{Asked, Context};
use crate::data::{Dataset, SpanRows, Targets};
use crate::error::{Error, Result};
use crate::heads::sequence::row_losses;
use crate::heads::span::{Best, Found, SpanDecoding, add_rows};
use crate::metrics::span::{Judged, score};
use crate::model::Model;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

/// What a model answers to every question of a set: a few pieces each, never a score a token.
pub struct SpanScores<'a> {
    spans: &'a SpanRows,
    /// By number of the question; nothing of those that no row is about.
    best: Vec<Best>,
    decoding: SpanDecoding,
    /// Mean over rows.
    loss: f64,
    seconds: f64,
}

impl<'a> SpanScores<'a> {
    /// Runs the model over `data`, whose targets are answers, `batch_size` rows at a time.
    pub fn new(
        model: &mut Model,
        data: &'a Dataset,
        batch_size: usize,
        decoding: SpanDecoding,
        reporter: &mut dyn Reporter,
    ) -> Result<Self> {
        let started = Instant::now();
        let Targets::Spans(spans) = &data.targets else { return Err(Error::Failed("the rows have no answers".into())) };
        let mut best = vec![Best::default(); spans.questions().asked.len()];
        let (total, mut done, mut loss) = (data.len(), 0, 0.0);
        for rows in length_sorted(&data.tokens.lengths(), batch_size) {
            let batch = data.batch(&rows);
            let logits: Vec<f32> = model.logits(&batch)?.flatten_all()?.to_vec1()?;
            loss += row_losses(&logits, 2, &batch.targets)?.iter().sum::<f64>();
            if let Targets::Spans(spans) = &batch.targets {
                add_rows(&mut best, spans, &logits, &decoding);
            }
            done += rows.len();
            reporter.progress(Progress::counted(Phase::Evaluate, done as u64, total as u64));
        }
        Ok(Self { spans, best, decoding, loss: loss / total as f64, seconds: started.elapsed().as_secs_f64() })
    }

    /// The questions that there are rows of.
    fn answered(&self) -> impl Iterator<Item = (&Asked, &Context, &Best)> {
        let questions = self.spans.questions();
        let with_context = |(asked, best): (&'a Asked, _)| (asked, &questions.contexts[asked.context as usize], best);
        questions.asked.iter().zip(&self.best).filter(|(_, best)| best.is_some()).map(with_context)
    }

    /// How right the best piece of each question is.
    pub fn judged(&self) -> Vec<Judged> {
        let with_none = self.decoding.null_threshold.is_some();
        let judge = |(asked, context, best): (&Asked, &Context, &Best)| {
            let (text, odds) = best
                .answer()
                .map_or(("", f64::INFINITY), |(piece, odds)| (piece.text(context).map_or("", |found| found.2), odds));
            Judged::new(text, &asked.answers, odds, with_none)
        };
        self.answered().map(judge).collect()
    }

    /// All scores; `threshold` in place of that of the decoding.
    pub fn evaluation(&self, threshold: Option<f64>) -> Evaluation {
        let threshold = threshold.or(self.decoding.null_threshold);
        let judged = self.judged();
        Evaluation {
            metrics: score(&judged, threshold).with_loss(self.loss),
            report: None,
            labels: vec![],
            slices: None,
            samples: judged.len(),
            seconds: self.seconds,
        }
    }

    /// Writes the files of `transformers`' run_qa.py to a directory: `predictions.json`, `nbest_predictions.json` and, where
    /// questions may have no answer, `null_odds.json`, each an object by the questions' ids.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (mut predictions, mut nbest, mut null_odds) = (Map::new(), Map::new(), Map::new());
        for (asked, context, best) in self.answered() {
            let found = best.found(context, &self.decoding);
            let of_file = |f: &Found<'_>| {
                json!({
                    "start_logit": f.start_logit,
                    "end_logit": f.end_logit,
                    "text": f.text,
                    "probability": f.probability,
                })
            };
            nbest.insert(asked.id.clone(), found.iter().map(of_file).collect());
            let answer = best.decided(&found, self.decoding.null_threshold);
            predictions.insert(asked.id.clone(), answer.map_or("", |f| f.text).into());
            if let Some((_, odds)) = best.answer() {
                null_odds.insert(asked.id.clone(), odds.into());
            }
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::write(dir, e))?;
        let mut files = vec![("predictions.json", predictions), ("nbest_predictions.json", nbest)];
        if self.decoding.null_threshold.is_some() {
            files.push(("null_odds.json", null_odds));
        }
        for (name, map) in files {
            let path = dir.join(name);
            let text = serde_json::to_string_pretty(&Value::Object(map)).map_err(|e| Error::Failed(e.to_string()))?;
            std::fs::write(&path, text + "\n").map_err(|e| Error::write(path, e))?;
        }
        Ok(())
    }
}
