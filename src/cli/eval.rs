//! `bertft eval`: a model and a labelled file to scores, with gates for scripts.

use super::model::ModelArgs;
use super::prepare::{Loader, eval_set, family, label_targets, load_questions, load_sentences};
use super::scoring::{Scoring, input_files};
use super::ui::Ui;
use super::{Globals, InputArgs, SpanArgs, TagArgs};
use crate::data::config::{Column, TaskKind};
use crate::data::label_sets::{all_names, flag_names};
use crate::data::settings::{Columns, Files};
use crate::data::tagging::TagForm;
use crate::data::{LabelMap, Skipped, Targets, listed};
use crate::error::{Error, Result};
use crate::heads::span::SpanDecoding;
use crate::metrics::gate::{Gate, check};
use crate::metrics::names;
use crate::model::Task;
use crate::train::eval::{EvalSet, evaluate};
use crate::train::eval_span::SpanScores;
use clap::Args;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Score a model on a labelled file
///
/// The gates --fail-under and --fail-over make a script fail with exit code 3 when a score is not good enough.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  Score the model of a run:
    bertft eval --model runs/cls --data test.csv
  Fail a CI job below 90 % accuracy or above a loss of 0.5:
    bertft eval --model runs/cls --data test.csv --fail-under accuracy=0.9 --fail-over loss=0.5
  See the scores of each value of a column:
    bertft eval --model runs/cls --data test.csv --slice-by channel
  A file without header, text in the second column and label in the first:
    bertft eval --model runs/cls --data test.tsv --no-header --text 1 --label 0 --json")]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The labelled rows: one or several files, glob patterns, or - for standard input
    #[arg(long, short, value_name = "FILE", required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Exit with 3 if the metric is below the bound; may be repeated
    #[arg(long, value_name = "METRIC=X")]
    pub fail_under: Vec<String>,
    /// Exit with 3 if the metric is above the bound; may be repeated
    #[arg(long, value_name = "METRIC=X")]
    pub fail_over: Vec<String>,
    /// Column of the label: name or 0-based index; repeat it for columns of 0 and 1 [default: as in training, else label]
    #[arg(long, value_name = "COLUMN")]
    pub label: Vec<Column>,
    /// What stands between the labels of a row that may have several [default: as in training, else a comma]
    #[arg(long, value_name = "TEXT")]
    pub label_delimiter: Option<String>,
    /// For tags of words: count entities only whose tags keep to their scheme (seqeval's strict mode)
    #[arg(long)]
    pub strict_tags: bool,
    /// Also show the metrics for every value of this column (name or 0-based index)
    #[arg(long, value_name = "COLUMN")]
    pub slice_by: Option<Column>,
    /// For span: write predictions.json, nbest_predictions.json and null_odds.json, as run_qa.py does, to this directory
    #[arg(long, value_name = "DIR")]
    pub save_predictions: Option<PathBuf>,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub tags: TagArgs,
    #[command(flatten)]
    pub span: SpanArgs,
}

