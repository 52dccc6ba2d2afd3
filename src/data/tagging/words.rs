//! Raw text to words, for tagging: at white space, with each punctuation mark and each Chinese, Japanese or Korean character a
//! word of its own, as corpora of tagged words have it.

/// A word and where it stands, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word<'t> {
    pub text: &'t str,
    pub start: usize,
    /// Past the last.
    pub end: usize,
}

/// The words of a text.
pub fn words_of(text: &str) -> Vec<Word<'_>> {
    words_with_spans(text, &[])
}

/// The same, with no word across a border of a span (start, end, label).
pub fn words_with_spans<'t>(text: &'t str, spans: &[(usize, usize, String)]) -> Vec<Word<'t>> {
    let mut words = vec![];
    // (first byte, first character) of the word that goes on.
    let mut open: Option<(usize, usize)> = None;
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    let mut close = |open: &mut Option<(usize, usize)>, byte: usize, at: usize| {
        if let Some((from, start)) = open.take() {
            words.push(Word { text: &text[from..byte], start, end: at });
        }
    };
    for (at, &(byte, c)) in chars.iter().enumerate() {
        let border = spans.iter().any(|s| s.0 == at || s.1 == at);
        if border || c.is_whitespace() || stands_alone(&chars, at) {
            close(&mut open, byte, at);
        }
        if !c.is_whitespace() {
            open.get_or_insert((byte, at));
        }
        if stands_alone(&chars, at) {
            close(&mut open, byte + c.len_utf8(), at + 1);
        }
    }
    close(&mut open, text.len(), chars.len());
    words
}

/// Whether a character is a word: punctuation, but for an apostrophe, hyphen, point or comma between letters or digits, and
/// signs that stand for a word or syllable.
fn stands_alone(chars: &[(usize, char)], at: usize) -> bool {
    let c = chars[at].1;
    if is_wide(c) {
        return true;
    }
    let letter =
        |i: Option<usize>| i.and_then(|i| chars.get(i)).is_some_and(|(_, c)| c.is_alphanumeric() && !is_wide(*c));
    let between = || letter(at.checked_sub(1)) && letter(Some(at + 1));
    match c {
        '\'' | '’' | '-' | '.' | ',' | '_' | '&' | '@' | '/' | ':' => !between(),
        '#' => !letter(Some(at + 1)),
        c => c.is_ascii_punctuation() || is_punctuation(c),
    }
}

fn is_wide(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

fn is_punctuation(c: char) -> bool {
    matches!(c, '¡' | '¿' | '«' | '»' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' | '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        let words = words_of(text);
        let chars: Vec<char> = text.chars().collect();
        for word in &words {
            assert_eq!(chars[word.start..word.end].iter().collect::<String>(), word.text);
        }
        words.into_iter().map(|w| w.text).collect()
    }

    #[test]
    fn words_are_apart_and_known_by_characters() {
        assert_eq!(
            split("Dr. Who's at 3.5%, (see x-ray)!"),
            ["Dr", ".", "Who's", "at", "3.5", "%", ",", "(", "see", "x-ray", ")", "!"]
        );
        assert_eq!(split(" 高勇：男, né à Paris 🙂ok"), ["高", "勇", "：", "男", ",", "né", "à", "Paris", "🙂ok"]);
        assert_eq!(split("#tag @name a@b.c "), ["#tag", "@", "name", "a@b.c"]);
        assert!(split(" \t").is_empty());
    }

    #[test]
    fn no_word_crosses_a_span() {
        let words = words_with_spans("NewYork's best", &[(0, 7, "LOC".into())]);
        assert_eq!(words.iter().map(|w| w.text).collect::<Vec<_>>(), ["NewYork", "'s", "best"]);
    }
}
