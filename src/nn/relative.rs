//! Embeddings of relative positions that all layers of a stack share, and what a layer makes of them for disentangled
//! attention ([`crate::ops::disentangled`]): queries and keys of positions, by its own projections or by those of the content.

use super::params::{Init, Layout, Params};
use super::transformer::weight_grad;
use super::workspace::{Buffer, Space};
use crate::ops::bias::bias_grad;
use crate::ops::disentangled::log_bucket;
use crate::ops::dropout::{Dropout, masked};
use crate::ops::gemm::{linear, linear_input_grad};
use crate::ops::layer_norm::{ResidualNormGrads, residual_norm, residual_norm_backward};
use crate::ops::rows::zero_ranges;
use candle_core::{DType, Result, Tensor};
use std::ops::Range;

/// The table's size and how distances find its rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RelativeShape {
    /// Half of the table's rows: distances beyond share the outermost.
    pub span: usize,
    /// Where distances share logarithmic buckets, the longest that has one of its own kind.
    pub log: Option<usize>,
    pub hidden: usize,
    /// Epsilon of the norm over the table, where there is one.
    pub norm: Option<f32>,
}

impl RelativeShape {
    /// The table's row of a distance `query − key`.
    fn row(&self, distance: i64) -> usize {
        let bucket = self.log.map_or(distance, |longest| log_bucket(distance, self.span, longest));
        let last = 2 * self.span as i64 - 1;
        (bucket + self.span as i64).clamp(0, last) as usize
    }

    /// The rows that the distances within a row of so many tokens reach.
    fn reached(&self, longest: usize) -> Range<usize> {
        let reach = longest.max(1) as i64 - 1;
        self.row(-reach)..self.row(reach) + 1
    }

    /// Values that [`RelativeTable`] holds for rows of up to so many tokens, all f32.
    pub fn table_len(&self, longest: usize) -> usize {
        let buffers = if self.norm.is_some() { 5 } else { 1 };
        buffers * self.hidden * self.reached(longest).len()
    }

    /// Values that each layer keeps, and that all share in the backward pass beside its f32 sums.
    pub fn layer_len(&self, form: RelativeForm, longest: usize) -> [usize; 2] {
        let (rows, sides) = (self.hidden * self.reached(longest).len(), form.sides());
        [(sides + 1) * rows, (sides + 1) * rows]
    }
}

/// Checkpoint names.
#[derive(Debug, Clone)]
pub struct RelativeNames {
    /// The table.
    pub table: String,
    /// Module of its norm, read where there is one.
    pub norm: String,
}

/// The table in the arenas, and what a batch reaches of it.
#[derive(Debug)]
pub struct RelativeTable {
    shape: RelativeShape,
    at: usize,
    /// Bias (absent), gamma, beta.
    norm: usize,
    end: usize,
    /// The batch's rows, and the position of each `query − key` among them.
    reached: Range<usize>,
    distances: Vec<u32>,
    rows: Buffer,
    sum: Buffer,
    normed: Buffer,
    sums: Buffer,
    branch: Buffer,
}

impl RelativeTable {
    /// Lays out the parameters.
    pub fn new(layout: &mut Layout, shape: RelativeShape, names: &RelativeNames) -> Self {
        let at = layout.block(&[(names.table.clone(), vec![2 * shape.span, shape.hidden], Init::Normal)]);
        let h = vec![shape.hidden];
        let norm = shape.norm.map(|_| {
            layout.block(&[
                (String::new(), h.clone(), Init::Absent),
                (format!("{}.weight", names.norm), h.clone(), Init::Ones),
                (format!("{}.bias", names.norm), h.clone(), Init::Zeros),
            ])
        });
        let (reached, distances, [rows, sum, normed, sums, branch]) = (0..0, vec![], Default::default());
        let end = layout.arena_len();
        Self { shape, at, norm: norm.unwrap_or(end), end, reached, distances, rows, sum, normed, sums, branch }
    }

    /// Their part of the arenas.
    pub fn range(&self) -> Range<usize> {
        self.at..self.end
    }

    /// The embeddings that rows of up to `longest` tokens reach, `[positions, hidden]`, always f32.
    pub fn forward(&mut self, params: &Params, longest: usize) -> Result<Tensor> {
        let (shape, h) = (self.shape, self.shape.hidden);
        let reached = shape.reached(longest);
        if self.reached != reached || self.distances.len() + 1 != 2 * longest {
            let reach = longest as i64 - 1;
            self.distances = (-reach..=reach).map(|x| (shape.row(x) - reached.start) as u32).collect();
            self.reached = reached.clone();
        }
        let (n, space) = (reached.len(), Space::f32(params.device()));
        let table = params.weight(self.at + reached.start * h, &[n, h])?;
        let Some(eps) = shape.norm else { return Ok(table) };
        let (sum, normed) = (self.sum.view(n, h, space)?, self.normed.view(n, h, space)?);
        zero_all(&sum)?;
        residual_norm(&sum, &normed, &table, &params.weight(self.norm, &[3, h])?, eps, Dropout::OFF)?;
        Ok(normed)
    }

