//! Rows grouped by the value of a column, for metrics of each group.

use super::labels::Labels;

/// More groups than this are no groups: the column is an id or a text.
pub(super) const MOST: usize = 1000;

/// Which group each row of a data set belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Slices {
    /// Ascending.
    values: Vec<String>,
    /// `[rows]`: index in `values`.
    of_row: Vec<u32>,
}

impl Slices {
    /// The groups of rows with these values of the column.
    pub fn new(column: &Labels) -> Self {
        let mut order: Vec<(&String, usize)> = column.names.iter().zip(0..).collect();
        order.sort();
        let mut index = vec![0; order.len()];
        for (new, &(_, old)) in (0u32..).zip(&order) {
            index[old] = new;
        }
        let of_row = column.codes.iter().map(|&code| index[code as usize]).collect();
        Self { values: order.into_iter().map(|(value, _)| value.clone()).collect(), of_row }
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
    use super::super::tokens::Array;
    use super::*;

    #[test]
    fn groups_are_sorted_and_hold_their_rows() {
        let names = ["b", "a", ""].map(String::from).to_vec();
        let slices = Slices::new(&Labels { names, codes: Array::Owned(vec![0, 1, 2, 0]) });
        assert_eq!(slices.groups(), [("", vec![2]), ("a", vec![1]), ("b", vec![0, 3])]);
        assert_eq!(slices.subset(&[3, 1]).groups(), [("a", vec![1]), ("b", vec![0])]);
    }
}
