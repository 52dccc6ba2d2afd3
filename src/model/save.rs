//! Writing a Hugging Face model directory that `AutoModelForSequenceClassification.from_pretrained`, or that of another task,
//! loads.

use super::checkpoint::read_json;
use super::{Model, Pretrained};
use crate::data::Tokenizer;
use crate::data::config::{Column, DataConfig, Format, TaskKind};
use crate::data::settings::{Columns, Delimiter, Encoding, Pattern};
use crate::data::tagging::scheme::Scheme;
use crate::error::{Error, Result};
use crate::heads::span::SpanDecoding;
use crate::heads::tags::TagDecoding;
use crate::hub::files::{BERTFT_JSON, TOKENIZER_FILES};
use crate::metrics::threshold::Threshold;
use crate::ops::with_values;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// `dir/model` of a run directory, else `dir` itself.
pub fn model_dir(dir: &Path) -> PathBuf {
    let inner = dir.join("model");
    if !dir.join("config.json").is_file() && inner.join("config.json").is_file() { inner } else { dir.into() }
}

/// `bertft.json`: what a model directory of ours says beyond the Hugging Face files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BertftJson {
    pub version: String,
    /// `classification`, `multilabel`, `regression`, `tokens` or `span`.
    pub task: String,
    pub text: Columns,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<Column>,
    pub label: Columns,
    /// What stands between a row's labels, where there are several in one column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_delimiter: Option<String>,
    /// Of tags: the scheme of the files, and what they are converted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_scheme: Option<Scheme>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convert_tags: Option<Scheme>,
    /// How they are found.
    #[serde(default, skip_serializing_if = "TagDecoding::is_argmax")]
    pub tag_decoding: TagDecoding,
    pub header: bool,
    pub max_length: usize,
    /// How the training file was written; the rest as [`DataConfig`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<Delimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quoting: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Pattern>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename_labels: BTreeMap<String, String>,
    /// Of two labels the second is predicted where its probability is this or more; without it, the more probable one. Where a
    /// row may have several labels, each is predicted from this probability on, or from one of its own; without it, from 0.5 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// Of answers: tokens that windows of a long context share, and how answers are read from scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_stride: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_best_size: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answer_length: Option<usize>,
    /// A question has no answer where that scores by more than this above the best piece; without it, every one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null_score_diff_threshold: Option<f64>,
}

impl BertftJson {
    /// What is to be remembered of a run on `data`.
    pub fn new(task: TaskKind, data: &DataConfig) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            task: task.name().into(),
            text: data.text.clone(),
            text_pair: data.text_pair.clone(),
            label: data.label.clone(),
            label_delimiter: data.label_delimiter.clone(),
            tag_scheme: data.tag_scheme,
            convert_tags: data.convert_tags,
            tag_decoding: TagDecoding::default(),
            header: data.header,
            max_length: data.max_length,
            threshold: None,
            doc_stride: data.doc_stride,
            n_best_size: None,
            max_answer_length: None,
            null_score_diff_threshold: None,
            format: data.format_of(data.train.first()),
            join: (data.text.as_slice().len() > 1).then(|| data.join.clone()),
            encoding: data.encoding,
            delimiter: data.delimiter,
            quoting: data.quoting,
            pattern: data.pattern.clone(),
            rename_labels: data.rename_labels.clone(),
        }
    }

    /// With how tags are found.
    pub fn with_tags(self, tag_decoding: TagDecoding) -> Self {
        Self { tag_decoding, ..self }
    }

    /// With how answers are read.
    pub fn with_spans(mut self, decoding: Option<SpanDecoding>) -> Self {
        self.n_best_size = decoding.map(|d| d.n_best_size);
        self.max_answer_length = decoding.map(|d| d.max_answer_length);
        self.null_score_diff_threshold = decoding.and_then(|d| d.null_threshold);
        self
    }

    /// That of a model directory, if it has one.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(BERTFT_JSON);
        if !path.is_file() {
            return Ok(None);
        }
        serde_json::from_value(read_json(&path)?).map(Some).map_err(|e| Error::in_file(&path, e.to_string()))
    }
}

impl BertftJson {
    /// Replaces that of a model directory.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (path, part) = (dir.join(BERTFT_JSON), dir.join("bertft.json.part"));
        write_json(&part, &serde_json::to_value(self).map_err(|e| Error::Failed(e.to_string()))?)?;
        std::fs::rename(&part, &path).map_err(|e| Error::write(path, e))
    }
}

impl Model {
    /// Writes the model as a Hugging Face directory at `dir`, replacing what is there only once all is written. Tokenizer
    /// files come from `source`, the directory that training started from.
    pub fn save(&self, dir: &Path, source: &Pretrained, extra: &BertftJson) -> Result<()> {
        let new = sibling(dir, "new");
        remove(&new)?;
        std::fs::create_dir_all(&new).map_err(|e| Error::write(&new, e))?;
        self.save_weights(&new.join("model.safetensors"))?;
        write_json(&new.join("config.json"), &self.config_json(source))?;
        for name in TOKENIZER_FILES {
            let from = source.dir().join(name);
            if from.is_file() {
                std::fs::copy(&from, new.join(name)).map_err(|e| Error::write(new.join(name), e))?;
            }
        }
        // Made from the vocabulary where the source has none.
        let (_, tokenizer) = Tokenizer::json(source.dir())?;
        std::fs::write(new.join("tokenizer.json"), tokenizer).map_err(|e| Error::write(&new, e))?;
        extra.write(&new)?;
        let card = self.model_card(source, extra);
        std::fs::write(new.join("README.md"), card).map_err(|e| Error::write(new.join("README.md"), e))?;
        let old = sibling(dir, "old");
        remove(&old)?;
        if dir.exists() {
            std::fs::rename(dir, &old).map_err(|e| Error::write(dir, e))?;
        }
        std::fs::rename(&new, dir).map_err(|e| Error::write(dir, e))?;
        remove(&old)
    }

