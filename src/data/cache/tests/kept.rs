//! Sentences and questions as entries.

use super::*;
use crate::data::reader::Naming;
use crate::data::reader::questions::QuestionOptions;
use crate::data::reader::sentences::SentenceOptions;
use crate::data::tagging::scheme::Scheme;
use crate::data::tagging::{self, TagForm};
use crate::data::{Dataset, LabelMap, Targets, span};
use std::collections::{BTreeMap, BTreeSet};

/// Two files, and a cache beside them.
struct Place {
    dir: tempfile::TempDir,
    files: Files,
    tokenizer: Tokenizer,
}

impl Place {
    fn new(names: [&str; 2], texts: [String; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = names.map(|name| dir.path().join(name));
        paths.iter().zip(texts).for_each(|(path, text)| std::fs::write(path, text).unwrap());
        Self { dir, files: Files::new(paths.to_vec()).unwrap(), tokenizer: Tokenizer::load(MODEL).unwrap() }
    }

    fn cache(&self) -> Cache {
        Cache::open(self.dir.path().join("cache"))
    }

    /// Changes one byte of an entry after the other: what is found is what was put, or nothing, and the entry is removed.
    fn damage<T: Kept>(&self) {
        let cache = self.cache();
        let path = cache.entry("key");
        let whole = std::fs::read(&path).unwrap();
        let (mut tried, mut refused) = (0, 0);
        for at in (0..whole.len()).step_by(whole.len() / 300) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            tried += 1;
            match cache.get::<T>("key", self.files.as_slice()) {
                Some(found) => assert_eq!(written(&found), whole, "byte {at}"),
                None => {
                    refused += 1;
                    assert!(!path.exists(), "byte {at}");
                }
            }
        }
        // Between sections there are bytes that nobody reads.
        assert!(refused * 10 > tried * 8, "{refused} of {tried}");
    }
}

/// The bytes of an entry.
fn written(made: &impl Kept) -> Vec<u8> {
    let mut bytes = vec![];
    write_entry(&mut bytes, "key", &made.groups().unwrap()).unwrap();
    bytes
}

fn same_data(a: &Dataset, b: &Dataset) {
    assert_eq!((&a.tokens, &a.targets, &a.lines, &a.file), (&b.tokens, &b.targets, &b.lines, &b.file));
    assert_eq!(a.tokens.digest(), b.tokens.digest());
}

/// Files with a line without tag, a tag that is none, and a sentence of nothing.
fn sentences() -> (Place, tagging::Loaded) {
    let one = |i: usize| format!("the O\ncat{i} B-X{}\nunbelievably I-X{}\n\u{200b} O\nis O\n\n", i % 3, i % 3);
    let text: String = (0..80).map(one).collect();
    let more = format!("{}bad\n\nworse X-Y\n\n\u{200b} O\n\nlast O\n", text.replace("is O", "was B-Z"));
    let place = Place::new(["a.conll", "b.conll"], [text, more]);
    let (form, rename) = (TagForm { scheme: Some(Scheme::Iob2), convert: None }, BTreeMap::new());
    let options = sentence_options();
    let loaded = tagging::load(&place.files, &options, form, &rename, &place.tokenizer, &mut |_| Ok(())).unwrap();
    (place, loaded)
}

fn sentence_options() -> SentenceOptions {
    SentenceOptions {
        format: None,
        words: None,
        tags: None,
        tagged: true,
        encoding: None,
        on_bad_row: OnBadRow::Skip,
        naming: Naming::Config,
    }
}

/// Rows of `tagging::Loaded` with windows.
fn rows(loaded: &tagging::Loaded, place: &Place) -> Dataset {
    let labels = LabelMap::from_names(&loaded.names(), None, Path::new("")).unwrap();
    loaded.rows(&labels, &place.tokenizer, 6, true, &place.files).unwrap()
}

#[test]
fn sentences_come_back_as_they_were_put() {
    let (place, loaded) = sentences();
    let cache = place.cache();
    assert_eq!((loaded.len(), loaded.empty, loaded.skipped.rows), (161, 1, 2));
    cache.put("key", &loaded).unwrap();
    let same = |found: &tagging::Loaded| {
        same_data(&rows(found, &place), &rows(&loaded, &place));
        assert_eq!((found.names(), found.empty, &found.skipped), (loaded.names(), 1, &loaded.skipped));
    };
    let found = cache.get::<tagging::Loaded>("key", place.files.as_slice()).unwrap();
    same(&found);
    assert!(rows(&found, &place).tokens.cached() && !rows(&loaded, &place).tokens.cached());
    // A tag that the model lacks is told where it stands now.
    let moved = ["x/a.conll", "y/b.conll"].map(PathBuf::from);
    let found = cache.get::<tagging::Loaded>("key", &moved).unwrap();
    let lacks =
        LabelMap::new(["O", "B-X0", "B-X1", "B-X2", "I-X0", "I-X1", "I-X2"].map(String::from).to_vec()).unwrap();
    let error = found.rows(&lacks, &place.tokenizer, 6, true, &place.files).unwrap_err().to_string();
    assert!(error.starts_with("y/b.conll:5: label \"B-Z\""), "{error}");
    let skipped: Vec<_> = found.skipped.first.iter().map(|row| (row.file.as_str(), row.line)).collect();
    assert_eq!(skipped, [("y/b.conll", Some(481)), ("y/b.conll", Some(483))]);
    place.damage::<tagging::Loaded>();
}

