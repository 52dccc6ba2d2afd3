//! ALBERT (Lan et al. 2020): layers that share their parameters, embeddings of a width of their own, no dropout on the
//! feed-forward part.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, bert};
use crate::error::Result;
use crate::nn::layer_shape::LayerNames;
use crate::nn::pooling::Pooling;

/// Reads an ALBERT `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    let (hidden, heads, inner) = (4096, 64, 16384);
    let defaults = Defaults { hidden, heads, inner, act: "gelu_new", dropout: 0.0, vocab: 30000 };
    let mut base = bert::shaped(keys, "albert.", &defaults)?;
    let (passes, groups) = (base.names.layers.len(), keys.layers("num_hidden_groups", 1)?);
    let inner = keys.layers("inner_group_num", 1)?;
    if groups > passes || inner * passes > 1024 {
        let message = format!("num_hidden_groups {groups} and inner_group_num {inner} do not fit {passes} layers");
        return Err(keys.wrong(message));
    }
    // In floats, as transformers has it: in integers some passes would be of another group.
    let group = |pass: usize| (pass as f64 / (passes as f64 / groups as f64)) as usize;
    let all = (0..passes).flat_map(|pass| (0..inner).map(move |i| layer_names(group(pass), i)));
    base.names.layers = all.collect();
    base.names.embeddings.projection = Some("albert.encoder.embedding_hidden_mapping_in".into());
    base.layer.hidden_dropout[1] = 0.0;
    let head_dropout = keys.rate("classifier_dropout_prob", 0.1)?;
    Ok(EncoderConfig {
        class: "Albert",
        embedding_width: keys.size("embedding_size", 128)?,
        pooling: Pooling::of_pooler("albert.pooler".into(), head_dropout),
        token_head: Pooling::of_tokens(head_dropout),
        ..base
    })
}

fn layer_names(group: usize, i: usize) -> LayerNames {
    LayerNames::new(
        &format!("albert.encoder.albert_layer_groups.{group}.albert_layers.{i}"),
        ["attention.query", "attention.key", "attention.value"],
        ["attention.dense", "attention.LayerNorm"],
        ["ffn", "ffn_output", "full_layer_layer_norm"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn layers_share_their_group() {
        let read = |passes: usize, groups: usize, inner: usize| {
            let json = json!({"num_hidden_layers": passes, "num_hidden_groups": groups, "inner_group_num": inner});
            config(Keys::new(&json, Path::new("config.json")))
        };
        let modules = |passes, groups, inner| {
            let layers = read(passes, groups, inner).unwrap().names.layers;
            let number = |l: &LayerNames| l.module.chars().filter(char::is_ascii_digit).collect::<String>();
            layers.iter().map(number).collect::<Vec<_>>()
        };
        assert_eq!(modules(3, 1, 1), ["00", "00", "00"]);
        assert_eq!(modules(4, 2, 1), ["00", "00", "10", "10"]);
        // As transformers' int(i / (passes / groups)).
        assert_eq!(modules(3, 2, 2), ["00", "01", "00", "01", "10", "11"]);
        // Where rounding decides: 9 / (18 / 14) is 6.999….
        assert_eq!(modules(18, 14, 1)[9], "60");
        assert!(read(2, 3, 1).unwrap_err().to_string().contains("num_hidden_groups 3"));
    }
}
