use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::data::config::Column;
use crate::data::settings::Columns;

mod inputs;
mod layouts;

fn named(text: &str, text_pair: Option<&str>, label: Option<&str>) -> ReadOptions {
    let column = |name: &str| Column::Name(name.to_owned());
    ReadOptions {
        text: column(text).into(),
        text_pair: text_pair.map(column),
        label: label.map(|l| column(l).into()),
        ..ReadOptions::default()
    }
}

fn labelled() -> ReadOptions {
    named("text", None, Some("label"))
}

fn indexed(text: usize, label: Option<usize>) -> ReadOptions {
    let text = Column::Index(text).into();
    ReadOptions { text, label: label.map(|i| Column::Index(i).into()), header: false, ..ReadOptions::default() }
}

/// All rows of a file.
pub(super) fn read_examples(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Vec<Example>> {
    let mut reader = Reader::open(path, options)?;
    let examples = reader.by_ref().collect::<Result<Vec<_>>>()?;
    reader.check_not_empty(examples.len())?;
    Ok(examples)
}

/// Reads bytes as a file of that name.
fn read(name: &str, bytes: impl AsRef<[u8]>, options: &ReadOptions) -> Result<Vec<Example>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read_examples(&path, options).map_err(|e| match e {
        // Only the name, so that messages can be compared whole.
        Error::Input { message, line, .. } => Error::Input { message, line, file: Some(name.into()) },
        other => other,
    })
}

fn message(name: &str, bytes: impl AsRef<[u8]>, options: &ReadOptions) -> String {
    read(name, bytes, options).unwrap_err().to_string()
}

/// (text, label, row, line) of each example.
fn summary(examples: &[Example]) -> Vec<(&str, &str, u64, u64)> {
    examples.iter().map(|e| (e.text.as_str(), e.label.as_deref().unwrap_or("-"), e.row, e.line)).collect()
}

#[test]
fn csv_with_mark_crlf_blank_lines_and_newlines_in_quotes_counts_lines_right() {
    let bytes = b"\xef\xbb\xbftext,label\r\n\r\n\"a \"\"b\"\"\r\n\r\nc\",x\r\n\r\n\r\n\"d,\ne\",y\r\nf,z";
    let examples = read("t.csv", bytes, &labelled()).unwrap();
    assert_eq!(summary(&examples), [("a \"b\"\r\n\r\nc", "x", 1, 3), ("d,\ne", "y", 2, 8), ("f", "z", 3, 10)]);
}

#[test]
fn lines_are_counted_the_same_whatever_ends_the_file() {
    for end in ["", "\n", "\r\n", "\n\n\r\n"] {
        let examples = read("t.csv", format!("text,label\na,x\nb,y{end}"), &labelled()).unwrap();
        assert_eq!(summary(&examples), [("a", "x", 1, 2), ("b", "y", 2, 3)], "{end:?}");
        let examples = read("t.tsv", format!("text\tlabel\na\tx\nb\ty{end}"), &labelled()).unwrap();
        assert_eq!(summary(&examples), [("a", "x", 1, 2), ("b", "y", 2, 3)], "{end:?}");
    }
}

#[test]
fn rows_of_many_lines_keep_their_numbers_over_buffer_ends() {
    let long = "x".repeat(70_000);
    let examples = read("t.csv", format!("text,label\n\"{long}\n{long}\",a\nb,c\n"), &labelled()).unwrap();
    assert_eq!((examples[0].line, examples[0].text.len()), (2, 140_001));
    assert_eq!(summary(&examples[1..]), [("b", "c", 2, 4)]);
}

#[test]
fn quotes_in_tsv_are_text() {
    let bytes = "\u{feff}Quality\t#1 String\t#2 String\r\n1\t\"open\tsaid \"no\r\n0\tb\"\t\"c\"\r\n";
    let options = named("#1 String", Some("#2 String"), Some("Quality"));
    let examples = read("t.tsv", bytes, &options).unwrap();
    assert_eq!(summary(&examples), [("\"open", "1", 1, 2), ("b\"", "0", 2, 3)]);
    assert_eq!(examples[0].text_pair.as_deref(), Some("said \"no"));
    // The same bytes under another name, the format set.
    let options = ReadOptions { format: Some(Format::Tsv), ..options };
    assert_eq!(summary(&read("t.txt", bytes, &options).unwrap()), summary(&examples));
}

