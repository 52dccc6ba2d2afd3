//! Weights: named parameters in flat arenas, reusable buffers, and the blocks that encoders are built from.

pub mod convolution;
pub mod distance_bias;
pub mod embeddings;
pub mod layer_shape;
pub mod params;
pub mod pooling;
pub mod relative;
pub mod rotary;
pub mod transformer;
pub mod workspace;
