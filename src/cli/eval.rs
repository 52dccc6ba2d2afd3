//! `bertft eval`: a model and a labelled file to scores, with gates for scripts.

use super::ui::Ui;
use super::{Globals, InputArgs};
use crate::data::config::Column;
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;

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
    pub fail_under: Vec<Gate>,
    /// Exit with 3 if the metric is above the bound; may be repeated
    #[arg(long, value_name = "METRIC=X")]
    pub fail_over: Vec<Gate>,
    /// Column of the label: name or 0-based index [default: as in training, else label]
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<Column>,
    #[command(flatten)]
    pub input: InputArgs,
}

/// A bound that a metric must keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    pub metric: String,
    /// Finite.
    pub bound: f64,
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || "expected METRIC=X with a number, such as accuracy=0.9".to_owned();
        let (metric, bound) = s.split_once('=').ok_or_else(wrong)?;
        let bound = bound.trim().parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(wrong)?;
        let metric = metric.trim();
        if metric.is_empty() { Err(wrong()) } else { Ok(Self { metric: metric.into(), bound }) }
    }
}

pub fn run(_args: &EvalArgs, _globals: &Globals, _ui: &mut Ui) -> Result<()> {
    Err(Error::Failed("not wired yet".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates() {
        assert_eq!("f1=0.5".parse(), Ok(Gate { metric: "f1".into(), bound: 0.5 }));
        assert_eq!(" loss = 1e-1 ".parse(), Ok(Gate { metric: "loss".into(), bound: 0.1 }));
        for wrong in ["f1", "f1=", "=1", "f1=high", "f1=nan", "f1=inf"] {
            assert!(wrong.parse::<Gate>().is_err(), "{wrong}");
        }
    }
}
