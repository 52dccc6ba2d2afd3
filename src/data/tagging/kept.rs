//! Tokenised sentences as an entry of the cache.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::load::Loaded;
use crate::data::Places;
use crate::data::cache::entry::{Group, Kept, Mapped, Names};
use crate::data::places::names_of;
use crate::data::reader::Skipped;

/// What is small.
#[derive(Serialize, Deserialize)]
struct Rest {
    files: Names,
    /// As [`Places`] has them.
    ends: Vec<u64>,
    names: Vec<(String, usize, u64)>,
    skipped: Skipped,
    empty: usize,
    unused_renames: Vec<String>,
}

impl Kept for Loaded {
    fn groups(&self) -> io::Result<Vec<Group<'_>>> {
        let rest = Rest {
            files: Names::of(&self.places.files),
            ends: self.places.ends.clone(),
            names: self.names.clone(),
            skipped: self.skipped.clone(),
            empty: self.empty,
            unused_renames: self.unused_renames.clone(),
        };
        let words = [
            bytemuck::cast_slice(&self.places.lines),
            bytemuck::cast_slice(&self.ends),
            bytemuck::cast_slice(&self.word_ends),
            bytemuck::cast_slice(&self.tags),
        ];
        Ok(vec![Group::tokens(&self.tokens), Group::of(words), Group::json(&rest)?])
    }

    fn restore(mapped: &Mapped, files: &[PathBuf]) -> Option<Self> {
        let mut rest: Rest = mapped.json(2)?;
        let names = names_of(files);
        rest.files.rename(&mut rest.skipped, &names);
        let loaded = Self {
            tokens: mapped.tokens(0)?,
            places: Places { files: names, ends: rest.ends, lines: mapped.array(1, 0)? },
            ends: mapped.array(1, 1)?,
            word_ends: mapped.array(1, 2)?,
            tags: mapped.array(1, 3)?,
            names: rest.names,
            skipped: rest.skipped,
            empty: rest.empty,
            unused_renames: rest.unused_renames,
        };
        loaded.fits().then_some(loaded)
    }
}

impl Loaded {
    /// Whether the parts belong together, so that no sentence reaches out of them.
    fn fits(&self) -> bool {
        let (sentences, words) = (self.places.len(), self.word_ends.len());
        let parts = self.places.fit()
            && self.tokens.len() == sentences
            && self.ends.len() == sentences
            && self.ends.is_sorted()
            && self.ends.last().is_none_or(|&end| end == words as u64)
            && (self.tags.is_empty() || self.tags.len() == words)
            && self.tags.iter().all(|&tag| (tag as usize) < self.names.len())
            && self.names.iter().all(|(_, file, _)| *file < self.places.files.len());
        let whole = |i: usize| {
            let ends = &self.word_ends[self.words_of(i)];
            ends.is_sorted() && ends.last().is_none_or(|&end| end as usize == self.tokens.len_of(i))
        };
        parts && (0..sentences).all(whole)
    }
}
