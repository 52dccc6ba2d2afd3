//! Sequences of tags (named entities, chunks): their schemes, and the spans that they mean.
//!
//! A tag is `O`, or a prefix, `-` and a type (`B-PER`; a prefix alone has the type `_`). M of BMES is read as I, L and U of
//! BILOU as E and S. Two readings: [`Reading::Lenient`] makes a span of every run of tags (conlleval, seqeval's default),
//! [`Reading::Strict`] of those alone that their scheme allows (seqeval's `mode="strict", scheme=…`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Where a tag stands in its span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prefix {
    /// In none.
    O,
    /// At its beginning.
    B,
    /// Inside.
    I,
    /// At its end.
    E,
    /// Alone.
    S,
}

/// A tag of one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag<'a> {
    pub prefix: Prefix,
    /// `_` where there is none.
    pub kind: &'a str,
}

impl<'a> Tag<'a> {
    pub const OUTSIDE: Self = Self { prefix: Prefix::O, kind: "_" };

    /// Reads a tag.
    ///
    /// # Errors
    /// The end of a message, when it begins with no prefix of the schemes.
    pub fn parse(tag: &'a str) -> Result<Self, String> {
        let (prefix, rest) = tag.split_at(tag.chars().next().map_or(0, char::len_utf8));
        let kind = match rest.strip_prefix('-') {
            Some("") => "_",
            Some(kind) => kind,
            None if rest.is_empty() => "_",
            None => return Err(format!("tag \"{tag}\" is not O or one of B, I, E, S, M, L, U with - and a type")),
        };
        let prefix = match prefix {
            "O" if rest.is_empty() => return Ok(Self::OUTSIDE),
            "B" => Prefix::B,
            "I" | "M" => Prefix::I,
            "E" | "L" => Prefix::E,
            "S" | "U" => Prefix::S,
            _ => return Err(format!("tag \"{tag}\" is not O or one of B, I, E, S, M, L, U with - and a type")),
        };
        Ok(Self { prefix, kind })
    }
}

impl fmt::Display for Tag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.prefix, self.kind) {
            (Prefix::O, _) => f.write_str("O"),
            (prefix, "_") => write!(f, "{prefix:?}"),
            (prefix, kind) => write!(f, "{prefix:?}-{kind}"),
        }
    }
}

/// How spans are written as tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// All I, but B where a span follows one of its type at once.
    Iob1,
    /// B, then I.
    Iob2,
    /// B, I, E, and S for a span of one word; also called BMES and BILOU with other letters.
    Iobes,
}

impl Scheme {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iob1 => "iob1",
            Self::Iob2 => "iob2",
            Self::Iobes => "iobes",
        }
    }

    /// That of labels: IOBES where any says E or S, else IOB2.
    pub fn of(labels: &[String]) -> Self {
        let ends = |label: &String| Tag::parse(label).is_ok_and(|t| matches!(t.prefix, Prefix::E | Prefix::S));
        if labels.iter().any(ends) { Self::Iobes } else { Self::Iob2 }
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "iob1" => Ok(Self::Iob1),
            "iob2" => Ok(Self::Iob2),
            "iobes" => Ok(Self::Iobes),
            _ => Err("expected iob1, iob2 or iobes".into()),
        }
    }
}

/// A piece of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span<'a> {
    /// Of words.
    pub start: usize,
    /// Past the last.
    pub end: usize,
    pub kind: &'a str,
}

impl<'a> Span<'a> {
    /// Start, end and type.
    pub fn parts(&self) -> (usize, usize, &'a str) {
        (self.start, self.end, self.kind)
    }
}

/// What is made of tags that no scheme allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Every run of tags of one type is a span; a B or S begins another, as does what follows an E or S.
    Lenient,
    /// Spans that the scheme does not allow are none.
    Strict(Scheme),
}

/// The spans of a sentence, in its order.
pub fn spans<'a>(tags: &[Tag<'a>], reading: Reading) -> Vec<Span<'a>> {
    let mut found = vec![];
    let mut at = 0;
    while at < tags.len() {
        let before = if at == 0 { Tag::OUTSIDE } else { tags[at - 1] };
        let run = match reading {
            Reading::Lenient => lenient_run(tags, at),
            Reading::Strict(scheme) => match begins(scheme, before, tags[at]) {
                true => strict_run(tags, at, scheme),
                false => Run { end: at + 1, whole: false },
            },
        };
        if run.whole {
            found.push(Span { start: at, end: run.end, kind: tags[at].kind });
        }
        at = run.end;
    }
    found
}

