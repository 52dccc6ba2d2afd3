//! csv and tsv: rows of fields, all of one width, with or without a header.
//!
//! csv follows RFC 4180. tsv has no quoting at all: data sets in the wild (MRPC, SST-2) carry unbalanced quotes, which
//! a quoting reader silently turns into rows that span many lines.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ReadOptions;
use super::lines::Lines;
use crate::data::config::Column;
use crate::data::example::Example;
use crate::data::{did_you_mean, listed};
use crate::error::{Error, Result};

/// Reads rows and takes the chosen columns out of them.
pub(super) struct Delimited {
    source: Source,
    options: ReadOptions,
    file: PathBuf,
    layout: Option<Layout>,
}

enum Source {
    Csv(Box<csv::Reader<Feed>>),
    Tsv(Lines),
}

/// One row: its fields and the lines it spans.
struct Record {
    fields: Vec<String>,
    first_line: u64,
    last_line: u64,
}

/// Where the chosen columns are.
struct Layout {
    text: usize,
    text_pair: Option<usize>,
    label: Option<usize>,
    slice: Option<usize>,
    id: Option<usize>,
    width: usize,
}

impl Delimited {
    pub(super) fn csv(lines: Lines, options: &ReadOptions) -> Self {
        let file = lines.file().to_owned();
        // Ragged rows are reported here, with the right line; so the crate is told to let them pass.
        let csv = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(Feed::new(lines));
        Self { source: Source::Csv(Box::new(csv)), options: options.clone(), file, layout: None }
    }

    pub(super) fn tsv(lines: Lines, options: &ReadOptions) -> Self {
        let file = lines.file().to_owned();
        Self { source: Source::Tsv(lines), options: options.clone(), file, layout: None }
    }

    pub(super) fn read(&mut self, row: u64) -> Result<Option<Example>> {
        let Some(mut record) = self.source.next()? else { return Ok(None) };
        if self.layout.is_none() {
            self.layout = Some(Layout::new(&record, &self.options, &self.file)?);
            if self.options.header {
                match self.source.next()? {
                    Some(first) => record = first,
                    None => return Ok(None),
                }
            }
        }
        let Some(layout) = &self.layout else { return Ok(None) };
        if record.fields.len() != layout.width {
            return Err(self.ragged(&record, layout.width));
        }
        let id = layout.id.map(|i| record.fields[i].clone().into());
        let label = layout.label.map(|i| record.fields[i].clone());
        let slice = layout.slice.map(|i| record.fields[i].clone());
        let text_pair = layout.text_pair.map(|i| record.fields[i].clone());
        let text = record.fields.swap_remove(layout.text);
        Ok(Some(Example { text, text_pair, label, slice, id, row, line: record.first_line }))
    }

    fn ragged(&self, record: &Record, width: usize) -> Error {
        let expected = if self.options.header { "the header" } else { "the first row" };
        let (found, first, last) = (record.fields.len(), record.first_line, record.last_line);
        let hint = match &self.source {
            Source::Csv(_) if last > first => {
                format!("it spans lines {first} to {last}: close its quotes, or double a quote inside a quoted field")
            }
            Source::Csv(_) => "quote a field that contains a comma, or fix the row".to_owned(),
            Source::Tsv(_) => "fix its tabs".to_owned(),
        };
        let plural = if found == 1 { "" } else { "s" };
        let message = format!("the row has {found} field{plural}, but {expected} has {width}; {hint}");
        Error::at_line(&self.file, first, message)
    }
}

impl Layout {
    fn new(first: &Record, options: &ReadOptions, file: &Path) -> Result<Self> {
        let find = |column: &Column, setting: &str| {
            column_index(column, setting, &first.fields, options.header)
                .map_err(|message| Error::at_line(file, first.first_line, message))
        };
        Ok(Self {
            text: find(&options.text, "data.text")?,
            text_pair: options.text_pair.as_ref().map(|c| find(c, "data.text_pair")).transpose()?,
            label: options.label.as_ref().map(|c| find(c, "data.label")).transpose()?,
            slice: options.slice.as_ref().map(|c| find(c, "eval.slice_by")).transpose()?,
            id: first.fields.iter().position(|name| name == "id").filter(|_| options.header),
            width: first.fields.len(),
        })
    }
}

