//! Texts to token ids, once before training, in parallel: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, truncated
//! `longest_first`, never padded.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tokenizers::{Encoding, ModelWrapper, PreTokenizerWrapper};

use super::example::Example;
use super::tokens::{Arrays, Piece, Seen, Tokens};
use super::unigram::with_fast_scores;
use super::vocabulary::tokenizer_json;
use super::words::{Ids, Near, Word, Words, words};
use crate::error::{Error, Result, guarded};

/// Rows between two reports of progress, which is also how long an interruption may wait.
const CHUNK_ROWS: usize = 1024;
/// Rows that one thread encodes together.
const PIECE_ROWS: usize = 64;

/// A model directory's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same with a space before each word, where spaces are part of tokens and words come without.
    for_words: Option<Box<tokenizers::Tokenizer>>,
    file: PathBuf,
    /// `None` where a text may not be tokenised word by word.
    words: Option<Words>,
    single: Frame,
    pair: Frame,
}

/// Of each token of a text its first character and past its last.
pub type Offsets = Vec<(u32, u32)>;

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub struct Framed {
    pub ids: Vec<u32>,
    pub type_ids: Vec<u8>,
    /// Tokens before the text's, or the second text's.
    pub before: usize,
}

/// What the post-processor makes of a text or a pair: special tokens around the texts' own.
#[derive(Debug)]
struct Frame(Vec<Part>);