    fn save_weights(&self, path: &Path) -> Result<()> {
        with_values(self.params.weights(), |weights| {
            let mut views = vec![];
            for spec in self.params.specs() {
                let bytes = bytemuck::cast_slice(&weights[spec.range()]);
                let view =
                    TensorView::new(Dtype::F32, spec.shape.clone(), bytes).map_err(|e| Error::Failed(e.to_string()))?;
                views.push((spec.name.clone(), view));
            }
            // `transformers` refuses files whose metadata do not name the framework.
            let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            write_safetensors(views, Some(metadata), path)
        })?
    }

    fn config_json(&self, source: &Pretrained) -> serde_json::Value {
        let mut config = source.json().clone();
        let task = self.task();
        let names: Vec<String> =
            if task.kind == TaskKind::Regression { vec!["LABEL_0".into()] } else { task.labels.clone() };
        let problem = match task.kind {
            TaskKind::Classification => Some("single_label_classification"),
            TaskKind::Multilabel => Some("multi_label_classification"),
            TaskKind::Regression => Some("regression"),
            TaskKind::Tokens | TaskKind::Span => None,
        };
        let id2label: serde_json::Map<_, _> =
            names.iter().enumerate().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let label2id: serde_json::Map<_, _> = names.iter().enumerate().map(|(i, n)| (n.clone(), json!(i))).collect();
        config["architectures"] = json!([format!("{}{}", source.encoder_config().class, task.kind.class())]);
        config["id2label"] = id2label.into();
        config["label2id"] = label2id.into();
        config["torch_dtype"] = json!("float32");
        if let Some(map) = config.as_object_mut() {
            map.shift_remove("problem_type");
            if task.kind == TaskKind::Span {
                // Without names there are two, which is right.
                for key in ["id2label", "label2id", "num_labels"] {
                    map.shift_remove(key);
                }
            }
            map.extend(problem.map(|problem| ("problem_type".to_owned(), json!(problem))));
            map.shift_remove("dtype"); // the newer name of torch_dtype
            map.shift_remove("_name_or_path");
        }
        config
    }

    fn model_card(&self, source: &Pretrained, extra: &BertftJson) -> String {
        let directory = || source.dir().file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let base = source.hub().map_or_else(directory, |(id, _)| id.to_owned());
        let base_model = source.hub().map_or_else(String::new, |(id, _)| format!("base_model: {id}\n"));
        let what = match self.task().kind {
            TaskKind::Classification => format!("one of {} labels", self.task().labels.len()),
            TaskKind::Multilabel => format!("which of {} labels apply", self.task().labels.len()),
            TaskKind::Tokens => format!("one of {} tags for each word", self.task().labels.len()),
            TaskKind::Regression => "a number".into(),
            TaskKind::Span => "the piece that answers a question".into(),
        };
        let kind = if extra.text_pair.is_some() { "a pair of texts" } else { "a text" };
        let (name, pipeline) = match self.task().kind {
            TaskKind::Tokens => ("Tagger", "token-classification"),
            TaskKind::Span => ("Reader", "question-answering"),
            TaskKind::Regression => ("Regressor", "text-classification"),
            _ => ("Classifier", "text-classification"),
        };
        let class = self.task().kind.class();
        format!(
            "---\n{base_model}library_name: transformers\npipeline_tag: {pipeline}\ntags:\n- bertft\n---\n\n# {name} of {base}\n\n\
             Fine-tuned with bertft {}: predicts {what} for {kind} of up to {} tokens.\n\n\
             ```python\nfrom transformers import AutoModel{class}, AutoTokenizer\n\n\
             model = AutoModel{class}.from_pretrained(\".\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\".\")\n```\n\n\
             ```sh\nbertft predict --model . texts.txt\n```\n",
            extra.version, extra.max_length
        )
    }
}

/// `dir` with a suffix, beside it.
fn sibling(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// Writes a safetensors file that others may read as they may any new file (the crate makes it private to the owner).
pub(crate) fn write_safetensors(
    views: Vec<(String, TensorView<'_>)>,
    metadata: Option<HashMap<String, String>>,
    path: &Path,
) -> Result<()> {
    std::fs::write(path, []).map_err(|e| Error::write(path, e))?;
    let permissions = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.permissions();
    safetensors::serialize_to_file(views, metadata, path)
        .map_err(|e| Error::Failed(format!("{}: cannot be written: {e}", path.display())))?;
    std::fs::set_permissions(path, permissions).map_err(|e| Error::io(path, e))
}

/// Writes indented JSON with a line end.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Failed(e.to_string()))?;
    std::fs::write(path, text + "\n").map_err(|e| Error::write(path, e))
}
