//! The run directory: what may be written where, checkpoints, and the event log.

use super::eval::SetScores;
use super::log::Event;
use crate::error::{Error, Result};
use crate::model::{Model, write_safetensors};
use crate::nn::params::Spec;
use crate::ops::with_values;
use candle_core::Tensor;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What to do with a run that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    Overwrite,
    Resume,
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::write(path, e))
}

/// Everything that the program writes into a run directory.
const MEMBERS: &[&str] = &["config.toml", "run.json", "events.jsonl", "metrics.json", "checkpoints", "model"];

/// The directory of one run.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Checks that a run may be written to `dir`, without changing anything.
    /// `inputs` are what the run reads: none may lie where the run writes.
    pub fn check(dir: &Path, existing: Existing, inputs: &[&Path]) -> Result<Self> {
        if dir.exists() && !dir.is_dir() {
            return Err(Error::in_file(dir, "is a file; the output directory must be a directory or not there yet"));
        }
        for (input, member) in inputs.iter().flat_map(|i| MEMBERS.iter().map(move |m| (i, dir.join(m)))) {
            if let (Ok(input), Ok(member)) = (input.canonicalize(), member.canonicalize())
                && input.starts_with(&member)
            {
                return Err(Error::in_file(input, "lies in the run that would be written; give another --output"));
            }
        }
        let holds_run = MEMBERS.iter().any(|m| dir.join(m).exists());
        match existing {
            Existing::Refuse if holds_run => Err(Error::in_file(
                dir,
                "already holds a run; give --resume to go on with it, --overwrite to replace it, or another --output",
            )),
            Existing::Resume if latest(dir)?.is_none() => {
                Err(Error::in_file(dir, "holds no checkpoint to resume from; run without --resume"))
            }
            _ => Ok(Self(dir.into())),
        }
    }

    /// Makes the directory ready: a run that is replaced is removed, and that files can be written is tried.
    pub fn prepare(&self, existing: Existing) -> Result<()> {
        let dir = &self.0;
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        if existing == Existing::Overwrite {
            for member in MEMBERS {
                let path = dir.join(member);
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                if let Err(e) = removed
                    && e.kind() != std::io::ErrorKind::NotFound
                {
                    return Err(Error::io(&path, e));
                }
            }
        }
        let checkpoints = self.checkpoints();
        std::fs::create_dir_all(&checkpoints).map_err(|e| Error::io(&checkpoints, e))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn model(&self) -> PathBuf {
        self.0.join("model")
    }

    /// Where the checkpoint of a step is.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step}"))
    }

    fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Writes a text file of the run.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.0.join(name);
        std::fs::write(&path, text).map_err(|e| Error::write(path, e))
    }

    /// Writes a checkpoint and removes the oldest beyond `keep`. A checkpoint is there whole or not at all.
    pub fn save_checkpoint(
        &self,
        model: &Model,
        state: &State,
        identity: &Identity,
        keep: Option<usize>,
    ) -> Result<()> {
        let dir = self.checkpoint(state.step);
        let part = self.checkpoints().join("part");
        let _ = std::fs::remove_dir_all(&part); // left over from a run that was killed, or not there
        std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
        let state_json = serde_json::to_value(state).map_err(|e| Error::Failed(e.to_string()))?;
        let layout = layout(model.params.specs());
        let json = serde_json::json!({ "layout": layout, "identity": identity, "state": state_json });
        let path = part.join("state.json");
        std::fs::write(&path, json.to_string()).map_err(|e| Error::write(&path, e))?;
        save_arenas(model, &part.join("state.safetensors"))?;
        // On the disk before an older checkpoint goes: a machine that stops now must find one of the two.
        for file in [path, part.join("state.safetensors"), part.clone()] {
            sync(&file)?;
        }
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        }
        std::fs::rename(&part, &dir).map_err(|e| Error::write(&dir, e))?;
        sync(&self.checkpoints())?;
        if let Some(keep) = keep {
            let mut steps = steps(&self.0)?;
            steps.sort_unstable();
            for step in steps.iter().rev().skip(keep.max(1)) {
                let old = self.checkpoint(*step);
                std::fs::remove_dir_all(&old).map_err(|e| Error::write(&old, e))?;
            }
        }
        Ok(())
    }

    /// Puts the last checkpoint's weights and moments into `model` and returns its state.
    /// The run must be the same: [`Identity::must_equal`].
    pub fn load_checkpoint(&self, model: &mut Model, identity: &Identity) -> Result<State> {
        let Some(step) = latest(&self.0)? else {
            return Err(Error::in_file(&self.0, "holds no checkpoint to resume from"));
        };
        let dir = self.checkpoint(step);
        let path = dir.join("state.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let damaged =
            |e: String| Error::in_file(&path, format!("is not a whole checkpoint ({e}); remove {}", dir.display()));
        let saved: Saved = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if saved.layout != layout(model.params.specs()) {
            let message = "belongs to a model of other shape or to another version of bertft; run with --overwrite";
            return Err(Error::in_file(&dir, message));
        }
        identity.must_equal(&saved.identity, &dir)?;
        load_arenas(model, &dir.join("state.safetensors"))?;
        // Left between the two renames of a model that was being replaced.
        let (model_dir, old) = (self.model(), self.0.join("model.old"));
        if !model_dir.exists() && old.exists() {
            std::fs::rename(&old, &model_dir).map_err(|e| Error::write(&model_dir, e))?;
        }
        if saved.state.best.is_some() && !model_dir.is_dir() {
            return Err(Error::in_file(&model_dir, "the best model so far is gone; run with --overwrite"));
        }
        Ok(saved.state)
    }
}

