//! Token ids of many rows, end to end, in memory or in a mapped file, and which of the rows belong to a split.

use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};

/// SHA-256 of some arrays.
pub type Sha = [u8; 32];

/// Tokenised rows. A clone or a subset shares the ids.
#[derive(Clone)]
pub struct Tokens {
    arrays: Arc<Arrays>,
    /// The rows of `arrays` that these are; all of them when `None`.
    rows: Option<Arc<[usize]>>,
    digest: Arc<OnceLock<Sha>>,
    /// Whether they were made of what the cache had.
    made_from_cache: bool,
}

/// What [`Tokens`] share. Row `i` is `offsets[i]..offsets[i + 1]` of `ids` and, unless all type ids are 0, of `type_ids`.
#[derive(Default)]
pub(super) struct Arrays {
    pub ids: Ids,
    /// 0 for the first text and its special tokens, 1 for the second; empty when all are 0.
    pub type_ids: Array<u8>,
    /// rows + 1, or empty like `Default`.
    pub offsets: Array<u64>,
    /// 1 for a row that did not fit in the maximum length.
    pub truncated: Array<u8>,
    pub seen: Array<u64>,
}

/// Two bytes an id as long as that is enough.
pub(super) enum Ids {
    Narrow(Array<u16>),
    Wide(Array<u32>),
}

/// Numbers in memory or in a mapped file.
pub(super) enum Array<T> {
    Owned(Vec<T>),
    Mapped(Arc<Mmap>, Range<usize>, PhantomData<T>),
}

/// Encoded rows on their way into [`Tokens`].
#[derive(Default)]
pub(super) struct Piece {
    pub ids: Vec<u32>,
    pub type_ids: Vec<u8>,
    /// Where each row ends in `ids` and `type_ids`.
    pub ends: Vec<usize>,
    pub truncated: Vec<u8>,
}

impl Piece {
    pub fn len(&self) -> usize {
        self.ends.len()
    }
}

/// The ids that occur, one bit each. Ids from `MOST_SEEN` on are no model's and counted as one.
#[derive(Default)]
pub(super) struct Seen(Vec<u64>);

const MOST_SEEN: u32 = 1 << 22;

impl Seen {
    pub fn add(&mut self, ids: &[u32]) {
        let most = ids.iter().max().map_or(0, |&m| m.min(MOST_SEEN) as usize / 64 + 1);
        self.0.resize(self.0.len().max(most), 0);
        for &id in ids {
            let id = id.min(MOST_SEEN);
            self.0[id as usize / 64] |= 1 << (id % 64);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }
}

impl Arrays {
    /// Makes room for about so many rows and ids in all, so that growing does not copy what is there.
    pub fn reserve(&mut self, rows: usize, ids: usize) {
        match &mut self.ids {
            Ids::Narrow(v) => v.reserve(ids),
            Ids::Wide(v) => v.reserve(ids),
        }
        self.offsets.reserve(rows + 1);
        self.truncated.reserve(rows);
    }

    /// Appends rows; what they hold must be added to `seen` too, see [`Self::finish`].
    pub fn append(&mut self, piece: &Piece) {
        let before = self.ids.len();
        self.ids.extend(&piece.ids);
        let types = self.type_ids.owned();
        if !types.is_empty() || piece.type_ids.iter().any(|&t| t != 0) {
            types.resize(before, 0);
            types.extend(&piece.type_ids);
        }
        let offsets = self.offsets.owned();
        if offsets.is_empty() {
            offsets.push(0);
        }
        offsets.extend(piece.ends.iter().map(|end| (before + end) as u64));
        self.truncated.owned().extend(&piece.truncated);
    }

    pub fn finish(mut self, seen: Seen) -> Tokens {
        self.seen = Array::Owned(seen.0);
        Tokens { arrays: Arc::new(self), rows: None, digest: Arc::default(), made_from_cache: false }
    }

    fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// In the order in which they are written and digested.
    pub fn sections(&self) -> [&[u8]; 5] {
        let ids = match &self.ids {
            Ids::Narrow(v) => bytemuck::cast_slice(v),
            Ids::Wide(v) => bytemuck::cast_slice(v),
        };
        [ids, &self.type_ids, bytemuck::cast_slice(&self.offsets), &self.truncated, bytemuck::cast_slice(&self.seen)]
    }