#[test]
fn ragged_rows_name_their_first_line_and_the_counts() {
    assert_eq!(
        message("t.csv", "text,label\n\"a\nb\",x\nc,d,y\n", &labelled()),
        "t.csv:4: the row has 3 fields, but the header has 2; quote a field that contains a comma, or fix the row"
    );
    assert_eq!(
        message("t.csv", "text,label\n\"a,x\nb,y\nc\",z,1\nd,w\n", &labelled()),
        "t.csv:2: the row has 3 fields, but the header has 2; it spans lines 2 to 4: close its quotes, or double a \
         quote inside a quoted field"
    );
    assert_eq!(
        message("t.tsv", "a\tx\nb\n", &indexed(0, Some(1))),
        "t.tsv:2: the row has 1 field, but the first row has 2; fix its tabs"
    );
}

#[test]
fn a_quote_that_is_never_closed_is_an_error_even_when_the_fields_fit() {
    let found = message("t.csv", "text,label\na,x\nb,\"y\nc,z\n", &labelled());
    assert!(found.starts_with("t.csv:3: a quote in this row is never closed"), "{found}");
    // A lone quote in the middle of a field is text, as the csv crate reads it.
    assert_eq!(read("t.csv", "text,label\n5\" disk,x", &labelled()).unwrap()[0].text, "5\" disk");
}

#[test]
fn columns_by_name_and_by_index() {
    let bytes = "id,text,label\n7,a,x\n";
    let examples = read("t.csv", bytes, &labelled()).unwrap();
    assert_eq!(summary(&examples), [("a", "x", 1, 2)]);
    assert_eq!(examples[0].id, Some("7".into()));
    let by_index = ReadOptions { header: true, ..indexed(1, Some(2)) };
    assert_eq!(summary(&read("t.csv", bytes, &by_index).unwrap()), summary(&examples));
    let headless = read("t.csv", bytes, &indexed(1, Some(2))).unwrap();
    assert_eq!(summary(&headless), [("text", "label", 1, 1), ("a", "x", 2, 2)]);
    assert_eq!(headless[0].id, None);
    // A column may be used twice.
    assert_eq!(summary(&read("t.csv", bytes, &indexed(1, Some(1))).unwrap())[1], ("a", "a", 2, 2));
}

#[test]
fn missing_columns_are_named_with_those_that_exist() {
    let bytes = "sentence,Label,Label\na,x,y\n";
    assert_eq!(
        message("t.csv", bytes, &named("sentense", None, None)),
        "t.csv:1: there is no column \"sentense\" among [sentence, Label, Label] (did you mean \"sentence\"?); set \
         data.text, or data.header = false if this row is data"
    );
    let found = message("t.csv", bytes, &named("sentence", None, Some("Label")));
    assert!(found.starts_with("t.csv:1: columns 1 and 2 are both named \"Label\"; set data.label to"), "{found}");
    let found = message("t.csv", bytes, &indexed(3, None));
    assert!(found.starts_with("t.csv:1: column index 3 is out of range: the columns are 0 to 2"), "{found}");
    let found = message("t.csv", bytes, &ReadOptions { header: false, ..labelled() });
    assert!(found.contains("no header to find column \"text\" in; set data.text to a 0-based index"), "{found}");
}

#[test]
fn jsonl_labels_become_canonical_strings() {
    let bytes = concat!(
        "{\"text\":\"a\",\"label\":1,\"id\":{\"n\":[1]}}\r\n\n",
        "{\"label\":1.0,\"text\":\"\\u00e9\\n\"}\n",
        "{\"text\":\"\",\"label\":true}\n",
        "{\"text\":\"c\",\"label\":0.5}\n",
        "  {\"text\":\"d\",\"label\":\"1.0\",\"id\":3}\n",
        "{\"text\":\"e\",\"label\":-2e1}"
    );
    let examples = read("t.jsonl", bytes, &labelled()).unwrap();
    assert_eq!(
        summary(&examples),
        [
            ("a", "1", 1, 1),
            ("é\n", "1", 2, 3),
            ("", "true", 3, 4),
            ("c", "0.5", 4, 5),
            ("d", "1.0", 5, 6),
            ("e", "-20", 6, 7)
        ]
    );
    assert_eq!(examples[0].id, Some(serde_json::json!({"n": [1]})));
    assert_eq!((examples[1].id.clone(), examples[4].id.clone()), (None, Some(3.into())));
}

