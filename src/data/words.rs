//! Each distinct word of the data is tokenised once; its rows then copy the ids.
//!
//! BERT's normaliser and pre-tokeniser judge one character at a time and end a word at a space, so the tokens of a text are
//! those of what stands between its spaces, end to end. Normalising is nearly all of the cost of tokenising, and few words
//! are new: SST-2's 6920 rows hold 128 000 words, 13 800 of them distinct, and take 2.4 times less CPU time.

use foldhash::fast::FixedState;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use tokenizers::{AddedToken, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// An added token of every BERT tokenizer.
const SEPARATOR: &str = "[SEP]";
const WORDS_A_CALL: usize = 64;
/// Longer words are rarely met twice.
const LONGEST_KEPT: usize = 64;
/// Words that are remembered: frequent ones come early, and the memory has a bound (about 50 MB) whatever the file holds.
const MOST_WORDS: usize = 1 << 19;
const SHARDS: usize = 64;
/// Places of a thread's own table (1 MiB, as much as many a core's second-level cache).
const NEAR: usize = 1 << 15;
/// The longest word, in bytes, that a key holds.
const KEY_BYTES: usize = 15;

pub(super) type Ids = Box<[u32]>;

/// Token ids of the words met so far, without special tokens around them. Shared by all threads.
pub(super) struct Words {
    shards: Vec<RwLock<Shard>>,
    count: AtomicUsize,
}

/// Nearly all words are short and of few tokens; these take one look into memory.
#[derive(Default)]
struct Shard {
    short: HashMap<u128, Few, FixedState>,
    other: HashMap<Box<str>, Ids, FixedState>,
}

/// Up to three ids.
#[derive(Clone, Copy, Default)]
struct Few {
    ids: [u32; 3],
    count: u32,
}

/// One thread's table of short words, so that the frequent ones take no lock. A word drives out the one at its place;
/// frequent ones are soon back.
#[derive(Default)]
pub(super) struct Near(Vec<(u128, Few)>);

/// What stands between two spaces. Other white space stays inside: the tokenizer splits there itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<'t> {
    pub text: &'t str,
    /// Its bytes and, in the highest, their number; `None` for a long word.
    key: Option<u128>,
}

impl Words {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), count: AtomicUsize::new(0) }
    }

    /// Whether a tokenizer's tokens of a text are those of its words. Added tokens must neither hold a space nor reach for
    /// those beside them.
    pub(super) fn suit(tokenizer: &tokenizers::Tokenizer) -> bool {
        let within_word = |t: &AddedToken| !t.lstrip && !t.rstrip && t.content.bytes().all(|b| b.is_ascii_graphic());
        matches!(tokenizer.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
            && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
            && matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_))
            && tokenizer.get_added_tokens_decoder().values().all(within_word)
    }

    /// Appends the ids of a word if it is known.
    pub(super) fn copy(&self, near: &mut Near, word: Word<'_>, to: &mut Vec<u32>) -> bool {
        if let Some(few) = near.get(word) {
            to.extend(few.ids());
            return true;
        }
        let shard = self.shard(word).read().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = word.key
            && let Some(few) = shard.short.get(&key)
        {
            to.extend(few.ids());
            near.keep(key, *few);
            return true;
        }
        let ids = shard.other.get(word.text);
        to.extend(ids.into_iter().flatten());
        ids.is_some()
    }

    /// Tokenises words that are new and remembers them. The error is that of a word which the tokenizer cannot take.
    pub(super) fn learn(&self, tokenizer: &tokenizers::Tokenizer, words: &[Word<'_>]) -> Vec<tokenizers::Result<Ids>> {
        let mut learnt = Vec::with_capacity(words.len());
        for words in words.chunks(WORDS_A_CALL) {
            match ids_of(tokenizer, words) {
                Some(ids) => learnt.extend(ids.into_iter().map(Ok)),
                None => learnt.extend(words.iter().map(|w| Ok(tokenizer.encode_fast(w.text, false)?.get_ids().into()))),
            }
        }
        for (word, ids) in words.iter().zip(&learnt) {
            if let Ok(ids) = ids
                && word.text.len() <= LONGEST_KEPT
                && self.count.load(Ordering::Relaxed) < MOST_WORDS
            {
                self.keep(*word, ids);
            }
        }
        learnt
    }

    fn keep(&self, word: Word<'_>, ids: &Ids) {
        let mut shard = self.shard(word).write().unwrap_or_else(PoisonError::into_inner);
        let new = match (word.key, Few::new(ids)) {
            (Some(key), Some(few)) => shard.short.insert(key, few).is_none(),
            _ => shard.other.insert(word.text.into(), ids.clone()).is_none(),
        };
        self.count.fetch_add(new.into(), Ordering::Relaxed);
    }

    fn shard(&self, word: Word<'_>) -> &RwLock<Shard> {
        // Other bits than those by which the maps go.
        let hash = || (FixedState::default().hash_one(word.text) >> 32) as usize;
        &self.shards[word.key.map_or_else(hash, place) % SHARDS]
    }
}

