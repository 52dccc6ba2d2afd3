//! Answers that are pieces of a text: of each token a score to begin and one to end the answer (`ForQuestionAnswering`). The
//! loss is the mean of two cross-entropies over the tokens of a row; an answer is the pair of places with the highest sum.

use crate::data::SpanRows;
use crate::data::span::{Context, SpanRow};
use crate::error::{Error, Result};
use crate::ops::to_device;
use candle_core::{Tensor, Var};

/// What a place beyond a row's end scores: as good as never.
const NEVER: f32 = -1e9;

/// A `loss` of the scores by row ([`by_row`]) as one of `logits: [tokens, 2]`, with autograd. On the way back autograd ends at
/// the scores by row and the rest is picked: candle's own way back from picked rows has one thread a column on a GPU.
pub(super) fn loss_by_row(
    logits: &Tensor,
    lengths: &[u32],
    loss: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let scores = Var::from_tensor(&by_row(&logits.detach(), lengths)?)?;
    let loss = loss(scores.as_tensor())?;
    let Some(grad) = loss.backward()?.remove(&scores) else {
        return Err(Error::Failed("the loss does not depend on the scores".into()));
    };
    let longest = grad.dim(1)?;
    let places = (0u32..).zip(lengths).flat_map(|(row, &len)| (0..len).map(move |i| row * longest as u32 + i));
    let places = places.collect::<Vec<_>>();
    let places = to_device(&places, places.len(), grad.device())?;
    let by_token = grad.reshape((lengths.len(), 2, longest))?.transpose(1, 2)?.contiguous()?.reshape(((), 2))?;
    // Adds nothing, with the gradient that was worked out.
    let slope = (logits * by_token.index_select(&places, 0)?)?.sum_all()?;
    Ok((loss.detach() + (&slope - slope.detach())?)?)
}

/// `logits: [tokens, 2]` of rows end to end as `[2·rows, longest]`: of each row the scores to begin, then those to end.
fn by_row(logits: &Tensor, lengths: &[u32]) -> Result<Tensor> {
    let device = logits.device();
    let longest = lengths.iter().max().copied().unwrap_or(0);
    let tokens = lengths.iter().sum::<u32>();
    let mut places = Vec::with_capacity(lengths.len() * longest as usize);
    let mut at = 0;
    for &len in lengths {
        places.extend((0..longest).map(|i| if i < len { at + i } else { tokens }));
        at += len;
    }
    let never = Tensor::full(NEVER, (1, 2), device)?.to_dtype(logits.dtype())?;
    let n = places.len();
    let spread = Tensor::cat(&[logits, &never], 0)?.index_select(&to_device(&places, n, device)?, 0)?;
    let (rows, longest) = (lengths.len(), longest as usize);
    Ok(spread.reshape((rows, longest, 2))?.transpose(1, 2)?.contiguous()?.reshape((2 * rows, longest))?)
}

/// The lengths of rows and, as classes, the places of their answers: first and last token in turn.
pub(super) fn targets(spans: &SpanRows) -> (Vec<u32>, Vec<u32>) {
    (spans.iter().map(|row| row.len).collect(), spans.iter().flat_map(|row| row.answer).collect())
}

/// The loss of each row, on the host in f64.
pub(super) fn row_losses(logits: &[f32], spans: &SpanRows) -> Vec<f64> {
    let mut rest = logits;
    let of_row = |row: &SpanRow| {
        let (own, others) = rest.split_at(2 * row.len as usize);
        rest = others;
        let cross_entropy = |which: usize| {
            let scores = || own.iter().skip(which).step_by(2).map(|&v| f64::from(v));
            let top = scores().fold(f64::MIN, f64::max);
            let log_sum = scores().map(|v| (v - top).exp()).sum::<f64>().ln();
            log_sum - (f64::from(own[2 * row.answer[which] as usize + which]) - top)
        };
        (cross_entropy(0) + cross_entropy(1)) / 2.0
    };
    spans.iter().map(of_row).collect()
}