/// Tags that belong together, and whether they are a span.
struct Run {
    end: usize,
    whole: bool,
}

fn lenient_run(tags: &[Tag], at: usize) -> Run {
    if tags[at].prefix == Prefix::O {
        return Run { end: at + 1, whole: false };
    }
    let goes_on = |pair: &[Tag]| {
        let ended = matches!(pair[0].prefix, Prefix::E | Prefix::S);
        !ended && matches!(pair[1].prefix, Prefix::I | Prefix::E) && pair[0].kind == pair[1].kind
    };
    let more = tags[at..].windows(2).take_while(|pair| goes_on(pair)).count();
    Run { end: at + 1 + more, whole: true }
}

/// Whether a span begins at `tag`, which follows `before` and is in no span yet.
fn begins(scheme: Scheme, before: Tag, tag: Tag) -> bool {
    let same = before.kind == tag.kind;
    match (scheme, before.prefix, tag.prefix) {
        (Scheme::Iob1, Prefix::O | Prefix::B, Prefix::I) => true,
        (Scheme::Iob1, Prefix::I, Prefix::I) => !same,
        // A B only parts it from a span of the same type.
        (Scheme::Iob1, Prefix::I | Prefix::B, Prefix::B) => same,
        (Scheme::Iob2, _, Prefix::B) | (Scheme::Iobes, _, Prefix::B | Prefix::S) => true,
        _ => false,
    }
}

fn strict_run(tags: &[Tag], at: usize, scheme: Scheme) -> Run {
    let inside = |pair: &[Tag]| {
        let follows = match scheme {
            Scheme::Iob1 | Scheme::Iob2 => pair[1].prefix == Prefix::I,
            Scheme::Iobes => matches!(pair[1].prefix, Prefix::I | Prefix::E),
        };
        follows && matches!(pair[0].prefix, Prefix::B | Prefix::I) && pair[0].kind == pair[1].kind
    };
    let end = at + 1 + tags[at..].windows(2).take_while(|pair| inside(pair)).count();
    let (last, next) = (tags[end - 1], tags.get(end).copied().unwrap_or(Tag::OUTSIDE));
    let whole = match scheme {
        Scheme::Iob1 => !(last.prefix == Prefix::B && next.prefix == Prefix::B && last.kind != next.kind),
        Scheme::Iob2 => true,
        Scheme::Iobes => matches!(last.prefix, Prefix::E | Prefix::S),
    };
    Run { end, whole }
}

/// Spans, none of which overlap, as the tags of a sentence of `words` words.
pub fn tags<'a>(spans: &[Span<'a>], words: usize, scheme: Scheme) -> Vec<Tag<'a>> {
    let mut tags = vec![Tag::OUTSIDE; words];
    let mut before: Option<&Span> = None;
    for span in spans {
        let Range { start, end } = span.start..span.end;
        for (i, tag) in tags.iter_mut().enumerate().take(end).skip(start) {
            let adjoins = before.is_some_and(|b| b.end == start && b.kind == span.kind);
            let prefix = match (scheme, i == start, i + 1 == end) {
                (Scheme::Iobes, true, true) => Prefix::S,
                (Scheme::Iobes, false, true) => Prefix::E,
                (Scheme::Iob1, true, _) if !adjoins => Prefix::I,
                (_, true, _) => Prefix::B,
                _ => Prefix::I,
            };
            *tag = Tag { prefix, kind: span.kind };
        }
        before = Some(span);
    }
    tags
}