#[derive(Debug)]
enum Part {
    /// One token and its type id.
    Special(u32, u8),
    /// The first or second text, with the type id of its tokens.
    Text(usize, u8),
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory, see [`Self::json`]. Truncation and padding of its own are dropped: MiniLM's pads every
    /// row to 128.
    ///
    /// # Errors
    /// When the file is missing, not a tokenizer, or adds no special tokens.
    pub fn load(model_dir: impl AsRef<Path>) -> Result<Self> {
        let (file, bytes) = Self::json(model_dir)?;
        let wrong = |reason: String| Error::in_file(&file, format!("this is not a valid tokenizer: {reason}"));
        let bytes = with_fast_scores(&bytes).unwrap_or(bytes);
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes)).map_err(wrong)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| wrong(e.to_string()))?;
        if inner.get_post_processor().is_none() {
            return Err(Error::in_file(&file, NO_SPECIAL));
        }
        let single = guarded(|| Frame::of(&inner, false)).map_err(wrong)?;
        let pair = guarded(|| Frame::of(&inner, true)).map_err(wrong)?;
        if single.special() == 0 {
            return Err(Error::in_file(&file, NO_SPECIAL));
        }
        let words = Words::suit(&inner).then(Words::new);
        let for_words = with_prefix_space(&inner);
        let tokenizer = Self { words, for_words, inner, file: file.clone(), single, pair };
        // A file can load and yet fail on every text, so one is tried here.
        let text_pair = Some("b".to_owned());
        let file = Path::new("").into();
        let probe = Example { text: "a".into(), text_pair, label: None, slice: None, id: None, row: 1, line: 1, file };
        tokenizer.encoder(512).try_encode(&[probe]).map_err(|(_, reason)| wrong(reason))?;
        Ok(tokenizer)
    }

    /// A directory's `tokenizer.json`, or what it would hold by the vocabulary that is there instead, and the file's name for
    /// messages.
    ///
    /// # Errors
    /// When there is neither.
    pub fn json(model_dir: impl AsRef<Path>) -> Result<(PathBuf, Vec<u8>)> {
        let dir = model_dir.as_ref();
        let file = dir.join("tokenizer.json");
        match std::fs::read(&file) {
            Ok(bytes) => Ok((file, bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let bytes = tokenizer_json(dir)?;
                let names = ["vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model"];
                let found = names.map(|name| dir.join(name)).into_iter().find(|f| f.is_file());
                Ok((found.unwrap_or(file), bytes))
            }
            Err(e) => Err(Error::io(&file, e)),
        }
    }

    /// Ids that the tokenizer knows, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Special tokens around one text (2 for BERT) or a pair (3).
    pub fn special_tokens_count(&self, pair: bool) -> usize {
        self.frame(pair).special()
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
        let (mut arrays, mut seen, mut done) = (Arrays::default(), Seen::default(), 0);
        for chunk in examples.chunks(CHUNK_ROWS) {
            let pieces: Vec<_> = chunk
                .par_chunks(PIECE_ROWS)
                .map_init(|| self.encoder(max_length), |encoder, rows| encoder.encode(rows))
                .collect();
            for (piece, error) in pieces {
                seen.add(&piece.ids);
                arrays.append(&piece);
                error.map_or(Ok(()), Err)?;
            }
            done += chunk.len();
            progress(done, examples.len())?;
        }
        Ok(arrays.finish(seen))
    }

    /// The tokens of a sentence's words, without special ones, and which of them are each word's; a word may have none. As
    /// `transformers` does it with `is_split_into_words`; a tokenizer that marks spaces sees one before each word.
    ///
    /// # Errors
    /// Why the tokenizer fails.
    pub fn encode_words(&self, words: &[String]) -> Result<(Vec<u32>, Vec<Range<usize>>), String> {
        let inner = self.for_words.as_deref().unwrap_or(&self.inner);
        let encoding = guarded(|| inner.encode(words, false)).map_err(|e| format!("the tokenizer failed: {e}"))?;
        let mut ranges = vec![0..0; words.len()];
        for (token, word) in encoding.get_word_ids().iter().enumerate() {
            if let Some(range) = word.and_then(|word| ranges.get_mut(word as usize)) {
                let start = if range.end == 0 { token } else { range.start };
                *range = start..token + 1;
            }
        }
        // A word without tokens stands where the next begins.
        let mut at = 0;
        for range in &mut ranges {
            if range.end == 0 {
                *range = at..at;
            }
            at = range.end;
        }
        Ok((encoding.get_ids().to_vec(), ranges))
    }

    /// The tokens of a text, without special ones, and where each stands in it: its first character and past its last.
    ///
    /// # Errors
    /// Why the tokenizer fails.
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Offsets), String> {
        let encoded = guarded(|| self.inner.encode_char_offsets(text, false));
        let encoding = encoded.map_err(|e| format!("the tokenizer failed: {e}"))?;
        let offsets = encoding.get_offsets().iter().map(|&(from, to)| (from as u32, to as u32)).collect();
        Ok((encoding.get_ids().to_vec(), offsets))
    }

    /// The tokens of a pair with the special tokens of a row around them; `before` are those in front of the second's.
    pub fn framed_pair(&self, first: &[u32], second: &[u32]) -> Framed {
        let mut piece = Piece::default();
        self.pair.fill([first, second], &mut piece);
        let ahead = self.pair.0.iter().take_while(|part| !matches!(part, Part::Text(1, _)));
        let before = ahead.map(|part| if matches!(part, Part::Text(..)) { first.len() } else { 1 }).sum();
        Framed { ids: piece.ids, type_ids: piece.type_ids, before }
    }

    /// A text's tokens with the special tokens of a row around them.
    pub fn framed(&self, ids: &[u32]) -> Framed {
        let mut piece = Piece::default();
        self.single.fill([ids, &[]], &mut piece);
        let before = self.single.0.iter().take_while(|part| matches!(part, Part::Special(..))).count();
        Framed { ids: piece.ids, type_ids: piece.type_ids, before }
    }

    /// # Errors
    /// When `max_length` leaves no room for text.
    pub fn check_max_length(&self, max_length: usize, pair: bool) -> Result<()> {
        let special = self.special_tokens_count(pair);
        if max_length > special {
            return Ok(());
        }
        Err(Error::input(format!(
            "max_length {max_length} leaves no room for text beside {special} special tokens; set data.max_length to {} or more",
            special + 1
        )))
    }

    /// For one thread.
    pub(super) fn encoder(&self, max_length: usize) -> Encoder<'_> {
        Encoder { tokenizer: self, max_length, near: Near::default() }
    }

    fn frame(&self, pair: bool) -> &Frame {
        if pair { &self.pair } else { &self.single }
    }

    fn failed(&self, reason: &str, example: &Example) -> Error {
        let place = format!("{}:{}", example.file.display(), example.line);
        Error::in_file(&self.file, format!("the tokenizer failed at or after {place}: {reason}"))
    }
}

/// A byte-level tokenizer that puts a space before each word; `None` where it does already, or needs none.
fn with_prefix_space(inner: &tokenizers::Tokenizer) -> Option<Box<tokenizers::Tokenizer>> {
    fn set(part: &mut PreTokenizerWrapper) -> bool {
        match part {
            PreTokenizerWrapper::ByteLevel(bytes) => !std::mem::replace(&mut bytes.add_prefix_space, true),
            PreTokenizerWrapper::Sequence(parts) => parts.as_mut().iter_mut().any(set),
            _ => false,
        }
    }
    let mut parts = inner.get_pre_tokenizer()?.clone();
    set(&mut parts).then(|| {
        let mut changed = inner.clone();
        changed.with_pre_tokenizer(Some(parts));
        Box::new(changed)
    })
}

const NO_SPECIAL: &str = "its post_processor adds no [CLS] and [SEP], which the model reads";