/// The position of a column in the first row, or what is wrong with it.
fn column_index(column: &Column, setting: &str, first: &[String], header: bool) -> Result<usize, String> {
    let name = match column {
        Column::Index(index) if *index < first.len() => return Ok(*index),
        Column::Index(index) => {
            return Err(format!(
                "column index {index} is out of range: the columns are 0 to {}; set {setting}",
                first.len() - 1
            ));
        }
        Column::Name(name) if !header => {
            return Err(format!(
                "there is no header to find column \"{name}\" in; set {setting} to a 0-based index, or data.header = true"
            ));
        }
        Column::Name(name) => name,
    };
    let mut places = first.iter().enumerate().filter(|(_, n)| *n == name).map(|(i, _)| i);
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(place),
        (Some(a), Some(b)) => {
            Err(format!("columns {a} and {b} are both named \"{name}\"; set {setting} to the index of one"))
        }
        (None, _) => {
            let names = first.iter().map(String::as_str);
            let meant = did_you_mean(name, names.clone());
            Err(format!(
                "there is no column \"{name}\" among {}{meant}; set {setting}, or data.header = false if this row is data",
                listed(names)
            ))
        }
    }
}

impl Source {
    fn next(&mut self) -> Result<Option<Record>> {
        match self {
            Self::Csv(csv) => next_csv(csv),
            Self::Tsv(lines) => next_tsv(lines),
        }
    }
}

fn next_tsv(lines: &mut Lines) -> Result<Option<Record>> {
    while lines.advance()? {
        if !lines.text().is_empty() {
            let fields = lines.text().split('\t').map(str::to_owned).collect();
            return Ok(Some(Record { fields, first_line: lines.number(), last_line: lines.number() }));
        }
    }
    Ok(None)
}

fn next_csv(csv: &mut csv::Reader<Feed>) -> Result<Option<Record>> {
    let start = csv.position().byte();
    let mut record = csv::StringRecord::new();
    let read = csv.read_record(&mut record);
    let end = csv.position().byte();
    let feed = csv.get_mut();
    match read {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(e) => return Err(feed.failure.take().unwrap_or_else(|| Error::in_file(feed.lines.file(), e.to_string()))),
    }
    let first_line = feed.line_at(start);
    if feed.end_mark_at.is_some_and(|at| end > at + 1) {
        if record.len() == 1 && &record[0] == END_MARK {
            return Ok(None);
        }
        let message = "a quote in this row is never closed; close it, or double a quote inside a quoted field";
        return Err(Error::at_line(feed.lines.file(), first_line, message));
    }
    let fields = record.iter().map(str::to_owned).collect();
    // The parser never reads past the line on which a row ends, and the feed hands out one line at a time.
    Ok(Some(Record { fields, first_line, last_line: feed.lines.number() }))
}

/// A row of its own after the last one: a quote still open at the end of the file swallows it, which is how an open
/// quote is noticed (the csv crate accepts one silently).
const END_MARK: &str = "\u{1}";

/// Lines for the csv crate, remembering on which line each begins: the crate's own line count starts a row on the
/// blank lines before it, and one line early after CRLF.
struct Feed {
    lines: Lines,
    /// What is left of the current line.
    rest: std::ops::Range<usize>,
    /// (offset, line number) of the lines with content that were handed out and not yet passed.
    starts: VecDeque<(u64, u64)>,
    offset: u64,
    end_mark_at: Option<u64>,
    /// The crate carries only `io::Error`s; ours waits here.
    failure: Option<Error>,
}

impl Feed {
    fn new(lines: Lines) -> Self {
        Self { lines, rest: 0..0, starts: VecDeque::new(), offset: 0, end_mark_at: None, failure: None }
    }

    /// The line of the first row that begins at or after an offset.
    fn line_at(&mut self, offset: u64) -> u64 {
        while self.starts.front().is_some_and(|&(at, _)| at < offset) {
            self.starts.pop_front();
        }
        self.starts.front().map_or(self.lines.number(), |&(_, line)| line)
    }

    fn next_line(&mut self) -> Result<bool> {
        if !self.lines.advance()? {
            return Ok(false);
        }
        if !self.lines.text().is_empty() {
            self.starts.push_back((self.offset, self.lines.number()));
        }
        self.rest = 0..self.lines.raw().len();
        Ok(true)
    }
}

impl Read for Feed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() && self.end_mark_at.is_none() {
            match self.next_line() {
                Ok(true) => {}
                Ok(false) => {
                    self.end_mark_at = Some(self.offset);
                    self.rest = 0..0;
                    let mark = format!("\n{END_MARK}");
                    out[..mark.len()].copy_from_slice(mark.as_bytes());
                    return Ok(mark.len());
                }
                Err(e) => {
                    self.failure = Some(e);
                    return Err(io::Error::other("see Feed::failure"));
                }
            }
        }
        let left = &self.lines.raw().as_bytes()[self.rest.clone()];
        let n = left.len().min(out.len());
        out[..n].copy_from_slice(&left[..n]);
        self.rest.start += n;
        self.offset += n as u64;
        Ok(n)
    }
}
