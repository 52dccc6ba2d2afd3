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
        let is_json = file.ends_with("tokenizer.json");
        let bytes = with_fast_scores(&bytes).filter(|_| is_json).unwrap_or(bytes);
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
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => tokenizer_json(dir),
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
            ModelWrapper::Unigram(_) => return ["<unk>", "[UNK]"].iter().find_map(|name| self.inner.token_to_id(name)),
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

    /// The tokens of a text, without special ones.
    ///
    /// # Errors
    /// Why the tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoded = guarded(|| self.inner.encode_fast(text, false));
        encoded.map(|e| e.get_ids().to_vec()).map_err(|e| format!("the tokenizer failed: {e}"))
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
mod tests;
