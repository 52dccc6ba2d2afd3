//! What is asked of a row's text before it is dropped: a key under which equal texts meet, and signs of damage.

use sha2::{Digest, Sha256};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// A key that equal texts share and others do not (128 bits of SHA-256). Equal means after Unicode NFC, without regard to
/// case and to how much white space stands between words. `None` when all texts are empty.
pub fn key(text: &str, text_pair: Option<&str>, buffer: &mut String) -> Option<u128> {
    buffer.clear();
    normalise(text, buffer);
    let mut empty = buffer.is_empty();
    if let Some(pair) = text_pair {
        // No normalised text holds a line end.
        buffer.push('\n');
        let start = buffer.len();
        normalise(pair, buffer);
        empty &= buffer.len() == start;
    }
    (!empty).then(|| {
        let digest = Sha256::digest(buffer.as_bytes());
        digest[..16].iter().fold(0, |key, &byte| key << 8 | u128::from(byte))
    })
}

/// Appends the normalised text.
fn normalise(text: &str, out: &mut String) {
    let start = out.len();
    let mut push = |c: char| {
        if c.is_whitespace() {
            if out.len() > start && !out.ends_with(' ') {
                out.push(' ');
            }
        } else if c.is_ascii() {
            out.push(c.to_ascii_lowercase());
        } else {
            // By way of upper case, so that letters with two small forms (σ and ς, s and ſ) become one.
            c.to_uppercase().flat_map(char::to_lowercase).for_each(|c| out.push(c));
        }
    };
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => text.chars().for_each(&mut push),
        _ => text.nfc().for_each(&mut push),
    }
    if out.len() > start && out.ends_with(' ') {
        out.pop();
    }
}

/// The first place where the text looks as if its bytes had been read in a wrong encoding: U+FFFD, a C1 control character,
/// or UTF-8 that was taken for Windows-1252 (`Ã©` for é, `â€™` for ’).
pub fn mojibake(text: &str) -> Option<&str> {
    if text.is_ascii() {
        return None;
    }
    let mut run: Vec<(usize, char)> = vec![];
    for (at, c) in text.char_indices() {
        if c == '\u{fffd}' || (matches!(c, '\u{80}'..='\u{9f}') && c != '\u{85}') {
            return Some(&text[at..at + c.len_utf8()]);
        }
        if c.is_ascii() {
            if let Some(found) = misread(&run) {
                return Some(&text[found.0..found.1]);
            }
            run.clear();
        } else {
            run.push((at, c));
        }
    }
    misread(&run).map(|(from, to)| &text[from..to])
}

/// The bytes of the text in which a run of characters beyond ASCII turns out to be UTF-8 once more.
fn misread(run: &[(usize, char)]) -> Option<(usize, usize)> {
    let bytes: Vec<Option<u8>> = run.iter().map(|&(_, c)| windows_1252(c)).collect();
    let place = |from: usize, to: usize| (run[from].0, run[to - 1].0 + run[to - 1].1.len_utf8());
    let mut before = None;
    let mut at = 0;
    while at < run.len() {
        let Some(length) = sequence(&bytes[at..]) else {
            at += 1;
            continue;
        };
        if is_telling(&bytes[at..at + length], run[at + 1].1) {
            return Some(place(at, at + length));
        }
        // A pair such as `É»` or a triple such as `é…»` may stand in a sound text; two in a row do not.
        if let Some((start, end)) = before
            && end == at
        {
            return Some(place(start, at + length));
        }
        before = Some((at, at + length));
        at += length;
    }
    None
}

/// Length of the UTF-8 sequence at the beginning, of two bytes or more.
fn sequence(bytes: &[Option<u8>]) -> Option<usize> {
    let length = match bytes[0]? {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let bytes: Vec<u8> = bytes.get(..length)?.iter().copied().collect::<Option<_>>()?;
    std::str::from_utf8(&bytes).is_ok().then_some(length)
}

/// Whether one sequence is proof enough: accented Latin letters (`Ã` and no closing quotation mark or dash behind it),
/// signs of Latin-1 (`Â`), punctuation (`â€`), a byte order mark or U+FFFD (`ï»¿ ï¿½`), emoji (`ðŸ`).
fn is_telling(bytes: &[Option<u8>], second: char) -> bool {
    match (bytes[0], bytes[1]) {
        (Some(0xc3), _) => !matches!(second, '’' | '”' | '…' | '»' | '–' | '—'),
        (Some(0xc2), Some(second)) => second >= 0xa0,
        (Some(0xe2), Some(0x80..=0x9f)) | (Some(0xef), Some(0xbb | 0xbf)) | (Some(0xf0), Some(0x9f)) => true,
        _ => false,
    }
}

/// The byte of a character in Windows-1252, whose undefined places are taken for the control characters of Latin-1.
fn windows_1252(c: char) -> Option<u8> {
    const FROM_0X80: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match c {
        '\u{a0}'..='\u{ff}' => Some(c as u8),
        _ => FROM_0X80.iter().position(|&x| x == c).map(|i| 0x80 + i as u8),
    }
}

/// The first HTML entity (`&amp; &#39;`) or common tag (`<br />`).
pub fn html(text: &str) -> Option<&str> {
    text.match_indices(['&', '<']).find_map(|(at, sign)| {
        let rest = &text[at..];
        let length = if sign == "&" { entity(rest) } else { tag(rest) };
        length.map(|n| &rest[..n])
    })
}

fn entity(rest: &str) -> Option<usize> {
    const NAMES: [&str; 18] = [
        "amp", "lt", "gt", "quot", "apos", "nbsp", "hellip", "mdash", "ndash", "lsquo", "rsquo", "ldquo", "rdquo",
        "copy", "reg", "euro", "pound", "middot",
    ];
    let end = rest.bytes().take(10).position(|b| b == b';')?;
    let name = &rest[1..end];
    let is_number = match name.strip_prefix('#') {
        Some(digits) => match digits.strip_prefix(['x', 'X']) {
            Some(hex) => !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()),
            None => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
        },
        None => false,
    };
    (is_number || NAMES.contains(&name)).then_some(end + 1)
}

