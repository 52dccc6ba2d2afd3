//! Which rows in which order: shuffled epochs, epochs grouped by length, and length-sorted batches for evaluation.
//! Orders depend on nothing but the arguments and are the same on every platform.

use std::cmp::Reverse;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a shuffle is for; one seed gives unrelated orders for each.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Epoch,
    Split,
}

/// All rows `0..n` in random order, keyed by `(seed, epoch)`: a resumed run draws the same epoch without replaying the
/// ones before it.
pub fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    shuffle(&mut order, Purpose::Epoch, seed, epoch);
    order
}

/// An epoch whose batches hold rows of similar length: the construction of `transformers`' `get_length_grouped_indices`.
/// The shuffled rows are cut into mega-batches of 50 batches (fewer when that would leave less than four mega-batches),
/// each sorted by length, longest first; the longest row of all comes first, so that memory is exceeded at once or never.
pub fn grouped_by_length(lengths: &[usize], batch_size: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let batch_size = batch_size.max(1);
    let mut order = epoch_order(lengths.len(), seed, epoch);
    let mega_batch = (lengths.len() / (batch_size * 4)).clamp(1, 50) * batch_size;
    for rows in order.chunks_mut(mega_batch) {
        rows.sort_by_key(|&row| Reverse(lengths[row]));
    }
    // Each mega-batch begins with its longest row; on a tie the first mega-batch keeps its place.
    if let Some(longest) = (0..order.len()).step_by(mega_batch).min_by_key(|&at| Reverse(lengths[order[at]])) {
        order.swap(0, longest);
    }
    order
}

/// Cuts rows in their order into batches of at most `budget` tokens, a longer row alone; returns where each ends. As `fairseq`'s
/// `--max-tokens`, but counting real tokens, as nothing is padded.
pub fn cut_by_tokens(order: &[usize], length: impl Fn(usize) -> usize, budget: usize) -> Vec<usize> {
    let (mut ends, mut tokens) = (vec![], 0usize);
    for (at, &row) in order.iter().enumerate() {
        let more = length(row);
        if at > 0 && tokens.saturating_add(more) > budget {
            ends.push(at);
            tokens = 0;
        }
        tokens += more;
    }
    if !order.is_empty() {
        ends.push(order.len());
    }
    ends
}

/// Batches of rows sorted by length, longest first, equal lengths in row order: the order of evaluation, where results
/// are put back by row.
pub fn length_sorted(lengths: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| Reverse(lengths[row]));
    order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

/// Fisher–Yates with a generator keyed by purpose, seed and epoch.
pub(super) fn shuffle<T>(items: &mut [T], purpose: Purpose, seed: u64, epoch: u64) {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16] = purpose as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    for i in (1..items.len()).rev() {
        items.swap(i, below(&mut rng, i as u64 + 1) as usize);
    }
}

/// An unbiased integer in `0..bound` (Lemire, "Fast random integer generation in an interval", 2019).
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let reject_under = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= reject_under {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(mut rows: Vec<usize>) -> Vec<usize> {
        rows.sort_unstable();
        rows
    }

    #[test]
    fn epochs_are_permutations_keyed_by_seed_and_epoch() {
        let order = epoch_order(1000, 42, 0);
        assert_eq!(sorted(order.clone()), (0..1000).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(1000, 42, 0));
        assert_ne!(order, epoch_order(1000, 42, 1));
        assert_ne!(order, epoch_order(1000, 43, 0));
        assert!(epoch_order(0, 42, 0).is_empty());
    }

    #[test]
    fn every_position_is_equally_likely() {
        let mut counts = [[0; 4]; 4];
        for epoch in 0..8000 {
            for (at, row) in epoch_order(4, 7, epoch).into_iter().enumerate() {
                counts[at][row] += 1;
            }
        }
        // 2000 expected, standard deviation 39.
        assert!(counts.iter().flatten().all(|&c| (1800..2200).contains(&c)), "{counts:?}");
    }

    #[test]
    fn grouping_sorts_mega_batches_and_begins_with_the_longest() {
        let lengths: Vec<usize> = (0..1000).map(|i| 3 + (i * 7919) % 120).collect();
        let order = grouped_by_length(&lengths, 4, 1, 0);
        assert_eq!(sorted(order.clone()), (0..1000).collect::<Vec<_>>());
        assert_eq!(Some(&lengths[order[0]]), lengths.iter().max());
        // 50 × 4 rows a mega-batch; the swap may disturb the first place of one of them.
        for rows in order.chunks(200) {
            assert!(rows[1..].is_sorted_by_key(|&r| Reverse(lengths[r])));
        }
        assert!(!order.is_sorted_by_key(|&r| Reverse(lengths[r])));
        assert_ne!(order, grouped_by_length(&lengths, 4, 1, 1));
    }

    #[test]
    fn grouping_uses_smaller_mega_batches_on_little_data() {
        let lengths: Vec<usize> = (0..40).collect();
        // 40 / (4·4) = 2 batches, so 8 rows.
        let order = grouped_by_length(&lengths, 4, 1, 0);
        let mut first: Vec<usize> = epoch_order(40, 1, 0)[8..16].to_vec();
        first.sort_by_key(|&r| Reverse(lengths[r]));
        assert_eq!(order[9..16], first[1..]);
        assert_eq!(grouped_by_length(&[], 4, 1, 0), Vec::<usize>::new());
        assert_eq!(sorted(grouped_by_length(&[5, 5, 5], 8, 1, 0)), [0, 1, 2]);
    }

    #[test]
    fn batches_of_tokens_hold_no_more_than_the_budget() {
        let lengths = [4, 6, 1, 20, 3, 3, 5];
        let cut = |order: &[usize]| cut_by_tokens(order, |row| lengths[row], 10);
        assert_eq!(cut(&[0, 1, 2, 3, 4, 5, 6]), [2, 3, 4, 6, 7]);
        assert_eq!(cut(&[3, 0]), [1, 2]);
        assert_eq!(cut(&[]), [0; 0]);
    }

    #[test]
    fn evaluation_is_longest_first_and_stable() {
        assert_eq!(length_sorted(&[3, 9, 3, 5, 9], 2), [vec![1, 4], vec![3, 0], vec![2]]);
        assert!(length_sorted(&[], 2).is_empty());
    }
}
