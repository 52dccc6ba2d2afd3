//! What a stack of layers begins with: embedding tables, their norm and dropout, and a projection to the layers' width where
//! the tables have another (factorised embeddings, Lan et al. 2020).

use super::params::{Init, Layout, Params};
use super::transformer::{Scratch, weight_grad};
use super::workspace::Buffer;
use crate::ops::bias::bias_grad;
use crate::ops::dropout::Dropout;
use crate::ops::embedding::{EmbeddingIndex, EmbeddingShape, embed, embed_backward};
use crate::ops::gemm::{linear, linear_input_grad};
use candle_core::{Result, Tensor};
use std::ops::Range;

/// Sizes and rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingsShape {
    pub tables: EmbeddingShape,
    /// Of the tables.
    pub width: usize,
    /// Of the layers.
    pub hidden: usize,
    /// Whether the table of positions learns.
    pub learns_positions: bool,
    /// Whether the norm has a bias.
    pub norm_bias: bool,
}

/// Checkpoint names.
#[derive(Debug, Clone)]
pub struct EmbeddingNames {
    pub word: String,
    /// Read where there are positions.
    pub position: String,
    /// Read where there are token types.
    pub token_type: String,
    /// Module of the layer norm.
    pub norm: String,
    /// Module of the projection, where there is one.
    pub projection: Option<String>,
}

/// The parameters in the arenas, and the buffers of a pass.
#[derive(Debug)]
pub struct Embeddings {
    shape: EmbeddingsShape,
    /// The block of tables and norm.
    tables: usize,
    /// Weight and bias of the projection.
    projection: Option<[usize; 2]>,
    end: usize,
    sum: Buffer,
    embedded: Buffer,
    projected: Buffer,
    grad: Buffer,
}

impl Embeddings {
    /// Lays out the parameters; with a name for a projection there is one.
    pub fn new(layout: &mut Layout, shape: EmbeddingsShape, names: &EmbeddingNames) -> Self {
        let (t, w) = (&shape.tables, shape.width);
        let positions = if shape.learns_positions { Init::Normal } else { Init::Fixed };
        let mut block = vec![(names.word.clone(), vec![t.vocab, w], Init::Normal)];
        if t.positions > 0 {
            block.push((names.position.clone(), vec![t.positions, w], positions));
        }
        if t.types > 0 {
            block.push((names.token_type.clone(), vec![t.types, w], Init::Normal));
        }
        block.push((format!("{}.weight", names.norm), vec![w], Init::Ones));
        let beta = if shape.norm_bias { Init::Zeros } else { Init::Absent };
        block.push((format!("{}.bias", names.norm), vec![w], beta));
        let tables = layout.block(&block);
        let projection = names.projection.as_ref().map(|n| {
            let weight = layout.block(&[(format!("{n}.weight"), vec![shape.hidden, w], Init::Normal)]);
            [weight, layout.block(&[(format!("{n}.bias"), vec![shape.hidden], Init::Zeros)])]
        });
        let (end, [sum, embedded, projected, grad]) = (layout.arena_len(), Default::default());
        Self { shape, tables, projection, end, sum, embedded, projected, grad }
    }

    /// Their part of the arenas.
    pub fn range(&self) -> Range<usize> {
        self.tables..self.end
    }

    /// Gives back the memory of the buffers.
    pub fn release_buffers(&mut self) {
        [self.sum, self.embedded, self.projected, self.grad] = Default::default();
    }

    /// Values that the buffers of a pass over `tokens` hold.
    pub fn buffer_len(&self, tokens: usize) -> usize {
        let projected = if self.projection.is_some() { self.shape.hidden } else { 0 };
        (2 * self.shape.width + projected) * tokens
    }

    /// The input of the first layer, `[tokens, hidden]`, in a buffer that the next pass overwrites.
    pub fn forward(&mut self, params: &Params, index: EmbeddingIndex<'_>, dropout: Dropout) -> Result<Tensor> {
        let (EmbeddingsShape { tables, width, hidden, .. }, space) = (self.shape, params.space());
        let tokens = index.ids.len();
        let (sum, embedded) = (self.sum.view(tokens, width, space)?, self.embedded.view(tokens, width, space)?);
        embed(&sum, &embedded, &params.weight(self.tables, &[tables.rows(), width])?, index, tables, dropout)?;
        let Some([weight, bias]) = self.projection else { return Ok(embedded) };
        let projected = self.projected.view(tokens, hidden, space)?;
        let bias = params.weight(bias, &[hidden])?;
        linear(&projected, &embedded, &params.linear(weight, hidden, width)?, Some(&bias))?;
        Ok(projected)
    }

    /// What the last [`Self::forward`] over so many tokens gave.
    pub fn output(&mut self, params: &Params, tokens: usize) -> Result<Tensor> {
        let buffer = if self.projection.is_some() { &mut self.projected } else { &mut self.embedded };
        buffer.view(tokens, self.shape.hidden, params.space())
    }

    /// Gradients from `grad: [tokens, hidden]`, that of the last forward pass's result, of what learns. Without `accumulate`
    /// they begin a window.
    pub fn backward(
        &mut self,
        params: &mut Params,
        grad: &Tensor,
        index: EmbeddingIndex<'_>,
        dropout: Dropout,
        scratch: &mut Scratch,
        accumulate: bool,
    ) -> Result<()> {
        let (EmbeddingsShape { tables, width, hidden, .. }, tokens) = (self.shape, grad.dim(0)?);
        if let Some([weight, bias]) = self.projection {
            let embedded = self.embedded.view(tokens, width, params.space())?;
            weight_grad(params, weight, grad, &embedded, accumulate)?;
            bias_grad(&params.grad(bias, &[hidden])?, grad, accumulate)?;
        }
        if !params.trains(self.tables..self.tables + tables.rows() * width) {
            return Ok(());
        }
        let grad = match self.projection {
            Some([weight, _]) => {
                let below = self.grad.view(tokens, width, params.space())?;
                linear_input_grad(&below, grad, &params.linear(weight, hidden, width)?, false)?;
                below
            }
            None => grad.clone(),
        };
        if !accumulate {
            // The scatter below adds: start its dense part from zero, the word rows are cleared as they were touched.
            params.begin_window()?;
            params.zero_grad(self.tables + tables.vocab * width..self.tables + tables.rows() * width)?;
        }
        params.touch(index.ids.values());
        let shape = [tables.rows(), width];
        let (block, dblock) = (params.weight(self.tables, &shape)?, params.grad(self.tables, &shape)?);
        let space = params.space();
        let (sum, ds) = (self.sum.view(tokens, width, space)?, scratch.spare(tokens, width, space)?);
        embed_backward(&dblock, &ds, &grad, &sum, &block, index, tables, dropout)
    }
}
