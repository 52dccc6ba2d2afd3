//! Tags read from the scores of a sentence's words: the best of each word, or the best sequence that the tags' scheme allows.

use crate::data::tagging::scheme::{Prefix, Scheme, Tag, may_follow};
use crate::metrics::classification::argmax;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::str::FromStr;

/// How tags are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TagDecoding {
    /// Each word gets the tag that scores best, as in the reference scripts.
    #[default]
    Argmax,
    /// A sentence gets the sequence of tags that scores best among those that the scheme allows.
    Viterbi,
}

impl TagDecoding {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Argmax => "argmax",
            Self::Viterbi => "viterbi",
        }
    }

    pub fn is_argmax(&self) -> bool {
        *self == Self::Argmax
    }
}

impl FromStr for TagDecoding {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "argmax" => Ok(Self::Argmax),
            "viterbi" => Ok(Self::Viterbi),
            _ => Err("expected argmax or viterbi".into()),
        }
    }
}

/// How tags are found and counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TagReading {
    pub scheme: Scheme,
    pub decoding: TagDecoding,
    /// Whether entities count only whose tags keep to the scheme.
    pub strict: bool,
}

impl TagReading {
    /// What finds the tags of a model with these labels.
    ///
    /// # Errors
    /// The end of a message, when the labels are not those of the scheme.
    pub fn decoder(&self, labels: &[String]) -> Result<TagDecoder, String> {
        let transitions = match self.decoding {
            TagDecoding::Argmax => None,
            TagDecoding::Viterbi => Some(Transitions::new(labels, self.scheme)?),
        };
        Ok(TagDecoder(transitions))
    }
}

/// The scores of a sentence's words, which come from one window or several.
#[derive(Debug)]
pub struct WordScores {
    labels: usize,
    scores: Vec<f32>,
    /// Of each word: which of `scores` are its own, if there are some.
    places: Vec<Option<u32>>,
}

impl WordScores {
    pub fn new(words: usize, labels: usize) -> Self {
        Self { labels, scores: vec![], places: vec![None; words] }
    }

    /// `logits: [labels]` of a word.
    pub fn set(&mut self, word: usize, logits: &[f32]) {
        self.places[word] = Some((self.scores.len() / self.labels) as u32);
        self.scores.extend_from_slice(logits);
    }

    /// The logits of a word, unless it has none, as one that the tokenizer makes nothing of.
    pub fn of(&self, word: usize) -> Option<&[f32]> {
        let at = self.places[word]? as usize * self.labels;
        Some(&self.scores[at..at + self.labels])
    }
}

/// Finds tags; the default takes the best of each word.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TagDecoder(Option<Transitions>);

impl TagDecoder {
    /// The label of each word; `None`, outside, where a word has no scores.
    pub fn decode(&self, scores: &WordScores) -> Vec<Option<u32>> {
        let words: Vec<Option<&[f32]>> = (0..scores.places.len()).map(|word| scores.of(word)).collect();
        let Some(transitions) = &self.0 else { return words.into_iter().map(|w| w.map(argmax)).collect() };
        // What stands outside parts a sentence: in every scheme a tag may stand beside it that may stand at an end.
        let runs = words.chunk_by(|a, b| a.is_some() == b.is_some());
        let of_run = |run: &[Option<&[f32]>]| -> Vec<Option<u32>> {
            let scored: Vec<&[f32]> = run.iter().copied().flatten().collect();
            if scored.is_empty() { vec![None; run.len()] } else { transitions.best(&scored).map(Some).collect() }
        };
        runs.flat_map(of_run).collect()
    }
}

/// Which of a model's tags may stand where.
///
/// Many tags may follow the same ones (each `B` of IOB2 any, each `I` those of its type), so the best of each such set is
/// looked for once a word: in IOB2 that is linear in the number of tags.
#[derive(Debug, Clone, PartialEq)]
struct Transitions {
    /// Whether each tag may begin a sentence.
    begins: Vec<bool>,
    /// Sets of tags, none of them empty.
    sets: Vec<Vec<u32>>,
    /// Which of `sets` may stand before each tag.
    before: Vec<usize>,
    /// Which may end a sentence.
    ends: usize,
}

