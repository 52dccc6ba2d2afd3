//! BERT (Devlin et al. 2019) in any language, and the models of its shape (MiniLM, BGE, E5, GTE): config and names. Other
//! families begin with it and say where they differ.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, Initializer, ModuleNames, Positions, Read};
use crate::error::Result;
use crate::nn::embeddings::EmbeddingNames;
use crate::nn::layer_shape::LayerNames;
use crate::nn::pooling::Pooling;

/// Reads a BERT `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    shaped(keys, "bert.", &Defaults::BASE)
}

/// An encoder of BERT's shape whose names begin with `prefix`.
pub(super) fn shaped(keys: Keys<'_>, prefix: &'static str, defaults: &Defaults) -> Result<EncoderConfig> {
    let layer = keys.layer(defaults)?;
    let dropout = layer.hidden_dropout[0];
    let (layers, types) = (keys.layers("num_hidden_layers", 12)?, keys.size_or_none("type_vocab_size", 2)?);
    let head_dropout = keys.rate("classifier_dropout", dropout)?;
    Ok(EncoderConfig {
        class: "Bert",
        embedding: keys.tables(defaults.vocab, types, layer.eps)?,
        embedding_width: layer.hidden,
        norms_projected: false,
        embedding_dropout: dropout,
        learns_positions: true,
        positions: Positions::FromZero,
        reads_types: types > 0,
        layer,
        bias_buckets: None,
        relative: None,
        rotary: vec![],
        read: Read::First,
        pooling: Pooling::of_pooler(format!("{prefix}pooler.dense"), head_dropout),
        token_head: Pooling::of_tokens(head_dropout),
        span_head: Pooling::of_spans(0.0),
        initializer: Initializer::normal(keys.initializer_range()?),
        names: ModuleNames {
            prefix,
            embeddings: embedding_names(prefix),
            layers: (0..layers).map(|i| layer_names(&format!("{prefix}encoder.layer.{i}"))).collect(),
            bias: String::new(),
            relative: None,
        },
    })
}

pub(super) fn embedding_names(prefix: &str) -> EmbeddingNames {
    let module = |name: &str| format!("{prefix}embeddings.{name}");
    EmbeddingNames {
        word: module("word_embeddings.weight"),
        position: module("position_embeddings.weight"),
        token_type: module("token_type_embeddings.weight"),
        norm: module("LayerNorm"),
        projection: None,
    }
}

fn layer_names(layer: &str) -> LayerNames {
    LayerNames::new(
        layer,
        ["attention.self.query", "attention.self.key", "attention.self.value"],
        ["attention.output.dense", "attention.output.LayerNorm"],
        ["intermediate.dense", "output.dense", "output.LayerNorm"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn reads_sizes_and_refuses_what_it_cannot_do() {
        let read = |v: serde_json::Value| config(Keys::new(&v, Path::new("config.json")));
        let c = read(json!({"hidden_size": 24, "num_attention_heads": 4, "classifier_dropout": 0.3})).unwrap();
        assert_eq!((c.layer.hidden, c.layer.inner, c.pooling.dropout), (24, 3072, [0.0, 0.3]));
        for (bad, says) in [
            (json!({"hidden_size": 25, "num_attention_heads": 4}), "not a multiple"),
            (json!({"hidden_act": "mish"}), "hidden_act \"mish\" is not in this version; it has gelu, "),
            (json!({"position_embedding_type": "relative_key"}), "absolute"),
            (json!({"hidden_dropout_prob": 1.5}), "hidden_dropout_prob"),
            (json!({"initializer_range": 0}), "initializer_range"),
            (json!({"layer_norm_eps": -1}), "layer_norm_eps"),
            (json!({"vocab_size": 0}), "vocab_size"),
            (json!({"vocab_size": "many"}), "vocab_size: invalid type"),
            (json!({"num_hidden_layers": -1}), "num_hidden_layers: invalid value"),
        ] {
            let e = read(bad).unwrap_err().to_string();
            assert!(e.contains(says) && e.starts_with("config.json: "), "{e}");
        }
    }
}
