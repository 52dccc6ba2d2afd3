//! Words with tags: what training refuses, schemes, types of entities.

use super::View;
use crate::check::findings::{
    FEW_ROWS, Finding, IMBALANCE, IMBALANCE_FIX, Listed, Name, Place, counted, imbalance, listed_names, share,
};
use crate::check::measures::{Entities, Measures, Tags};
use crate::check::scan::sentences::{SCHEMES, Sentences};
use crate::data::tagging::scheme::{Scheme, Tag};
use crate::data::tagging::why_wrong;
use std::collections::{BTreeSet, HashSet};

impl View<'_> {
    /// What only words with tags have.
    pub(super) fn tags(&self, split: usize, measures: &Measures) -> Vec<Finding> {
        let (Some(sentences), Some(tags)) = (&self.splits[split].sentences, &measures.tags) else { return vec![] };
        let mut found: Vec<Finding> = self.unknown_tags(split, sentences).into_iter().collect();
        found.extend(self.lost_words(split, sentences, tags));
        found.extend(self.empty_sentences(split, sentences));
        if let Some(entities) = &tags.entities {
            found.extend(self.bad_scheme(split, sentences, entities));
            found.extend(self.no_entities(split, entities));
            found.extend(if split == 0 { self.types(entities) } else { vec![] });
        }
        found.extend(self.missing_types(split));
        found
    }

    /// A word's place: its own line where it has one.
    fn word_place(&self, split: usize, row: usize, word: usize, sentences: &Sentences) -> Place {
        let Place { file, line, id } = self.place(split, row);
        let more = if sentences.note(row).line_a_word { word as u64 } else { 0 };
        Place { file, line: line + more, id }
    }

    /// Sentences whose tags break the configured scheme, or, where none is, that which most keep to.
    fn bad_scheme(&self, split: usize, sentences: &Sentences, entities: &Entities) -> Option<Finding> {
        let named = |name: &str| SCHEMES.into_iter().find(|scheme| scheme.name() == name);
        let fit = &entities.scheme;
        let guessed = fit.guessed.and_then(named)?;
        let scheme = self.scan.scheme.unwrap_or(guessed);
        let at = SCHEMES.iter().position(|s| *s == scheme)?;
        let wrong = |row: usize| Some((row, sentences.note(row).wrong[at]? as usize));
        let total = self.splits[split].len();
        let found: Vec<(usize, usize)> = (0..total).filter_map(wrong).collect();
        let kept = fit.sentences.get(guessed.name()).copied().unwrap_or(0);
        let looks = format!("its tags look like {} ({} of {total} keep to it)", guessed.name(), self.counted(kept));
        let (what, fix) = match self.scan.scheme {
            // Better by far: a few sentences may fit another scheme too.
            Some(_) if kept > total - found.len() && 10 * found.len() > total => {
                let fix = format!("set data.tag_scheme = \"{}\", or fix the tags", guessed.name());
                (format!("whose tags break data.tag_scheme = \"{}\"; {looks}", scheme.name()), fix)
            }
            Some(_) => {
                let fix = "fix the sentences, or set data.on_bad_row = \"skip\" to train without them";
                (format!("whose tags break data.tag_scheme = \"{}\"", scheme.name()), fix.into())
            }
            None => {
                let fix = "fix the sentences; data.tag_scheme makes training refuse such";
                (format!("whose tags break {}, to which the others keep", scheme.name()), fix.into())
            }
        };
        let names = sentences.names();
        let message = format!("{} {what}", self.rows_of(found.len(), total));
        let mut finding = self.finding(Name::BadTags, Some(split), found.len(), message, &fix);
        finding.examples = (found.iter().take(self.options.examples))
            .map(|&(row, word)| {
                let tags: Vec<&str> = sentences.tags(row).iter().map(|&tag| names[tag as usize].as_str()).collect();
                let detail = Some(self.why(&tags, word, scheme));
                Listed { detail, ..Listed::at(self.word_place(split, row, word, sentences)) }
            })
            .collect();
        (!found.is_empty()).then_some(finding)
    }

    fn why(&self, tags: &[&str], word: usize, scheme: Scheme) -> String {
        let parsed: Vec<Tag> = tags.iter().map(|tag| Tag::parse(tag).unwrap_or(Tag::OUTSIDE)).collect();
        format!("\"{}\" {}", tags[word], why_wrong(&parsed, word, scheme, tags))
    }

    /// Tags that training refuses, as `data.labels` does not list them.
    fn unknown_tags(&self, split: usize, sentences: &Sentences) -> Option<Finding> {
        let in_train: HashSet<String> = self.splits[0].sentences.iter().flat_map(Sentences::names).collect();
        let names = sentences.names();
        // Those of other splits that train has not are told by themselves.
        let is_refused =
            |tag: u32| sentences.classes[tag as usize].is_none() && in_train.contains(&names[tag as usize]);
        let first = |row: usize| Some((row, sentences.tags(row).iter().position(|&tag| is_refused(tag))?));
        let total = self.splits[split].len();
        let found: Vec<(usize, usize)> = (0..total).filter_map(first).collect();
        let what = "with a tag that data.labels does not list, which training refuses";
        let message = format!("{} {what}", self.rows_of(found.len(), total));
        let fix = "add the tag to data.labels, rename it (data.rename_labels), or drop the sentences";
        let mut finding = self.finding(Name::BadLabels, Some(split), found.len(), message, fix);
        finding.examples = (found.iter().take(self.options.examples))
            .map(|&(row, word)| {
                let detail = Some(names[sentences.tags(row)[word] as usize].clone());
                Listed { detail, ..Listed::at(self.word_place(split, row, word, sentences)) }
            })
            .collect();
        (!found.is_empty()).then_some(finding)
    }

    /// Words that the tokenizer makes nothing of, so that nothing is learnt or predicted of them.
    fn lost_words(&self, split: usize, sentences: &Sentences, tags: &Tags) -> Option<Finding> {
        let count = tags.words_without_tokens;
        let words = counted(count, "word", "words");
        let message = format!(
            "{words} ({}) of which the tokenizer makes no token: they are not learnt and always predicted O",
            share(count, tags.words)
        );
        let fix = "drop such words (control characters, zero-width signs), or use a model whose tokenizer knows them";
        let mut finding = self.finding(Name::LostWords, Some(split), count, message, fix);
        let lost = |row: usize| {
            let (words, _) = sentences.unseen_words(row, None);
            words.into_iter().map(move |word| (row, word))
        };
        finding.examples = (0..self.splits[split].len())
            .flat_map(lost)
            .take(self.options.examples)
            .map(|(row, word)| {
                let detail = Some(format!("word {}", word + 1));
                Listed { detail, ..Listed::at(self.word_place(split, row, word, sentences)) }
            })
            .collect();
        (count > 0).then_some(finding)
    }

    fn empty_sentences(&self, split: usize, sentences: &Sentences) -> Option<Finding> {
        let count = sentences.empty.len();
        let message = format!("{} left out, as the tokenizer makes nothing of their words", self.counted(count));
        let mut finding =
            self.finding(Name::Empty, Some(split), count, message, "fill in the words or drop the sentences");
        finding.examples = sentences.empty.iter().take(self.options.examples).cloned().map(Listed::at).collect();
        (count > 0).then_some(finding)
    }

    fn no_entities(&self, split: usize, entities: &Entities) -> Option<Finding> {
        let total = self.splits[split].len();
        let message = format!("no sentence of {total} has an entity");
        let fix = "set data.label to the column with the tags, or add sentences with entities";
        (entities.count == 0).then(|| self.finding(Name::Empty, Some(split), total, message, fix))
    }

    /// Types of train that are rare.
    fn types(&self, entities: &Entities) -> Vec<Finding> {
        let counts: Vec<(String, usize)> = entities.types.iter().map(|t| (t.name.clone(), t.entities)).collect();
        let mut found = vec![];
        if entities.imbalance >= IMBALANCE {
            let message = imbalance(&counts);
            found.push(self.finding(Name::Imbalance, Some(0), counts.len(), message, IMBALANCE_FIX));
        }
        let few: Vec<&str> = counts.iter().filter(|(_, n)| *n < FEW_ROWS).map(|(name, _)| name.as_str()).collect();
        if !few.is_empty() {
            let types = counted(few.len(), "type", "types");
            let names = listed_names(few.iter().copied());
            let message = format!("{types} in train with fewer than {FEW_ROWS} entities: {names}");
            let fix = "tag more of them, or merge these types with others";
            found.push(self.finding(Name::TinyClasses, Some(0), few.len(), message, fix));
        }
        found
    }

    /// Tags that train lacks, which training refuses, and types (or tags that are none of entities) that only train has.
    fn missing_types(&self, split: usize) -> Vec<Finding> {
        let [Some(train), Some(own)] = [0, split].map(|i| self.splits[i].sentences.as_ref()) else { return vec![] };
        if split == 0 {
            return vec![];
        }
        let [in_train, here] = [(0, train), (split, own)].map(|(i, sentences)| self.tags_of(i, sentences));
        let name = &self.splits[split].name;
        let mut found = vec![];
        let foreign: Vec<&str> = here.difference(&in_train).map(String::as_str).collect();
        if !foreign.is_empty() {
            let names = listed_names(foreign.iter().copied());
            let tags = counted(foreign.len(), "tag", "tags");
            let message = format!("{name} has {tags} that train has not: {names}");
            let fix = "add sentences with these tags to train, rename them (data.rename_labels), or drop them here; without \
                       that training refuses them unless data.labels lists them, and no model can be right about them";
            let mut finding = self.finding(Name::MissingLabels, Some(split), foreign.len(), message, fix);
            let names = own.names();
            let first = |tag: &&str| {
                let is = |&code: &u32| names[code as usize] == *tag;
                let find = |row: usize| Some((row, own.tags(row).iter().position(is)?));
                let (row, word) = (0..self.splits[split].len()).find_map(find)?;
                let detail = Some((*tag).to_owned());
                Some(Listed { detail, ..Listed::at(self.word_place(split, row, word, own)) })
            };
            finding.examples = foreign.iter().filter_map(first).take(self.options.examples).collect();
            found.push(finding);
        }
        let kinds = |tags: &BTreeSet<String>| -> BTreeSet<String> {
            let kind = |tag: &String| match Tag::parse(tag) {
                Ok(Tag::OUTSIDE) => None,
                Ok(tag) => Some(tag.kind.to_owned()),
                Err(_) => Some(tag.clone()),
            };
            if self.scan.has_entities() { tags.iter().filter_map(kind).collect() } else { tags.clone() }
        };
        let (of_train, own) = (kinds(&in_train), kinds(&here));
        let absent: Vec<&str> = of_train.difference(&own).map(String::as_str).collect();
        if !absent.is_empty() {
            let what = if self.scan.has_entities() { ("type", "types") } else { ("tag", "tags") };
            let types = counted(absent.len(), what.0, what.1);
            let message = format!("{name} lacks {types} of train: {}", listed_names(absent.iter().copied()));
            let fix = format!("add sentences with these {} to {name}; else its scores say nothing about them", what.1);
            found.push(self.finding(Name::MissingLabels, Some(split), absent.len(), message, &fix));
        }
        found
    }

    /// The tags that words of a split have; of a part of a file others may stand in the rest.
    fn tags_of(&self, split: usize, sentences: &Sentences) -> BTreeSet<String> {
        let names = sentences.names();
        let codes: HashSet<u32> = (0..self.splits[split].len()).flat_map(|row| sentences.tags(row)).copied().collect();
        codes.into_iter().map(|code| names[code as usize].clone()).collect()
    }
}