impl Transitions {
    fn new(labels: &[String], scheme: Scheme) -> Result<Self, String> {
        let parsed: Result<Vec<Tag>, String> = labels.iter().map(|label| Tag::parse(label)).collect();
        let tags = parsed.map_err(|message| format!("{message}, and it finds tags of a scheme only"))?;
        tags.iter().zip(labels).try_for_each(|(tag, label)| can_stand(tag, label, &tags, scheme))?;
        let ends = |tag: Tag| may_follow(scheme, Tag::OUTSIDE, tag) && may_follow(scheme, tag, Tag::OUTSIDE);
        if !tags.iter().any(|&tag| ends(tag) && may_follow(scheme, tag, tag)) {
            let name = scheme.name();
            return Err(format!("there is no label that {name} allows for a sentence of one word, such as O"));
        }
        let (mut sets, mut known) = (vec![], HashMap::new());
        let mut set_before = |tag: Tag| {
            let set: Vec<u32> =
                (0u32..).zip(&tags).filter(|(_, before)| may_follow(scheme, **before, tag)).map(|(i, _)| i).collect();
            *known.entry(set).or_insert_with_key(|set| {
                sets.push(set.clone());
                sets.len() - 1
            })
        };
        let before = tags.iter().map(|&tag| set_before(tag)).collect();
        let ends = set_before(Tag::OUTSIDE);
        Ok(Self { begins: tags.iter().map(|&tag| may_follow(scheme, Tag::OUTSIDE, tag)).collect(), sets, before, ends })
    }

    /// The allowed sequence with the largest sum of `words`' scores, of each word one a label (Viterbi 1967). Log-probabilities
    /// are logits less a number that is the same for all tags of a word, so both have the same best sequence.
    fn best(&self, words: &[&[f32]]) -> impl Iterator<Item = u32> + use<> {
        let (mut sums, mut choices): (Vec<f64>, Vec<Vec<u32>>) = (vec![], Vec::with_capacity(words.len()));
        for word in words {
            if sums.is_empty() {
                let first = |(score, begins): (&f32, &bool)| if *begins { finite(*score) } else { f64::NEG_INFINITY };
                sums = word.iter().zip(&self.begins).map(first).collect();
                continue;
            }
            let best: Vec<u32> = self.sets.iter().map(|set| best_of(&sums, set)).collect();
            let with = |(score, set): (&f32, &usize)| sums[best[*set] as usize] + finite(*score);
            sums = word.iter().zip(&self.before).map(with).collect();
            choices.push(best);
        }
        let last = best_of(&sums, &self.sets[self.ends]);
        let mut tags = vec![last];
        for best in choices.iter().rev() {
            tags.push(best[self.before[tags[tags.len() - 1] as usize]]);
        }
        tags.into_iter().rev()
    }
}

/// Checks that a tag stands in some sequence that the scheme allows of these tags.
fn can_stand(tag: &Tag, label: &str, tags: &[Tag], scheme: Scheme) -> Result<(), String> {
    let needs: &[Prefix] = match (scheme, tag.prefix) {
        (Scheme::Iob1 | Scheme::Iob2, Prefix::E | Prefix::S) => {
            return Err(format!("the label \"{label}\" is none of {}", scheme.name()));
        }
        (Scheme::Iob1, Prefix::B) => &[Prefix::I],
        (Scheme::Iob2, Prefix::I) | (Scheme::Iobes, Prefix::E) => &[Prefix::B],
        (Scheme::Iobes, Prefix::B) => &[Prefix::E],
        (Scheme::Iobes, Prefix::I) => &[Prefix::B, Prefix::E],
        (_, Prefix::O | Prefix::S) | (Scheme::Iob1, Prefix::I) | (Scheme::Iob2, Prefix::B) => &[],
    };
    let lacks = needs.iter().map(|&prefix| Tag { prefix, kind: tag.kind }).find(|needed| !tags.contains(needed));
    match lacks {
        Some(needed) => Err(format!(
            "in {} the label \"{label}\" stands nowhere without \"{needed}\", which is no label",
            scheme.name()
        )),
        None => Ok(()),
    }
}

/// The tag of a set with the largest sum, the first of equal ones; sums are no NaN.
fn best_of(sums: &[f64], set: &[u32]) -> u32 {
    set.iter().copied().reduce(|a, b| if sums[b as usize] > sums[a as usize] { b } else { a }).unwrap_or(0)
}

