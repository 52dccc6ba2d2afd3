//! How a file is written: its format, delimiter and quotes, told by which of them makes rows of one width.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::data::config::Format;
use crate::data::settings::{Delimiter, Pattern};

/// The keys of `[data]` that say how a file is written; `None` where the extension says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub format: Option<Format>,
    pub delimiter: Option<Delimiter>,
    pub quoting: Option<bool>,
    pub pattern: Option<Pattern>,
}

/// What the beginning of a file holds.
pub(super) struct Table {
    pub written: Written,
    /// Keys of objects or groups of the pattern; `None` where the first row may be a header.
    pub names: Option<Vec<String>>,
    /// Rows of one width. `None`: the row lacks the key, or its value is no string, number or boolean.
    pub rows: Vec<Vec<Option<String>>>,
    /// Rows of another width than the first: how many, and the line of the first.
    pub ragged: Option<(usize, u64)>,
}

/// Rows of another width that are taken for slips, as a share of all.
const SLIPS: f64 = 0.02;
/// Lines that end or begin with a label, where nothing separates fields everywhere.
const PATTERNS: [&str; 2] = [r"^(?P<text>.*)@(?P<label>\w+)$", r"^(?P<label>\S+) (?P<text>.*)$"];
/// A row that a quote stretches over more lines is none.
const LINES: u64 = 200;

impl Table {
    /// `by_extension`: as [`crate::data::reader::format_by_extension`] tells it. `whole`: `text` is the whole file.
    pub fn new(text: &str, whole: bool, by_extension: Option<Option<Format>>) -> Result<Self, String> {
        let said = by_extension.flatten();
        if said == Some(Format::Parquet) {
            return Err(
                "Parquet is not looked into; write a config with `bertft config init --task` and fill it in".into()
            );
        }
        let first = text.trim_start().chars().next();
        match (said, first) {
            (_, None) => Err("the file has no rows of data".into()),
            (Some(Format::Jsonl), Some('[')) => {
                Err("this is one JSON array; bertft reads one object a line (jq -c '.[]' makes that)".into())
            }
            (Some(Format::Jsonl), _) | (None, Some('{')) => objects(text, said.is_none()),
            _ => delimited(text, whole, said),
        }
    }
}

fn objects(text: &str, set_format: bool) -> Result<Table, String> {
    let mut names: Vec<String> = vec![];
    let mut objects: Vec<Map<String, Value>> = vec![];
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| format!("line {} is not a JSON object: {e}", i + 1))?;
        names.extend(object.keys().filter(|k| !names.contains(k)).cloned().collect::<Vec<_>>());
        objects.push(object);
    }
    let scalar = |value: Option<&Value>| match value {
        Some(Value::String(s)) => Some(s.clone()),
        Some(other @ (Value::Number(_) | Value::Bool(_))) => Some(other.to_string()),
        _ => None,
    };
    let rows = objects.iter().map(|o| names.iter().map(|n| scalar(o.get(n))).collect()).collect();
    let format = set_format.then_some(Format::Jsonl);
    let written = Written { format, delimiter: None, quoting: None, pattern: None };
    Ok(Table { written, names: Some(names), rows, ragged: None })
}

fn delimited(text: &str, whole: bool, said: Option<Format>) -> Result<Table, String> {
    let (own, quotes) = if said == Some(Format::Csv) { (',', true) } else { ('\t', false) };
    let mut tries = vec![(own, quotes), (own, !quotes)];
    tries
        .extend([',', '\t', ';', '|'].into_iter().filter(|d| *d != own).flat_map(|d| [(d, d != '\t'), (d, d == '\t')]));
    tries.push(('@', false));
    let parsed = tries.into_iter().map(|(d, q)| (parse(text, whole, d, q), d, q));
    let (best, delimiter, quoting) =
        parsed.reduce(|a, b| if b.0.score() > a.0.score() { b } else { a }).unwrap_or_default();
    if best.score() < 1.0 - SLIPS {
        return (said.is_none().then(|| by_pattern(text)).flatten()).ok_or_else(|| {
            "no comma, tab, semicolon, \"|\" or \"@\" parts all rows into the same number of fields; fix the rows, or set \
             data.format, data.delimiter or data.pattern in a config of `bertft config init --task`"
                .into()
        });
    }
    let format = match said {
        Some(format) => format,
        None if delimiter == '\t' => Format::Tsv,
        None => Format::Csv,
    };
    let (usual, usual_quoting) = if format == Format::Csv { (',', true) } else { ('\t', false) };
    let written = Written {
        format: said.is_none().then_some(format),
        delimiter: (delimiter != usual).then_some(Delimiter(delimiter as u8)),
        quoting: (quoting != usual_quoting).then_some(quoting),
        pattern: None,
    };
    let width = best.width();
    let mut others = best.rows.iter().filter(|(_, row)| row.len() != width);
    let ragged = others.next().map(|(line, _)| (1 + others.count(), *line));
    let rows = best.rows.into_iter().filter(|(_, row)| row.len() == width);
    Ok(Table { written, names: None, rows: rows.map(|(_, row)| row.into_iter().map(Some).collect()).collect(), ragged })
}

