//! Families whose vocabulary is a SentencePiece model ([`SentencePiece`]): around the pieces each has rules and special tokens
//! of its own.
//!
//! Source: `convert_slow_tokenizer.py` of `transformers` 4.57.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{BERT, ROBERTA, Settings, SpecialTokens, template};
use crate::data::sentencepiece::{Piece, SentencePiece};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Deberta,
    Albert,
    XlmRoberta,
    Camembert,
}

const DEBERTA: SpecialTokens = SpecialTokens { normalises_unknown: true, ..BERT };
const ALBERT: SpecialTokens = SpecialTokens {
    roles: ["[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"],
    mask_takes_space: true,
    ..BERT
};
const CAMEMBERT: SpecialTokens =
    SpecialTokens { additional: &["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"], ..ROBERTA };

impl Family {
    pub const ALL: [Self; 4] = [Self::Deberta, Self::Albert, Self::XlmRoberta, Self::Camembert];

    /// The one that the class of a directory's tokenizer names, or else the type of its model.
    pub fn of(settings: &Settings) -> Option<Self> {
        let names = |family: &Self| {
            let (class, model_type) = match family {
                Self::Deberta => ("DebertaV2Tokenizer", "deberta-v2"),
                Self::Albert => ("AlbertTokenizer", "albert"),
                Self::XlmRoberta => ("XLMRobertaTokenizer", "xlm-roberta"),
                Self::Camembert => ("CamembertTokenizer", "camembert"),
            };
            settings.class().map_or(settings.model_type.as_deref() == Some(model_type), |named| named == class)
        };
        Self::ALL.into_iter().find(names)
    }

    pub fn file(self) -> &'static str {
        match self {
            Self::Deberta => "spm.model",
            Self::Albert => "spiece.model",
            Self::XlmRoberta | Self::Camembert => "sentencepiece.bpe.model",
        }
    }

    fn tokens(self) -> &'static SpecialTokens {
        match self {
            Self::Deberta => &DEBERTA,
            Self::Albert => &ALBERT,
            Self::XlmRoberta => &ROBERTA,
            Self::Camembert => &CAMEMBERT,
        }
    }

    /// The tokens around a row, which the directory cannot change.
    fn around(self) -> [&'static str; 2] {
        match self {
            Self::Deberta | Self::Albert => ["[CLS]", "[SEP]"],
            Self::XlmRoberta | Self::Camembert => ["<s>", "</s>"],
        }
    }

    /// The pieces by their ids, with the scores that choose among them.
    fn pieces(self, mut model: SentencePiece) -> SentencePiece {
        const OWN: [(&str, f64); 4] = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)];
        match self {
            Self::Deberta => model,
            Self::Albert => {
                model.pieces.iter_mut().filter(|piece| ends_in_number_and_comma(&piece.text)).for_each(lower);
                model
            }
            Self::XlmRoberta => model.renumbered(&OWN, 3, 3),
            // The first piece, the model's own unknown one, has a place and is not used.
            Self::Camembert => {
                let [_, pad, _, unk] = OWN;
                let own = [("<s>NOTUSED", 0.0), pad, ("</s>NOTUSED", 0.0), unk, ("<unk>NOTUSED", -100.0)];
                model.renumbered(&own, 1, 3)
            }
        }
    }

    fn normalizers(self, pieces: &SentencePiece, settings: &Settings) -> Vec<Value> {
        let flag = |name: &str, default: bool| settings.flag(name).unwrap_or(default);
        let only = |kind: &str| json!({"type": kind});
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let spaces = |to: &str| json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": to});
        let strip = |left: bool| json!({"type": "Strip", "strip_left": left, "strip_right": true});
        let mut list = vec![];
        match self {
            Self::Deberta => {
                list.extend(flag("do_lower_case", false).then(|| only("Lowercase")));
                list.push(strip(true));
                list.extend(pieces.precompiled());
                list.push(spaces(" "));
            }
            Self::Albert => {
                list.extend([replace("``", "\""), replace("''", "\"")]);
                if !flag("keep_accents", false) {
                    list.extend([only("NFKD"), only("StripAccents")]);
                }
                list.extend(flag("do_lower_case", true).then(|| only("Lowercase")));
                list.extend(pieces.precompiled());
                list.push(spaces(" "));
            }
            Self::XlmRoberta | Self::Camembert => {
                list.extend(pieces.precompiled());
                list.extend([strip(false), spaces("▁")]);
            }
        }
        list
    }

    /// A `tokenizer.json` by the model in `file`.
    ///
    /// # Errors
    /// [`Error::Input`] when it is damaged, no Unigram model, or lacks the tokens around a row.
    pub fn json(self, file: &Path, settings: &Settings) -> Result<Value> {
        let pieces = self.pieces(SentencePiece::read(file)?);
        let vocab: Map<_, _> = pieces.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), id.into())).collect();
        let around = self.around().map(|content| match vocab.get(content).and_then(Value::as_u64) {
            Some(id) => Ok((content.to_owned(), id)),
            None => Err(Error::in_file(file, format!("the model has no piece {content}; download it again"))),
        });
        let [cls, sep] = around;
        let (cls, sep) = (cls?, sep?);
        let mut added = pieces.added();
        for token in settings.added(&settings.special(self.tokens()), &vocab) {
            match added.iter_mut().find(|known| known["content"] == token["content"]) {
                Some(known) => *known = token,
                None => added.push(token),
            }
        }
        added.sort_by_key(|token| token["id"].as_u64());
        let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let splits = self == Self::Deberta && settings.flag("split_by_punct").unwrap_or(false);
        let punctuation = splits.then(|| json!({"type": "Punctuation", "behavior": "Isolated"}));
        let pre_tokenizers: Vec<_> = punctuation.into_iter().chain([space.clone()]).collect();
        let is_roberta = matches!(self, Self::XlmRoberta | Self::Camembert);
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": self.normalizers(&pieces, settings)},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
            "post_processor": template(&cls, &sep, u64::from(!is_roberta), is_roberta),
            "decoder": space,
            "model": pieces.model(),
        }))
    }
}

/// Such as `2005,`: ALBERT has the comma apart.
fn ends_in_number_and_comma(piece: &str) -> bool {
    piece.strip_suffix(',').and_then(|rest| rest.chars().last()).is_some_and(char::is_numeric)
}

/// So that it never is the best choice.
fn lower(piece: &mut Piece) {
    piece.score -= 100.0;
}