/// A score that is below all others where it is not a number, and above what is not allowed.
fn finite(score: f32) -> f64 {
    f64::from(if score.is_nan() { f32::MIN } else { score.clamp(f32::MIN, f32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tagging::scheme::{Reading, spans, tags};
    use crate::rng::splitmix;

    const SCHEMES: [(Scheme, &[&str]); 4] = [
        (Scheme::Iob1, &["O", "I-x", "B-x", "I-y", "B-y"]),
        (Scheme::Iob2, &["B-y", "I-x", "O", "B-x", "I-y"]),
        (Scheme::Iobes, &["O", "B-x", "I-x", "E-x", "S-x", "S-y"]),
        (Scheme::Iobes, &["M-x", "B-x", "E-x", "S-x", "O"]),
    ];

    fn decoder(scheme: Scheme, labels: &[&str]) -> Result<TagDecoder, String> {
        let labels: Vec<String> = labels.iter().map(|l| l.to_string()).collect();
        TagReading { scheme, decoding: TagDecoding::Viterbi, strict: false }.decoder(&labels)
    }

    fn parsed<'l>(sequence: &[u32], labels: &[&'l str]) -> Vec<Tag<'l>> {
        sequence.iter().map(|&i| Tag::parse(labels[i as usize]).unwrap()).collect()
    }

    /// Whether tags are what their spans, read strictly, are written as: another way to say what a scheme allows.
    fn is_allowed(sequence: &[Tag], scheme: Scheme) -> bool {
        tags(&spans(sequence, Reading::Strict(scheme)), sequence.len(), scheme) == sequence
    }

    /// All sequences of so many tags.
    fn all(words: usize, labels: usize) -> impl Iterator<Item = Vec<u32>> {
        let base = labels as u32;
        (0..base.pow(words as u32)).map(move |n| (0..words as u32).map(|i| n / base.pow(i) % base).collect())
    }

    /// Scores from −4 to 4, some of them equal.
    fn scores(words: usize, labels: usize, seed: u64) -> WordScores {
        let mut scores = WordScores::new(words, labels);
        for word in (0..words).rev() {
            let draw = |label| (splitmix(splitmix(seed) ^ (word * labels + label) as u64) % 65) as f32 / 8.0 - 4.0;
            scores.set(word, &(0..labels).map(draw).collect::<Vec<f32>>());
        }
        scores
    }

    #[test]
    fn nothing_that_is_allowed_scores_better() {
        for (scheme, labels) in SCHEMES {
            let decoder = decoder(scheme, labels).unwrap();
            let (mut kept, mut moved) = (0, 0);
            for (words, seed) in (1..=5).flat_map(|words| (0..40).map(move |seed| (words, seed))) {
                let scores = scores(words, labels.len(), seed);
                let log = |word: usize, label: u32| {
                    let of = scores.of(word).unwrap();
                    let total: f64 = of.iter().map(|&s| f64::from(s).exp()).sum();
                    f64::from(of[label as usize]) - total.ln()
                };
                let score = |s: &[u32]| s.iter().enumerate().map(|(word, &label)| log(word, label)).sum::<f64>();
                let allowed = all(words, labels.len()).filter(|s| is_allowed(&parsed(s, labels), scheme));
                let best = allowed.map(|s| score(&s)).fold(f64::NEG_INFINITY, f64::max);
                let found: Vec<u32> = decoder.decode(&scores).into_iter().flatten().collect();
                let what = format!("{scheme:?} {found:?} {scores:?}");
                assert!(found.len() == words && is_allowed(&parsed(&found, labels), scheme), "{what}");
                assert!((score(&found) - best).abs() < 1e-9, "{what}: {best}");
                let each: Vec<u32> = TagDecoder::default().decode(&scores).into_iter().flatten().collect();
                if is_allowed(&parsed(&each, labels), scheme) {
                    assert_eq!(each, found, "{what}");
                    kept += 1;
                } else {
                    moved += 1;
                }
            }
            assert!(kept > 20 && moved > 20, "{scheme:?}: {kept} {moved}");
        }
    }

    #[test]
    fn long_sentences_and_strange_scores_keep_to_the_scheme() {
        for (scheme, labels) in SCHEMES {
            let decoder = decoder(scheme, labels).unwrap();
            for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut scores = scores(300, labels.len(), 7);
                scores.scores.iter_mut().step_by(3).for_each(|s| *s = strange);
                // As a word that the tokenizer makes nothing of.
                scores.places[100..102].fill(None);
                let found = decoder.decode(&scores);
                assert!(found.len() == 300 && found[100..102] == [None; 2] && found[102].is_some());
                let tag = |label: &Option<u32>| label.map_or(Tag::OUTSIDE, |l| parsed(&[l], labels)[0]);
                assert!(is_allowed(&found.iter().map(tag).collect::<Vec<_>>(), scheme), "{scheme:?} {strange}");
            }
            assert!(decoder.decode(&WordScores::new(0, labels.len())).is_empty());
        }
    }

    #[test]
    fn labels_that_are_not_the_schemes_are_refused() {
        for (scheme, labels, says) in [
            (Scheme::Iob2, &["NOUN", "O"][..], "tag \"NOUN\" is not O or one of B"),
            (Scheme::Iob2, &["O", "B-x", "S-x"], "the label \"S-x\" is none of iob2"),
            (Scheme::Iob2, &["O", "I-x", "B-y"], "\"I-x\" stands nowhere without \"B-x\""),
            (Scheme::Iob1, &["O", "B-x"], "\"B-x\" stands nowhere without \"I-x\""),
            (Scheme::Iobes, &["O", "B-x", "I-x"], "\"B-x\" stands nowhere without \"E-x\""),
            (Scheme::Iobes, &["O", "I-x", "B-x"], "\"I-x\" stands nowhere without \"E-x\""),
            (Scheme::Iobes, &["B-x", "E-x"], "a sentence of one word"),
        ] {
            let message = decoder(scheme, labels).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
        for labels in [&["I-x"][..], &["O", "I-x", "I-y"]] {
            assert!(decoder(Scheme::Iob1, labels).is_ok());
        }
    }
}
