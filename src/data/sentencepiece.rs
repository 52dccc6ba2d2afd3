//! SentencePiece models (Kudo & Richardson 2018) as `tokenizer.json` has them.
//!
//! Sources: `sentencepiece_model.proto`, and `convert_slow_tokenizer.py` of `transformers` 4.57.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What a model file says.
#[derive(Debug, Default)]
pub(super) struct SentencePiece {
    pub pieces: Vec<Piece>,
    pub unk_id: usize,
    /// The compiled rules of the normaliser; none if empty.
    charsmap: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub text: String,
    pub score: f64,
    kind: u64,
}

/// Numbers of `SentencePiece.Type` and `TrainerSpec.ModelType`.
const NORMAL: u64 = 1;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNIGRAM: u64 = 1;

impl SentencePiece {
    /// # Errors
    /// [`Error::Input`] when the file is damaged or not a Unigram model.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let wrong = || Error::in_file(path, "is not a whole SentencePiece model; download it again");
        let (model, kind) = Self::parse(&bytes).ok_or_else(wrong)?;
        if kind != UNIGRAM {
            let message = "is not a Unigram model, the only kind that this version reads; save the tokenizer with \
                           AutoTokenizer.from_pretrained(…).save_pretrained(…), which writes tokenizer.json";
            return Err(Error::in_file(path, message));
        }
        if model.pieces.len() < 4 || model.unk_id >= model.pieces.len() { Err(wrong()) } else { Ok(model) }
    }

    /// The model and its kind; `None` where the bytes are no such message.
    fn parse(bytes: &[u8]) -> Option<(Self, u64)> {
        let (mut model, mut kind) = (Self::default(), UNIGRAM);
        for field in Fields(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Field::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        match field? {
                            (3, Field::Number(n)) => kind = n,
                            (40, Field::Number(n)) => model.unk_id = usize::try_from(n).ok()?,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (2, Field::Bytes(rules)) = field? {
                            model.charsmap = rules.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        Some((model, kind))
    }

    /// In the order of fairseq's ids: its own tokens with their scores instead of the first pieces, and a mask behind all.
    pub fn renumbered(mut self, own: &[(&str, f64)], instead_of: usize, unk_id: usize) -> Self {
        let special = |&(text, score): &(&str, f64)| Piece { text: text.into(), score, kind: NORMAL };
        self.pieces.splice(..instead_of, own.iter().map(special));
        self.pieces.push(special(&("<mask>", 0.0)));
        Self { unk_id, ..self }
    }

    /// The pieces that are tokens whatever stands around them, as entries of `added_tokens`.
    pub fn added(&self) -> Vec<Value> {
        let listed = self.pieces.iter().enumerate().filter(|(_, p)| [CONTROL, USER_DEFINED].contains(&p.kind));
        listed
            .map(|(id, p)| {
                json!({"id": id, "content": p.text, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": p.kind == CONTROL})
            })
            .collect()
    }

    pub fn model(&self) -> Value {
        let vocab: Vec<_> = self.pieces.iter().map(|p| json!([p.text, p.score])).collect();
        json!({"type": "Unigram", "unk_id": self.unk_id, "vocab": vocab, "byte_fallback": false})
    }

    /// The model's own rules, if it has such.
    pub fn precompiled(&self) -> Option<Value> {
        let rules = (!self.charsmap.is_empty()).then(|| base64(&self.charsmap))?;
        Some(json!({"type": "Precompiled", "precompiled_charsmap": rules}))
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: NORMAL };
        for field in Fields(bytes) {
            match field? {
                (1, Field::Bytes(text)) => piece.text = str::from_utf8(text).ok()?.to_owned(),
                (2, Field::Word(bits)) => piece.score = f32::from_bits(bits).into(),
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        piece.score.is_finite().then_some(piece)
    }
}

/// The fields of a protobuf message, with their numbers; `None` once where it is damaged.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    /// Eight bytes, which nothing here reads.
    Long,
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Long)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Word(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |part: &[u8]| {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(part.get(i).copied().unwrap_or(0)));
        let digit = move |i: usize| DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
        let there = part.len();
        (0..4).map(move |i| if i <= there { digit(i) } else { '=' })
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        assert!(cases.iter().all(|(text, coded)| base64(text.as_bytes()) == *coded));
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn damaged_models_are_refused_and_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spm.model");
        let whole = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/fixtures/tokenizers/spm_deberta/spm.model");
        let whole = std::fs::read(whole).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            SentencePiece::read(&path).err().map(|e| e.to_string())
        };
        assert_eq!(refused(&whole), None);
        for bad in [&b""[..], b"\xff", b"\x0a\x05ab", &whole[..whole.len() - 1], b"version https://git-lfs"] {
            assert!(refused(bad).is_some_and(|e| e.contains("spm.model: is not a whole SentencePiece model")));
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            let _ = SentencePiece::parse(&bad);
        }
        // The same with another kind of model.
        let message = refused(&[&whole[..], &[0x12, 2, 0x18, 2]].concat()).unwrap();
        assert!(message.contains("is not a Unigram model"), "{message}");
    }
}
