//! MPNet (Song et al. 2020): BERT's layers with a bias by distance that they share, positions that begin behind the padding
//! id, no token types, RoBERTa's classifier.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, Positions, bert};
use crate::error::Result;
use crate::nn::layer_shape::LayerNames;
use crate::nn::pooling::{Pooling, PoolingActivation};
use crate::ops::distance_bias::BUCKETS;

/// Not in the config.
const PADDING: u32 = 1;

/// Reads an MPNet `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    let mut base = bert::shaped(keys, "mpnet.", &Defaults { vocab: 30527, ..Defaults::BASE })?;
    let buckets = keys.size("relative_attention_num_buckets", BUCKETS)?;
    if buckets < BUCKETS {
        let message = format!("relative_attention_num_buckets is {buckets}; MPNet uses {BUCKETS}");
        return Err(keys.wrong(message));
    }
    base.embedding.types = 0;
    base.names.bias = "mpnet.encoder.relative_attention_bias.weight".into();
    base.names.layers.iter_mut().for_each(|l| *l = layer_names(&l.module));
    Ok(EncoderConfig {
        class: "MPNet",
        positions: Positions::after_padding(keys, &base.embedding, PADDING)?,
        reads_types: false,
        bias_buckets: Some(buckets),
        pooling: Pooling::of_classifier(PoolingActivation::Tanh, base.embedding_dropout),
        token_head: Pooling::of_tokens(base.embedding_dropout),
        ..base
    })
}

fn layer_names(layer: &str) -> LayerNames {
    LayerNames::new(
        layer,
        ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
        ["attention.attn.o", "attention.LayerNorm"],
        ["intermediate.dense", "output.dense", "output.LayerNorm"],
    )
}
