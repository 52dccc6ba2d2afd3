//! Delimiters, quoting, patterns, joined columns and renamed labels.

use super::*;

fn delimited(delimiter: &str, quoting: Option<bool>) -> ReadOptions {
    ReadOptions { delimiter: Some(delimiter.parse().unwrap()), quoting, ..labelled() }
}

#[test]
fn delimiter_and_quoting_are_as_told() {
    let bytes = b"text;label\n\"a;\n\"\"b\"\"\";x\nc,d;y\n";
    let expected = [("a;\n\"b\"", "x", 1, 2), ("c,d", "y", 2, 4)];
    assert_eq!(summary(&read("t.csv", bytes, &delimited(";", None)).unwrap()), expected);
    assert_eq!(summary(&read("t.tsv", bytes, &delimited(";", Some(true))).unwrap()), expected);
    let found = message("t.csv", bytes, &delimited(";", Some(false)));
    assert!(found.starts_with("t.csv:2: ") || found.contains("fix its delimiters"), "{found}");
    let quoted_tsv = b"text\tlabel\r\n\"a\tb\r\nc\"\tx\r\n\"d\"\"e\"\ty\r\n";
    let options = ReadOptions { quoting: Some(true), ..labelled() };
    let examples = read("t.tsv", quoted_tsv, &options).unwrap();
    assert_eq!(summary(&examples), [("a\tb\r\nc", "x", 1, 2), ("d\"e", "y", 2, 4)]);
    let found = message("t.csv", bytes, &labelled());
    assert!(found.ends_with("; if \";\" separates the fields, set data.delimiter = \";\""), "{found}");
}

#[test]
fn a_carriage_return_inside_the_last_quoted_field_is_text() {
    let examples = read("t.csv", b"label,text\nx,\"a\r\"\ny,\"b\"\r\nz,c\r\n", &labelled()).unwrap();
    assert_eq!(summary(&examples), [("a\r", "x", 1, 2), ("b", "y", 2, 3), ("c", "z", 3, 4)]);
}

#[test]
fn a_cell_that_is_not_there_is_the_empty_text() {
    let examples = read("t.csv", "text,label\n,x\n\"\",y\n", &labelled()).unwrap();
    assert_eq!(summary(&examples), [("", "x", 1, 2), ("", "y", 2, 3)]);
}

#[test]
fn a_pattern_takes_lines_apart() {
    let pattern = |p: &str| ReadOptions { pattern: Some(p.parse().unwrap()), ..labelled() };
    let trec = "DESC:manner How did it ?\n\nHUM:ind Who : was it ?\r\n";
    let options = pattern(r"^(?P<label>[A-Z]+):(?P<fine>\w+) (?P<text>.*)$");
    let expected = [("How did it ?", "DESC", 1, 1), ("Who : was it ?", "HUM", 2, 3)];
    assert_eq!(summary(&read("TREC.train", trec, &options).unwrap()), expected);
    let fine = ReadOptions { label: Some(Column::Name("fine".into()).into()), ..options.clone() };
    assert_eq!(read("TREC.train", trec, &fine).unwrap()[1].label.as_deref(), Some("ind"));
    let phrases = "mail me@home.com@neutral\r\nup@positive\r\n";
    let found = read("t.txt", phrases, &pattern(r"^(?P<text>.*)@(?P<label>\w+)$")).unwrap();
    assert_eq!(summary(&found), [("mail me@home.com", "neutral", 1, 1), ("up", "positive", 2, 2)]);
    assert_eq!(
        message("t.txt", "A:b c\nnothing\n", &options),
        "t.txt:2: the line does not match data.pattern: \"nothing\"; fix the row or the pattern"
    );
    let none = ReadOptions { label: Some(Column::Name("lable".into()).into()), ..options };
    assert!(message("t.txt", "", &none).contains("has no group \"lable\" among [label, fine, text] (did you mean"));
}

#[test]
fn several_columns_are_joined() {
    let columns = |c: &[Column]| Columns::new(c.to_vec()).unwrap();
    let names = columns(&[Column::Name("title".into()), Column::Name("body".into())]);
    let options = ReadOptions { text: names, join: " | ".into(), ..labelled() };
    let csv = read("t.csv", "body,label,title\nb,x,t\n", &options).unwrap();
    let jsonl = read("t.jsonl", "{\"title\":\"t\",\"body\":\"b\",\"label\":\"x\"}", &options).unwrap();
    assert_eq!((csv[0].text.as_str(), jsonl[0].text.as_str()), ("t | b", "t | b"));
    let by_index = ReadOptions { text: columns(&[Column::Index(2), Column::Index(0)]), ..options };
    assert_eq!(read("t.csv", "body,label,title\nb,x,t\n", &by_index).unwrap()[0].text, "t | b");
}

#[test]
fn labels_are_renamed_and_unused_names_are_told() {
    let renames = [("0", "negative"), ("true", "positive"), ("2", "x")];
    let rename_labels = renames.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    let options = ReadOptions { format: Some(Format::Csv), rename_labels, ..labelled() };
    let bytes = "text,label\na,0\nb,0.0\nc,True\nd,other\n";
    let mut reader = Reader::from_stream(Cursor::new(bytes), "in", &options).unwrap();
    let labels: Vec<_> = reader.by_ref().map(|e| e.unwrap().label.unwrap()).collect();
    assert_eq!(labels, ["negative", "negative", "positive", "other"]);
    assert_eq!(reader.unused_renames(), ["2"]);
}
