//! Figures of words with tags.

use super::{Lengths, lengths};
use crate::check::scan::sentences::{SCHEMES, Sentences};
use crate::check::scan::{Scan, Split};
use crate::data::tagging::scheme::{Reading, Tag, spans};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};

/// The words of a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tags {
    pub words: usize,
    pub words_per_sentence: Lengths,
    /// Words by tag, in the order of the tags' ids; those that training does not know are left out.
    pub counts: Vec<(String, usize)>,
    /// The most frequent tag of the training words.
    pub majority: String,
    /// Share of the words that have it.
    pub majority_accuracy: f64,
    /// Words that the tokenizer makes nothing of.
    pub words_without_tokens: usize,
    /// Words whose every token is the unknown one.
    pub unknown_words: usize,
    /// Where the tags are those of entities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entities: Option<Entities>,
}

/// The entities of a split, read as seqeval does by default.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entities {
    pub count: usize,
    /// In the order of their names.
    pub types: Vec<Type>,
    /// Entities of the most frequent type over those of the rarest that has any.
    pub imbalance: f64,
    /// Of the words.
    pub outside_share: f64,
    pub sentences_without: usize,
    /// Of the entities, those whose words, without regard to case, are one of the same type in train; of other splits only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_in_train: Option<usize>,
    pub scheme: Fit,
}

/// Entities of one type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Type {
    pub name: String,
    pub entities: usize,
    pub words: usize,
    /// Sentences with one or more.
    pub sentences: usize,
}

/// How far the tags keep to schemes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// `data.tag_scheme`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configured: Option<&'static str>,
    /// That which the most sentences keep to; `None` where none has an entity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guessed: Option<&'static str>,
    /// Sentences that keep to each.
    pub sentences: BTreeMap<&'static str, usize>,
}

impl Tags {
    pub(super) fn new(scan: &Scan, split: &Split, sentences: &Sentences) -> Self {
        let mut lengths_in_words: Vec<u32> = (0..split.len()).map(|row| sentences.tags(row).len() as u32).collect();
        lengths_in_words.sort_unstable();
        let words: usize = lengths_in_words.iter().map(|&n| n as usize).sum();
        let counts = scan.class_counts(split);
        let of_train = scan.class_counts(&scan.splits[0]);
        // The first of several, as argmax takes it.
        let most = (0..of_train.len()).rev().max_by_key(|&c| of_train[c]).unwrap_or(0);
        let (mut lost, mut unknown) = (0, 0);
        for row in 0..split.len() {
            let (without, unseen) = sentences.unseen_words(row, scan.unknown);
            lost += without.len();
            unknown += unseen;
        }
        Self {
            words,
            words_per_sentence: lengths(&lengths_in_words),
            majority: scan.classes[most].clone(),
            majority_accuracy: counts[most] as f64 / words.max(1) as f64,
            counts: scan.classes.iter().cloned().zip(counts).collect(),
            words_without_tokens: lost,
            unknown_words: unknown,
            entities: scan.has_entities().then(|| Entities::new(scan, split, sentences, words)),
        }
    }
}

impl Entities {
    fn new(scan: &Scan, split: &Split, sentences: &Sentences, words: usize) -> Self {
        let names = sentences.names();
        let (mut types, mut inside, mut without) = (BTreeMap::<&str, Type>::new(), 0, 0);
        for row in 0..split.len() {
            let tags = sentences.tags(row).iter().filter_map(|&tag| Tag::parse(&names[tag as usize]).ok());
            let found = spans(&tags.collect::<Vec<_>>(), Reading::Lenient);
            without += usize::from(found.is_empty());
            let mut met = HashSet::new();
            for span in &found {
                let none = || Type { name: span.kind.to_owned(), entities: 0, words: 0, sentences: 0 };
                let of_type = types.entry(span.kind).or_insert_with(none);
                of_type.entities += 1;
                of_type.words += span.end - span.start;
                of_type.sentences += usize::from(met.insert(span.kind));
                inside += span.end - span.start;
            }
        }
        let types: Vec<Type> = types.into_values().collect();
        let each = || types.iter().map(|t| t.entities);
        let mentions = |split: &Split| -> Vec<u64> {
            let of = |s: &Sentences| (0..split.len()).flat_map(|row| s.note(row).mentions.clone()).collect();
            split.sentences.as_ref().map(of).unwrap_or_default()
        };
        let seen = || {
            let known: HashSet<u64> = mentions(&scan.splits[0]).into_iter().collect();
            mentions(split).iter().filter(|mention| known.contains(mention)).count()
        };
        Self {
            count: each().sum(),
            imbalance: each().max().unwrap_or(0) as f64 / each().min().unwrap_or(1) as f64,
            outside_share: (words - inside) as f64 / words.max(1) as f64,
            sentences_without: without,
            seen_in_train: (split.name != "train").then(seen),
            scheme: Fit::new(scan, split, sentences, inside > 0),
            types,
        }
    }
}

impl Fit {
    fn new(scan: &Scan, split: &Split, sentences: &Sentences, any: bool) -> Self {
        let keep = |i: usize| (0..split.len()).filter(|&row| sentences.note(row).wrong[i].is_none()).count();
        let fits = [0, 1, 2].map(keep);
        // The first of those that fit equally well.
        let best = (0..3).rev().max_by_key(|&i| fits[i]).unwrap_or(0);
        Self {
            configured: scan.scheme.map(|scheme| scheme.name()),
            guessed: any.then(|| SCHEMES[best].name()),
            sentences: SCHEMES.iter().map(|scheme| scheme.name()).zip(fits).collect(),
        }
    }
}
