//! The table of an attention bias by distance that all layers of a stack share.

use super::params::{Init, Layout, Params};
use super::workspace::{Buffer, Space};
use crate::ops::distance_bias::{collect, expand};
use crate::ops::rows::zero_ranges;
use candle_core::{Result, Tensor};
use std::ops::Range;

/// `[buckets, heads]` in the arenas, and its values and their gradient by distance.
#[derive(Debug)]
pub struct DistanceBiasTable {
    at: usize,
    shape: [usize; 2],
    values: Buffer,
    grads: Buffer,
}

impl DistanceBiasTable {
    /// Lays out the table; `buckets` is at least [`crate::ops::distance_bias::BUCKETS`].
    pub fn new(layout: &mut Layout, name: &str, buckets: usize, heads: usize) -> Self {
        let shape = [buckets, heads];
        let at = layout.block(&[(name.to_owned(), shape.to_vec(), Init::Normal)]);
        Self { at, shape, values: Buffer::default(), grads: Buffer::default() }
    }

    /// The table's part of the arenas.
    pub fn range(&self) -> Range<usize> {
        self.at..self.at + self.shape[0] * self.shape[1]
    }

    /// The values `[heads, 2·longest − 1]` for rows of up to `longest` tokens, always f32.
    pub fn forward(&mut self, params: &Params, longest: usize) -> Result<Tensor> {
        let values = self.values.view(self.shape[1], 2 * longest - 1, Space::f32(params.device()))?;
        expand(&values, &params.weight(self.at, &self.shape)?)?;
        Ok(values)
    }

    /// Zeros in which the layers add up the gradient of [`Self::forward`]'s values.
    pub fn begin_backward(&mut self, params: &Params, longest: usize) -> Result<Tensor> {
        let grads =
            self.grads.view(1, self.shape[1] * (2 * longest - 1), Space::f32(params.device()))?.flatten_all()?;
        let all = 0..grads.elem_count();
        zero_ranges(&grads, &[all])?;
        grads.reshape((self.shape[1], ()))
    }

    /// From the sums that [`Self::begin_backward`] began to the table's gradient, added to it if `accumulate`.
    pub fn backward(&self, params: &Params, sums: &Tensor, accumulate: bool) -> Result<()> {
        collect(&params.grad(self.at, &self.shape)?, sums, accumulate)
    }
}