/// Whether the scheme allows a tag after another. Before and behind a sentence stands [`Tag::OUTSIDE`].
pub fn may_follow(scheme: Scheme, before: Tag, tag: Tag) -> bool {
    let open = matches!(before.prefix, Prefix::B | Prefix::I);
    let goes_on = open && before.kind == tag.kind;
    match (scheme, tag.prefix) {
        (Scheme::Iob1 | Scheme::Iob2, Prefix::E | Prefix::S) => false,
        (Scheme::Iob1, Prefix::B) | (Scheme::Iob2, Prefix::I) | (Scheme::Iobes, Prefix::I | Prefix::E) => goes_on,
        (Scheme::Iobes, Prefix::O | Prefix::B | Prefix::S) => !open,
        (Scheme::Iob1, Prefix::O | Prefix::I) | (Scheme::Iob2, Prefix::O | Prefix::B) => true,
    }
}

/// The first tag that the scheme does not allow where it stands.
pub fn first_wrong(tags: &[Tag], scheme: Scheme) -> Option<usize> {
    let before = |i: usize| if i == 0 { Tag::OUTSIDE } else { tags[i - 1] };
    let open_end = tags.last().is_some_and(|last| !may_follow(scheme, *last, Tag::OUTSIDE));
    let wrong = (0..tags.len()).find(|&i| !may_follow(scheme, before(i), tags[i]));
    wrong.or(open_end.then(|| tags.len() - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Tag<'_>> {
        text.split(' ').map(|tag| Tag::parse(tag).unwrap()).collect()
    }

    #[test]
    fn tags_are_read_and_written() {
        for (text, prefix, kind) in [
            ("O", Prefix::O, "_"),
            ("B-PER", Prefix::B, "PER"),
            ("M-ORG-X", Prefix::I, "ORG-X"),
            ("L-a", Prefix::E, "a"),
            ("U", Prefix::S, "_"),
            ("I-", Prefix::I, "_"),
        ] {
            assert_eq!(Tag::parse(text), Ok(Tag { prefix, kind }), "{text}");
        }
        for wrong in ["", "PER", "X-PER", "O-PER", "b-PER", "BPER", "é"] {
            assert!(Tag::parse(wrong).unwrap_err().contains(&format!("\"{wrong}\"")), "{wrong}");
        }
        assert_eq!(
            parsed("O B-x I M-y S").iter().map(Tag::to_string).collect::<Vec<_>>(),
            ["O", "B-x", "I", "I-y", "S"]
        );
    }

    /// Spans written in a scheme are read from it again, by its strict reading and by the lenient one.
    #[test]
    fn every_scheme_holds_the_same_spans() {
        let found = spans(&parsed("B-x I-x B-x O S-y S-y B-y E-y O O B-z"), Reading::Lenient);
        assert_eq!(
            found.iter().map(|s| (s.start, s.end)).collect::<Vec<_>>(),
            [(0, 2), (2, 3), (4, 5), (5, 6), (6, 8), (10, 11)]
        );
        for (scheme, text) in [
            (Scheme::Iob1, "I-x I-x B-x O I-y B-y B-y I-y O O I-z"),
            (Scheme::Iob2, "B-x I-x B-x O B-y B-y B-y I-y O O B-z"),
            (Scheme::Iobes, "B-x E-x S-x O S-y S-y B-y E-y O O S-z"),
        ] {
            let written = tags(&found, 11, scheme);
            assert_eq!(written, parsed(text), "{scheme:?}");
            assert_eq!(first_wrong(&written, scheme), None, "{scheme:?}");
            assert_eq!(spans(&written, Reading::Strict(scheme)), found, "{scheme:?}");
            assert_eq!(spans(&written, Reading::Lenient), found, "{scheme:?}");
        }
    }

    #[test]
    fn what_a_scheme_does_not_allow_is_found() {
        for (scheme, text, at) in [
            (Scheme::Iob2, "O I-x", Some(1)),
            (Scheme::Iob2, "B-x I-y", Some(1)),
            (Scheme::Iob2, "B-x E-x", Some(1)),
            (Scheme::Iob1, "B-x", Some(0)),
            (Scheme::Iob1, "I-x B-y", Some(1)),
            (Scheme::Iobes, "B-x I-x O", Some(2)),
            (Scheme::Iobes, "B-x I-x", Some(1)),
            (Scheme::Iobes, "S-x E-x", Some(1)),
            (Scheme::Iobes, "B-x I-x E-x S-x", None),
        ] {
            assert_eq!(first_wrong(&parsed(text), scheme), at, "{scheme:?} {text}");
        }
    }
}
