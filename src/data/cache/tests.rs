mod kept;

use super::entry::ALIGN;
use super::*;
use crate::data::config::{Column, Format};
use crate::data::labels::Labels;
use crate::data::load::{Loaded, Watch, load};
use crate::data::places::Places;
use crate::data::settings::{Columns, Encoding, Files, OnBadRow};
use crate::data::tokens::Array;
use crate::data::{ReadOptions, Skipped, Tokenizer, tokens};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn options() -> ReadOptions {
    let name = |name: &str| Some(Column::Name(name.into()));
    let (on_bad_row, rename_labels) = (OnBadRow::Skip, [("l0".to_owned(), "x".to_owned()), ("l9".into(), "y".into())]);
    ReadOptions {
        label: name("label").map(Columns::from),
        text_pair: name("pair"),
        slice: name("source"),
        on_bad_row,
        rename_labels: rename_labels.into(),
        ..ReadOptions::default()
    }
}

struct World {
    dir: tempfile::TempDir,
    file: PathBuf,
    files: Files,
    loaded: Loaded,
}

impl World {
    /// Two files of pairs, with rows that are skipped, and their tokens.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("train.csv");
        let row = |i: usize| format!("the cat {i},{},l{},s{}\n", "a dog ".repeat(i % 9), i % 4, i % 3);
        let text = "text,pair,label,source\n".to_owned() + &(0..300).map(row).collect::<String>() + "bad\n";
        std::fs::write(&file, &text).unwrap();
        std::fs::write(dir.path().join("more.csv"), text).unwrap();
        let files = Files::new(vec![file.clone(), dir.path().join("more.csv")]).unwrap();
        let tokenizer = Tokenizer::load(MODEL).unwrap();
        let mut watch = Watch { progress: &mut |_| Ok(()), check_label: &|_| Ok(()) };
        let loaded = load(&files, &options(), &tokenizer, 16, &mut watch).unwrap();
        Self { dir, file, files, loaded }
    }

    fn get(&self, cache: &Cache, key: &str) -> Option<Loaded> {
        cache.get(key, self.files.as_slice())
    }

    fn cache(&self) -> Cache {
        Cache::open(self.dir.path().join("cache"))
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path().join("cache").join(folder)).into_iter().flatten();
        files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn assert_same(a: &Loaded, b: &Loaded) {
    assert_eq!(a.tokens, b.tokens);
    assert_eq!(a.tokens.digest(), b.tokens.digest());
    assert_eq!(a.tokens.distinct(), b.tokens.distinct());
    let places = |l: &Loaded| (l.places.files.clone(), l.places.ends.clone(), l.places.lines().to_vec());
    assert_eq!(places(a), places(b));
    let column = |c: &Labels| (c.names.clone(), c.codes.to_vec());
    assert_eq!(column(&a.labels), column(&b.labels));
    assert_eq!(a.slices.as_ref().map(column), b.slices.as_ref().map(column));
    assert_eq!((&a.skipped, &a.unused_renames), (&b.skipped, &b.unused_renames));
}

fn age(file: &Path, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
    File::options().append(true).open(file).unwrap().set_modified(then).unwrap();
}

#[test]
fn an_entry_gives_back_what_was_put() {
    let world = World::new();
    let cache = world.cache();
    assert!(world.get(&cache, "key").is_none());
    cache.put("key", &world.loaded).unwrap();
    let found = world.get(&cache, "key").unwrap();
    assert!(found.tokens.cached() && !world.loaded.tokens.cached());
    assert_same(&found, &world.loaded);
    // Removed while it is mapped.
    std::fs::remove_dir_all(world.dir.path().join("cache")).unwrap();
    assert_same(&found, &world.loaded);
    // What is put again from a map, and ids that need four bytes.
    cache.put("other", &found).unwrap();
    assert_same(&world.get(&cache, "other").unwrap(), &world.loaded);
    let wide = tokens::Tokens::from_rows((0..3).map(|i| (vec![70_000 + i; 5], vec![0; 5], i == 1)));
    let labels = Labels { names: vec!["a".into()], codes: Array::Owned(vec![0; 3]) };
    let places = Places { files: world.files.as_slice().to_vec(), ends: vec![3], lines: Array::Owned(vec![2, 3, 9]) };
    let (slices, skipped, unused_renames) = (None, Skipped::default(), vec![]);
    let wide = Loaded { tokens: wide, labels, slices, places, skipped, unused_renames };
    cache.put("wide", &wide).unwrap();
    assert_same(&world.get(&cache, "wide").unwrap(), &wide);
}