#[derive(Deserialize)]
struct Saved {
    layout: String,
    identity: Identity,
    state: State,
}

/// What a resumed run must have in common with the one that wrote the checkpoint, by config key: order of rows, batches and
/// dropout are functions of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity(pub serde_json::Map<String, serde_json::Value>);

impl Identity {
    /// # Errors
    /// [`Error::Input`] that names the first key in which the two differ.
    pub fn must_equal(&self, saved: &Self, checkpoint: &Path) -> Result<()> {
        let short = |v: Option<&serde_json::Value>| {
            let value = v.filter(|v| !v.is_null());
            value.map_or_else(|| "not set".into(), |v| v.to_string().chars().take(60).collect::<String>())
        };
        // A key that an older checkpoint does not know was not set.
        let differs = |key: &str, value| saved.0.get(key).unwrap_or(&serde_json::Value::Null) != value;
        match self.0.iter().find(|(key, value)| differs(key, *value)) {
            Some((key, value)) => Err(Error::in_file(
                checkpoint,
                format!(
                    "{key} is now {}, and was {} when the checkpoint was saved: resume with what the run began with, or use --overwrite",
                    short(Some(value)),
                    short(saved.0.get(key))
                ),
            )),
            None => Ok(()),
        }
    }
}

/// Where a run stands, beside weights and moments. Data order and dropout are functions of seed and step, so this is all
/// that an exact resume needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    pub best: Option<Best>,
    /// The latest evaluation, best or not; a set each.
    pub last_eval: Vec<SetScores>,
    /// Evaluations since the best one.
    pub evals_without_gain: u32,
    /// Spent in training steps, of all sessions of the run.
    pub train_seconds: f64,
    pub tokens: u64,
    pub samples: u64,
    /// Σ loss since the last `step` event, and what it is divided by for the mean (rows, or their class weights).
    pub logged_loss: f64,
    #[serde(alias = "logged_rows")]
    pub logged_divisor: f64,
    /// Rows of a batch, where `train.auto_find_batch_size` chose others than the config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Length of `events.jsonl` when the checkpoint was taken.
    pub events_bytes: u64,
}

/// The best evaluation so far; its model is in `model/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    pub sets: Vec<SetScores>,
}

/// Steps of the checkpoints that are there.
fn steps(run: &Path) -> Result<Vec<u64>> {
    let dir = run.join("checkpoints");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io(&dir, e)),
    };
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect())
}

fn latest(run: &Path) -> Result<Option<u64>> {
    Ok(steps(run)?.into_iter().max())
}

/// Names and places of all parameters: equal exactly when arenas can be exchanged.
fn layout(specs: &[Spec]) -> String {
    specs.iter().map(|s| format!("{} {} {:?}", s.name, s.offset, s.shape)).collect::<Vec<_>>().join(";")
}

fn save_arenas(model: &Model, path: &Path) -> Result<()> {
    write_arenas(&model.params.state()?, vec![], path)
}

/// Writes the arenas in `opened` and, behind them, `rest`. In place: copies of all would be the run's peak of memory.
fn write_arenas(rest: &[(&str, &Tensor)], opened: Vec<(&str, &[f32])>, path: &Path) -> Result<()> {
    let Some(((name, arena), rest)) = rest.split_first() else {
        let mut views = vec![];
        for (name, v) in opened {
            let view = TensorView::new(Dtype::F32, vec![v.len()], bytemuck::cast_slice(v));
            views.push((name.to_string(), view.map_err(|e| Error::Failed(e.to_string()))?));
        }
        return write_safetensors(views, None, path);
    };
    with_values(arena, |v| {
        let mut opened: Vec<(&str, &[f32])> = opened.clone();
        opened.push((name, v));
        write_arenas(rest, opened, path)
    })?
}

fn load_arenas(model: &mut Model, path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: read-only; nobody else writes a finished checkpoint.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
    let damaged = |e: String| Error::in_file(path, format!("is not a whole checkpoint ({e}); remove its directory"));
    let tensors = SafeTensors::deserialize(&map).map_err(|e| damaged(e.to_string()))?;
    let names: Vec<&str> = model.params.state()?.into_iter().map(|(name, _)| name).collect();
    for name in names {
        let view = tensors.tensor(name).map_err(|e| damaged(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != [model.params.arena_len()] {
            return Err(damaged(format!("{name} has another size")));
        }
        // One at a time: copies of all would be the run's peak of memory.
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let arena = Tensor::from_vec(values, model.params.arena_len(), model.params.device())?;
        model.params.restore(name, &arena)?;
    }
    Ok(())
}

/// `events.jsonl`: each event with the time it was written, in seconds since 1970.
#[derive(Debug)]
pub struct EventLog {
    file: File,
    path: PathBuf,
}

impl EventLog {
    /// Opens the log, cut to `keep` bytes: events after a checkpoint did not happen for the run that resumes from it.
    pub fn open(run: &RunDir, keep: u64) -> Result<Self> {
        let path = run.path().join("events.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        if file.metadata().map_err(|e| Error::io(&path, e))?.len() > keep {
            file.set_len(keep).map_err(|e| Error::io(&path, e))?;
        }
        Ok(Self { file, path })
    }

    pub fn write(&mut self, event: &Event) -> Result<()> {
        let mut json = serde_json::to_value(event).map_err(|e| Error::Failed(e.to_string()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        json["time"] = serde_json::json!((now * 1000.0).round() / 1000.0);
        writeln!(self.file, "{json}").map_err(|e| Error::write(&self.path, e))
    }

    /// Bytes written so far.
    pub fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| Error::io(&self.path, e))?.len())
    }

    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}
