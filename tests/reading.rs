//! Properties of the readers: what was written is read, at the right lines; whatever else is in a file, nothing panics,
//! and errors name the file and a line that it has.

use bertft::data::config::{Column, Format};
use bertft::data::settings::OnBadRow;
use bertft::data::{ReadOptions, Reader};
use bertft::error::Error;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::{Cursor, Write};
use std::path::Path;

fn options(format: Format) -> ReadOptions {
    ReadOptions { format: Some(format), label: Some(Column::Name("label".into()).into()), ..ReadOptions::default() }
}

fn open(bytes: Vec<u8>, options: &ReadOptions) -> Result<Reader, Error> {
    Reader::from_stream(Cursor::new(bytes), "the file", options)
}

/// (text, label, line)
type Row = (String, String, u64);

fn read(bytes: Vec<u8>, options: &ReadOptions) -> Result<Vec<Row>, Error> {
    let row = |e: bertft::data::Example| (e.text, e.label.unwrap_or_default(), e.line);
    open(bytes, options)?.map(|e| e.map(row)).collect()
}

/// Text rich in what csv gives a meaning to.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[\"',;|\t\r\n a\u{e9}\u{4e2d}\u{1f600}]{0,12}", "\\PC{0,12}"]
}

/// A label that is not blank.
fn label() -> impl Strategy<Value = String> {
    "[a-z\",;|\t\r\n\u{e9}]{0,4}[a-z]"
}

/// How a table was written.
#[derive(Debug, Clone)]
struct Dialect {
    delimiter: u8,
    crlf: bool,
    mark: bool,
    always: bool,
    tsv: bool,
}

fn dialect() -> impl Strategy<Value = Dialect> {
    (prop::sample::select(b",;|\t:^".to_vec()), any::<[bool; 4]>())
        .prop_map(|(delimiter, [crlf, mark, always, tsv])| Dialect { delimiter, crlf, mark, always, tsv })
}

/// Writes rows and says on which line each begins.
fn write_table(rows: &[(String, String)], dialect: &Dialect) -> (Vec<u8>, Vec<Row>) {
    let mut bytes = if dialect.mark { b"\xef\xbb\xbf".to_vec() } else { vec![] };
    let mut expected = vec![];
    let terminator = if dialect.crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
    let style = if dialect.always { csv::QuoteStyle::Always } else { csv::QuoteStyle::Necessary };
    let mut builder = csv::WriterBuilder::new();
    builder.delimiter(dialect.delimiter).terminator(terminator).quote_style(style);
    let header = ("text".to_owned(), "label".to_owned());
    for (i, (text, label)) in std::iter::once(&header).chain(rows).enumerate() {
        let line = bytes.iter().filter(|b| **b == b'\n').count() as u64 + 1;
        let mut writer = builder.from_writer(vec![]);
        writer.write_record([text, label]).unwrap();
        bytes.extend(writer.into_inner().unwrap());
        if i > 0 {
            expected.push((text.clone(), label.clone(), line));
        }
    }
    (bytes, expected)
}

fn table_options(dialect: &Dialect) -> ReadOptions {
    let format = if dialect.tsv { Format::Tsv } else { Format::Csv };
    let delimiter = (dialect.delimiter as char).to_string().parse().ok();
    ReadOptions { delimiter, quoting: Some(true), ..options(format) }
}

fn utf16(bytes: &[u8], little: bool) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap().trim_start_matches('\u{feff}');
    let unit = |u: u16| if little { u.to_le_bytes() } else { u.to_be_bytes() };
    let mark = std::iter::once(0xfeff_u16);
    mark.chain(text.encode_utf16()).flat_map(unit).collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// The bytes as they are, in other encodings, and compressed.
fn disguises(bytes: &[u8]) -> [Vec<u8>; 5] {
    [bytes.to_vec(), gz(bytes), zst(bytes), utf16(bytes, true), gz(&utf16(bytes, false))]
}

fn rows() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((text(), label()), 1..8)
}

