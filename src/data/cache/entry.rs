//! What a file of the cache is like: a header, and groups of sections, each group with its SHA-256. What is small is the last
//! group, as JSON.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::Mmap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::data::labels::Labels;
use crate::data::load::Loaded;
use crate::data::places::{Places, names_of};
use crate::data::reader::Skipped;
use crate::data::tokens::{Array, Arrays, Ids, Sha, Tokens, digest};

const MAGIC: &[u8; 8] = b"bertftok";
/// Sections begin at multiples of this, as their numbers need it.
pub(super) const ALIGN: usize = 64;

/// What can be kept between runs.
pub trait Kept: Sized {
    /// All of it.
    ///
    /// # Errors
    /// What cannot be written as JSON.
    fn groups(&self) -> io::Result<Vec<Group<'_>>>;

    /// The same from a file, for data files that are now called these; `None` if it is another's.
    fn restore(mapped: &Mapped, files: &[PathBuf]) -> Option<Self>;
}

/// Sections that have one SHA-256.
pub struct Group<'a> {
    sections: Vec<Cow<'a, [u8]>>,
    digest: Sha,
}

impl<'a> Group<'a> {
    pub fn new(sections: Vec<Cow<'a, [u8]>>) -> Self {
        let digest = digest(&sections.iter().map(|section| &**section).collect::<Vec<&[u8]>>());
        Self { sections, digest }
    }

    /// Numbers that are in memory.
    pub fn of<const N: usize>(sections: [&'a [u8]; N]) -> Self {
        Self::new(sections.map(Cow::Borrowed).into())
    }

    /// Of tokens that are no subset of others.
    pub fn tokens(tokens: &'a Tokens) -> Self {
        let sections = tokens.arrays().sections().map(Cow::Borrowed).into();
        Self { sections, digest: tokens.digest() }
    }

    /// The same of tokens that are dropped.
    pub fn owned_tokens(tokens: &Tokens) -> Self {
        Self {
            sections: tokens.arrays().sections().map(|section| Cow::Owned(section.to_vec())).into(),
            digest: tokens.digest(),
        }
    }

    /// What is small.
    ///
    /// # Errors
    /// What cannot be written as JSON.
    pub fn json(value: &impl Serialize) -> io::Result<Self> {
        Ok(Self::new(vec![serde_json::to_vec(value)?.into()]))
    }
}

/// What stands before the sections.
#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    little_endian: bool,
    /// Bytes of the sections of each group, and its SHA-256.
    groups: Vec<(Vec<u64>, Sha)>,
}

