//! Texts to token ids, once before training, in parallel: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, truncated
//! `longest_first`, never padded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::{Encoding, ModelWrapper, PostProcessor, TruncationParams, truncate_encodings};

use super::example::Example;
use super::words::Words;
use crate::error::{Error, Result};

/// Rows between two reports of progress, which is also how long an interruption may wait.
const CHUNK_ROWS: usize = 1024;

/// A model directory's `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    /// Whether a text may be tokenised word by word.
    by_words: bool,
}

/// Token ids of rows end to end. Row `i` is `offsets[i]..offsets[i + 1]` of `ids` and `type_ids`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// 0 for the first text and its special tokens, 1 for the second.
    pub type_ids: Vec<u8>,
    /// rows + 1
    pub offsets: Vec<usize>,
    /// Whether a row did not fit in the maximum length.
    pub truncated: Vec<bool>,
}

struct Row {
    ids: Vec<u32>,
    type_ids: Vec<u8>,
    truncated: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a model directory. Truncation and padding of its own are dropped: MiniLM's pads every
    /// row to 128.
    ///
    /// # Errors
    /// When the file is missing, not a tokenizer, or adds no special tokens.
    pub fn load(model_dir: impl AsRef<Path>) -> Result<Self> {
        let file = model_dir.as_ref().join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::in_file(
                &file,
                "there is no such file; a model directory needs it (vocab.txt alone is not read so far: save it with \
                 AutoTokenizer.from_pretrained(…).save_pretrained(…))",
            ),
            _ => Error::io(&file, e),
        })?;
        let wrong = |reason: String| Error::in_file(&file, format!("this is not a valid tokenizer: {reason}"));
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(wrong)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| wrong(e.to_string()))?;
        let tokenizer = Self { by_words: Words::suit(&inner), inner, file: file.clone() };
        if tokenizer.special_tokens_count(false) == 0 {
            return Err(Error::in_file(&file, "its post_processor adds no [CLS] and [SEP], which the model reads"));
        }
        // A file can load and yet fail on every text, so one is tried here.
        let text_pair = Some("b".to_owned());
        let file = Path::new("").into();
        let probe = Example { text: "a".into(), text_pair, label: None, slice: None, id: None, row: 1, line: 1, file };
        guarded(|| tokenizer.encode_row(&probe, 512, None)).map_err(wrong)?;
        Ok(tokenizer)
    }

    /// Ids that the tokenizer knows, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Special tokens around one text (2 for BERT) or a pair (3).
    pub fn special_tokens_count(&self, pair: bool) -> usize {
        self.inner.get_post_processor().map_or(0, |p| p.added_tokens(pair))
    }

    /// Ids of the special tokens around a row, such as those of `[CLS]` and `[SEP]`.
    pub fn special_ids(&self) -> Vec<u32> {
        let around_nothing = guarded(|| self.inner.encode_fast(("", ""), true));
        let mut ids = around_nothing.map_or_else(|_| vec![], |e| e.get_ids().to_vec());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Id of the token that stands for what the vocabulary does not have; `None` when every text can be written.
    pub fn unknown_id(&self) -> Option<u32> {
        let name = match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => model.unk_token.as_str(),
            ModelWrapper::BPE(model) => model.unk_token.as_deref()?,
            ModelWrapper::WordLevel(model) => model.unk_token.as_str(),
            ModelWrapper::Unigram(_) => "<unk>",
        };
        self.inner.token_to_id(name)
    }

    /// The pieces of a text that become the unknown token, in order.
    pub fn unknown_words(&self, text: &str) -> Vec<String> {
        let unknown = self.unknown_id();
        let Ok(encoding) = guarded(|| self.inner.encode(text, false)) else { return vec![] };
        let pieces = encoding.get_ids().iter().zip(encoding.get_offsets()).filter(|(id, _)| Some(**id) == unknown);
        pieces.filter_map(|(_, &(from, to))| Some(text.get(from..to)?.to_owned())).collect()
    }

    /// Tokenises rows in order on the current rayon pool. Rows longer than `max_length` tokens, special ones included,
    /// lose tokens from the end of the longer text. `progress(done, total)` is called about every thousand rows; an
    /// error from it (an interruption) ends the work.
    ///
    /// # Errors
    /// When `max_length` leaves no room for text, the tokenizer fails, or `progress` does.
    pub fn encode(
        &self,
        examples: &[Example],
        max_length: usize,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Tokens> {
        self.check_max_length(max_length, examples.iter().any(|e| e.text_pair.is_some()))?;
        let mut tokens = Tokens::empty();
        let mut words = self.by_words.then(Words::default);
        for chunk in examples.chunks(CHUNK_ROWS) {
            let mut encode = || {
                if let Some(words) = &mut words {
                    words.learn(&self.inner, chunk);
                }
                chunk.par_iter().map(|e| self.encode_row(e, max_length, words.as_ref())).collect::<Vec<_>>()
            };
            let rows = guarded(|| Ok(encode())).map_err(|e| self.failed(&e, &chunk[0]))?;
            for (row, example) in rows.into_iter().zip(chunk) {
                tokens.push(row.map_err(|e| self.failed(&e.to_string(), example))?);
            }
            progress(tokens.len(), examples.len())?;
        }
        Ok(tokens)
    }

    fn check_max_length(&self, max_length: usize, pair: bool) -> Result<()> {
        let special = self.special_tokens_count(pair);
        if max_length > special {
            return Ok(());
        }
        Err(Error::input(format!(
            "max_length {max_length} leaves no room for text beside {special} special tokens; set data.max_length to {} or more",
            special + 1
        )))
    }

    fn failed(&self, reason: &str, example: &Example) -> Error {
        let place = format!("row {} (line {})", example.row, example.line);
        Error::in_file(&self.file, format!("the tokenizer failed at or after {place} of the data: {reason}"))
    }

    /// Truncates by itself, because the crate would also build every further window of a long row, and for a pair every
    /// combination of them.
    fn encode_row(&self, example: &Example, max_length: usize, words: Option<&Words>) -> tokenizers::Result<Row> {
        let encode = |text: &str| match words {
            Some(words) => words.encode(&self.inner, text),
            None => self.inner.encode_fast(text, false),
        };
        let first = encode(&example.text)?;
        let second = example.text_pair.as_deref().map(encode).transpose()?;
        let length = first.len() + second.as_ref().map_or(0, Encoding::len);
        let room = max_length.saturating_sub(self.special_tokens_count(second.is_some()));
        let (mut first, mut second) =
            truncate_encodings(first, second, &TruncationParams { max_length: room, ..Default::default() })?;
        first.take_overflowing();
        if let Some(second) = &mut second {
            second.take_overflowing();
        }
        let encoding = self.inner.post_process(first, second, true)?;
        let type_ids = encoding.get_type_ids().iter().map(|&t| u8::try_from(t)).collect::<Result<_, _>>()?;
        Ok(Row { ids: encoding.get_ids().to_vec(), type_ids, truncated: length > room })
    }
}

