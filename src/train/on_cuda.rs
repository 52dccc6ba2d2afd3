//! What a GPU cannot compute yet, known before anything is: the one list of it.

use super::config::TrainConfig;
use crate::encoders::EncoderConfig;

/// The widest heads that the attention kernels take.
const MOST_HEAD_COLUMNS: usize = 128;

/// The widest rows whose norm's gradient a block's shared memory holds.
const MOST_HIDDEN: usize = 4085;

/// What of a model, and of its training, has no CUDA kernels; nothing where a GPU can do all of it.
pub fn without_kernels(encoder: &EncoderConfig, train: Option<&TrainConfig>) -> Vec<String> {
    let (hidden, heads) = (encoder.layer.hidden, encoder.layer.heads);
    let list = [
        (!encoder.rotary.is_empty(), format!("models with rotary positions ({})", encoder.class)),
        (hidden / heads > MOST_HEAD_COLUMNS, format!("heads of {} columns", hidden / heads)),
        (hidden > MOST_HIDDEN, format!("hidden_size {hidden}")),
        (train.is_some_and(|t| t.ema_decay > 0.0), "train.ema_decay".into()),
    ];
    list.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn what_has_no_kernels_is_named() {
        let encoder = |json: serde_json::Value| EncoderConfig::from_json(&json, Path::new("config.json")).unwrap();
        let bert = |hidden: usize, heads: usize| {
            encoder(json!({"model_type": "bert", "vocab_size": 9, "hidden_size": hidden, "num_attention_heads": heads}))
        };
        let plain = TrainConfig::default();
        assert_eq!(without_kernels(&bert(4080, 34), Some(&plain)), [""; 0]);
        assert_eq!(without_kernels(&bert(768, 4), None), ["heads of 192 columns"]);
        assert_eq!(without_kernels(&bert(4096, 32), None), ["hidden_size 4096"]);
        let modern = encoder(json!({"model_type": "modernbert"}));
        let average = TrainConfig { ema_decay: 0.999, ..plain };
        let both = ["models with rotary positions (ModernBert)", "train.ema_decay"];
        assert_eq!(without_kernels(&modern, Some(&average)), both);
    }
}
