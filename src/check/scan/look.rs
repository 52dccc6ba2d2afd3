//! What is asked of texts before they are dropped.

use super::{Marks, Split};
use crate::check::text;
use crate::data::{Example, Tokenizer};
use crate::rng::splitmix;
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// A row's text or texts, and where it stands.
pub struct Texts<'a> {
    pub text: &'a str,
    pub pair: Option<&'a str>,
    pub file: &'a Arc<Path>,
    pub line: u64,
}

impl<'a> Texts<'a> {
    pub fn of_row(row: &'a Example) -> Self {
        Self { text: &row.text, pair: row.text_pair.as_deref(), file: &row.file, line: row.line }
    }
}

impl Split {
    /// Counts a row's tokens, and `more` around them.
    pub(super) fn count(&mut self, ids: &[u32], more: usize, unknown: Option<u32>) {
        self.lengths.push((ids.len() + more) as u32);
        self.unknown.push(ids.iter().filter(|&&id| Some(id) == unknown).count() as u32);
    }

    /// Looks at the texts of some rows before they are dropped; `tokens` gives ids and type ids of each.
    pub(super) fn look(
        &mut self,
        rows: &[Texts],
        tokens: &(dyn Fn(usize) -> (Vec<u32>, Vec<u8>) + Sync),
        unknown: Option<u32>,
        tokenizer: &Tokenizer,
    ) {
        let first_row = self.lines.len() as u32;
        if let Some(unknown) = unknown {
            let apart = (0..rows.len()).into_par_iter().map(|row| (row, tokens(row)));
            let apart = apart.filter(|(_, (ids, _))| ids.contains(&unknown)).map(|(row, (ids, types))| {
                (first_row + row as u32, tell_apart(&rows[row], &ids, &types, unknown, tokenizer))
            });
            self.told_apart.par_extend(apart);
        }
        if let Some(row) = rows.first() {
            let first = self.first.get_or_insert_with(|| (row.text.to_owned(), row.pair.map(str::to_owned)));
            self.constant_text &= rows.iter().all(|row| row.text == first.0);
            self.constant_pair &= rows.iter().all(|row| row.pair == first.1.as_deref());
        }
        self.lines.extend(rows.iter().map(|row| row.line));
        for row in rows {
            // Rows of one file come one after the other.
            if self.files.last() != Some(row.file) {
                self.files.push(Arc::clone(row.file));
            }
            self.file_of.push(self.files.len() as u32 - 1);
        }
        let read = rows.par_iter().map_init(String::new, |buffer, row| {
            let texts = || std::iter::once(row.text).chain(row.pair);
            let marks = Marks {
                empty_text: row.text.trim().is_empty(),
                empty_pair: row.pair.is_some_and(|p| p.trim().is_empty()),
                mojibake: texts().any(|t| text::mojibake(t).is_some()),
                html: texts().any(|t| text::html(t).is_some()),
            };
            (text::key(row.text, row.pair, buffer), marks)
        });
        let read: Vec<_> = read.collect();
        self.keys.extend(read.iter().map(|(key, _)| *key));
        self.marks.extend(read.iter().map(|(_, marks)| *marks));
    }
}

/// A row's tokens with hashes for unknown words, which no vocabulary's ids reach.
fn tell_apart(row: &Texts, ids: &[u32], type_ids: &[u8], unknown: u32, tokenizer: &Tokenizer) -> Box<[u32]> {
    let hash = |word: String| word.bytes().fold(0, |key, b| splitmix(key ^ u64::from(b))) as u32 | 1 << 31;
    let words = |text: Option<&str>| tokenizer.unknown_words(text.unwrap_or_default()).into_iter().map(hash);
    let mut of_texts = [words(Some(row.text)), words(row.pair)];
    let own = |(&id, &text): (&u32, &u8)| match id == unknown {
        true => of_texts[usize::from(text & 1)].next().unwrap_or(id),
        false => id,
    };
    ids.iter().zip(type_ids).map(own).collect()
}