/// Flips, cuts, doubles or inserts bytes at places given as shares of the length.
#[derive(Debug, Clone)]
enum Damage {
    Set(f64, u8),
    Cut(f64),
    Remove(f64, usize),
    Insert(f64, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let byte = prop_oneof![prop::sample::select(b"\"\n\r,\t\\{}\0\xff\xc3".to_vec()), any::<u8>()];
    prop_oneof![
        4 => (0.0..1.0f64, byte.clone()).prop_map(|(at, b)| Damage::Set(at, b)),
        1 => (0.0..1.0f64).prop_map(Damage::Cut),
        1 => (0.0..1.0f64, 1usize..9).prop_map(|(at, n)| Damage::Remove(at, n)),
        1 => (0.0..1.0f64, prop::collection::vec(byte, 1..9)).prop_map(|(at, b)| Damage::Insert(at, b)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let place = |at: f64| (at * bytes.len() as f64) as usize;
        match damage {
            Damage::Set(at, b) => {
                let at = place(*at);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte = *b);
            }
            Damage::Cut(at) => bytes.truncate(place(*at)),
            Damage::Remove(at, n) => {
                let at = place(*at);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Damage::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
    bytes
}

/// Reads to the end: rows and skipped rows are in the order of lines that the plain text has, and so is the error.
fn check_places(bytes: Vec<u8>, options: &ReadOptions, lines: Option<u64>) -> Result<(), TestCaseError> {
    let within = |line: u64| line >= 1 && lines.is_none_or(|lines| line <= lines);
    let check = |error: &Error| match error {
        Error::Input { file, line, .. } => file.as_deref() == Some(Path::new("the file")) && line.is_none_or(within),
        Error::Io { path, .. } => path == Path::new("the file"),
        _ => false,
    };
    let mut reader = match open(bytes, options) {
        Ok(reader) => reader,
        Err(e) => {
            prop_assert!(check(&e), "{e}");
            return Ok(());
        }
    };
    let mut last = 0;
    for row in reader.by_ref() {
        match row {
            Ok(example) => {
                prop_assert!(example.line >= last.max(1) && within(example.line), "{example:?}");
                last = example.line;
            }
            Err(e) => prop_assert!(check(&e), "{e}"),
        }
    }
    prop_assert!(reader.next().is_none());
    for row in &reader.skipped().first {
        prop_assert!(row.line.is_none_or(within), "{row:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn tables_read_back_as_written_whatever_the_dialect_and_disguise(rows in rows(), dialect in dialect()) {
        let (bytes, expected) = write_table(&rows, &dialect);
        for disguise in disguises(&bytes) {
            prop_assert_eq!(&read(disguise, &table_options(&dialect)).unwrap(), &expected);
        }
    }

    #[test]
    fn lines_without_quoting_read_back_as_written(
        rows in prop::collection::vec(("[^\t\r\n]{0,12}", "[^\0\u{feff}\t\r\n\\s][^\0\t\r\n]{0,3}"), 1..8),
        crlf: bool,
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let mut tsv = format!("text\tlabel{end}");
        let mut jsonl = String::new();
        let mut pattern = String::new();
        for (text, label) in &rows {
            tsv += &format!("{text}\t{label}{end}");
            jsonl += &format!("{}{end}", serde_json::json!({"text": text, "label": label}));
            pattern += &format!("{label}\t{text}{end}");
        }
        let with_pattern = "^(?P<label>[^\t]+)\t(?P<text>.*)$".parse().ok();
        for (content, options, first) in [
            (tsv, options(Format::Tsv), 2),
            (jsonl, options(Format::Jsonl), 1),
            (pattern, ReadOptions { pattern: with_pattern, ..options(Format::Pattern) }, 1),
        ] {
            let expected: Vec<Row> = rows.iter().zip(first..).map(|((t, l), n)| (t.clone(), l.clone(), n)).collect();
            for disguise in disguises(content.as_bytes()) {
                prop_assert_eq!(&read(disguise, &options).unwrap(), &expected);
            }
        }
    }

    #[test]
    fn one_bad_row_is_named_at_its_line_and_skipped_alone(rows in rows(), dialect in dialect(), at in 0.0..1.0f64) {
        let (_, expected) = write_table(&rows, &dialect);
        let at = (at * rows.len() as f64) as usize;
        let (before, _) = write_table(&rows[..at], &dialect);
        let end = if dialect.crlf { "\r\n" } else { "\n" };
        let (after, _) = write_table(&rows[at..], &dialect);
        let (header, _) = write_table(&[], &dialect);
        let bad = format!("alone{end}");
        let bytes = [&before, bad.as_bytes(), &after[header.len()..]].concat();
        let line = expected[at].2;
        let error = read(bytes.clone(), &table_options(&dialect)).unwrap_err();
        prop_assert!(matches!(&error, Error::Input { line: Some(found), .. } if *found == line), "{error}");
        let skip = ReadOptions { on_bad_row: OnBadRow::Skip, ..table_options(&dialect) };
        let mut reader = open(bytes, &skip).unwrap();
        let kept: Vec<_> = reader.by_ref().map(|e| e.unwrap()).map(|e| (e.text, e.label.unwrap())).collect();
        prop_assert_eq!(kept, rows);
        prop_assert_eq!(reader.skipped().rows, 1);
        prop_assert_eq!(reader.skipped().first[0].line, Some(line));
    }

    #[test]
    fn damaged_files_give_errors_with_places(
        rows in rows(),
        dialect in dialect(),
        damages in prop::collection::vec(damage(), 1..5),
        skip: bool,
    ) {
        let (table, _) = write_table(&rows, &dialect);
        let mut jsonl = String::new();
        for (text, label) in &rows {
            jsonl += &format!("{}\n", serde_json::json!({"text": text, "label": label}));
        }
        let on_bad_row = if skip { OnBadRow::Skip } else { OnBadRow::Error };
        let with_pattern = "^(?P<label>[^\t]+)\t(?P<text>.*)$".parse().ok();
        let all = [
            (table.clone(), table_options(&dialect)),
            (table.clone(), ReadOptions { quoting: Some(false), ..table_options(&dialect) }),
            (table.clone(), ReadOptions { pattern: with_pattern, ..options(Format::Pattern) }),
            (table.clone(), ReadOptions { encoding: "gb18030".parse().ok(), ..table_options(&dialect) }),
            (table, ReadOptions { encoding: "iso-2022-jp".parse().ok(), ..table_options(&dialect) }),
            (jsonl.into_bytes(), options(Format::Jsonl)),
        ];
        for (bytes, options) in all {
            let options = ReadOptions { on_bad_row, ..options };
            // Damaged text, plain and compressed: lines can be counted.
            let plain = damaged(bytes.clone(), &damages);
            let lines = plain.iter().filter(|b| **b == b'\n').count() as u64 + 1;
            let utf8 = !plain.starts_with(b"\xff\xfe") && !plain.starts_with(b"\xfe\xff");
            for bytes in [gz(&plain), zst(&plain), plain] {
                check_places(bytes, &options, utf8.then_some(lines))?;
            }
            // Damage below compression and encoding.
            for bytes in disguises(&bytes) {
                check_places(damaged(bytes, &damages), &options, None)?;
            }
        }
    }
}