impl Tokens {
    fn empty() -> Self {
        Self { ids: Vec::new(), type_ids: Vec::new(), offsets: vec![0], truncated: Vec::new() }
    }

    fn push(&mut self, row: Row) {
        self.ids.extend(row.ids);
        self.type_ids.extend(row.type_ids);
        self.offsets.push(self.ids.len());
        self.truncated.push(row.truncated);
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Token ids of row `i < len()`.
    pub fn row(&self, i: usize) -> &[u32] {
        &self.ids[self.offsets[i]..self.offsets[i + 1]]
    }

    /// Type ids of row `i < len()`.
    pub fn type_ids_of(&self, i: usize) -> &[u8] {
        &self.type_ids[self.offsets[i]..self.offsets[i + 1]]
    }

    /// Tokens of row `i < len()`.
    pub fn len_of(&self, i: usize) -> usize {
        self.offsets[i + 1] - self.offsets[i]
    }

    /// Tokens of every row.
    pub fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|i| self.len_of(i)).collect()
    }

    /// These rows (each `< len()`) in this order.
    pub fn subset(&self, rows: &[usize]) -> Self {
        let mut subset = Self::empty();
        for &row in rows {
            subset.ids.extend_from_slice(self.row(row));
            subset.type_ids.extend_from_slice(self.type_ids_of(row));
            subset.offsets.push(subset.ids.len());
            subset.truncated.extend(self.truncated.get(row));
        }
        subset
    }

    /// Checks that the ids are rows of the model's embedding tables.
    ///
    /// # Errors
    /// When tokenizer and model do not belong together.
    pub fn check_ids(&self, vocab_size: usize, type_vocab_size: usize) -> Result<()> {
        let check = |kind: &str, max: Option<usize>, size: usize, key: &str| match max {
            Some(max) if max >= size => Err(Error::input(format!(
                "tokenizer.json gives {kind} id {max}, but the model knows only {size} (config.json: {key}); the two do \
                 not belong together"
            ))),
            _ => Ok(()),
        };
        check("token", self.ids.iter().max().map(|&i| i as usize), vocab_size, "vocab_size")?;
        check("type", self.type_ids.iter().max().map(|&i| i as usize), type_vocab_size, "type_vocab_size")
    }
}

