//! Any number of labels a row (`multilabel`): how files write them, the one string that stands for a row's labels from the
//! reader to the targets, and the targets themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::config::{Column, TaskKind};
use super::dataset::Targets;
use super::labels::{LabelMap, Labels, renamed};
use super::places::Places;
use super::reader::Naming;
use super::settings::Columns;
use super::shortened;
use crate::error::Result;

/// Whether a row has one label or several, and how a file writes several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LabelForm {
    /// One.
    #[default]
    One,
    /// Any number, none too: in one column with `delimiter` between them or as a JSON list, or in several columns, of which each
    /// stands for the label of its name and holds 0 or 1.
    Several { delimiter: String },
}

impl LabelForm {
    /// That of a task. `delimiter`: what stands between several labels; `None`: a comma.
    pub fn of(task: TaskKind, delimiter: Option<&str>) -> Self {
        match task {
            TaskKind::Multilabel => Self::Several { delimiter: delimiter.unwrap_or(",").into() },
            _ => Self::One,
        }
    }
}

/// Between the names of a row's labels in the string that stands for them: ASCII's unit separator.
const SEPARATOR: char = '\u{1f}';

/// The string that stands for a row's labels: each name once, ascending, so that equal sets are equal strings.
///
/// # Errors
/// When a name holds the separator.
pub(super) fn join(names: impl IntoIterator<Item = String>) -> Result<String, String> {
    let names: BTreeSet<String> = names.into_iter().collect();
    if let Some(bad) = names.iter().find(|name| name.contains(SEPARATOR)) {
        return Err(format!("label \"{}\" holds the control character U+001F; fix the row", shortened(bad)));
    }
    let mut joined = String::new();
    for (i, name) in names.iter().enumerate() {
        if i > 0 {
            joined.push(SEPARATOR);
        }
        joined.push_str(name);
    }
    Ok(joined)
}

/// The names that [`join`] put together.
pub fn names(joined: &str) -> impl Iterator<Item = &str> {
    joined.split(SEPARATOR).filter(|name| !name.is_empty())
}

/// A row's labels as people read them.
pub fn shown(joined: &str) -> String {
    names(joined).collect::<Vec<_>>().join(", ")
}

/// The labels of one column's value: a JSON list of strings, numbers and booleans, or names between delimiters.
///
/// # Errors
/// What is wrong with a list.
pub(super) fn of_cell(cell: &str, delimiter: &str, naming: Naming) -> Result<String, String> {
    let cell = cell.trim();
    if cell.starts_with('[') && cell.ends_with(']') {
        return match serde_json::from_str(cell) {
            Ok(serde_json::Value::Array(list)) => of_list(&list),
            _ => {
                let key = naming.key("label_delimiter");
                Err(format!(
                    "label {} is neither a JSON list such as [\"a\", \"b\"] nor names between {key}; fix the row",
                    shortened(cell)
                ))
            }
        };
    }
    join(cell.split(delimiter).map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned))
}

/// The labels of a JSON list.
///
/// # Errors
/// When it holds anything but strings, numbers and booleans.
pub(super) fn of_list(list: &[serde_json::Value]) -> Result<String, String> {
    let name = |value: &serde_json::Value| match value {
        serde_json::Value::String(name) if name.trim().is_empty() => Err("the list of labels has an empty name".into()),
        serde_json::Value::String(name) => Ok(name.trim().to_owned()),
        serde_json::Value::Number(n) => Ok(super::reader::canonical(n)),
        serde_json::Value::Bool(b) => Ok(b.to_string()),
        other => Err(format!("the list of labels has {other}, expected strings or numbers; fix the row")),
    };
    join(list.iter().map(name).collect::<Result<Vec<_>, String>>()?)
}

/// The labels of columns that hold 0 or 1: the names of those that hold 1.
///
/// # Errors
/// At another value.
pub(super) fn of_flags<'c>(columns: impl IntoIterator<Item = (&'c str, &'c str)>) -> Result<String, String> {
    let mut names = vec![];
    for (name, value) in columns {
        match flag(value) {
            Some(true) => names.push(name.to_owned()),
            Some(false) => {}
            None => {
                let found = shortened(value.trim());
                return Err(format!("label column \"{name}\" is \"{found}\", expected 0 or 1; fix the row"));
            }
        }
    }
    join(names)
}

