//! Rows grouped by the value of a column, for metrics of each group.

use super::example::Example;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// More groups than this are no groups: the column is an id or a text.
const MOST: usize = 1000;

/// Which group each row of a data set belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Slices {
    /// Ascending.
    values: Vec<String>,
    /// `[rows]`: index in `values`.
    of_row: Vec<u32>,
}

impl Slices {
    /// The groups of rows that were read with [`super::ReadOptions::slice`]; `None` when they were read without.
    ///
    /// # Errors
    /// When the column has more than 1000 values.
    pub fn from_examples(examples: &[Example], file: &Path) -> Result<Option<Self>> {
        let Some(column) = examples.iter().map(|e| e.slice.as_deref()).collect::<Option<Vec<&str>>>() else {
            return Ok(None);
        };
        let distinct: BTreeSet<&str> = column.iter().copied().collect();
        if distinct.len() > MOST {
            let message =
                format!("eval.slice_by has {} values, expected at most {MOST}; give another column", distinct.len());
            return Err(Error::in_file(file, message));
        }
        let index: BTreeMap<&str, u32> = distinct.iter().copied().zip(0..).collect();
        let of_row = column.iter().map(|value| index[value]).collect();
        Ok(Some(Self { values: distinct.into_iter().map(String::from).collect(), of_row }))
    }

    /// Of these rows (each below their number) in this order.
    pub fn subset(&self, rows: &[usize]) -> Self {
        Self { values: self.values.clone(), of_row: rows.iter().map(|&r| self.of_row[r]).collect() }
    }

    /// Each value that a row has, ascending, with its rows.
    pub fn groups(&self) -> Vec<(&str, Vec<usize>)> {
        let mut rows = vec![vec![]; self.values.len()];
        for (row, &group) in self.of_row.iter().enumerate() {
            rows[group as usize].push(row);
        }
        self.values.iter().map(String::as_str).zip(rows).filter(|(_, rows)| !rows.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[Option<&str>]) -> Vec<Example> {
        let example = |(i, slice): (usize, &Option<&str>)| Example {
            text: String::new(),
            text_pair: None,
            label: None,
            slice: slice.map(String::from),
            id: None,
            row: i as u64 + 1,
            line: i as u64 + 2,
            file: Path::new("").into(),
        };
        values.iter().enumerate().map(example).collect()
    }

    #[test]
    fn groups_are_sorted_and_hold_their_rows() {
        let file = Path::new("dev.csv");
        let slices = Slices::from_examples(&rows(&[Some("b"), Some("a"), Some(""), Some("b")]), file).unwrap().unwrap();
        assert_eq!(slices.groups(), [("", vec![2]), ("a", vec![1]), ("b", vec![0, 3])]);
        assert_eq!(slices.subset(&[3, 1]).groups(), [("a", vec![1]), ("b", vec![0])]);
        assert_eq!(Slices::from_examples(&rows(&[None]), file).unwrap(), None);
        let ids: Vec<String> = (0..1001).map(|i| i.to_string()).collect();
        let ids: Vec<Option<&str>> = ids.iter().map(|i| Some(i.as_str())).collect();
        let message = Slices::from_examples(&rows(&ids), file).unwrap_err().to_string();
        assert!(message.starts_with("dev.csv: ") && message.contains("1001 values"), "{message}");
    }
}
