//! What the first rows of a file say of it: how it is written, which columns are text and label, and for which task.

mod column;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

pub use self::column::Seen;
use self::table::Table;
pub use self::table::Written;
use super::config::{Column, Format, TaskKind};
use super::settings::Columns;
use super::{listed, shortened};

/// How many lines are looked at.
pub const LINES: usize = 2000;

/// What is known before looking.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// `None`: by the label.
    pub task: Option<TaskKind>,
    /// Whether there is a second text.
    pub pair: bool,
    /// Empty: to be guessed.
    pub text: Vec<Column>,
    pub text_pair: Option<Column>,
    pub label: Option<Column>,
}

/// The values of a config for a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Guess {
    pub written: Written,
    pub header: bool,
    pub task: TaskKind,
    pub text: Columns,
    pub text_pair: Option<Column>,
    pub label: Column,
    /// Every column.
    pub columns: Vec<Seen>,
    /// Rows looked at.
    pub rows: usize,
    /// Rows among the first with another number of fields: how many, and the line of the first.
    pub ragged: Option<(usize, u64)>,
    pub length: Length,
}

/// How long rows are, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// 99 of 100 rows have at most so many characters.
    pub chars: usize,
    /// About so many tokens, special tokens included.
    pub tokens: usize,
    /// The next of 64, 128, 256 and 512.
    pub max_length: usize,
}

impl Guess {
    /// What a column holds.
    pub fn seen(&self, column: &Column) -> Option<&Seen> {
        self.columns.iter().find(|seen| seen.column == *column)
    }

    /// The columns that the config leaves out.
    pub fn left_out(&self) -> impl Iterator<Item = &Seen> {
        self.columns.iter().filter(|seen| {
            let column = &seen.column;
            *column != self.label && Some(column) != self.text_pair.as_ref() && !self.text.iter().any(|t| t == column)
        })
    }
}

/// Looks at the first lines of a file. `by_extension`: its format as [`crate::data::reader::format_by_extension`] tells
/// it; `whole`: `text` is all of it.
///
/// # Errors
/// What cannot be told, with the columns and the flags that tell it.
pub fn guess(text: &str, whole: bool, by_extension: Option<Option<Format>>, known: &Known) -> Result<Guess, String> {
    let Table { written, names, mut rows, ragged } = Table::new(text, whole, by_extension)?;
    let has_header = names.is_none() && is_header(&rows);
    let names = match names {
        Some(names) => names.into_iter().map(Column::Name).collect(),
        None if has_header => rows.remove(0).into_iter().flatten().map(Column::Name).collect(),
        None => (0..rows.first().map_or(0, Vec::len)).map(Column::Index).collect::<Vec<_>>(),
    };
    if rows.is_empty() {
        return Err("the file has no rows of data".into());
    }
    let columns = names.into_iter().enumerate();
    let columns: Vec<Seen> = columns.map(|(i, name)| Seen::new(name, rows.iter().map(|r| r[i].as_deref()))).collect();
    let choice = Choice { columns: &columns, known, whole };
    let label = choice.label()?;
    let (texts, second) = choice.texts(label)?;
    let task = known.task.unwrap_or(match columns[label].measures() && columns[label].fractional {
        true => TaskKind::Regression,
        false => TaskKind::Classification,
    });
    choice.check_label(label, task)?;
    let column = |i: usize| columns[i].column.clone();
    let (all, pair) = (texts.iter().chain(&second).copied().collect::<Vec<_>>(), second.is_some());
    Ok(Guess {
        written,
        // Objects and patterns have names without one.
        header: has_header || matches!(columns[label].column, Column::Name(_)),
        task,
        text: Columns::new(texts.iter().map(|&i| column(i)).collect()).ok_or("there is no text")?,
        text_pair: second.map(column),
        label: column(label),
        rows: rows.len(),
        ragged,
        length: length(&rows, &all, pair),
        columns,
    })
}

