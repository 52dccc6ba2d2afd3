//! One file an op, as in `src/ops/`: its inputs, a plain reference and what it has to do at least.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod embedding;
pub mod gelu;
pub mod layer_norm;
pub mod linear;

use crate::common::data::{ROWS, sentence_lengths, values};
use bertft::ops::dropout::Dropout;
use bertft::ops::gemm::bf16_engine;
use bertft::ops::real::Real;
use candle_core::DType;

pub const FORMATS: [DType; 2] = [DType::F32, DType::BF16];
/// MiniLM-L6's.
pub const HIDDEN: usize = 384;
pub const INNER: usize = 1536;
pub const HEADS: usize = 12;
pub const EPS: f32 = 1e-12;

/// Formats that this machine has products in.
pub fn product_formats() -> impl Iterator<Item = DType> {
    FORMATS.into_iter().filter(|f| *f == DType::F32 || bf16_engine().is_some())
}

/// Tokens of a batch of sentences and of a batch of full rows.
pub fn token_counts() -> [usize; 2] {
    [sentence_lengths().iter().sum(), ROWS * 128]
}

/// The dropout of call number `call`. With one mask for all calls, an op that updates in place would scale the same values
/// up for ever.
pub fn dropout(call: &mut u64) -> Dropout {
    *call += 1;
    Dropout::new(0.1, *call)
}

/// Made-up values in the format `T`.
pub fn slice<T: Real>(n: usize, seed: u32) -> Vec<T> {
    values(n, seed).into_iter().map(T::from_f32).collect()
}
