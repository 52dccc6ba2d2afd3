//! DeBERTa-v2 and -v3 (He et al. 2021, 2023): BERT's layers with attention by relative positions, whose embeddings all layers
//! share, in the largest models of v2 a convolution beside the first layer, and a classifier with a dense layer of its own.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, Positions, bert};
use crate::error::Result;
use crate::nn::convolution::ConvolutionForm;
use crate::nn::layer_shape::LayerNames;
use crate::nn::pooling::{Pooling, PoolingActivation};
use crate::nn::relative::{RelativeForm, RelativeNames, RelativeShape};
use crate::ops::convolution::ConvolutionActivation;
use serde_json::Value;

/// Reads a DeBERTa-v2 `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    let (hidden, heads, inner) = (1536, 24, 6144);
    let defaults = Defaults { hidden, heads, inner, act: "gelu", dropout: 0.1, vocab: 128_100 };
    let mut base = bert::shaped(keys, "deberta.", &defaults)?;
    refuse_variants(keys, base.layer.hidden, base.layer.hidden / base.layer.heads)?;
    let eps = keys.epsilon("layer_norm_eps", 1e-7)?;
    (base.layer.eps, base.embedding.eps) = (eps, eps);
    base.embedding.types = keys.size_or_none("type_vocab_size", 0)?;
    base.reads_types = base.embedding.types > 0;
    let positions = base.embedding.positions;
    if !keys.get("position_biased_input", true)? {
        base.embedding.positions = 0;
        base.positions = Positions::WithoutTable(positions);
        base.learns_positions = false;
    }
    base.names.layers.iter_mut().for_each(|l| *l = layer_names(&l.module));
    if let Some(form) = form(keys)? {
        base.relative = Some(shape(keys, base.layer.hidden, positions, eps)?);
        base.layer.form.relative = Some(form);
        base.names.relative = Some(RelativeNames {
            table: "deberta.encoder.rel_embeddings.weight".into(),
            norm: "deberta.encoder.LayerNorm".into(),
        });
        for layer in base.names.layers.iter_mut().filter(|_| !form.shared) {
            let names = [("pos_query_proj", form.position_to_content), ("pos_key_proj", form.content_to_position)];
            let module = |name| format!("{}.attention.self.{name}", layer.module);
            layer.positions = names.iter().filter(|(_, used)| *used).map(|(name, _)| module(name)).collect();
        }
    }
    if let Some(form) = convolution(keys, base.layer.hidden)? {
        base.layer.form.convolution = Some(form);
        base.names.layers[0].convolution = Some("deberta.encoder.conv".into());
    }
    base.embedding_width = keys.size("embedding_size", base.layer.hidden)?;
    if base.embedding_width != base.layer.hidden {
        base.norms_projected = true;
        base.names.embeddings.projection = Some("deberta.embeddings.embed_proj".into());
    }
    let pooler_act = keys.get("pooler_hidden_act", "gelu".to_owned())?;
    let act = if pooler_act == "tanh" {
        PoolingActivation::Tanh
    } else {
        keys.activation("pooler_hidden_act", "gelu")?.into()
    };
    let dropout = [keys.rate("pooler_dropout", 0.0)?, keys.rate("cls_dropout", base.embedding_dropout)?];
    let pooling = Pooling { act, dropout, ..Pooling::of_pooler("pooler.dense".into(), 0.0) };
    let token_head = Pooling::of_tokens(base.embedding_dropout);
    Ok(EncoderConfig { class: "DebertaV2", pooling, token_head, ..base })
}

/// What published models leave alone and this version cannot compute.
fn refuse_variants(keys: Keys<'_>, hidden: usize, head_dim: usize) -> Result<()> {
    for (key, only) in [("pooler_hidden_size", hidden), ("attention_head_size", head_dim)] {
        let value = keys.size(key, only)?;
        if value != only {
            return Err(keys.wrong(format!("{key} is {value}; this version has models with {only} here only")));
        }
    }
    Ok(())
}

