//! The model that a command starts from: a directory, or one of the hub.

use super::Globals;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::hub::{self, ModelId, means_directory};
use crate::model::{Pretrained, model_dir};
use crate::train::log::{Event, Phase, Progress, Reporter};
use clap::Args;
use std::path::{Path, PathBuf};

/// The fine-tuned model of `eval` and `predict`.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A run directory, a Hugging Face model directory, or the id of a model of the hub such as org/name
    #[arg(long, short, value_name = "MODEL")]
    pub model: PathBuf,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
}

impl ModelArgs {
    /// Opens the model, downloaded if it is one of the hub and not in the cache.
    pub fn open(&self, globals: &Globals, reporter: &mut dyn Reporter) -> Result<Pretrained> {
        open(&self.model, self.revision.as_deref(), globals, reporter)
    }
}

/// What `--model` and `--revision` mean, seen from the working directory.
pub fn open(
    model: &Path,
    revision: Option<&str>,
    globals: &Globals,
    reporter: &mut dyn Reporter,
) -> Result<Pretrained> {
    let Some(id) = model.to_str().filter(|text| !means_directory(text, Path::new(""))) else {
        return match revision {
            None => Pretrained::open(&model_dir(model)),
            Some(_) => {
                Err(Error::input("--revision is set, but --model is a directory, which has no revisions; remove it"))
            }
        };
    };
    ModelId::new(id, None)
        .map_err(|what| Error::input(format!("--model: there is no directory {}, and {what}", model.display())))?;
    let id = ModelId::new(id, revision).map_err(|what| Error::input(format!("--revision: {what}")))?;
    of_hub("--model", &id, globals, reporter)
}

/// The model of a config, likewise.
pub fn pretrained(config: &ModelConfig, globals: &Globals, reporter: &mut dyn Reporter) -> Result<Pretrained> {
    match &config.hub {
        Some(id) => of_hub("model.path", id, globals, reporter),
        None => Pretrained::open(Path::new(&config.path)),
    }
}

/// `key` is what the user gave the id to.
fn of_hub(key: &str, model: &ModelId, globals: &Globals, reporter: &mut dyn Reporter) -> Result<Pretrained> {
    let settings = hub::Settings::from_env(globals.offline)?;
    let mut report = |done, total| {
        if total > 0 {
            reporter.progress(Progress::counted(Phase::Download, done, total));
        }
        interrupted(reporter)
    };
    // The name of a directory with a slip in it looks like an id.
    let told = |message: String| format!("{key}: {message}; there is no directory {} either", model.id);
    let found = hub::model(model, &settings, &mut hub::Watch::new(&mut report)).map_err(|e| match e {
        Error::Input { message, file: None, line } => Error::Input { message: told(message), file: None, line },
        Error::Failed(message) => Error::Failed(told(message)),
        e => e,
    })?;
    if let Some(message) = found.warning {
        reporter.event(&Event::Warning { message });
    }
    Ok(Pretrained::open(&found.dir)?.of_hub(&model.id, &found.commit))
}

/// An error once the user asked to stop.
pub fn interrupted(reporter: &dyn Reporter) -> Result<()> {
    if reporter.interrupted() { Err(Error::Interrupted { resumable: false }) } else { Ok(()) }
}
