//! Rows that are equal: repeats within a split, rows of other splits that are in train too, and conflicting labels.

use rayon::prelude::*;

/// What [`exact`] finds. Rows are numbered through all splits, train first.
#[derive(Debug, Default, PartialEq)]
pub struct Exact {
    /// Each row that an earlier row of its split equals, with the first such row.
    pub repeats: Vec<(u32, u32)>,
    /// Each row outside split 0 that a row of split 0 equals, with the first such row.
    pub leaks: Vec<(u32, u32)>,
    pub conflicts: Vec<Conflict>,
}

/// Equal rows with labels that differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conflict {
    /// Rows with that text.
    pub rows: usize,
    /// Two of them whose labels differ most, the earlier first.
    pub pair: (u32, u32),
}

/// Groups rows by key. `keys` are (key, row); `split_of` gives the split of a row, ascending with rows; `value_of` its label as a
/// number (NaN: none), of which two conflict when they are further apart than `tolerance`.
pub fn exact<K: Ord + Copy + Send>(
    mut keys: Vec<(K, u32)>,
    split_of: impl Fn(u32) -> u8,
    value_of: impl Fn(u32) -> f64,
    tolerance: f64,
) -> Exact {
    keys.par_sort_unstable();
    let mut found = Exact::default();
    for group in keys.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1) {
        let first = group[0].1;
        let mut first_of_split = first;
        for &(_, row) in &group[1..] {
            if split_of(row) == split_of(first_of_split) {
                found.repeats.push((row, first_of_split));
            } else {
                first_of_split = row;
            }
            if split_of(row) != 0 && split_of(first) == 0 {
                found.leaks.push((row, first));
            }
        }
        found.conflicts.extend(conflict(group, &value_of, tolerance));
    }
    found.repeats.sort_unstable();
    found.leaks.sort_unstable();
    found.conflicts.sort_unstable_by_key(|c| c.pair);
    found
}

fn conflict<K>(group: &[(K, u32)], value_of: impl Fn(u32) -> f64, tolerance: f64) -> Option<Conflict> {
    let mut ends: Option<((u32, f64), (u32, f64))> = None;
    for &(_, row) in group {
        let value = value_of(row);
        if value.is_nan() {
            continue;
        }
        let (least, most) = ends.get_or_insert(((row, value), (row, value)));
        if value < least.1 {
            *least = (row, value);
        } else if value > most.1 {
            *most = (row, value);
        }
    }
    let (least, most) = ends?;
    let pair = (least.0.min(most.0), least.0.max(most.0));
    (most.1 - least.1 > tolerance).then_some(Conflict { rows: group.len(), pair })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with a key and a value, of which the last three are of split 1.
    fn find(rows: &[(u8, f64)], tolerance: f64) -> Exact {
        let keys = rows.iter().zip(0..).map(|((key, _), row)| (*key, row)).collect();
        let train = rows.len() as u32 - 3;
        exact(keys, |row| u8::from(row >= train), |row| rows[row as usize].1, tolerance)
    }

    #[test]
    fn repeats_leaks_and_conflicts() {
        let found = find(&[(1, 0.0), (2, 0.0), (1, 0.0), (2, 1.0), (3, 0.0), (1, 1.0), (4, 0.0), (4, 1.0)], 0.5);
        assert_eq!(found.repeats, [(2, 0), (3, 1), (7, 6)]);
        assert_eq!(found.leaks, [(5, 0)]);
        let conflict = |rows, pair| Conflict { rows, pair };
        assert_eq!(found.conflicts, [conflict(3, (0, 5)), conflict(2, (1, 3)), conflict(2, (6, 7))]);
    }

    #[test]
    fn numbers_conflict_when_they_are_far_apart() {
        let rows = [(1, 3.0), (1, 3.1), (2, 1.0), (2, f64::NAN), (3, 4.0), (3, 4.4), (3, 3.8)];
        assert_eq!(find(&rows, 0.5).conflicts, [Conflict { rows: 3, pair: (5, 6) }]);
        assert_eq!(find(&rows, 1.0).conflicts, []);
    }

    #[test]
    fn rows_that_differ_give_nothing() {
        assert_eq!(find(&[(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)], 0.5), Exact::default());
    }
}
