//! The `tokenizer.json` of a directory that has none: what `transformers` would make of BERT's `vocab.txt`, RoBERTa's
//! `vocab.json` and `merges.txt` or a SentencePiece model ([`super::sentencepiece`]), with `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
//!
//! Source: `convert_slow_tokenizer.py` and `tokenization_utils_base.py` of `transformers` 4.57.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::sentencepiece::SentencePiece;
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

/// The roles of special tokens, in the order in which those that the vocabulary lacks are added.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The bytes of a `tokenizer.json`.
///
/// # Errors
/// [`Error::Input`] when the directory has no vocabulary of a known kind, or a damaged one.
pub(super) fn tokenizer_json(dir: &Path) -> Result<Vec<u8>> {
    let settings = Settings::read(dir)?;
    let has_vocabulary = ["vocab.txt", "vocab.json"].iter().any(|name| dir.join(name).is_file());
    let pieces = settings.sentencepiece().filter(|kind| !has_vocabulary && dir.join(kind.file()).is_file());
    if let Some(kind) = pieces {
        return pieces_json(dir, &settings, kind);
    }
    let (kind, vocab) = match (dir.join("vocab.txt").is_file(), dir.join("vocab.json").is_file()) {
        (true, _) => (settings.kind(dir, Kind::Bert)?, lines(dir)?),
        (_, true) => (settings.kind(dir, Kind::Roberta)?, object(&dir.join("vocab.json"))?),
        _ => return Err(nothing(dir)),
    };
    let is_bpe = dir.join("vocab.txt").is_file() == (kind == Kind::Roberta);
    if is_bpe {
        let message = "its files and the class of its tokenizer do not go together; save it with \
                       AutoTokenizer.from_pretrained(…).save_pretrained(…)";
        return Err(Error::in_file(dir, message));
    }
    let special = settings.special(kind);
    let added = settings.added(&special, &vocab);
    let role = |name: &str| content_of(&special, name);
    let id = |name: &str| id_of(dir, role(name), name, &added, &vocab);
    let (cls, sep) = (id("cls_token")?, id("sep_token")?);
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
    Ok(json.to_string().into_bytes())
}

/// The text of a special token.
fn content_of(special: &[(String, Value)], role: &str) -> String {
    let content = special.iter().find(|(name, _)| name == role).and_then(|(_, t)| t["content"].as_str());
    content.unwrap_or_default().to_owned()
}

/// A special token with its id.
fn id_of(
    dir: &Path,
    content: String,
    role: &str,
    added: &[Value],
    vocab: &Map<String, Value>,
) -> Result<(String, u64)> {
    let own = added.iter().find(|t| t["content"] == content.as_str()).and_then(|t| t["id"].as_u64());
    match own.or_else(|| vocab.get(&content).and_then(Value::as_u64)) {
        Some(id) => Ok((content, id)),
        None => Err(Error::in_file(dir, format!("its vocabulary has no {content}, the {role}"))),
    }
}

/// The families whose SentencePiece models are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    Deberta,
    XlmRoberta,
}

impl Pieces {
    fn file(self) -> &'static str {
        if self == Self::Deberta { "spm.model" } else { "sentencepiece.bpe.model" }
    }
}

/// The bytes of a `tokenizer.json` by a SentencePiece model.
fn pieces_json(dir: &Path, settings: &Settings, kind: Pieces) -> Result<Vec<u8>> {
    let read = SentencePiece::read(&dir.join(kind.file()))?;
    let is_deberta = kind == Pieces::Deberta;
    let pieces = if is_deberta { read } else { read.renumbered() };
    let vocab: Map<_, _> = pieces.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), id.into())).collect();
    let special = settings.special(if is_deberta { Kind::Bert } else { Kind::Roberta });
    let mut added = pieces.added();
    for token in settings.added(&special, &vocab) {
        match added.iter_mut().find(|known| known["content"] == token["content"]) {
            Some(known) => *known = token,
            None => added.push(token),
        }
    }
    added.sort_by_key(|token| token["id"].as_u64());
    let id = |role: &str| id_of(dir, content_of(&special, role), role, &added, &vocab);
    let (cls, sep) = (id("cls_token")?, id("sep_token")?);
    let flag = |name: &str| settings.flag(name).unwrap_or(false);
    let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let spaces = |to: &str| json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": to});
    let strip = |left: bool| json!({"type": "Strip", "strip_left": left, "strip_right": true});
    let (mut normalizers, mut pre_tokenizers) = (vec![], vec![]);
    if is_deberta {
        normalizers.extend(flag("do_lower_case").then(|| json!({"type": "Lowercase"})));
        normalizers.push(strip(true));
        normalizers.extend(pieces.precompiled());
        normalizers.push(spaces(" "));
        let isolated = json!({"type": "Punctuation", "behavior": "Isolated"});
        pre_tokenizers.extend(flag("split_by_punct").then_some(isolated));
    } else {
        normalizers.extend(pieces.precompiled());
        normalizers.extend([strip(false), spaces("▁")]);
    }
    pre_tokenizers.push(space.clone());
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": template(&cls, &sep, u64::from(is_deberta), !is_deberta),
        "decoder": space,
        "model": pieces.model(),
    });
    Ok(json.to_string().into_bytes())
}