pub fn run(args: &EvalArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let mut gates = vec![];
    for text in &args.fail_under {
        gates.push(Gate::fail_under(text)?);
    }
    for text in &args.fail_over {
        gates.push(Gate::fail_over(text)?);
    }
    let mut scoring = Scoring::open(&args.model, &args.input, &args.label, globals, ui)?;
    scoring.slice_by.clone_from(&args.slice_by);
    scoring.label_delimiter.clone_from(&args.label_delimiter);
    let task = scoring.model.task().clone();
    for gate in &gates {
        gate.known(names(family(&task, true)))?;
    }
    let of_answers = args.span.given().or(args.save_predictions.as_ref().map(|_| "--save-predictions"));
    if let Some(flag) = of_answers.filter(|_| task.kind != TaskKind::Span) {
        return Err(Error::input(format!("{flag} is for span, and this model's task is {}; leave it out", task.kind)));
    }
    let of_tags = args.tags.given().or(args.strict_tags.then_some("--strict-tags"));
    if let Some(flag) = of_tags.filter(|_| task.kind != TaskKind::Tokens) {
        return Err(Error::input(format!(
            "{flag} is for tokens, and this model's task is {}; leave it out",
            task.kind
        )));
    }
    let files = input_files("--data", &args.data)?;
    let file = files.name();
    let (set, skipped) = match task.kind {
        TaskKind::Tokens if args.label_delimiter.is_some() || args.slice_by.is_some() => {
            return Err(Error::input("--label-delimiter and --slice-by are not for tags of words; leave them out"));
        }
        TaskKind::Tokens => sentences(&scoring, args, &task, &files, ui)?,
        TaskKind::Span if args.label_delimiter.is_some() || args.slice_by.is_some() => {
            return Err(Error::input("--label-delimiter and --slice-by are not for answers; leave them out"));
        }
        TaskKind::Span => questions(&scoring, &args.span, &files, ui)?,
        TaskKind::Multilabel if args.label_delimiter.as_deref() == Some("") => {
            return Err(Error::input("--label-delimiter is empty, expected what stands between labels, such as ';'"));
        }
        kind if args.label_delimiter.is_some() && kind != TaskKind::Multilabel => {
            return Err(Error::input(format!("--label-delimiter is for multilabel, and this model's task is {kind}")));
        }
        _ => rows(&scoring, &task, &files, ui)?,
    };
    let (batch_size, threshold) = (scoring.batch_size, scoring.threshold());
    let result = match set.spans {
        Some(decoding) => {
            let scored = SpanScores::new(&mut scoring.model, &set.data, batch_size, decoding, ui)?;
            args.save_predictions.as_deref().map_or(Ok(()), |dir| scored.write(dir))?;
            scored.evaluation(None)
        }
        None => evaluate(&mut scoring.model, &set, batch_size, threshold.as_ref(), ui)?,
    };
    let per_second = result.samples as f64 / result.seconds;
    if ui.is_json() {
        let mut object = json!({
            "event": "eval",
            "samples": result.samples,
            "seconds": result.seconds,
            "samples_per_second": per_second,
            "metrics": result.metrics,
        });
        if let Some(report) = &result.report {
            let classes: serde_json::Map<_, _> =
                result.labels.iter().cloned().zip(report.per_class.iter().map(|c| json!(c))).collect();
            object["per_class"] = classes.into();
            if task.labels.len() <= MOST_CLASSES && !report.confusion.is_empty() {
                object["confusion_matrix"] = json!(report.confusion.chunks(task.labels.len()).collect::<Vec<_>>());
            }
        }
        if let Some(slices) = &result.slices {
            object["slices"] = json!(slices);
        }
        if skipped.rows > 0 {
            object["skipped"] = json!(skipped.rows);
            object["skipped_rows"] = json!(skipped.first);
        }
        ui.out_json(&object)?;
    } else {
        if let Some(skipped) = skipped.describe() {
            ui.note(&format!("warning: {skipped}"));
        }
        if let Some(report) = &result.report {
            ui.out(&report.tables(&result.labels).to_string())?;
            ui.out("")?;
        }
        let split = file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        ui.out_metrics(&[(&split, &result.metrics)])?;
        if let Some(slices) = &result.slices {
            ui.out_slices(&split, slices)?;
        }
        ui.note(&format!("{} samples in {:.2} s, {per_second:.0}/s", result.samples, result.seconds));
    }
    check(&gates, &result.metrics)
}

/// The rows of labelled files, and what was left out.
fn rows(scoring: &Scoring, task: &Task, files: &Files, ui: &mut Ui) -> Result<(EvalSet, Skipped)> {
    let options = scoring.labelled_options(files)?;
    if let (TaskKind::Multilabel, Some(columns)) = (task.kind, &options.label) {
        check_flag_columns(columns, &options.rename_labels, &task.labels)?;
    }
    let loader = Loader::new(&scoring.pretrained, scoring.max_length);
    // Which labels are right is known when all were seen.
    let (mut loaded, _) = loader.load(files, &options, &|_| Ok(()), ui)?;
    let skipped = std::mem::take(&mut loaded.skipped);
    let set = eval_set(&scoring.pretrained, "eval".into(), files, loaded, |labels, places| {
        let found = match task.kind {
            TaskKind::Regression | TaskKind::Tokens | TaskKind::Span => {
                return label_targets(task.kind, None, labels, places);
            }
            TaskKind::Classification => labels.names().to_vec(),
            TaskKind::Multilabel => all_names(labels),
        };
        label_targets(task.kind, Some(&label_map(&task.labels, &found)?), labels, places)
    })?;
    Ok((set, skipped))
}

