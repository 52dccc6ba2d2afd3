//! Data files to [`Example`]s, one file a format. [`Reader`] streams them.
//!
//! `source` undoes compression and encoding, `lines` counts and checks lines; on them stand csv and tsv (`delimited`),
//! jsonl (one object a line), lines taken apart by a regular expression (`pattern`), and, where no format is set, plain
//! text with one text a line (`.txt`, standard input).

mod delimited;
mod head;
mod jsonl;
mod lines;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod pattern;
pub mod questions;
pub mod sentences;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use self::delimited::Delimited;
pub use self::head::{Head, head};
use self::jsonl::JsonLines;
pub(super) use self::jsonl::canonical;
use self::lines::Lines;
pub use self::options::{Naming, ReadOptions};
use self::pattern::PatternLines;
use self::source::{Compression, Input, decompress};
use super::config::Format;
use super::example::Example;
use super::label_sets::{self, LabelForm};
use super::labels::renamed;
use super::settings::{OnBadRow, STANDARD_INPUT};
use crate::error::{Error, Result};

/// Rows that [`OnBadRow::Skip`] left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Skipped {
    /// How many.
    #[serde(rename = "skipped")]
    pub rows: u64,
    /// The first ten.
    #[serde(rename = "skipped_rows", default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<SkippedRow>,
}

/// A row left out, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SkippedRow {
    pub file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    pub message: String,
}

impl Skipped {
    /// How many skipped rows are listed.
    const LISTED: usize = 10;

    fn add(&mut self, error: Error) {
        self.rows += 1;
        if self.first.len() < Self::LISTED
            && let Error::Input { message, file, line } = error
        {
            let file = file.map_or_else(String::new, |f| f.display().to_string());
            self.first.push(SkippedRow { file, line, message });
        }
    }

    /// Leaves out a row, or does not.
    ///
    /// # Errors
    /// What is wrong with it, if rows are not to be skipped.
    pub fn skip(&mut self, error: Error, on_bad_row: OnBadRow) -> Result<()> {
        if on_bad_row == OnBadRow::Error {
            return Err(error);
        }
        self.add(error);
        Ok(())
    }

    /// Adds what was skipped elsewhere.
    pub fn append(&mut self, other: Self) {
        self.rows += other.rows;
        let room = Self::LISTED.saturating_sub(self.first.len());
        self.first.extend(other.first.into_iter().take(room));
    }

    /// For readers: how many rows, and a line for each of the first. `None` when there are none.
    pub fn describe(&self) -> Option<String> {
        let plural = match self.rows {
            0 => return None,
            1 => " was",
            _ => "s were",
        };
        let mut text = format!("{} row{plural} skipped:", self.rows);
        for row in &self.first {
            let line = row.line.map_or_else(String::new, |l| format!(":{l}"));
            text += &format!("\n  {}{line}: {}", row.file, row.message);
        }
        if self.rows > self.first.len() as u64 {
            text += "\n  …";
        }
        Some(text)
    }
}

/// Why there is no row.
enum Fault {
    /// This row cannot be read; those after it can.
    Row(Error),
    /// Nothing more can be read.
    Stop(Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Stop(e)
    }
}

impl Fault {
    /// A fault that ends the reading, whatever it was.
    fn stop(self) -> Self {
        match self {
            Self::Row(e) | Self::Stop(e) => Self::Stop(e),
        }
    }
}

/// How far a reader is.
#[derive(Default)]
struct Walk {
    /// Rows so far, bad ones too.
    row: u64,
    done: bool,
    skipped: Skipped,
}

/// The next row that `read` gives. Bad ones are skipped or end the reading, as a setting says; other faults end it always.
fn next_row<R, T>(
    reader: &mut R,
    walk: impl Fn(&mut R) -> (&mut Walk, OnBadRow),
    read: impl Fn(&mut R) -> Result<Option<T>, Fault>,
) -> Option<Result<T>> {
    while !walk(reader).0.done {
        let read = read(reader);
        let (walk, on_bad_row) = walk(reader);
        walk.row += 1;
        match read {
            Ok(Some(row)) => return Some(Ok(row)),
            Ok(None) => walk.done = true,
            Err(Fault::Row(e)) if on_bad_row == OnBadRow::Skip => walk.skipped.add(e),
            Err(Fault::Row(e) | Fault::Stop(e)) => {
                walk.done = true;
                return Some(Err(e));
            }
        }
    }
    None
}

