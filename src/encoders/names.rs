//! Checkpoint names as they are found: with or without the encoder's prefix, LayerNorm's old `gamma` and `beta`.

/// The names under which a checkpoint may hold the parameter `name`, the usual one first.
pub fn candidates(name: &str, prefix: &str) -> Vec<String> {
    let mut out = vec![name.to_owned()];
    if let Some(bare) = name.strip_prefix(prefix) {
        out.push(bare.to_owned());
    }
    for new in out.clone() {
        if new.contains("LayerNorm") {
            if let Some(module) = new.strip_suffix(".weight") {
                out.push(format!("{module}.gamma"));
            } else if let Some(module) = new.strip_suffix(".bias") {
                out.push(format!("{module}.beta"));
            }
        }
    }
    out
}

/// Buffers that old checkpoints carry and no model needs.
pub fn is_buffer(name: &str) -> bool {
    name.ends_with("embeddings.position_ids") || name.ends_with("embeddings.token_type_ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings() {
        assert_eq!(candidates("classifier.weight", "bert."), ["classifier.weight"]);
        assert_eq!(
            candidates("bert.embeddings.LayerNorm.weight", "bert."),
            [
                "bert.embeddings.LayerNorm.weight",
                "embeddings.LayerNorm.weight",
                "bert.embeddings.LayerNorm.gamma",
                "embeddings.LayerNorm.gamma"
            ]
        );
        assert!(is_buffer("bert.embeddings.position_ids") && !is_buffer("bert.embeddings.position_embeddings.weight"));
    }
}
