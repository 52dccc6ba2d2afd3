//! The values of the keys of `[data]` that say where rows come from and how files are written.

use encoding_rs as rs;
use regex::Regex;
use schemars::JsonSchema;
use serde::de::value::{I64Deserializer, SeqAccessDeserializer, StrDeserializer, U64Deserializer};
use serde::de::{self, Deserializer, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use super::config::Column;

/// One or several values: in a config a value or a list of them. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneOrMany<T>(Vec<T>);

/// The files of one split; in a config each may be a glob pattern.
pub type Files = OneOrMany<PathBuf>;
/// The columns that make up a text.
pub type Columns = OneOrMany<Column>;

/// What stands for standard input among files.
pub const STANDARD_INPUT: &str = "-";

impl<T> OneOrMany<T> {
    /// `None` for an empty list.
    pub fn new(values: Vec<T>) -> Option<Self> {
        if values.is_empty() { None } else { Some(Self(values)) }
    }

    pub fn as_slice(&self) -> &[T] {
        &self.0
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.0
    }

    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The first, which is there.
    pub fn first(&self) -> &T {
        &self.0[0]
    }
}

impl Files {
    /// One name for all of them, for headings and messages about the whole: `a.csv`, or `a.csv and 2 more`.
    pub fn name(&self) -> PathBuf {
        match self.0.as_slice() {
            [one] if one.as_os_str() == STANDARD_INPUT => "standard input".into(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{} and {} more", first.display(), rest.len()).into(),
            [] => PathBuf::new(),
        }
    }
}

/// `files` with every glob pattern among them replaced by the files that it matches, in the order of their names. A file
/// that is there counts as itself, whatever characters its name has.
///
/// # Errors
/// The end of a message, when a pattern is none or matches no file.
pub fn matching(files: &Files) -> Result<Files, String> {
    let mut found = vec![];
    for path in files.iter() {
        let pattern = path.to_str().filter(|p| p.contains(['*', '?', '['])).filter(|_| !path.exists());
        let Some(pattern) = pattern else {
            found.push(path.clone());
            continue;
        };
        let paths = glob::glob(pattern).map_err(|e| format!("is \"{pattern}\", which is not a glob pattern: {e}"))?;
        let before = found.len();
        for path in paths {
            found.push(path.map_err(|e| format!("is \"{pattern}\", but {e}"))?);
        }
        let mut matched = found.split_off(before);
        matched.retain(|path| !path.is_dir());
        found.append(&mut matched);
        if found.len() == before {
            return Err(format!("is \"{pattern}\", which no file matches"));
        }
    }
    Files::new(found).ok_or_else(|| "has no files".into())
}

impl<T> From<T> for OneOrMany<T> {
    fn from(value: T) -> Self {
        Self(vec![value])
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(Column::to_string).collect();
        if let [one] = all.as_slice() { f.write_str(one) } else { write!(f, "[{}]", all.join(", ")) }
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if let [one] = self.0.as_slice() { one.serialize(s) } else { self.0.serialize(s) }
    }
}

/// What a message calls the values of a [`OneOrMany`].
pub trait Named {
    const ONE_OR_MANY: &'static str;
}

impl Named for PathBuf {
    const ONE_OR_MANY: &'static str = "a file name (string) or a list of them";
}

impl Named for Column {
    const ONE_OR_MANY: &'static str =
        "a column name (string), a 0-based column index (whole number), or a list of columns";
}

impl<'de, T: Deserialize<'de> + Named> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Named> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(T::ONE_OR_MANY)
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
                let d: StrDeserializer<E> = v.into_deserializer();
                T::deserialize(d).map(OneOrMany::from)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Self::Value, E> {
                let d: I64Deserializer<E> = v.into_deserializer();
                T::deserialize(d).map(OneOrMany::from)
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Self::Value, E> {
                let d: U64Deserializer<E> = v.into_deserializer();
                T::deserialize(d).map(OneOrMany::from)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                let values = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                OneOrMany::new(values).ok_or_else(|| de::Error::invalid_length(0, &self))
            }
        }
        d.deserialize_any(Either(PhantomData))
    }
}

/// How a data file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma-separated values with quotes.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// One JSON object a line.
    Jsonl,
    /// Lines that `data.pattern` takes apart.
    Pattern,
    /// A word and its tag a line, a blank line between sentences.
    Conll,
    /// The JSON of SQuAD: articles of paragraphs of questions.
    Squad,
    /// Apache Parquet, in builds with the cargo feature `parquet`.
    Parquet,
}

impl Format {
    /// The name in config files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Jsonl => "jsonl",
            Self::Pattern => "pattern",
            Self::Conll => "conll",
            Self::Squad => "squad",
            Self::Parquet => "parquet",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            "pattern" => Ok(Self::Pattern),
            "conll" => Ok(Self::Conll),
            "squad" => Ok(Self::Squad),
            "parquet" => Ok(Self::Parquet),
            _ => Err("expected csv, tsv, jsonl, pattern, conll, squad or parquet".into()),
        }
    }
}

/// A type that a config and a flag write as one string.
macro_rules! as_string {
    ($type:ty, $expected:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, v: &str) -> Result<$type, E> {
                        v.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Text)
            }
        }
    };
}

