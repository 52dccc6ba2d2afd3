//! Weights: named parameters in flat arenas, reusable buffers, and the blocks that encoders are built from.

pub mod params;
pub mod transformer;
pub mod workspace;
