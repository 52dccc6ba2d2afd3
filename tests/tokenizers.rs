//! Token ids against `transformers` for every kind of tokenizer: from `tokenizer.json`, and from the vocabularies of
//! directories that have none (`golden/make_tokenizers.py`).

use bertft::data::{Example, Tokenizer, Tokens};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Expected {
    max_length: usize,
    texts: Vec<String>,
    single: Vec<Vec<u32>>,
    pair: Vec<Vec<u32>>,
    /// Empty where all types are 0.
    pair_types: Vec<Vec<u8>>,
}

fn encode(tokenizer: &Tokenizer, rows: &[(&String, Option<&String>)], max_length: usize) -> Tokens {
    let example = |&(text, pair): &(&String, Option<&String>)| Example {
        text: text.clone(),
        text_pair: pair.cloned(),
        label: None,
        slice: None,
        id: None,
        row: 1,
        line: 1,
        file: Path::new("").into(),
    };
    let examples: Vec<_> = rows.iter().map(example).collect();
    tokenizer.encode(&examples, max_length, &mut |_, _| Ok(())).unwrap()
}

/// Checks all cases of a folder; returns the rows seen.
fn check(root: &Path) -> usize {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    let (mut rows, mut wrong) = (0, vec![]);
    for case in cases {
        let expected: Expected = serde_json::from_slice(&std::fs::read(case.join("expected.json")).unwrap()).unwrap();
        let tokenizer = Tokenizer::load(&case).unwrap();
        let texts = &expected.texts;
        let single: Vec<_> = texts.iter().map(|text| (text, None)).collect();
        let found = encode(&tokenizer, &single, expected.max_length);
        for (i, ids_of) in expected.single.iter().enumerate() {
            if &found.row(i) != ids_of {
                wrong.push(format!("{}: {:?}: {:?}, expected {ids_of:?}", case.display(), texts[i], found.row(i)));
            }
        }
        let pairs: Vec<_> = (0..texts.len()).map(|i| (&texts[i], Some(&texts[(i + 1) % texts.len()]))).collect();
        let found = encode(&tokenizer, &pairs, expected.max_length);
        for (i, ids_of) in expected.pair.iter().enumerate() {
            let zeros = vec![0; ids_of.len()];
            let types = expected.pair_types.get(i).unwrap_or(&zeros);
            let got = (found.row(i), found.type_ids_of(i));
            if (&got.0, &got.1) != (ids_of, types) {
                wrong.push(format!(
                    "{}: {:?}: {got:?}, expected {ids_of:?} of types {types:?}",
                    case.display(),
                    pairs[i]
                ));
            }
        }
        rows += texts.len();
    }
    let some = wrong[..wrong.len().min(10)].join("\n");
    assert!(wrong.is_empty(), "{} of {rows} rows, each alone and in a pair, have other ids:\n{some}", wrong.len());
    rows
}

#[test]
fn ids_are_those_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/tokenizers");
    assert!(check(&fixtures) >= 11 * 13 + 8 * 213);
}

/// For a larger set that `make_tokenizers.py --out DIR` made: `TOKENIZER_CASES=DIR cargo test … -- --ignored`.
#[test]
#[ignore = "needs TOKENIZER_CASES"]
fn ids_are_those_of_transformers_on_a_set_from_outside() {
    let root = std::env::var("TOKENIZER_CASES").expect("TOKENIZER_CASES names the folder");
    println!("{} rows", check(Path::new(&root)));
}

/// A case's directory as another one, each file after an edit.
fn edited(case: &str, edit: impl Fn(&str, Vec<u8>) -> (String, Vec<u8>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/tokenizers").join(case);
    for entry in std::fs::read_dir(case).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let (name, bytes) = edit(name, std::fs::read(&path).unwrap());
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

#[test]
fn a_vocabulary_without_the_special_tokens_is_refused() {
    let replaced =
        |bytes: Vec<u8>, from: &str, to: &str| String::from_utf8(bytes).unwrap().replace(from, to).into_bytes();
    for (case, file, token, role) in [
        ("bert_uncased", "vocab.txt", "[CLS]", "cls_token"),
        ("bert_uncased", "vocab.txt", "[SEP]", "sep_token"),
        ("bert_cased", "vocab.txt", "[UNK]", "unk_token"),
        ("mpnet", "vocab.txt", "</s>", "sep_token"),
        ("roberta", "vocab.json", "<s>", "cls_token"),
    ] {
        let dir = edited(case, |name, bytes| {
            (name.to_owned(), if name == file { replaced(bytes, token, "other") } else { bytes })
        });
        let message = Tokenizer::load(dir.path()).err().unwrap().to_string();
        assert!(message.contains(&format!("{file}: the vocabulary has no {token}, the {role}; ")), "{message}");
    }
    // The pieces of one family in the file of another.
    for (case, from, to, family, token) in [
        ("spm_xlm_roberta", "sentencepiece.bpe.model", "spm.model", "deberta-v2", "[CLS]"),
        ("spm_xlm_roberta", "sentencepiece.bpe.model", "spiece.model", "albert", "[CLS]"),
        ("spm_deberta_options", "spm.model", "sentencepiece.bpe.model", "camembert", "<s>"),
    ] {
        let dir = edited(case, |name, bytes| match name {
            "config.json" => (name.to_owned(), format!("{{\"model_type\": \"{family}\"}}").into_bytes()),
            "tokenizer_config.json" => (name.to_owned(), b"{}".to_vec()),
            _ => (name.replace(from, to), bytes),
        });
        let message = Tokenizer::load(dir.path()).err().unwrap().to_string();
        assert!(message.contains(&format!("{to}: the model has no piece {token}; download it again")), "{message}");
    }
}

#[test]
fn the_unknown_token_is_found_in_every_kind() {
    for (case, id) in
        [("bert_uncased", 1), ("spm_deberta", 3), ("spiece_albert", 1), ("spm_camembert", 3), ("unigram", 3)]
    {
        let dir = edited(case, |name, bytes| (name.to_owned(), bytes));
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.unknown_id(), Some(id), "{case}");
        assert!(tokenizer.unknown_words("the ␀ room").iter().any(|word| word.contains('␀')), "{case}");
    }
}
