//! ELECTRA (Clark et al. 2020), discriminators and generators: BERT's layers, embeddings of a width of their own that are
//! projected to the layers', a classifier with a dense layer and GELU.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, bert};
use crate::error::Result;
use crate::nn::pooling::{Pooling, PoolingActivation};

/// Reads an ELECTRA `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    let defaults = Defaults { hidden: 256, heads: 4, inner: 1024, ..Defaults::BASE };
    let mut base = bert::shaped(keys, "electra.", &defaults)?;
    let (width, [_, dropout]) = (keys.size("embedding_size", 128)?, base.pooling.dropout);
    if width != base.layer.hidden {
        base.names.embeddings.projection = Some("electra.embeddings_project".into());
    }
    Ok(EncoderConfig {
        class: "Electra",
        embedding_width: width,
        pooling: Pooling::of_classifier(PoolingActivation::Gelu, dropout),
        ..base
    })
}