/// How the layers attend by relative positions, if they do.
fn form(keys: Keys<'_>) -> Result<Option<RelativeForm>> {
    let names = match keys.get("pos_att_type", Value::Null)? {
        Value::Null => vec![],
        Value::String(all) => all.to_lowercase().split('|').map(|name| name.trim().to_owned()).collect(),
        list => serde_json::from_value::<Vec<String>>(list)
            .map_err(|_| keys.wrong("pos_att_type is neither a text such as \"p2c|c2p\" nor a list of such"))?,
    };
    if let Some(other) = names.iter().find(|name| !["c2p", "p2c"].contains(&name.as_str())) {
        return Err(keys.wrong(format!("pos_att_type {other:?} is not in this version; it has c2p and p2c")));
    }
    if keys.get("relative_attention", false)? == names.is_empty() {
        return Err(keys.wrong("relative_attention and pos_att_type go together: both or neither"));
    }
    let has = |name: &str| names.iter().any(|n| n == name);
    Ok((!names.is_empty()).then_some(RelativeForm {
        content_to_position: has("c2p"),
        position_to_content: has("p2c"),
        shared: keys.get("share_att_key", false)?,
    }))
}

/// The convolution beside the first layer, if there is one.
fn convolution(keys: Keys<'_>, hidden: usize) -> Result<Option<ConvolutionForm>> {
    let kernel: i64 = keys.get("conv_kernel_size", 0)?;
    if kernel < 1 {
        return Ok(None);
    }
    let (kernel, groups) = (keys.size("conv_kernel_size", 0)?, keys.size("conv_groups", 1)?);
    if kernel > MOST_KERNEL || kernel.is_multiple_of(2) {
        return Err(keys.wrong(format!("conv_kernel_size is {kernel}; expected an odd number up to {MOST_KERNEL}")));
    }
    if !hidden.is_multiple_of(groups) {
        return Err(keys.wrong(format!("hidden_size {hidden} is not a multiple of conv_groups {groups}")));
    }
    let act = if keys.get("conv_act", "tanh".to_owned())? == "tanh" {
        ConvolutionActivation::Tanh
    } else {
        ConvolutionActivation::Of(keys.activation("conv_act", "tanh")?)
    };
    Ok(Some(ConvolutionForm { kernel, groups, act }))
}

/// Published models have 3.
const MOST_KERNEL: usize = 255;

fn shape(keys: Keys<'_>, hidden: usize, positions: usize, eps: f32) -> Result<RelativeShape> {
    // Below 1 stands for the default.
    let or = |key: &str, default: usize| {
        let value: i64 = keys.get(key, -1)?;
        if value < 1 { Ok(default) } else { keys.size(key, 0) }
    };
    let (longest, buckets) = (or("max_relative_positions", positions)?, or("position_buckets", 0)?);
    if buckets == 1 || (buckets > 0 && longest <= buckets / 2 + 1) {
        let message = format!("position_buckets {buckets} does not fit max_relative_positions {longest}");
        return Err(keys.wrong(message + "; expected 2 or more, of which half plus 1 are below it"));
    }
    let norms = keys.get("norm_rel_ebd", "none".to_owned())?.to_lowercase();
    let is_normed = norms.split('|').any(|name| name.trim() == "layer_norm");
    let (span, log) = if buckets > 0 { (buckets, Some(longest)) } else { (longest, None) };
    Ok(RelativeShape { span, log, hidden, norm: is_normed.then_some(eps) })
}

