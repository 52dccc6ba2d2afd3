//! Token ids of the example model, and tokenizers that are refused.

use serde::Deserialize;
use serde_json::json;

use super::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn example(text: &str, text_pair: Option<&str>) -> Example {
    let text_pair = text_pair.map(str::to_owned);
    let file = Path::new("").into();
    Example { text: text.into(), text_pair, label: None, slice: None, id: None, row: 1, line: 1, file }
}

fn encode(tokenizer: &Tokenizer, examples: &[Example], max_length: usize) -> Tokens {
    tokenizer.encode(examples, max_length, &mut |_, _| Ok(())).unwrap()
}

/// A model directory with this `tokenizer.json`.
fn directory(tokenizer_json: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json).unwrap();
    dir
}

/// The example model's `tokenizer.json` after an edit.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let mut json = serde_json::from_slice(&std::fs::read(format!("{MODEL}/tokenizer.json")).unwrap()).unwrap();
    edit(&mut json);
    directory(json.to_string().as_bytes())
}

fn load_error(dir: &tempfile::TempDir) -> String {
    Tokenizer::load(dir.path()).err().expect("loading must fail").to_string()
}

#[test]
fn ids_and_type_ids_equal_transformers() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        text_pair: Option<String>,
        max_length: usize,
        ids: Vec<u32>,
        type_ids: Vec<u8>,
    }
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let cases = include_str!("../../../tests/data/token_ids.jsonl").lines();
    let cases: Vec<Case> = cases.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(cases.len(), 17);
    for case in cases {
        let tokens = encode(&tokenizer, &[example(&case.text, case.text_pair.as_deref())], case.max_length);
        let what = format!("{:?} + {:?} in {}", case.text, case.text_pair, case.max_length);
        assert_eq!(tokens.row(0), case.ids, "{what}");
        assert_eq!(tokens.type_ids_of(0), case.type_ids, "{what}");
    }
}

#[test]
fn rows_keep_their_order_over_chunks_and_truncation_is_counted() {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let examples: Vec<_> = (0..2500).map(|i| example(&"a ".repeat(i % 40), None)).collect();
    let mut reports = Vec::new();
    let report = &mut |done, total| {
        reports.push((done, total));
        Ok(())
    };
    let tokens = tokenizer.encode(&examples, 32, report).unwrap();
    assert_eq!(reports, [(1024, 2500), (2048, 2500), (2500, 2500)]);
    assert_eq!(tokens.lengths(), (0..2500).map(|i| (i % 40 + 2).min(32)).collect::<Vec<_>>());
    // Of every 40 rows those with 31 to 39 words, and the last 20 rows are short.
    assert_eq!(tokens.truncated(), 62 * 9);
    assert_eq!(tokens.total(), tokens.lengths().iter().sum::<usize>());
}

#[test]
fn an_error_from_progress_ends_the_work() {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let examples = vec![example("a", None); 3000];
    let mut calls = 0;
    let result = tokenizer.encode(&examples, 8, &mut |_, _| {
        calls += 1;
        Err(Error::Interrupted { resumable: false })
    });
    assert!(matches!(result, Err(Error::Interrupted { .. })));
    assert_eq!(calls, 1);
}

#[test]
fn max_length_must_leave_room_for_a_token() {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let fails = |e: Example, max_length| tokenizer.encode(&[e], max_length, &mut |_, _| Ok(())).unwrap_err();
    let message = fails(example("a", None), 2).to_string();
    assert!(message.contains("set data.max_length to 3 or more"), "{message}");
    let message = fails(example("a", Some("b")), 3).to_string();
    assert!(message.contains("beside 3 special tokens; set data.max_length to 4"), "{message}");
    assert!(fails(example("a", None), 0).exit_code() == 2);
    assert_eq!(encode(&tokenizer, &[example("a", None)], 3).row(0), [101, 1037, 102]);
}

#[test]
fn own_truncation_and_fixed_padding_are_overridden() {
    let dir = edited(|json| {
        json["padding"] = json!({
            "strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"
        });
        json["truncation"] = json!({
            "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
        });
    });
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let tokens = encode(&tokenizer, &[example("a b c d", None)], 128);
    assert_eq!(tokens.row(0), [101, 1037, 1038, 1039, 1040, 102]);
    assert_eq!(tokens.truncated(), 0);
}

