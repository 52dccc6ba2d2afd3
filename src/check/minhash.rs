//! Near duplicates among many rows: MinHash signatures, locality-sensitive hashing by bands, and the exact Jaccard
//! similarity of every pair that meets in a band (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
//! chapter 3). Nothing is random: the same rows give the same pairs on any machine and number of threads.

use crate::rng::splitmix;
use rayon::prelude::*;

/// Values of a signature.
const HASHES: usize = 256;
/// The share of pairs at exactly the threshold that must meet in a band; more similar ones meet more surely.
const LEAST_RECALL: f64 = 0.995;
/// Rows of a bucket up to which every pair is compared. In a larger one, each row is compared with so many of the rows
/// before it in each split, one a cluster.
const MOST_COMPARED: usize = 32;

/// The set of what a row is compared by: each word and each two neighbouring words as a hash, ascending, each once. `ids` are
/// the row's tokens, `type_ids` tell the texts of a pair apart, and the tokens in `special` only separate.
pub fn shingles(ids: &[u32], type_ids: &[u8], special: &[u32]) -> Vec<u32> {
    let mut set = Vec::with_capacity(2 * ids.len());
    let mut before = None;
    for (&id, &text) in ids.iter().zip(type_ids) {
        if special.contains(&id) {
            before = None;
            continue;
        }
        let word = splitmix(u64::from(id) << 1 | u64::from(text & 1));
        set.push(word as u32);
        if let Some(before) = before.replace(word) {
            set.push(splitmix(before ^ word.rotate_left(1)) as u32);
        }
    }
    set.sort_unstable();
    set.dedup();
    set
}

/// |a ∩ b| / |a ∪ b| of two ascending lists; 0 for two empty ones.
pub fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        shared += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let union = a.len() + b.len() - shared;
    if union == 0 { 0.0 } else { shared as f64 / union as f64 }
}

/// Makes signatures and cuts them into bands.
pub struct MinHash {
    /// Of the hash functions x → (a·x + b) / 2³².
    factors: [(u64, u64); HASHES],
    band_width: usize,
}

impl MinHash {
    /// For pairs whose similarity is `threshold` (above 0, at most 1) or more: with the widest bands, which the fewest others
    /// meet in, that lose hardly any.
    pub fn new(threshold: f64) -> Self {
        let recall = |width: usize| 1.0 - (1.0 - threshold.powi(width as i32)).powi((HASHES / width) as i32);
        let band_width = (1..=HASHES / 8).rev().find(|&width| recall(width) >= LEAST_RECALL).unwrap_or(1);
        let factors = std::array::from_fn(|i| (splitmix(2 * i as u64) | 1, splitmix(2 * i as u64 + 1)));
        Self { factors, band_width }
    }

    /// The smallest value of each hash function over a set.
    pub fn signature(&self, set: &[u32]) -> [u32; HASHES] {
        let mut least = [u32::MAX; HASHES];
        for &x in set {
            // Multiply-shift hashing wants its input spread over all bits.
            let x = splitmix(u64::from(x));
            for (least, (a, b)) in least.iter_mut().zip(&self.factors) {
                *least = (*least).min((a.wrapping_mul(x).wrapping_add(*b) >> 32) as u32);
            }
        }
        least
    }

    fn bands(&self) -> usize {
        HASHES / self.band_width
    }

    /// A hash of each band of a set's signature.
    fn band_keys(&self, set: &[u32]) -> impl Iterator<Item = u32> {
        let signature = self.signature(set);
        let width = self.band_width;
        (0..self.bands()).map(move |band| {
            let values = &signature[band * width..(band + 1) * width];
            values.iter().fold(band as u64, |key, &v| splitmix(key ^ u64::from(v))) as u32
        })
    }
}

/// Two rows that are alike; `other` comes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    pub row: u32,
    pub other: u32,
    pub similarity: f64,
}

/// What [`near`] finds.
#[derive(Debug, Default, PartialEq)]
pub struct Near {
    /// Pairs within a split that join its rows into clusters, without rings: as many pairs as rows beyond the first of each
    /// cluster.
    pub within: Vec<Edge>,
    /// For each row outside split 0 that is like a row of split 0, one such pair.
    pub leaks: Vec<Edge>,
}

