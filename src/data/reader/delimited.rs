//! csv and tsv: rows of fields, all of one width, with or without a header.
//!
//! With quoting (the default of csv) as RFC 4180 has it; without (the default of tsv) a quote is text: data sets in the
//! wild (MRPC, SST-2) carry unbalanced quotes, which a quoting reader silently turns into rows that span many lines.

use std::ops::Range;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};

use super::lines::{Lines, MAX_ROW_BYTES};
use super::{Fault, Fields, Naming, ReadOptions};
use crate::data::config::Column;
use crate::data::example::Example;
use crate::data::settings::Columns;
use crate::data::{did_you_mean, listed};
use crate::error::{Error, Result};

/// More is no table; the limit keeps a long line of nothing but delimiters from filling memory.
const MAX_FIELDS: usize = 1 << 20;

/// Reads rows and takes the chosen columns out of them.
pub(super) struct Delimited {
    rows: Rows,
    options: ReadOptions,
    layout: Option<Layout>,
}

/// Where the chosen columns are.
struct Layout {
    text: Vec<usize>,
    text_pair: Option<usize>,
    /// Names and places.
    label: Option<Vec<(String, usize)>>,
    slice: Option<usize>,
    id: Option<usize>,
    width: usize,
}

impl Delimited {
    pub(super) fn new(lines: Lines, delimiter: u8, quoting: bool, options: &ReadOptions) -> Self {
        Self { rows: Rows::new(lines, delimiter, quoting), options: options.clone(), layout: None }
    }

    pub(super) fn read(&mut self, row: u64) -> Result<Option<Example>, Fault> {
        if self.layout.is_none() {
            // Nothing can be read by a first row that cannot: it always ends the reading.
            if !self.rows.next().map_err(Fault::stop)? {
                return Ok(None);
            }
            self.layout = Some(Layout::new(&self.rows, &self.options)?);
            if self.options.header && !self.rows.next()? {
                return Ok(None);
            }
        } else if !self.rows.next()? {
            return Ok(None);
        }
        let Some(layout) = &self.layout else { return Ok(None) };
        let rows = &self.rows;
        if rows.fields.len() != layout.width {
            return Err(Fault::Row(rows.ragged(layout.width, self.options.header)));
        }
        let label = |columns: &Vec<(String, usize)>| {
            let values = columns.iter().map(|(name, i)| (name.as_str(), rows.field(*i)));
            self.options.label_of(values).map_err(|message| Fault::Row(rows.error(message)))
        };
        let fields = Fields {
            text: self.options.joined(layout.text.iter().map(|&i| rows.field(i))),
            text_pair: layout.text_pair.map(|i| rows.field(i).to_owned()),
            label: layout.label.as_ref().map(label).transpose()?,
            slice: layout.slice.map(|i| rows.field(i).to_owned()),
            id: layout.id.map(|i| rows.field(i).into()),
        };
        Ok(Some(fields.at(row, rows.first_line, rows.lines.file())))
    }
}

impl Layout {
    fn new(first: &Rows, options: &ReadOptions) -> Result<Self> {
        let names: Vec<&str> = (0..first.fields.len()).map(|i| first.field(i)).collect();
        let find = |column: &Column, key: &str| {
            column_index(column, key, &names, options)
                .map_err(|message| Error::at_line(first.lines.file(), first.first_line, message))
        };
        // Columns of 0 and 1 stand for the label of their name; without a header that is the number.
        let named = |c: &Column| {
            let place = find(c, "label")?;
            let name = if options.header { names[place].to_owned() } else { place.to_string() };
            Ok::<_, Error>((name, place))
        };
        let labels = |columns: &Columns| columns.iter().map(named).collect::<Result<_>>();
        Ok(Self {
            text: options.text.iter().map(|c| find(c, "text")).collect::<Result<_>>()?,
            text_pair: options.text_pair.as_ref().map(|c| find(c, "text_pair")).transpose()?,
            label: options.label.as_ref().map(labels).transpose()?,
            slice: options.slice.as_ref().map(|c| find(c, "slice_by")).transpose()?,
            id: names.iter().position(|name| *name == "id").filter(|_| options.header),
            width: names.len(),
        })
    }
}