    /// The position of each `query − key`, from the lowest to the highest, in the last [`Self::forward`]'s result.
    pub fn distances(&self) -> &[u32] {
        &self.distances
    }

    /// Zeros in which the layers add up the gradient of [`Self::forward`]'s result.
    pub fn begin_backward(&mut self, params: &Params) -> Result<Tensor> {
        let sums = self.sums.view(self.reached.len(), self.shape.hidden, Space::f32(params.device()))?;
        zero_all(&sums)?;
        Ok(sums)
    }

    /// From the sums that [`Self::begin_backward`] began to the gradients of what learns, added to them if `accumulate`.
    pub fn backward(&mut self, params: &Params, sums: &Tensor, accumulate: bool) -> Result<()> {
        let (h, n, space) = (self.shape.hidden, self.reached.len(), Space::f32(params.device()));
        let mut dtable = sums.clone();
        if let Some(eps) = self.shape.norm {
            let (ds, dbranch) = (self.rows.view(n, h, space)?, self.branch.view(n, h, space)?);
            let shape = [3, h];
            let (weights, dparams) = (params.weight(self.norm, &shape)?, params.grad(self.norm, &shape)?);
            let out = ResidualNormGrads { ds: &ds, dbranch: &dbranch, dparams: &dparams };
            let sum = self.sum.view(n, h, space)?;
            residual_norm_backward(out, sums, &sum, &weights, eps, Dropout::OFF, accumulate)?;
            dtable = ds;
        }
        if !accumulate {
            params.zero_grad(self.at..self.at + 2 * self.shape.span * h)?;
        }
        let grad = params.grad(self.at + self.reached.start * h, &[n, h])?;
        masked(&grad, &dtable, Dropout::OFF, 0, true)
    }
}

fn zero_all(t: &Tensor) -> Result<()> {
    let flat = t.flatten_all()?;
    let all = 0..flat.elem_count();
    zero_ranges(&flat, &[all])
}

/// How a layer's attention uses relative positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativeForm {
    pub content_to_position: bool,
    pub position_to_content: bool,
    /// Whether the content's projections are the positions' too.
    pub shared: bool,
}

impl RelativeForm {
    /// How many projections of positions there are.
    pub fn sides(self) -> usize {
        usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }
}

/// Relative positions as a pass brings them to its layers.
#[derive(Debug, Clone, Copy)]
pub struct PassRelative<'a> {
    /// f32 `[positions, hidden]`
    pub embeddings: &'a Tensor,
    /// Where the backward pass adds up their gradient, if they learn; f32.
    pub grad: Option<&'a Tensor>,
    /// See [`RelativeTable::distances`].
    pub distances: &'a [u32],
}

/// A layer's projections of positions: queries, then keys, as far as there are such.
#[derive(Debug, Clone, Copy)]
pub struct RelativeProjections {
    pub form: RelativeForm,
    hidden: usize,
    weight: usize,
    bias: usize,
}

/// What a layer's forward pass leaves for its backward pass.
#[derive(Debug, Default)]
pub struct RelativeActivations {
    /// `[positions, hidden]`, where it is not the embeddings themselves.
    input: Buffer,
    /// `[positions, sides·hidden]`
    projected: Buffer,
}

/// Buffers of the backward pass, shared by all layers.
#[derive(Debug, Default)]
pub struct RelativeScratch {
    /// `[positions, hidden]`
    dinput: Buffer,
    /// `[positions, sides·hidden]`
    grad: Buffer,
}

impl RelativeScratch {
    /// Where the gradient of the projected positions goes.
    pub fn grad(&mut self, like: &Tensor, space: Space<'_>) -> Result<Tensor> {
        self.grad.view(like.dim(0)?, like.dim(1)?, space)
    }
}