#[test]
fn an_entry_names_the_files_that_its_rows_now_stand_in() {
    let world = World::new();
    let cache = world.cache();
    assert_eq!((world.loaded.skipped.rows, &world.loaded.unused_renames[..]), (2, &["l9".to_owned()][..]));
    cache.put("key", &world.loaded).unwrap();
    let found = cache.get::<Loaded>("key", &["x/train.csv", "y/more.csv"].map(PathBuf::from)).unwrap();
    assert_eq!(found.places.error(300, "no").to_string(), "y/more.csv:2: no");
    let skipped: Vec<_> = found.skipped.first.iter().map(|row| (row.file.as_str(), row.line)).collect();
    assert_eq!(skipped, [("x/train.csv", Some(302)), ("y/more.csv", Some(302))]);
    // A list too short for it is another entry's.
    assert!(cache.get::<Loaded>("key", &["x/train.csv".into()]).is_none());
}

#[test]
fn a_damaged_entry_is_removed() {
    let world = World::new();
    let cache = world.cache();
    cache.put("key", &world.loaded).unwrap();
    let path = cache.entry("key");
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        assert!(world.get(&cache, "key").is_none(), "{what}");
        assert!(!path.exists(), "{what}");
    };
    for length in (0..whole.len()).step_by(97).chain([1, 8, 15, 16, 17, whole.len() - 1]) {
        refused(&whole[..length], &format!("cut at {length}"));
    }
    refused(&[&whole[..], &[0]].concat(), "one byte more");
    let header = 16 + u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    for at in (header.next_multiple_of(ALIGN)..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        // Between two sections there are bytes that nobody reads.
        match world.get(&cache, "key") {
            Some(found) => assert_same(&found, &world.loaded),
            None => assert!(!path.exists()),
        }
    }
    for at in 0..header {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        std::fs::write(&path, &bytes).unwrap();
        if let Some(found) = world.get(&cache, "key") {
            assert_same(&found, &world.loaded);
        }
    }
    std::fs::write(&path, &whole).unwrap();
    assert_same(&world.get(&cache, "key").unwrap(), &world.loaded);
    // Under another name it is another entry's.
    std::fs::rename(&path, cache.entry("other")).unwrap();
    assert!(world.get(&cache, "other").is_none());
}

#[test]
fn the_key_changes_with_whatever_the_tokens_depend_on() {
    let world = World::new();
    let content = Content::read(&world.file, &mut || Ok(())).unwrap();
    let key = |files: &[(&str, &Content)], options: &ReadOptions, tokenizer: &[u8], max_length| {
        let files: Vec<_> = files.iter().map(|(file, content)| (PathBuf::from(file), (*content).clone())).collect();
        Cache::key(&files, &(options, max_length), &Sha256::digest(tokenizer).into())
    };
    let mut bytes = std::fs::read(&world.file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&world.file, bytes).unwrap();
    let other = Content::read(&world.file, &mut || Ok(())).unwrap();
    let (one, two, both) = (("train.csv", &content), ("more.csv", &other), options());
    let first = key(&[("a/train.csv", &content), two], &both, b"t", 16);
    assert_eq!(first, key(&[("b/train.csv", &content), two], &both, b"t", 16));
    let with = |options: ReadOptions| key(&[one, two], &options, b"t", 16);
    let utf16 = "utf-16".parse::<Encoding>().unwrap();
    let changed = [
        key(&[("train.csv", &other), two], &both, b"t", 16),
        key(&[("train.tsv", &content), two], &both, b"t", 16),
        key(&[one], &both, b"t", 16),
        key(&[two, one], &both, b"t", 16),
        key(&[one, two, two], &both, b"t", 16),
        with(ReadOptions { text_pair: None, ..options() }),
        with(ReadOptions { header: false, ..options() }),
        with(ReadOptions { format: Some(Format::Csv), ..options() }),
        with(ReadOptions { encoding: Some(utf16), ..options() }),
        with(ReadOptions { delimiter: Some(";".parse().unwrap()), ..options() }),
        with(ReadOptions { quoting: Some(false), ..options() }),
        with(ReadOptions { pattern: Some("^(?P<text>.*)$".parse().unwrap()), ..options() }),
        with(ReadOptions { pattern: Some("^(?P<text>.+)$".parse().unwrap()), ..options() }),
        with(ReadOptions { join: "\n".into(), ..options() }),
        with(ReadOptions { slice: None, ..options() }),
        with(ReadOptions { on_bad_row: OnBadRow::Error, ..options() }),
        with(ReadOptions { rename_labels: Default::default(), ..options() }),
        key(&[one, two], &both, b"u", 16),
        key(&[one, two], &both, b"t", 17),
    ];
    assert!(!changed.contains(&first));
    assert_eq!(changed.iter().collect::<std::collections::BTreeSet<_>>().len(), changed.len());
}