/// A character encoding by its WHATWG label or Python's name.
///
/// As in browsers, `latin-1` and `iso-8859-1` mean windows-1252, which has letters and signs (such as ` €“” `) where
/// Latin-1 has the control characters 0x80 to 0x9f; all other bytes are the same. `ascii` is read as UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding(pub &'static rs::Encoding);

as_string!(Encoding, "the name of a character encoding, such as \"utf-8\", \"latin-1\" or \"gb18030\"");

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name().to_ascii_lowercase())
    }
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let plain = s.trim().to_ascii_lowercase().replace('_', "-");
        let label = match plain.as_str() {
            "utf-8-sig" | "ascii" | "us-ascii" | "u8" => "utf-8",
            "latin-1" => "latin1",
            "utf-16-le" => "utf-16le",
            "utf-16-be" => "utf-16be",
            "cp936" | "ms936" => "gbk",
            "cp932" => "shift_jis",
            "cp949" => "euc-kr",
            "cp950" => "big5",
            "mac-roman" => "macintosh",
            other => other,
        };
        let found = [label.to_owned(), label.replacen("cp", "windows-", 1), label.replace('-', "_")]
            .iter()
            .find_map(|label| rs::Encoding::for_label(label.as_bytes()));
        match found.filter(|e| *e != rs::REPLACEMENT && *e != rs::X_USER_DEFINED) {
            Some(encoding) => Ok(Self(encoding)),
            None => Err(format!(
                "\"{s}\" is not a known encoding; give a name such as utf-8, latin-1, windows-1252, gb18030, big5, \
                 shift_jis, euc-kr or utf-16"
            )),
        }
    }
}

/// The one ASCII character between the fields of csv and tsv files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delimiter(pub u8);

as_string!(Delimiter, "one character, such as \";\"");

impl fmt::Display for Delimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 as char)
    }
}

impl FromStr for Delimiter {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.as_bytes() {
            // As a shell passes it without further ado.
            b"\\t" => Ok(Self(b'\t')),
            [b'"' | b'\n' | b'\r' | 0] => Err("a quote or a line break cannot separate fields".into()),
            [one] if one.is_ascii() => Ok(Self(*one)),
            _ => Err("expected one ASCII character, such as \";\" or \"|\" or \"\\t\"".into()),
        }
    }
}

/// A regular expression whose named groups are the columns of a line.
#[derive(Debug, Clone)]
pub struct Pattern(pub Regex);

as_string!(Pattern, "a regular expression with named groups, such as '^(?P<label>\\w+) (?P<text>.*)$'");

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let regex = Regex::new(s).map_err(|e| {
            // The crate draws an arrow below the expression; its last line says what is wrong.
            let text = e.to_string();
            let reason = text.lines().last().unwrap_or("").trim_start_matches("error: ").to_owned();
            format!("is not a regular expression: {reason}")
        })?;
        if regex.capture_names().flatten().next().is_none() {
            return Err(format!("\"{s}\" has no named group; a column is written (?P<name>…)"));
        }
        Ok(Self(regex))
    }
}

/// What to do with a row that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// Stop with its file and line.
    #[default]
    Error,
    /// Leave it out, count it, and say so.
    Skip,
}

impl FromStr for OnBadRow {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "error" => Ok(Self::Error),
            "skip" => Ok(Self::Skip),
            _ => Err("expected error or skip".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_the_webs_names_and_pythons() {
        let names = [
            ("latin-1", "windows-1252"),
            ("ISO-8859-1", "windows-1252"),
            ("cp1252", "windows-1252"),
            ("cp1251", "windows-1251"),
            ("utf_8_sig", "utf-8"),
            ("ascii", "utf-8"),
            ("iso8859_15", "iso-8859-15"),
            ("utf-16", "utf-16le"),
            ("utf_16_be", "utf-16be"),
            ("gb18030", "gb18030"),
            ("gb2312", "gbk"),
            ("shift_jis", "shift_jis"),
            ("cp932", "shift_jis"),
            ("euc_jp", "euc-jp"),
            ("koi8_r", "koi8-r"),
        ];
        for (name, expected) in names {
            let encoding: Encoding = name.parse().unwrap();
            assert_eq!(encoding.to_string(), expected, "{name}");
            assert_eq!(encoding.to_string().parse(), Ok(encoding), "its own name is read again");
        }
        for wrong in ["", "utf-7", "utf-32", "latin", "replacement"] {
            assert!(wrong.parse::<Encoding>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_delimiter_is_one_character_and_a_pattern_names_columns() {
        assert_eq!(";".parse(), Ok(Delimiter(b';')));
        assert_eq!("\\t".parse(), Ok(Delimiter(b'\t')));
        for wrong in ["", ";;", "é", "\"", "\n"] {
            assert!(wrong.parse::<Delimiter>().is_err(), "{wrong:?}");
        }
        assert!("(?P<text>.*)".parse::<Pattern>().is_ok());
        assert!("(.*)".parse::<Pattern>().unwrap_err().contains("no named group"));
        assert!("(?P<text>.*".parse::<Pattern>().unwrap_err().contains("unclosed group"));
    }
}
