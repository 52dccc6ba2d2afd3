//! The golden fixtures (`golden/README.md`) as models and data sets.

use bertft::data::span::{Asked, Context, Questions, SpanRow, SpanRows};
use bertft::data::tagging::TagRow;
use bertft::data::{Dataset, LabelSets, TagRows, Targets, Tokens};
use bertft::model::{Model, Pretrained};
use bertft::nn::workspace::Space;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    label: Label,
    /// Of tokens, -100 where there is none.
    #[serde(default)]
    labels: Vec<i64>,
    /// Places of the first and last token.
    #[serde(default)]
    answer: [u32; 2],
    input_ids: Vec<u32>,
    token_type_ids: Vec<u8>,
}

/// A number, or the ids of any number of labels.
#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Number(f64),
    Several(Vec<u32>),
}

impl Default for Label {
    fn default() -> Self {
        Self::Number(0.0)
    }
}

impl Label {
    fn number(&self) -> f64 {
        if let Self::Number(x) = self { *x } else { f64::NAN }
    }

    fn set(&self) -> Vec<u32> {
        let mut set = if let Self::Several(set) = self { set.clone() } else { vec![] };
        set.sort_unstable();
        set
    }
}

/// The golden cases of other families than BERT.
#[allow(dead_code)] // not every test file uses it
pub const FAMILIES: [&str; 12] = [
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "mpnet",
    "modernbert",
    "modernbert_mean",
    "modernbert_one",
    "deberta_v3",
    "deberta_v2",
    "deberta_conv",
    "deberta_conv_one",
];

/// A file or folder of a case.
pub fn fixture(case: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures").join(case).join(file)
}

/// The rows of a case's `batch.json`.
pub fn dataset(case: &str) -> Dataset {
    let file = fixture(case, "batch.json");
    let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let tokens = Tokens::from_rows(rows.iter().map(|row| (&row.input_ids, &row.token_type_ids, false)));
    let targets = if ["regression", "mpnet"].contains(&case) {
        Targets::Value(rows.iter().map(|r| r.label.number() as f32).collect())
    } else if case.starts_with("tokens") {
        Targets::Tags(tags(&rows))
    } else if case.starts_with("span") {
        Targets::Spans(spans(&rows))
    } else if case == "multilabel" {
        Targets::Sets(LabelSets::new(rows.iter().map(|r| r.label.set()).collect()))
    } else {
        Targets::Class(rows.iter().map(|r| r.label.number() as u32).collect())
    };
    let lines = (2..rows.len() as u64 + 2).collect();
    Dataset { tokens, targets, lines, file }
}

/// Each labelled token as a word.
fn tags(rows: &[Row]) -> TagRows {
    let labelled = |row: &Row| -> Vec<(u32, u32)> {
        let all = (0u32..).zip(&row.labels);
        all.filter(|(_, label)| **label >= 0).map(|(at, &label)| (at, label as u32)).collect()
    };
    let of_row = |(i, row): (usize, &Row)| {
        let labels = labelled(row);
        let words = (0u32..).zip(&labels).map(|(word, &(at, _))| (word, at)).collect();
        TagRow { sentence: i as u32, words, labels }
    };
    let truth = rows.iter().map(|row| labelled(row).iter().map(|l| l.1).collect()).collect();
    TagRows::new(rows.iter().enumerate().map(of_row).collect(), truth)
}

/// Each row as a question by itself; all its tokens may answer it.
fn spans(rows: &[Row]) -> SpanRows {
    let of_row = |(i, row): (usize, &Row)| {
        let len = row.input_ids.len() as u32;
        SpanRow { question: i as u32, len, context: 0..len, from: 0, answer: row.answer }
    };
    let context = |row: &Row| Context { text: "".into(), offsets: vec![(0, 0); row.input_ids.len()] };
    let asked = |i: usize| Asked { id: i.to_string(), context: i as u32, answers: vec![] };
    let questions =
        Questions { asked: (0..rows.len()).map(asked).collect(), contexts: rows.iter().map(context).collect() };
    SpanRows::new(rows.iter().enumerate().map(of_row).collect(), questions)
}

/// The model of a directory as it was saved, ready to train.
#[allow(dead_code)] // not every test file uses it
pub fn trainable(dir: &Path) -> Model {
    trainable_in(dir, DType::F32)
}

/// The same with activations of the given format.
pub fn trainable_in(dir: &Path, dtype: DType) -> Model {
    let pretrained = Pretrained::open(dir).unwrap();
    let task = pretrained.task().unwrap();
    let (mut model, report) = Model::load(&pretrained, task, 1, Space { dtype, device: &Device::Cpu }).unwrap();
    assert_eq!((report.initialised, report.unused), (vec![], vec![]));
    model.params.start_training().unwrap();
    model
}

pub fn floats(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖₂ in f64.
#[allow(dead_code)] // not every test file uses it
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum::<f64>().sqrt()
}

/// ‖a‖₂ in f64.
pub fn norm(a: &[f32]) -> f64 {
    a.iter().map(|&a| (a as f64).powi(2)).sum::<f64>().sqrt()
}

/// The largest |a − b|.
#[allow(dead_code)] // not every test file uses it
pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}
