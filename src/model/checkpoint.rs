//! Reading a Hugging Face model directory: `config.json` and the weights, every tensor accounted for.

use super::Task;
use super::weights::{Stored, WeightFiles};
use crate::data::config::TaskKind;
use crate::encoders::names::{candidates, is_buffer};
use crate::encoders::{EncoderConfig, FAMILIES, Initializer};
use crate::error::{Error, Result};
use crate::nn::params::{Init, Layout, Spec};
use crate::rng::normal;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A model directory, opened and checked.
#[derive(Debug)]
pub struct Pretrained {
    dir: PathBuf,
    json: serde_json::Value,
    config: EncoderConfig,
    weights: WeightFiles,
    hub: Option<(String, String)>,
}

/// Where each of the model's tensors came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadReport {
    /// Tensors taken from the checkpoint.
    pub loaded: usize,
    /// Parameters that the checkpoint lacks or holds for other labels: drawn anew.
    pub initialised: Vec<String>,
    /// Tensors of the checkpoint that the model has no place for.
    pub unused: Vec<String>,
}

/// One line for a reader; long lists are cut.
pub fn describe_load(loaded: usize, initialised: &[String], unused: &[String]) -> String {
    let list = |names: &[String], what: &str| {
        let more = if names.len() > 4 { ", …" } else { "" };
        let shown = names.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        if names.is_empty() { String::new() } else { format!("; {} {what} ({shown}{more})", names.len()) }
    };
    format!(
        "{loaded} tensors loaded{}{}",
        list(initialised, "newly initialised"),
        list(unused, "of the checkpoint unused")
    )
}

