//! Scoring tags of words: scores of windows are put together to sentences, whose tags are found and entities are counted.

use super::eval::Evaluation;
use super::log::{Phase, Progress, Reporter};
use crate::data::sampler::length_sorted;
use crate::data::tagging::scheme::{Prefix, Reading, Span, Tag, spans};
use crate::data::{Dataset, TagRows, Targets};
use crate::error::{Error, Result};
use crate::heads::sequence::row_losses;
use crate::heads::tags::{TagDecoder, TagReading, WordScores};
use crate::metrics::classification::ClassificationReport;
use crate::metrics::tags::EntityCounts;
use crate::model::Model;
use std::collections::HashMap;
use std::time::Instant;

/// Scores `data`, whose targets are tags, `batch_size` rows at a time. The loss is the mean over words. Kept are the scores of
/// those sentences only of which some windows are still to come.
pub(super) fn evaluate(
    model: &mut Model,
    data: &Dataset,
    batch_size: usize,
    reading: Option<TagReading>,
    reporter: &mut dyn Reporter,
) -> Result<Evaluation> {
    let started = Instant::now();
    let Targets::Tags(rows) = &data.targets else { return Err(Error::Failed("the rows have no tags".into())) };
    let names = model.task().labels.clone();
    let decoder = reading.map_or(Ok(TagDecoder::default()), |r| r.decoder(&names)).map_err(Error::Failed)?;
    let sentences = rows.sentences();
    let mut scored = Words {
        rows,
        tags: &tags_of(&names),
        decoder,
        reading: reading.filter(|r| r.strict).map_or(Reading::Lenient, |r| Reading::Strict(r.scheme)),
        left: sentences.iter().map(|windows| (rows.row(windows[0]).sentence, windows.len())).collect(),
        begun: HashMap::new(),
        counts: EntityCounts::default(),
        loss: 0.0,
        words: 0,
    };
    let (total, outputs, mut done) = (data.len(), model.task().outputs(), 0);
    for batch_rows in batches(&sentences, &data.tokens.lengths(), batch_size) {
        let batch = data.batch(&batch_rows);
        let logits: Vec<f32> = model.logits(&batch)?.flatten_all()?.to_vec1()?;
        scored.add(&batch_rows, &logits, outputs)?;
        done += batch_rows.len();
        reporter.progress(Progress::counted(Phase::Evaluate, done as u64, total as u64));
    }
    let (metrics, kinds) = scored.counts.report();
    let metrics = metrics.with_loss(scored.loss / scored.words as f64);
    let (labels, per_class) = kinds.into_iter().unzip();
    Ok(Evaluation {
        metrics: metrics.clone(),
        report: Some(ClassificationReport { metrics, confusion: vec![], per_class }),
        labels,
        slices: None,
        samples: sentences.len(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Batches of sentences of like length, of which each has its windows one after the other, so that few are begun at a time.
fn batches(sentences: &[Vec<usize>], lengths: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let longest: Vec<usize> =
        sentences.iter().map(|rows| rows.iter().map(|&row| lengths[row]).max().unwrap_or(0)).collect();
    let sorted = length_sorted(&longest, sentences.len());
    let rows: Vec<usize> = sorted.iter().flatten().flat_map(|&i| sentences[i].iter().copied()).collect();
    rows.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

/// The words so far.
struct Words<'a> {
    rows: &'a TagRows,
    /// That each label means.
    tags: &'a [Tag<'a>],
    decoder: TagDecoder,
    reading: Reading,
    /// By number of the sentence: how many of its windows are still to come.
    left: HashMap<u32, usize>,
    /// Of those that are begun.
    begun: HashMap<u32, WordScores>,
    counts: EntityCounts,
    loss: f64,
    words: u64,
}

impl Words<'_> {
    /// `logits: [words of these rows, outputs]`.
    fn add(&mut self, of_rows: &[usize], logits: &[f32], outputs: usize) -> Result<()> {
        let mut words = logits.chunks_exact(outputs);
        for &row in of_rows {
            let own = self.rows.row(row);
            let truth = self.rows.truth(own.sentence as usize);
            let wanted: Vec<u32> = own.words.iter().map(|&(word, _)| truth[word as usize]).collect();
            let scores = self.begun.entry(own.sentence).or_insert_with(|| WordScores::new(truth.len(), outputs));
            let mut of_row = Vec::with_capacity(wanted.len() * outputs);
            for (&(word, _), logits) in own.words.iter().zip(words.by_ref()) {
                scores.set(word as usize, logits);
                of_row.extend_from_slice(logits);
            }
            self.words += wanted.len() as u64;
            self.loss += row_losses(&of_row, outputs, &Targets::Class(wanted))?.iter().sum::<f64>();
            let left = self.left.entry(own.sentence).or_default();
            *left = left.saturating_sub(1);
            if *left == 0
                && let Some(scores) = self.begun.remove(&own.sentence)
            {
                self.count(truth, &scores);
            }
        }
        Ok(())
    }

    /// Counts a sentence. A word that the tokenizer makes nothing of is predicted to be in no entity.
    fn count(&mut self, truth: &[u32], scores: &WordScores) {
        let tag = |label: u32| self.tags[label as usize];
        let found = self.decoder.decode(scores);
        let predicted: Vec<Tag> = found.into_iter().map(|label| label.map_or(Tag::OUTSIDE, tag)).collect();
        let truth: Vec<Tag> = truth.iter().map(|&label| tag(label)).collect();
        let right = truth.iter().zip(&predicted).filter(|(t, p)| t == p).count();
        self.counts.add_words(right as u64, truth.len() as u64);
        let [truth, predicted] =
            [truth, predicted].map(|tags| spans(&tags, self.reading).iter().map(Span::parts).collect::<Vec<_>>());
        self.counts.add(&truth, &predicted);
    }
}

/// The labels as tags of entities; where one is none (parts of speech), each word is an entity of its tag.
pub fn tags_of(names: &[String]) -> Vec<Tag<'_>> {
    let parsed: Result<Vec<Tag>, String> = names.iter().map(|name| Tag::parse(name)).collect();
    parsed.unwrap_or_else(|_| names.iter().map(|kind| Tag { prefix: Prefix::S, kind }).collect())
}