#[test]
fn content_is_remembered_until_the_file_changes() {
    let world = World::new();
    let cache = world.cache();
    let sha = |cache: &Cache| {
        let mut reads = 0;
        let content = cache.content(&world.file, &mut || {
            reads += 1;
            Ok(())
        });
        (content.unwrap().sha256, reads)
    };
    let first = sha(&cache).0;
    assert_eq!(first, <Sha>::from(Sha256::digest(std::fs::read(&world.file).unwrap())));
    // Just written: a second change could leave the times as they are.
    assert_eq!((world.names("files").len(), sha(&cache)), (0, (first, 1)));
    std::thread::sleep(SETTLED + Duration::from_millis(1100));
    assert_eq!(sha(&cache), (first, 1));
    assert_eq!(sha(&cache), (first, 0));
    // Same size, and a time of change that was set back.
    let modified = std::fs::metadata(&world.file).unwrap().modified().unwrap();
    let text = std::fs::read_to_string(&world.file).unwrap().replacen("cat", "dog", 1);
    std::fs::write(&world.file, text).unwrap();
    File::options().append(true).open(&world.file).unwrap().set_modified(modified).unwrap();
    let second = sha(&cache);
    assert!(second.0 != first && second.1 == 1);
}

#[test]
fn what_nobody_used_for_thirty_days_goes_and_then_what_is_too_much() {
    let world = World::new();
    let cache = world.cache();
    for key in ["new", "old", "used", "ancient"] {
        cache.put(key, &world.loaded).unwrap();
    }
    age(&cache.entry("old"), 31);
    age(&cache.entry("used"), 29);
    std::fs::write(cache.entry("x.1-0.part"), "").unwrap();
    std::fs::write(cache.entry("y.1-0.part"), "").unwrap();
    age(&cache.entry("y.1-0.part"), 2);
    age(&cache.entry("ancient"), 400);
    let cache = world.cache();
    let mut names = world.names("tokens");
    names.sort();
    assert_eq!(names, ["new", "used", "x.1-0.part"]);
    // Being used makes an entry young again.
    assert!(world.get(&cache, "used").is_some());
    cache.clean(SystemTime::now() + Duration::from_secs(20 * 24 * 3600), MOST_BYTES);
    assert!(cache.entry("used").exists());
    age(&cache.entry("used"), 3);
    let size = std::fs::metadata(cache.entry("new")).unwrap().len();
    cache.clean(SystemTime::now(), size);
    assert!(cache.entry("new").exists() && !cache.entry("used").exists());
}

#[test]
fn many_writers_and_readers_of_one_entry_see_it_whole_or_not_at_all() {
    let world = World::new();
    let cache = world.cache();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..20).for_each(|_| cache.put("key", &world.loaded).unwrap()));
            scope.spawn(|| {
                for _ in 0..20 {
                    if let Some(found) = world.get(&cache, "key") {
                        assert_same(&found, &world.loaded);
                    }
                }
            });
        }
    });
    // No reader took a whole entry for a damaged one, and nothing unfinished is left.
    assert_eq!(world.names("tokens"), ["key"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_and_leaves_nothing() {
    let world = World::new();
    let blocked = world.dir.path().join("blocked");
    std::fs::write(&blocked, "a file").unwrap();
    let cache = Cache::open(&blocked);
    assert!(world.get(&cache, "key").is_none());
    assert!(cache.put("key", &world.loaded).is_err());
    assert!(cache.content(&world.file, &mut || Ok(())).is_ok());
    let failing = write_whole(&world.dir.path().join("x"), |_| Err(io::Error::other("the disk is full")));
    assert!(failing.is_err());
    assert!(
        std::fs::read_dir(world.dir.path()).unwrap().all(|f| f
            .unwrap()
            .path()
            .extension()
            .is_none_or(|e| e != UNFINISHED))
    );
}
