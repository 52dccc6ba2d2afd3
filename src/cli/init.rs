//! `bertft config init --data`: a config for a file, with what was seen in it as comments.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::Args;
use toml::Value;

use super::ui::Ui;
use super::{Globals, model};
use crate::data::config::{Column, TaskKind};
use crate::data::guess::{Guess, Known, LINES, guess};
use crate::data::reader::{Head, format_by_extension, head};
use crate::data::shortened;
use crate::error::{Error, Result};

/// A file to write a config for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options to write a config for a file")]
pub struct DataArgs {
    /// Look at the first rows of this file, and write a config that trains on it
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// The file to evaluate on [default: a tenth of the rows]
    #[arg(long, value_name = "FILE", requires = "data")]
    eval: Option<PathBuf>,
    /// Directory of the model, or the id of one of the hub such as org/name [default: to fill in]
    #[arg(long, value_name = "MODEL", requires = "data")]
    model: Option<PathBuf>,
    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, value_name = "REVISION", requires = "model")]
    revision: Option<String>,
    /// Column of the text: name or 0-based index; repeat it to join several [default: by names and lengths]
    #[arg(long, value_name = "COLUMN", requires = "data")]
    text: Vec<Column>,
    /// Column of the second text of a pair [default: by names and lengths]
    #[arg(long, value_name = "COLUMN", requires = "data")]
    text_pair: Option<Column>,
    /// Column of the label or number [default: by names and values]
    #[arg(long, value_name = "COLUMN", requires = "data")]
    label: Option<Column>,
}

/// The config for a file. `template` holds what follows `[data]`, by the task; `output`: where it will be written, which
/// its paths are relative to.
pub fn config(
    args: &DataArgs,
    file: &Path,
    task: Option<(TaskKind, bool)>,
    template: impl Fn(TaskKind) -> &'static str,
    output: Option<&Path>,
    (globals, ui): (&Globals, &mut Ui),
) -> Result<String> {
    if let Some((kind @ (TaskKind::Tokens | TaskKind::Span), _)) = task {
        let what = if kind == TaskKind::Tokens { "words with tags" } else { "questions with answers" };
        let message = format!("--data looks at rows of text, and {kind} learns from {what}; leave it out");
        return Err(Error::input(message));
    }
    let known = Known {
        task: task.map(|t| t.0),
        pair: task.is_some_and(|t| t.1),
        text: args.text.clone(),
        text_pair: args.text_pair.clone(),
        label: args.label.clone(),
    };
    let head = head(file, LINES)?;
    let guess =
        guess(&head.text, head.whole, format_by_extension(file), &known).map_err(|m| Error::in_file(file, m))?;
    let opened = args.model.as_deref().map(|of| model::open(of, args.revision.as_deref(), globals, ui));
    let model = opened.transpose()?;
    let positions = model.as_ref().map(|m| m.encoder_config().max_length());
    let mut toml = Writer::default();
    toml.line(format_args!("# {}: a config from the first {} rows of", guess.task, guess.rows));
    toml.line(format_args!("# {}", shortened_path(file)));
    toml.line("# What was guessed has a comment with what was seen: look it over, then:");
    toml.line("#   bertft config validate --config FILE");
    toml.line("#   bertft train --config FILE");
    toml.line("# Paths of model and data are relative to this file, output.dir to the working directory.\n\n[model]");
    match &args.model {
        Some(id) if model.as_ref().is_some_and(|m| m.hub().is_some()) => {
            toml.key("path", path_value(id, None)?, "of the hub");
            args.revision.as_deref().into_iter().for_each(|revision| toml.key("revision", revision.into(), ""));
        }
        Some(dir) => toml.key("path", path_value(dir, output)?, ""),
        None => toml.key(
            "path",
            "path/to/model".into(),
            "fill in: a Hugging Face model directory, or an id of the hub such as org/name",
        ),
    }
    toml.line("\n[task]");
    let why = match (task, guess.task) {
        (Some(_), _) => "",
        (None, TaskKind::Classification) => "as the label has few values; see below",
        (None, TaskKind::Regression) => "as the label has numbers with fractions",
        (None, TaskKind::Multilabel | TaskKind::Tokens | TaskKind::Span) => "",
    };
    toml.key("kind", guess.task.name().into(), why);
    toml.line("\n[data]");
    toml.key("train", path_value(file, output)?, &head.compression.map_or_else(String::new, |c| format!("{c} data")));
    match &args.eval {
        Some(eval) => toml.key("eval", path_value(eval, output)?, ""),
        None => toml.key("eval", 0.1.into(), "this share of the training rows; or a file"),
    }
    layout(&guess, &head, &mut toml);
    columns(&guess, &head, &mut toml);
    max_length(&guess, positions, &mut toml);
    toml.line("");
    let rest = template(guess.task);
    let rest = rest.find("[train]").map_or("", |at| &rest[at..]);
    let (before, _) = rest.rsplit_once("dir = ").unwrap_or((rest, ""));
    toml.text.push_str(before);
    toml.key("dir", format!("runs/{}", run_name(file)).into(), "");
    Ok(toml.text)
}