impl Few {
    fn new(ids: &[u32]) -> Option<Self> {
        let mut few = Self { ids: [0; 3], count: ids.len() as u32 };
        few.ids.get_mut(..ids.len())?.copy_from_slice(ids);
        Some(few)
    }

    fn ids(&self) -> &[u32] {
        &self.ids[..self.count as usize]
    }
}

impl Near {
    fn get(&self, word: Word<'_>) -> Option<&Few> {
        let key = word.key?;
        self.0.get(place(key)).filter(|(found, _)| *found == key).map(|(_, few)| few)
    }

    fn keep(&mut self, key: u128, few: Few) {
        if self.0.is_empty() {
            // No word has the key 0.
            self.0 = vec![(0, Few::default()); NEAR];
        }
        self.0[place(key)] = (key, few);
    }
}

/// A number below [`NEAR`] in which every bit of the key has a part.
fn place(key: u128) -> usize {
    let product =
        u128::from(key as u64 ^ 0x9e37_79b9_7f4a_7c15) * u128::from((key >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03);
    (product ^ (product >> 64)) as usize % NEAR
}

/// Token ids of each of some words. Most of the cost of tokenising one word is the call's, so they go together, with a
/// token between them that none of them gives.
fn ids_of(tokenizer: &tokenizers::Tokenizer, words: &[Word<'_>]) -> Option<Vec<Ids>> {
    let words: Vec<&str> = words.iter().map(|w| w.text).collect();
    if words.iter().any(|w| w.contains(SEPARATOR)) {
        return None;
    }
    let separator = tokenizer.token_to_id(SEPARATOR)?;
    let encoding = tokenizer.encode_fast(words.join(&format!(" {SEPARATOR} ")), false).ok()?;
    let ids: Vec<_> = encoding.get_ids().split(|&id| id == separator).map(Into::into).collect();
    (ids.len() == words.len()).then_some(ids)
}

/// The words of a text.
pub(super) fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(' ');
        let (length, key) = first_word(rest)?;
        let (text, after) = rest.split_at(length);
        rest = after;
        Some(Word { text, key })
    })
}