fn tag(rest: &str) -> Option<usize> {
    const NAMES: [&str; 8] = ["br", "p", "b", "i", "div", "span", "a", "em"];
    let end = rest.bytes().take(200).position(|b| b == b'>')?;
    let name = rest[1..end].trim_start_matches('/');
    let name = name.split([' ', '/']).next().unwrap_or_default().to_ascii_lowercase();
    NAMES.contains(&name.as_str()).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        key(a, None, &mut String::new()) == key(b, None, &mut String::new())
    }

    #[test]
    fn keys_disregard_case_white_space_and_composition() {
        assert!(same("Good  film ", "good film"));
        assert!(same("\tgood\u{a0}film\n", "GOOD FILM"));
        assert!(same("caf\u{e9}", "CAFE\u{301}"));
        assert!(same("ΟΔΟΣ", "οδος"));
        assert!(!same("good film", "goodfilm"));
        assert!(!same("good film", "good films"));
        assert!(!same("good film", "good film."));
    }

    #[test]
    fn a_pair_is_equal_only_in_both_texts_and_in_their_order() {
        let pair = |a, b| key(a, Some(b), &mut String::new());
        assert_eq!(pair("a", "b c"), pair(" A", "B  c"));
        assert_ne!(pair("a", "b c"), pair("a b", "c"));
        assert_ne!(pair("a", "b"), pair("b", "a"));
        assert_ne!(pair("a", ""), pair("", "a"));
        assert_ne!(pair("a", ""), key("a", None, &mut String::new()));
    }

    #[test]
    fn nothing_has_no_key() {
        assert_eq!(key(" \n", None, &mut String::new()), None);
        assert_eq!(key("", Some("\u{3000}"), &mut String::new()), None);
        assert!(key("", Some("a"), &mut String::new()).is_some());
    }

    #[test]
    fn text_in_a_wrong_encoding_is_found() {
        for (text, found) in [
            ("a cafÃ© here", "Ã©"),
            ("itâ€™s", "â€™"),
            ("â€œquotedâ€\u{9d}", "â€œ"),
            ("10 Â£ a day", "Â£"),
            ("bad \u{fffd} byte", "\u{fffd}"),
            ("don\u{92}t", "\u{92}"),
            ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "Ð¿Ñ€"),
            ("ä¸\u{ad}æ–‡", "ä¸\u{ad}æ–‡"),
            ("ï»¿start", "ï»¿"),
            ("nice ðŸ˜€", "ðŸ˜€"),
        ] {
            assert_eq!(mojibake(text), Some(found), "{text}");
        }
    }

    #[test]
    fn sound_text_is_not_mojibake() {
        for text in [
            "plain",
            "café, naïve, Ångström, ÄÖÜß",
            "« désolé…»",
            "CAFÉ”",
            "AMANHÃ…",
            "ÇA VA",
            "привет",
            "中文「引」",
            "STRAẞE “muß…”",
            "10 £, 5 €, 20 °C",
            "İstanbul’da",
            "o’clock — 5–6",
            "ÃO",
            "\u{85}",
            "😀 ok",
            "à…»",
        ] {
            assert_eq!(mojibake(text), None, "{text}");
        }
    }

    #[test]
    fn entities_and_tags_are_found() {
        for (text, found) in [
            ("AT&amp;T", "&amp;"),
            ("it&#39;s", "&#39;"),
            ("&#x27;", "&#x27;"),
            ("a<br /><br />b", "<br />"),
            ("</p>", "</p>"),
            ("a < b &nbsp; c", "&nbsp;"),
        ] {
            assert_eq!(html(text), Some(found), "{text}");
        }
        for text in ["AT&T; you", "a & b; c", "1 < 2 > 0", "&;", "&#;", "<3 you", "&é;", "<bra>", "<"] {
            assert_eq!(html(text), None, "{text}");
        }
    }
}
