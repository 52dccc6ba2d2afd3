//! A config file and the arguments over it as one tree of TOML values that all know their place, and the errors that
//! name those places.
//!
//! An argument's values get places beyond the end of the file: its text is parsed behind as many blanks. So the one
//! span of a `serde` error finds file and line, or the argument, and by a search of the tree the key path.

use super::{DataConfig, ModelConfig, OutputConfig, RunConfig, TaskConfig};
use crate::data::config::Invalid;
use crate::error::{Error, Result};
use crate::suggest::did_you_mean;
use crate::train::config::TrainConfig;
use crate::train::eval_config::EvalConfig;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

type Span = Range<usize>;

/// The texts that a [`Source`] borrows from.
pub(super) struct Texts {
    file: PathBuf,
    text: String,
    arguments: Vec<Argument>,
}

/// One `key=value` with its place behind the file.
struct Argument {
    /// As the user wrote it, such as `--set train.epochs=3`.
    label: String,
    key: String,
    value: String,
    /// `v=` and the value behind blanks, so that spans of the parsed value are places.
    document: String,
    key_span: Span,
    value_span: Span,
    /// Never read as TOML: a path given by a flag is a string even if it looks like a number.
    verbatim: bool,
}

impl Texts {
    pub(super) fn read(file: &Path, set: &[String], output: Option<&Path>) -> Result<Self> {
        let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
            Error::at_line(file, line, "is not UTF-8 text; save the file as UTF-8")
        })?;
        let mut texts = Self { file: file.into(), text, arguments: vec![] };
        for pair in set {
            let (key, value) = split(pair)?;
            texts.push(format!("--set {pair}"), key, value, false);
        }
        if let Some(dir) = output {
            let dir = super::utf8(dir.into())?;
            texts.push(format!("--output {dir}"), "output.dir", &dir, true);
        }
        Ok(texts)
    }

    fn push(&mut self, label: String, key: &str, value: &str, verbatim: bool) {
        // One byte apart, so that no span can touch two texts.
        let start = self.arguments.last().map_or(self.text.len(), |a| a.value_span.end) + 1;
        let value_start = start + key.len() + 1;
        self.arguments.push(Argument {
            label,
            key: key.into(),
            value: value.into(),
            document: format!("{:1$}v={value}", "", value_start - 2),
            key_span: start..start + key.len(),
            value_span: value_start..value_start + value.len(),
            verbatim,
        });
    }
}

fn split(pair: &str) -> Result<(&str, &str)> {
    let wrong =
        || Error::input(format!("--set {pair}: expected key=value with the key's whole path, such as train.epochs=3"));
    let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
    let (key, value) = (key.trim(), value.trim());
    if key.split('.').count() < 2 || key.split('.').any(str::is_empty) {
        return Err(wrong());
    }
    Ok((key, value))
}

/// The merged tree.
pub(super) struct Source<'t> {
    texts: &'t Texts,
    tree: Spanned<DeTable<'t>>,
}

impl<'t> Source<'t> {
    pub(super) fn parse(texts: &'t Texts) -> Result<Self> {
        let tree = DeTable::parse(&texts.text).map_err(|e| {
            let line = e.span().map_or(1, |s| line_of(texts.text.as_bytes(), s.start));
            Error::at_line(&texts.file, line, format!("is not valid TOML: {}", e.message()))
        })?;
        let mut source = Self { texts, tree };
        for argument in &texts.arguments {
            let value = argument.parse()?;
            insert(source.tree.get_mut(), &argument.key, argument, value)?;
        }
        source.check_integers()?;
        Ok(source)
    }