/// Finds rows that are alike by `threshold` or more. Row `i < splits.len()` is of split `splits[i]`, ascending, and has the set
/// `set(i)`; rows with an empty set are like no others. Takes 128 to 1024 bytes a row.
pub fn near(splits: &[u8], set: &(dyn Fn(usize) -> Vec<u32> + Sync), threshold: f64) -> Near {
    let hash = MinHash::new(threshold);
    let rows = splits.len();
    let mut keys = vec![0u32; rows * hash.bands()];
    let empty: Vec<bool> = (keys.par_chunks_mut(hash.bands()).enumerate())
        .map(|(row, keys)| {
            let set = set(row);
            keys.iter_mut().zip(hash.band_keys(&set)).for_each(|(key, k)| *key = k);
            set.is_empty()
        })
        .collect();
    let mut state =
        State { splits, roots: (0..rows as u32).collect(), leaked: vec![false; rows], found: Near::default() };
    for band in 0..hash.bands() {
        let mut order: Vec<(u32, u32)> =
            (0..rows).filter(|&row| !empty[row]).map(|row| (keys[row * hash.bands() + band], row as u32)).collect();
        order.par_sort_unstable();
        let buckets: Vec<&[(u32, u32)]> = order.chunk_by(|a, b| a.0 == b.0).filter(|b| b.len() > 1).collect();
        // What is found in a bucket depends on the earlier bands alone, so that threads do not matter.
        let edges: Vec<Vec<Edge>> = buckets.par_iter().map(|bucket| state.compare(bucket, set, threshold)).collect();
        edges.into_iter().flatten().for_each(|edge| state.add(edge));
    }
    let mut found = state.found;
    for edges in [&mut found.within, &mut found.leaks] {
        edges.sort_by_key(|e| (e.row, e.other));
    }
    found
}

/// What is known so far.
struct State<'a> {
    splits: &'a [u8],
    /// Union-find over the pairs within splits: the parent of each row, which comes before it, or itself.
    roots: Vec<u32>,
    leaked: Vec<bool>,
    found: Near,
}

