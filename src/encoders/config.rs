//! What all families' configs come to.

use super::keys::Keys;
use super::{FAMILIES, albert, bert, deberta_v2, distilbert, electra, modernbert, mpnet, roberta};
use crate::data::Batch;
use crate::data::config::TaskKind;
use crate::error::Result;
use crate::nn::embeddings::EmbeddingNames;
use crate::nn::layer_shape::{LayerNames, LayerShape};
use crate::nn::pooling::Pooling;
use crate::nn::relative::{RelativeNames, RelativeShape};
use crate::ops::embedding::EmbeddingShape;
use std::borrow::Cow;
use std::path::Path;

/// What a family's `config.json` says, in terms that all families share.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// How the family's classes in `transformers` begin: `Bert` of `BertForSequenceClassification`.
    pub class: &'static str,
    pub embedding: EmbeddingShape,
    /// Width of the embedding tables; where it is not the layers', they are projected.
    pub embedding_width: usize,
    /// Whether the norm of the embeddings stands behind that projection.
    pub norms_projected: bool,
    pub embedding_dropout: f32,
    /// Whether the table of positions learns.
    pub learns_positions: bool,
    pub positions: Positions,
    /// Whether the tokenizer's type ids are read; without, every token is of type 0.
    pub reads_types: bool,
    pub layer: LayerShape,
    /// Rows of the table of an attention bias by distance, where there is one.
    pub bias_buckets: Option<usize>,
    /// Embeddings of relative positions, where the layers attend by them.
    pub relative: Option<RelativeShape>,
    /// How each layer turns and limits its attention, from the first to the last, where the family does.
    pub rotary: Vec<RotaryLayer>,
    /// What a head for whole rows reads.
    pub read: Read,
    pub pooling: Pooling,
    /// A head for tokens.
    pub token_head: Pooling,
    /// That for the ends of answers.
    pub span_head: Pooling,
    pub initializer: Initializer,
    pub names: ModuleNames,
}

/// A layer's attention with rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryLayer {
    /// The base of the angles.
    pub theta: f64,
    /// How far from a query it sees keys, if not everywhere.
    pub window: Option<usize>,
}

/// How weights that a checkpoint lacks are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Initializer {
    /// Standard deviation.
    pub std: f64,
    /// Of parameters whose names end so, another one.
    pub others: Vec<(&'static str, f64)>,
    /// What lies further out, in standard deviations, is drawn again.
    pub cutoff: f64,
}

impl Initializer {
    /// N(0, std²) for all.
    pub fn normal(std: f64) -> Self {
        Self { std, others: vec![], cutoff: f64::INFINITY }
    }

    /// The standard deviation of a parameter.
    pub fn std_of(&self, name: &str) -> f64 {
        self.others.iter().find(|(end, _)| name.ends_with(end)).map_or(self.std, |(_, std)| *std)
    }
}

/// The checkpoint names of an encoder's parts.
#[derive(Debug, Clone)]
pub struct ModuleNames {
    /// What checkpoints of the bare encoder leave out.
    pub prefix: &'static str,
    pub embeddings: EmbeddingNames,
    /// From the first layer to the last; layers of the same names share their parameters.
    pub layers: Vec<LayerNames>,
    /// The table of the attention bias, where there is one.
    pub bias: String,
    /// The embeddings of relative positions, where there are such.
    pub relative: Option<RelativeNames>,
}

/// How the tokens of a row are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// 0, 1, 2, …
    FromZero,
    /// From the number after this id on. Tokens of this id get it as their number and do not count (fairseq's
    /// `make_positions`).
    AfterPadding(u32),
    /// 0, 1, 2, …, without a table; the model was made for so many.
    WithoutTable(usize),
}

impl Positions {
    /// # Errors
    /// When the table leaves no position for a token.
    pub(super) fn after_padding(keys: Keys<'_>, shape: &EmbeddingShape, padding: u32) -> Result<Self> {
        if (padding as usize) < shape.positions - 1 {
            return Ok(Self::AfterPadding(padding));
        }
        let n = shape.positions;
        Err(keys.wrong(format!("max_position_embeddings {n} leaves no position behind pad_token_id {padding}")))
    }

