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
    assert!(check(&fixtures) >= 11 * 13);
}

/// For a larger set that `make_tokenizers.py --out DIR` made: `TOKENIZER_CASES=DIR cargo test … -- --ignored`.
#[test]
#[ignore = "needs TOKENIZER_CASES"]
fn ids_are_those_of_transformers_on_a_set_from_outside() {
    let root = std::env::var("TOKENIZER_CASES").expect("TOKENIZER_CASES names the folder");
    println!("{} rows", check(Path::new(&root)));
}
