//! What a GPU cannot compute yet, known before anything is: the one list of it.

use super::EncoderConfig;

/// The widest heads that the attention kernels take.
const MOST_HEAD_COLUMNS: usize = 256;

/// The widest rows that the kernels of norms take.
const MOST_HIDDEN: usize = 4096;

/// What of a model has no CUDA kernels; nothing where a GPU can do all of it.
pub fn without_kernels(encoder: &EncoderConfig) -> Vec<String> {
    let (hidden, heads) = (encoder.layer.hidden, encoder.layer.heads);
    let list = [
        (hidden / heads > MOST_HEAD_COLUMNS, format!("heads of {} columns", hidden / heads)),
        (hidden > MOST_HIDDEN, format!("hidden_size {hidden}")),
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
        assert_eq!(without_kernels(&bert(4096, 16)), [""; 0]);
        assert_eq!(without_kernels(&encoder(json!({"model_type": "modernbert"}))), [""; 0]);
        assert_eq!(without_kernels(&bert(1024, 2)), ["heads of 512 columns"]);
        assert_eq!(without_kernels(&bert(4104, 36)), ["hidden_size 4104"]);
        let deberta = encoder(json!({"model_type": "deberta-v2", "relative_attention": true, "pos_att_type": "c2p"}));
        assert_eq!(without_kernels(&deberta), [""; 0]);
        let beside = encoder(json!({"model_type": "deberta-v2", "conv_kernel_size": 3, "embedding_size": 32}));
        assert_eq!(without_kernels(&beside), [""; 0]);
    }
}
