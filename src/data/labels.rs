//! Label strings to targets: class indices through a [`LabelMap`], or numbers for regression.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::dataset::Targets;
use super::places::Places;
use super::tokens::Array;
use super::{did_you_mean, listed, shortened};
use crate::error::{Error, Result};

/// The class names of a model in the order of its outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelMap {
    names: Vec<String>,
    by_name: HashMap<String, usize>,
    /// Classes whose name has a plain form: `1` and `1.0` mean the same class, `true` and `True` too.
    by_plain: HashMap<String, usize>,
}

impl LabelMap {
    /// Exactly these names in this order (`data.labels`, or `id2label` of a checkpoint).
    ///
    /// # Errors
    /// When the list is empty or has a name twice.
    pub fn new(names: Vec<String>) -> Result<Self> {
        if names.is_empty() {
            return Err(Error::input("the list of labels is empty; name at least one class"));
        }
        let mut by_name = HashMap::with_capacity(names.len());
        let mut by_plain = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            if by_name.insert(name.clone(), index).is_some() {
                return Err(Error::input(format!("label \"{}\" is in the list of labels twice", shortened(name))));
            }
            if let Some(plain) = plain(name) {
                by_plain.entry(plain).or_insert(index);
            }
        }
        Ok(Self { names, by_name, by_plain })
    }

    /// The classes of training data: the checkpoint's order when its names are the data's, else sorted, numerically if
    /// all are integers. `1` and `1.0` are one class, named `1`; `true` and `True` are one, named `true`.
    ///
    /// # Errors
    /// When all rows have the same label.
    pub fn from_labels(labels: &Labels, checkpoint: Option<&[String]>, file: &Path) -> Result<Self> {
        Self::from_names(&labels.names, checkpoint, file)
    }

    /// The same from the label strings alone.
    ///
    /// # Errors
    /// When there is only one.
    pub fn from_names(names: &[String], checkpoint: Option<&[String]>, file: &Path) -> Result<Self> {
        let distinct: BTreeSet<String> = names.iter().cloned().collect();
        let mut names: Vec<String> = distinct.iter().filter(|n| !is_spelt_plainer(n, &distinct)).cloned().collect();
        if let Some(map) = checkpoint.and_then(|c| Self::new(c.to_vec()).ok())
            && map.is_onto(&names)
        {
            return Ok(map);
        }
        if names.len() < 2 {
            let message = format!(
                "the rows have no label but {}; a model of labels needs at least two classes",
                listed(names.iter().map(String::as_str))
            );
            return Err(Error::in_file(file, message));
        }
        if names.iter().all(|n| as_integer(n).is_some()) {
            names.sort_by_key(|n| as_integer(n));
        }
        Self::new(names)
    }

    /// Class names in the order of the model's outputs.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of classes.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never: a map has at least one class.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The class of that name; if there is none, the class that is the same integer or boolean (`1.0` finds `1`).
    pub fn index(&self, name: &str) -> Option<usize> {
        let by_plain = || self.by_plain.get(&plain(name)?);
        self.by_name.get(name).or_else(by_plain).copied()
    }

    /// The class of that name, or what is wrong with it.
    pub fn class(&self, name: &str) -> Result<u32, String> {
        let index = self.index(name).ok_or_else(|| {
            let names = || self.names.iter().map(String::as_str);
            let meant = did_you_mean(name, names());
            format!(
                "label \"{}\" is not one of {}{meant}; fix the row or set data.labels",
                shortened(name),
                listed(names())
            )
        })?;
        u32::try_from(index).map_err(|_| "there are more than 2^32 classes".into())
    }

    /// The class of every row.
    ///
    /// # Errors
    /// When a row's label is not in the map.
    pub fn targets(&self, labels: &Labels, places: &Places) -> Result<Targets> {
        labels.map(places, |name| self.class(name)).map(Targets::Class)
    }

    /// Whether every name is another class of this map and every class is named.
    fn is_onto(&self, names: &[String]) -> bool {
        let found: BTreeSet<_> = names.iter().filter_map(|n| self.index(n)).collect();
        names.len() == self.len() && found.len() == self.len()
    }
}

/// The number of every row, for regression.
///
/// # Errors
/// When a row's label is not a finite f32.
pub fn value_targets(labels: &Labels, places: &Places) -> Result<Targets> {
    labels.map(places, value).map(Targets::Value)
}

/// The finite number that a label spells, or what is wrong with it.
pub fn value(label: &str) -> Result<f32, String> {
    label.trim().parse::<f32>().ok().filter(|v| v.is_finite()).ok_or_else(|| {
        format!("label \"{}\" is not a finite number, which regression needs; fix the row", shortened(label))
    })
}

/// The labels of some rows as their files write them (or another column's values): each string once, and its number for
/// every row.
#[derive(Default)]
pub struct Labels {
    /// In the order of their first rows.
    pub(super) names: Vec<String>,
    pub(super) codes: Array<u32>,
}

impl Labels {
    /// Each label once, in the order of their first rows.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// What `value` makes of each row's label; it is asked once a label.
    ///
    /// # Errors
    /// Its message for the first row that it refuses.
    pub fn map<T: Copy>(&self, places: &Places, value: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(self.names.len());
        for (code, name) in (0u32..).zip(&self.names) {
            values.push(value(name).map_err(|message| {
                let row = self.codes.iter().position(|&c| c == code).unwrap_or(0);
                places.error(row, message)
            })?);
        }
        Ok(self.codes.iter().map(|&code| values[code as usize]).collect())
    }
}

/// Whether a name such as `1.0` stands beside its plain form `1`.
fn is_spelt_plainer(name: &str, names: &BTreeSet<String>) -> bool {
    plain(name).is_some_and(|plain| plain != name && names.contains(&plain))
}

