//! Questions with windows of their contexts as rows.

use std::ops::Range;
use std::sync::Arc;

/// A question with a window of its context.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanRow {
    /// Number of the question among those of its set.
    pub question: u32,
    /// Tokens of the row.
    pub len: u32,
    /// The places of the context's tokens in the row.
    pub context: Range<u32>,
    /// The number of the first of them among all tokens of the context.
    pub from: u32,
    /// The places in the row of the answer's first and last token; 0 both (`[CLS]`) where the window does not hold it.
    pub answer: [u32; 2],
}

/// What answers are read from and compared with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Questions {
    pub asked: Vec<Asked>,
    /// Each once, however many questions there are about it.
    pub contexts: Vec<Context>,
}

/// A question without its own text.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub id: String,
    /// Number of its context.
    pub context: u32,
    /// The texts of the right answers; empty where there is none, or none is known.
    pub answers: Vec<String>,
}

/// A text and where its tokens stand in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    pub text: Arc<str>,
    /// Of each token: its first character and past its last, in characters.
    pub offsets: Vec<(u32, u32)>,
}

impl Context {
    /// The text between two characters.
    pub fn excerpt(&self, start: usize, end: usize) -> &str {
        let mut at = self.text.char_indices().map(|(byte, _)| byte).chain([self.text.len()]);
        let from = at.nth(start).unwrap_or(self.text.len());
        let to = if end > start { at.nth(end - start - 1).unwrap_or(self.text.len()) } else { from };
        &self.text[from..to]
    }
}

/// The rows of some questions. A clone or a subset shares them.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanRows {
    rows: Arc<Vec<SpanRow>>,
    index: Vec<u32>,
    questions: Arc<Questions>,
}

impl SpanRows {
    pub fn new(rows: Vec<SpanRow>, questions: Questions) -> Self {
        let index = (0..rows.len() as u32).collect();
        Self { rows: Arc::new(rows), index, questions: Arc::new(questions) }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &SpanRow> {
        self.index.iter().map(|&i| &self.rows[i as usize])
    }

    /// All questions of the set, also those that none of these rows is about.
    pub fn questions(&self) -> &Questions {
        &self.questions
    }

    /// These rows in this order.
    pub fn subset(&self, rows: &[usize]) -> Self {
        Self { index: rows.iter().map(|&r| self.index[r]).collect(), ..self.clone() }
    }

    /// The rows of each question, in the order of their first ones.
    pub fn by_question(&self) -> Vec<Vec<usize>> {
        let mut found: Vec<Vec<usize>> = vec![];
        let mut place = std::collections::HashMap::new();
        for (i, row) in self.iter().enumerate() {
            let at = *place.entry(row.question).or_insert_with(|| {
                found.push(vec![]);
                found.len() - 1
            });
            found[at].push(i);
        }
        found
    }

    /// The number of each question that there is, in the order of their first rows.
    pub fn numbers(&self) -> Vec<usize> {
        let first = |rows: &Vec<usize>| self.rows[self.index[rows[0]] as usize].question as usize;
        self.by_question().iter().map(first).collect()
    }

    /// Whether a question of these rows has no answer.
    pub fn lacks_answers(&self) -> bool {
        self.iter().any(|row| self.questions.asked[row.question as usize].answers.is_empty())
    }
}

/// Windows of `room` tokens over `tokens`, neighbours sharing `stride` (below `room`); one where there are no tokens.
pub(super) fn windows(tokens: usize, room: usize, stride: usize) -> Vec<Range<usize>> {
    let mut found = vec![];
    let mut start = 0;
    loop {
        let end = (start + room).min(tokens);
        found.push(start..end);
        if end == tokens {
            return found;
        }
        start += room - stride;
    }
}

/// The places among `window` (of all tokens of a context, at `offsets`) of the tokens that an answer begins and ends in, if the
/// window holds it whole.
pub(super) fn answer_in(
    window: &Range<usize>,
    offsets: &[(u32, u32)],
    (start, end): (usize, usize),
) -> Option<[usize; 2]> {
    let (start, end) = (start as u32, end as u32);
    let own = &offsets[window.clone()];
    if own.first()?.0 > start || own.last()?.1 < end {
        return None;
    }
    let first = own.iter().take_while(|at| at.0 <= start).count() - 1;
    let last = own.len() - own.iter().rev().take_while(|at| at.1 >= end).count();
    Some([first, last])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the `stride` of the `tokenizers` library cuts.
    #[test]
    fn windows_share_the_stride() {
        assert_eq!(windows(10, 4, 1), [0..4, 3..7, 6..10]);
        assert_eq!(windows(11, 4, 2), [0..4, 2..6, 4..8, 6..10, 8..11]);
        assert_eq!((windows(4, 4, 3).len(), windows(4, 4, 3)[0].clone()), (1, 0..4));
        assert_eq!((windows(0, 4, 3).len(), windows(0, 4, 3)[0].clone()), (1, 0..0));
    }

    #[test]
    fn an_answer_is_in_a_window_whole_or_not_at_all() {
        // Tokens "ab", "c", "de" of "ab cde".
        let offsets = [(0, 2), (3, 4), (4, 6)];
        assert_eq!(answer_in(&(0..3), &offsets, (3, 6)), Some([1, 2]));
        assert_eq!(answer_in(&(0..3), &offsets, (1, 2)), Some([0, 0]));
        // Within a token.
        assert_eq!(answer_in(&(0..3), &offsets, (4, 5)), Some([2, 2]));
        assert_eq!(answer_in(&(1..3), &offsets, (3, 6)), Some([0, 1]));
        assert_eq!(answer_in(&(0..2), &offsets, (3, 6)), None);
        assert_eq!(answer_in(&(1..3), &offsets, (0, 6)), None);
        assert_eq!(answer_in(&(0..0), &offsets, (0, 1)), None);
    }

    #[test]
    fn excerpts_count_characters() {
        let context = Context { text: "e\u{301} 🙂 ab".into(), offsets: vec![] };
        assert_eq!(context.excerpt(0, 2), "e\u{301}");
        assert_eq!(context.excerpt(3, 4), "🙂");
        assert_eq!(context.excerpt(5, 7), "ab");
        assert_eq!(context.excerpt(7, 9), "");
        assert_eq!(context.excerpt(3, 3), "");
    }
}
