//! Data files to [`Example`]s, one file a format. [`Reader`] streams, [`read_examples`] collects.
//!
//! Formats: csv (RFC 4180 quoting), tsv (no quoting: tabs separate, quotes are text), jsonl (one object a line), and,
//! where no format is set, plain text with one text a line (`.txt`, standard input).

mod delimited;
mod jsonl;
mod lines;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::delimited::Delimited;
use self::jsonl::JsonLines;
use self::lines::Lines;
use super::config::{Column, Format};
use super::example::Example;
use crate::error::{Error, Result};

/// Which columns of a file to read, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// `None`: by extension (`.csv .tsv .jsonl .json .txt`); in a stream jsonl if its first byte is `{`, else one text
    /// a line.
    pub format: Option<Format>,
    pub text: Column,
    pub text_pair: Option<Column>,
    /// `None`: no label is read, though the file may have some.
    pub label: Option<Column>,
    /// Whether the first row of csv and tsv names the columns. Without it columns are 0-based indices.
    pub header: bool,
}

impl Default for ReadOptions {
    /// Column `text` of a file with a header, neither pair nor label.
    fn default() -> Self {
        Self { format: None, text: Column::Name("text".into()), text_pair: None, label: None, header: true }
    }
}

/// All rows of a file.
///
/// # Errors
/// What [`Reader`] reports, and a file without rows.
pub fn read_examples(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Vec<Example>> {
    let path = path.as_ref();
    let examples = Reader::open(path, options)?.collect::<Result<Vec<_>>>()?;
    if examples.is_empty() {
        return Err(Error::in_file(path, "the file has no rows of data"));
    }
    Ok(examples)
}

/// Rows of a file or stream in order, in memory bounded by the longest row. Ends after the first error.
pub struct Reader {
    rows: Rows,
    row: u64,
    done: bool,
    bytes_read: Arc<AtomicU64>,
}

enum Rows {
    Delimited(Delimited),
    JsonLines(JsonLines),
    Texts(Lines),
}

enum Kind {
    Csv,
    Tsv,
    JsonLines,
    Texts,
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is missing, a directory or not readable, its format is neither set nor known by its extension, or the
    /// options do not fit the format. What is wrong inside the file is reported by the iterator.
    pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self> {
        let path = path.as_ref();
        let bytes_read = Arc::new(AtomicU64::new(0));
        let file = Counted { file: open_file(path)?, bytes: bytes_read.clone() };
        let kind = match &options.format {
            Some(format) => Kind::from(format),
            None => Kind::by_extension(path)?,
        };
        let reader = Self::new(Lines::new(Box::new(file), path.into()), kind, options)?;
        Ok(Self { bytes_read, ..reader })
    }

    /// Bytes of the file that were read so far, a little ahead of the rows; 0 for a stream.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
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
        let mut lines = Lines::new(Box::new(input), name.into());
        let kind = match &options.format {
            Some(format) => Kind::from(format),
            None if lines.peek()? && lines.raw().starts_with('{') => Kind::JsonLines,
            None => Kind::Texts,
        };
        Self::new(lines, kind, options)
    }

    fn new(lines: Lines, kind: Kind, options: &ReadOptions) -> Result<Self> {
        let rows = match kind {
            Kind::Csv => Rows::Delimited(Delimited::csv(lines, options)),
            Kind::Tsv => Rows::Delimited(Delimited::tsv(lines, options)),
            Kind::JsonLines => Rows::JsonLines(JsonLines::new(lines, options)?),
            Kind::Texts if options.text_pair.is_some() => return Err(only_texts(&lines, "no text pairs")),
            Kind::Texts if options.label.is_some() => return Err(only_texts(&lines, "no labels")),
            Kind::Texts => Rows::Texts(lines),
        };
        Ok(Self { rows, row: 0, done: false, bytes_read: Arc::default() })
    }

    fn read(&mut self) -> Result<Option<Example>> {
        let row = self.row + 1;
        match &mut self.rows {
            Rows::Delimited(r) => r.read(row),
            Rows::JsonLines(r) => r.read(row),
            Rows::Texts(lines) => read_text(lines, row),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        self.row += 1;
        item
    }
}

/// An empty line is an empty text here, so that line N of the input stays row N of the output.
fn read_text(lines: &mut Lines, row: u64) -> Result<Option<Example>> {
    if !lines.advance()? {
        return Ok(None);
    }
    let (text, line) = (lines.text().to_owned(), lines.number());
    Ok(Some(Example { text, text_pair: None, label: None, id: None, row, line }))
}

fn only_texts(lines: &Lines, lacks: &str) -> Error {
    let message =
        format!("the input is read as one text a line, so it has {lacks}; give csv, tsv or jsonl (data.format)");
    Error::in_file(lines.file(), message)
}

impl Kind {
    fn by_extension(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let message = match extension.as_str() {
            "csv" => return Ok(Self::Csv),
            "tsv" => return Ok(Self::Tsv),
            "jsonl" | "json" => return Ok(Self::JsonLines),
            "txt" => return Ok(Self::Texts),
            "gz" | "zst" => "compressed files are not read so far; decompress it first".to_owned(),
            "" => "the name has no extension to tell the format by; set data.format to csv, tsv or jsonl".to_owned(),
            other => format!(
                "\".{other}\" is not one of [.csv, .tsv, .jsonl, .json, .txt]; set data.format to csv, tsv or jsonl"
            ),
        };
        Err(Error::in_file(path, message))
    }
}

impl From<&Format> for Kind {
    fn from(format: &Format) -> Self {
        match format {
            Format::Csv => Self::Csv,
            Format::Tsv => Self::Tsv,
            Format::Jsonl => Self::JsonLines,
        }
    }
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
