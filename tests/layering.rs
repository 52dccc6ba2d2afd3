//! The layering rule: a module imports only from rows above its own, and nothing below `cli` prints or exits.
//!
//! A scan of the source text, not a compiler: it reads `crate::x` wherever it stands in code (imports, groups, full
//! paths), and `super::x` where that leaves a top-level module. Comments never count. What is behind `#[cfg(test)]` is
//! exempt, as a test may hold a layer against one above it and no user runs it. `main.rs` and `lib.rs` stand above all
//! rows.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The top-level modules, lowest first. The first two rows are what everything may use; `error` and `suggest` come
/// before the rest of them, which return errors themselves.
const ROWS: [&[&str]; 10] = [
    &["error", "suggest"],
    &["rng", "device", "hub"],
    &["ops", "data", "metrics"],
    &["nn"],
    &["encoders", "heads"],
    &["model", "optim"],
    &["train", "predict", "check"],
    &["config"],
    &["cli"],
    &["bin"],
];

/// Words that the arithmetic has no business knowing, in code or in a string (a checkpoint name, say).
const ABOVE_ARITHMETIC: [&str; 4] = ["bert", "encoder", "config", "peft"];

/// What prints or ends the process.
const OUTPUT: [&str; 8] =
    ["println!", "print!", "eprintln!", "eprint!", "process::exit", "process::abort", "stdout()", "stderr()"];

#[test]
fn modules_import_only_from_rows_above_their_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    rust_files(&src, &mut files);
    assert!(files.len() > 40, "{} holds {} files", src.display(), files.len());
    let sources: Vec<(PathBuf, String)> = files
        .into_iter()
        .map(|f| (f.strip_prefix(&src).unwrap().to_path_buf(), fs::read_to_string(&f).unwrap()))
        .collect();
    let tests: Vec<PathBuf> = sources.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    let found: Vec<String> = sources
        .iter()
        .filter(|(path, _)| !tests.iter().any(|t| path.with_extension("").starts_with(t)))
        .flat_map(|(path, text)| offences(path, text))
        .collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn planted_offences_are_found_with_their_line() {
    let cases = [
        ("nn/params.rs", "use crate::model::Model;", "imports model"),
        ("nn/params.rs", "use crate :: {ops::gemm, rng, encoders::{bert, names}};", "imports encoders"),
        ("nn/params.rs", "fn f() { crate::train::run(\"a \\\" //\") }", "imports train"),
        ("heads/sequence.rs", "pub(crate) use crate::encoders::Encoder;", "imports encoders"),
        ("metrics/mod.rs", "use crate::data::Batch;", "imports data"),
        ("optim/mod.rs", "use super::model::Model;", "imports model"),
        ("ops/gelu/mod.rs", "use super::super::{nn, rng};", "imports nn"),
        ("data/mod.rs", "use crate::nowhere::X;", "nowhere is in no row"),
        ("nowhere.rs", "fn f() {}", "nowhere is in no row"),
        ("data/mod.rs", "fn f<'a>(x: &'a str) { let c = '\"'; println!(\"{x}{c}\"); }", "println!"),
        ("train/log.rs", "let r = r#\"\"//\"#; std::process::exit(1);", "process::exit"),
        ("train/log.rs", "writeln!(io::stderr(), \"x\")", "stderr()"),
        ("ops/mod.rs", "let name = \"bert.embeddings\";", "mentions bert"),
        ("nn/params.rs", "fn f(c: &EncoderShape) {}", "mentions encoder"),
        ("nn/params.rs", "#[cfg(test)]\nmod tests { fn f() {} } use crate::cli;", "imports cli"),
        ("nn/params.rs", "#[cfg(not(test))]\nuse crate::cli;", "imports cli"),
    ];
    for (path, line, expected) in cases {
        let found = offences(Path::new(path), &format!("// A comment.\n\n{line}\n"));
        let at = format!("src/{path}:{}: ", if path == "nowhere.rs" { 1 } else { 3 + line.matches('\n').count() });
        assert!(found.iter().all(|f| f.starts_with(&at)), "{line}: {found:?}");
        assert!(found.iter().any(|f| f.contains(expected)), "{line}: {found:?}");
    }
}

