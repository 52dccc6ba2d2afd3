//! Which files make a model: the same rule for a repository's listing and for a directory.

use std::collections::BTreeMap;

/// What a tokenizer may consist of. A saved model takes along those that its source has.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// What a model that bertft made says beyond the files of `transformers`.
pub const BERTFT_JSON: &str = "bertft.json";

/// How tensors are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Safetensors,
    /// What `torch.save` writes.
    Pytorch,
}

/// A file of weights, or the index of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    pub name: &'static str,
    pub format: Format,
    pub is_index: bool,
}

/// In the order of preference.
const WEIGHTS: [Weights; 4] = [
    Weights { name: "model.safetensors", format: Format::Safetensors, is_index: false },
    Weights { name: "model.safetensors.index.json", format: Format::Safetensors, is_index: true },
    Weights { name: "pytorch_model.bin", format: Format::Pytorch, is_index: false },
    Weights { name: "pytorch_model.bin.index.json", format: Format::Pytorch, is_index: true },
];

/// Weights of other frameworks.
const FOREIGN: [(&str, &str); 4] = [
    ("tf_model.h5", "TensorFlow"),
    ("tf_model.h5.index.json", "TensorFlow"),
    ("flax_model.msgpack", "Flax"),
    ("flax_model.msgpack.index.json", "Flax"),
];

/// The weights to read.
///
/// # Errors
/// What is there instead, as the end of a message.
pub fn weights(has: impl Fn(&str) -> bool) -> Result<Weights, String> {
    if let Some(found) = WEIGHTS.iter().find(|w| has(w.name)) {
        return Ok(*found);
    }
    let names = "model.safetensors or pytorch_model.bin, whole or sharded";
    Err(match FOREIGN.iter().find(|(name, _)| has(name)) {
        Some((name, framework)) => format!(
            "has no {names}; its {name} is of {framework}: convert it, in Python with \
             AutoModel.from_pretrained(…, {}=True).save_pretrained(…)",
            if *framework == "Flax" { "from_flax" } else { "from_tf" }
        ),
        None => format!("has no {names}"),
    })
}

/// Whether the files of a tokenizer suffice.
pub fn has_tokenizer(has: impl Fn(&str) -> bool) -> bool {
    has("tokenizer.json") || has("vocab.txt") || has("vocab.json") && has("merges.txt")
}

/// The file of each tensor, by an `….index.json`.
///
/// # Errors
/// When it is no index, or names a file outside its directory.
pub fn shards(index: &[u8]) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|e| format!("is not an index of shards: {e}"))?;
    if index.weight_map.is_empty() {
        return Err("has an empty weight_map".into());
    }
    match index.weight_map.values().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("names the file {name:?}, which is not a plain file name; it is damaged or hostile")),
        None => Ok(index.weight_map),
    }
}

/// Whether a name from outside is that of a file right in a directory: no way up, down or elsewhere on any system.
pub fn is_plain(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '=');
    !name.is_empty() && name.len() <= 200 && name.chars().all(known) && !name.starts_with('.') && !name.ends_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_come_first() {
        let choose = |names: &[&str]| weights(|name| names.contains(&name)).map(|w| w.name);
        assert_eq!(choose(&["pytorch_model.bin", "model.safetensors", "tf_model.h5"]), Ok("model.safetensors"));
        assert_eq!(
            choose(&["pytorch_model.bin", "model.safetensors.index.json"]),
            Ok("model.safetensors.index.json"),
            "sharded, but safe"
        );
        assert_eq!(choose(&["pytorch_model.bin.index.json"]), Ok("pytorch_model.bin.index.json"));
        assert!(choose(&["tf_model.h5", "config.json"]).unwrap_err().contains("tf_model.h5 is of TensorFlow"));
        assert!(choose(&["flax_model.msgpack"]).unwrap_err().contains("from_flax=True"));
        assert!(choose(&["config.json"]).unwrap_err().starts_with("has no model.safetensors"));
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let index = |name: &str| shards(serde_json::json!({"weight_map": {"a": name}}).to_string().as_bytes());
        assert_eq!(index("model-00001-of-00002.safetensors").unwrap()["a"], "model-00001-of-00002.safetensors");
        for name in
            ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "C:x", "..\\x", ".hidden", "a\0b", "x\u{2215}y", "a."]
        {
            assert!(index(name).unwrap_err().contains("not a plain file name"), "{name:?}");
        }
        for text in ["", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 1}}"] {
            assert!(shards(text.as_bytes()).is_err(), "{text}");
        }
    }
}