/// Questions with and without answers, two about each context; one with an answer elsewhere and one with none.
fn questions() -> (Place, span::Loaded) {
    let line = |i: usize, answers: &str| {
        let context = format!("the cat {} sat on a mat. é🙂 {}", i / 2, "it was happy there ".repeat(i % 5));
        serde_json::json!({"id": format!("q{i}"), "question": format!("who sat {i}?"), "context": context,
            "answers": serde_json::from_str::<serde_json::Value>(answers).unwrap()})
        .to_string()
            + "\n"
    };
    let one = |i: usize| match i % 3 {
        0 => line(i, "[]"),
        1 => line(i, r#"[{"text":"cat","answer_start":4},{"text":"the cat","answer_start":0}]"#),
        _ => line(i, r#"[{"text":"sat","answer_start":0}]"#),
    };
    let (a, b): (String, String) = ((0..60).map(one).collect(), (60..100).map(one).collect());
    let bad = line(100, r#"[{"text":"dog","answer_start":4}]"#);
    let place = Place::new(["a.jsonl", "b.jsonl"], [a, b + &bad]);
    let options = QuestionOptions { on_bad_row: OnBadRow::Skip, ..QuestionOptions::default() };
    let loaded = span::load(&place.files, &options, &place.tokenizer, 24, &mut |_| Ok(())).unwrap();
    (place, loaded)
}

#[test]
fn questions_come_back_as_they_were_put() {
    let (place, loaded) = questions();
    let cache = place.cache();
    assert_eq!((loaded.len(), loaded.skipped.rows, loaded.repaired.answers), (100, 1, 33));
    cache.put("key", &loaded).unwrap();
    let (skipped, repaired) = (loaded.skipped.clone(), loaded.repaired.clone());
    let rows = |loaded: span::Loaded| loaded.rows(&place.tokenizer, 4, &place.files);
    let made = rows(loaded);
    let Targets::Spans(spans) = &made.targets else { panic!() };
    assert!(spans.len() > 100 && spans.iter().any(|row| row.answer != [0, 0]));
    let found = cache.get::<span::Loaded>("key", place.files.as_slice()).unwrap();
    assert_eq!((&found.skipped, &found.repaired), (&skipped, &repaired));
    let found = rows(found);
    same_data(&found, &made);
    assert!(found.tokens.cached() && !made.tokens.cached());
    let moved = ["x/a.jsonl", "y/b.jsonl"].map(PathBuf::from);
    let found = cache.get::<span::Loaded>("key", &moved).unwrap();
    assert_eq!((found.skipped.first[0].file.as_str(), found.skipped.first[0].line), ("y/b.jsonl", Some(41)));
    place.damage::<span::Loaded>();
}

#[test]
fn an_entry_of_one_kind_is_none_of_another() {
    let (place, loaded) = sentences();
    let cache = place.cache();
    cache.put("key", &loaded).unwrap();
    assert!(cache.get::<span::Loaded>("key", place.files.as_slice()).is_none());
    cache.put("key", &loaded).unwrap();
    assert!(cache.get::<Loaded>("key", place.files.as_slice()).is_none());
    // And one whose files are too few for its places is another's.
    cache.put("key", &loaded).unwrap();
    assert!(cache.get::<tagging::Loaded>("key", &place.files.as_slice()[..1]).is_none());
}

#[test]
fn keys_of_sentences_and_questions_change_with_every_option() {
    let (place, _) = sentences();
    let content = Content::read(&place.files.as_slice()[0], &mut || Ok(())).unwrap();
    let files = [(place.files.as_slice()[0].clone(), content)];
    let key = |options: &dyn Debug| Cache::key(&files, options, &[0; 32]);
    let (form, none) = (TagForm::default(), BTreeMap::<String, String>::new());
    let of =
        |options: SentenceOptions, form: TagForm, rename: &BTreeMap<String, String>| key(&(&options, form, rename));
    let sentence = sentence_options;
    let column = |i| Some(Column::Index(i));
    let renamed = [("B-X".to_owned(), "O".to_owned())].into();
    let question = QuestionOptions::default;
    let asked = |options: QuestionOptions, max_length: usize| key(&(&options, max_length));
    let keys = [
        of(sentence(), form, &none),
        of(sentence(), TagForm { scheme: Some(Scheme::Iob1), convert: None }, &none),
        of(sentence(), TagForm { scheme: None, convert: Some(Scheme::Iob1) }, &none),
        of(sentence(), form, &renamed),
        of(SentenceOptions { format: Some(Format::Conll), ..sentence() }, form, &none),
        of(SentenceOptions { words: column(1), ..sentence() }, form, &none),
        of(SentenceOptions { tags: column(1), ..sentence() }, form, &none),
        of(SentenceOptions { tagged: false, ..sentence() }, form, &none),
        of(SentenceOptions { encoding: Some("utf-16".parse().unwrap()), ..sentence() }, form, &none),
        of(SentenceOptions { on_bad_row: OnBadRow::Error, ..sentence() }, form, &none),
        asked(question(), 24),
        asked(question(), 25),
        asked(QuestionOptions { format: Some(Format::Squad), ..question() }, 24),
        asked(QuestionOptions { question: "q".into(), ..question() }, 24),
        asked(QuestionOptions { context: "q".into(), ..question() }, 24),
        asked(QuestionOptions { answers: "q".into(), ..question() }, 24),
        asked(QuestionOptions { answered: false, ..question() }, 24),
        asked(QuestionOptions { encoding: Some("utf-16".parse().unwrap()), ..question() }, 24),
        asked(QuestionOptions { on_bad_row: OnBadRow::Skip, ..question() }, 24),
    ];
    assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
}