/// How answers are read from scores; the defaults are those of `transformers`' run_qa.py.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanDecoding {
    /// How many of the highest scores to begin and to end are tried with each other, and how many answers are kept.
    pub n_best_size: usize,
    /// In tokens.
    pub max_answer_length: usize,
    /// Where a question may have no answer, which is `[CLS]` as a piece: it has none if that scores by more than this above the
    /// best piece. `None`: every question has an answer.
    pub null_threshold: Option<f64>,
}

impl SpanDecoding {
    pub const N_BEST_SIZE: usize = 20;
    pub const MAX_ANSWER_LENGTH: usize = 30;
}

impl Default for SpanDecoding {
    fn default() -> Self {
        Self { n_best_size: Self::N_BEST_SIZE, max_answer_length: Self::MAX_ANSWER_LENGTH, null_threshold: None }
    }
}

/// A piece of a context, or none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The numbers of the first and last token in the context; `None`: there is no answer.
    pub tokens: Option<(u32, u32)>,
    pub start_logit: f32,
    pub end_logit: f32,
    /// Where it stands among those that score the same: the window, and the order in which it was tried.
    order: (u32, u32),
}

impl Candidate {
    pub fn score(&self) -> f32 {
        self.start_logit + self.end_logit
    }

    /// First character, past the last, and what stands between.
    pub fn text<'c>(&self, context: &'c Context) -> Option<(usize, usize, &'c str)> {
        let (first, last) = self.tokens?;
        let [start, end] = [context.offsets[first as usize].0, context.offsets[last as usize].1].map(|at| at as usize);
        Some((start, end, context.excerpt(start, end)))
    }
}

/// A candidate as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<'c> {
    /// First character and past the last in the context; `None`: there is no answer.
    pub place: Option<(usize, usize)>,
    pub text: &'c str,
    pub start_logit: f32,
    pub end_logit: f32,
    /// Softmax of the sums of both over the candidates that are kept.
    pub probability: f64,
}

/// The best answers to one question so far, in memory that does not grow with its windows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Best {
    pieces: Vec<Candidate>,
    /// `[CLS]` of the window in which it scores least: all windows must agree that there is no answer.
    none: Option<Candidate>,
}

impl Best {
    /// Adds a window, each once, in any order. `logits: [len, 2]`.
    pub fn add(&mut self, row: &SpanRow, logits: &[f32], decoding: &SpanDecoding) {
        let number = row.from;
        let none = Candidate { tokens: None, start_logit: logits[0], end_logit: logits[1], order: (number, 0) };
        let less = |old: &Candidate| {
            none.score().total_cmp(&old.score()).then(none.order.cmp(&old.order)) == std::cmp::Ordering::Less
        };
        if self.none.as_ref().is_none_or(less) {
            self.none = Some(none);
        }
        let [starts, ends] = [0, 1].map(|which| highest(logits, which, decoding.n_best_size));
        let in_context = |at: u32| row.context.contains(&at);
        let mut tried = 0;
        for &start in starts.iter().filter(|at| in_context(**at)) {
            for &end in ends.iter().filter(|at| in_context(**at)) {
                if end < start || (end - start) as usize >= decoding.max_answer_length {
                    continue;
                }
                let number_of = |at: u32| row.from + at - row.context.start;
                self.pieces.push(Candidate {
                    tokens: Some((number_of(start), number_of(end))),
                    start_logit: logits[2 * start as usize],
                    end_logit: logits[2 * end as usize + 1],
                    order: (number, tried),
                });
                tried += 1;
            }
        }
        self.pieces.sort_by(|a, b| b.score().total_cmp(&a.score()).then(a.order.cmp(&b.order)));
        self.pieces.truncate(decoding.n_best_size);
        // There are hundreds before, and a set has many questions.
        self.pieces.shrink_to_fit();
    }