    /// The tree as `T`.
    pub(super) fn deserialize<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(toml::de::Deserializer::from(self.tree.clone())).map_err(|e| self.explain(&e))
    }

    /// Whether the key at that path is set.
    pub(super) fn has(&self, path: &str) -> bool {
        self.value_at(path).is_some()
    }

    /// Whether the value at that key path comes from an argument.
    pub(super) fn is_argument(&self, path: &str) -> bool {
        self.value_at(path).is_some_and(|span| self.argument_at(&span).is_some())
    }

    /// The error of a value that has the right type and cannot be used, at its place (the file when it is a default).
    pub(super) fn invalid(&self, invalid: &Invalid) -> Error {
        let message = format!("{} {}", invalid.key, invalid.message);
        match self.value_at(invalid.key) {
            Some(span) => self.error_at(&span, message),
            None => Error::in_file(&self.texts.file, message),
        }
    }

    /// TOML's integers have 64 bits with sign; what is larger could be read but not written again.
    fn check_integers(&self) -> Result<()> {
        let mut entries = vec![];
        collect(self.tree.get_ref(), "", &mut entries);
        for entry in entries {
            if let DeValue::Integer(i) = entry.value.get_ref()
                && i64::from_str_radix(i.as_str(), i.radix()).is_err()
            {
                let message = format!("{} is {i}, expected a whole number below 2^63", entry.path);
                return Err(self.error_at(&entry.value.span(), message));
            }
        }
        Ok(())
    }

    fn argument_at(&self, span: &Span) -> Option<&'t Argument> {
        self.texts.arguments.iter().find(|a| (a.key_span.start..=a.value_span.end).contains(&span.start))
    }

    fn error_at(&self, span: &Span, message: String) -> Error {
        match self.argument_at(span) {
            Some(argument) => Error::input(format!("{}: {message}", argument.label)),
            None => Error::at_line(&self.texts.file, line_of(self.texts.text.as_bytes(), span.start), message),
        }
    }

    fn value_at(&self, path: &str) -> Option<Span> {
        let (table, key) = path.split_once('.')?;
        Some(self.tree.get_ref().get(table)?.get_ref().get(key)?.span())
    }

    /// The user's own spelling of what is at `span`.
    fn text_at(&self, span: &Span) -> String {
        let (text, offset) = match self.argument_at(span) {
            Some(a) => (&a.value, a.value_span.start),
            None => (&self.texts.text, 0),
        };
        let within = span.start.saturating_sub(offset)..span.end.saturating_sub(offset);
        let text = text.get(within).unwrap_or("");
        let line = text.lines().next().unwrap_or("");
        if line.chars().count() > 60 {
            format!("{}…", line.chars().take(60).collect::<String>())
        } else {
            line.into()
        }
    }

    /// Turns the error of `serde` or `toml` into one with the place, what was found, and what was expected.
    fn explain(&self, error: &toml::de::Error) -> Error {
        let message = error.message();
        let mut entries = vec![];
        collect(self.tree.get_ref(), "", &mut entries);
        let Some(span) = error.span() else { return Error::in_file(&self.texts.file, message) };
        if let Some(name) = quoted(message, "missing field `") {
            let table = entries.iter().find(|e| e.value.span() == span && e.value.get_ref().is_table());
            return self.missing(table, name);
        }
        // A table that an argument made has the same place as the key in it.
        if let Some(name) = quoted(message, "unknown field `")
            && let Some(entry) = entries.iter().find(|e| e.key == span && e.path.rsplit('.').next() == Some(name))
        {
            return self.error_at(&span, unknown_key(&entry.path, &alternatives(message)));
        }
        let holds = |e: &&Entry| e.value.span().start <= span.start && span.end <= e.value.span().end;
        // Children come after their table, so the last that holds the place is the innermost.
        let Some(entry) = entries.iter().rev().find(holds) else {
            return self.error_at(&span, message.into());
        };
        let found = if entry.value.get_ref().is_table() { "a table".into() } else { self.text_at(&span) };
        let path = &entry.path;
        let text = if message.starts_with("unknown variant `") {
            let names = alternatives(message);
            let hint = did_you_mean(found.trim_matches(['"', '\'']), names.iter().map(String::as_str));
            format!("{path} is {found}, expected one of {}{hint}", names.join(", "))
        } else if let Some((_, expected)) = message.rsplit_once(", expected ") {
            format!("{path} is {found}, expected {}", in_words(expected))
        } else if message == "wanted string or table" {
            format!("{path} is {found}, expected a string")
        } else {
            format!("{path}: {message}")
        };
        self.error_at(&span, text)
    }

    fn missing(&self, table: Option<&Entry>, name: &str) -> Error {
        let path = table.map_or(name.to_owned(), |t| format!("{}.{name}", t.path));
        let message = format!("{path} is missing; add {}", example(&path));
        match table {
            Some(table) if self.argument_at(&table.key).is_none() => self.error_at(&table.key, message),
            _ => Error::in_file(&self.texts.file, message),
        }
    }
}

impl Argument {
    /// The value as TOML; what is not TOML is a string as it stands.
    fn parse(&self) -> Result<Spanned<DeValue<'_>>> {
        let string = || Spanned::new(self.value_span.clone(), DeValue::String(Cow::Borrowed(self.value.as_str())));
        if self.verbatim {
            return Ok(string());
        }
        let parsed = DeTable::parse(&self.document).ok().and_then(|document| {
            let mut entries = document.into_inner().into_iter();
            // Anything but one value from end to end, such as `a#b`, is meant as it stands.
            entries.next().map(|(_, v)| v).filter(|v| entries.next().is_none() && v.span() == self.value_span)
        });
        match parsed {
            Some(value) => Ok(value),
            None if self.value.starts_with(['"', '\'', '[', '{']) => {
                Err(Error::input(format!("{}: the value is not valid TOML; check quotes and brackets", self.label)))
            }
            None => Ok(string()),
        }
    }
}