#[test]
fn what_is_allowed_is_not_an_offence() {
    let cases = [
        ("nn/params.rs", "use crate::{error::Result, ops::{self, gemm}, rng::bits};"),
        ("nn/params.rs", "/// As [`crate::encoders`] and [`crate::cli`] use it. println!\nfn f() {}"),
        ("nn/params.rs", "/* crate::cli /* nested */ bert */ fn f() { let s = \"crate::cli println! \\\" x\"; }"),
        (
            "nn/params.rs",
            "#[cfg(test)]\n#[allow(dead_code)]\nmod tests { use crate::encoders::X; fn f() { println!() } }",
        ),
        ("nn/params.rs", "mod blocks { use super::super::nn; } // as nested modules do"),
        ("ops/gelu/mod.rs", "use super::cpu; macro_rules! m { () => { $crate::ops::cpu::level() } }"),
        ("ops/cpu.rs", "fn f() { std::env::var(\"BERTFT_CPU\"); }"),
        ("device.rs", "use crate::{Error, Result}; pub(crate) fn f() {} pub(in crate::device) fn g() {}"),
        ("cli/ui.rs", "use crate::train::log::Event; fn f() { eprintln!(); std::process::exit(0) }"),
        ("main.rs", "use bertft::cli; fn main() { println!() }"),
        ("lib.rs", "pub use error::{Error, Result};"),
    ];
    for (path, text) in cases {
        assert_eq!(offences(Path::new(path), text), [""; 0], "{path}: {text}");
    }
    let tests = test_files(Path::new("config.rs"), "mod source;\n#[cfg(test)]\nmod tests;\n");
    assert_eq!(tests, [Path::new("config/tests")]);
    assert_eq!(test_files(Path::new("ops/mod.rs"), "#[cfg(test)] mod testing;"), [Path::new("ops/testing")]);
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// What breaks the rules in a file; `path` is relative to `src`.
fn offences(path: &Path, text: &str) -> Vec<String> {
    let module = path.with_extension("");
    let module = module.iter().next().unwrap().to_str().unwrap();
    if ["main", "lib"].contains(&module) {
        return vec![];
    }
    let mut found: Vec<(usize, String)> = vec![];
    let Some(row) = row(module) else {
        return vec![format!("src/{}:1: {module} is in no row; add it to ROWS of tests/layering.rs", path.display())];
    };
    let mut code = blanked(text, true);
    let mut words = blanked(text, false);
    for range in test_parts(&code) {
        code.replace_range(range.clone(), &blank(&code[range.clone()]));
        words.replace_range(range.clone(), &blank(&words[range]));
    }
    for (at, import) in imports(&code, depth(path)) {
        match self::row(import) {
            // What `lib.rs` exports under the crate's own name: the error types.
            None if import.starts_with(char::is_uppercase) => {}
            None => found.push((at, format!("{import} is in no row; add it to ROWS of tests/layering.rs"))),
            Some(other) if other < row || import == module => {}
            Some(_) => found.push((at, format!("{module} imports {import}, which is not above it (DESIGN.md, rows)"))),
        }
    }
    if module != "cli" {
        for output in OUTPUT {
            let hits = places(&code, output).map(|at| (at, format!("{output} below cli; return it or report it")));
            found.extend(hits);
        }
    }
    if ["ops", "nn"].contains(&module) {
        let lower = words.to_ascii_lowercase();
        for word in ABOVE_ARITHMETIC {
            let hits = lower.match_indices(word).filter(|(at, _)| !lower[*at..].starts_with("bertft"));
            found.extend(hits.map(|(at, _)| (at, format!("{module} mentions {word}, which it must not know"))));
        }
    }
    found.sort();
    let line = |at: usize| text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
    found.into_iter().map(|(at, what)| format!("src/{}:{}: {what}", path.display(), line(at))).collect()
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// How many `super` lead from a file to the root of the crate.
fn depth(path: &Path) -> usize {
    path.iter().count() - usize::from(path.ends_with("mod.rs"))
}

/// Where `word` stands and is not the end of a longer name.
fn places<'t>(code: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let in_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |at| !code[..*at].ends_with(in_name))
}

/// First names after `crate::`, or after as many `super::` as lead to the root, with their places.
fn imports(code: &str, depth: usize) -> Vec<(usize, &str)> {
    let after = |at: usize, word: &str| -> Option<usize> {
        let rest = code[at..].strip_prefix(word)?.trim_start().strip_prefix("::")?.trim_start();
        Some(code.len() - rest.len())
    };
    let from_root = |start: usize| (0..depth).try_fold(start, |at, _| after(at, "super"));
    let roots = places(code, "crate").filter_map(|at| after(at, "crate"));
    // The later `super` of a chain are no starts.
    let first = |at: &usize| !code[..*at].trim_end().ends_with("::");
    let roots = roots.chain(places(code, "super").filter(first).filter_map(from_root));
    roots.flat_map(|at| first_names(code, at)).filter(|(_, name)| !["super", "self", ""].contains(name)).collect()
}

/// The name at `at`, or the first names of all branches of the group there.
fn first_names(code: &str, at: usize) -> Vec<(usize, &str)> {
    let name = |at: usize| {
        let start = code.len() - code[at..].trim_start().len();
        let length = code[start..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len() - start);
        (start, &code[start..start + length])
    };
    if !code[at..].starts_with('{') {
        return vec![name(at)];
    }
    let mut names = vec![];
    let mut nesting = 0;
    for (i, c) in code[at..].char_indices() {
        match c {
            '{' => nesting += 1,
            '}' => nesting -= 1,
            _ => {}
        }
        match (c, nesting) {
            ('{' | ',', 1) => names.push(name(at + i + 1)),
            (_, 0) => break,
            _ => {}
        }
    }
    names
}

/// The items behind `#[cfg(test)]`, in blanked code.
fn test_parts(code: &str) -> Vec<Range<usize>> {
    let parts = code.match_indices("#[cfg(test)]").chain(code.match_indices("#[cfg(all(test,"));
    parts.map(|(start, _)| start..start + item_length(&code[start..])).collect()
}

/// To the `;` or the closing brace that ends the item.
fn item_length(code: &str) -> usize {
    let mut nesting = 0;
    for (i, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => nesting += 1,
            '}' | ')' | ']' => nesting -= 1,
            _ => {}
        }
        if nesting == 0 && matches!(c, ';' | '}') {
            return i + 1;
        }
    }
    code.len()
}

