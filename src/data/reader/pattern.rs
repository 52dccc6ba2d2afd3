//! Lines that a regular expression takes apart: its named groups are the columns.

use std::sync::Arc;

use regex::{CaptureLocations, Regex};

use super::lines::Lines;
use super::{Fault, Fields, ReadOptions};
use crate::data::config::Column;
use crate::data::example::Example;
use crate::data::settings::{Columns, Pattern};
use crate::data::{did_you_mean, listed, shortened};
use crate::error::{Error, Result};

/// Reads one row a line.
pub(super) struct PatternLines {
    lines: Lines,
    pattern: Regex,
    found: CaptureLocations,
    options: ReadOptions,
    text: Vec<usize>,
    text_pair: Option<usize>,
    /// Names and groups.
    label: Option<Vec<(String, usize)>>,
    slice: Option<usize>,
    id: Option<usize>,
}

impl PatternLines {
    /// # Errors
    /// When a column is not a named group of the pattern.
    pub(super) fn new(lines: Lines, pattern: &Pattern, options: &ReadOptions) -> Result<Self> {
        let pattern = pattern.0.clone();
        let group = |column: &Column, key: &str| match column {
            Column::Index(_) => Err(no_group(&pattern, column, key, &lines, options)),
            Column::Name(name) => pattern
                .capture_names()
                .position(|group| group == Some(name))
                .ok_or_else(|| no_group(&pattern, column, key, &lines, options)),
        };
        let text = options.text.iter().map(|c| group(c, "text")).collect::<Result<_>>()?;
        let text_pair = options.text_pair.as_ref().map(|c| group(c, "text_pair")).transpose()?;
        let named = |c: &Column| match (group(c, "label")?, c) {
            (place, Column::Name(name)) => Ok::<_, Error>((name.clone(), place)),
            (place, Column::Index(index)) => Ok((index.to_string(), place)),
        };
        let labels = |columns: &Columns| columns.iter().map(named).collect::<Result<_>>();
        let label = options.label.as_ref().map(labels).transpose()?;
        let slice = options.slice.as_ref().map(|c| group(c, "slice_by")).transpose()?;
        let id = pattern.capture_names().position(|group| group == Some("id"));
        let found = pattern.capture_locations();
        Ok(Self { lines, found, options: options.clone(), text, text_pair, label, slice, id, pattern })
    }

    pub(super) fn read(&mut self, row: u64) -> Result<Option<Example>, Fault> {
        loop {
            if !self.lines.advance()? {
                return Ok(None);
            }
            if !self.lines.bytes().iter().all(u8::is_ascii_whitespace) {
                break;
            }
        }
        let (file, number) = (Arc::clone(self.lines.file()), self.lines.number());
        let key = self.lines.naming().key("pattern");
        let line = self.lines.text()?;
        if self.pattern.captures_read(&mut self.found, line).is_none() {
            let message = format!("the line does not match {key}: \"{}\"; fix the row or the pattern", shortened(line));
            return Err(Fault::Row(Error::at_line(file, number, message)));
        }
        // A group that took no part in the match is empty.
        let group = |i: usize| self.found.get(i).map_or("", |(start, end)| &line[start..end]);
        let label = |columns: &Vec<(String, usize)>| {
            let values = columns.iter().map(|(name, i)| (name.as_str(), group(*i)));
            self.options.label_of(values).map_err(|message| Fault::Row(Error::at_line(&*file, number, message)))
        };
        let fields = Fields {
            text: self.options.joined(self.text.iter().map(|&i| group(i))),
            text_pair: self.text_pair.map(|i| group(i).to_owned()),
            label: self.label.as_ref().map(label).transpose()?,
            slice: self.slice.map(|i| group(i).to_owned()),
            id: self.id.map(|i| group(i).into()),
        };
        Ok(Some(fields.at(row, number, &file)))
    }
}

fn no_group(pattern: &Regex, column: &Column, key: &str, lines: &Lines, options: &ReadOptions) -> Error {
    let names: Vec<&str> = pattern.capture_names().flatten().collect();
    let meant = match column {
        Column::Name(name) => did_you_mean(name, names.iter().copied()),
        Column::Index(_) => String::new(),
    };
    let (key, pattern) = (options.naming.key(key), options.naming.key("pattern"));
    let groups = listed(names.iter().copied());
    Error::in_file(
        lines.file(),
        format!("{pattern} has no group {column} among {groups}{meant}; set {key}, or add (?P<name>…)"),
    )
}