    /// The answers from the best on, at most `n_best_size`; where a question may have none, that is among them, last if it would
    /// be cut off.
    pub fn ranked(&self, decoding: &SpanDecoding) -> Vec<Candidate> {
        let mut ranked = self.pieces.clone();
        if let Some(none) = self.none.filter(|_| decoding.null_threshold.is_some()) {
            // Behind pieces that score the same, as it is tried last.
            let at = ranked.partition_point(|piece| piece.score() >= none.score());
            ranked.insert(at, none);
            ranked.truncate(decoding.n_best_size);
            if at >= decoding.n_best_size {
                ranked.push(none);
            }
        }
        ranked
    }

    /// Whether a window was added.
    pub fn is_some(&self) -> bool {
        self.none.is_some()
    }

    /// [`Self::ranked`] as texts of the context with the probability of each among them.
    pub fn found<'c>(&self, context: &'c Context, decoding: &SpanDecoding) -> Vec<Found<'c>> {
        let ranked = self.ranked(decoding);
        let scores: Vec<f64> = ranked.iter().map(|c| f64::from(c.score())).collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum = scores.iter().map(|score| (score - top).exp()).sum::<f64>();
        let text = |(candidate, score): (&Candidate, &f64)| {
            let piece = candidate.text(context);
            Found {
                place: piece.map(|(start, end, _)| (start, end)),
                text: piece.map_or("", |(.., text)| text),
                start_logit: candidate.start_logit,
                end_logit: candidate.end_logit,
                probability: (score - top).exp() / sum,
            }
        };
        ranked.iter().zip(&scores).map(text).collect()
    }

    /// Of the texts found: the one that is the answer, or that of no answer if its odds are above `threshold`.
    pub fn decided<'f, 'c>(&self, found: &'f [Found<'c>], threshold: Option<f64>) -> Option<&'f Found<'c>> {
        let is_none = match (self.answer(), threshold) {
            (Some((_, odds)), Some(threshold)) => odds > threshold,
            (answer, _) => answer.is_none(),
        };
        found.iter().find(|f| f.place.is_none() == is_none)
    }

    /// The best piece, and by how much no answer scores more.
    pub fn answer(&self) -> Option<(Candidate, f64)> {
        let (piece, none) = (self.pieces.first()?, self.none?);
        Some((*piece, f64::from(none.score() - piece.start_logit - piece.end_logit)))
    }
}

/// Adds rows to the answers of their questions, which are by number. `logits: [tokens of these rows, 2]`.
pub fn add_rows(best: &mut [Best], rows: &SpanRows, logits: &[f32], decoding: &SpanDecoding) {
    let mut rest = logits;
    for row in rows.iter() {
        let (own, others) = rest.split_at(2 * row.len as usize);
        rest = others;
        best[row.question as usize].add(row, own, decoding);
    }
}

