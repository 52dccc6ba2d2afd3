//! Made-up inputs of the shapes that training sees, the same in every run.

use bertft::data::{Batch, Targets};
use bertft::rng::{bits, normal};
use candle_core::{DType, Device, Result, Tensor};

/// Rows of a batch.
pub const ROWS: usize = 32;
/// BERT's.
pub const VOCAB: usize = 30522;

/// Values in [-1, 1].
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| bits(seed, seed ^ 7, i) as f32 / u32::MAX as f32 * 2.0 - 1.0).collect()
}

/// [`values`] as `[rows, cols]`.
pub fn matrix(rows: usize, cols: usize, dtype: DType, seed: u32) -> Result<Tensor> {
    Tensor::from_vec(values(rows * cols, seed), (rows, cols), &Device::Cpu)?.to_dtype(dtype)
}

pub fn zeros(rows: usize, cols: usize, dtype: DType) -> Result<Tensor> {
    Tensor::zeros((rows, cols), dtype, &Device::Cpu)
}

/// The lengths of a batch of SST-2 sentences: about 22 tokens with the special ones, few long.
pub fn sentence_lengths() -> Vec<usize> {
    // Log-normal; exp(μ + σ²/2) = 22.
    let (mu, sigma) = (2.94, 0.55);
    let z = normal(3, "lengths", ROWS, 1.0, f64::INFINITY);
    z.iter().map(|z| (mu + sigma * *z as f64).exp().round().clamp(4.0, 64.0) as usize).collect()
}

/// Prefix sums, as attention takes them.
pub fn prefix_sums(lengths: &[usize]) -> Vec<u32> {
    let mut sums = vec![0];
    for length in lengths {
        sums.push(sums[sums.len() - 1] + *length as u32);
    }
    sums
}

/// Rows of these lengths with two classes. Half of the words are one of 200, as in a language.
pub fn batch(lengths: &[usize]) -> Batch {
    let cu_seqlens = prefix_sums(lengths);
    let tokens = cu_seqlens[lengths.len()];
    let word = |i: u32| {
        let draw = bits(11, 12, i);
        1000 + (draw >> 1) % if draw & 1 == 0 { 200 } else { VOCAB as u32 - 1000 }
    };
    Batch {
        ids: (0..tokens).map(word).collect(),
        type_ids: vec![0; tokens as usize],
        positions: lengths.iter().flat_map(|&l| 0..l as u32).collect(),
        cu_seqlens,
        rows: (0..lengths.len()).collect(),
        targets: Targets::Class((0..lengths.len() as u32).map(|i| i % 2).collect()),
    }
}
