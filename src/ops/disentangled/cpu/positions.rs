//! How distances find their positions, and how the products with positions are spread over scores.

use crate::ops::attention::tiles::Matrix;
use std::ops::Range;

/// How distances find their positions.
pub struct Index<'a> {
    /// By `query − key`, the position.
    pub(super) queries: &'a [u32],
    /// By `key − query`, the position counted from the last.
    pub(super) keys: Vec<u32>,
    /// Distances up to this one have positions side by side.
    pub(super) exact: usize,
    /// How many positions there are.
    pub(super) count: usize,
    /// Tokens of the batch that the queries are; all of them without.
    pub(super) rows: Option<&'a [u32]>,
}

impl<'a> Index<'a> {
    pub fn new(distances: &'a [u32], count: usize, rows: Option<&'a [u32]>) -> Self {
        let keys = distances.iter().rev().map(|&p| count as u32 - 1 - p).collect();
        let reach = distances.len() / 2;
        let one_more = |x: usize| distances[x + 1] == distances[x] + 1;
        let exact = (0..reach).find(|&t| !one_more(reach + t) || !one_more(reach - t - 1)).unwrap_or(reach);
        Self { queries: distances, keys, exact, count, rows }
    }

    pub(super) fn reach(&self) -> usize {
        self.queries.len() / 2
    }
}

/// The positions of one head as they are met from one side, or the gradient of these products.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    /// `[count, head_dim]`
    pub(super) rows: Matrix,
    /// The same transposed, with room behind the last column.
    pub(super) columns: Matrix,
    /// The column of each distance, that of 0 in the middle.
    pub(super) at: &'a [u32],
    pub(super) exact: usize,
}

impl Side<'_> {
    /// The columns of the distances `first` to `last`, both counted from the lowest of all.
    pub(super) fn span(&self, first: usize, last: usize) -> Range<usize> {
        self.at[first] as usize..self.at[last] as usize + 1
    }

    fn is_exact(&self, first: usize, len: usize) -> bool {
        let middle = self.at.len() / 2;
        first + self.exact >= middle && first + len <= middle + self.exact + 1
    }

    /// Adds to `to` the products of the distances from `first` on; `from` begins with column `lo`.
    #[inline(always)]
    pub(super) fn spread(&self, to: &mut [f32], from: &[f32], first: usize, lo: usize) {
        let at = &self.at[first..first + to.len()];
        if self.is_exact(first, to.len()) {
            let from = &from[at[0] as usize - lo..][..to.len()];
            to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        } else {
            to.iter_mut().zip(at).for_each(|(t, &at)| *t += from[at as usize - lo]);
        }
    }

    /// The transpose of [`Self::spread`].
    #[inline(always)]
    pub(super) fn collect(&self, to: &mut [f32], from: &[f32], first: usize, lo: usize) {
        let at = &self.at[first..first + from.len()];
        if self.is_exact(first, from.len()) {
            let to = &mut to[at[0] as usize - lo..][..from.len()];
            to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        } else {
            from.iter().zip(at).for_each(|(f, &at)| to[at as usize - lo] += f);
        }
    }
}

/// Both sides, as far as there are such.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a> {
    /// Queries of positions, which keys meet.
    pub(super) queries: Option<Side<'a>>,
    /// Keys of positions, which queries meet; the last position is the first row.
    pub(super) keys: Option<Side<'a>>,
}