/// The places of the `n` highest scores of one kind, from the highest on; of equal ones the later first.
fn highest(logits: &[f32], which: usize, n: usize) -> Vec<u32> {
    let score = |at: &u32| logits[2 * *at as usize + which];
    let mut places: Vec<u32> = (0..logits.len() as u32 / 2).collect();
    let order = |a: &u32, b: &u32| score(b).total_cmp(&score(a)).then(b.cmp(a));
    if n < places.len() {
        places.select_nth_unstable_by(n, order);
        places.truncate(n);
    }
    places.sort_unstable_by(order);
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_end_to_end_become_rows_of_places() {
        let logits = Tensor::new(&[[1f32, 10.], [2., 20.], [3., 30.]], &Device::Cpu).unwrap();
        let spread = by_row(&logits, &[1, 2]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(spread, [[1., NEVER], [10., NEVER], [2., 3.], [20., 30.]]);
    }

    /// Of rows that pass once, and twice as under R-Drop.
    #[test]
    fn the_loss_by_row_is_autograds_own() {
        let device = &Device::Cpu;
        for lengths in [&[3u32, 1, 4][..], &[2, 3, 2, 3]] {
            let n = lengths.iter().sum::<u32>() as usize;
            let values: Vec<f32> = (0..2 * n).map(|i| (i as f32 * 0.7).sin() * 2.0).collect();
            let logits = Var::from_tensor(&Tensor::from_vec(values, (n, 2), device).unwrap()).unwrap();
            let places: Vec<u32> = lengths.iter().flat_map(|len| [len - 1, 0]).collect();
            let places = Tensor::from_vec(places, (2 * lengths.len(), 1), device).unwrap();
            let loss = |scores: &Tensor| {
                let log_p = crate::heads::objective::log_softmax(scores)?;
                Ok((log_p.gather(&places, 1)?.sum_all()? * -0.5)?)
            };
            let want = loss(&by_row(logits.as_tensor(), lengths).unwrap()).unwrap();
            let got = loss_by_row(logits.as_tensor(), lengths, loss).unwrap();
            assert_eq!(got.to_scalar::<f32>().unwrap(), want.to_scalar::<f32>().unwrap());
            let slope = |loss: &Tensor| {
                let grads = (loss * 3.0).unwrap().backward().unwrap();
                grads.get(&logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let (got, want) = (slope(&got), slope(&want));
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} {want:?}");
            assert!(want.iter().any(|w| w.abs() > 0.1));
        }
    }

    fn row(len: u32, context: std::ops::Range<u32>) -> SpanRow {
        SpanRow { question: 0, len, context, from: 5, answer: [0, 0] }
    }

    #[test]
    fn only_pieces_of_the_context_are_answers() {
        // [CLS] q [SEP] c c c [SEP]: the highest scores are outside of the context.
        let logits = [[9., 9.], [8., 8.], [7., 7.], [1., 0.], [0., 2.], [3., 1.], [6., 6.]].as_flattened();
        let decoding = SpanDecoding { null_threshold: Some(0.0), ..SpanDecoding::default() };
        let mut best = Best::default();
        best.add(&row(7, 3..6), logits, &decoding);
        let ranked = best.ranked(&decoding);
        let tokens: Vec<_> = ranked.iter().map(|c| (c.tokens, c.score())).collect();
        // No answer scores 18; then the token 7 alone, 5 to 6, and the others.
        assert_eq!(tokens[..3], [(None, 18.0), (Some((7, 7)), 4.0), (Some((5, 6)), 3.0)]);
        assert_eq!(ranked.len(), 7);
        let (piece, odds) = best.answer().unwrap();
        assert_eq!((piece.tokens, odds), (Some((7, 7)), 14.0));
        // Of the four highest scores one is in the context, and none to end there.
        let few = SpanDecoding { n_best_size: 4, ..decoding };
        let mut best = Best::default();
        best.add(&row(7, 3..6), logits, &few);
        assert_eq!((best.ranked(&few).len(), best.answer()), (1, None));
        let short = SpanDecoding { max_answer_length: 1, null_threshold: None, ..decoding };
        let mut best = Best::default();
        best.add(&row(7, 3..6), logits, &short);
        assert!(best.ranked(&short).iter().all(|c| c.tokens.is_some_and(|(a, b)| a == b)));
    }

    /// The order in which windows are scored does not matter.
    #[test]
    fn windows_may_come_in_any_order() {
        let windows: Vec<Vec<f32>> =
            (0..4).map(|w| (0..2 * 9).map(|i| ((w * 31 + i * 7) % 5) as f32).collect()).collect();
        let decoding = SpanDecoding { n_best_size: 3, null_threshold: Some(0.0), ..SpanDecoding::default() };
        let run = |order: [usize; 4]| {
            let mut best = Best::default();
            let row = |w: usize| SpanRow { from: 4 * w as u32, ..row(9, 2..8) };
            order.iter().for_each(|&w| best.add(&row(w), &windows[w], &decoding));
            best.ranked(&decoding)
        };
        assert_eq!(run([0, 1, 2, 3]), run([3, 1, 0, 2]));
        assert_eq!(run([0, 1, 2, 3]).len(), 4);
    }
}