fn layer_names(layer: &str) -> LayerNames {
    LayerNames::new(
        layer,
        ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"],
        ["attention.output.dense", "attention.output.LayerNorm"],
        ["intermediate.dense", "output.dense", "output.LayerNorm"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gelu::Activation;
    use serde_json::json;
    use std::path::Path;

    fn read(v: Value) -> Result<EncoderConfig> {
        config(Keys::new(&v, Path::new("config.json")))
    }

    #[test]
    fn a_published_config_and_the_defaults() {
        let v3 = read(json!({
            "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 2,
            "relative_attention": true, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
            "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1,
            "position_biased_input": false, "pooler_dropout": 0, "pooler_hidden_act": "gelu", "legacy": false,
            "vocab_size": 128100, "type_vocab_size": 0, "pooler_hidden_size": 768, "max_position_embeddings": 512
        }))
        .unwrap();
        assert_eq!(v3.relative, Some(RelativeShape { span: 256, log: Some(512), hidden: 768, norm: Some(1e-7) }));
        assert_eq!((v3.max_length(), v3.embedding.rows(), v3.reads_types), (512, 128_100 + 2, false));
        assert!(v3.names.layers[0].positions.is_empty() && v3.pooling.dropout == [0.0, 0.1]);
        let key = "deberta.encoder.layer.1.attention.self.key_proj.bias";
        assert!(!v3.is_without_gradient(key));

        let c2p = read(json!({"relative_attention": true, "pos_att_type": ["c2p"], "cls_dropout": 0.3})).unwrap();
        assert_eq!(c2p.relative, Some(RelativeShape { span: 512, log: None, hidden: 1536, norm: None }));
        assert_eq!(c2p.names.layers[1].positions, ["deberta.encoder.layer.1.attention.self.pos_key_proj"]);
        assert!(c2p.is_without_gradient(key) && c2p.pooling.dropout == [0.0, 0.3]);
        assert!(c2p.is_without_gradient("deberta.encoder.layer.1.attention.self.pos_key_proj.bias"));
        let xlarge = read(json!({"conv_kernel_size": 3, "conv_act": "gelu", "num_hidden_layers": 2})).unwrap();
        let form = ConvolutionForm { kernel: 3, groups: 1, act: ConvolutionActivation::Of(Activation::Gelu) };
        assert_eq!(xlarge.layer.form.convolution, Some(form));
        assert_eq!(xlarge.names.layers[0].convolution.as_deref(), Some("deberta.encoder.conv"));
        assert!(xlarge.names.layers[1].convolution.is_none() && !xlarge.norms_projected);
        let plain = read(json!({})).unwrap();
        assert!(plain.relative.is_none() && plain.layer.form.relative.is_none() && plain.is_without_gradient(key));
    }

    #[test]
    fn what_is_unknown_is_refused_by_its_key() {
        let positions = |more: Value| {
            let mut all = json!({"relative_attention": true, "pos_att_type": "c2p|p2c"});
            more.as_object().unwrap().iter().for_each(|(k, v)| all[k] = v.clone());
            all
        };
        for (bad, says) in [
            (json!({"conv_kernel_size": 4}), "conv_kernel_size is 4; expected an odd number"),
            (json!({"conv_kernel_size": 3, "conv_groups": 5}), "hidden_size 1536 is not a multiple of conv_groups 5"),
            (json!({"conv_kernel_size": 3, "conv_act": "mish"}), "conv_act \"mish\""),
            (json!({"embedding_size": 0}), "embedding_size is 0"),
            (json!({"attention_head_size": 32}), "attention_head_size is 32"),
            (json!({"relative_attention": true}), "relative_attention and pos_att_type"),
            (json!({"pos_att_type": "c2p"}), "relative_attention and pos_att_type"),
            (positions(json!({"pos_att_type": "p2p"})), "pos_att_type \"p2p\""),
            (positions(json!({"pos_att_type": 3})), "pos_att_type is neither"),
            (positions(json!({"position_buckets": 1})), "position_buckets 1 does not fit"),
            (positions(json!({"position_buckets": 256, "max_relative_positions": 129})), "max_relative_positions 129"),
            (json!({"pooler_hidden_act": "mish"}), "pooler_hidden_act \"mish\""),
        ] {
            let e = read(bad).unwrap_err().to_string();
            assert!(e.contains(says) && e.starts_with("config.json: "), "{e}");
        }
    }
}