/// The plain form of an integer (`1.0` is `1`) or a boolean (`True` is `true`), as JSON would write it.
pub(super) fn plain(name: &str) -> Option<String> {
    match as_integer(name) {
        Some(integer) => Some(integer.to_string()),
        None => ["true", "false"].into_iter().find(|b| b.eq_ignore_ascii_case(name)).map(str::to_owned),
    }
}

/// The entry of `renames` for a label: by its name, or by the plain form of that.
pub(super) fn renamed<'r>(renames: &'r BTreeMap<String, String>, label: &str) -> Option<(&'r String, &'r String)> {
    renames.get_key_value(label).or_else(|| renames.get_key_value(&plain(label)?))
}

/// The integer that a name spells, as digits or as a float with nothing but zeros behind the point (`1`, `-2`, `3.0`).
fn as_integer(name: &str) -> Option<i64> {
    let digits = match name.split_once('.') {
        Some((head, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => head,
        Some(_) => return None,
        None => name,
    };
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels of a file whose rows begin on line 2.
    fn rows(labels: &[&str]) -> (Labels, Places) {
        let mut names: Vec<String> = vec![];
        let code = |label: &&str| {
            names.iter().position(|n| n == label).unwrap_or_else(|| {
                names.push((*label).to_owned());
                names.len() - 1
            }) as u32
        };
        let codes = Array::Owned(labels.iter().map(code).collect());
        let mut places = Places::new(&["train.csv".into()]);
        (2..labels.len() as u64 + 2).for_each(|line| places.push(0, line));
        (Labels { names, codes }, places)
    }

    fn map(labels: &[&str], checkpoint: Option<&[&str]>) -> Result<LabelMap> {
        let checkpoint: Option<Vec<String>> = checkpoint.map(|c| c.iter().map(|s| s.to_string()).collect());
        LabelMap::from_labels(&rows(labels).0, checkpoint.as_deref(), Path::new("train.csv"))
    }

    #[test]
    fn order_is_the_checkpoints_when_the_set_matches_else_sorted() {
        assert_eq!(map(&["b", "a", "b"], None).unwrap().names(), ["a", "b"]);
        assert_eq!(map(&["b", "a"], Some(&["b", "a"])).unwrap().names(), ["b", "a"]);
        assert_eq!(map(&["b", "a"], Some(&["LABEL_0", "LABEL_1"])).unwrap().names(), ["a", "b"]);
        // A subset is another set.
        assert_eq!(map(&["b", "a"], Some(&["c", "b", "a"])).unwrap().names(), ["a", "b"]);
        assert_eq!(map(&["0.0", "1.0"], Some(&["1", "0"])).unwrap().names(), ["1", "0"]);
    }

    #[test]
    fn integers_are_sorted_numerically() {
        assert_eq!(map(&["10", "9", "-1"], None).unwrap().names(), ["-1", "9", "10"]);
        assert_eq!(map(&["10.0", "9.0"], None).unwrap().names(), ["9.0", "10.0"]);
        assert_eq!(map(&["10", "9", "x"], None).unwrap().names(), ["10", "9", "x"]);
    }

    #[test]
    fn an_integer_written_as_a_float_is_the_same_class() {
        let labels = map(&["1", "1.0", "0"], None).unwrap();
        assert_eq!(labels.names(), ["0", "1"]);
        assert_eq!((labels.index("1.0"), labels.index("1.00"), labels.index("1.5")), (Some(1), Some(1), None));
        // The exact name wins.
        let labels = LabelMap::new(vec!["1".into(), "1.0".into()]).unwrap();
        assert_eq!((labels.index("1"), labels.index("1.0")), (Some(0), Some(1)));
        assert_eq!(map(&["1.", "2"], None).unwrap().index("1"), None);
        let labels = map(&["True", "False", "true"], None).unwrap();
        assert_eq!(labels.names(), ["False", "true"]);
        assert_eq!((labels.index("True"), labels.index("false"), labels.index("yes")), (Some(1), Some(0), None));
    }

    #[test]
    fn an_unknown_label_is_named_with_its_place_and_the_nearest() {
        let labels = LabelMap::new(vec!["negative".into(), "positive".into()]).unwrap();
        let (bad, places) = rows(&["positive", "positive", "postive", "x"]);
        assert_eq!(
            labels.targets(&bad, &places).unwrap_err().to_string(),
            "train.csv:4: label \"postive\" is not one of [negative, positive] (did you mean \"positive\"?); fix the row or set data.labels"
        );
        let (good, places) = rows(&["positive", "negative", "positive"]);
        assert_eq!(labels.targets(&good, &places).unwrap(), Targets::Class(vec![1, 0, 1]));
    }

    #[test]
    fn lists_that_cannot_be_classes_are_errors() {
        assert!(LabelMap::new(vec![]).is_err());
        assert!(LabelMap::new(vec!["a".into(), "a".into()]).unwrap_err().to_string().contains("twice"));
        assert!(map(&["a", "a"], None).unwrap_err().to_string().contains("at least two classes"));
    }

    #[test]
    fn regression_reads_finite_numbers() {
        let (labels, places) = rows(&["1", "-2.5", " 3e-1 ", "1"]);
        let values = value_targets(&labels, &places).unwrap();
        assert_eq!(values, Targets::Value(vec![1.0, -2.5, 0.3, 1.0]));
        for wrong in ["", "x", "nan", "inf", "1e99", "1,5"] {
            let (labels, places) = rows(&["1", wrong]);
            let message = value_targets(&labels, &places).unwrap_err().to_string();
            assert!(message.starts_with("train.csv:3: ") && message.contains("finite number"), "{message}");
        }
    }
}
