//! Metrics against scikit-learn and scipy (`golden/make_metrics.py`).

use bertft::data::tagging::scheme::{Reading, Scheme, Span, Tag, spans};
use bertft::metrics::multilabel::Counts;
use bertft::metrics::tags::EntityCounts;
use bertft::metrics::threshold::decide_each;
use bertft::metrics::{Family, Metrics, classification, names, ranking, regression};
use serde::Deserialize;
use serde_json::{Map, Value};

const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Fixture {
    classification: Vec<Classification>,
    ranking: Vec<Ranking>,
    multilabel: Vec<Multilabel>,
    tags: Vec<Tags>,
    regression: Vec<Regression>,
}

#[derive(Deserialize)]
struct Ranking {
    name: String,
    classes: usize,
    truth: Vec<u32>,
    scores: Vec<f32>,
    roc_auc: Value,
    average_precision: Value,
}

#[derive(Deserialize)]
struct Classification {
    name: String,
    classes: usize,
    truth: Vec<u32>,
    predicted: Vec<u32>,
    metrics: Map<String, Value>,
    confusion: Vec<u64>,
    per_class: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Multilabel {
    name: String,
    labels: usize,
    threshold: f64,
    /// `[rows, labels]`: 0 or 1.
    truth: Vec<u32>,
    scores: Vec<f32>,
    metrics: Map<String, Value>,
    per_class: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Tags {
    name: String,
    scheme: Option<String>,
    /// Sentences.
    truth: Vec<String>,
    predicted: Vec<String>,
    metrics: Map<String, Value>,
    kinds: Map<String, Value>,
}

#[derive(Deserialize)]
struct Regression {
    name: String,
    truth: Vec<f32>,
    predicted: Vec<f32>,
    metrics: Map<String, Value>,
}

fn fixture() -> Fixture {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/fixtures/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn assert_close(got: f64, expected: &Value, what: &str) {
    match expected.as_f64() {
        Some(e) => assert!((got - e).abs() <= TOLERANCE * e.abs().max(1.0), "{what}: {got}, expected {e}"),
        None => assert!(expected.is_null() && got.is_nan(), "{what}: {got}, expected NaN"),
    }
}

/// Same names in the same order, and the same values.
fn assert_metrics(got: &Metrics, expected: &Map<String, Value>, family: Family, case: &str) {
    let listed: Vec<&str> = expected.keys().map(String::as_str).collect();
    assert_eq!(got.0.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), listed, "{case}");
    // The loss comes before them, scores of the ranking after.
    assert_eq!(names(family)[1..=listed.len()], listed, "{case}");
    for (name, value) in &got.0 {
        assert_close(*value, &expected[name], &format!("{case}: {name}"));
    }
}

#[test]
fn classification_equals_scikit_learn() {
    let cases = fixture().classification;
    assert!(cases.len() >= 14);
    for c in cases {
        let report = classification::score(&c.predicted, &c.truth, c.classes).unwrap();
        assert_metrics(&report.metrics, &c.metrics, Family::Classification { classes: c.classes }, &c.name);
        assert_eq!(report.confusion, c.confusion, "{}", c.name);
        assert_eq!(report.per_class.len(), c.classes);
        for (i, (got, expected)) in report.per_class.iter().zip(&c.per_class).enumerate() {
            for (name, value) in [("precision", got.precision), ("recall", got.recall), ("f1", got.f1)] {
                assert_close(value, &expected[name], &format!("{}: class {i} {name}", c.name));
            }
            assert_eq!(expected["support"], got.support);
        }
    }
}

#[test]
fn rows_added_one_by_one_score_the_same() {
    for c in fixture().classification {
        let mut confusion = classification::Confusion::new(c.classes);
        // In another order: the scores must not depend on it.
        for (&t, &p) in c.truth.iter().zip(&c.predicted).rev() {
            confusion.add(t, p).unwrap();
        }
        assert_eq!(confusion.report(), classification::score(&c.predicted, &c.truth, c.classes).unwrap());
    }
}

#[test]
fn rankings_equal_scikit_learn() {
    let cases = fixture().ranking;
    assert!(cases.len() >= 8);
    for c in cases {
        let [roc_auc, average_precision] = ranking::score(&c.scores, &c.truth, c.classes);
        assert_close(roc_auc, &c.roc_auc, &format!("{}: roc_auc", c.name));
        assert_close(average_precision, &c.average_precision, &format!("{}: average_precision", c.name));
    }
}

#[test]
fn multilabel_equals_scikit_learn() {
    let cases = fixture().multilabel;
    assert!(cases.len() >= 8);
    for c in cases {
        let (n, mut counts) = (c.labels, Counts::new(c.labels));
        for (truth, scores) in c.truth.chunks(n).zip(c.scores.chunks(n)) {
            let truth: Vec<u32> = (0..n as u32).filter(|&label| truth[label as usize] == 1).collect();
            counts.add(&truth, &decide_each(scores, &vec![c.threshold; n]));
        }
        let report = counts.report(ranking::score_sets(&c.scores, n, |row, label| c.truth[row * n + label] == 1));
        assert_metrics(&report.metrics, &c.metrics, Family::Multilabel, &c.name);
        for (i, (got, expected)) in report.per_class.iter().zip(&c.per_class).enumerate() {
            for (name, value) in [("precision", got.precision), ("recall", got.recall), ("f1", got.f1)] {
                assert_close(value, &expected[name], &format!("{}: label {i} {name}", c.name));
            }
            assert_eq!(expected["support"], got.support);
        }
    }
}

#[test]
fn tags_equal_seqeval() {
    let cases = fixture().tags;
    assert!(cases.len() >= 8);
    for c in cases {
        let reading = match c.scheme.as_deref() {
            None => Reading::Lenient,
            Some("IOB1") => Reading::Strict(Scheme::Iob1),
            Some("IOB2") => Reading::Strict(Scheme::Iob2),
            Some("IOBES") => Reading::Strict(Scheme::Iobes),
            Some(other) => panic!("{other}"),
        };
        let mut counts = EntityCounts::default();
        for pair in c.truth.iter().zip(&c.predicted) {
            let [truth, predicted] = <[&String; 2]>::from(pair)
                .map(|sentence| sentence.split(' ').map(|tag| Tag::parse(tag).unwrap()).collect::<Vec<_>>());
            let right = truth.iter().zip(&predicted).filter(|(t, p)| t == p).count();
            counts.add_words(right as u64, truth.len() as u64);
            let [truth, predicted] =
                [truth, predicted].map(|tags| spans(&tags, reading).iter().map(Span::parts).collect::<Vec<_>>());
            counts.add(&truth, &predicted);
        }
        let (metrics, kinds) = counts.report();
        assert_eq!(metrics.0.iter().map(|(n, _)| n).collect::<Vec<_>>(), c.metrics.keys().collect::<Vec<_>>());
        for (name, value) in &metrics.0 {
            assert_close(*value, &c.metrics[name], &format!("{}: {name}", c.name));
        }
        assert_eq!(kinds.keys().collect::<Vec<_>>(), c.kinds.keys().collect::<Vec<_>>(), "{}", c.name);
        for (kind, got) in &kinds {
            let expected = &c.kinds[kind];
            for (name, value) in [("precision", got.precision), ("recall", got.recall), ("f1", got.f1)] {
                assert_close(value, &expected[name], &format!("{}: {kind} {name}", c.name));
            }
            assert_eq!(expected["support"].as_f64(), Some(got.support as f64), "{}: {kind}", c.name);
        }
    }
}

#[test]
fn regression_equals_scipy_and_scikit_learn() {
    let cases = fixture().regression;
    assert!(cases.len() >= 9);
    for c in cases {
        let got = regression::score(&c.predicted, &c.truth).unwrap();
        assert_metrics(&got, &c.metrics, Family::Regression, &c.name);
    }
}
