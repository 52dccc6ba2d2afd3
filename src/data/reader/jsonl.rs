//! JSON lines: one object a line; columns are keys.

use serde_json::{Map, Number, Value};

use super::lines::Lines;
use super::{Fault, Fields, ReadOptions};
use crate::data::config::Column;
use crate::data::example::Example;
use crate::data::label_sets::{LabelForm, of_list};
use crate::data::settings::Columns;
use crate::data::{did_you_mean, listed};
use crate::error::{Error, Result};

/// Reads objects and takes the columns' keys out of them.
pub(super) struct JsonLines {
    lines: Lines,
    options: ReadOptions,
    text: Vec<String>,
    text_pair: Option<String>,
    label: Option<Vec<String>>,
    slice: Option<String>,
}

impl JsonLines {
    /// # Errors
    /// When a column is an index: objects have keys only.
    pub(super) fn new(lines: Lines, options: &ReadOptions) -> Result<Self> {
        let key = |column: &Column, key: &str| match column {
            Column::Name(name) => Ok(name.clone()),
            Column::Index(index) => {
                let key = options.naming.key(key);
                let message = format!("jsonl has keys, not columns by index; set {key} to a key instead of {index}");
                Err(Error::in_file(lines.file(), message))
            }
        };
        let text = options.text.iter().map(|c| key(c, "text")).collect::<Result<_>>()?;
        let text_pair = options.text_pair.as_ref().map(|c| key(c, "text_pair")).transpose()?;
        let keys = |columns: &Columns| columns.iter().map(|c| key(c, "label")).collect::<Result<_>>();
        let label = options.label.as_ref().map(keys).transpose()?;
        let slice = options.slice.as_ref().map(|c| key(c, "slice_by")).transpose()?;
        Ok(Self { lines, options: options.clone(), text, text_pair, label, slice })
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
        self.lines.check()?;
        let fields = self.fields().map_err(Fault::Row)?;
        Ok(Some(fields.at(row, self.lines.number(), self.lines.file())))
    }

    fn fields(&self) -> Result<Fields> {
        let mut object = self.object()?;
        let text_pair = self.text_pair.as_ref().map(|k| self.string(&object, k, "text_pair")).transpose()?;
        let label = self.label.as_ref().map(|keys| self.label(&object, keys)).transpose()?;
        let slice = self.slice.as_ref().map(|k| self.group(&object, k)).transpose()?;
        let texts = self.text.iter().map(|k| self.string(&object, k, "text")).collect::<Result<Vec<_>>>()?;
        let text = self.options.joined(texts.iter().map(|t| &**t));
        let text_pair = text_pair.map(str::to_owned);
        Ok(Fields { text, text_pair, label, slice, id: object.shift_remove("id") })
    }

    fn object(&self) -> Result<Map<String, Value>> {
        let text = self.lines.bytes().trim_ascii();
        serde_json::from_slice(text).map_err(|e| {
            let hint = match (e.classify(), text.first()) {
                (_, Some(b'[')) => "; jsonl holds one object a line, not an array",
                (serde_json::error::Category::Eof, _) => "; jsonl holds a whole object on each line",
                _ => "",
            };
            // serde_json's place is relative to this one line.
            let full = e.to_string();
            let reason = full.split(" at line ").next().unwrap_or(&full);
            self.lines.error(format!("this is not a JSON object: {reason} (column {}){hint}", e.column()))
        })
    }

    fn value<'o>(&self, object: &'o Map<String, Value>, key: &str, name: &str) -> Result<&'o Value> {
        object.get(key).ok_or_else(|| {
            let keys = listed(object.keys().map(String::as_str).collect::<Vec<_>>().into_iter());
            let meant = did_you_mean(key, object.keys().map(String::as_str));
            let setting = self.options.naming.key(name);
            self.lines.error(format!("there is no key \"{key}\" among {keys}{meant}; fix the row or set {setting}"))
        })
    }

    fn string<'o>(&self, object: &'o Map<String, Value>, key: &str, name: &str) -> Result<&'o str> {
        match self.value(object, key, name)? {
            Value::String(s) => Ok(s),
            other => Err(self.lines.error(format!("\"{key}\" is {}, expected a string; fix the row", kind_of(other)))),
        }
    }

    /// What rows are grouped by may be anything; what is not there is a group too.
    fn group(&self, object: &Map<String, Value>, key: &str) -> Result<String> {
        match self.value(object, key, "slice_by")? {
            Value::String(s) => Ok(s.clone()),
            Value::Number(n) => Ok(canonical(n)),
            other => Ok(other.to_string()),
        }
    }

    /// The label, or what stands for several.
    fn label(&self, object: &Map<String, Value>, keys: &[String]) -> Result<String> {
        if let (LabelForm::Several { .. }, [key]) = (&self.options.label_form, keys)
            && let Value::Array(list) = self.value(object, key, "label")?
        {
            return of_list(list).map_err(|message| self.lines.error(format!("\"{key}\": {message}")));
        }
        let values = keys.iter().map(|key| self.scalar(object, key)).collect::<Result<Vec<_>>>()?;
        let columns = keys.iter().map(String::as_str).zip(values.iter().map(String::as_str));
        self.options.label_of(columns).map_err(|message| self.lines.error(message))
    }

    fn scalar(&self, object: &Map<String, Value>, key: &str) -> Result<String> {
        match self.value(object, key, "label")? {
            Value::String(s) => Ok(s.clone()),
            Value::Bool(b) => Ok(b.to_string()),
            Value::Number(n) => Ok(canonical(n)),
            other => Err(self.lines.error(format!(
                "label \"{key}\" is {}, expected a string, number or boolean; fix the row",
                kind_of(other)
            ))),
        }
    }
}

/// Integers, also when written `1.0` or `1e0`, become plain digits; other numbers their shortest form.
pub(in crate::data) fn canonical(number: &Number) -> String {
    match number.as_f64() {
        // Below 2^53 every integer is exact, so the cast loses nothing.
        Some(f) if !number.is_i64() && !number.is_u64() && f.fract() == 0.0 && f.abs() < 9e15 => (f as i64).to_string(),
        _ => number.to_string(),
    }
}

pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