/// The position of a column in the first row, or what is wrong with it.
fn column_index(column: &Column, key: &str, first: &[&str], options: &ReadOptions) -> Result<usize, String> {
    let (naming, header) = (options.naming, options.header);
    let key = naming.key(key);
    let name = match column {
        Column::Index(index) if *index < first.len() => return Ok(*index),
        Column::Index(index) => {
            return Err(format!(
                "column index {index} is out of range: the columns are 0 to {}; set {key}{}",
                first.len() - 1,
                another_delimiter(first, naming)
            ));
        }
        Column::Name(name) if !header => {
            let hint = match naming {
                Naming::Config => ", or data.header = true",
                Naming::Flags => "",
            };
            return Err(format!("there is no header to find column \"{name}\" in; set {key} to a 0-based index{hint}"));
        }
        Column::Name(name) => name,
    };
    let mut places = first.iter().enumerate().filter(|(_, n)| *n == name).map(|(i, _)| i);
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(place),
        (Some(a), Some(b)) => {
            Err(format!("columns {a} and {b} are both named \"{name}\"; set {key} to the index of one"))
        }
        (None, _) => {
            let names = first.iter().copied();
            let meant = did_you_mean(name, names.clone());
            Err(format!(
                "there is no column \"{name}\" among {}{meant}; set {key}, or {} if this row is data{}",
                listed(names),
                naming.no_header(),
                another_delimiter(first, naming)
            ))
        }
    }
}

/// A hint for a file that seems to be separated by something else: its first row is one field with that in it.
fn another_delimiter(first: &[&str], naming: Naming) -> String {
    let [only] = first else { return String::new() };
    let likely = [";", "\t", "|", ","].into_iter().find(|d| only.contains(d));
    likely.map_or_else(String::new, |d| {
        let shown = if d == "\t" { "\\t" } else { d };
        format!("; if \"{shown}\" separates the fields, {}", naming.set("delimiter", shown))
    })
}

/// Rows of fields from lines. Holds one row.
struct Rows {
    lines: Lines,
    delimiter: u8,
    /// The parser of rows with quotes; `None` when a quote is text.
    quoted: Option<Reader>,
    /// The fields' text as the parser unquotes it.
    unquoted: Vec<u8>,
    ends: Vec<usize>,
    /// The current row's text, with the fields' places in it.
    text: String,
    fields: Vec<Range<usize>>,
    first_line: u64,
}

impl Rows {
    fn new(lines: Lines, delimiter: u8, quoting: bool) -> Self {
        // Only a line feed ends a row here, so that a row ends where a line does; a CR before it is cut off below.
        let parser = || ReaderBuilder::new().delimiter(delimiter).terminator(Terminator::Any(b'\n')).build();
        Self {
            lines,
            delimiter,
            quoted: quoting.then(parser),
            unquoted: vec![],
            ends: vec![],
            text: String::new(),
            fields: vec![],
            first_line: 0,
        }
    }

    fn field(&self, i: usize) -> &str {
        &self.text[self.fields[i].clone()]
    }

    /// Goes to the next row that is not an empty line; `false` at the end.
    fn next(&mut self) -> Result<bool, Fault> {
        loop {
            if !self.lines.advance()? {
                return Ok(false);
            }
            if !self.lines.bytes().is_empty() {
                break;
            }
        }
        self.first_line = self.lines.number();
        self.text.clear();
        self.fields.clear();
        if self.quoted.is_some() && memchr::memchr(b'"', self.lines.bytes()).is_some() {
            return self.next_quoted().map(|()| true);
        }
        self.text.push_str(self.lines.text()?);
        let mut start = 0;
        for end in memchr::memchr_iter(self.delimiter, self.text.as_bytes()) {
            if self.fields.len() == MAX_FIELDS {
                return Err(Fault::Row(self.error(format!("the row has more than {MAX_FIELDS} fields"))));
            }
            self.fields.push(start..end);
            start = end + 1;
        }
        self.fields.push(start..self.text.len());
        Ok(true)
    }

