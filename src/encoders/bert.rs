//! BERT (Devlin et al. 2019) in any language, and the models of its shape (MiniLM, BGE, E5, GTE): config and names.

use super::{EncoderConfig, ModuleNames};
use crate::error::{Error, Result};
use crate::nn::transformer::{LayerNames, LayerShape};
use crate::ops::embedding::EmbeddingShape;
use crate::ops::gelu::Activation;
use serde::Deserialize;
use std::path::Path;

/// The keys of a BERT `config.json` that change the arithmetic; defaults are those of `transformers`' `BertConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    hidden_dropout_prob: f32,
    attention_probs_dropout_prob: f32,
    classifier_dropout: Option<f32>,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    initializer_range: f64,
    layer_norm_eps: f32,
    position_embedding_type: String,
    is_decoder: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".into(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            position_embedding_type: "absolute".into(),
            is_decoder: false,
        }
    }
}

/// Reads a BERT `config.json`.
pub fn config(json: &serde_json::Value, file: &Path) -> Result<EncoderConfig> {
    let c: Config = serde_json::from_value(json.clone()).map_err(|e| Error::in_file(file, e.to_string()))?;
    let wrong = |message: String| Err(Error::in_file(file, message));
    let Some(act) = Activation::parse(&c.hidden_act) else {
        return wrong(format!("hidden_act {:?} is not in this version; gelu, gelu_new and relu are", c.hidden_act));
    };
    if c.position_embedding_type != "absolute" || c.is_decoder {
        return wrong("only encoders with absolute position embeddings are in this version".into());
    }
    // The limits keep products of sizes far from overflow and the list of parameters short; real configs stay orders of
    // magnitude below them.
    let (most, most_layers) = (1 << 24, 1 << 10);
    let sizes = [
        ("vocab_size", c.vocab_size, most),
        ("hidden_size", c.hidden_size, most),
        ("num_hidden_layers", c.num_hidden_layers, most_layers),
        ("num_attention_heads", c.num_attention_heads, most),
        ("intermediate_size", c.intermediate_size, most),
        ("max_position_embeddings", c.max_position_embeddings, most),
        ("type_vocab_size", c.type_vocab_size, most),
    ];
    if let Some((key, value, most)) = sizes.into_iter().find(|(_, value, most)| *value == 0 || value > most) {
        return wrong(format!("{key} is {value}; expected 1 to {most}"));
    }
    if !c.hidden_size.is_multiple_of(c.num_attention_heads) {
        return wrong(format!(
            "hidden_size {} is not a multiple of num_attention_heads {}",
            c.hidden_size, c.num_attention_heads
        ));
    }
    let head_dropout = c.classifier_dropout.unwrap_or(c.hidden_dropout_prob);
    for (key, p) in [
        ("hidden_dropout_prob", c.hidden_dropout_prob),
        ("attention_probs_dropout_prob", c.attention_probs_dropout_prob),
        ("classifier_dropout", head_dropout),
    ] {
        if !(0.0..1.0).contains(&p) {
            return wrong(format!("{key} is {p}; expected 0 or more and below 1"));
        }
    }
    if !(c.initializer_range > 0.0 && c.initializer_range.is_finite() && c.layer_norm_eps >= 0.0) {
        return wrong("initializer_range must be above 0 and layer_norm_eps not negative".into());
    }
    Ok(EncoderConfig {
        embedding: EmbeddingShape {
            vocab: c.vocab_size,
            positions: c.max_position_embeddings,
            types: c.type_vocab_size,
            eps: c.layer_norm_eps,
        },
        layers: c.num_hidden_layers,
        layer: LayerShape {
            hidden: c.hidden_size,
            heads: c.num_attention_heads,
            inner: c.intermediate_size,
            act,
            eps: c.layer_norm_eps,
            hidden_dropout: c.hidden_dropout_prob,
            attention_dropout: c.attention_probs_dropout_prob,
        },
        head_dropout,
        initializer_range: c.initializer_range,
        names: ModuleNames {
            prefix: "bert.",
            word: "bert.embeddings.word_embeddings.weight".into(),
            position: "bert.embeddings.position_embeddings.weight".into(),
            token_type: "bert.embeddings.token_type_embeddings.weight".into(),
            embedding_norm: "bert.embeddings.LayerNorm".into(),
            pooler: "bert.pooler.dense".into(),
            layer: layer_names,
        },
    })
}

fn layer_names(i: usize) -> LayerNames {
    let module = |name: &str| format!("bert.encoder.layer.{i}.{name}");
    LayerNames {
        query: module("attention.self.query"),
        key: module("attention.self.key"),
        value: module("attention.self.value"),
        attention_output: module("attention.output.dense"),
        attention_norm: module("attention.output.LayerNorm"),
        up: module("intermediate.dense"),
        down: module("output.dense"),
        output_norm: module("output.LayerNorm"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_sizes_and_refuses_what_it_cannot_do() {
        let read = |v: serde_json::Value| config(&v, Path::new("config.json"));
        let c = read(json!({"hidden_size": 24, "num_attention_heads": 4, "classifier_dropout": 0.3})).unwrap();
        assert_eq!((c.layer.hidden, c.layer.inner, c.head_dropout), (24, 3072, 0.3));
        for (bad, says) in [
            (json!({"hidden_size": 25, "num_attention_heads": 4}), "not a multiple"),
            (json!({"hidden_act": "silu"}), "hidden_act"),
            (json!({"position_embedding_type": "relative_key"}), "absolute"),
            (json!({"hidden_dropout_prob": 1.5}), "hidden_dropout_prob"),
            (json!({"vocab_size": 0}), "vocab_size"),
            (json!({"vocab_size": "many"}), "invalid type"),
            (json!({"num_hidden_layers": -1}), "invalid value"),
        ] {
            let e = read(bad).unwrap_err().to_string();
            assert!(e.contains(says) && e.starts_with("config.json: "), "{e}");
        }
    }
}
