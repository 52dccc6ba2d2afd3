//! ModernBERT (Warner et al. 2024): rotary positions, attention that is local in all but every third layer, norms before what
//! they serve, gated feed-forward parts, no biases, a classifier with a dense layer, GELU and a norm.

use super::keys::Keys;
use super::{EncoderConfig, ModuleNames, Positions, Read, RotaryLayer};
use crate::error::Result;
use crate::nn::embeddings::EmbeddingNames;
use crate::nn::layer_shape::{LayerForm, LayerNames, LayerShape};
use crate::nn::pooling::{Pooling, PoolingNorm};
use crate::ops::embedding::EmbeddingShape;

/// Reads a ModernBERT `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    let (attention_dropout, eps) = (keys.rate("attention_dropout", 0.0)?, keys.epsilon("norm_eps", 1e-5)?);
    let form = LayerForm {
        pre_norm: true,
        gated: true,
        inner_dropout: keys.rate("mlp_dropout", 0.0)?,
        attention_bias: keys.get("attention_bias", false)?,
        feed_forward_bias: keys.get("mlp_bias", false)?,
        norm_bias: keys.get("norm_bias", false)?,
        relative: None,
    };
    let layer = LayerShape {
        hidden: keys.size("hidden_size", 768)?,
        heads: keys.size("num_attention_heads", 12)?,
        inner: keys.size("intermediate_size", 1152)?,
        act: keys.activation("hidden_activation", "gelu")?,
        eps,
        hidden_dropout: [attention_dropout, 0.0],
        attention_dropout,
        form,
    };
    keys.heads_fit(&layer, "hidden_size", "num_attention_heads")?;
    if !(layer.hidden / layer.heads).is_multiple_of(2) {
        return Err(keys.wrong("rotary positions need heads of an even width (hidden_size / num_attention_heads)"));
    }
    let layers = keys.layers("num_hidden_layers", 22)?;
    let norm = PoolingNorm { name: "head.norm".into(), eps, bias: layer.form.norm_bias };
    let read = match keys.get("classifier_pooling", "cls".to_owned())?.as_str() {
        "cls" => Read::First,
        "mean" => Read::Mean,
        other => return Err(keys.wrong(format!("classifier_pooling is {other:?}; expected \"cls\" or \"mean\""))),
    };
    Ok(EncoderConfig {
        class: "ModernBert",
        embedding: EmbeddingShape { vocab: keys.size("vocab_size", 50368)?, positions: 0, types: 0, eps },
        embedding_width: layer.hidden,
        embedding_dropout: keys.rate("embedding_dropout", 0.0)?,
        learns_positions: false,
        positions: Positions::WithoutTable(keys.size("max_position_embeddings", 8192)?),
        reads_types: false,
        bias_buckets: None,
        relative: None,
        rotary: rotary(keys, layers)?,
        read,
        pooling: Pooling {
            dense: "head.dense".into(),
            dense_bias: keys.get("classifier_bias", false)?,
            norm: Some(norm),
            act: keys.activation("classifier_activation", "gelu")?.into(),
            dropout: [0.0, keys.rate("classifier_dropout", 0.0)?],
            out: "classifier".into(),
        },
        initializer_range: keys.initializer_range()?,
        names: ModuleNames {
            prefix: "model.",
            embeddings: EmbeddingNames {
                word: "model.embeddings.tok_embeddings.weight".into(),
                position: String::new(),
                token_type: String::new(),
                norm: "model.embeddings.norm".into(),
                projection: None,
            },
            layers: (0..layers).map(|i| layer_names(i, layers)).collect(),
            bias: String::new(),
            relative: None,
        },
        layer,
    })
}

/// Every so many layers one sees the whole row; the others see half of `local_attention` to each side.
fn rotary(keys: Keys<'_>, layers: usize) -> Result<Vec<RotaryLayer>> {
    // The second is how transformers 5 writes bases and scaling.
    for key in ["rope_scaling", "rope_parameters"] {
        if !keys.get(key, serde_json::Value::Null)?.is_null() {
            return Err(
                keys.wrong(format!("{key} is not in this version; it reads global_rope_theta and local_rope_theta"))
            );
        }
    }
    let global = keys.positive("global_rope_theta", 160_000.0)?;
    let local = keys.positive("local_rope_theta", if keys.is_null("local_rope_theta") { global } else { 10_000.0 })?;
    let (every, window) = (keys.size("global_attn_every_n_layers", 3)?, keys.size("local_attention", 128)? / 2);
    let layer = |i: usize| match i % every {
        0 => RotaryLayer { theta: global, window: None },
        _ => RotaryLayer { theta: local, window: Some(window) },
    };
    Ok((0..layers).map(layer).collect())
}

/// The norm behind a layer's sum is the first of the next layer, or the last of all.
fn layer_names(i: usize, layers: usize) -> LayerNames {
    let module = format!("model.layers.{i}");
    let inside = |name: &str| format!("{module}.{name}");
    LayerNames {
        projections: vec![inside("attn.Wqkv")],
        positions: vec![],
        attention_output: inside("attn.Wo"),
        attention_norm: inside("mlp_norm"),
        up: inside("mlp.Wi"),
        down: inside("mlp.Wo"),
        output_norm: if i + 1 == layers {
            "model.final_norm".into()
        } else {
            format!("model.layers.{}.attn_norm", i + 1)
        },
        module,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn layers_alternate_and_what_is_unknown_is_refused() {
        let read = |v: serde_json::Value| config(Keys::new(&v, Path::new("config.json")));
        let c = read(json!({"num_hidden_layers": 5, "local_attention": 9, "local_rope_theta": null})).unwrap();
        let windows: Vec<_> = c.rotary.iter().map(|l| l.window).collect();
        assert_eq!(windows, [None, Some(4), Some(4), None, Some(4)]);
        assert!(c.rotary.iter().all(|l| l.theta == 160_000.0) && c.max_length() == 8192);
        assert_eq!(read(json!({})).unwrap().rotary[1].theta, 10_000.0);
        for (bad, says) in [
            (json!({"classifier_pooling": "max"}), "classifier_pooling is \"max\""),
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_scaling is not"),
            (json!({"rope_parameters": {"rope_theta": 1e4}}), "rope_parameters is not"),
            (json!({"global_rope_theta": 0}), "global_rope_theta is 0"),
            (json!({"hidden_size": 15, "num_attention_heads": 3}), "even width"),
            (json!({"hidden_activation": "mish"}), "hidden_activation \"mish\""),
            (json!({"norm_eps": -1.0}), "norm_eps is -1"),
        ] {
            let e = read(bad).unwrap_err().to_string();
            assert!(e.contains(says) && e.starts_with("config.json: "), "{e}");
        }
    }
}
