//! `bertft train`: a config file to a run directory.

use super::Globals;
use super::ui::Ui;
use crate::error::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// Fine-tune a model as a config file says
///
/// Writes a run directory with the resolved config, the events, checkpoints, the scores (metrics.json) and the model as
/// a plain Hugging Face model directory.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  Train as the config says:
    bertft train --config cls.toml
  Try another learning rate into another directory:
    bertft train --config cls.toml --set train.learning_rate=3e-5 --output runs/lr3e-5
  Go on after an interruption, in a script that reads the events:
    bertft train --config cls.toml --resume --json")]
pub struct TrainArgs {
    /// The config file; `bertft config init` writes one
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a config value, such as train.epochs=5; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The run directory, over output.dir
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Go on from the last checkpoint of the run directory
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace the run in the run directory
    #[arg(long)]
    pub overwrite: bool,
    /// Check config, data and model, say what would be done, and stop
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(_args: &TrainArgs, _globals: &Globals, _ui: &mut Ui) -> Result<()> {
    Err(Error::Failed("not wired yet".into()))
}
