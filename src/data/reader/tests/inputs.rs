//! Compression, encodings, several files, and rows that are skipped.

use std::io::Write;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn encoding(name: &str) -> ReadOptions {
    ReadOptions { encoding: Some(name.parse().unwrap()), ..labelled() }
}

#[test]
fn compressed_files_are_read_by_their_inner_extension() {
    let text = b"text,label\na,x\n\"b\nc\",y\n";
    let expected = [("a", "x", 1, 2), ("b\nc", "y", 2, 3)];
    let halves = [gz(&text[..15]), gz(&text[15..])].concat();
    let frames = [zst(&text[..15]), b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zst(&text[15..])].concat();
    for (name, bytes) in [
        ("t.csv.gz", gz(text)),
        ("t.csv.gz", halves),
        ("t.CSV.ZST", zst(text)),
        ("t.csv.zst", frames),
        // The bytes tell, where the name does not.
        ("t.csv", gz(text)),
    ] {
        assert_eq!(summary(&read(name, bytes, &labelled()).unwrap()), expected, "{name}");
    }
    let stream = Reader::from_stream(Cursor::new(gz(b"{\"text\":\"a\"}")), "in", &ReadOptions::default()).unwrap();
    assert_eq!(summary(&stream.collect::<Result<Vec<_>>>().unwrap()), [("a", "-", 1, 1)]);
    assert!(message("t.gz", gz(text), &labelled()).starts_with("t.gz: the name has no extension"));
}

#[test]
fn damaged_archives_stop_with_the_file_even_when_rows_may_be_skipped() {
    let text: String = (0..3000).map(|i| format!("row {} of many,x\n", i * 7919 % 3001)).collect();
    let text = format!("text,label\n{text}");
    for (name, whole) in [("t.csv.gz", gz(text.as_bytes())), ("t.csv.zst", zst(text.as_bytes()))] {
        for options in [labelled(), ReadOptions { on_bad_row: OnBadRow::Skip, ..labelled() }] {
            let cut = error_with_path(name, &whole[..whole.len() / 2], &options);
            assert!(cut.contains(name) && cut.contains("damaged or cut short"), "{cut}");
            let mut flipped = whole.clone();
            let last = flipped.len() - if name.ends_with("gz") { 6 } else { 2 };
            flipped[last] ^= 1;
            let flipped = error_with_path(name, &flipped, &options);
            assert!(flipped.contains(name) && flipped.contains("damaged"), "{flipped}");
        }
        let other = error_with_path(name, text.as_bytes(), &labelled());
        assert!(other.contains("which its extension promises"), "{other}");
    }
}

fn error_with_path(name: &str, bytes: &[u8], options: &ReadOptions) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let error = read_examples(&path, options).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn encodings_are_decoded_and_a_byte_order_mark_wins() {
    let latin = b"text,label\ncaf\xe9 \x80,x\n";
    assert_eq!(summary(&read("t.csv", latin, &encoding("latin-1")).unwrap()), [("café €", "x", 1, 2)]);
    let chinese = b"text\tlabel\n\xd6\xd0\xce\xc4\t\xba\xc3\n";
    assert_eq!(summary(&read("t.tsv", chinese, &encoding("gb18030")).unwrap()), [("中文", "好", 1, 2)]);
    let text = "text,label\n\"é\n😀\",x\nb,y\n";
    let expected = [("é\n😀", "x", 1, 2), ("b", "y", 2, 4)];
    let le: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let be: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert_eq!(summary(&read("t.csv", &le, &encoding("utf-16")).unwrap()), expected);
    assert_eq!(summary(&read("t.csv", &be, &encoding("utf-16-be")).unwrap()), expected);
    for (mark, bytes) in [(&b"\xff\xfe"[..], le.as_slice()), (b"\xfe\xff", &be), (b"\xef\xbb\xbf", text.as_bytes())] {
        let marked = [mark, bytes].concat();
        for options in [labelled(), encoding("latin-1"), encoding("utf-16")] {
            assert_eq!(summary(&read("t.csv", &marked, &options).unwrap()), expected);
        }
        assert_eq!(summary(&read("t.csv.gz", gz(&marked), &labelled()).unwrap()), expected);
    }
}

#[test]
fn bytes_that_are_not_text_are_named_with_line_column_and_a_guess() {
    let line = "text\nab\nLe caf\u{e9} \u{e9}tait tr\u{e8}s bon, m\u{ea}me l\u{2019}\u{e9}t\u{e9}\n";
    let bytes = encoding_rs::WINDOWS_1252.encode(line).0.into_owned();
    for name in ["t.csv", "t.tsv", "t.txt"] {
        assert_eq!(
            message(name, &bytes, &ReadOptions::default()),
            format!(
                "{name}:3: byte 0xe9 at column 7 is not UTF-8; the file looks like windows-1252: set data.encoding = \
                 \"windows-1252\""
            )
        );
    }
    let flags = ReadOptions { naming: Naming::Flags, ..ReadOptions::default() };
    assert!(message("t.tsv", &bytes, &flags).ends_with("looks like windows-1252: give --encoding 'windows-1252'"));
    // Where other lines are UTF-8, the encoding is not what is wrong.
    let found = message("t.txt", b"\xc3\xa9\nb\xc3\xa9\xff\n", &ReadOptions::default());
    assert_eq!(
        found,
        "t.txt:2: byte 0xff at column 3 is not UTF-8, in which the rest of the file seems to be; fix the row"
    );
    let found = message("t.csv", b"text,label\na,x\n\xd6\xff\xd0,y\n", &encoding("gb18030"));
    assert!(found.starts_with("t.csv:3: byte 0xd6 at column 1 is not gb18030; fix the row"), "{found}");
    let mut half: Vec<u8> = "text\na\nb".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let found = message("t.txt", &half, &ReadOptions::default());
    assert!(
        found.starts_with("t.txt:1: the line has zero bytes; the file looks like utf-16le: set data.enc"),
        "{found}"
    );
    // Half of a character at the end.
    half.push(b'c');
    let found = message("t.csv", &half, &ReadOptions { label: None, ..encoding("utf-16") });
    assert!(found.starts_with("t.csv:3: byte 0x63 at column 2 is not utf-16le"), "{found}");
}

