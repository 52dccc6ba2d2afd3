//! `bertft eval`: a model and a labelled file to scores, with gates for scripts.

use super::prepare::{Loader, dataset, family};
use super::scoring::Scoring;
use super::ui::Ui;
use super::{Globals, InputArgs};
use crate::data::config::{Column, TaskKind};
use crate::data::labels::value_targets;
use crate::data::{LabelMap, Labels};
use crate::error::Result;
use crate::metrics::gate::{Gate, check};
use crate::metrics::names;
use crate::train::eval::evaluate;
use clap::Args;
use serde_json::json;
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
  A file without header, text in the second column and label in the first:
    bertft eval --model runs/cls --data test.tsv --no-header --text 1 --label 0 --json")]
pub struct EvalArgs {
    /// A run directory or a Hugging Face model directory
    #[arg(long, short, value_name = "DIR")]
    pub model: PathBuf,
    /// The labelled rows
    #[arg(long, short, value_name = "FILE")]
    pub data: PathBuf,
    /// Exit with 3 if the metric is below the bound; may be repeated
    #[arg(long, value_name = "METRIC=X")]
    pub fail_under: Vec<String>,
    /// Exit with 3 if the metric is above the bound; may be repeated
    #[arg(long, value_name = "METRIC=X")]
    pub fail_over: Vec<String>,
    /// Column of the label: name or 0-based index [default: as in training, else label]
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<Column>,
    #[command(flatten)]
    pub input: InputArgs,
}

pub fn run(args: &EvalArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let mut gates = vec![];
    for text in &args.fail_under {
        gates.push(Gate::fail_under(text)?);
    }
    for text in &args.fail_over {
        gates.push(Gate::fail_over(text)?);
    }
    let mut scoring = Scoring::open(&args.model, &args.input, args.label.clone(), globals, ui)?;
    let task = scoring.model.task().clone();
    for gate in &gates {
        gate.known(names(family(&task)))?;
    }
    let options = scoring.read_options(Some(&args.data), true)?;
    let loader = Loader::new(&scoring.pretrained, options, scoring.max_length);
    // Which labels are right is known when all were seen.
    let (loaded, _) = loader.load(&args.data, &|_| Ok(()), ui)?;
    let targets = match task.kind {
        TaskKind::Regression => value_targets(&loaded.labels, loaded.lines(), &args.data)?,
        TaskKind::Classification => {
            label_map(&task.labels, &loaded.labels)?.targets(&loaded.labels, loaded.lines(), &args.data)?
        }
    };
    let data = dataset(&scoring.pretrained, loaded, targets, &args.data)?;
    let result = evaluate(&mut scoring.model, &data, scoring.batch_size, ui)?;
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
                task.labels.iter().cloned().zip(report.per_class.iter().map(|c| json!(c))).collect();
            object["per_class"] = classes.into();
            if task.labels.len() <= MOST_CLASSES {
                object["confusion_matrix"] = json!(report.confusion.chunks(task.labels.len()).collect::<Vec<_>>());
            }
        }
        ui.out_json(&object)?;
    } else {
        if let Some(report) = &result.report {
            ui.out(&report.tables(&task.labels).to_string())?;
            ui.out("")?;
        }
        let split = args.data.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        ui.out_metrics(&[(&split, &result.metrics)])?;
        ui.note(&format!("{} samples in {:.2} s, {per_second:.0}/s", result.samples, result.seconds));
    }
    check(&gates, &result.metrics)
}

/// Beyond, a matrix of classes × classes is longer than a line of JSON should be.
const MOST_CLASSES: usize = 200;

/// The model's labels as a file may write them: by name, or by number where the model's names are only `LABEL_0`, `LABEL_1`, ….
fn label_map(labels: &[String], found: &Labels) -> Result<LabelMap> {
    let generic = labels.iter().enumerate().all(|(i, l)| *l == format!("LABEL_{i}"));
    let by_name = found.names().iter().any(|l| labels.contains(l));
    if generic && !by_name {
        return LabelMap::new((0..labels.len()).map(|i| i.to_string()).collect());
    }
    LabelMap::new(labels.to_vec())
}