/// Takes lines apart by the first pattern that fits all of them and makes few labels.
fn by_pattern(text: &str) -> Option<Table> {
    PATTERNS.iter().find_map(|pattern| {
        let pattern: Pattern = pattern.parse().ok()?;
        let names: Vec<String> = pattern.0.capture_names().flatten().map(String::from).collect();
        let mut rows = vec![];
        let mut labels = HashSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let found = pattern.0.captures(line)?;
            labels.insert(found["label"].to_owned());
            rows.push(names.iter().map(|n| Some(found[n.as_str()].to_owned())).collect());
        }
        let few = labels.len() >= 2 && labels.len() * 5 <= rows.len();
        let written = Written { format: None, delimiter: None, quoting: None, pattern: Some(pattern) };
        few.then_some(Table { written, names: Some(names), rows, ragged: None })
    })
}

#[derive(Default)]
struct Parsed {
    /// With the line on which each begins.
    rows: Vec<(u64, Vec<String>)>,
    /// Fields in quotes, those among them that need their quotes, and those with text after the closing quote.
    quoted: usize,
    needed: usize,
    malformed: usize,
    quoting: bool,
}

impl Parsed {
    fn width(&self) -> usize {
        self.rows.first().map_or(0, |(_, row)| row.len())
    }

    /// The share of rows as wide as the first, less what speaks against the quotes.
    fn score(&self) -> f64 {
        let (width, rows) = (self.width(), self.rows.len() as f64);
        if width < 2 {
            return 0.0;
        }
        let agree = self.rows.iter().filter(|(_, row)| row.len() == width).count() as f64;
        // Quotes that enclose fields do so throughout: most rows have some, or they hold what would part the field.
        let enclose = self.malformed == 0 && (self.needed > 0 || self.quoted as f64 >= rows / 2.0);
        let quotes = match self.quoting && self.quoted > 0 {
            true if enclose => 1e-6,
            true => -1e-6 - self.malformed as f64 / rows,
            false => 0.0,
        };
        // As a comma in a sentence, a space follows it; only among equals that speaks against it.
        let spaced = self.rows.iter().filter(|(_, row)| row[1..].iter().any(|f| f.starts_with(' '))).count();
        let prose = if spaced as f64 > rows / 2.0 { 1e-3 } else { 0.0 };
        agree / rows + quotes - prose
    }
}

/// Rows of fields, as the reader of csv and tsv makes them.
fn parse(text: &str, whole: bool, delimiter: char, quoting: bool) -> Parsed {
    #[derive(PartialEq)]
    enum At {
        Start,
        Plain,
        Quoted,
        Closed,
    }
    let mut parsed = Parsed { quoting, ..Parsed::default() };
    let (mut row, mut field, mut line, mut first, mut at) = (vec![], String::new(), 1, 1, At::Start);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if at == At::Quoted && chars.peek() == Some(&'"') => {
                chars.next();
                parsed.needed += 1;
                field.push(c);
            }
            '"' if at == At::Quoted => at = At::Closed,
            '"' if at == At::Start && quoting => {
                parsed.quoted += 1;
                at = At::Quoted;
            }
            _ if at == At::Quoted => {
                parsed.needed += usize::from(c == delimiter || c == '\n');
                line += u64::from(c == '\n');
                field.push(c);
            }
            '\n' => {
                line += 1;
                row.push(std::mem::take(&mut field));
                let row = std::mem::take(&mut row);
                if row.len() > 1 || at == At::Closed || !row[0].is_empty() {
                    parsed.rows.push((first, row));
                }
                (first, at) = (line, At::Start);
            }
            _ if c == delimiter => {
                row.push(std::mem::take(&mut field));
                at = At::Start;
            }
            '\r' if chars.peek() == Some(&'\n') => {}
            _ => {
                parsed.malformed += usize::from(at == At::Closed);
                field.push(c);
                at = At::Plain;
            }
        }
    }
    if at == At::Quoted {
        // The row goes on after what was looked at, or its quote is never closed.
        parsed.malformed += if whole || line - first > LINES { parsed.rows.len().max(1) } else { 0 };
    } else if !row.is_empty() || !field.is_empty() {
        row.push(field);
        parsed.rows.push((first, row));
    }
    parsed
}