/// Runs a call of the tokenizers crate, which can panic on a crafted `tokenizer.json`, and gives the reason if it fails.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

    fn example(text: &str, text_pair: Option<&str>) -> Example {
        let text_pair = text_pair.map(str::to_owned);
        let file = Path::new("").into();
        Example { text: text.into(), text_pair, label: None, slice: None, id: None, row: 1, line: 1, file }
    }

    fn encode(tokenizer: &Tokenizer, examples: &[Example], max_length: usize) -> Tokens {
        tokenizer.encode(examples, max_length, &mut |_, _| Ok(())).unwrap()
    }

    /// A model directory with this `tokenizer.json`.
    fn directory(tokenizer_json: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json).unwrap();
        dir
    }

    /// The example model's `tokenizer.json` after an edit.
    fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
        let mut json = serde_json::from_slice(&std::fs::read(format!("{MODEL}/tokenizer.json")).unwrap()).unwrap();
        edit(&mut json);
        directory(json.to_string().as_bytes())
    }

    fn load_error(dir: &tempfile::TempDir) -> String {
        Tokenizer::load(dir.path()).err().expect("loading must fail").to_string()
    }

    #[test]
    fn ids_and_type_ids_equal_transformers() {
        #[derive(Deserialize)]
        struct Case {
            text: String,
            text_pair: Option<String>,
            max_length: usize,
            ids: Vec<u32>,
            type_ids: Vec<u8>,
        }
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let cases = include_str!("../../tests/data/token_ids.jsonl").lines();
        let cases: Vec<Case> = cases.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(cases.len(), 17);
        for case in cases {
            let tokens = encode(&tokenizer, &[example(&case.text, case.text_pair.as_deref())], case.max_length);
            let what = format!("{:?} + {:?} in {}", case.text, case.text_pair, case.max_length);
            assert_eq!(tokens.row(0), case.ids, "{what}");
            assert_eq!(tokens.type_ids_of(0), case.type_ids, "{what}");
        }
    }

    #[test]
    fn rows_keep_their_order_over_chunks_and_truncation_is_counted() {
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let examples: Vec<_> = (0..2500).map(|i| example(&"a ".repeat(i % 40), None)).collect();
        let mut reports = Vec::new();
        let report = &mut |done, total| {
            reports.push((done, total));
            Ok(())
        };
        let tokens = tokenizer.encode(&examples, 32, report).unwrap();
        assert_eq!(reports, [(1024, 2500), (2048, 2500), (2500, 2500)]);
        assert_eq!(tokens.lengths(), (0..2500).map(|i| (i % 40 + 2).min(32)).collect::<Vec<_>>());
        // Of every 40 rows those with 31 to 39 words, and the last 20 rows are short.
        assert_eq!(tokens.truncated.iter().filter(|t| **t).count(), 62 * 9);
        assert_eq!(tokens.ids.len(), *tokens.offsets.last().unwrap());
    }

    #[test]
    fn an_error_from_progress_ends_the_work() {
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let examples = vec![example("a", None); 3000];
        let mut calls = 0;
        let result = tokenizer.encode(&examples, 8, &mut |_, _| {
            calls += 1;
            Err(Error::Interrupted { resumable: false })
        });
        assert!(matches!(result, Err(Error::Interrupted { .. })));
        assert_eq!(calls, 1);
    }

    #[test]
    fn max_length_must_leave_room_for_a_token() {
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let fails = |e: Example, max_length| tokenizer.encode(&[e], max_length, &mut |_, _| Ok(())).unwrap_err();
        let message = fails(example("a", None), 2).to_string();
        assert!(message.contains("set data.max_length to 3 or more"), "{message}");
        let message = fails(example("a", Some("b")), 3).to_string();
        assert!(message.contains("beside 3 special tokens; set data.max_length to 4"), "{message}");
        assert!(fails(example("a", None), 0).exit_code() == 2);
        assert_eq!(encode(&tokenizer, &[example("a", None)], 3).row(0), [101, 1037, 102]);
    }

    #[test]
    fn own_truncation_and_fixed_padding_are_overridden() {
        let dir = edited(|json| {
            json["padding"] = json!({
                "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"
            });
            json["truncation"] = json!({
                "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
            });
        });
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let tokens = encode(&tokenizer, &[example("a b c d", None)], 128);
        assert_eq!(tokens.row(0), [101, 1037, 1038, 1039, 1040, 102]);
        assert!(!tokens.truncated.contains(&true));
    }

    #[test]
    fn a_long_pair_is_cut_without_building_its_other_windows() {
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let text = "a ".repeat(20_000);
        // The crate alone would build 20 000² windows of two tokens each here.
        let tokens = encode(&tokenizer, &[example(&text, Some(&text))], 5);
        assert_eq!(tokens.row(0), [101, 1037, 102, 1037, 102]);
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = load_error(&dir);
        assert!(message.contains("tokenizer.json: there is no such file"), "{message}");
        for bytes in [&b""[..], b"{\"version\": \"1.0\", \"added", b"[]", b"\xff\xfe", b"null"] {
            let message = load_error(&directory(bytes));
            assert!(message.contains("tokenizer.json: this is not a valid tokenizer: "), "{message}");
        }
        let message = load_error(&edited(|json| json["post_processor"] = serde_json::Value::Null));
        assert!(message.contains("adds no [CLS] and [SEP]"), "{message}");
    }

    #[test]
    fn a_panic_in_the_crate_becomes_an_error() {
        // The first two panic while the file is read, the third on the first text.
        let crafted = [
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "////"}), "charsmap"),
            (
                "model",
                json!({"type": "BPE", "continuing_subword_prefix": "####", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}),
                "out of range",
            ),
            ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "non-zero"),
        ];
        for (part, value, reason) in crafted {
            let message = load_error(&edited(|json| json[part] = value));
            assert!(message.contains("this is not a valid tokenizer: ") && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn ids_outside_the_model_are_an_error() {
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.special_tokens_count(false)), (30_522, 2));
        assert_eq!(tokenizer.special_tokens_count(true), 3);
        let tokens = encode(&tokenizer, &[example("a", Some("b"))], 8);
        assert!(tokens.check_ids(1039, 2).is_ok());
        let message = tokens.check_ids(1038, 2).unwrap_err().to_string();
        assert!(message.contains("gives token id 1038, but the model knows only 1038"), "{message}");
        let message = tokens.check_ids(1039, 1).unwrap_err().to_string();
        assert!(message.contains("gives type id 1"), "{message}");
    }

    #[test]
    fn a_subset_is_the_rows_in_the_order_given() {
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let examples = [example("a", None), example("b c", Some("d")), example("", None)];
        let tokens = encode(&tokenizer, &examples, 8);
        let subset = tokens.subset(&[2, 1]);
        assert_eq!((subset.len(), subset.row(0), subset.row(1)), (2, tokens.row(2), tokens.row(1)));
        assert_eq!(subset.type_ids_of(1), tokens.type_ids_of(1));
    }
}
