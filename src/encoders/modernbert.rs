//! ModernBERT (Warner et al. 2024): rotary positions, attention that is local in all but every third layer, norms before what
//! they serve, gated feed-forward parts, no biases, a classifier with a dense layer, GELU and a norm.

use super::keys::Keys;
use super::{EncoderConfig, Initializer, ModuleNames, Positions, Read, RotaryLayer};
use crate::error::Result;
use crate::nn::embeddings::EmbeddingNames;
use crate::nn::layer_shape::{LayerForm, LayerNames, LayerShape};
use crate::nn::pooling::{Pooling, PoolingNorm};
use crate::ops::embedding::EmbeddingShape;
use serde_json::Value;

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
        convolution: None,
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
    let pooling = Pooling {
        dense: Some("head.dense".into()),
        dense_bias: keys.get("classifier_bias", false)?,
        norm: Some(norm),
        act: keys.activation("classifier_activation", "gelu")?.into(),
        dropout: [0.0, keys.rate("classifier_dropout", 0.0)?],
        out: "classifier".into(),
    };
    Ok(EncoderConfig {
        class: "ModernBert",
        embedding: EmbeddingShape { vocab: keys.size("vocab_size", 50368)?, positions: 0, types: 0, eps },
        embedding_width: layer.hidden,
        embedding_dropout: keys.rate("embedding_dropout", 0.0)?,
        norms_projected: false,
        learns_positions: false,
        positions: Positions::WithoutTable(keys.size("max_position_embeddings", 8192)?),
        reads_types: false,
        bias_buckets: None,
        relative: None,
        rotary: rotary(keys, layers)?,
        read,
        token_head: pooling.clone(),
        span_head: pooling.clone(),
        pooling,
        initializer: initializer(keys, layer.hidden, layers)?,
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

/// As `ModernBertPreTrainedModel._init_weights`: what a residual sum or the classifier reads is scaled, and all is cut off.
fn initializer(keys: Keys<'_>, hidden: usize, layers: usize) -> Result<Initializer> {
    let (std, cutoff) = (keys.initializer_range()?, "initializer_cutoff_factor");
    let factor = keys.get(cutoff, if keys.is_null(cutoff) { 3.0 } else { 2.0 })?;
    if !(LEAST_CUTOFF..f64::INFINITY).contains(&factor) {
        return Err(keys.wrong(format!("{cutoff} is {factor}; expected a number from {LEAST_CUTOFF} on")));
    }
    let out = std / (2.0 * layers as f64).sqrt();
    let others =
        vec![(".Wo.weight", out), ("head.dense.weight", out), ("classifier.weight", (hidden as f64).powf(-0.5))];
    Ok(Initializer { std, others, cutoff: factor })
}

/// With less, too many draws would have to be drawn again.
const LEAST_CUTOFF: f64 = 0.1;

/// The kinds of attention, as `layer_types` and `rope_parameters` of `transformers` 5 call them.
const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";

/// Every so many layers one sees the whole row, or those that `layer_types` says; the others see half of `local_attention` to
/// each side.
fn rotary(keys: Keys<'_>, layers: usize) -> Result<Vec<RotaryLayer>> {
    unscaled(keys, "rope_scaling", &keys.get("rope_scaling", Value::Null)?)?;
    let global = theta(keys, GLOBAL, keys.positive("global_rope_theta", 160_000.0)?)?;
    let local = keys.positive("local_rope_theta", if keys.is_null("local_rope_theta") { global } else { 10_000.0 })?;
    let local = theta(keys, LOCAL, local)?;
    let (every, window) = (keys.size("global_attn_every_n_layers", 3)?, keys.size("local_attention", 128)? / 2);
    let kind = |i: usize| if i.is_multiple_of(every) { GLOBAL } else { LOCAL };
    let kinds: Vec<String> = keys.get("layer_types", (0..layers).map(|i| kind(i).to_owned()).collect())?;
    if kinds.len() != layers {
        return Err(keys.wrong(format!("layer_types has {} entries, but num_hidden_layers is {layers}", kinds.len())));
    }
    let layer = |kind: &String| match kind.as_str() {
        GLOBAL => Ok(RotaryLayer { theta: global, window: None }),
        LOCAL => Ok(RotaryLayer { theta: local, window: Some(window) }),
        other => Err(keys.wrong(format!("layer_types has {other:?}; expected \"{GLOBAL}\" or \"{LOCAL}\""))),
    };
    kinds.iter().map(layer).collect()
}

/// The base for a kind of attention: that of `rope_parameters`, where `transformers` 5 keeps it, else the one given.
fn theta(keys: Keys<'_>, kind: &str, otherwise: f64) -> Result<f64> {
    let all = keys.get("rope_parameters", Value::Null)?;
    let key = format!("rope_parameters.{kind}");
    if let Some(all) = all.as_object().filter(|all| !all.contains_key(GLOBAL) && !all.contains_key(LOCAL)) {
        let found = all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(keys.wrong(format!("rope_parameters has {found}; expected {GLOBAL} and {LOCAL}")));
    }
    unscaled(keys, &key, &all[kind])?;
    match &all[kind]["rope_theta"] {
        Value::Null => Ok(otherwise),
        value => {
            let theta = value.as_f64().filter(|theta| *theta > 0.0 && theta.is_finite());
            theta.ok_or_else(|| keys.wrong(format!("{key}.rope_theta is {value}; expected a number above 0")))
        }
    }
}

/// # Errors
/// When rotary positions are stretched in some way.
fn unscaled(keys: Keys<'_>, key: &str, rope: &Value) -> Result<()> {
    let of = |name: &str| rope.get(name).filter(|v| !v.is_null());
    match of("rope_type").or(of("type")) {
        _ if rope.is_null() => Ok(()),
        None if rope.is_object() && of("factor").is_none() => Ok(()),
        Some(kind) if kind == "default" => Ok(()),
        _ => {
            Err(keys.wrong(format!("{key} is {rope}; this version has rotary positions of rope_type \"default\" only")))
        }
    }
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
        convolution: None,
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
            (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_scaling is {"),
            (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling is {"),
            (
                json!({"rope_parameters": {"rope_theta": 1e4}}),
                "rope_parameters has rope_theta; expected full_attention",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}),
                "rope_parameters.full_attention is {",
            ),
            (json!({"rope_parameters": {"sliding_attention": {"rope_theta": "x"}}}), "rope_theta is \"x\""),
            (json!({"num_hidden_layers": 2, "layer_types": ["full_attention"]}), "layer_types has 1 entries"),
            (json!({"num_hidden_layers": 1, "layer_types": ["chunked"]}), "layer_types has \"chunked\""),
            (json!({"initializer_cutoff_factor": 0.0}), "initializer_cutoff_factor is 0"),
            (json!({"global_rope_theta": 0}), "global_rope_theta is 0"),
            (json!({"hidden_size": 15, "num_attention_heads": 3}), "even width"),
            (json!({"hidden_activation": "mish"}), "hidden_activation \"mish\""),
            (json!({"norm_eps": -1.0}), "norm_eps is -1"),
        ] {
            let e = read(bad).unwrap_err().to_string();
            assert!(e.contains(says) && e.starts_with("config.json: "), "{e}");
        }
    }

    /// What transformers 5 writes for the model that 4 wrote otherwise.
    #[test]
    fn a_config_of_transformers_5_is_the_same_model() {
        let read = |v: Value| config(Keys::new(&v, Path::new("config.json"))).unwrap();
        let old = read(
            json!({"num_hidden_layers": 5, "global_rope_theta": 8e4, "local_rope_theta": 2e4, "rope_scaling": null}),
        );
        let kinds: Vec<_> = [0, 1, 1, 0, 1].map(|kind| [GLOBAL, LOCAL][kind]).to_vec();
        let rope = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
        let new = read(json!({
            "num_hidden_layers": 5,
            "layer_types": kinds,
            "rope_parameters": {"full_attention": rope(8e4), "sliding_attention": rope(2e4)},
        }));
        assert_eq!(new.rotary, old.rotary);
        let bare =
            read(json!({"num_hidden_layers": 5, "rope_parameters": {"full_attention": {"rope_type": "default"}}}));
        assert_eq!(bare.rotary, read(json!({"num_hidden_layers": 5, "rope_scaling": {"rope_type": "default"}})).rotary);
        let other = read(json!({"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}));
        assert_eq!(other.rotary.iter().map(|l| l.window).collect::<Vec<_>>(), [Some(64), None]);
    }

    #[test]
    fn new_weights_are_scaled_by_what_reads_them() {
        let c = config(Keys::new(
            &json!({"num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4}),
            Path::new("config.json"),
        ))
        .unwrap();
        let std = |name: &str| c.initializer.std_of(name);
        assert_eq!(["model.embeddings.tok_embeddings.weight", "model.layers.1.mlp.Wi.weight"].map(std), [0.02; 2]);
        assert_eq!(
            ["model.layers.1.mlp.Wo.weight", "model.layers.0.attn.Wo.weight", "head.dense.weight"].map(std),
            [0.005; 3]
        );
        assert_eq!((std("classifier.weight"), c.initializer.cutoff), (0.125, 2.0));
    }
}