/// Whether the first row names the columns: short, distinct words that the rows below do not repeat, and either known
/// names, or unlike what stands below.
fn is_header(rows: &[Vec<Option<String>>]) -> bool {
    let Some((first, rest)) = rows.split_first() else { return false };
    let cells: Vec<&str> = first.iter().map(|c| c.as_deref().unwrap_or("").trim()).collect();
    let name = |c: &str| c.chars().count() <= 40 && c.split_whitespace().count() <= 4 && c.parse::<f64>().is_err();
    let distinct = cells.iter().collect::<HashSet<_>>().len() == cells.len();
    if !distinct || cells.iter().any(|c| !name(c)) || cells.iter().all(|c| c.is_empty()) {
        return false;
    }
    let below = |i: usize| rest.iter().filter_map(move |row| row[i].as_deref());
    if (0..cells.len()).any(|i| !cells[i].is_empty() && below(i).any(|v| v.trim() == cells[i])) {
        return false;
    }
    let seen: Vec<Seen> =
        cells.iter().enumerate().map(|(i, c)| Seen::new(Column::Name((*c).into()), below(i).map(Some))).collect();
    let known = |s: &Seen| s.label_name().is_some() || s.text_name().is_some();
    let pair = seen.iter().enumerate().any(|(i, a)| seen[i + 1..].iter().any(|b| a.pairs_with(b)));
    let unlike = |(s, c): (&Seen, &&str)| s.numeric || s.chars > 3.0 * c.chars().count() as f64;
    pair || seen.iter().any(known) || seen.iter().zip(&cells).any(unlike)
}

/// Chooses among columns.
struct Choice<'a> {
    columns: &'a [Seen],
    known: &'a Known,
    whole: bool,
}