impl Frame {
    /// Looks at what the post-processor makes of tokens that no tokenizer gives.
    fn of(tokenizer: &tokenizers::Tokenizer, pair: bool) -> tokenizers::Result<Self> {
        const TEXTS: [u32; 2] = [u32::MAX, u32::MAX - 1];
        let processed = |lengths: [usize; 2]| {
            let token = |id| (id, String::new(), (0, 0), None, 0);
            let texts = [0, 1].map(|i| (0..lengths[i]).map(|_| token(TEXTS[i])).collect::<Encoding>());
            let [first, second] = texts;
            let encoding = tokenizer.post_process(first, pair.then_some(second), true)?;
            let types = encoding.get_type_ids().iter().map(|&t| u8::try_from(t)).collect::<Result<Vec<_>, _>>()?;
            Ok::<_, tokenizers::Error>((encoding.get_ids().to_vec(), types))
        };
        let (ids, types) = processed([1, 1])?;
        let part = |(&id, t)| match TEXTS.iter().position(|&text| text == id) {
            Some(text) => Part::Text(text, t),
            None => Part::Special(id, t),
        };
        let frame = Self(ids.iter().zip(types).map(part).collect());
        let texts = frame.0.len() - frame.special();
        let (mut piece, three, two) = (Piece::default(), [TEXTS[0]; 3], [TEXTS[1]; 2]);
        frame.fill([&three, &two], &mut piece);
        if texts != 1 + usize::from(pair) || (piece.ids, piece.type_ids) != processed([3, 2])? {
            return Err("its post_processor does more than to put special tokens around each text".into());
        }
        Ok(frame)
    }

    fn special(&self) -> usize {
        self.0.iter().filter(|part| matches!(part, Part::Special(..))).count()
    }

    fn fill(&self, texts: [&[u32]; 2], to: &mut Piece) {
        for part in &self.0 {
            match *part {
                Part::Special(id, type_id) => {
                    to.ids.push(id);
                    to.type_ids.push(type_id);
                }
                Part::Text(i, type_id) => {
                    to.ids.extend_from_slice(texts[i]);
                    to.type_ids.resize(to.ids.len(), type_id);
                }
            }
        }
    }
}

/// A tokenizer with what one thread remembers.
pub(super) struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    max_length: usize,
    near: Near,
}

/// Ids of texts end to end. Words that were not known yet are missing: they belong before the id at their place.
#[derive(Default)]
struct Gathered<'e> {
    ids: Vec<u32>,
    /// (place in `ids`, index into the new words)
    missing: Vec<(usize, usize)>,
    /// Ends in `ids` and `missing` of each text.
    ends: Vec<(usize, usize)>,
    new: Vec<Word<'e>>,
    index: HashMap<&'e str, usize, foldhash::fast::FixedState>,
}

impl Encoder<'_> {
    /// Rows up to the first that the tokenizer cannot take, and that row's error.
    pub fn encode(&mut self, rows: &[Example]) -> (Piece, Option<Error>) {
        match self.try_encode(rows) {
            Ok(piece) => (piece, None),
            Err((piece, reason)) => {
                let error = self.tokenizer.failed(&reason, &rows[piece.len()]);
                (piece, Some(error))
            }
        }
    }

    fn try_encode(&mut self, rows: &[Example]) -> Result<Piece, (Piece, String)> {
        let mut piece = Piece::default();
        match guarded(|| self.encode_into(rows, &mut piece)) {
            Ok(()) => Ok(piece),
            Err(reason) => Err((piece, reason)),
        }
    }

    fn encode_into(&mut self, rows: &[Example], piece: &mut Piece) -> tokenizers::Result<()> {
        let Some(dictionary) = &self.tokenizer.words else {
            for row in rows {
                let encode = |text: &str| self.tokenizer.inner.encode_fast(text, false);
                let first = encode(&row.text)?;
                let second = row.text_pair.as_deref().map(encode).transpose()?;
                self.push(piece, first.get_ids(), second.as_ref().map(Encoding::get_ids));
            }
            return Ok(());
        };
        let mut gathered = Gathered::default();
        for row in rows {
            // Which of two texts is the longer one decides what is kept of both.
            let enough = if row.text_pair.is_some() { usize::MAX } else { self.room(false) + 1 };
            for text in std::iter::once(row.text.as_str()).chain(row.text_pair.as_deref()) {
                gathered.gather(text, enough, dictionary, &mut self.near);
            }
        }
        let learnt = dictionary.learn(&self.tokenizer.inner, &gathered.new);
        let learnt: Vec<_> = learnt.into_iter().map(|ids| ids.map_err(|e| e.to_string())).collect();
        let (mut first, mut second, mut text) = (vec![], vec![], 0..);
        for row in rows {
            // There are as many numbers as there are texts.
            let mut next = || text.next().unwrap_or_default();
            let first = gathered.text(next(), &learnt, &mut first)?;
            let second = match row.text_pair {
                Some(_) => Some(gathered.text(next(), &learnt, &mut second)?),
                None => None,
            };
            self.push(piece, first, second);
        }
        Ok(())
    }

    fn room(&self, pair: bool) -> usize {
        self.max_length.saturating_sub(self.tokenizer.special_tokens_count(pair))
    }

    /// Appends a row. Of a single text it is enough to have one token more than there is room for.
    fn push(&self, piece: &mut Piece, first: &[u32], second: Option<&[u32]>) {
        let room = self.room(second.is_some());
        let lengths = [first.len(), second.map_or(0, <[u32]>::len)];
        let [n1, n2] = longest_first(lengths, second.is_some(), room);
        self.tokenizer.frame(second.is_some()).fill([&first[..n1], &second.unwrap_or(&[])[..n2]], piece);
        piece.ends.push(piece.ids.len());
        piece.truncated.push((lengths[0] + lengths[1] > room).into());
    }
}