impl RelativeProjections {
    /// Those of the content, which begin at `weight` and `bias` with the query's, or of their own under `names`.
    pub fn new(layout: &mut Layout, form: RelativeForm, hidden: usize, names: &[String], content: [usize; 2]) -> Self {
        let h = hidden;
        if form.shared {
            let skip = if form.position_to_content { 0 } else { h };
            return Self { form, hidden, weight: content[0] + skip * h, bias: content[1] + skip };
        }
        let weights: Vec<_> = names.iter().map(|n| (format!("{n}.weight"), vec![h, h], Init::Normal)).collect();
        let biases: Vec<_> = names.iter().map(|n| (format!("{n}.bias"), vec![h], Init::Zeros)).collect();
        Self { form, hidden, weight: layout.block(&weights), bias: layout.block(&biases) }
    }

    /// Their part of the arenas, from the first weight to the last bias.
    pub fn range(&self) -> Range<usize> {
        self.weight..self.bias + self.width()
    }

    fn width(&self) -> usize {
        self.form.sides() * self.hidden
    }

    /// Whether the projections read the embeddings as they are, not dropped out or in another format.
    fn reads_directly(drop: Dropout, space: Space<'_>) -> bool {
        drop.is_off() && space.dtype == DType::F32
    }

    /// What the projections read.
    fn input(&self, pass: &PassRelative<'_>, drop: Dropout, room: &mut Buffer, space: Space<'_>) -> Result<Tensor> {
        if Self::reads_directly(drop, space) {
            return Ok(pass.embeddings.clone());
        }
        room.view(pass.embeddings.dim(0)?, self.hidden, space)
    }

    /// The number of the first position's first element for dropout: that of distance 0 is the same in every batch.
    fn first(&self, pass: &PassRelative<'_>) -> u32 {
        let middle = pass.distances[pass.distances.len() / 2] as usize * self.hidden;
        0u32.wrapping_sub(middle as u32)
    }

    /// The positions' queries and keys, `[positions, sides·hidden]`.
    pub fn forward(
        &self,
        params: &Params,
        pass: &PassRelative<'_>,
        drop: Dropout,
        acts: &mut RelativeActivations,
    ) -> Result<Tensor> {
        let (width, space) = (self.width(), params.space());
        let (input, projected) = (self.input(pass, drop, &mut acts.input, space)?, self.projected(pass, acts, space)?);
        if !Self::reads_directly(drop, space) {
            masked(&input, pass.embeddings, drop, self.first(pass), false)?;
        }
        let bias = params.weight(self.bias, &[width])?;
        linear(&projected, &input, &params.linear(self.weight, width, self.hidden)?, Some(&bias))?;
        Ok(projected)
    }

    /// What the last [`Self::forward`] gave.
    pub fn projected(
        &self,
        pass: &PassRelative<'_>,
        acts: &mut RelativeActivations,
        space: Space<'_>,
    ) -> Result<Tensor> {
        acts.projected.view(pass.embeddings.dim(0)?, self.width(), space)
    }

    /// From the gradient of [`Self::forward`]'s result, in `scratch`, to those of the projections, added to if `accumulate` or
    /// if they are the content's, and to that of the embeddings.
    pub fn backward(
        &self,
        params: &Params,
        pass: &PassRelative<'_>,
        drop: Dropout,
        acts: &mut RelativeActivations,
        scratch: &mut RelativeScratch,
        accumulate: bool,
    ) -> Result<()> {
        let (h, width, space, n) = (self.hidden, self.width(), params.space(), pass.embeddings.dim(0)?);
        let (grad, accumulate) = (scratch.grad.view(n, width, space)?, accumulate || self.form.shared);
        let input = self.input(pass, drop, &mut acts.input, space)?;
        weight_grad(params, self.weight, &grad, &input, accumulate)?;
        bias_grad(&params.grad(self.bias, &[width])?, &grad, accumulate)?;
        let Some(sums) = pass.grad else { return Ok(()) };
        let dinput = scratch.dinput.view(n, h, space)?;
        linear_input_grad(&dinput, &grad, &params.linear(self.weight, width, h)?, false)?;
        masked(sums, &dinput, drop, self.first(pass), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_find_their_rows() {
        let plain = RelativeShape { span: 4, log: None, hidden: 1, norm: None };
        assert_eq!((-6..=6).map(|x| plain.row(x)).collect::<Vec<_>>(), [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7]);
        assert_eq!((plain.reached(1), plain.reached(3), plain.reached(40)), (4..5, 2..7, 0..8));
        let log = RelativeShape { span: 8, log: Some(40), ..plain };
        assert_eq!([0, 1, 4, 5, 39, 600].map(|x| log.row(x)), [8, 9, 12, 13, 15, 15]);
        assert_eq!([-1, -4, -5, -39, -600].map(|x| log.row(x)), [7, 4, 3, 1, 0]);
    }
}
