//! Tokenised questions as an entry of the cache.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::load::{Encoded, Loaded};
use super::rows::{Asked, Context};
use crate::data::Tokens;
use crate::data::cache::entry::{Group, Kept, Mapped, Names};
use crate::data::places::names_of;
use crate::data::reader::Skipped;
use crate::data::reader::questions::Repaired;
use crate::data::tokens::Array;

/// What is small.
#[derive(Serialize, Deserialize)]
struct Rest {
    files: Names,
    max_length: usize,
    skipped: Skipped,
    repaired: Repaired,
}

/// For a question without answer.
const NONE: [u64; 2] = [u64::MAX; 2];

impl Kept for Loaded {
    fn groups(&self) -> io::Result<Vec<Group<'_>>> {
        let (asked, contexts) = (&self.questions.asked, &self.questions.contexts);
        let answer = |of: &Encoded| of.answer.map_or(NONE, |(start, end)| [start as u64, end as u64]);
        let rest = Rest {
            files: Names::of(&self.files),
            max_length: self.max_length,
            skipped: self.skipped.clone(),
            repaired: self.repaired.clone(),
        };
        let offsets = contexts.iter().flat_map(|context| context.offsets.iter().flat_map(|&(from, to)| [from, to]));
        let offsets: Vec<u32> = offsets.collect();
        let [ids, answers, texts] = [
            Strings::new(asked.iter().map(|asked| asked.id.as_str())),
            Strings::new(asked.iter().flat_map(|asked| asked.answers.iter().map(String::as_str))),
            Strings::new(contexts.iter().map(|context| &*context.text)),
        ];
        let mut sections = vec![
            bytes(self.asked.iter().map(|of| of.line)),
            bytes(self.asked.iter().flat_map(answer)),
            bytes(asked.iter().map(|asked| u64::from(asked.context))),
            bytes(asked.iter().map(|asked| asked.answers.len() as u64)),
            Cow::Owned(bytemuck::cast_slice(&offsets).to_vec()),
        ];
        for Strings { text, ends } in [ids, answers, texts] {
            sections.extend([Cow::Owned(text.into_bytes()), bytes(ends.into_iter())]);
        }
        let tokens = |rows: &mut dyn Iterator<Item = &Vec<u32>>| {
            Group::owned_tokens(&Tokens::from_rows(rows.map(|ids| (ids, vec![0; ids.len()], false))))
        };
        Ok(vec![
            tokens(&mut self.asked.iter().map(|of| &of.ids)),
            tokens(&mut self.contexts.iter()),
            Group::new(sections),
            Group::json(&rest)?,
        ])
    }

    fn restore(mapped: &Mapped, files: &[PathBuf]) -> Option<Self> {
        let mut rest: Rest = mapped.json(3)?;
        let names = names_of(files);
        rest.files.rename(&mut rest.skipped, &names);
        let (questions, contexts) = (mapped.tokens(0)?, mapped.tokens(1)?);
        let numbers = |section: usize| mapped.array::<u64>(2, section);
        let (lines, places, of_context, counts) = (numbers(0)?, numbers(1)?, numbers(2)?, numbers(3)?);
        let offsets: Array<u32> = mapped.array(2, 4)?;
        let strings = |section: usize| Strings::read(mapped.array(2, section)?, &numbers(section + 1)?);
        let (ids, answers, texts) = (strings(5)?, strings(7)?, strings(9)?);
        let fit = [lines.len(), of_context.len(), counts.len(), ids.len()].iter().all(|&n| n == questions.len())
            && places.len() == 2 * questions.len()
            && texts.len() == contexts.len()
            && offsets.len() == 2 * contexts.total()
            && of_context.iter().all(|&context| context < texts.len() as u64)
            && counts.iter().try_fold(0u64, |sum, &n| sum.checked_add(n)) == Some(answers.len() as u64);
        if !fit {
            return None;
        }
        let mut loaded = Self::new(rest.max_length);
        let (mut answers, mut pairs) = (answers.into_iter(), offsets.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        for (i, id) in ids.into_iter().enumerate() {
            let answer = match [places[2 * i], places[2 * i + 1]] {
                NONE => None,
                [start, end] => Some((usize::try_from(start).ok()?, usize::try_from(end).ok()?)),
            };
            loaded.asked.push(Encoded { ids: questions.row(i), answer, line: lines[i] });
            let answers = answers.by_ref().take(counts[i] as usize).collect();
            loaded.questions.asked.push(Asked { id, context: of_context[i] as u32, answers });
        }
        for (i, text) in texts.into_iter().enumerate() {
            let text: Arc<str> = text.into();
            loaded.index.insert(Arc::clone(&text), i as u32);
            let offsets = pairs.by_ref().take(contexts.len_of(i)).collect();
            loaded.questions.contexts.push(Context { text, offsets });
            loaded.contexts.push(contexts.row(i));
        }
        Some(Self { skipped: rest.skipped, repaired: rest.repaired, cached: true, files: names, ..loaded })
    }
}

/// Numbers as a section.
fn bytes(numbers: impl Iterator<Item = u64>) -> Cow<'static, [u8]> {
    Cow::Owned(bytemuck::cast_slice(&numbers.collect::<Vec<u64>>()).to_vec())
}

/// Texts end to end.
struct Strings {
    text: String,
    ends: Vec<u64>,
}

impl Strings {
    fn new<'a>(all: impl Iterator<Item = &'a str>) -> Self {
        let mut this = Self { text: String::new(), ends: vec![] };
        for one in all {
            this.text += one;
            this.ends.push(this.text.len() as u64);
        }
        this
    }

    fn read(bytes: Array<u8>, ends: &[u64]) -> Option<Vec<String>> {
        let text = std::str::from_utf8(&bytes).ok()?;
        let mut from = 0;
        let next = |&end: &u64| {
            let end = usize::try_from(end).ok()?;
            text.get(std::mem::replace(&mut from, end)..end).map(str::to_owned)
        };
        let all = ends.iter().map(next).collect::<Option<Vec<_>>>()?;
        (from == text.len()).then_some(all)
    }
}
