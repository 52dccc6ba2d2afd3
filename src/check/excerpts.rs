//! The texts of the listed rows: none was kept, so the files are read once more.

use super::findings::{Finding, Name, Place, listed_names, short};
use super::text;
use crate::data::{Example, ReadOptions, Reader, Tokenizer};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Reads the listed rows again for their texts, and for the words behind unknown tokens or the damaged piece. A file that
/// cannot be read again leaves examples without text.
pub fn excerpts(findings: &mut [Finding], options: &ReadOptions, tokenizer: &Tokenizer) {
    let mut wanted: HashMap<PathBuf, HashMap<u64, Option<Example>>> = HashMap::new();
    for listed in findings.iter().flat_map(|f| &f.examples) {
        for place in [Some(&listed.at), listed.other.as_ref()].into_iter().flatten() {
            wanted.entry(place.file.clone()).or_default().insert(place.line, None);
        }
    }
    for (file, lines) in &mut wanted {
        read_lines(file, options, lines);
    }
    let row = |place: &Place| wanted.get(&place.file)?.get(&place.line)?.as_ref();
    for finding in findings {
        for listed in &mut finding.examples {
            let Some(example) = row(&listed.at) else { continue };
            listed.texts = excerpt(example);
            if listed.similarity.is_some() {
                listed.other_texts = listed.other.as_ref().and_then(row).map(excerpt).unwrap_or_default();
            }
            let texts = || std::iter::once(example.text.as_str()).chain(example.text_pair.as_deref());
            match finding.name {
                Name::UnknownTokens => {
                    let words: Vec<String> = texts().flat_map(|t| tokenizer.unknown_words(t)).collect();
                    listed.detail =
                        Some(format!("{} unknown: {}", words.len(), listed_names(words.iter().map(String::as_str))));
                }
                Name::Mojibake => listed.detail = texts().find_map(text::mojibake).map(|t| format!("{t:?}")),
                Name::Html => listed.detail = texts().find_map(text::html).map(short),
                Name::BadLabels => listed.detail = example.label.as_deref().map(|l| format!("{:?}", short(l))),
                _ => {}
            }
        }
    }
}

fn read_lines(file: &Path, options: &ReadOptions, lines: &mut HashMap<u64, Option<Example>>) {
    let last = lines.keys().copied().max().unwrap_or(0);
    let Ok(reader) = Reader::open(file, options) else { return };
    for example in reader.map_while(Result::ok).take_while(|e| e.line <= last) {
        if let Some(slot) = lines.get_mut(&example.line) {
            *slot = Some(example);
        }
    }
}

/// The beginnings of a row's texts, each in one line.
fn excerpt(example: &Example) -> Vec<String> {
    let cut = |text: &str| {
        let mut chars = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
        let head: String = chars.by_ref().take(120).collect();
        if chars.next().is_some() { head + "…" } else { head }
    };
    std::iter::once(example.text.as_str()).chain(example.text_pair.as_deref()).map(cut).collect()
}
