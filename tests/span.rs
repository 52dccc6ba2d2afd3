//! Answers read from scores, and their metrics, against run_qa.py and the official evaluation of SQuAD on shared scores
//! (`golden/make_span.py`).

use bertft::data::span::{Context, SpanRow};
use bertft::heads::span::{Best, SpanDecoding};
use bertft::metrics::span::{Judged, score};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Fixture {
    questions: Vec<Question>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Question {
    id: String,
    context: String,
    answers: Vec<Answer>,
    offsets: Vec<(u32, u32)>,
    windows: Vec<Window>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

#[derive(Deserialize)]
struct Window {
    context: [u32; 2],
    logits: Vec<[f32; 2]>,
    start: u32,
}

#[derive(Deserialize)]
struct Case {
    with_none: bool,
    n_best_size: usize,
    max_answer_length: usize,
    threshold: f64,
    predictions: BTreeMap<String, String>,
    null_odds: BTreeMap<String, f64>,
    nbest: BTreeMap<String, Vec<Found>>,
    metrics: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Found {
    start_logit: f32,
    end_logit: f32,
    text: String,
    probability: f64,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("golden/fixtures/span_decoding.json")).unwrap()
}

fn best(question: &Question, decoding: &SpanDecoding) -> Best {
    let mut best = Best::default();
    for window in &question.windows {
        let row = SpanRow {
            question: 0,
            len: window.logits.len() as u32,
            context: window.context[0]..window.context[1],
            from: window.start,
            answer: [0, 0],
        };
        best.add(&row, window.logits.as_flattened(), decoding);
    }
    best
}

#[test]
fn answers_and_scores_are_those_of_the_reference() {
    let Fixture { questions, cases } = fixture();
    for case in &cases {
        let null_threshold = case.with_none.then_some(case.threshold);
        let (n_best_size, max_answer_length) = (case.n_best_size, case.max_answer_length);
        let decoding = SpanDecoding { n_best_size, max_answer_length, null_threshold };
        let mut judged = vec![];
        for question in &questions {
            let what = format!("{} of {decoding:?}", question.id);
            let context = Context { text: question.context.as_str().into(), offsets: question.offsets.clone() };
            let best = best(question, &decoding);
            let found = best.found(&context, &decoding);
            let wanted = &case.nbest[&question.id];
            assert_eq!(found.len(), wanted.len(), "{what}");
            for (a, b) in found.iter().zip(wanted) {
                let logits = (a.start_logit, a.end_logit);
                assert_eq!((a.text, logits), (b.text.as_str(), (b.start_logit, b.end_logit)), "{what}");
                // The reference's are f32.
                assert!((a.probability - b.probability).abs() < 1e-6, "{what}: {a:?}");
            }
            let answer = best.decided(&found, null_threshold).map_or("", |f| f.text);
            assert_eq!(answer, case.predictions[&question.id], "{what}");
            let (piece, odds) = best.answer().unwrap();
            if case.with_none {
                assert_eq!(odds, case.null_odds[&question.id], "{what}");
            }
            let answers: Vec<String> = question.answers.iter().map(|a| a.text.clone()).collect();
            if case.with_none || !answers.is_empty() {
                judged.push(Judged::new(piece.text(&context).unwrap().2, &answers, odds, case.with_none));
            }
        }
        let metrics = score(&judged, null_threshold);
        assert_eq!(metrics.0.len(), case.metrics.len());
        for (name, value) in &metrics.0 {
            let wanted = case.metrics[name];
            assert!((value - wanted).abs() < 1e-9, "{name} of {decoding:?}: {value} {wanted}");
        }
        // Scores that could not be missed: some are right, not all.
        assert!((0.1..0.95).contains(&metrics.get("f1").unwrap()), "{metrics:?}");
    }
}
