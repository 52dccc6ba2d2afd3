//! Scoring tags of words: predictions of windows are put together to sentences, of which the entities are counted.

use super::eval::Evaluation;
use super::log::{Phase, Progress, Reporter};
use crate::data::sampler::length_sorted;
use crate::data::tagging::scheme::{Prefix, Reading, Scheme, Span, Tag, spans};
use crate::data::{Dataset, TagRows, Targets};
use crate::error::{Error, Result};
use crate::heads::sequence::row_losses;
use crate::metrics::classification::{ClassificationReport, argmax};
use crate::metrics::tags::EntityCounts;
use crate::model::Model;
use std::time::Instant;

/// Scores `data`, whose targets are tags, `batch_size` rows at a time. The loss is the mean over words. Kept is one label a
/// word, never one score a label.
pub(super) fn evaluate(
    model: &mut Model,
    data: &Dataset,
    batch_size: usize,
    strict: Option<Scheme>,
    reporter: &mut dyn Reporter,
) -> Result<Evaluation> {
    let started = Instant::now();
    let Targets::Tags(rows) = &data.targets else { return Err(Error::Failed("the rows have no tags".into())) };
    let mut scored = Words::new(rows);
    let (total, outputs, mut done) = (data.len(), model.task().outputs(), 0);
    for batch_rows in length_sorted(&data.tokens.lengths(), batch_size) {
        let batch = data.batch(&batch_rows);
        let logits: Vec<f32> = model.logits(&batch)?.flatten_all()?.to_vec1()?;
        scored.add(&batch_rows, &logits, outputs)?;
        done += batch_rows.len();
        reporter.progress(Progress::counted(Phase::Evaluate, done as u64, total as u64));
    }
    let names = model.task().labels.clone();
    let sentences = rows.sentences();
    let (report, labels) = scored.report(&sentences, &names, strict);
    Ok(Evaluation {
        metrics: report.metrics.clone().with_loss(scored.loss / scored.words as f64),
        report: Some(report),
        labels,
        slices: None,
        samples: sentences.len(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The predictions of all words.
struct Words<'a> {
    rows: &'a TagRows,
    /// By row and word of the row.
    predicted: Vec<Vec<u32>>,
    loss: f64,
    words: u64,
}

impl<'a> Words<'a> {
    fn new(rows: &'a TagRows) -> Self {
        Self { rows, predicted: vec![vec![]; rows.len()], loss: 0.0, words: 0 }
    }

    /// `logits: [words of these rows, outputs]`.
    fn add(&mut self, of_rows: &[usize], logits: &[f32], outputs: usize) -> Result<()> {
        let mut words = logits.chunks_exact(outputs);
        for &row in of_rows {
            let own = self.rows.row(row);
            let truth = self.rows.truth(own.sentence as usize);
            let wanted: Vec<u32> = own.words.iter().map(|&(word, _)| truth[word as usize]).collect();
            let of_row: Vec<f32> = words.by_ref().take(wanted.len()).flatten().copied().collect();
            self.predicted[row] = of_row.chunks_exact(outputs).map(argmax).collect();
            self.words += wanted.len() as u64;
            self.loss += row_losses(&of_row, outputs, &Targets::Class(wanted))?.iter().sum::<f64>();
        }
        Ok(())
    }

    /// The scores, and the types that they name. A word that the tokenizer makes nothing of is predicted to be in no entity.
    fn report(
        &self,
        sentences: &[Vec<usize>],
        names: &[String],
        strict: Option<Scheme>,
    ) -> (ClassificationReport, Vec<String>) {
        let tags = tags_of(names);
        let reading = strict.map_or(Reading::Lenient, Reading::Strict);
        let mut counts = EntityCounts::default();
        for rows in sentences {
            let truth = self.rows.truth(self.rows.row(rows[0]).sentence as usize);
            let mut predicted = vec![Tag::OUTSIDE; truth.len()];
            for &row in rows {
                for (&(word, _), &label) in self.rows.row(row).words.iter().zip(&self.predicted[row]) {
                    predicted[word as usize] = tags[label as usize];
                }
            }
            let truth: Vec<Tag> = truth.iter().map(|&label| tags[label as usize]).collect();
            let right = truth.iter().zip(&predicted).filter(|(t, p)| t == p).count();
            counts.add_words(right as u64, truth.len() as u64);
            let [truth, predicted] =
                [truth, predicted].map(|tags| spans(&tags, reading).iter().map(Span::parts).collect::<Vec<_>>());
            counts.add(&truth, &predicted);
        }
        let (metrics, kinds) = counts.report();
        let (labels, per_class) = kinds.into_iter().unzip();
        (ClassificationReport { metrics, confusion: vec![], per_class }, labels)
    }
}

/// The labels as tags of entities; where one is none (parts of speech), each word is an entity of its tag.
pub fn tags_of(names: &[String]) -> Vec<Tag<'_>> {
    let parsed: Result<Vec<Tag>, String> = names.iter().map(|name| Tag::parse(name)).collect();
    parsed.unwrap_or_else(|_| names.iter().map(|kind| Tag { prefix: Prefix::S, kind }).collect())
}
