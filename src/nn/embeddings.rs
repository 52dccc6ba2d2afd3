//! What a stack of layers begins with: embedding tables, their norm and dropout, and a projection to the layers' width where
//! the tables have another (factorised embeddings, Lan et al. 2020). DeBERTa projects the sum of the tables' rows, without a
//! bias, and norms what comes of it; the others norm first.

use super::params::{Init, Layout, Params};
use super::transformer::{Scratch, weight_grad};
use super::workspace::{Buffer, Space};
use crate::ops::bias::bias_grad;
use crate::ops::dropout::{Dropout, masked};
use crate::ops::embedding::{EmbeddingIndex, EmbeddingShape, embed, embed_backward};
use crate::ops::gemm::{linear, linear_input_grad};
use crate::ops::layer_norm::{ResidualNormGrads, residual_norm, residual_norm_backward};
use crate::ops::rows::add_rows;
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
    /// Whether the norm stands behind the projection.
    pub norms_projected: bool,
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
    /// Weight of the projection; its bias, or its bias (absent), gamma and beta where a norm follows.
    projection: Option<[usize; 2]>,
    end: usize,
    sum: Buffer,
    embedded: Buffer,
    projected: Buffer,
    grad: Buffer,
    norm: NormBuffers,
}

/// Buffers of a norm behind the projection.
#[derive(Debug, Default)]
struct NormBuffers {
    sum: Buffer,
    /// The norm's result before dropout.
    normed: Buffer,
    out: Buffer,
    dout: Buffer,
    dprojected: Buffer,
    dbranch: Buffer,
    /// The gradient of the sum in f32, as the tables' is.
    dsum: Buffer,
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
        let norm = |width: usize, [gamma, beta]: [Init; 2]| {
            [
                (format!("{}.weight", names.norm), vec![width], gamma),
                (format!("{}.bias", names.norm), vec![width], beta),
            ]
        };
        let inits = [Init::Ones, if shape.norm_bias { Init::Zeros } else { Init::Absent }];
        block.extend(norm(w, if shape.norms_projected { [Init::Absent; 2] } else { inits }));
        let tables = layout.block(&block);
        let projection = names.projection.as_ref().map(|n| {
            let h = shape.hidden;
            let weight = layout.block(&[(format!("{n}.weight"), vec![h, w], Init::Normal)]);
            let bias = |init| vec![(format!("{n}.bias"), vec![h], init)];
            let behind = if shape.norms_projected {
                [bias(Init::Absent), norm(h, inits).to_vec()].concat()
            } else {
                bias(Init::Zeros)
            };
            [weight, layout.block(&behind)]
        });
        let (end, [sum, embedded, projected, grad]) = (layout.arena_len(), Default::default());
        Self { shape, tables, projection, end, sum, embedded, projected, grad, norm: NormBuffers::default() }
    }

    /// Their part of the arenas.
    pub fn range(&self) -> Range<usize> {
        self.tables..self.end
    }

    /// Gives back the memory of the buffers.
    pub fn release_buffers(&mut self) {
        [self.sum, self.embedded, self.projected, self.grad] = Default::default();
        self.norm = NormBuffers::default();
    }

    /// Values that the buffers of a pass over `tokens` hold.
    pub fn buffer_len(&self, tokens: usize) -> usize {
        let projected = if self.projection.is_some() { self.shape.hidden } else { 0 };
        // Forward and backward; the gradient of the sum counts twice, as it is f32.
        let norm = if self.shape.norms_projected { 6 * self.shape.hidden + 2 * self.shape.width } else { 0 };
        (2 * self.shape.width + projected + norm) * tokens
    }

    /// The input of the first layer, `[tokens, hidden]`, in a buffer that the next pass overwrites.
    pub fn forward(&mut self, params: &Params, index: EmbeddingIndex<'_>, dropout: Dropout) -> Result<Tensor> {
        let (EmbeddingsShape { tables, width, hidden, .. }, space) = (self.shape, params.space());
        let tokens = index.ids.len();
        let (sum, embedded) = (self.sum.view(tokens, width, space)?, self.embedded.view(tokens, width, space)?);
        embed(&sum, &embedded, &params.weight(self.tables, &[tables.rows(), width])?, index, tables, dropout)?;
        let Some([weight, bias]) = self.projection else { return Ok(embedded) };
        let (projected, weight) = (self.projected.view(tokens, hidden, space)?, params.linear(weight, hidden, width)?);
        if !self.shape.norms_projected {
            linear(&projected, &embedded, &weight, Some(&params.weight(bias, &[hidden])?))?;
            return Ok(projected);
        }
        // The sum alone counts of what was embedded; where no norm has parameters, it gives zeros.
        linear(&projected, &sum, &weight, None)?;
        let (s, normed) = (self.norm.sum.view(tokens, hidden, space)?, self.norm.normed.view(tokens, hidden, space)?);
        s.zero_set()?;
        residual_norm(&s, &normed, &projected, &params.weight(bias, &[3, hidden])?, tables.eps, Dropout::OFF)?;
        let out = self.norm.out.view(tokens, hidden, space)?;
        masked(&out, &normed, dropout, 0, false)?;
        Ok(out)
    }

    /// What the last [`Self::forward`] over so many tokens gave.
    pub fn output(&mut self, params: &Params, tokens: usize) -> Result<Tensor> {
        let buffer = match self.projection {
            Some(_) if self.shape.norms_projected => &mut self.norm.out,
            Some(_) => &mut self.projected,
            None => &mut self.embedded,
        };
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
        let (EmbeddingsShape { tables, width, hidden, norms_projected, .. }, tokens) = (self.shape, grad.dim(0)?);
        let mut grad = grad.clone();
        if let Some([weight, bias]) = self.projection {
            if norms_projected {
                grad = self.norm_backward(params, bias, &grad, dropout, accumulate)?;
            } else {
                bias_grad(&params.grad(bias, &[hidden])?, &grad, accumulate)?;
            }
            let read = if norms_projected { &mut self.sum } else { &mut self.embedded };
            weight_grad(params, weight, &grad, &read.view(tokens, width, params.space())?, accumulate)?;
        }
        if !params.trains(self.tables..self.tables + tables.rows() * width) {
            return Ok(());
        }
        if let Some([weight, _]) = self.projection {
            let below = self.grad.view(tokens, width, params.space())?;
            linear_input_grad(&below, &grad, &params.linear(weight, hidden, width)?, false)?;
            grad = below;
        }
        if !accumulate {
            // The scatter below adds: start its dense part from zero, the word rows are cleared as they were touched.
            params.begin_window()?;
            params.zero_grad(self.tables + tables.vocab * width..self.tables + tables.rows() * width)?;
        }
        params.touch(index.ids.values());
        if norms_projected {
            return self.scatter(params, &grad, index);
        }
        let shape = [tables.rows(), width];
        let (block, dblock) = (params.weight(self.tables, &shape)?, params.grad(self.tables, &shape)?);
        let space = params.space();
        let (sum, ds) = (self.sum.view(tokens, width, space)?, scratch.spare(tokens, width, space)?);
        embed_backward(&dblock, &ds, &grad, &sum, &block, index, tables, dropout)
    }

    /// Back through dropout and the norm behind the projection.
    fn norm_backward(
        &mut self,
        params: &Params,
        at: usize,
        grad: &Tensor,
        dropout: Dropout,
        accumulate: bool,
    ) -> Result<Tensor> {
        let (h, tokens, space, room) = (self.shape.hidden, grad.dim(0)?, params.space(), &mut self.norm);
        let (dout, sum) = (room.dout.view(tokens, h, space)?, room.sum.view(tokens, h, space)?);
        let (dprojected, dbranch) = (room.dprojected.view(tokens, h, space)?, room.dbranch.view(tokens, h, space)?);
        masked(&dout, grad, dropout, 0, false)?;
        let (weights, dparams) = (params.weight(at, &[3, h])?, params.grad(at, &[3, h])?);
        let out = ResidualNormGrads { ds: &dprojected, dbranch: &dbranch, dparams: &dparams };
        residual_norm_backward(out, &dout, &sum, &weights, self.shape.tables.eps, Dropout::OFF, accumulate)?;
        Ok(dprojected)
    }

    /// Adds the gradient of the sums to the rows that they are of.
    fn scatter(&mut self, params: &Params, grad: &Tensor, index: EmbeddingIndex<'_>) -> Result<()> {
        let (EmbeddingsShape { tables, width, .. }, tokens) = (self.shape, grad.dim(0)?);
        let dsum = self.norm.dsum.view(tokens, width, Space::f32(params.device()))?;
        masked(&dsum, grad, Dropout::OFF, 0, false)?;
        let mut at = self.tables;
        for (rows, index) in
            [(tables.vocab, index.ids), (tables.positions, index.positions), (tables.types, index.types)]
        {
            if rows > 0 {
                add_rows(&params.grad(at, &[rows, width])?, &dsum, index)?;
            }
            at += rows * width;
        }
        Ok(())
    }
}
