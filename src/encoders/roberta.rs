//! RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020): BERT's layers, positions
//! that begin behind the padding id, token types that no tokenizer gives, a classifier with a dense layer of its own.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, Positions, bert};
use crate::error::Result;
use crate::nn::pooling::{Pooling, PoolingActivation};

/// Reads the `config.json` of one of the three; `class` tells which.
pub fn config(keys: Keys<'_>, class: &'static str) -> Result<EncoderConfig> {
    let vocab = if class == "Roberta" { 50265 } else { 30522 };
    let base = bert::shaped(keys, "roberta.", &Defaults { vocab, ..Defaults::BASE })?;
    let [_, dropout] = base.pooling.dropout;
    Ok(EncoderConfig {
        class,
        positions: Positions::after_padding(keys, &base.embedding, keys.get("pad_token_id", 1)?)?,
        reads_types: false,
        pooling: Pooling::of_classifier(PoolingActivation::Tanh, dropout),
        ..base
    })
}