#[test]
fn a_long_pair_is_cut_without_building_its_other_windows() {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let text = "a ".repeat(20_000);
    // The crate alone would build 20 000² windows of two tokens each here.
    let tokens = encode(&tokenizer, &[example(&text, Some(&text))], 5);
    assert_eq!(tokens.row(0), [101, 1037, 102, 1037, 102]);
}

#[test]
fn what_is_kept_of_a_pair_is_what_the_crate_keeps() {
    use tokenizers::{TruncationParams, truncate_encodings};
    let encoding = |n| (0..n).map(|_| (1, String::new(), (0, 0), None, 0)).collect::<Encoding>();
    for (n1, n2, room) in (0..9).flat_map(|a| (0..9).flat_map(move |b| (0..9).map(move |room| (a, b, room)))) {
        let params = TruncationParams { max_length: room, ..Default::default() };
        let (first, second) = truncate_encodings(encoding(n1), Some(encoding(n2)), &params).unwrap();
        let expected = [first.len(), second.unwrap().len()];
        assert_eq!(longest_first([n1, n2], true, room), expected, "{n1} + {n2} in {room}");
        assert_eq!(longest_first([n1, 0], false, room)[0], n1.min(room));
    }
}

#[test]
fn a_post_processor_that_drops_a_text_is_refused() {
    let dir = edited(|json| {
        json["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]",
            "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [101], "tokens": ["[CLS]"]}}});
    });
    let message = load_error(&dir);
    assert!(message.contains("does more than to put special tokens"), "{message}");
}

#[test]
fn bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = load_error(&dir);
    assert!(message.contains("tokenizer.json: there is no tokenizer.json, and no vocab.txt"), "{message}");
    for bytes in [&b""[..], b"{\"version\": \"1.0\", \"added", b"[]", b"\xff\xfe", b"null"] {
        let message = load_error(&directory(bytes));
        assert!(message.contains("tokenizer.json: this is not a valid tokenizer: "), "{message}");
    }
    let message = load_error(&edited(|json| json["post_processor"] = serde_json::Value::Null));
    assert!(message.contains("adds no [CLS] and [SEP]"), "{message}");
}

#[test]
fn a_panic_in_the_crate_becomes_an_error() {
    // The first two panic while the file is read, the third on the first text.
    let crafted = [
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "////"}), "charsmap"),
        (
            "model",
            json!({"type": "BPE", "continuing_subword_prefix": "####", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}),
            // A build with checks notices one operation earlier.
            if cfg!(debug_assertions) { "overflow" } else { "out of range" },
        ),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "non-zero"),
    ];
    for (part, value, reason) in crafted {
        let message = load_error(&edited(|json| json[part] = value));
        assert!(message.contains("this is not a valid tokenizer: ") && message.contains(reason), "{message}");
    }
}

#[test]
fn ids_outside_the_model_are_an_error() {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.special_tokens_count(false)), (30_522, 2));
    assert_eq!(tokenizer.special_tokens_count(true), 3);
    let tokens = encode(&tokenizer, &[example("a", Some("b"))], 8);
    assert!(tokens.check_ids(1039, 2).is_ok());
    let message = tokens.check_ids(1038, 2).unwrap_err().to_string();
    assert!(message.contains("gives token id 1038, but the model knows only 1038"), "{message}");
    let message = tokens.check_ids(1039, 1).unwrap_err().to_string();
    assert!(message.contains("gives type id 1"), "{message}");
}

#[test]
fn a_subset_is_the_rows_in_the_order_given() {
    let tokenizer = Tokenizer::load(MODEL).unwrap();
    let examples = [example("a", None), example("b c", Some("d")), example("", None)];
    let tokens = encode(&tokenizer, &examples, 8);
    let subset = tokens.subset(&[2, 1]);
    assert_eq!((subset.len(), subset.row(0), subset.row(1)), (2, tokens.row(2), tokens.row(1)));
    assert_eq!(subset.type_ids_of(1), tokens.type_ids_of(1));
}