/// The same of words with tags.
fn sentences(
    scoring: &Scoring,
    args: &EvalArgs,
    task: &Task,
    files: &Files,
    ui: &mut Ui,
) -> Result<(EvalSet, Skipped)> {
    let options = scoring.sentence_options(files, true)?;
    let (form, rename) = scoring.tag_form();
    let (reading, _) = scoring.tag_reading(&args.tags, args.strict_tags)?;
    // What breaks the scheme counts as it stands: the file is the user's, and the model's answers are no better.
    let form = TagForm { scheme: None, ..form };
    let loaded = load_sentences(files, &options, form, &rename, &scoring.tokenizer, ui)?;
    let labels = label_map(&task.labels, &loaded.names())?;
    let data = loaded.rows(&labels, &scoring.tokenizer, scoring.max_length, false, files)?;
    let encoder = scoring.pretrained.encoder_config();
    data.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    Ok((EvalSet { name: "eval".into(), data, slices: None, tags: Some(reading), spans: None }, loaded.skipped))
}

/// Beyond, a matrix of classes × classes is longer than a line of JSON should be.
fn questions(scoring: &Scoring, args: &SpanArgs, files: &Files, ui: &mut Ui) -> Result<(EvalSet, Skipped)> {
    let (windows, decoding) = scoring.answers(args)?;
    let (options, tokenizer) = (scoring.question_options(files, true)?, &scoring.tokenizer);
    let loaded = load_questions(files, &options, tokenizer, windows.max_length, ui)?;
    let skipped = loaded.skipped.clone();
    let data = loaded.rows(tokenizer, windows.doc_stride, files);
    let encoder = scoring.pretrained.encoder_config();
    data.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    let lacks = matches!(&data.targets, Targets::Spans(spans) if spans.lacks_answers());
    let null_threshold = decoding.null_threshold.or(lacks.then_some(0.0));
    let spans = Some(SpanDecoding { null_threshold, ..decoding });
    Ok((EvalSet { name: "eval".into(), data, slices: None, tags: None, spans }, skipped))
}

const MOST_CLASSES: usize = 200;

/// Of columns of 0 and 1 each label of the model must have one: without it no row would seem to have the label.
fn check_flag_columns(columns: &Columns, renames: &BTreeMap<String, String>, labels: &[String]) -> Result<()> {
    let given = columns.as_slice().len();
    let lacks = match flag_names(columns, renames) {
        Some(names) => {
            let map = label_map(labels, &names)?;
            let found: BTreeSet<_> = names.iter().filter_map(|name| map.index(name)).collect();
            let missing: Vec<&str> = labels
                .iter()
                .enumerate()
                .filter(|(i, _)| !found.contains(i))
                .map(|(_, label)| label.as_str())
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            format!("none is for the model's {}", listed(missing.into_iter()))
        }
        None if given > 1 && given < labels.len() => format!("the model has {} labels", labels.len()),
        None => return Ok(()),
    };
    let message = format!("labels are read from {given} columns of 0 and 1, but {lacks}; give each label a --label");
    Err(Error::input(message))
}

/// The model's labels as a file may write them: by name, or by number where the model's names are only `LABEL_0`, `LABEL_1`, ….
fn label_map(labels: &[String], found: &[String]) -> Result<LabelMap> {
    let generic = labels.iter().enumerate().all(|(i, l)| *l == format!("LABEL_{i}"));
    let by_name = found.iter().any(|l| labels.contains(l));
    if generic && !by_name {
        return LabelMap::new((0..labels.len()).map(|i| i.to_string()).collect());
    }
    LabelMap::new(labels.to_vec())
}
