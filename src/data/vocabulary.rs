//! The `tokenizer.json` of a directory that has none: what `transformers` would make of BERT's `vocab.txt`, RoBERTa's
//! `vocab.json` and `merges.txt` or a SentencePiece model ([`pieces`]), with `tokenizer_config.json`,
//! `special_tokens_map.json` and `added_tokens.json`.
//!
//! Source: `convert_slow_tokenizer.py` and `tokenization_utils_base.py` of `transformers` 4.57.

mod pieces;

use std::path::{Path, PathBuf};

use pieces::Family;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// A family of tokenizers by the classes that `tokenizer_config.json` or the model's type name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `[CLS] A [SEP] B [SEP]` of WordPiece.
    Bert,
    /// `<s> A </s> </s> B </s>` of WordPiece.
    Mpnet,
    /// `<s> A </s> </s> B </s>` of byte-level BPE.
    Roberta,
}

impl Kind {
    fn tokens(self) -> &'static SpecialTokens {
        match self {
            Self::Bert => &BERT,
            Self::Mpnet => &MPNET,
            Self::Roberta => &ROBERTA,
        }
    }
}

/// The roles of special tokens, in the order in which those that the vocabulary lacks are added.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A family's special tokens, where the directory names no others.
#[derive(Debug)]
struct SpecialTokens {
    /// By role; an empty one is none.
    roles: [&'static str; 7],
    additional: &'static [&'static str],
    /// Whether the mask takes the space before it along.
    mask_takes_space: bool,
    /// Whether the unknown token is looked for in the normalised text, as no other special token is.
    normalises_unknown: bool,
}

const BERT: SpecialTokens = SpecialTokens {
    roles: ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
    additional: &[],
    mask_takes_space: false,
    normalises_unknown: false,
};
const ROBERTA: SpecialTokens = SpecialTokens {
    roles: ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"],
    additional: &[],
    mask_takes_space: true,
    normalises_unknown: false,
};
const MPNET: SpecialTokens =
    SpecialTokens { roles: ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"], ..ROBERTA };

/// The bytes of a `tokenizer.json`, and the vocabulary's file.
///
/// # Errors
/// [`Error::Input`] when the directory has no vocabulary of a known kind, or a damaged one.
pub(super) fn tokenizer_json(dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let settings = Settings::read(dir)?;
    let family = Family::of(&settings).map(|family| (family, dir.join(family.file())));
    if let Some((family, file)) = family.filter(|(_, file)| file.is_file()) {
        let json = family.json(&file, &settings)?;
        return Ok((file, json.to_string().into_bytes()));
    }
    let [words, pieces] = ["vocab.txt", "vocab.json"].map(|name| dir.join(name));
    let (file, kind, vocab) = match (words.is_file(), pieces.is_file()) {
        (true, _) => (words, settings.kind(dir, Kind::Bert)?, lines(dir)?),
        (_, true) => (pieces.clone(), settings.kind(dir, Kind::Roberta)?, object(&pieces)?),
        _ => return Err(nothing(dir)),
    };
    let is_bpe = kind == Kind::Roberta;
    if is_bpe != file.ends_with("vocab.json") {
        let message = "its files and the class of its tokenizer do not go together; save it with \
                       AutoTokenizer.from_pretrained(…).save_pretrained(…)";
        return Err(Error::in_file(dir, message));
    }
    let special = settings.special(kind.tokens());
    let added = settings.added(&special, &vocab);
    let role = |name: &str| content_of(&special, name);
    let id = |name: &str| {
        let content = role(name);
        let declared = added.iter().find(|t| t["content"] == content.as_str() && settings.declares(&content));
        let id = vocab.get(&content).or_else(|| declared.map(|t| &t["id"])).and_then(Value::as_u64);
        id.map(|id| (content.clone(), id)).ok_or_else(|| lacks(&file, &content, name))
    };
    let (cls, sep) = (id("cls_token")?, id("sep_token")?);
    if !is_bpe && !vocab.contains_key(&role("unk_token")) {
        return Err(lacks(&file, &role("unk_token"), "unk_token"));
    }
    let json = match kind {
        Kind::Bert | Kind::Mpnet => json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": settings.flag("tokenize_chinese_chars").unwrap_or(true),
                "strip_accents": settings.flag("strip_accents"),
                "lowercase": settings.flag("do_lower_case").unwrap_or(true),
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": template(&cls, &sep, 1, kind == Kind::Mpnet),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": role("unk_token"), "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab,
            },
        }),
        Kind::Roberta => {
            let prefix = settings.flag("add_prefix_space").unwrap_or(false);
            let bytes =
                json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
            json!({
                "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
                "normalizer": null,
                "pre_tokenizer": bytes,
                "post_processor": {
                    "type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": true, "add_prefix_space": prefix,
                },
                "decoder": bytes,
                "model": {
                    "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                    "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                    "vocab": vocab, "merges": merges(&dir.join("merges.txt"))?,
                },
            })
        }
    };
    Ok((file, json.to_string().into_bytes()))
}

