//! Parquet files (cargo feature `parquet`): columns by name or position, row numbers in the place of lines.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use super::{Fault, Fields, ReadOptions};
use crate::data::config::Column;
use crate::data::example::Example;
use crate::data::label_sets::{LabelForm, of_list};
use crate::data::labels::plain;
use crate::data::settings::Columns;
use crate::data::{did_you_mean, listed};
use crate::error::{Error, Result};

/// Reads rows, a row group's pages at a time.
pub(super) struct ParquetRows {
    rows: RowIter<'static>,
    file: Arc<Path>,
    number: u64,
    options: ReadOptions,
    text: Vec<usize>,
    text_pair: Option<usize>,
    label: Option<Vec<usize>>,
    slice: Option<usize>,
    id: Option<usize>,
}

impl ParquetRows {
    /// # Errors
    /// When the file is not Parquet, or lacks a column.
    pub(super) fn new(input: File, file: Arc<Path>, options: &ReadOptions) -> Result<Self> {
        let reader = guarded(|| SerializedFileReader::new(input)).map_err(|e| damaged(&file, &e))?;
        let schema = reader.metadata().file_metadata().schema().clone();
        let names: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).collect();
        // Only these columns are decoded; they keep the order of the file.
        let mut wanted = vec![];
        let mut find = |column: &Column, key: &str| {
            let place = column_index(column, key, &names, options).map_err(|message| Error::in_file(&file, message))?;
            wanted.push(place);
            Ok(place)
        };
        let text = options.text.iter().map(|c| find(c, "text")).collect::<Result<Vec<_>>>()?;
        let text_pair = options.text_pair.as_ref().map(|c| find(c, "text_pair")).transpose()?;
        let mut labels = |columns: &Columns| columns.iter().map(|c| find(c, "label")).collect::<Result<Vec<_>>>();
        let label = options.label.as_ref().map(&mut labels).transpose()?;
        let slice = options.slice.as_ref().map(|c| find(c, "slice_by")).transpose()?;
        let id = names.iter().position(|name| *name == "id");
        wanted.extend(id);
        wanted.sort_unstable();
        wanted.dedup();
        let fields = wanted.iter().map(|&i| schema.get_fields()[i].clone()).collect();
        let projected = Type::group_type_builder(schema.name()).with_fields(fields).build();
        let rows = guarded(|| RowIter::from_file_into(Box::new(reader)).project(Some(projected?)));
        let rows = rows.map_err(|e| damaged(&file, &e))?;
        let place = |i: usize| wanted.iter().position(|&w| w == i).unwrap_or(0);
        Ok(Self {
            rows,
            file,
            number: 0,
            options: options.clone(),
            text: text.into_iter().map(place).collect(),
            text_pair: text_pair.map(place),
            label: label.map(|places| places.into_iter().map(place).collect()),
            slice: slice.map(place),
            id: id.map(place),
        })
    }

    pub(super) fn read(&mut self, row: u64) -> Result<Option<Example>, Fault> {
        let next = guarded(|| self.rows.next().transpose()).map_err(|e| damaged(&self.file, &e))?;
        let Some(found) = next else { return Ok(None) };
        self.number += 1;
        let fields = self.fields(found).map_err(|m| Fault::Row(Error::at_line(&self.file, self.number, m)))?;
        Ok(Some(fields.at(row, self.number, &self.file)))
    }

    fn fields(&self, row: Row) -> Result<Fields, String> {
        let columns = row.into_columns();
        let texts = self.text.iter().map(|&i| text(&columns[i])).collect::<Result<Vec<_>, _>>()?;
        Ok(Fields {
            text: self.options.joined(texts.into_iter()),
            text_pair: self.text_pair.map(|i| text(&columns[i]).map(str::to_owned)).transpose()?,
            label: self.label.as_ref().map(|places| self.label(&columns, places)).transpose()?,
            slice: self.slice.map(|i| group(&columns[i])).transpose()?,
            id: self.id.map(|i| scalar(&columns[i]).unwrap_or_default().into()),
        })
    }

    /// The label, or what stands for several.
    fn label(&self, columns: &[(String, Field)], places: &[usize]) -> Result<String, String> {
        if let (LabelForm::Several { .. }, [place]) = (&self.options.label_form, places)
            && let (name, Field::ListInternal(list)) = &columns[*place]
        {
            let values: Vec<_> = list.elements().iter().map(Field::to_json_value).collect();
            return of_list(&values).map_err(|message| format!("\"{name}\": {message}"));
        }
        let values = places.iter().map(|&i| scalar(&columns[i])).collect::<Result<Vec<_>, _>>()?;
        let names = places.iter().map(|&i| columns[i].0.as_str());
        self.options.label_of(names.zip(values.iter().map(String::as_str)))
    }
}

/// Runs a call of the parquet crate, which can panic on a damaged file.
fn guarded<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("it cannot be decoded".into()),
    }
}

