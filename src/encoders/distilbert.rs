//! DistilBERT (Sanh et al. 2019): BERT's layers under other names, no dropout on the attention's output, no token types, a
//! classifier with a dense layer and ReLU.

use super::keys::{Defaults, Keys};
use super::{EncoderConfig, Initializer, ModuleNames, Positions, Read, bert};
use crate::error::Result;
use crate::nn::layer_shape::{LayerForm, LayerNames, LayerShape};
use crate::nn::pooling::{Pooling, PoolingActivation};

/// Not in the config.
const EPS: f32 = 1e-12;

/// Reads a DistilBERT `config.json`.
pub fn config(keys: Keys<'_>) -> Result<EncoderConfig> {
    let (d, dropout) = (Defaults::BASE, keys.rate("dropout", 0.1)?);
    let layer = LayerShape {
        hidden: keys.size("dim", d.hidden)?,
        heads: keys.size("n_heads", d.heads)?,
        inner: keys.size("hidden_dim", d.inner)?,
        act: keys.activation("activation", d.act)?,
        eps: EPS,
        hidden_dropout: [0.0, dropout],
        attention_dropout: keys.rate("attention_dropout", 0.1)?,
        form: LayerForm::POST_NORM,
    };
    keys.heads_fit(&layer, "dim", "n_heads")?;
    let prefix = "distilbert.";
    let layers = (0..keys.layers("n_layers", 6)?).map(|i| layer_names(&format!("{prefix}transformer.layer.{i}")));
    Ok(EncoderConfig {
        class: "DistilBert",
        embedding: keys.tables(d.vocab, 0, EPS)?,
        embedding_width: layer.hidden,
        norms_projected: false,
        embedding_dropout: dropout,
        // Sinusoids stay what they are.
        learns_positions: !keys.get("sinusoidal_pos_embds", false)?,
        positions: Positions::FromZero,
        reads_types: false,
        layer,
        bias_buckets: None,
        relative: None,
        rotary: vec![],
        read: Read::First,
        pooling: Pooling {
            dense: Some("pre_classifier".into()),
            act: PoolingActivation::Relu,
            dropout: [0.0, keys.rate("seq_classif_dropout", 0.2)?],
            out: "classifier".into(),
            ..Pooling::of_classifier(PoolingActivation::Relu, 0.0)
        },
        token_head: Pooling::of_tokens(dropout),
        span_head: Pooling::of_spans(keys.rate("qa_dropout", 0.1)?),
        initializer: Initializer::normal(keys.initializer_range()?),
        names: ModuleNames {
            prefix,
            embeddings: bert::embedding_names(prefix),
            layers: layers.collect(),
            bias: String::new(),
            relative: None,
        },
    })
}

fn layer_names(layer: &str) -> LayerNames {
    LayerNames::new(
        layer,
        ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        ["attention.out_lin", "sa_layer_norm"],
        ["ffn.lin1", "ffn.lin2", "output_layer_norm"],
    )
}