/// The modules in files of their own that a file declares behind `#[cfg(test)]`: their paths without extension.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let code = blanked(text, true);
    let dir = if path.ends_with("mod.rs") { path.parent().unwrap().to_path_buf() } else { path.with_extension("") };
    let name = |part: Range<usize>| {
        let (_, name) = code[part].strip_suffix(';')?.rsplit_once("mod ")?;
        Some(dir.join(name.trim()))
    };
    test_parts(&code).into_iter().filter_map(name).collect()
}

fn blank(text: &str) -> String {
    text.chars().flat_map(|c| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8())).collect()
}

/// The text with its comments blanked, and its strings too on demand; every byte stays in its place.
fn blanked(text: &str, strings: bool) -> String {
    let mut out = String::with_capacity(text.len());
    while out.len() < text.len() {
        let rest = &text[out.len()..];
        let (length, gone) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), true)
        } else if rest.starts_with("/*") {
            (comment_length(rest), true)
        } else if let Some(length) = literal_length(rest, &out) {
            (length, strings)
        } else {
            (rest.chars().next().map_or(0, char::len_utf8), false)
        };
        if gone { out.push_str(&blank(&rest[..length])) } else { out.push_str(&rest[..length]) }
    }
    out
}

/// Block comments nest.
fn comment_length(text: &str) -> usize {
    let (mut at, mut nesting) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (at, nesting) = (at + 2, nesting + 1),
            [b'*', b'/', ..] => (at, nesting) = (at + 2, nesting - 1),
            _ => at += 1,
        }
        if nesting == 0 {
            return at;
        }
    }
    text.len()
}

/// Of the string or character that `text` begins with; `before` tells the `r` of a raw string from the end of a name.
fn literal_length(text: &str, before: &str) -> Option<usize> {
    let in_name = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if let Some(raw) = text.strip_prefix('r').filter(|_| !in_name || before.ends_with(['b', 'c'])) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if let Some(inside) = raw[hashes..].strip_prefix('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            return Some(hashes + 2 + inside.find(&end).map_or(inside.len(), |at| at + end.len()));
        }
    }
    let quote = text.chars().next().filter(|c| ['"', '\''].contains(c))?;
    let mut chars = text.char_indices().skip(1);
    // A lifetime has no second quote after its first letter.
    if quote == '\'' && !text.starts_with("'\\") && text.chars().nth(2) != Some('\'') {
        return None;
    }
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return Some(at + 1);
        }
    }
    Some(text.len())
}