impl State<'_> {
    fn root(&self, mut row: u32) -> u32 {
        while self.roots[row as usize] != row {
            row = self.roots[row as usize];
        }
        row
    }

    /// Whether it is worth knowing if a row is like one before it.
    fn is_open(&self, row: u32, other: u32) -> bool {
        let (split, other_split) = (self.splits[row as usize], self.splits[other as usize]);
        if split == other_split {
            self.root(row) != self.root(other)
        } else {
            other_split == 0 && !self.leaked[row as usize]
        }
    }

    /// Pairs of a bucket that are alike and open.
    fn compare(&self, bucket: &[(u32, u32)], set: &(dyn Fn(usize) -> Vec<u32> + Sync), threshold: f64) -> Vec<Edge> {
        let all = bucket.len() <= MOST_COMPARED;
        let mut edges = vec![];
        // Rows to compare with, and their sets once needed.
        let mut heads: Vec<(u32, Option<Vec<u32>>)> = vec![];
        let mut counts = [0usize; 256];
        for &(_, row) in bucket {
            let mut own = None;
            let (mut joined, mut leaked) = (false, false);
            for (head, head_set) in &mut heads {
                let within = self.splits[row as usize] == self.splits[*head as usize];
                if (within && joined && !all) || (!within && leaked) {
                    continue;
                }
                if !self.is_open(row, *head) {
                    joined |= within && self.root(row) == self.root(*head);
                    continue;
                }
                let own = own.get_or_insert_with(|| set(row as usize));
                let similarity = jaccard(own, head_set.get_or_insert_with(|| set(*head as usize)));
                if similarity >= threshold {
                    edges.push(Edge { row, other: *head, similarity });
                    if within { joined = true } else { leaked = true }
                }
            }
            let count = &mut counts[self.splits[row as usize] as usize];
            if all || (!joined && *count < MOST_COMPARED) {
                *count += 1;
                heads.push((row, own));
            }
        }
        edges
    }

    /// Takes a pair in, unless an earlier one of the same band said as much.
    fn add(&mut self, edge: Edge) {
        if !self.is_open(edge.row, edge.other) {
            return;
        }
        if self.splits[edge.row as usize] != self.splits[edge.other as usize] {
            self.leaked[edge.row as usize] = true;
            return self.found.leaks.push(edge);
        }
        let (a, b) = (self.root(edge.row), self.root(edge.other));
        let first = a.min(b);
        // Both paths are made short, as every later question walks them.
        for mut row in [edge.row, edge.other] {
            while row != first {
                row = std::mem::replace(&mut self.roots[row as usize], first);
            }
        }
        self.found.within.push(edge);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn shingles_are_words_and_neighbours_of_one_text() {
        // [CLS] a b [SEP] c [SEP]
        let set = shingles(&[101, 7, 8, 102, 9, 102], &[0, 0, 0, 0, 1, 1], &[101, 102]);
        assert_eq!(set.len(), 4);
        assert_ne!(set, shingles(&[101, 8, 7, 102, 9, 102], &[0, 0, 0, 0, 1, 1], &[101, 102]));
        assert_ne!(set, shingles(&[101, 7, 8, 102, 9, 102], &[0; 6], &[101, 102]));
        assert!(shingles(&[101, 102], &[0, 0], &[101, 102]).is_empty());
    }

    #[test]
    fn jaccard_of_known_sets() {
        assert_eq!(jaccard(&[1, 2, 3, 4], &[2, 3, 4, 5]), 0.6);
        assert_eq!((jaccard(&[1], &[]), jaccard(&[], &[]), jaccard(&[5, 9], &[5, 9])), (0.0, 0.0, 1.0));
    }

    #[test]
    fn bands_lose_few_pairs_at_any_threshold() {
        for threshold in [0.05, 0.3, 0.5, 0.6, 0.8, 0.9, 0.95, 1.0] {
            let hash = MinHash::new(threshold);
            assert!(hash.bands() >= 8);
            let recall = 1.0 - (1.0 - threshold.powi(hash.band_width as i32)).powi(hash.bands() as i32);
            assert!(recall > 0.99, "{threshold}: {recall}");
        }
        assert_eq!(MinHash::new(0.8).band_width, 8);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        /// The share of equal values in two signatures has the mean J and the variance J(1 - J) / 256.
        #[test]
        fn signatures_estimate_jaccard(shared in 0u32..80, left in 0u32..80, right in 0u32..80, salt: u32) {
            let hash = |i: u32| splitmix(u64::from(salt) << 32 | u64::from(i)) as u32;
            let make = |own: std::ops::Range<u32>| {
                let set: BTreeSet<u32> = (0..shared).chain(own).map(hash).collect();
                set.into_iter().collect::<Vec<_>>()
            };
            let (a, b) = (make(1000..1000 + left), make(2000..2000 + right));
            let exact = jaccard(&a, &b);
            let minhash = MinHash::new(0.8);
            let equal = minhash.signature(&a).iter().zip(minhash.signature(&b)).filter(|(x, y)| **x == *y).count();
            if !a.is_empty() && !b.is_empty() {
                let deviation = (exact * (1.0 - exact) / HASHES as f64).sqrt();
                prop_assert!((equal as f64 / HASHES as f64 - exact).abs() < 5.0 * deviation + 0.01, "{} of 256, {}", equal, exact);
            }
        }
    }

    /// Rows of pseudo-random words; every tenth is the row before with one word of many changed.
    fn corpus(rows: usize, words: usize) -> Vec<Vec<u32>> {
        let mut all: Vec<Vec<u32>> = vec![];
        for row in 0..rows {
            let mut ids: Vec<u32> = (0..words).map(|i| splitmix((row * words + i) as u64) as u32 % 5000).collect();
            if row % 10 == 9 {
                ids = all[row - 1].clone();
                ids[words / 2] = 9999;
            }
            all.push(ids);
        }
        all
    }

    fn find(texts: &[Vec<u32>], splits: &[u8], threshold: f64) -> Near {
        let set = |row: usize| shingles(&texts[row], &vec![0; texts[row].len()], &[]);
        near(splits, &set, threshold)
    }

    #[test]
    fn planted_pairs_are_found_and_no_others() {
        let texts = corpus(3000, 30);
        let found = find(&texts, &[0; 3000], 0.8);
        let pairs: Vec<(u32, u32)> = found.within.iter().map(|e| (e.row, e.other)).collect();
        assert_eq!(pairs, (0..300).map(|i| (10 * i + 9, 10 * i + 8)).collect::<Vec<_>>());
        // One word of 30 is one word and two neighbours on each side.
        assert!(found.within.iter().all(|e| (e.similarity - 56.0 / 62.0).abs() < 0.02), "{:?}", found.within[0]);
        assert!(found.leaks.is_empty());
        assert_eq!(found, find(&texts, &[0; 3000], 0.8));
    }

    #[test]
    fn rows_of_other_splits_that_are_in_the_first_are_leaks() {
        let mut texts = corpus(100, 30);
        texts.truncate(9);
        let mut copy = texts[4].clone();
        copy[0] = 7777;
        texts.push(copy.clone()); // row 9, split 1: like row 4
        copy[29] = 7778;
        texts.push(copy); // row 10, split 1: like row 9, and like row 4 too
        texts.push(corpus(100, 30)[50].clone()); // row 11
        let mut splits = vec![0; 9];
        splits.extend([1, 1, 1]);
        let found = find(&texts, &splits, 0.8);
        let pairs = |edges: &[Edge]| edges.iter().map(|e| (e.row, e.other)).collect::<Vec<_>>();
        assert_eq!(pairs(&found.within), [(10, 9)]);
        assert_eq!(pairs(&found.leaks), [(9, 4), (10, 4)]);
    }

    #[test]
    fn a_huge_cluster_costs_little() {
        // 20 000 rows of one template: 2·10⁸ pairs.
        let texts: Vec<Vec<u32>> = (0..20_000).map(|i| (0..40).chain([100_000 + i]).collect()).collect();
        let mut splits = vec![0; 15_000];
        splits.extend(vec![1; 5000]);
        let before = std::time::Instant::now();
        let found = find(&texts, &splits, 0.8);
        assert_eq!((found.within.len(), found.leaks.len()), (14_999 + 4999, 5000));
        assert!(before.elapsed().as_secs() < 20, "{:?}", before.elapsed());
    }

    #[test]
    fn rows_without_words_are_like_nothing() {
        assert_eq!(find(&[vec![], vec![], vec![1]], &[0, 0, 1], 0.8), Near::default());
        assert_eq!(find(&[], &[], 0.8), Near::default());
    }
}