    pub(super) fn of(self, batch: &Batch) -> Cow<'_, [u32]> {
        let Self::AfterPadding(padding) = self else { return Cow::Borrowed(&batch.positions) };
        let row = |w: &[u32]| {
            let numbered = batch.ids[w[0] as usize..w[1] as usize].iter().scan(padding, move |last, &id| {
                *last += u32::from(id != padding);
                Some(if id == padding { padding } else { *last })
            });
            numbered.collect::<Vec<_>>()
        };
        batch.cu_seqlens.windows(2).flat_map(row).collect()
    }
}

impl EncoderConfig {
    /// Reads a model directory's `config.json`.
    pub fn from_json(json: &serde_json::Value, file: &Path) -> Result<Self> {
        let keys = Keys::new(json, file);
        match json.get("model_type").and_then(|v| v.as_str()) {
            Some("bert") => bert::config(keys),
            Some("roberta") => roberta::config(keys, "Roberta"),
            Some("xlm-roberta") => roberta::config(keys, "XLMRoberta"),
            Some("camembert") => roberta::config(keys, "Camembert"),
            Some("distilbert") => distilbert::config(keys),
            Some("electra") => electra::config(keys),
            Some("albert") => albert::config(keys),
            Some("mpnet") => mpnet::config(keys),
            Some("modernbert") => modernbert::config(keys),
            Some("deberta-v2") => deberta_v2::config(keys),
            Some(other) => Err(keys.wrong(format!(
                "model_type {other:?} is not supported by this version; supported: {}",
                FAMILIES.join(", ")
            ))),
            None => Err(keys.wrong(format!("no model_type; supported: {}", FAMILIES.join(", ")))),
        }
    }

    /// Tokens a row may have.
    pub fn max_length(&self) -> usize {
        match self.positions {
            Positions::FromZero => self.embedding.positions,
            Positions::AfterPadding(padding) => self.embedding.positions - 1 - padding as usize,
            Positions::WithoutTable(positions) => positions,
        }
    }

    /// How many type ids the tokenizer may give: any where they are not read.
    pub fn type_ids(&self) -> usize {
        if self.reads_types { self.embedding.types } else { usize::MAX }
    }

    /// How a task's head reads hidden states, and which.
    pub fn head(&self, task: TaskKind) -> (&Pooling, Read) {
        match task {
            TaskKind::Tokens => (&self.token_head, Read::All),
            TaskKind::Span => (&self.span_head, Read::All),
            TaskKind::Classification | TaskKind::Multilabel | TaskKind::Regression => (&self.pooling, self.read),
        }
    }

    /// Whether any dropout is live in training.
    pub fn has_dropout(&self) -> bool {
        let alone = [self.embedding_dropout, self.layer.attention_dropout, self.layer.form.inner_dropout];
        alone.iter().chain(&self.layer.hidden_dropout).chain(&self.pooling.dropout).any(|p| *p > 0.0)
    }

    /// Whether a parameter's gradient is zero in exact arithmetic: softmax does not see what a key bias adds to all scores of
    /// a query, be it a key of content or of positions. Where queries of positions meet the content's keys, it does.
    pub fn is_without_gradient(&self, name: &str) -> bool {
        let Some(module) = name.strip_suffix(".bias") else { return false };
        let relative = self.layer.form.relative;
        let key = |l: &LayerNames| l.key() == Some(module) && relative.is_none_or(|r| !r.position_to_content);
        let position = |l: &LayerNames| {
            relative.is_some_and(|r| r.content_to_position) && l.positions.last().is_some_and(|p| p == module)
        };
        self.names.layers.iter().any(|l| key(l) || position(l))
    }
}

/// Which hidden states a head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// The first of each row (`[CLS]`).
    First,
    /// The mean of each row's.
    Mean,
    /// All of them.
    All,
}

impl Read {
    /// Of how many tokens the last layer's output is needed.
    pub(super) fn queries(self, tokens: usize, rows: usize) -> usize {
        if self == Self::First { rows } else { tokens }
    }
}