impl Choice<'_> {
    /// The place of a column that a flag names.
    fn find(&self, flag: &str, wanted: &Column) -> Result<usize, String> {
        let by_name = self.columns.iter().position(|s| s.column == *wanted);
        let by_index = match wanted {
            Column::Index(i) if *i < self.columns.len() => Some(*i),
            _ => None,
        };
        by_name.or(by_index).ok_or_else(|| format!("{flag} is {wanted}, but the columns are {}", self.names()))
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|s| s.column.to_string()).collect();
        listed(names.iter().map(String::as_str))
    }

    /// The columns with what they hold, for messages.
    fn all(&self) -> String {
        let lines = self
            .columns
            .iter()
            .take(20)
            .map(|s| format!("\n  column {}: {}", shortened(&s.column.to_string()), s.describe()));
        lines.collect()
    }

    fn taken(&self) -> Result<Vec<usize>, String> {
        let text = self.known.text.iter().map(|c| self.find("--text", c));
        text.chain(self.known.text_pair.iter().map(|c| self.find("--text-pair", c))).collect()
    }

    fn label(&self) -> Result<usize, String> {
        if let Some(wanted) = &self.known.label {
            return self.find("--label", wanted);
        }
        let taken = self.taken()?;
        let fits = |s: &Seen| match self.known.task {
            Some(TaskKind::Regression) => s.numeric && s.missing == 0,
            // Its values are as many as there are combinations, so that only the name tells.
            Some(TaskKind::Multilabel) => s.label_name().is_some(),
            _ => s.labels(self.whole),
        };
        let free = |i: &usize| !taken.contains(i) && !self.columns[*i].identifies() && fits(&self.columns[*i]);
        let found: Vec<usize> = (0..self.columns.len()).filter(free).collect();
        let best = found.iter().filter_map(|&i| self.columns[i].label_name()).min();
        match found
            .iter()
            .copied()
            .filter(|&i| best.is_none() || self.columns[i].label_name() == best)
            .collect::<Vec<_>>()[..]
        {
            [one] => Ok(one),
            [] => Err(format!("no column looks like the label; name it with --label:{}", self.all())),
            _ => Err(format!("several columns may be the label; name it with --label:{}", self.all())),
        }
    }

    /// The columns of the text, and that of the second.
    fn texts(&self, label: usize) -> Result<(Vec<usize>, Option<usize>), String> {
        let given: Vec<usize> = self.known.text.iter().map(|c| self.find("--text", c)).collect::<Result<_, _>>()?;
        let second = self.known.text_pair.as_ref().map(|c| self.find("--text-pair", c)).transpose()?;
        let mut all: Vec<usize> = given.iter().copied().chain(second).chain([label]).collect();
        all.sort_unstable();
        if let Some(twice) = all.windows(2).find(|w| w[0] == w[1]) {
            let column = &self.columns[twice[0]].column;
            return Err(format!(
                "column {column} would be text and label, or text twice; set --text, --text-pair and --label to \
                 different columns of {}",
                self.names()
            ));
        }
        let want_pair = self.known.pair && second.is_none();
        if !given.is_empty() && !want_pair {
            return Ok((given, second));
        }
        let free = |i: &usize| !all.contains(i) && self.columns[*i].reads() && !self.columns[*i].labels(self.whole);
        let found: Vec<usize> = (0..self.columns.len()).filter(free).collect();
        self.choose(&given, second, &found, want_pair, label)
    }

    /// Chooses the texts that are not given among the columns that are `found` to be texts.
    fn choose(
        &self,
        given: &[usize],
        second: Option<usize>,
        found: &[usize],
        want_pair: bool,
        label: usize,
    ) -> Result<(Vec<usize>, Option<usize>), String> {
        let wrong = |what: &str, flags: &str| Err(format!("{what}; name it with {flags}:{}", self.all()));
        if !given.is_empty() {
            return match found {
                [one] => Ok((given.to_vec(), Some(*one))),
                _ => wrong("the second text is not clear", "--text-pair"),
            };
        }
        let (columns, named) = (self.columns, |i: &usize| self.columns[*i].text_name());
        if second.is_none() {
            // Names count for more than lengths.
            let texts = (0..columns.len()).filter(|i| *i != label && !columns[*i].numeric).collect::<Vec<_>>();
            let pairs = texts.iter().flat_map(|&a| texts.iter().map(move |&b| (a, b)));
            let pairs: Vec<_> = pairs.filter(|&(a, b)| columns[a].pairs_with(&columns[b])).collect();
            if let [(a, b)] = pairs[..] {
                return Ok((vec![a], Some(b)));
            }
        }
        match found {
            [] => wrong("no column looks like text", "--text"),
            [one] if !want_pair => Ok((vec![*one], second)),
            [a, b] if second.is_none() && (want_pair || found.iter().filter_map(named).count() != 1) => {
                Ok((vec![*a], Some(*b)))
            }
            _ if want_pair => wrong("the two texts are not clear", "--text and --text-pair"),
            _ => match found.iter().filter(|i| named(i).is_some()).collect::<Vec<_>>()[..] {
                [one] => Ok((vec![*one], second)),
                _ => wrong("several columns may be the text", "--text (repeated, to join several) and --text-pair"),
            },
        }
    }

    fn check_label(&self, label: usize, task: TaskKind) -> Result<(), String> {
        let seen = &self.columns[label];
        let wrong = match task {
            TaskKind::Regression if !seen.numeric => "regression needs numbers",
            TaskKind::Classification if seen.counts.len() < 2 && self.whole => {
                "classification needs two labels or more"
            }
            TaskKind::Multilabel => return Ok(()),
            _ if seen.missing > 0 => "every row needs a label",
            _ => return Ok(()),
        };
        Err(format!(
            "the label, column {}, has {}, but {wrong}; name it with --label:{}",
            seen.column,
            seen.describe(),
            self.all()
        ))
    }
}

/// The length that 99 of 100 rows do not exceed. WordPiece makes about one token of four characters of an alphabet, and
/// one of each Chinese, Japanese or Korean character.
fn length(rows: &[Vec<Option<String>>], texts: &[usize], pair: bool) -> Length {
    let of_row = |row: &Vec<Option<String>>| {
        let (mut wide, mut chars) = (0, 0);
        for c in texts.iter().filter_map(|&i| row[i].as_deref()).flat_map(str::chars) {
            chars += 1;
            wide += usize::from(c >= '\u{2e80}');
        }
        (wide + (chars - wide).div_ceil(4) + if pair { 3 } else { 2 }, chars)
    };
    let mut lengths: Vec<(usize, usize)> = rows.iter().map(of_row).collect();
    lengths.sort_unstable();
    let (tokens, chars) = lengths.get((lengths.len() * 99).div_ceil(100).max(1) - 1).copied().unwrap_or((3, 0));
    let max_length = [64, 128, 256].into_iter().find(|&n| tokens <= n).unwrap_or(512);
    Length { chars, tokens, max_length }
}