    /// Reads the row that begins on the current line, with the lines after it while a quote is open.
    fn next_quoted(&mut self) -> Result<(), Fault> {
        self.unquoted.clear();
        self.ends.clear();
        // A line that is not text spoils the row, which still goes on to its end.
        let mut bad = self.lines.check().err();
        while !self.feed_line() {
            if self.unquoted.len() > MAX_ROW_BYTES {
                return Err(Fault::Stop(self.error("a quote in this row is not closed within 64 MiB; close it")));
            }
            if !self.lines.advance()? {
                let message = "a quote in this row is never closed; close it, or double a quote inside a quoted field";
                return Err(Fault::Stop(self.error(message)));
            }
            if let Err(fault) = self.lines.check() {
                bad.get_or_insert(fault);
            }
        }
        if let Some(fault) = bad {
            return Err(fault);
        }
        let text = std::str::from_utf8(&self.unquoted).map_err(|_| Fault::Row(self.error("the row is not UTF-8")))?;
        self.text.push_str(text);
        let mut start = 0;
        for &end in &self.ends {
            self.fields.push(start..end);
            start = end;
        }
        // The CR of the line end, which the parser took for text.
        if self.lines.raw().ends_with(b"\r\n")
            && let Some(last) = self.fields.last_mut()
        {
            last.end = last.end.max(last.start + 1) - 1;
        }
        Ok(())
    }

    /// Gives the current line to the parser; whether it ends the row.
    fn feed_line(&mut self) -> bool {
        let Some(parser) = &mut self.quoted else { return true };
        let mut line = self.lines.raw();
        let mut line_end: &[u8] = if line.ends_with(b"\n") { b"" } else { b"\n" };
        let (mut written, mut ended) = (self.unquoted.len(), self.ends.len());
        // Unquoting never lengthens, and a line has no more fields than bytes; one is spare for the parser's sake.
        self.unquoted.resize(written + line.len() + 2, 0);
        loop {
            self.ends.resize(ended + 64, 0);
            let (result, read, wrote, ends) =
                parser.read_record(line, &mut self.unquoted[written..], &mut self.ends[ended..]);
            written += wrote;
            ended += ends;
            line = &line[read..];
            let over = match result {
                ReadRecordResult::OutputEndsFull => continue,
                ReadRecordResult::InputEmpty if !line_end.is_empty() => {
                    line = std::mem::take(&mut line_end);
                    continue;
                }
                ReadRecordResult::InputEmpty => false,
                ReadRecordResult::Record | ReadRecordResult::End | ReadRecordResult::OutputFull => true,
            };
            self.unquoted.truncate(written);
            self.ends.truncate(ended);
            return over;
        }
    }

    fn ragged(&self, width: usize, header: bool) -> Error {
        let expected = if header { "the header" } else { "the first row" };
        let (found, first, last) = (self.fields.len(), self.first_line, self.lines.number());
        let hint = match self.quoted {
            Some(_) if last > first => {
                format!("it spans lines {first} to {last}: close its quotes, or double a quote inside a quoted field")
            }
            Some(_) if self.delimiter == b',' => "quote a field that contains a comma, or fix the row".to_owned(),
            Some(_) => "quote a field that contains the delimiter, or fix the row".to_owned(),
            None if self.delimiter == b'\t' => "fix its tabs".to_owned(),
            None => "fix its delimiters".to_owned(),
        };
        let plural = if found == 1 { "" } else { "s" };
        self.error(format!("the row has {found} field{plural}, but {expected} has {width}; {hint}"))
    }

    /// Wrong input in the current row.
    fn error(&self, message: impl Into<String>) -> Error {
        Error::at_line(self.lines.file(), self.first_line, message)
    }
}