/// Length and key of the word at the start of a text, which begins with no space.
fn first_word(text: &str) -> Option<(usize, Option<u128>)> {
    const ONES: u128 = u128::MAX / 255;
    let key = |bytes: u128, length: usize| (bytes & ((1 << (8 * length)) - 1)) | (length as u128) << 120;
    if let Some(bytes) = text.as_bytes().first_chunk() {
        let bytes = u128::from_le_bytes(*bytes);
        // The lowest high bit is that of the first byte that is a space.
        let others = bytes ^ (ONES * u128::from(b' '));
        let spaces = others.wrapping_sub(ONES) & !others & (ONES << 7);
        if spaces != 0 {
            let length = spaces.trailing_zeros() as usize / 8;
            return Some((length, Some(key(bytes, length))));
        }
    }
    let length = text.find(' ').unwrap_or(text.len());
    let short = (1..=KEY_BYTES).contains(&length).then(|| {
        let mut bytes = [0; 16];
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        key(u128::from_le_bytes(bytes), length)
    });
    (length > 0).then_some((length, short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::OnceLock;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h/tokenizer.json");

    /// The example model's tokenizer after an edit.
    fn edited(edit: impl FnOnce(&mut Value)) -> tokenizers::Tokenizer {
        let mut json = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
        edit(&mut json);
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        tokenizer.with_padding(None).with_truncation(None).unwrap();
        tokenizer
    }

    /// The example's, one that keeps case and accents, and one with added tokens of every kind that still suits.
    fn tokenizers() -> &'static [tokenizers::Tokenizer] {
        static ONCE: OnceLock<Vec<tokenizers::Tokenizer>> = OnceLock::new();
        let added = |json: &mut Value| {
            let tokens = json["added_tokens"].as_array_mut().unwrap();
            for (i, (content, single_word, normalized)) in
                [("[X]", false, false), ("ab", true, false), ("Ba", false, true), ("e-e", true, true)]
                    .iter()
                    .enumerate()
            {
                tokens.push(json!({"id": 90_000 + i, "content": content, "single_word": single_word, "lstrip": false,
                    "rstrip": false, "normalized": normalized, "special": false}));
            }
        };
        let cased = |json: &mut Value| {
            json["normalizer"]["lowercase"] = json!(false);
            json["normalizer"]["strip_accents"] = json!(false);
        };
        ONCE.get_or_init(|| vec![edited(|_| ()), edited(cased), edited(added)])
    }

    /// The ids of a text, each word of it looked up twice: unknown at first, then known.
    fn by_words(dictionary: &Words, near: &mut Near, tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
        let mut ids = vec![];
        for word in words(text) {
            if !dictionary.copy(near, word, &mut ids) {
                let learnt = dictionary.learn(tokenizer, &[word]).pop().unwrap().unwrap();
                ids.extend(&learnt);
                let mut again = vec![];
                assert_eq!(dictionary.copy(&mut Near::default(), word, &mut again), word.text.len() <= LONGEST_KEPT);
                assert!(again.is_empty() || *again == *learnt);
            }
        }
        ids
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Space, other white space, accents apart and composed, marks without a letter, control and zero-width characters,
        /// punctuation, Chinese, Hangul in parts, added tokens.
        #[test]
        fn words_give_the_tokens_of_the_whole_text(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    " ", " ", " ", " ", "a", "b", "e", "ab", "Ba", "e-e", "the", "Running", "[X]", "[MASK]", "[SEP]", "é",
                    "e\u{301}", "\u{301}", "\u{316}", "\t", "\n", "\r", "\u{a0}", "\u{3000}", "\u{2028}", "\u{0}",
                    "\u{fffd}", "\u{200d}", "\u{ad}", ".", "'", "-", "…", "中", "文", "\u{1100}", "\u{1161}", "ß", "İ", "Σ",
                    "ﬁ", "😀", "\u{fe0f}", "1", "ab\u{345}",
                ]),
                0..40,
            )
        ) {
            let text = parts.concat();
            for tokenizer in tokenizers() {
                prop_assert!(Words::suit(tokenizer));
                let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
                let (dictionary, mut near) = (Words::new(), Near::default());
                for _ in 0..2 {
                    let by_words = by_words(&dictionary, &mut near, tokenizer, &text);
                    prop_assert_eq!(&by_words, whole.get_ids(), "{:?}", text);
                }
                let all: Vec<Word<'_>> = words(&text).collect();
                let together = Words::new().learn(tokenizer, &all);
                let together: Vec<u32> = together.into_iter().flat_map(Result::unwrap).collect();
                prop_assert_eq!(&together, whole.get_ids(), "{:?}", text);
            }
        }
    }

    #[test]
    fn words_are_remembered_up_to_a_number() {
        let tokenizer = &tokenizers()[0];
        let (words, near) = (Words::new(), &mut Near::default());
        fn word(text: &str) -> Word<'_> {
            super::words(text).next().unwrap()
        }
        let all: Vec<String> = (0..500).map(|i| format!("word{i}")).chain(["[SEP]".into(), "x".repeat(65)]).collect();
        let all: Vec<Word<'_>> = all.iter().map(|w| word(w)).collect();
        let learnt = words.learn(tokenizer, &all);
        assert_eq!((learnt.len(), words.count.load(Ordering::Relaxed)), (502, 501));
        words.count.store(MOST_WORDS, Ordering::Relaxed);
        assert_eq!(*words.learn(tokenizer, &[word("new")])[0].as_ref().unwrap().clone(), [2047]);
        assert!(!words.copy(near, word("new"), &mut vec![]));
        assert!(words.copy(near, word("word7"), &mut vec![]));
    }

    #[test]
    fn words_are_what_stands_between_spaces_and_have_keys_of_their_own() {
        let texts = [
            "",
            " ",
            "a",
            " a  bc ",
            "a\0",
            "a\0 a",
            "123456789012345",
            "123456789012345 ",
            "1234567890123456",
            "\u{20ac} \u{a0}\u{2020}",
            "1234567890123456 7",
            "é\tè\n ê",
            "    x                    y",
            "\u{1}!\u{21} \u{1f} \u{7f}~ \u{a0}",
        ];
        let mut keys = HashMap::new();
        for text in texts {
            let found: Vec<&str> = words(text).map(|w| w.text).collect();
            assert_eq!(found, text.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>(), "{text:?}");
            for word in words(text) {
                assert_eq!(word.key.is_some(), word.text.len() <= KEY_BYTES);
                if let Some(key) = word.key {
                    assert_eq!(*keys.entry(key).or_insert(word.text), word.text);
                    assert!(place(key) < NEAR);
                }
            }
        }
        assert!(keys.len() > 12);
    }

    #[test]
    fn a_tokenizer_that_looks_beyond_a_word_does_not_suit() {
        let added = |content: &'static str, strip: bool| {
            edited(move |json| {
                let token = json!({"id": 90_000, "content": content, "single_word": false, "lstrip": strip, "rstrip": false,
                    "normalized": false, "special": false});
                json["added_tokens"].as_array_mut().unwrap().push(token);
            })
        };
        assert!(Words::suit(&added("ab", false)));
        assert!(!Words::suit(&added("ab", true)));
        assert!(!Words::suit(&added("a b", false)));
        assert!(!Words::suit(&edited(|json| json["normalizer"] = json!({"type": "NFC"}))));
        assert!(!Words::suit(&edited(|json| json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"}))));
    }
}
