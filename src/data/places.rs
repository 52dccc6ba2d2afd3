//! Where rows stand, for messages about them.

use std::path::{Path, PathBuf};

use super::reader::name_of;
use super::tokens::Array;
use crate::error::Error;

/// File and line of each row of some files that were read one after the other.
#[derive(Default)]
pub struct Places {
    /// As messages name them.
    pub(super) files: Vec<PathBuf>,
    /// Rows up to the end of each file; the last ones may be left out.
    pub(super) ends: Vec<u64>,
    /// `[rows]`, 1-based.
    pub(super) lines: Array<u64>,
}

impl Places {
    /// Of no rows yet.
    pub(super) fn new(files: &[PathBuf]) -> Self {
        Self { files: names_of(files), ends: vec![], lines: Array::default() }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// 1-based line of each row in its file.
    pub fn lines(&self) -> &[u64] {
        &self.lines
    }

    pub fn into_lines(mut self) -> Vec<u64> {
        std::mem::take(self.lines.owned())
    }

    /// The file of a row; of a row that there is not, the first.
    pub fn file(&self, row: usize) -> &Path {
        let index = if row < self.len() { self.ends.partition_point(|&end| end <= row as u64) } else { 0 };
        self.files.get(index).map_or(Path::new(""), PathBuf::as_path)
    }

    /// Says what is wrong with a row.
    pub fn error(&self, row: usize, message: impl Into<String>) -> Error {
        match self.lines.get(row) {
            Some(&line) => Error::at_line(self.file(row), line, message),
            None => Error::in_file(self.file(row), message),
        }
    }

    /// The index of the file of that name: that of the last row, or of a later one. The last row's where there is none.
    pub(super) fn file_from(&self, name: &Path) -> usize {
        let last = self.ends.len().saturating_sub(1);
        let found = self.files.iter().skip(last).position(|file| file == name);
        last + found.unwrap_or(0)
    }

    /// The name of the file with this index.
    pub(super) fn name(&self, file: usize) -> &Path {
        self.files.get(file).map_or(Path::new(""), PathBuf::as_path)
    }

    /// Adds a row of the file with this index, which is that of the last row or a later one.
    pub(super) fn push(&mut self, file: u32, line: u64) {
        let file = file as usize;
        if self.ends.len() <= file {
            self.ends.resize(file + 1, self.lines.len() as u64);
        }
        self.ends[file] += 1;
        self.lines.owned().push(line);
    }

    /// Whether the parts belong together.
    pub(super) fn fit(&self) -> bool {
        let rows = self.lines.len() as u64;
        self.ends.len() <= self.files.len() && self.ends.is_sorted() && self.ends.last().copied().unwrap_or(0) == rows
    }
}

/// What messages call some files.
pub(super) fn names_of(files: &[PathBuf]) -> Vec<PathBuf> {
    files.iter().map(|file| name_of(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_their_own_files_and_files_may_have_none() {
        let mut places = Places::new(&["a.csv", "b.csv", "-", "d.csv", "e.csv"].map(PathBuf::from));
        assert_eq!(places.error(0, "x").to_string(), "a.csv: x");
        for (file, line) in [(1, 2), (1, 5), (2, 1), (4, 7)] {
            places.push(file, line);
        }
        assert!(places.fit() && places.len() == 4);
        let shown = [0, 1, 2, 3].map(|row| places.error(row, "x").to_string());
        assert_eq!(shown, ["b.csv:2: x", "b.csv:5: x", "standard input:1: x", "e.csv:7: x"]);
        assert_eq!(places.into_lines(), [2, 5, 1, 7]);
    }
}