/// Puts `value` at the dotted `path`, over what is there.
fn insert<'t>(
    table: &mut DeTable<'t>,
    path: &'t str,
    argument: &'t Argument,
    value: Spanned<DeValue<'t>>,
) -> Result<()> {
    let Some((head, rest)) = path.split_once('.') else {
        // The map would keep the old key with its old place.
        table.remove(path);
        table.insert(Spanned::new(argument.key_span.clone(), Cow::Borrowed(path)), value);
        return Ok(());
    };
    if !table.contains_key(head) {
        let key = Spanned::new(argument.key_span.clone(), Cow::Borrowed(head));
        table.insert(key, Spanned::new(argument.key_span.clone(), DeValue::Table(DeTable::new())));
    }
    match table.get_mut(head).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => insert(inner, rest, argument, value),
        _ => {
            let above = argument.key.strip_suffix(rest).unwrap_or(head).trim_end_matches('.');
            Err(Error::input(format!("{}: {above} is not a table; check the key's path", argument.label)))
        }
    }
}

/// A key of the tree with its value.
struct Entry<'a, 't> {
    path: String,
    key: Span,
    value: &'a Spanned<DeValue<'t>>,
}

/// All entries, tables before what they hold.
fn collect<'a, 't>(table: &'a DeTable<'t>, prefix: &str, entries: &mut Vec<Entry<'a, 't>>) {
    for (key, value) in table.iter() {
        let path = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        entries.push(Entry { path: path.clone(), key: key.span(), value });
        if let DeValue::Table(inner) = value.get_ref() {
            collect(inner, &path, entries);
        }
    }
}

/// The 1-based line of a byte.
fn line_of(text: &[u8], at: usize) -> u64 {
    1 + text.iter().take(at).filter(|b| **b == b'\n').count() as u64
}

/// The name between `start` and the next backtick.
fn quoted<'m>(message: &'m str, start: &str) -> Option<&'m str> {
    message.strip_prefix(start)?.split('`').next()
}

/// The names that a message of `serde` offers: "unknown … `x`, expected one of `a`, `b`".
fn alternatives(message: &str) -> Vec<String> {
    let offered = message.rsplit_once(", expected ").map_or("", |(_, names)| names);
    offered.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The keys of a table that refuses unknown ones: asks it for a key that it cannot have.
pub(super) fn keys_of<T: DeserializeOwned>() -> Vec<String> {
    toml::from_str::<T>("'' = 0").err().map(|e| alternatives(e.message())).unwrap_or_default()
}

fn unknown_key(path: &str, siblings: &[String]) -> String {
    let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut hint = other_name(key).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    if hint.is_empty() {
        hint = did_you_mean(key, siblings.iter().map(String::as_str));
    }
    if hint.is_empty() {
        let tables = [
            ("model", keys_of::<ModelConfig>()),
            ("task", keys_of::<TaskConfig>()),
            ("data", keys_of::<DataConfig>()),
            ("train", keys_of::<TrainConfig>()),
            ("eval", keys_of::<EvalConfig>()),
            ("output", keys_of::<OutputConfig>()),
        ];
        let home = tables.iter().find(|(_, keys)| keys.iter().any(|k| k == key));
        let all = if table.is_empty() { keys_of::<RunConfig>() } else { siblings.to_vec() };
        hint = match home {
            Some((home, _)) => format!("; did you mean {home}.{key}?"),
            None if table.is_empty() => format!("; the tables are {}", all.join(", ")),
            None => format!("; the keys of [{table}] are {}", all.join(", ")),
        };
    }
    format!("{path} is not a known key{hint}")
}

/// What users of other trainers would write, and its name here.
fn other_name(key: &str) -> Option<&'static str> {
    Some(match key {
        "num_train_epochs" | "num_epochs" => "train.epochs",
        "per_device_train_batch_size" | "train_batch_size" => "train.batch_size",
        "per_device_eval_batch_size" => "train.eval_batch_size",
        "lr" => "train.learning_rate",
        "lr_scheduler" | "scheduler" => "train.lr_scheduler_type",
        "bf16" | "fp16" => "train.precision",
        "max_seq_length" | "max_len" => "data.max_length",
        "model_name_or_path" => "model.path",
        "output_dir" => "output.dir",
        "train_file" => "data.train",
        "validation" | "validation_file" | "dev" => "data.eval",
        "test_file" => "data.test",
        _ => return None,
    })
}

/// What the types call themselves, for readers.
fn in_words(expected: &str) -> &str {
    match expected {
        "f64" => "a number",
        "usize" | "u64" | "u32" => "a whole number, 0 or above",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "path string" => "a file name (string)",
        _ if expected.starts_with("struct ") => "a table",
        _ => expected,
    }
}

fn example(path: &str) -> &'static str {
    match path {
        "model" => "[model] with path = \"DIR\"",
        "model.path" => "path = \"DIR\", the model to start from",
        "task" => "[task] with kind = \"classification\" or \"regression\"",
        "task.kind" => "kind = \"classification\" or \"regression\"",
        "data" => "[data] with train = \"FILE\"",
        "data.train" => "train = \"FILE\", the rows to learn from",
        "output" => "[output] with dir = \"DIR\"",
        "output.dir" => "dir = \"DIR\", the directory to write the run to",
        _ => "it",
    }
}