fn nothing(dir: &Path) -> Error {
    let sentencepiece = ["sentencepiece.bpe.model", "spiece.model", "spm.model"];
    let how = "save it with AutoTokenizer.from_pretrained(…).save_pretrained(…), which writes tokenizer.json";
    let message = match sentencepiece.iter().find(|name| dir.join(name).is_file()) {
        Some(name) => format!(
            "there is {name}, but this version reads SentencePiece models of DeBERTa-v2 and XLM-RoBERTa only, by the \
             tokenizer_class or the model_type of the directory; {how}"
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

    /// Whose SentencePiece models the directory's class or type means.
    fn sentencepiece(&self) -> Option<Pieces> {
        let class = self.config.get("tokenizer_class").and_then(Value::as_str).map(|c| c.trim_end_matches("Fast"));
        match (class, self.model_type.as_deref()) {
            (Some("DebertaV2Tokenizer"), _) | (None, Some("deberta-v2")) => Some(Pieces::Deberta),
            (Some("XLMRobertaTokenizer"), _) | (None, Some("xlm-roberta")) => Some(Pieces::XlmRoberta),
            _ => None,
        }
    }

    fn kind(&self, dir: &Path, by_files: Kind) -> Result<Kind> {
        let class = self.config.get("tokenizer_class").and_then(Value::as_str).map(|c| c.trim_end_matches("Fast"));
        match (class, self.model_type.as_deref()) {
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

    /// Special tokens by role, additional ones last, as entries of `added_tokens` without an id.
    fn special(&self, kind: Kind) -> Vec<(String, Value)> {
        let of_role = |role: &str| match (kind, role) {
            (Kind::Bert, "bos_token" | "eos_token") => None,
            (Kind::Bert | Kind::Mpnet, "unk_token") => Some("[UNK]"),
            (Kind::Bert, "sep_token") => Some("[SEP]"),
            (Kind::Bert, "pad_token") => Some("[PAD]"),
            (Kind::Bert, "cls_token") => Some("[CLS]"),
            (Kind::Bert, _) => Some("[MASK]"),
            (_, "bos_token" | "cls_token") => Some("<s>"),
            (_, "eos_token" | "sep_token") => Some("</s>"),
            (_, "unk_token") => Some("<unk>"),
            (_, "pad_token") => Some("<pad>"),
            _ => Some("<mask>"),
        };
        let set = |key: &str| {
            let older = self.special_map.get(key).filter(|_| self.decoder().is_none());
            older.or_else(|| self.config.get(key)).filter(|v| !v.is_null()).cloned()
        };
        let mut out = vec![];
        for role in ROLES {
            let Some(value) = set(role).or_else(|| of_role(role).map(Value::from)) else { continue };
            // A mask takes the space before it along in these families, unless it says otherwise itself.
            let takes_space = role == "mask_token" && kind != Kind::Bert && value.is_string();
            if let Some(mut token) = token(&value) {
                if takes_space {
                    token["lstrip"] = true.into();
                }
                out.push((role.to_owned(), token));
            }
        }
        let maps = [Some(&self.config), Some(&self.special_map).filter(|_| self.decoder().is_none())];
        for value in maps.into_iter().flatten().filter_map(|m| m.get("additional_special_tokens")?.as_array()).flatten()
        {
            out.extend(token(value).map(|token| ("additional_special_tokens".to_owned(), token)));
        }
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
