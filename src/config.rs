//! The run's configuration: composes the structs that the modules own, from a TOML file and arguments over it.
//!
//! Precedence is defaults, file, `--set`, flags. Every error names its place: file and line, or the argument.

mod schema;
mod source;

use crate::data::config::{DataConfig, Invalid, TaskKind};
use crate::data::settings::{STANDARD_INPUT, matching};
use crate::error::{Error, Result};
use crate::hub::{ModelId, means_directory};
use crate::model::model_dir;
use crate::train::config::TrainConfig;
use crate::train::eval_config::EvalConfig;
pub use schema::schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use source::{Source, Texts};
use std::path::{Path, PathBuf};

/// Everything that a training run is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    pub model: ModelConfig,
    pub task: TaskConfig,
    pub data: DataConfig,
    #[serde(default)]
    pub train: TrainConfig,
    #[serde(default, skip_serializing_if = "EvalConfig::is_default")]
    pub eval: EvalConfig,
    pub output: OutputConfig,
}

/// The `[model]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face model directory, the directory of an earlier run, or the id of a model of the hub such as `org/name`. It
    /// is a directory if it is one from the config file on, or begins with `/`, `./` or `../`.
    #[schemars(length(min = 1))]
    pub path: String,
    /// The branch, tag or commit of a model of the hub; without it, `main`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The model of the hub that `path` means, if it is no directory.
    #[serde(skip)]
    pub hub: Option<ModelId>,
}

/// The `[task]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// What the model learns to say about a row.
    pub kind: TaskKind,
}

/// The `[output]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputConfig {
    /// The run directory, relative to the working directory.
    #[schemars(length(min = 1))]
    pub dir: PathBuf,
}

impl RunConfig {
    /// Reads `file`, with the `key=value` arguments of `set` over it. Paths in the result can be opened from the
    /// working directory, whichever way they were given; whether they exist is not asked, except for `model.path`,
    /// where it tells a directory from a hub id.
    ///
    /// # Errors
    /// [`Error::Io`] when `file` cannot be read; [`Error::Input`] with its line, or naming the `--set` argument, for
    /// bad TOML and for any wrong key, type, value or range.
    pub fn load(file: &Path, set: &[String]) -> Result<Self> {
        let texts = Texts::read(file, set, None)?;
        let source = Source::parse(&texts)?;
        Self::from_source(&source, file)
    }

    /// As [`Self::load`], for what a run needs: `output` goes over `output.dir`, every input must exist, and glob
    /// patterns become the files that they match.
    pub fn load_for_run(file: &Path, set: &[String], output: Option<&Path>) -> Result<Self> {
        let texts = Texts::read(file, set, output)?;
        let source = Source::parse(&texts)?;
        let mut config = Self::from_source(&source, file)?;
        config.find_files().map_err(|invalid| source.invalid(&invalid))?;
        config.check_inputs_exist().map_err(|invalid| source.invalid(&invalid))?;
        Ok(config)
    }