/// How much of a text or a pair is kept, as `transformers` has it.
fn longest_first([n1, n2]: [usize; 2], pair: bool, room: usize) -> [usize; 2] {
    if n1 + n2 <= room {
        return [n1, n2];
    }
    if !pair {
        return [room, 0];
    }
    let (short, swap) = (n1.min(n2), n1 > n2);
    let long = if short > room { short } else { short.max(room - short) };
    let (short, long) = if short + long > room { (room / 2, room / 2 + room % 2) } else { (short, long) };
    if swap { [long, short] } else { [short, long] }
}

impl<'e> Gathered<'e> {
    /// Adds a text: all of it, or so much that it has `enough` known tokens.
    fn gather(&mut self, text: &'e str, enough: usize, dictionary: &Words, near: &mut Near) {
        let start = self.ids.len();
        for word in words(text) {
            if self.ids.len() - start >= enough {
                break;
            }
            if !dictionary.copy(near, word, &mut self.ids) {
                let index = *self.index.entry(word.text).or_insert_with(|| {
                    self.new.push(word);
                    self.new.len() - 1
                });
                self.missing.push((self.ids.len(), index));
            }
        }
        self.ends.push((self.ids.len(), self.missing.len()));
    }

    /// The ids of text `i`, with the missing words in their places, in `buffer` if it has such.
    fn text<'a>(
        &'a self,
        i: usize,
        learnt: &[Result<Ids, String>],
        buffer: &'a mut Vec<u32>,
    ) -> Result<&'a [u32], String> {
        let (mut start, missing) = if i == 0 { (0, 0) } else { self.ends[i - 1] };
        let (end, missing_end) = self.ends[i];
        if missing == missing_end {
            return Ok(&self.ids[start..end]);
        }
        buffer.clear();
        for &(place, word) in &self.missing[missing..missing_end] {
            buffer.extend_from_slice(&self.ids[start..place]);
            buffer.extend_from_slice(learnt[word].as_ref().map_err(Clone::clone)?);
            start = place;
        }
        buffer.extend_from_slice(&self.ids[start..end]);
        Ok(buffer)
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
        assert_eq!(tokens.truncated(), 62 * 9);
        assert_eq!(tokens.total(), tokens.lengths().iter().sum::<usize>());
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
        assert_eq!(tokens.truncated(), 0);
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
    fn what_is_kept_of_a_pair_is_what_the_crate_keeps() {
        use tokenizers::{TruncationParams, truncate_encodings};
        let encoding = |n| (0..n).map(|_| (1, String::new(), (0, 0), None, 0)).collect::<Encoding>();
        for (n1, n2, room) in (0..9).flat_map(|a| (0..9).flat_map(move |b| (0..9).map(move |room| (a, b, room)))) {
            let params = TruncationParams { max_length: room, ..Default::default() };
            let (first, second) = truncate_encodings(encoding(n1), Some(encoding(n2)), &params).unwrap();
            let expected = [first.len(), second.unwrap().len()];
            assert_eq!(longest_first([n1, n2], true, room), expected, "{n1} + {n2} in {room}");
            assert_eq!(longest_first([n1, 0], false, room)[0], n1.min(room));
        }
    }

    #[test]
    fn a_post_processor_that_drops_a_text_is_refused() {
        let dir = edited(|json| {
            json["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]",
                "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [101], "tokens": ["[CLS]"]}}});
        });
        let message = load_error(&dir);
        assert!(message.contains("does more than to put special tokens"), "{message}");
    }

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = load_error(&dir);
        assert!(message.contains("tokenizer.json: there is no tokenizer.json, and no vocab.txt"), "{message}");
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
                // A build with checks notices one operation earlier.
                if cfg!(debug_assertions) { "overflow" } else { "out of range" },
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