#[test]
fn wrong_jsonl_is_reported_at_its_line() {
    let first = "{\"text\":\"a\",\"label\":1}\n";
    let cases = [
        (
            "{\"text\":\"b\",\"label\":null}",
            "label \"label\" is null, expected a string, number or boolean; fix the row",
        ),
        ("{\"text\":\"b\",\"label\":[1]}", "label \"label\" is an array, expected"),
        ("{\"text\":\"b\",\"label\":{}}", "label \"label\" is an object, expected"),
        ("{\"text\":7,\"label\":1}", "\"text\" is a number, expected a string"),
        ("{\"text\":\"b\",\"lable\":1}", "there is no key \"label\" among [text, lable] (did you mean \"lable\"?)"),
        ("{\"text\":\"b\"", "this is not a JSON object: EOF while parsing an object (column 11); jsonl holds a whole"),
        ("[{\"text\":\"b\"}]", "this is not a JSON object: "),
        ("{\"text\":\"b\"} x", "this is not a JSON object: trailing characters (column 14)"),
    ];
    for (line, expected) in cases {
        let found = message("t.jsonl", format!("{first}\n{line}\n{first}"), &labelled());
        let expected = format!("t.jsonl:3: {expected}");
        assert!(found.starts_with(&expected), "{found}");
    }
    let found = message("t.json", "[\n{\"text\":\"a\"}\n]", &labelled());
    assert!(found.ends_with("; jsonl holds one object a line, not an array"), "{found}");
    let found = message("t.jsonl", first, &indexed(0, None));
    assert!(found.contains("set data.text to a key instead of 0"), "{found}");
}

#[test]
fn text_lines_are_kept_even_when_empty() {
    let examples = read("t.txt", "\u{feff}a\r\n\n \"b\",c\n", &ReadOptions::default()).unwrap();
    assert_eq!(summary(&examples), [("a", "-", 1, 1), ("", "-", 2, 2), (" \"b\",c", "-", 3, 3)]);
    assert!(message("t.txt", "a\n", &labelled()).contains("so it has no labels; give csv, tsv or jsonl"));
    let pair = named("text", Some("text_pair"), None);
    assert!(message("t.txt", "a\n", &pair).contains("so it has no text pairs"));
}

#[test]
fn rows_before_a_broken_one_are_still_given() {
    let options = ReadOptions { format: Some(Format::Csv), ..ReadOptions::default() };
    let rows: Vec<_> = Reader::from_stream(Cursor::new(b"text\na\nb\n\xff\nc\n"), "in", &options).unwrap().collect();
    assert_eq!(rows.iter().filter(|r| r.is_ok()).count(), 2);
    assert_eq!(rows.len(), 3);
    assert!(rows[2].as_ref().unwrap_err().to_string().starts_with("in:4: byte 0xff"));
}

#[test]
fn files_that_cannot_be_read_are_clear_errors() {
    let options = labelled();
    for name in ["t.csv", "t.tsv", "t.jsonl"] {
        assert_eq!(message(name, "", &options), format!("{name}: the file has no rows of data"));
    }
    assert_eq!(message("t.csv", "text,label\n", &options), "t.csv: the file has no rows of data");
    assert_eq!(message("t.jsonl", "\n\n", &options), "t.jsonl: the file has no rows of data");
    assert!(message("t", "", &options).contains("the name has no extension to tell the format by; set data.format"));
    assert!(message("t.xlsx", "", &options).contains("\".xlsx\" is not one of [.csv,"));
    assert!(read("T.CSV", "text,label\na,b\n", &options).is_ok());
    let dir = tempfile::tempdir().unwrap();
    let found = read_examples(dir.path(), &options).unwrap_err().to_string();
    assert!(found.ends_with(": this is a directory; give a file"), "{found}");
    let found = read_examples(dir.path().join("no.csv"), &options).unwrap_err().to_string();
    assert!(found.ends_with("no.csv: there is no such file"), "{found}");
}

#[test]
fn a_stream_is_jsonl_by_its_first_byte_else_texts() {
    let stream = |bytes: &'static [u8]| {
        Reader::from_stream(Cursor::new(bytes), "<stdin>", &ReadOptions::default())?.collect::<Result<Vec<_>>>()
    };
    assert_eq!(
        summary(&stream(b"\xef\xbb\xbf{\"text\":\"a\"}\n{\"text\":\"b\"}").unwrap()),
        [("a", "-", 1, 1), ("b", "-", 2, 2)]
    );
    assert_eq!(summary(&stream(b" {\"text\":\"a\"}\n").unwrap()), [(" {\"text\":\"a\"}", "-", 1, 1)]);
    assert_eq!(summary(&stream(b"a\n{b").unwrap()), [("a", "-", 1, 1), ("{b", "-", 2, 2)]);
    assert_eq!(stream(b"").unwrap(), []);
    assert!(stream(b"{\"a\":1}").unwrap_err().to_string().starts_with("<stdin>:1: there is no key \"text\" among [a]"));
}

/// Gives its bytes and then fails: a reader that wants more than a line before it yields one fails the test.
struct OneLine(&'static [u8]);

impl Read for OneLine {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() { Err(std::io::Error::other("asked for more")) } else { self.0.read(out) }
    }
}

