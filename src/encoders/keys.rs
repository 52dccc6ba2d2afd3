//! The keys of a `config.json`, each with the default that `transformers` gives it, read and checked one by one.

use crate::error::{Error, Result};
use crate::nn::layer_shape::{LayerForm, LayerShape};
use crate::ops::embedding::EmbeddingShape;
use crate::ops::gelu::Activation;
use serde::de::DeserializeOwned;
use std::path::Path;

/// The limits keep products of sizes far from overflow and the list of parameters short; real configs stay orders of
/// magnitude below them.
const MOST: usize = 1 << 24;
const MOST_LAYERS: usize = 1 << 10;

/// A family's `config.json`.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    json: &'a serde_json::Value,
    file: &'a Path,
}

/// What a family's layers have by default; the rest is the same in all.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub hidden: usize,
    pub heads: usize,
    pub inner: usize,
    pub act: &'static str,
    pub dropout: f32,
    pub vocab: usize,
}

impl Defaults {
    /// Of the base size.
    pub const BASE: Self = Self { hidden: 768, heads: 12, inner: 3072, act: "gelu", dropout: 0.1, vocab: 30522 };
}

impl<'a> Keys<'a> {
    pub fn new(json: &'a serde_json::Value, file: &'a Path) -> Self {
        Self { json, file }
    }

    /// An error about this file.
    pub fn wrong(&self, message: impl Into<String>) -> Error {
        Error::in_file(self.file, message.into())
    }

    /// The value of a key; the default where it is absent or null.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        match self.json.get(key) {
            None | Some(serde_json::Value::Null) => Ok(default),
            Some(value) => serde_json::from_value(value.clone()).map_err(|e| self.wrong(format!("{key}: {e}"))),
        }
    }

    /// A size: 1 to 2²⁴.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        self.up_to(MOST, key, default)
    }

    /// A size that may be 0: of what is not there then.
    pub fn size_or_none(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key, default)? == 0 { Ok(0) } else { self.size(key, default) }
    }

    /// A number of layers: 1 to 1024.
    pub fn layers(&self, key: &str, default: usize) -> Result<usize> {
        self.up_to(MOST_LAYERS, key, default)
    }

    fn up_to(&self, most: usize, key: &str, default: usize) -> Result<usize> {
        let value = self.get(key, default)?;
        if value == 0 || value > most {
            return Err(self.wrong(format!("{key} is {value}; expected 1 to {most}")));
        }
        Ok(value)
    }

    /// A dropout rate: 0 or more and below 1.
    pub fn rate(&self, key: &str, default: f32) -> Result<f32> {
        let p = self.get(key, default)?;
        if !(0.0..1.0).contains(&p) {
            return Err(self.wrong(format!("{key} is {p}; expected 0 or more and below 1")));
        }
        Ok(p)
    }

    /// The feed-forward activation.
    pub fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name = self.get(key, default.to_owned())?;
        Activation::parse(&name).ok_or_else(|| {
            let names = Activation::NAMES.map(|(name, _)| name).join(", ");
            self.wrong(format!("{key} {name:?} is not in this version; it has {names}"))
        })
    }

    /// A layer norm's epsilon.
    pub fn epsilon(&self, key: &str, default: f32) -> Result<f32> {
        let eps = self.get(key, default)?;
        if eps >= 0.0 { Ok(eps) } else { Err(self.wrong(format!("{key} is {eps}; expected 0 or more"))) }
    }

    /// Whether a key is there and says null.
    pub fn is_null(&self, key: &str) -> bool {
        self.json.get(key).is_some_and(serde_json::Value::is_null)
    }

    /// A number above 0.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        let value = self.get(key, default)?;
        if value > 0.0 && value < f64::INFINITY {
            return Ok(value);
        }
        Err(self.wrong(format!("{key} is {value}; expected a number above 0")))
    }

    /// The standard deviation of new weights.
    pub fn initializer_range(&self) -> Result<f64> {
        self.positive("initializer_range", 0.02)
    }

    /// The layers of families that name their keys as BERT does.
    pub fn layer(&self, d: &Defaults) -> Result<LayerShape> {
        if self.get("position_embedding_type", "absolute".to_owned())? != "absolute" || self.get("is_decoder", false)? {
            return Err(self.wrong("only encoders with absolute position embeddings are in this version"));
        }
        let shape = LayerShape {
            hidden: self.size("hidden_size", d.hidden)?,
            heads: self.size("num_attention_heads", d.heads)?,
            inner: self.size("intermediate_size", d.inner)?,
            act: self.activation("hidden_act", d.act)?,
            eps: self.epsilon("layer_norm_eps", 1e-12)?,
            hidden_dropout: [self.rate("hidden_dropout_prob", d.dropout)?; 2],
            attention_dropout: self.rate("attention_probs_dropout_prob", d.dropout)?,
            form: LayerForm::POST_NORM,
        };
        self.heads_fit(&shape, "hidden_size", "num_attention_heads")?;
        Ok(shape)
    }

    /// # Errors
    /// When the heads cannot share the width evenly.
    pub fn heads_fit(&self, shape: &LayerShape, width: &str, heads: &str) -> Result<()> {
        if shape.hidden.is_multiple_of(shape.heads) {
            return Ok(());
        }
        Err(self.wrong(format!("{width} {} is not a multiple of {heads} {}", shape.hidden, shape.heads)))
    }

    /// The embedding tables; `types` without token types is 0.
    pub fn tables(&self, vocab: usize, types: usize, eps: f32) -> Result<EmbeddingShape> {
        let (vocab, positions) = (self.size("vocab_size", vocab)?, self.size("max_position_embeddings", 512)?);
        Ok(EmbeddingShape { vocab, positions, types, eps })
    }
}
