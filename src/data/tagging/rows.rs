//! Sentences as rows: windows of tokens, and which word begins where in them.

use std::ops::Range;
use std::sync::Arc;

/// Words of one row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TagRow {
    /// Number of the sentence among those of its set.
    pub sentence: u32,
    /// Of each word that belongs to this row: its number in the sentence, and the place of its first token in the row.
    pub words: Vec<(u32, u32)>,
    /// What is learnt: places in the row and labels.
    pub labels: Vec<(u32, u32)>,
}

/// The words of rows, and the labels of whole sentences. A clone or a subset shares them.
#[derive(Debug, Clone, PartialEq)]
pub struct TagRows {
    rows: Arc<Vec<TagRow>>,
    index: Vec<u32>,
    /// By sentence and word.
    truth: Arc<Vec<Vec<u32>>>,
}

impl TagRows {
    /// `truth`: labels by sentence and word.
    pub fn new(rows: Vec<TagRow>, truth: Vec<Vec<u32>>) -> Self {
        let index = (0..rows.len() as u32).collect();
        Self { rows: Arc::new(rows), index, truth: Arc::new(truth) }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn row(&self, i: usize) -> &TagRow {
        &self.rows[self.index[i] as usize]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &TagRow> {
        self.index.iter().map(|&i| &self.rows[i as usize])
    }

    /// The labels of a sentence's words.
    pub fn truth(&self, sentence: usize) -> &[u32] {
        &self.truth[sentence]
    }

    /// These rows in this order.
    pub fn subset(&self, rows: &[usize]) -> Self {
        Self { index: rows.iter().map(|&r| self.index[r]).collect(), ..self.clone() }
    }

    /// The labels that are learnt from, of all rows.
    pub fn labels(&self) -> impl Iterator<Item = u32> {
        self.iter().flat_map(|row| row.labels.iter().map(|&(_, label)| label))
    }

    /// The number of each sentence that there is, in the order of their first rows.
    pub fn numbers(&self) -> Vec<usize> {
        self.sentences().iter().map(|rows| self.row(rows[0]).sentence as usize).collect()
    }

    /// The rows of each sentence that there is, in the order of their first ones.
    pub fn sentences(&self) -> Vec<Vec<usize>> {
        let mut found: Vec<Vec<usize>> = vec![];
        let mut place = std::collections::HashMap::new();
        for (i, row) in self.iter().enumerate() {
            let at = *place.entry(row.sentence).or_insert_with(|| {
                found.push(vec![]);
                found.len() - 1
            });
            found[at].push(i);
        }
        found
    }
}

/// A window of a sentence: the words in it, and those of them that belong to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    pub words: Range<usize>,
    pub own: Range<usize>,
}

/// Windows over words that begin and end at these tokens, none of more than `room` tokens but for a single word that is longer.
/// Neighbours share about a quarter of their tokens.
pub(super) fn windows(words: &[Range<usize>], room: usize) -> Vec<Window> {
    let overlap = room / 4;
    let mut found: Vec<Window> = vec![];
    let mut start = 0;
    while start < words.len() {
        let from = words[start].start;
        let fits = words[start..].iter().take_while(|w| w.end - from <= room).count().max(1);
        let end = start + fits;
        let own_from = found.last().map_or(0, |last| last.own.end);
        found.push(Window { words: start..end, own: own_from..end });
        if end == words.len() {
            break;
        }
        let shared = words[end - 1].end.saturating_sub(overlap);
        let next = (start + 1..end).find(|&w| words[w].start >= shared).unwrap_or(end);
        // The words that both have belong half to each.
        if let Some(last) = found.last_mut() {
            last.own.end = next + (end - next).div_ceil(2);
        }
        start = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_belongs_to_one_window() {
        for (tokens_a_word, n, room) in [(1, 30, 10), (3, 30, 10), (4, 7, 4), (5, 9, 4), (1, 3, 100), (2, 50, 9)] {
            let words: Vec<Range<usize>> = (0..n).map(|i| i * tokens_a_word..(i + 1) * tokens_a_word).collect();
            let found = windows(&words, room);
            let own: Vec<usize> = found.iter().flat_map(|w| w.own.clone()).collect();
            assert_eq!(own, (0..n).collect::<Vec<_>>(), "{tokens_a_word} {n} {room}: {found:?}");
            for w in &found {
                let tokens = words[w.words.end - 1].end - words[w.words.start].start;
                assert!(tokens <= room || w.words.len() == 1, "{w:?}");
                assert!(w.words.start <= w.own.start && w.own.end <= w.words.end && !w.own.is_empty(), "{w:?}");
            }
        }
    }

    #[test]
    fn a_word_has_text_around_it() {
        let words: Vec<Range<usize>> = (0..100).map(|i| i..i + 1).collect();
        for w in windows(&words, 40) {
            let before = w.own.start - w.words.start;
            let after = w.words.end - w.own.end;
            assert!((before >= 4 || w.words.start == 0) && (after >= 4 || w.words.end == 100), "{w:?}");
        }
    }
}