#[test]
fn a_row_is_given_as_soon_as_its_line_is_there() {
    let csv = ReadOptions { format: Some(Format::Csv), ..ReadOptions::default() };
    for (bytes, options) in
        [(&b"a\n"[..], ReadOptions::default()), (b"{\"text\":\"a\"}\n", ReadOptions::default()), (b"text\na\n", csv)]
    {
        let mut reader = Reader::from_stream(OneLine(bytes), "in", &options).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().text, "a");
        assert!(reader.next().unwrap().unwrap_err().to_string().contains("asked for more"));
        assert!(reader.next().is_none());
    }
}

/// Bytes rich in what the formats give a meaning to.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let special = prop::sample::select(b"\"\",,\t\t\n\n\r\\{}[]:1a\x01\xef\xbb\xbf\xff\xc3\xa9".to_vec());
    prop::collection::vec(prop_oneof![4 => special, 1 => any::<u8>()], 0..200)
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in bytes(), header: bool, prefix in prop::sample::select(vec!["", "text,label\n", "{\"text\":\""])) {
        let bytes = [prefix.as_bytes(), &bytes].concat();
        let lines = bytes.iter().filter(|b| **b == b'\n').count() as u64 + 1;
        for format in [None, Some(Format::Csv), Some(Format::Tsv), Some(Format::Jsonl)] {
            for column in [Column::Index(0), Column::Name("text".into())] {
                let options = ReadOptions { format, text: column.into(), header, ..ReadOptions::default() };
                let Ok(reader) = Reader::from_stream(Cursor::new(bytes.clone()), "in", &options) else { continue };
                let mut last = 0;
                for example in reader.map_while(Result::ok) {
                    prop_assert!(example.line >= last && example.line <= lines);
                    last = example.line;
                }
            }
        }
    }

    #[test]
    fn csv_reads_back_what_was_written(rows in prop::collection::vec(("\\PC*|[\",\r\n a]*", "[a-z\",]+"), 1..8), crlf: bool) {
        let terminator = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
        let mut writer = csv::WriterBuilder::new().terminator(terminator).from_writer(Vec::new());
        writer.write_record(["text", "label"]).unwrap();
        let mut lines = vec![];
        for (text, label) in &rows {
            writer.flush().unwrap();
            lines.push(writer.get_ref().iter().filter(|b| **b == b'\n').count() as u64 + 1);
            writer.write_record([text, label]).unwrap();
        }
        let examples = read("t.csv", writer.into_inner().unwrap(), &labelled()).unwrap();
        let read: Vec<_> = examples.into_iter().map(|e| (e.text, e.label.unwrap(), e.line)).collect();
        let written: Vec<_> = rows.into_iter().zip(lines).map(|((t, l), line)| (t, l, line)).collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn tsv_and_jsonl_read_back_what_was_written(rows in prop::collection::vec(("\\PC*", "[a-z\"]+"), 1..8)) {
        let mut tsv = "text\tlabel\n".to_owned();
        let mut jsonl = String::new();
        for (text, label) in &rows {
            tsv += &format!("{text}\t{label}\n");
            jsonl += &format!("{}\n", serde_json::json!({"text": text, "label": label}));
        }
        for (name, content) in [("t.tsv", tsv), ("t.jsonl", jsonl)] {
            let examples = read(name, content, &labelled()).unwrap();
            let read: Vec<_> = examples.into_iter().map(|e| (e.text, e.label.unwrap())).collect();
            prop_assert_eq!(&read, &rows);
        }
    }
}

#[test]
fn a_column_to_group_by_is_read_as_text() {
    let options = ReadOptions { slice: Some(Column::Name("source".into())), ..labelled() };
    let read = |name: &str, text: &str| -> Result<Vec<Option<String>>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let rows = read_examples(&path, &options).map_err(|e| e.to_string())?;
        Ok(rows.into_iter().map(|e| e.slice).collect())
    };
    let some = |values: &[&str]| Ok(values.iter().map(|v| Some(v.to_string())).collect::<Vec<_>>());
    assert_eq!(read("a.csv", "source,text,label\n3,a,b\n,a,b\n"), some(&["3", ""]));
    let lines = "{\"text\": \"a\", \"label\": 1, \"source\": 3.0}\n{\"text\": \"a\", \"label\": 1, \"source\": null}\n";
    assert_eq!(read("a.jsonl", lines), some(&["3", "null"]));
    let missing = read("a.csv", "sources,text,label\nx,a,b\n").unwrap_err();
    assert!(missing.contains("\"source\"") && missing.contains("set eval.slice_by"), "{missing}");
}