/// The text of a special token.
fn content_of(special: &[(String, Value)], role: &str) -> String {
    let content = special.iter().find(|(name, _)| name == role).and_then(|(_, t)| t["content"].as_str());
    content.unwrap_or_default().to_owned()
}

fn lacks(file: &Path, content: &str, role: &str) -> Error {
    let message = format!(
        "the vocabulary has no {content}, the {role}; download it again, or name the token that it has in \
         tokenizer_config.json"
    );
    Error::in_file(file, message)
}

fn nothing(dir: &Path) -> Error {
    let how = "save it with AutoTokenizer.from_pretrained(…).save_pretrained(…), which writes tokenizer.json";
    let message = match Family::ALL.map(Family::file).iter().find(|name| dir.join(name).is_file()) {
        Some(name) => format!(
            "there is {name}, but this version reads SentencePiece models of DeBERTa-v2, ALBERT, XLM-RoBERTa and CamemBERT \
             only, by the tokenizer_class or the model_type of the directory; {how}"
        ),
        None => "there is no tokenizer.json, and no vocab.txt or vocab.json with merges.txt either; a model directory needs \
                 one of them"
            .into(),
    };
    Error::in_file(dir.join("tokenizer.json"), message)
}

/// Around a text and a pair: BERT's, or RoBERTa's with a second separator before the second text, which is of type `second`.
fn template(cls: &(String, u64), sep: &(String, u64), second: u64, is_double: bool) -> Value {
    let special = |token: &(String, u64), type_id: u64| json!({"SpecialToken": {"id": token.0, "type_id": type_id}});
    let text = |name: &str, type_id: u64| json!({"Sequence": {"id": name, "type_id": type_id}});
    let single = vec![special(cls, 0), text("A", 0), special(sep, 0)];
    let mut pair = single.clone();
    pair.extend(is_double.then(|| special(sep, 0)));
    pair.extend([text("B", second), special(sep, second)]);
    let table: Map<_, _> = [cls, sep]
        .into_iter()
        .map(|(name, id)| (name.clone(), json!({"id": name, "ids": [id], "tokens": [name]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": table})
}

/// What the JSON files beside a vocabulary say.
struct Settings {
    config: Map<String, Value>,
    special_map: Map<String, Value>,
    added: Map<String, Value>,
    model_type: Option<String>,
}

impl Settings {
    fn read(dir: &Path) -> Result<Self> {
        let optional = |name: &str| {
            let path = dir.join(name);
            if path.is_file() { object(&path) } else { Ok(Map::new()) }
        };
        let model_type = optional("config.json")?.get("model_type").and_then(|v| Some(v.as_str()?.to_owned()));
        Ok(Self {
            config: optional("tokenizer_config.json")?,
            special_map: optional("special_tokens_map.json")?,
            added: optional("added_tokens.json")?,
            model_type,
        })
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name).and_then(Value::as_bool)
    }

    /// The class of the directory's tokenizer, without regard to whether it is the fast one.
    fn class(&self) -> Option<&str> {
        self.config.get("tokenizer_class").and_then(Value::as_str).map(|class| class.trim_end_matches("Fast"))
    }

    fn kind(&self, dir: &Path, by_files: Kind) -> Result<Kind> {
        match (self.class(), self.model_type.as_deref()) {
            (Some("BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer"), _) => Ok(Kind::Bert),
            (Some("MPNetTokenizer"), _) | (None, Some("mpnet")) => Ok(Kind::Mpnet),
            (Some("RobertaTokenizer"), _) => Ok(Kind::Roberta),
            (Some(other), _) => Err(Error::in_file(
                dir.join("tokenizer_config.json"),
                format!(
                    "the tokenizer_class {other} is read from tokenizer.json only; save it with \
                     AutoTokenizer.from_pretrained(…).save_pretrained(…)"
                ),
            )),
            (None, _) => Ok(by_files),
        }
    }

    /// `added_tokens_decoder`, the newer way to tell all added tokens, before which the older files do not count.
    fn decoder(&self) -> Option<&Map<String, Value>> {
        self.config.get("added_tokens_decoder").and_then(Value::as_object)
    }

    /// Whether the directory itself says that there is such an added token.
    fn declares(&self, content: &str) -> bool {
        match self.decoder() {
            Some(decoder) => decoder.values().any(|token| token["content"] == content),
            None => self.added.contains_key(content),
        }
    }

    /// Special tokens by role, additional ones last, as entries of `added_tokens` without an id.
    fn special(&self, family: &SpecialTokens) -> Vec<(String, Value)> {
        let set = |key: &str| {
            let older = self.special_map.get(key).filter(|_| self.decoder().is_none());
            older.or_else(|| self.config.get(key)).filter(|v| !v.is_null()).cloned()
        };
        let mut out = vec![];
        for (role, default) in ROLES.iter().zip(family.roles) {
            let default = || (!default.is_empty()).then(|| Value::from(default));
            let Some(value) = set(role).or_else(default) else { continue };
            let Some(mut token) = token(&value) else { continue };
            // What a family does with some, unless the token says otherwise itself.
            let flags = [
                ("mask_token", family.mask_takes_space, "lstrip"),
                ("unk_token", family.normalises_unknown, "normalized"),
            ];
            for (_, _, flag) in flags.iter().filter(|(of, is_on, _)| of == role && *is_on && value.is_string()) {
                token[flag] = true.into();
            }
            out.push(((*role).to_owned(), token));
        }
        const ADDITIONAL: &str = "additional_special_tokens";
        let maps = [Some(&self.config), Some(&self.special_map).filter(|_| self.decoder().is_none())];
        let listed: Vec<_> = maps.into_iter().flatten().filter_map(|m| m.get(ADDITIONAL)?.as_array()).collect();
        let defaults = family.additional.iter().map(|&content| Value::from(content)).filter(|_| listed.is_empty());
        let all = listed.iter().copied().flatten().cloned().chain(defaults);
        out.extend(all.filter_map(|value| Some((ADDITIONAL.to_owned(), token(&value)?))));
        out
    }

    /// The list `added_tokens`: those with ids of their own by these, then the special ones; an id is that in the vocabulary,
    /// or follows it.
    fn added(&self, special: &[(String, Value)], vocab: &Map<String, Value>) -> Vec<Value> {
        let mut tokens = vec![];
        if let Some(decoder) = self.decoder() {
            tokens
                .extend(decoder.iter().filter_map(|(id, value)| Some((id.parse::<u64>().ok()?, token_as_is(value)?))));
        } else {
            for (content, id) in self.added.iter().filter_map(|(content, id)| Some((content, id.as_u64()?))) {
                let is_special = special.iter().any(|(_, t)| t["content"] == content.as_str());
                let token = json!({"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                                   "normalized": !is_special, "special": is_special});
                tokens.push((id, token));
            }
        }
        tokens.sort_by_key(|(id, _)| *id);
        let mut out: Vec<Value> = vec![];
        let mut next = vocab.len() as u64;
        for mut token in tokens.into_iter().map(|(_, token)| token).chain(special.iter().map(|(_, t)| t.clone())) {
            if out.iter().any(|known| known["content"] == token["content"]) {
                continue;
            }
            let known = token["content"].as_str().and_then(|content| vocab.get(content));
            token["id"] = known.cloned().unwrap_or_else(|| {
                next += 1;
                json!(next - 1)
            });
            out.push(token);
        }
        out
    }
}

/// A special token given as a text or with its flags.
fn token(value: &Value) -> Option<Value> {
    if let Some(content) = value.as_str() {
        return Some(json!({"id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true}));
    }
    let mut token = token_as_is(value)?;
    token["special"] = true.into();
    Some(token)
}

/// An added token with its flags; by `transformers`' default it is normalised unless it is special.
fn token_as_is(value: &Value) -> Option<Value> {
    let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", false);
    Some(json!({
        "id": 0, "content": value.get("content")?.as_str()?,
        "single_word": flag("single_word", false), "lstrip": flag("lstrip", false), "rstrip": flag("rstrip", false),
        "normalized": flag("normalized", !special), "special": special,
    }))
}

fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        Error::at_line(path, line as u64, "is not UTF-8; download it again")
    })
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let text = text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::at_line(path, e.line() as u64, format!("is not a JSON object: {e}")))
}

/// A token a line. Line ends are Python's: the Chinese vocabulary has tokens of other Unicode line separators.
fn lines(dir: &Path) -> Result<Map<String, Value>> {
    let text = text(&dir.join("vocab.txt"))?.replace("\r\n", "\n").replace('\r', "\n");
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut vocab = Map::new();
    for (id, token) in text.split('\n').enumerate() {
        vocab.insert(token.to_owned(), id.into());
    }
    Ok(vocab)
}

/// Pairs of pieces, the most frequent first. As in `transformers`, the first line is a version and what follows the last line
/// end does not count.
fn merges(path: &Path) -> Result<Vec<(String, String)>> {
    let text = text(path)?;
    let lines: Vec<&str> = text.split('\n').collect();
    let mut merges = vec![];
    for (i, line) in lines.iter().enumerate().take(lines.len() - 1).skip(1) {
        let mut parts = line.split_whitespace();
        let (Some(a), Some(b), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Error::at_line(path, i as u64 + 1, "is not a pair of pieces; download the file again"));
        };
        merges.push((a.to_owned(), b.to_owned()));
    }
    Ok(merges)
}
