//! `bertft predict`: a model and rows to one JSON object a row.

use super::ui::Ui;
use super::{Globals, InputArgs};
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Predict the rows of a file or of standard input
///
/// Writes one JSON object per row, in input order, while it reads. Standard input is JSONL if its first byte is {, else
/// one text a line; a file's format is told by its extension (.txt is one text a line).
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  Predict a file:
    bertft predict --model runs/cls reviews.csv --output predictions.jsonl
  Classify one text:
    echo 'My card has not arrived' | bertft predict --model runs/cls
  Pairs in JSONL with keys of their own:
    bertft predict --model runs/pairs --text question --text-pair answer pairs.jsonl")]
pub struct PredictArgs {
    /// A run directory or a Hugging Face model directory
    #[arg(long, short, value_name = "DIR")]
    pub model: PathBuf,
    /// The rows; - or nothing is standard input
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where to write the predictions [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub input: InputArgs,
}

pub fn run(_args: &PredictArgs, _globals: &Globals, _ui: &mut Ui) -> Result<()> {
    Err(Error::Failed("not wired yet".into()))
}