    /// The config as TOML that reads as an equal config from any place under the same working directory: the paths of
    /// inputs are absolute.
    ///
    /// # Errors
    /// [`Error::Input`] when the working directory's name is not UTF-8, which TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        let whole = self.with_absolute_inputs()?;
        toml::to_string(&whole).map_err(|e| Error::input(format!("the config cannot be written as TOML: {e}")))
    }

    /// The config with absolute paths of inputs.
    ///
    /// # Errors
    /// As [`Self::to_toml`].
    pub fn with_absolute_inputs(&self) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).map_err(|e| Error::io(path, e));
        let mut config = self.clone();
        if self.model.hub.is_none() {
            config.model.path = utf8(absolute(Path::new(&self.model.path))?)?;
        }
        for path in config.data.splits_mut().into_iter().flat_map(|(_, files)| files.as_mut_slice()) {
            if path != Path::new(STANDARD_INPUT) {
                *path = absolute(path)?;
            }
        }
        Ok(config)
    }

    fn from_source(source: &Source, file: &Path) -> Result<Self> {
        let mut config: Self = source.deserialize()?;
        match config.task.kind {
            TaskKind::Span => config.data.fill_in_questions(|key| source.has(key)),
            TaskKind::Tokens => config.data.fill_in_sentences(|key| source.has(key)),
            TaskKind::Classification | TaskKind::Multilabel | TaskKind::Regression => {}
        }
        config.check().map_err(|invalid| source.invalid(&invalid))?;
        config.train.fill_in();
        config.resolve_paths(source, file)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.model.path.is_empty() {
            return Err(Invalid::new("model.path", "is empty, expected a model directory"));
        }
        if self.output.dir.as_os_str().is_empty() {
            return Err(Invalid::new("output.dir", "is empty, expected a directory to write"));
        }
        self.data.check(self.task.kind)?;
        self.train.check(self.task.kind, self.data.eval.is_some())?;
        self.train.check_deciding_set(&self.data.eval_names())?;
        self.eval.check(self.task.kind, self.data.eval.is_some(), self.data.test.is_some())
    }

    fn resolve_paths(&mut self, source: &Source, file: &Path) -> Result<()> {
        let here = std::env::current_dir().map_err(|e| Error::io(".", e))?;
        let config_dir = here.join(file.parent().unwrap_or(Path::new("")));
        let base = |key: &str| if source.is_argument(key) { &here } else { &config_dir };
        self.resolve_model(base("model.path"), &here).map_err(|invalid| source.invalid(&invalid))?;
        for (key, files) in self.data.splits_mut() {
            for path in files.as_mut_slice().iter_mut().filter(|path| *path != Path::new(STANDARD_INPUT)) {
                *path = locate(base(key), path, &here);
            }
        }
        Ok(())
    }

    fn resolve_model(&mut self, base: &Path, here: &Path) -> Result<(), Invalid> {
        let path = self.model.path.as_str();
        if !means_directory(path, base) {
            ModelId::new(path, None).map_err(|what| {
                let message = format!("is \"{path}\": there is no directory {}, and {what}", base.join(path).display());
                Invalid::new("model.path", message)
            })?;
            let model = ModelId::new(path, self.model.revision.as_deref());
            self.model.hub = Some(model.map_err(|what| Invalid::new("model.revision", format!("is wrong: {what}")))?);
            return Ok(());
        }
        if self.model.revision.is_some() {
            let message = "is set, but model.path is a directory, which has no revisions; remove the key";
            return Err(Invalid::new("model.revision", message));
        }
        let resolved = model_dir(&locate(base, Path::new(path), here));
        self.model.path = utf8(resolved).map_err(|e| Invalid::new("model.path", e.to_string()))?;
        Ok(())
    }

    /// Puts the files that patterns match in their place, sorted.
    fn find_files(&mut self) -> Result<(), Invalid> {
        for (key, files) in self.data.splits_mut() {
            *files = matching(files).map_err(|message| Invalid::new(key, message))?;
        }
        Ok(())
    }

    fn check_inputs_exist(&self) -> Result<(), Invalid> {
        let model = Path::new(&self.model.path);
        let is_local = self.model.hub.is_none();
        if is_local && !model.is_dir() {
            let message = format!("is {}, which is not a directory; give a model directory", model.display());
            return Err(Invalid::new("model.path", message));
        }
        if is_local && !model.join("config.json").is_file() {
            let message =
                format!("is {}, which has no config.json; give a Hugging Face model directory", model.display());
            return Err(Invalid::new("model.path", message));
        }
        for (key, path) in self.data.files() {
            if path == Path::new(STANDARD_INPUT) {
                continue;
            }
            match std::fs::metadata(path) {
                Ok(found) if found.is_dir() => {
                    return Err(Invalid::new(key, format!("is {}, a directory, expected a file", path.display())));
                }
                Ok(_) => {}
                Err(e) => return Err(Invalid::new(key, format!("is {}, which cannot be read: {e}", path.display()))),
            }
        }
        Ok(())
    }
}

fn utf8(path: PathBuf) -> Result<String> {
    path.into_os_string()
        .into_string()
        .map_err(|path| Error::input(format!("the path {} is not UTF-8; move it", path.display())))
}

/// `path` seen from `base`, as short as it can be written from `here`, the working directory. Of links only the
/// directories are followed: a file's own name may carry the extension that tells its format.
fn locate(base: &Path, path: &Path, here: &Path) -> PathBuf {
    let whole = base.join(path);
    let resolved = match (whole.parent(), whole.file_name()) {
        (Some(dir), Some(name)) => dir.canonicalize().map(|dir| dir.join(name)),
        _ => whole.canonicalize(),
    };
    let resolved = resolved.unwrap_or(whole);
    match resolved.strip_prefix(here) {
        Ok(rest) if rest.as_os_str().is_empty() => PathBuf::from("."),
        Ok(rest) => rest.to_path_buf(),
        Err(_) => resolved,
    }
}

#[cfg(test)]
mod tests;