fn damaged(file: &Path, reason: &str) -> Error {
    Error::in_file(file, format!("the Parquet data is damaged, or of a kind that is not read: {reason}"))
}

fn column_index(column: &Column, key: &str, names: &[&str], options: &ReadOptions) -> Result<usize, String> {
    let key = options.naming.key(key);
    let found = match column {
        Column::Index(index) => Some(*index).filter(|i| *i < names.len()),
        Column::Name(name) => names.iter().position(|n| n == name),
    };
    found.ok_or_else(|| {
        let meant = match column {
            Column::Name(name) => did_you_mean(name, names.iter().copied()),
            Column::Index(_) => String::new(),
        };
        format!("there is no column {column} among {}{meant}; set {key}", listed(names.iter().copied()))
    })
}

fn text((name, field): &(String, Field)) -> Result<&str, String> {
    match field {
        Field::Str(text) => Ok(text),
        Field::Null => Err(format!("\"{name}\" is null, expected a string; fix the row")),
        other => Err(format!("\"{name}\" is {other}, expected a string; fix the file")),
    }
}

/// What rows are grouped by; what is not there is a group too.
fn group(column: &(String, Field)) -> Result<String, String> {
    if column.1 == Field::Null { Ok("null".into()) } else { scalar(column) }
}

fn scalar((name, field): &(String, Field)) -> Result<String, String> {
    Ok(match field {
        Field::Str(text) => text.clone(),
        Field::Bool(b) => b.to_string(),
        Field::Byte(n) => n.to_string(),
        Field::Short(n) => n.to_string(),
        Field::Int(n) => n.to_string(),
        Field::Long(n) => n.to_string(),
        Field::UByte(n) => n.to_string(),
        Field::UShort(n) => n.to_string(),
        Field::UInt(n) => n.to_string(),
        Field::ULong(n) => n.to_string(),
        // As in JSON, 1.0 is 1.
        Field::Float(f) => plain(&format!("{f:?}")).unwrap_or_else(|| f.to_string()),
        Field::Double(f) => plain(&format!("{f:?}")).unwrap_or_else(|| f.to_string()),
        Field::Null => {
            return Err(format!("label \"{name}\" is null, expected a string, number or boolean; fix the row"));
        }
        other => {
            return Err(format!("label \"{name}\" is {other}, expected a string, number or boolean; fix the file"));
        }
    })
}

#[cfg(test)]
mod tests {
    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::reader::tests::read_examples;

    fn file(dir: &tempfile::TempDir) -> std::path::PathBuf {
        let path = dir.path().join("t.parquet");
        let schema = parse_message_type(
            "message m { optional double label; optional int32 other; optional binary text (UTF8); }",
        );
        let writer =
            SerializedFileWriter::new(File::create(&path).unwrap(), Arc::new(schema.unwrap()), Default::default());
        let mut writer = writer.unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[1.0, 0.5, 2.0], Some(&[1, 1, 1]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<parquet::data_type::Int32Type>().write_batch(&[], Some(&[0, 0, 0]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("caf\u{e9}"), ByteArray::from("")];
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 1, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        path
    }

    #[test]
    fn columns_are_read_and_nulls_are_bad_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir);
        let labelled = ReadOptions { label: Some(Column::Name("label".into()).into()), ..ReadOptions::default() };
        let found = read_examples(&path, &labelled).unwrap_err().to_string();
        assert!(found.ends_with("t.parquet:3: \"text\" is null, expected a string; fix the row"), "{found}");
        let skip = ReadOptions { on_bad_row: crate::data::settings::OnBadRow::Skip, ..labelled.clone() };
        let rows = read_examples(&path, &skip).unwrap();
        let rows: Vec<_> = rows.iter().map(|e| (e.text.as_str(), e.label.as_deref().unwrap(), e.line)).collect();
        assert_eq!(rows, [("caf\u{e9}", "1", 1), ("", "0.5", 2)]);
        let grouped = ReadOptions { slice: Some(Column::Name("other".into())), ..skip };
        let groups = read_examples(&path, &grouped).unwrap().into_iter().map(|e| e.slice.unwrap());
        assert_eq!(groups.collect::<Vec<_>>(), ["null", "null"]);
        let wrong = ReadOptions { label: Some(Column::Name("lable".into()).into()), ..labelled };
        let found = read_examples(&path, &wrong).unwrap_err().to_string();
        assert!(found.contains("there is no column \"lable\" among [label, other, text] (did you mean"), "{found}");
    }

    #[test]
    fn damaged_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x15;
            std::fs::write(&path, &bytes).unwrap();
            // Some bytes are text, and change a row only.
            if let Err(e) = read_examples(&path, &ReadOptions::default()) {
                assert!(e.to_string().contains("t.parquet"), "{e}");
            }
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let found = read_examples(&path, &ReadOptions::default()).unwrap_err().to_string();
        assert!(found.contains("the Parquet data is damaged"), "{found}");
    }
}