    /// Whether the arrays fit each other, so that no row reaches out of them.
    pub fn fit(&self) -> bool {
        let ids = self.ids.len();
        let types = self.type_ids.len();
        self.truncated.len() == self.len()
            && (types == 0 || types == ids)
            && self.offsets.first().is_none_or(|&first| first == 0)
            && self.offsets.windows(2).all(|w| w[0] <= w[1])
            && self.offsets.last().is_none_or(|&last| last == ids as u64)
    }
}

impl Tokens {
    /// Arrays of a finished file, with their digest if it is known.
    pub(super) fn new(arrays: Arrays, digest: Sha) -> Self {
        let digest = Arc::new(OnceLock::from(digest));
        Self { arrays: Arc::new(arrays), rows: None, digest, made_from_cache: true }
    }

    /// Rows of (ids, type ids, truncated); ids and type ids are of one length.
    pub fn from_rows<I: AsRef<[u32]>, T: AsRef<[u8]>>(rows: impl IntoIterator<Item = (I, T, bool)>) -> Self {
        let (mut arrays, mut seen, mut piece) = (Arrays::default(), Seen::default(), Piece::default());
        for (ids, type_ids, truncated) in rows {
            piece.ids.extend(ids.as_ref());
            piece.type_ids.extend(type_ids.as_ref());
            piece.ends.push(piece.ids.len());
            piece.truncated.push(truncated.into());
        }
        seen.add(&piece.ids);
        arrays.append(&piece);
        arrays.finish(seen)
    }

    /// The rows of all parts, in order.
    pub fn concat(parts: Vec<Self>) -> Self {
        let rows = parts.iter().flat_map(|part| (0..part.len()).map(move |row| (part, row)));
        Self::from_rows(rows.map(|(part, row)| (part.row(row), part.type_ids_of(row), part.is_truncated(row))))
    }

    pub(super) fn arrays(&self) -> &Arrays {
        &self.arrays
    }

    /// Whether they lie in a file of the cache, or were made of what does.
    pub fn cached(&self) -> bool {
        self.made_from_cache
    }

    /// Says whether they were made of what the cache had.
    pub(super) fn made_from_cache(self, is: bool) -> Self {
        Self { made_from_cache: is, ..self }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or_else(|| self.arrays.len(), |rows| rows.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the ids of row `i < len()` are.
    fn range(&self, i: usize) -> Range<usize> {
        let i = self.rows.as_ref().map_or(i, |rows| rows[i]);
        self.arrays.offsets[i] as usize..self.arrays.offsets[i + 1] as usize
    }

    /// Token ids of row `i < len()`.
    pub fn row(&self, i: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.len_of(i));
        self.copy_row(i, &mut ids);
        ids
    }

    /// Appends the token ids of row `i < len()`.
    pub fn copy_row(&self, i: usize, to: &mut Vec<u32>) {
        match &self.arrays.ids {
            Ids::Narrow(ids) => to.extend(ids[self.range(i)].iter().map(|&id| u32::from(id))),
            Ids::Wide(ids) => to.extend(&ids[self.range(i)]),
        }
    }

    /// Type ids of row `i < len()`.
    pub fn type_ids_of(&self, i: usize) -> Vec<u8> {
        let types = &self.arrays.type_ids;
        if types.is_empty() { vec![0; self.len_of(i)] } else { types[self.range(i)].to_vec() }
    }

    /// Tokens of row `i < len()`.
    pub fn len_of(&self, i: usize) -> usize {
        self.range(i).len()
    }

    /// Tokens of every row.
    pub fn lengths(&self) -> Vec<usize> {
        (0..self.len()).map(|i| self.len_of(i)).collect()
    }

    /// Tokens of all rows.
    pub fn total(&self) -> usize {
        match &self.rows {
            None => self.arrays.ids.len(),
            Some(rows) => (0..rows.len()).map(|i| self.len_of(i)).sum(),
        }
    }

    /// Whether row `i < len()` did not fit in the maximum length.
    pub fn is_truncated(&self, i: usize) -> bool {
        self.arrays.truncated[self.rows.as_ref().map_or(i, |rows| rows[i])] != 0
    }

    /// How many rows did not fit in the maximum length.
    pub fn truncated(&self) -> usize {
        (0..self.len()).filter(|&i| self.is_truncated(i)).count()
    }

    /// Each id that occurs once, ascending; those of a whole file for a subset of it.
    pub fn distinct(&self) -> Vec<u32> {
        let bits = |(i, word): (usize, &u64)| {
            let word = *word;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| (i * 64 + bit) as u32)
        };
        self.arrays.seen.iter().enumerate().flat_map(bits).collect()
    }

    /// These rows (each `< len()`) in this order.
    pub fn subset(&self, rows: &[usize]) -> Self {
        let rows = match &self.rows {
            Some(own) => rows.iter().map(|&r| own[r]).collect(),
            None => rows.into(),
        };
        Self { rows: Some(rows), ..self.clone() }
    }