#[test]
fn several_files_are_one_after_the_other_with_headers_and_places_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    let files = [
        write("1.csv", b"text,label\na,x\n"),
        write("2.tsv", b"label\ttext\ny\tb\n"),
        write("3.csv", b"text,label\n"),
        write("4.jsonl.gz", &gz(b"{\"text\":\"c\",\"label\":1.0}\n")),
    ];
    let read_all = |files: &[PathBuf]| Reader::open_all(files, &labelled())?.collect::<Result<Vec<_>>>();
    let examples = read_all(&files).unwrap();
    assert_eq!(summary(&examples), [("a", "x", 1, 2), ("b", "y", 2, 2), ("c", "1", 3, 1)]);
    assert_eq!(&*examples[1].file, files[1]);
    let broken = write("5.csv", b"text,label\nd\n");
    let found = read_all(&[files[0].clone(), broken.clone()]).unwrap_err().to_string();
    assert!(found.starts_with(&format!("{}:2: ", broken.display())), "{found}");
}

#[test]
fn bad_rows_are_skipped_counted_and_listed_when_asked() {
    let skip = |options: ReadOptions| ReadOptions { on_bad_row: OnBadRow::Skip, ..options };
    let open = |name: &str, bytes: &[u8], options: ReadOptions| {
        let options = ReadOptions { format: Some(name.parse().unwrap()), ..skip(options) };
        let mut reader = Reader::from_stream(Cursor::new(bytes.to_vec()), "in", &options).unwrap();
        let rows = reader.by_ref().collect::<Result<Vec<_>>>();
        (rows, reader.skipped().clone())
    };
    let csv = b"text,label\na,x\nragged\n\"b\nc\xe9\",y\nd,\n\"e\nf\",z\n";
    let (rows, skipped) = open("csv", csv, labelled());
    assert_eq!(summary(&rows.unwrap()), [("a", "x", 1, 2), ("e\nf", "z", 5, 7)]);
    assert_eq!(skipped.rows, 3);
    let lines: Vec<_> = skipped.first.iter().map(|s| s.line.unwrap()).collect();
    // The byte's own line, which is not the row's first.
    assert_eq!(lines, [3, 5, 6]);
    assert_eq!(skipped.first[2].message, "the label is empty; fix the row or drop it");
    let described = skipped.describe().unwrap();
    assert!(described.starts_with("3 rows were skipped:\n  in:3: the row has 1 field, "), "{described}");

    let jsonl = b"{\"text\":\"a\",\"label\":1}\n{\n{\"text\":null,\"label\":1}\n{\"text\":\"b\"}\n";
    let (rows, skipped) = open("jsonl", jsonl, labelled());
    assert_eq!((summary(&rows.unwrap()), skipped.rows), (vec![("a", "1", 1, 1)], 3));
    let (rows, skipped) = open("tsv", b"text\tlabel\n", labelled());
    assert_eq!((rows.unwrap().len(), skipped), (0, Skipped::default()));
    // More than are listed.
    let many = format!("text\tlabel\n{}a\tb\n", "x\n".repeat(25));
    let (rows, skipped) = open("tsv", many.as_bytes(), labelled());
    assert_eq!((rows.unwrap().len(), skipped.rows, skipped.first.len()), (1, 25, 10));
    // The encoding is guessed once: it takes time.
    let latin = ReadOptions { label: None, ..labelled() };
    let messages = open("csv", b"text\ncaf\xe9\nth\xe9\na\n", latin).1.first;
    let guesses: Vec<_> = messages.iter().map(|m| m.message.contains("looks like")).collect();
    assert_eq!(guesses, [true, false]);
    // What spoils more than a row stops all the same.
    for (bytes, expected) in [
        (&b"txt,label\na,x\n"[..], "in:1: there is no column \"text\""),
        (b"text,label\na,x\n\"b,y\nc,z\n", "in:3: a quote in this row is never closed"),
        (b"text,\xfflabel\na,x\n", "in:1: byte 0xff"),
    ] {
        let found = open("csv", bytes, labelled()).0.unwrap_err().to_string();
        assert!(found.starts_with(expected), "{found}");
    }
    let found = message("t.tsv", "text\tlabel\na\nb\n", &skip(labelled()));
    assert!(found.starts_with("t.tsv: no row can be read; 2 rows were skipped:\n"), "{found}");
}

#[test]
#[cfg(not(feature = "parquet"))]
fn parquet_names_the_feature_that_reads_it() {
    let found = message("t.parquet", "PAR1", &labelled());
    assert!(found.starts_with("t.parquet: this build does not read Parquet; build bertft with `cargo"), "{found}");
}