impl Pretrained {
    /// Opens a model directory.
    ///
    /// # Errors
    /// [`Error::Input`] for a family this version does not have, and for files that are missing or damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::in_file(dir, "is not a directory; expected a Hugging Face model directory"));
        }
        if !dir.join("config.json").is_file() {
            let message = match dir.join("run.json").is_file() {
                true => "is a run that has saved no model yet; let it train up to its first evaluation",
                false => "has no config.json; expected a Hugging Face model directory, or the directory of a run",
            };
            return Err(Error::in_file(dir, message));
        }
        let json = read_json(&dir.join("config.json"))?;
        let config = EncoderConfig::from_json(&json, &dir.join("config.json"))?;
        let weights = WeightFiles::open(dir)?;
        Ok(Self { dir: dir.into(), json, config, weights, hub: None })
    }

    /// Remembers which model of the hub the directory is a copy of.
    pub fn of_hub(self, id: &str, commit: &str) -> Self {
        Self { hub: Some((id.into(), commit.into())), ..self }
    }

    /// Id and commit of the model of the hub that this is.
    pub fn hub(&self) -> Option<(&str, &str)> {
        self.hub.as_ref().map(|(id, commit)| (id.as_str(), commit.as_str()))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn encoder_config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The whole `config.json`.
    pub fn json(&self) -> &serde_json::Value {
        &self.json
    }

    /// Labels by `id2label`, in id order; `None` when it is absent. An error when ids have gaps.
    pub fn labels(&self) -> Result<Option<Vec<String>>> {
        let Some(map) = self.json.get("id2label").and_then(|v| v.as_object()) else { return Ok(None) };
        let mut out = vec![None; map.len()];
        for (id, name) in map {
            let slot = id.parse::<usize>().ok().and_then(|i| out.get_mut(i));
            let (Some(slot), Some(name)) = (slot, name.as_str()) else {
                return Err(
                    self.wrong(format!("id2label entry {id:?} is not one of 0 to {} with a name", map.len() - 1))
                );
            };
            *slot = Some(name.to_owned());
        }
        Ok(out.into_iter().collect())
    }

    /// The task that a fine-tuned directory was made for, by `problem_type` or the number of labels.
    ///
    /// # Errors
    /// [`Error::Input`] for tasks that are not in this version, and where there is no classifier.
    pub fn task(&self) -> Result<Task> {
        let class = self.json["architectures"][0].as_str().unwrap_or_default();
        if class.ends_with("ForMultipleChoice") {
            let message = format!("a {class} is no classifier of rows or tokens, and its task is not in this version");
            return Err(self.wrong(message));
        }
        if class.ends_with("ForQuestionAnswering") {
            return self.span_task(class);
        }
        let tokens = class.ends_with("ForTokenClassification");
        let labels = self.labels()?;
        let classifier = if tokens { &self.config.token_head.out } else { &self.config.pooling.out };
        let weight = self.weights.get(&format!("{classifier}.weight"));
        let Some(&[outputs, _]) = weight.map(|w| w.shape) else {
            return Err(Error::in_file(
                self.weights.path(),
                "has no classifier: train the model first, or give a fine-tuned one",
            ));
        };
        let labels = labels.unwrap_or_else(|| (0..outputs).map(|i| format!("LABEL_{i}")).collect());
        if labels.len() != outputs {
            return Err(
                self.wrong(format!(
                    "id2label has {} labels, but {classifier}.weight is for {outputs}; write the names of all {outputs} there",
                    labels.len()
                ))
            );
        }
        if tokens {
            return Ok(Task { kind: TaskKind::Tokens, labels });
        }
        match self.json.get("problem_type").and_then(|v| v.as_str()) {
            Some("regression") if outputs == 1 => Ok(Task { kind: TaskKind::Regression, labels: vec![] }),
            Some("single_label_classification") => Ok(Task { kind: TaskKind::Classification, labels }),
            Some("multi_label_classification") => Ok(Task { kind: TaskKind::Multilabel, labels }),
            Some(other) => {
                Err(self.wrong(format!("problem_type {other:?} with {outputs} outputs is not in this version")))
            }
            None if outputs == 1 => Ok(Task { kind: TaskKind::Regression, labels: vec![] }),
            None => Ok(Task { kind: TaskKind::Classification, labels }),
        }
    }

    fn span_task(&self, class: &str) -> Result<Task> {
        let out = &self.config.span_head.out;
        match self.weights.get(&format!("{out}.weight")).map(|w| w.shape) {
            Some(&[2, _]) => Ok(Task { kind: TaskKind::Span, labels: vec![] }),
            found => {
                let found = found.map_or_else(|| "missing".into(), |shape| format!("{shape:?}"));
                let message =
                    format!("{out}.weight of the {class} is {found}, expected two rows: to begin and to end answers");
                Err(Error::in_file(self.weights.path(), message))
            }
        }
    }

    fn wrong(&self, message: String) -> Error {
        Error::in_file(self.dir.join("config.json"), message)
    }

    /// The arena's values for `layout`.
    pub(super) fn weights(&self, layout: &Layout, task: &Task, seed: u64) -> Result<(Vec<f32>, LoadReport)> {
        let names: HashSet<&str> = self.weights.names().collect();
        let mut report = LoadReport::default();
        let (mut used, mut missing, mut places) = (HashSet::new(), vec![], vec![]);
        let (head, _) = self.config.head(task.kind);
        let keep_classifier = self.classifier_fits(task)?;
        for spec in layout.specs() {
            let classifier = spec.name.starts_with(&head.out);
            let found = candidates(&spec.name, self.config.names.prefix).iter().find_map(|n| self.weights.get(n));
            used.extend(found.map(|t| t.name));
            match found {
                Some(tensor) if !classifier || keep_classifier => {
                    check_shape(&tensor, spec)?;
                    places.push((spec, Some(tensor)));
                    report.loaded += 1;
                }
                _ => {
                    if !classifier && !head.holds(&spec.name) {
                        missing.push(spec.name.as_str());
                    }
                    places.push((spec, None));
                    report.initialised.push(spec.name.clone());
                }
            }
        }
        if !missing.is_empty() {
            return Err(self.missing(&missing, &names));
        }
        // Only now that every size is that of the weights: sizes of config.json alone could ask for any amount of memory.
        let mut arena = vec![0f32; layout.arena_len()];
        for (spec, source) in places {
            let to = &mut arena[spec.range()];
            match source {
                Some(tensor) => copy(&tensor, to)?,
                None => initialise(to, spec, seed, &self.config.initializer),
            }
        }
        report.unused = names.iter().filter(|n| !used.contains(**n) && !is_buffer(n)).map(|n| n.to_string()).collect();
        report.unused.sort();
        self.weights.forget_pages();
        Ok((arena, report))
    }

    /// Whether the checkpoint's classifier answers the task's question: as many outputs, and the same labels where the
    /// checkpoint names them.
    fn classifier_fits(&self, task: &Task) -> Result<bool> {
        let Some(weight) = self.weights.get(&format!("{}.weight", self.config.head(task.kind).0.out)) else {
            return Ok(false);
        };
        if weight.shape != [task.outputs(), self.config.layer.hidden] {
            return Ok(false);
        }
        let Some(labels) = self.labels()? else { return Ok(true) };
        let generic = |l: &[String]| l.iter().enumerate().all(|(i, l)| *l == format!("LABEL_{i}"));
        let numbers = |l: &[String]| l.iter().enumerate().all(|(i, l)| *l == i.to_string());
        let without = matches!(task.kind, TaskKind::Regression | TaskKind::Span);
        Ok(without || labels == task.labels || (generic(&labels) && numbers(&task.labels)))
    }

    fn missing(&self, missing: &[&str], names: &HashSet<&str>) -> Error {
        let shown = missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let first = format!("{}.weight", self.config.names.layers[0].projections[0]);
        let is_family = candidates(&first, self.config.names.prefix).iter().any(|n| names.contains(n.as_str()));
        let why = if is_family {
            "config.json does not match the weights".into()
        } else {
            format!("the file does not hold the {} encoder that config.json says", self.config.class)
        };
        let supported = FAMILIES.join(", ");
        Error::in_file(
            self.weights.path(),
            format!("{} tensors are missing, such as {shown}: {why} (supported families: {supported})", missing.len()),
        )
    }
}