/// What a format takes out of a row.
struct Fields {
    text: String,
    text_pair: Option<String>,
    label: Option<String>,
    slice: Option<String>,
    id: Option<serde_json::Value>,
}

impl Fields {
    fn at(self, row: u64, line: u64, file: &Arc<Path>) -> Example {
        let Self { text, text_pair, label, slice, id } = self;
        Example { text, text_pair, label, slice, id, row, line, file: Arc::clone(file) }
    }
}

/// Rows of files or a stream in order, in memory bounded by the longest row. Ends after the first error.
pub struct Reader {
    options: ReadOptions,
    /// The file being read.
    rows: Option<Rows>,
    /// Those still to read.
    files: VecDeque<PathBuf>,
    /// How many were opened.
    opened: usize,
    /// The first file, for messages about all.
    first: PathBuf,
    walk: Walk,
    /// Labels that were renamed.
    renamed: BTreeSet<String>,
    bytes_read: Arc<AtomicU64>,
}

enum Rows {
    Delimited(Box<Delimited>),
    JsonLines(Box<JsonLines>),
    Pattern(Box<PatternLines>),
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::ParquetRows>),
    Texts(Box<Lines>),
}

impl Reader {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// When it is missing, a directory or not readable, its format is neither set nor known by its extension, or the
    /// options do not fit the format. What is wrong inside the file is reported by the iterator.
    pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        Self::open_all(&[path.as_ref().to_owned()], options)
    }

    /// Opens several files, to be read one after the other as if they were one. Each has a header of its own.
    ///
    /// # Errors
    /// As [`Self::open`] for the first; errors of the others are reported by the iterator.
    pub fn open_all(files: &[PathBuf], options: &ReadOptions) -> Result<Self> {
        let mut reader = Self::new(files.first().cloned().unwrap_or_default(), options);
        reader.files = files.iter().cloned().collect();
        reader.next_file()?;
        Ok(reader)
    }

    /// Bytes of the files that were read so far, a little ahead of the rows; streams and Parquet do not count.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Index of the file being read, which is that of the last row.
    pub(super) fn file_index(&self) -> usize {
        self.opened.saturating_sub(1)
    }

    /// Reads a stream; `name` stands for the file in messages. Without a format in `options` it waits for the first
    /// line to choose one.
    ///
    /// # Errors
    /// When the first line cannot be read or the options do not fit the format.
    pub fn from_stream(
        input: impl Read + Send + 'static,
        name: impl Into<PathBuf>,
        options: &ReadOptions,
    ) -> Result<Self> {
        let name = name.into();
        let mut reader = Self::new(name.clone(), options);
        reader.rows = Some(Rows::of_stream(Box::new(input), name.into(), options)?);
        Ok(reader)
    }

    fn new(first: PathBuf, options: &ReadOptions) -> Self {
        Self {
            options: options.clone(),
            rows: None,
            files: VecDeque::new(),
            opened: 0,
            first,
            walk: Walk::default(),
            renamed: BTreeSet::new(),
            bytes_read: Arc::default(),
        }
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> &Skipped {
        &self.walk.skipped
    }

    /// The keys of `rename_labels` that no row so far had as its label.
    pub fn unused_renames(&self) -> Vec<&str> {
        self.options.rename_labels.keys().filter(|k| !self.renamed.contains(*k)).map(String::as_str).collect()
    }

    /// Says that there was nothing to read when `rows` is 0.
    ///
    /// # Errors
    /// [`Error::Input`] with the first file.
    pub fn check_not_empty(&self, rows: usize) -> Result<()> {
        match (rows, self.walk.skipped.describe()) {
            (0, None) => Err(Error::in_file(&self.first, "the file has no rows of data")),
            (0, Some(skipped)) => Err(Error::in_file(&self.first, format!("no row can be read; {skipped}"))),
            _ => Ok(()),
        }
    }

    /// Goes to the next file; `false` when there is none.
    fn next_file(&mut self) -> Result<bool> {
        let Some(path) = self.files.pop_front() else { return Ok(false) };
        self.opened += 1;
        self.rows = Some(if path == Path::new(STANDARD_INPUT) {
            Rows::of_stream(Box::new(std::io::stdin()), name_of(&path).into(), &self.options)?
        } else {
            Rows::of_file(path, &self.options, &self.bytes_read)?
        });
        Ok(true)
    }

    fn read(&mut self) -> Result<Option<Example>, Fault> {
        loop {
            let row = self.walk.row + 1;
            let read = match &mut self.rows {
                Some(Rows::Delimited(r)) => r.read(row)?,
                Some(Rows::JsonLines(r)) => r.read(row)?,
                Some(Rows::Pattern(r)) => r.read(row)?,
                #[cfg(feature = "parquet")]
                Some(Rows::Parquet(r)) => r.read(row)?,
                Some(Rows::Texts(lines)) => read_text(lines, row)?,
                None => None,
            };
            match read {
                Some(example) => return self.with_label(example).map(Some),
                None if self.next_file()? => {}
                None => return Ok(None),
            }
        }
    }

    /// Renames the label, which may not be empty, or each of several labels.
    fn with_label(&mut self, mut example: Example) -> Result<Example, Fault> {
        let Some(label) = example.label.take() else { return Ok(example) };
        let wrong = |message: &str| Fault::Row(Error::at_line(&example.file, example.line, message));
        example.label = Some(match self.options.label_form {
            LabelForm::One if label.trim().is_empty() => {
                return Err(wrong("the label is empty; fix the row or drop it"));
            }
            _ if self.options.rename_labels.is_empty() => label,
            LabelForm::One => self.renamed(label),
            LabelForm::Several { .. } => {
                let renamed: Vec<String> = label_sets::names(&label).map(|name| self.renamed(name.into())).collect();
                label_sets::join(renamed).map_err(|message| wrong(&message))?
            }
        });
        Ok(example)
    }

    fn renamed(&mut self, label: String) -> String {
        match renamed(&self.options.rename_labels, &label) {
            Some((from, to)) => {
                if !self.renamed.contains(from) {
                    self.renamed.insert(from.clone());
                }
                to.clone()
            }
            None => label,
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Self::Item> {
        next_row(self, |reader| (&mut reader.walk, reader.options.on_bad_row), Self::read)
    }
}

impl Rows {
    fn of_file(path: PathBuf, options: &ReadOptions, bytes_read: &Arc<AtomicU64>) -> Result<Self> {
        let file = Counted { file: open_file(&path)?, bytes: Arc::clone(bytes_read) };
        let format = options.format_for(&path)?;
        let (compression, _) = extensions(&path);
        if format == Some(Format::Parquet) {
            return Self::of_parquet(file.file, path, compression, options);
        }
        Self::new(Box::new(file), path.into(), compression, Some(format), options)
    }

    #[cfg(feature = "parquet")]
    fn of_parquet(file: File, path: PathBuf, compression: Option<Compression>, options: &ReadOptions) -> Result<Self> {
        if compression.is_some() {
            let message = "Parquet files are compressed inside, and are not read from an archive; decompress it first";
            return Err(Error::in_file(path, message));
        }
        Ok(Self::Parquet(Box::new(parquet::ParquetRows::new(file, path.into(), options)?)))
    }

    #[cfg(not(feature = "parquet"))]
    fn of_parquet(_: File, path: PathBuf, _: Option<Compression>, _: &ReadOptions) -> Result<Self> {
        let message = "this build does not read Parquet; build bertft with `cargo build --release --features parquet`, or convert the file to jsonl";
        Err(Error::in_file(path, message))
    }

    fn of_stream(input: Input, name: Arc<Path>, options: &ReadOptions) -> Result<Self> {
        Self::new(
            input,
            name,
            None,
            options.format.or(options.pattern.as_ref().map(|_| Format::Pattern)).map(Some),
            options,
        )
    }

    /// `format`: `None` to choose by the first line, `Some(None)` for one text a line.
    fn new(
        input: Input,
        name: Arc<Path>,
        compression: Option<Compression>,
        format: Option<Option<Format>>,
        options: &ReadOptions,
    ) -> Result<Self> {
        let input = decompress(input, compression).map_err(|e| Error::io(&name, e))?;
        let mut lines = Lines::new(input, name, options.encoding.map(|e| e.0), options.naming)?;
        let format = match format {
            Some(format) => format,
            None if lines.peek()? && lines.raw().starts_with(b"{") => Some(Format::Jsonl),
            None => None,
        };
        let quoting = |default| options.quoting.unwrap_or(default);
        let delimiter = |default| options.delimiter.map_or(default, |d| d.0);
        let delimited =
            |lines, d, q| Self::Delimited(Box::new(Delimited::new(lines, delimiter(d), quoting(q), options)));
        Ok(match format {
            Some(Format::Csv) => delimited(lines, b',', true),
            Some(Format::Tsv) => delimited(lines, b'\t', false),
            Some(Format::Jsonl) => Self::JsonLines(Box::new(JsonLines::new(lines, options)?)),
            Some(Format::Pattern) => match &options.pattern {
                Some(pattern) => Self::Pattern(Box::new(PatternLines::new(lines, pattern, options)?)),
                None => {
                    let key = options.naming.key("pattern");
                    return Err(Error::in_file(lines.file(), format!("the format \"pattern\" needs {key}")));
                }
            },
            Some(Format::Conll) => {
                let message = "conll holds words with tags, which task.kind = \"tokens\" reads; give csv, tsv or jsonl";
                return Err(Error::in_file(lines.file(), message));
            }
            Some(Format::Squad) => {
                let message = "squad holds questions, which task.kind = \"span\" reads; give csv, tsv or jsonl";
                return Err(Error::in_file(lines.file(), message));
            }
            Some(Format::Parquet) => {
                return Err(Error::in_file(lines.file(), "Parquet cannot be read from a stream; give a file"));
            }
            None if options.text_pair.is_some() => return Err(only_texts(&lines, "no text pairs")),
            None if options.label.is_some() => return Err(only_texts(&lines, "no labels")),
            None => Self::Texts(Box::new(lines)),
        })
    }
}

/// An empty line is an empty text here, so that line N of the input stays row N of the output.
fn read_text(lines: &mut Lines, row: u64) -> Result<Option<Example>, Fault> {
    if !lines.advance()? {
        return Ok(None);
    }
    let fields = Fields { text: lines.text()?.to_owned(), text_pair: None, label: None, slice: None, id: None };
    Ok(Some(fields.at(row, lines.number(), lines.file())))
}

fn only_texts(lines: &Lines, lacks: &str) -> Error {
    let key = lines.naming().key("format");
    let message = format!(
        "the input is read as one text a line, so it has {lacks}; give csv, tsv or jsonl, or say what it is with {key}"
    );
    Error::in_file(lines.file(), message)
}

/// What messages call a file.
pub(super) fn name_of(path: &Path) -> PathBuf {
    if path == Path::new(STANDARD_INPUT) { "standard input".into() } else { path.into() }
}

/// How a file is compressed, and the extension that tells its format, in lower case: of `a.csv.gz`, `csv`.
fn extensions(path: &Path) -> (Option<Compression>, String) {
    let lower = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let last = lower(path);
    match Compression::of(&last) {
        Some(compression) => (Some(compression), path.file_stem().map(|s| lower(Path::new(s))).unwrap_or_default()),
        None => (None, last),
    }
}

/// The format that a file's extension tells: `Some(None)` for one text a line (`.txt`), `None` if it tells nothing.
pub fn format_by_extension(path: &Path) -> Option<Option<Format>> {
    Some(match extensions(path).1.as_str() {
        "csv" => Some(Format::Csv),
        "tsv" => Some(Format::Tsv),
        "jsonl" | "json" | "ndjson" => Some(Format::Jsonl),
        "parquet" => Some(Format::Parquet),
        "conll" | "bio" | "iob" | "iob2" | "bioes" | "bmes" => Some(Format::Conll),
        "txt" => None,
        _ => return None,
    })
}

/// Whether a file of lines is UTF-8, or names its encoding by a byte order mark.
///
/// # Errors
/// When it cannot be read.
pub fn is_utf8(path: &Path) -> Result<bool> {
    let input = decompress(Box::new(open_file(path)?), extensions(path).0).map_err(|e| Error::io(path, e))?;
    let mut lines = Lines::new(input, path.into(), None, Naming::Config)?;
    while lines.advance()? {
        if lines.check().is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(to)?;
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn open_file(path: &Path) -> Result<File> {
    let file = File::open(path).and_then(|f| Ok((f.metadata()?.is_dir(), f)));
    match file {
        Ok((false, file)) => Ok(file),
        Ok((true, _)) => Err(Error::in_file(path, "this is a directory; give a file")),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::in_file(path, "there is no such file")),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Err(Error::in_file(path, "no permission to read this file"))
        }
        Err(e) => Err(Error::io(path, e)),
    }
}