/// The labels of such columns, renamed, each once in the order of their first ones; `None` where columns go by number, or there is
/// one only, which holds the labels' names.
pub fn flag_names(columns: &Columns, renames: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let mut names: Vec<String> = vec![];
    for column in columns.iter() {
        let Column::Name(name) = column else { return None };
        let name = renamed(renames, name).map_or(name, |(_, to)| to);
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    (columns.as_slice().len() > 1).then_some(names)
}

fn flag(value: &str) -> Option<bool> {
    match value.trim() {
        "1" | "1.0" | "true" | "True" | "TRUE" => Some(true),
        "0" | "0.0" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Whether every row has one label, which says yes or no: a column of 0 and 1 by itself, which was not meant for two labels.
pub fn are_flags(labels: &Labels) -> bool {
    !labels.is_empty() && labels.names().iter().all(|joined| flag(joined).is_some())
}

/// Classes of every row, any number of them.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelSets {
    /// Ascending class indices of each distinct set.
    sets: Arc<Vec<Vec<u32>>>,
    /// `[rows]`: which set.
    codes: Vec<u32>,
}

impl LabelSets {
    /// One set of ascending class indices a row.
    pub fn new(rows: Vec<Vec<u32>>) -> Self {
        let codes = (0..rows.len() as u32).collect();
        Self { sets: Arc::new(rows), codes }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// The classes of a row, ascending.
    pub fn of(&self, row: usize) -> &[u32] {
        &self.sets[self.codes[row] as usize]
    }

    /// The classes of each row.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.codes.iter().map(|&code| self.sets[code as usize].as_slice())
    }

    /// These rows in this order.
    pub fn subset(&self, rows: &[usize]) -> Self {
        Self { sets: Arc::clone(&self.sets), codes: rows.iter().map(|&r| self.codes[r]).collect() }
    }

    /// `[rows, classes]`: 1 where a row has the class.
    pub fn dense(&self, classes: usize) -> Vec<f32> {
        let mut dense = vec![0.0; self.len() * classes];
        for (row, set) in dense.chunks_exact_mut(classes).zip(self.iter()) {
            set.iter().for_each(|&class| row[class as usize] = 1.0);
        }
        dense
    }

    /// Rows of each class.
    pub fn counts(&self, classes: usize) -> Vec<u64> {
        let mut counts = vec![0; classes];
        self.iter().flatten().for_each(|&class| counts[class as usize] += 1);
        counts
    }
}

impl LabelMap {
    /// The classes of a row's labels, ascending, or what is wrong with one of them.
    pub fn set(&self, joined: &str) -> Result<Vec<u32>, String> {
        let classes: BTreeSet<u32> = names(joined).map(|name| self.class(name)).collect::<Result<_, _>>()?;
        Ok(classes.into_iter().collect())
    }

    /// The classes of every row.
    ///
    /// # Errors
    /// When a row has a label that is not in the map.
    pub fn set_targets(&self, labels: &Labels, places: &Places) -> Result<Targets> {
        // Asked once a distinct set, in the order of the codes.
        let sets = std::cell::RefCell::new(vec![]);
        let codes = labels.map(places, |joined| {
            let mut sets = sets.borrow_mut();
            sets.push(self.set(joined)?);
            Ok(sets.len() as u32 - 1)
        })?;
        Ok(Targets::Sets(LabelSets { sets: Arc::new(sets.into_inner()), codes }))
    }
}

/// Each name of some rows' labels once, in the order of their first rows.
pub fn all_names(labels: &Labels) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let every = labels.names().iter().flat_map(|joined| names(joined));
    every.filter(|name| seen.insert(*name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Labels {
        let codes = super::super::tokens::Array::Owned((0..names.len() as u32).collect());
        Labels { names: names.iter().map(|name| name.to_string()).collect(), codes }
    }

    #[test]
    fn a_cell_is_a_list_or_delimited() {
        let of = |cell: &str| of_cell(cell, ",", Naming::Config).map(|joined| shown(&joined));
        assert_eq!(of("b, a,b,"), Ok("a, b".into()));
        assert_eq!(of(r#"["b", 1, true, 2.0]"#), Ok("1, 2, b, true".into()));
        assert_eq!((of(" "), of("[]")), (Ok(String::new()), Ok(String::new())));
        assert_eq!(of_cell("a b|c", "|", Naming::Config).map(|j| shown(&j)), Ok("a b, c".into()));
        assert!(of("[a, b]").unwrap_err().contains("data.label_delimiter"));
        assert!(of("[[1]]").unwrap_err().contains("expected strings"));
        assert!(of("[\"\"]").unwrap_err().contains("empty name"));
        assert!(of("a\u{1f}b").unwrap_err().contains("U+001F"));
    }

    #[test]
    fn flags_name_their_columns() {
        let of = |columns: &[(&'static str, &'static str)]| of_flags(columns.iter().copied()).map(|j| shown(&j));
        assert_eq!(of(&[("joy", "1"), ("fear", "0"), ("anger", "True")]), Ok("anger, joy".into()));
        assert!(are_flags(&labels(&["0", "1", "True"])) && !are_flags(&labels(&["0", "1", ""])));
        assert!(
            !are_flags(&labels(&["0", "27"])) && !are_flags(&labels(&["0", "0\u{1f}1"])) && !are_flags(&labels(&[]))
        );
        assert!(of(&[("joy", "2")]).unwrap_err().contains("\"joy\" is \"2\", expected 0 or 1"));
    }

    #[test]
    fn a_row_may_have_any_number_of_classes() {
        let map = LabelMap::new(["x", "y", "z"].map(String::from).to_vec()).unwrap();
        let set = |names: &[&str]| map.set(&join(names.iter().map(|n| n.to_string())).unwrap());
        assert_eq!((set(&["z", "x"]), set(&[])), (Ok(vec![0, 2]), Ok(vec![])));
        assert!(set(&["x", "w"]).unwrap_err().contains("label \"w\" is not one of [x, y, z]"));
        let sets = LabelSets::new(vec![vec![0, 2], vec![], vec![1]]);
        assert_eq!(sets.subset(&[2, 0]).dense(3), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(sets.counts(3), [1, 1, 1]);
    }
}
