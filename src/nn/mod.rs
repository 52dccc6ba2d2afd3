//! Weights: named parameters in flat arenas, reusable buffers, and the blocks that encoders are built from.

pub mod distance_bias;
pub mod embeddings;
pub mod params;
pub mod pooling;
pub mod transformer;
pub mod workspace;
