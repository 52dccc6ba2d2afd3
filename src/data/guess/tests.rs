use super::*;

const TXT: Option<Option<Format>> = Some(None);

fn by_extension(format: Format) -> Option<Option<Format>> {
    Some(Some(format))
}

fn look(text: &str, extension: Option<Option<Format>>) -> Guess {
    guess(text, true, extension, &Known::default()).unwrap()
}

fn name(name: &str) -> Column {
    Column::Name(name.into())
}

/// Twelve rows of a line that differs by number.
fn rows(row: impl Fn(usize) -> String) -> String {
    (0..12).map(row).collect()
}

#[test]
fn tsv_without_header_and_text_of_quotes_stays_unquoted() {
    let text = rows(|i| format!("\"film {i} was \"\"not\" what they say it is\t{}\n", i % 2));
    let found = look(&text, by_extension(Format::Tsv));
    assert_eq!((found.header, found.written.quoting, found.rows), (false, None, 12));
    assert_eq!((found.text, found.text_pair, found.label), (Column::Index(0).into(), None, Column::Index(1)));
    assert_eq!(found.task, TaskKind::Classification);
}

#[test]
fn quoted_tsv_is_seen_by_quotes_that_are_needed() {
    let text = rows(|i| format!("{}\t\"the {i} \"\"best\"\" film\nof all years\"\n", ["bad", "good"][i % 2]));
    let found = look(&format!("Sentiment\tText\n{text}"), by_extension(Format::Tsv));
    assert_eq!((found.header, found.written.quoting, found.rows), (true, Some(true), 12));
    assert_eq!((found.text, found.label), (name("Text").into(), name("Sentiment")));
}

#[test]
fn a_delimiter_other_than_the_extensions() {
    let text = rows(|i| format!("text {i}, with a comma, or {i};{}\n", ["a", "b"][i % 2]));
    let found = look(&format!("text;label\n{text}"), by_extension(Format::Csv));
    assert_eq!(found.written.delimiter.map(|d| d.0), Some(b';'));
    let found = look(&text, None);
    assert_eq!((found.written.format, found.written.delimiter.map(|d| d.0)), (Some(Format::Csv), Some(b';')));
}

#[test]
fn the_label_may_stand_before_the_text_or_behind_an_at() {
    let text = rows(|i| format!("{}:x How far is it{} to {i} ?\n", ["NUM", "LOC"][i % 2], ",".repeat(i % 3)));
    let found = look(&text, None);
    assert!(found.written.pattern.is_some());
    assert_eq!((found.text, found.label), (name("text").into(), name("label")));
    let text = rows(|i| format!("profit @ {} rose by {i} mn@{}\n", i % 3, ["up", "down"][i % 2]));
    assert_eq!(look(&text, TXT).written.delimiter.map(|d| d.0), Some(b'@'));
    let text = rows(|i| format!("profit {}rose by {i} mn@{}\n", "@ ".repeat(i % 3), ["up", "down"][i % 2]));
    let pattern = look(&text, TXT).written.pattern.unwrap();
    assert!(pattern.to_string().contains("@(?P<label>"));
}

#[test]
fn pairs_numbers_and_identifiers() {
    let text = rows(|i| format!("{i},a man {i} walks,a person {i} walks,{}.5\n", i % 5));
    let found = look(&format!("id,sentence1,sentence2,score\n{text}"), by_extension(Format::Csv));
    assert_eq!(found.task, TaskKind::Regression);
    assert_eq!((&found.text, &found.text_pair), (&name("sentence1").into(), &Some(name("sentence2"))));
    assert_eq!(found.left_out().map(|s| s.column.clone()).collect::<Vec<_>>(), [name("id")]);
    // The first row holds a number, so it is no header.
    assert!(!look(&text, by_extension(Format::Csv)).header);
}

#[test]
fn what_is_not_clear_is_an_error_that_flags_settle() {
    let text = rows(|i| format!("some text {i},{},{}\n", ["a", "b"][i % 2], ["x", "y", "z"][i % 3]));
    let ask = |known: &Known| guess(&text, true, by_extension(Format::Csv), known);
    let message = ask(&Known::default()).unwrap_err();
    assert!(message.contains("--label") && message.contains("column 1: 2 values, a 50 %, b 50 %"), "{message}");
    let found = ask(&Known { label: Some(Column::Index(2)), ..Known::default() }).unwrap();
    assert_eq!((found.text, found.label), (Column::Index(0).into(), Column::Index(2)));
    let message = ask(&Known { label: Some(name("lable")), ..Known::default() }).unwrap_err();
    assert!(message.contains("--label is \"lable\", but the columns are [0, 1, 2]"), "{message}");
    let same = Known { label: Some(Column::Index(0)), text: vec![Column::Index(0)], ..Known::default() };
    assert!(ask(&same).unwrap_err().contains("text and label"));
    let regression = Known { task: Some(TaskKind::Regression), label: Some(Column::Index(1)), ..Known::default() };
    assert!(ask(&regression).unwrap_err().contains("regression needs numbers"));
}

#[test]
fn nothing_panics_on_what_is_no_table() {
    for text in
        ["", "\n\n", "\"", "a", "a,b", "{", "{}", "[1]", "text,label\n", "a\tb\n\tc", "\"\n", ",,,\n,,,\n", "@\n@"]
    {
        for extension in [None, TXT, by_extension(Format::Csv), by_extension(Format::Tsv), by_extension(Format::Jsonl)]
        {
            for whole in [true, false] {
                assert!(guess(text, whole, extension, &Known::default()).is_err(), "{text:?}");
            }
        }
    }
}

#[test]
fn slips_are_counted_and_chaos_is_refused() {
    let good: String = (0..100).map(|i| format!("some text {i}\t{}\n", i % 2)).collect();
    let found = look(&format!("{good}a slip\n"), by_extension(Format::Tsv));
    assert_eq!((found.ragged, found.rows), (Some((1, 101)), 100));
    let text = rows(|i| format!("line {i}{}\n", "\tx".repeat(i % 3)));
    let message = guess(&text, true, by_extension(Format::Tsv), &Known::default()).unwrap_err();
    assert!(message.contains("the same number of fields"), "{message}");
}

#[test]
fn the_length_counts_chinese_by_character() {
    let text = |c: &str| (0..12).map(|i| format!("{}{i}\t{}\n", c.repeat(90), i % 2)).collect::<String>();
    assert_eq!(look(&text("的"), by_extension(Format::Tsv)).length.max_length, 128);
    assert_eq!(look(&text("a "), by_extension(Format::Tsv)).length.max_length, 64);
}