/// Writes a file.
pub(super) fn write_entry(to: &mut dyn Write, key: &str, groups: &[Group<'_>]) -> io::Result<()> {
    let lengths = |group: &Group| group.sections.iter().map(|section| section.len() as u64).collect();
    let header = serde_json::to_vec(&Header {
        key: key.into(),
        little_endian: cfg!(target_endian = "little"),
        groups: groups.iter().map(|group| (lengths(group), group.digest)).collect(),
    })?;
    to.write_all(MAGIC)?;
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    let mut at = MAGIC.len() + 8;
    let sections = groups.iter().flat_map(|group| group.sections.iter().map(|section| &**section));
    for part in std::iter::once(&header[..]).chain(sections) {
        to.write_all(part)?;
        at += part.len();
        let padding = at.next_multiple_of(ALIGN) - at;
        to.write_all(&[0; ALIGN][..padding])?;
        at += padding;
    }
    Ok(())
}

/// A file, mapped, that is whole.
pub struct Mapped {
    map: Arc<Mmap>,
    groups: Vec<(Vec<Range<usize>>, Sha)>,
}

impl Mapped {
    /// `None` if it is not whole, or another's.
    pub(super) fn parse(map: Arc<Mmap>, key: &str) -> Option<Self> {
        let start = MAGIC.len() + 8;
        let length = map.get(..start)?.strip_prefix(MAGIC)?;
        let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let end = start.checked_add(length)?;
        let header: Header = serde_json::from_slice(map.get(start..end)?).ok()?;
        if header.key != key || header.little_endian != cfg!(target_endian = "little") {
            return None;
        }
        let (mut at, mut groups) = (end.checked_next_multiple_of(ALIGN)?, vec![]);
        for (lengths, sha) in header.groups {
            let mut ranges = vec![];
            for length in lengths {
                let end = at.checked_add(usize::try_from(length).ok()?)?;
                map.get(at..end)?;
                ranges.push(at..end);
                at = end.checked_next_multiple_of(ALIGN)?;
            }
            let sections: Vec<&[u8]> = ranges.iter().map(|range| &map[range.clone()]).collect();
            if digest(&sections) != sha {
                return None;
            }
            groups.push((ranges, sha));
        }
        (map.len() == at).then_some(Self { map, groups })
    }

    fn range(&self, group: usize, section: usize) -> Option<Range<usize>> {
        self.groups.get(group)?.0.get(section).cloned()
    }

    /// A section as numbers.
    pub(in crate::data) fn array<T: Pod>(&self, group: usize, section: usize) -> Option<Array<T>> {
        Array::mapped(&self.map, self.range(group, section)?)
    }

    /// A group of [`Group::tokens`].
    pub fn tokens(&self, group: usize) -> Option<Tokens> {
        let offsets: Array<u64> = self.array(group, 2)?;
        let (ids, bytes) = (offsets.last().copied().unwrap_or(0), self.range(group, 0)?.len() as u64);
        let arrays = Arrays {
            ids: match bytes {
                bytes if bytes == ids.checked_mul(2)? => Ids::Narrow(self.array(group, 0)?),
                _ => Ids::Wide(self.array(group, 0)?),
            },
            type_ids: self.array(group, 1)?,
            offsets,
            truncated: self.array(group, 3)?,
            seen: self.array(group, 4)?,
        };
        arrays.fit().then(|| Tokens::new(arrays, self.groups[group].1))
    }

    /// A group of [`Group::json`].
    pub fn json<T: DeserializeOwned>(&self, group: usize) -> Option<T> {
        serde_json::from_slice(&self.map[self.range(group, 0)?]).ok()
    }
}

/// Names of files as messages had them when an entry was made; their contents may have moved.
#[derive(Serialize, Deserialize)]
pub struct Names(Vec<String>);

impl Names {
    pub fn of(files: &[PathBuf]) -> Self {
        Self(files.iter().map(|file| file.display().to_string()).collect())
    }

    /// Calls the files of skipped rows what they are called now.
    pub fn rename(&self, skipped: &mut Skipped, files: &[PathBuf]) {
        for row in &mut skipped.first {
            let index = self.0.iter().position(|name| *name == row.file);
            if let Some(now) = index.and_then(|i| files.get(i)) {
                row.file = now.display().to_string();
            }
        }
    }
}

/// What is small of rows.
#[derive(Serialize, Deserialize)]
struct Rest {
    files: Names,
    /// As [`Places`] has them.
    ends: Vec<u64>,
    labels: Vec<String>,
    slices: Option<Vec<String>>,
    skipped: Skipped,
    unused_renames: Vec<String>,
}

impl Kept for Loaded {
    fn groups(&self) -> io::Result<Vec<Group<'_>>> {
        let rest = Rest {
            files: Names::of(&self.places.files),
            ends: self.places.ends.clone(),
            labels: self.labels.names.clone(),
            slices: self.slices.as_ref().map(|s| s.names.clone()),
            skipped: self.skipped.clone(),
            unused_renames: self.unused_renames.clone(),
        };
        let slices = self.slices.as_ref().map_or(&[][..], |s| &s.codes);
        let columns = [
            bytemuck::cast_slice(&self.places.lines),
            bytemuck::cast_slice(&self.labels.codes),
            bytemuck::cast_slice(slices),
        ];
        Ok(vec![Group::tokens(&self.tokens), Group::of(columns), Group::json(&rest)?])
    }

    fn restore(mapped: &Mapped, files: &[PathBuf]) -> Option<Self> {
        let mut rest: Rest = mapped.json(2)?;
        let names = names_of(files);
        rest.files.rename(&mut rest.skipped, &names);
        let column = |names: Vec<String>, section: usize| Some(Labels { names, codes: mapped.array(1, section)? });
        let loaded = Self {
            tokens: mapped.tokens(0)?,
            places: Places { files: names, ends: rest.ends, lines: mapped.array(1, 0)? },
            labels: column(rest.labels, 1)?,
            slices: match rest.slices {
                Some(names) => Some(column(names, 2)?),
                None => None,
            },
            skipped: rest.skipped,
            unused_renames: rest.unused_renames,
        };
        let rows = loaded.places.len();
        let fits = |c: &Labels| c.codes.len() == rows && c.codes.iter().all(|&code| (code as usize) < c.names.len());
        let fit = loaded.tokens.len() == rows
            && loaded.places.fit()
            && fits(&loaded.labels)
            && loaded.slices.as_ref().is_none_or(fits);
        fit.then_some(loaded)
    }
}