/// The keys that say how the file is written.
fn layout(guess: &Guess, head: &Head, toml: &mut Writer) {
    let written = &guess.written;
    if let Some(format) = written.format {
        toml.key("format", format.name().into(), "the extension does not say so, the first rows do");
    }
    if let Some(pattern) = &written.pattern {
        toml.key("pattern", pattern.to_string().into(), "fits every line looked at");
    }
    if let Some(encoding) = head.encoding {
        toml.key(
            "encoding",
            encoding.to_string().into(),
            "a guess, as the file is not UTF-8; if letters come out wrong, try latin-1",
        );
    } else if let Some(mark) = head.mark {
        toml.line(format_args!("# The byte order mark says {mark}."));
    }
    if let Some(delimiter) = written.delimiter {
        toml.key("delimiter", delimiter.to_string().into(), "parts the first rows into the same number of fields");
    }
    match written.quoting {
        Some(true) => toml.key("quoting", true.into(), "fields are enclosed in quotes"),
        Some(false) => toml.key("quoting", false.into(), "quotes do not enclose fields"),
        None => {}
    }
    if !guess.header {
        toml.key("header", false.into(), "the first row is data, so columns are 0-based indices");
    }
    if let Some((rows, line)) = guess.ragged {
        let why = format!("{rows} rows have too few or too many fields, the first on line {line}");
        toml.key("on_bad_row", "skip".into(), &why);
    }
}

fn columns(guess: &Guess, head: &Head, toml: &mut Writer) {
    let value = |column: &Column| match column {
        Column::Name(name) => Value::from(name.as_str()),
        Column::Index(index) => Value::Integer(*index as i64),
    };
    let seen = |column: &Column| guess.seen(column).map(|s| s.describe()).unwrap_or_default();
    match guess.text.as_slice() {
        [one] => toml.key("text", value(one), &seen(one)),
        several => toml.key("text", Value::Array(several.iter().map(value).collect()), "joined by a space"),
    }
    if let Some(second) = &guess.text_pair {
        toml.key("text_pair", value(second), &format!("{}; the model sees both", seen(second)));
    }
    let sorted = guess.seen(&guess.label).is_some_and(|s| s.counts.len() < 2 && !head.whole);
    let hint = match (sorted, head.whole) {
        (true, _) => "; rows seem to be sorted by label",
        (_, false) => "; more may follow after the first rows",
        _ => "",
    };
    toml.key("label", value(&guess.label), &format!("{}{hint}", seen(&guess.label)));
    let others: Vec<String> = guess
        .left_out()
        .map(|s| format!("# Left out: column {}, {}", shortened(&s.column.to_string()), s.describe()))
        .collect();
    others.iter().take(20).for_each(|line| toml.line(line));
}

fn max_length(guess: &Guess, positions: Option<usize>, toml: &mut Writer) {
    let length = guess.length;
    let mut why = format!(
        "99 of 100 rows have at most {} characters, about {} tokens; longer rows lose text",
        length.chars, length.tokens
    );
    let most = positions.unwrap_or(usize::MAX);
    if most < length.max_length {
        why += &format!("; the model has {most} positions");
    }
    toml.key("max_length", Value::Integer(length.max_length.min(most) as i64), &why);
}

/// What to call the run: the file's name, or its folder's if that says only which split it is.
fn run_name(file: &Path) -> String {
    let name = |path: &Path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        name.split('.').next().filter(|s| !s.is_empty()).map(String::from)
    };
    let split = |name: &String| ["train", "data", "dev", "test"].contains(&name.as_str());
    let folder = file.parent().and_then(name);
    name(file).filter(|n| !split(n)).or(folder).or_else(|| name(file)).unwrap_or_else(|| "run".into())
}

fn shortened_path(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

/// A path as a config at `output` writes it.
fn path_value(path: &Path, output: Option<&Path>) -> Result<Value> {
    let beside = output.and_then(Path::parent).is_none_or(|dir| dir.as_os_str().is_empty());
    let path = if beside { path.to_owned() } else { std::path::absolute(path).map_err(|e| Error::io(path, e))? };
    match path.to_str() {
        Some(path) => Ok(path.into()),
        None => Err(Error::in_file(&path, "the name is not UTF-8, so a config cannot hold it; rename the file")),
    }
}

/// Lines of TOML.
#[derive(Default)]
struct Writer {
    text: String,
}

impl Writer {
    /// Where comments begin, if the value leaves room.
    const COMMENT: usize = 32;

    fn line(&mut self, line: impl Display) {
        self.text.push_str(&format!("{line}\n"));
    }

    fn key(&mut self, key: &str, value: Value, comment: &str) {
        let pair = format!("{key} = {value}");
        match comment {
            "" => self.line(pair),
            _ => self
                .line(format_args!("{pair:<width$}# {comment}", width = Self::COMMENT.max(pair.chars().count() + 1))),
        }
    }
}