    /// SHA-256 that tells rows of other tokens or in another order apart. Reads all ids unless they come from the cache.
    pub fn digest(&self) -> Sha {
        let whole = self.digest.get_or_init(|| digest(&self.arrays.sections()));
        let Some(rows) = &self.rows else { return *whole };
        let mut hash = Sha256::new_with_prefix(whole);
        rows.iter().for_each(|&r| hash.update((r as u64).to_le_bytes()));
        hash.finalize().into()
    }

    /// Checks that the ids are rows of the model's embedding tables.
    ///
    /// # Errors
    /// When tokenizer and model do not belong together.
    pub fn check_ids(&self, vocab_size: usize, type_vocab_size: usize) -> Result<()> {
        let check = |kind: &str, max: Option<usize>, size: usize, key: &str| match max {
            Some(max) if max >= size => Err(Error::input(format!(
                "tokenizer.json gives {kind} id {max}, but the model knows only {size} (config.json: {key}); the two do \
                 not belong together"
            ))),
            _ => Ok(()),
        };
        let seen = &self.arrays.seen;
        let word = seen.iter().rposition(|&w| w != 0);
        let largest = word.map(|i| i * 64 + 63 - seen[i].leading_zeros() as usize);
        check("token", largest, vocab_size, "vocab_size")?;
        let types = &self.arrays.type_ids;
        let most = types.par_chunks(1 << 16).map(|t| t.iter().max().copied().unwrap_or(0)).max();
        check("type", Some(most.unwrap_or(0).into()), type_vocab_size, "type_vocab_size")
    }
}

/// SHA-256 of the lengths of some arrays and of the SHA-256 of each MiB of theirs, computed on all threads.
pub(super) fn digest(sections: &[&[u8]]) -> Sha {
    let mut hash = Sha256::new();
    for section in sections {
        let blocks: Vec<Sha> = section.par_chunks(1 << 20).map(|block| Sha256::digest(block).into()).collect();
        hash.update((section.len() as u64).to_le_bytes());
        blocks.iter().for_each(|block| hash.update(block));
    }
    hash.finalize().into()
}

impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        let same = |i| {
            self.row(i) == other.row(i)
                && self.type_ids_of(i) == other.type_ids_of(i)
                && self.is_truncated(i) == other.is_truncated(i)
        };
        self.len() == other.len() && (0..self.len()).all(same)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries((0..self.len()).map(|i| (self.row(i), self.type_ids_of(i), self.is_truncated(i))))
            .finish()
    }
}

impl Ids {
    pub fn len(&self) -> usize {
        match self {
            Self::Narrow(v) => v.len(),
            Self::Wide(v) => v.len(),
        }
    }

    fn extend(&mut self, ids: &[u32]) {
        if let Self::Narrow(narrow) = self {
            if ids.iter().max().is_none_or(|&m| m <= u32::from(u16::MAX)) {
                return narrow.owned().extend(ids.iter().map(|&id| id as u16));
            }
            *self = Self::Wide(Array::Owned(narrow.iter().map(|&id| id.into()).collect()));
        }
        if let Self::Wide(wide) = self {
            wide.owned().extend(ids);
        }
    }
}

impl Default for Ids {
    fn default() -> Self {
        Self::Narrow(Array::default())
    }
}

impl<T> Default for Array<T> {
    fn default() -> Self {
        Self::Owned(vec![])
    }
}

impl<T: bytemuck::Pod> Array<T> {
    /// Bytes of a file as numbers; `None` when there are not that many bytes, or they do not begin or end where numbers
    /// do.
    pub fn mapped(map: &Arc<Mmap>, bytes: Range<usize>) -> Option<Self> {
        bytemuck::try_cast_slice::<u8, T>(map.get(bytes.clone())?).ok()?;
        Some(Self::Mapped(map.clone(), bytes, PhantomData))
    }

    /// Room for `total` numbers, if there is: growing later costs time only.
    pub fn reserve(&mut self, total: usize) {
        let owned = self.owned();
        let _ = owned.try_reserve_exact(total.saturating_sub(owned.len()));
    }

    /// The vector to append to; a copy of what was mapped.
    pub fn owned(&mut self) -> &mut Vec<T> {
        if let Self::Mapped(..) = self {
            *self = Self::Owned(self.to_vec());
        }
        match self {
            Self::Owned(v) => v,
            Self::Mapped(..) => unreachable!("was replaced above"),
        }
    }
}

impl<T: bytemuck::Pod> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(v) => v,
            // `mapped` tried the cast.
            Self::Mapped(map, bytes, _) => bytemuck::cast_slice(&map[bytes.clone()]),
        }
    }
}