fn check_shape(tensor: &Stored<'_>, spec: &Spec) -> Result<()> {
    if tensor.shape == spec.shape {
        return Ok(());
    }
    let message = format!(
        "tensor {} has shape {:?}, config.json says {:?}; the two are of different models, so take both from one",
        tensor.name, tensor.shape, spec.shape
    );
    Err(Error::in_file(tensor.file, message))
}

/// Widens a tensor to f32 into its place of the same length, on all threads: most of the time goes to first touches of
/// memory.
fn copy(tensor: &Stored<'_>, to: &mut [f32]) -> Result<()> {
    let Stored { name, data, file, .. } = *tensor;
    let bad = match tensor.dtype {
        Dtype::F32 => widen(data, to, f32::from_le_bytes),
        Dtype::F16 => widen(data, to, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => widen(data, to, |b| bf16::from_le_bytes(b).to_f32()),
        other => {
            return Err(Error::in_file(file, format!("tensor {name} is {other:?}; expected F32, F16 or BF16")));
        }
    };
    match bad {
        Some(i) => {
            Err(Error::in_file(file, format!("tensor {name} holds {} at element {i}; the file is damaged", to[i])))
        }
        None => Ok(()),
    }
}

/// Fills `to` from `N` bytes a value; gives the first element that is not finite.
fn widen<const N: usize>(bytes: &[u8], to: &mut [f32], value: impl Fn([u8; N]) -> f32 + Sync) -> Option<usize> {
    const CHUNK: usize = 1 << 16;
    let chunk = |(i, (to, bytes)): (usize, (&mut [f32], &[u8]))| {
        let mut finite = true;
        for (to, bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
            *to = value(*bytes);
            finite &= to.is_finite();
        }
        if finite { None } else { Some(i * CHUNK + to.iter().position(|v| !v.is_finite())?) }
    };
    to.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).enumerate().find_map_first(chunk)
}

pub(super) fn initialise(to: &mut [f32], spec: &Spec, seed: u64, how: &Initializer) {
    match spec.init {
        Init::Normal => {
            to.copy_from_slice(&normal(seed, &spec.name, to.len(), how.std_of(&spec.name), how.cutoff));
        }
        Init::Zeros | Init::Fixed | Init::Absent => to.fill(0.0),
        Init::Ones => to.fill(1.0),
    }
}

/// A JSON file, or an error with its line.
pub(super) fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::at_line(path, e.line() as u64, format!("is not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_that_is_not_finite_is_named_over_all_chunks() {
        let mut values: Vec<f32> = (0..200_000).map(|i| i as f32).collect();
        let widened = |values: &[f32]| {
            let mut to = vec![0.0; values.len()];
            let bad = widen(bytemuck::cast_slice(values), &mut to, f32::from_le_bytes);
            (bad, to)
        };
        assert_eq!(widened(&values), (None, values.clone()));
        values[150_001] = f32::INFINITY;
        values[199_999] = f32::NAN;
        assert_eq!(widened(&values).0, Some(150_001));
        let mut to = [0.0; 3];
        let bytes: Vec<u8> = [1.0, -2.5, f32::INFINITY].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        assert_eq!(widen(&bytes, &mut to, |b| f16::from_le_bytes(b).to_f32()), Some(2));
        assert_eq!(to[..2], [1.0, -2.5]);
    }
}
