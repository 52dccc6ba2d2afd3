//! All parameters of a model in one flat arena, and beside it one arena each for gradients and the two moments.
//!
//! Layout is decided once ([`Layout`]); parameters that one kernel reads together (query, key and value; a bias and the layer
//! norm after it) are neighbours, so that one view serves it. Names are the Hugging Face checkpoint's.

use super::workspace::Space;
use crate::ops::adamw::{self, AdamWStep, Segment, SumSquares};
use crate::ops::average::average;
use crate::ops::gemm::{Weight, keeps_packed};
use crate::ops::on_gpu;
use crate::ops::perturb::perturb;
use crate::ops::rows::zero_ranges;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;

/// Every block begins on a cache line.
const ALIGN: usize = 16;

/// One named parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    /// First element in the arenas.
    pub offset: usize,
    pub init: Init,
}

/// How a parameter begins when the checkpoint does not hold it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Drawn around 0, as the family's `Initializer` says.
    Normal,
    Zeros,
    Ones,
    /// Always in the checkpoint, and never learns.
    Fixed,
    /// No parameter: zeros where a kernel reads one that others have.
    Absent,
}

impl Spec {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Whether weight decay applies: not to biases and norms, by the names that `transformers`' Trainer looks for (a table
    /// `relative_attention_bias.weight` counts as a bias).
    pub fn decays(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        let is_norm = |module: &str| module == "norm" || module.ends_with("_norm");
        !["bias", "layernorm", "rmsnorm"].iter().any(|part| name.contains(part)) && !name.split('.').any(is_norm)
    }

    /// Whether the parameter stays as it is, whatever else is frozen.
    fn is_fixed(&self) -> bool {
        self.init == Init::Fixed
    }
}

/// How the optimizer treats a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learning {
    /// The learning rate is multiplied by this.
    pub rate: f64,
    /// The first step, from 0, that moves the parameter; `None`: it stays as it is.
    pub since: Option<u64>,
}

impl Learning {
    /// At the learning rate itself, from the first step on.
    pub const PLAIN: Self = Self { rate: 1.0, since: Some(0) };
    pub const NEVER: Self = Self { rate: 1.0, since: None };
}

/// Collects the parameters of a model in arena order.
#[derive(Debug, Default)]
pub struct Layout {
    specs: Vec<Spec>,
    end: usize,
}

impl Layout {
    /// Appends neighbours that one kernel reads as a unit; gives the block's first element.
    pub fn block(&mut self, members: &[(String, Vec<usize>, Init)]) -> usize {
        let start = self.end.next_multiple_of(ALIGN);
        self.end = start;
        for (name, shape, init) in members {
            if *init == Init::Absent {
                self.end += shape.iter().product::<usize>();
                continue;
            }
            let spec = Spec { name: name.clone(), shape: shape.clone(), offset: self.end, init: *init };
            self.end += spec.len();
            self.specs.push(spec);
        }
        start
    }

    /// Elements in the arena, alignment gaps included.
    pub fn arena_len(&self) -> usize {
        self.end
    }

    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }
}

/// A table of which a batch touches few rows (word embeddings).
#[derive(Debug)]
struct SparseRows {
    start: usize,
    width: usize,
    /// Touched since the gradients were last cleared.
    window: Vec<bool>,
    /// Touched ever, so with moments that are not zero.
    ever: Vec<bool>,
    /// Counts all rows as touched: a GPU passes over them faster than it is told which.
    all: bool,
}

impl SparseRows {
    /// The marked rows as ascending ranges of the arena.
    fn ranges(&self, marks: &[bool]) -> Vec<Range<usize>> {
        if self.all {
            return std::iter::once(self.start..self.start + marks.len() * self.width).collect();
        }
        let mut out: Vec<Range<usize>> = vec![];
        for row in (0..marks.len()).filter(|&r| marks[r]) {
            let (a, b) = (self.start + row * self.width, self.start + (row + 1) * self.width);
            match out.last_mut() {
                Some(last) if last.end == a => last.end = b,
                _ => out.push(a..b),
            }
        }
        out
    }
}

/// What training adds to the weights.
#[derive(Debug)]
struct Training {
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    /// Moving average of the weights, where one is kept.
    average: Option<Tensor>,
}

/// Packed copies of the weights that products read in evaluation, and on a GPU in training too, made when first asked for after
/// a change of the weights.
#[derive(Debug, Default)]
struct Copies {
    /// Counts the changes of the weights.
    version: Cell<u64>,
    /// By place and shape in the arena, with the version of each.
    packed: RefCell<HashMap<Place, (u64, Weight)>>,
}

/// A matrix in the arena: offset, rows, columns.
type Place = (usize, usize, usize);

/// The arenas.
#[derive(Debug)]
pub struct Params {
    /// In arena order.
    specs: Vec<Spec>,
    /// How each of them learns.
    learning: Vec<Learning>,
    /// Which of them do not learn in this step.
    frozen: Vec<bool>,
    by_name: HashMap<String, usize>,
    weights: Tensor,
    training: Option<Training>,
    sparse: Option<SparseRows>,
    /// The format of the activations.
    dtype: DType,
    copies: Copies,
}

impl Params {
    /// `weights` holds the arena's values in layout order. `sparse_rows` names the table whose rows are tracked. The arenas are
    /// f32 whatever the format of the activations, `space.dtype`.
    pub fn new(layout: Layout, weights: Vec<f32>, space: Space<'_>, sparse_rows: Option<&str>) -> Result<Self> {
        if weights.len() != layout.arena_len() {
            bail!("{} weights for an arena of {}", weights.len(), layout.arena_len());
        }
        let by_name: HashMap<_, _> = layout.specs.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let sparse = sparse_rows.and_then(|name| by_name.get(name)).map(|&i| &layout.specs[i]).map(|s| SparseRows {
            start: s.offset,
            width: s.shape[1],
            window: vec![false; s.shape[0]],
            ever: vec![false; s.shape[0]],
            all: on_gpu(space.device),
        });
        let n = weights.len();
        let weights = Tensor::from_vec(weights, n, space.device)?;
        let copies = Copies::default();
        let (learning, frozen) = (vec![], vec![]);
        let specs = layout.specs;
        let mut params =
            Self { specs, learning, frozen, by_name, weights, training: None, sparse, dtype: space.dtype, copies };
        params.learn(vec![Learning::PLAIN; params.specs.len()])?;
        Ok(params)
    }

    /// Allocates gradients and moments, all zero.
    pub fn start_training(&mut self) -> Result<()> {
        let zeros = || Tensor::zeros(self.weights.elem_count(), DType::F32, self.weights.device());
        self.training = Some(Training { grads: zeros()?, m: zeros()?, v: zeros()?, average: None });
        // The optimizer changes the weights under them.
        self.copies.packed.borrow_mut().clear();
        Ok(())
    }

    /// Keeps a moving average of the weights beside them, in an arena that the first step fills.
    pub fn start_average(&mut self) -> Result<()> {
        let arena = Tensor::zeros(self.weights.elem_count(), DType::F32, self.weights.device())?;
        if let Some(t) = &mut self.training {
            t.average = Some(arena);
        }
        Ok(())
    }

    /// Exchanges the weights and their moving average, if one is kept: what is computed then is computed with the average.
    pub fn swap_average(&mut self) {
        if let Some(average) = self.training.as_mut().and_then(|t| t.average.as_mut()) {
            std::mem::swap(&mut self.weights, average);
            self.weights_change();
        }
    }

    fn training(&self) -> Result<&Training> {
        match &self.training {
            Some(t) => Ok(t),
            None => bail!("gradients were asked of a model that is not in training"),
        }
    }

    pub fn device(&self) -> &Device {
        self.weights.device()
    }

    /// Where activations live and in which format.
    pub fn space(&self) -> Space<'_> {
        Space { dtype: self.dtype, device: self.weights.device() }
    }

    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Number of weights.
    pub fn count(&self) -> usize {
        self.specs.iter().map(Spec::len).sum()
    }

    /// Says how each parameter learns, in arena order; the next step is the first.
    pub fn learn(&mut self, learning: Vec<Learning>) -> Result<()> {
        if learning.len() != self.specs.len() {
            bail!("how {} parameters learn, for a model of {}", learning.len(), self.specs.len());
        }
        let of = |(spec, how): (&Spec, Learning)| if spec.is_fixed() { Learning::NEVER } else { how };
        self.learning = self.specs.iter().zip(learning).map(of).collect();
        self.begin_step(0);
        Ok(())
    }

    /// To be called before the passes of a step, from 0: what does not learn in it gets no update and takes no part in the
    /// gradient's norm.
    pub fn begin_step(&mut self, step: u64) {
        self.frozen.clear();
        self.frozen.extend(self.learning.iter().map(|l| l.since.is_none_or(|since| since > step)));
    }

    /// The parameters that learn in some step, with how they do.
    pub fn learners(&self) -> impl Iterator<Item = (&Spec, Learning)> {
        self.specs.iter().zip(self.learning.iter().copied()).filter(|(_, learning)| learning.since.is_some())
    }

    /// The parameters that learn in this step.
    pub fn trained(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter().zip(&self.frozen).filter(|(_, frozen)| !**frozen).map(|(spec, _)| spec)
    }

    /// Whether any parameter in a range of the arena learns in this step.
    pub fn trains(&self, range: Range<usize>) -> bool {
        let first = self.specs.partition_point(|s| s.range().end <= range.start);
        let last = self.specs.partition_point(|s| s.offset < range.end);
        self.frozen[first..last.max(first)].iter().any(|frozen| !frozen)
    }

    pub fn spec(&self, name: &str) -> Option<&Spec> {
        self.by_name.get(name).map(|&i| &self.specs[i])
    }

    /// Replaces the weights of one parameter.
    pub fn set_weight(&self, spec: &Spec, values: Vec<f32>) -> Result<()> {
        self.weights_change();
        self.weights.slice_set(&Tensor::from_vec(values, spec.len(), self.device())?, 0, spec.offset)
    }

    /// A view of the weights from `offset`.
    pub fn weight(&self, offset: usize, shape: &[usize]) -> Result<Tensor> {
        view(&self.weights, offset, shape)
    }

    /// Bytes that training will touch beyond the weights: gradients and moments. Fresh arenas cost nothing
    /// until they are written, and then whole pages: of the sparse table those with a row in `touched` (ascending) count,
    /// unless weight decay moves all rows. A GPU has no such pages: there the arenas count.
    pub fn training_bytes(&self, touched: &[u32], page_bytes: usize, weight_decay: f64) -> usize {
        let sparse = |s: &Spec| self.sparse.as_ref().filter(|table| table.start == s.offset);
        let pages_of = |table: &SparseRows| {
            let page = |row: &u32| *row as usize * table.width * 4 / page_bytes;
            let pages = touched.chunk_by(|a, b| page(a) == page(b)).count();
            (pages * page_bytes).min(table.ever.len() * table.width * 4)
        };
        let averages = self.training.as_ref().is_some_and(|t| t.average.is_some());
        if on_gpu(self.device()) {
            // The copies of the matrices, which are nearly all but the sparse table.
            let copied = self.arena_len() - self.sparse.as_ref().map_or(0, |t| t.ever.len() * t.width);
            let copies = if keeps_packed((self.dtype, self.device()), true) { 2 * copied } else { 0 };
            return (3 + usize::from(averages)) * 4 * self.arena_len() + copies;
        }
        let bytes = |s: &Spec| 4 * s.len();
        let grads: usize = self.learners().map(|(s, _)| sparse(s).map_or(bytes(s), pages_of)).sum();
        let moments: usize = if weight_decay > 0.0 { self.learners().map(|(s, _)| bytes(s)).sum() } else { grads };
        let average = if averages { self.weights.elem_count() } else { 0 };
        grads + 2 * moments + 4 * average
    }

    /// Bytes of what [`Self::perturb_rows`] keeps where a window touches so many rows of the sparse table.
    pub fn moved_bytes(&self, rows: usize) -> usize {
        let Some(table) = &self.sparse else { return 0 };
        let all = table.ever.len();
        4 * table.width * if table.all && rows > 0 { all } else { rows.min(all) }
    }

    /// A linear layer's weight `[out, inp]` from `offset`, as the products over activations of this format read it.
    pub fn linear(&self, offset: usize, out: usize, inp: usize) -> Result<Weight> {
        let master = self.weight(offset, &[out, inp])?;
        if !keeps_packed((self.dtype, self.device()), self.training.is_some()) {
            return Ok(Weight::Master(master));
        }
        let (version, mut packed) = (self.copies.version.get(), self.copies.packed.borrow_mut());
        let fresh = match packed.remove(&(offset, out, inp)) {
            Some((at, copy)) if at == version => copy,
            old => {
                let room = || Weight::room(out, inp, self.dtype, self.device());
                let copy = old.map_or_else(room, |(_, copy)| Ok(copy))?;
                copy.pack(&master)?;
                copy
            }
        };
        packed.insert((offset, out, inp), (version, fresh.clone()));
        // There a copy lies as the master does, and all products read it like that.
        Ok(if on_gpu(self.device()) { fresh.as_it_lies()? } else { fresh })
    }

    /// To be called whenever weights change.
    fn weights_change(&self) {
        self.copies.version.set(self.copies.version.get() + 1);
    }

    /// A view of the gradients from `offset`.
    pub fn grad(&self, offset: usize, shape: &[usize]) -> Result<Tensor> {
        view(&self.training()?.grads, offset, shape)
    }

    /// Elements of an arena, alignment gaps included.
    pub fn arena_len(&self) -> usize {
        self.weights.elem_count()
    }

    /// The arena of weights.
    pub fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// The arenas that a checkpoint holds, with their names.
    pub fn state(&self) -> Result<Vec<(&'static str, &Tensor)>> {
        let t = self.training()?;
        let all = [("weights", &self.weights), ("first_moment", &t.m), (SECOND_MOMENT, &t.v)];
        Ok(all.into_iter().chain(t.average.as_ref().map(|a| ("average", a))).collect())
    }

    /// Puts back one of the arenas that [`Self::state`] gave.
    pub fn restore(&mut self, name: &str, values: &Tensor) -> Result<()> {
        let Some((_, arena)) = self.state()?.into_iter().find(|(n, _)| *n == name) else {
            bail!("there is no arena {name}");
        };
        arena.slice_set(values, 0, 0)?;
        self.weights_change();
        if let (SECOND_MOMENT, Some(s)) = (name, self.sparse.as_mut().filter(|s| !s.all)) {
            let rows = values.narrow(0, s.start, s.ever.len() * s.width)?.reshape((s.ever.len(), s.width))?;
            let touched: Vec<f32> = rows.max(1)?.to_vec1()?;
            s.ever = touched.iter().map(|&x| x != 0.0).collect();
        }
        Ok(())
    }

    /// Replaces the weights alone.
    pub fn restore_weights(&self, weights: &Tensor) -> Result<()> {
        self.weights_change();
        self.weights.slice_set(weights, 0, 0)
    }

    /// Clears what gradients must start from zero: the rows of the sparse table that the last window touched. All
    /// other gradients are overwritten by a window's first backward pass.
    pub fn begin_window(&mut self) -> Result<()> {
        let Some(s) = &mut self.sparse else { return Ok(()) };
        let ranges = s.ranges(&s.window);
        s.window.fill(false);
        zero_ranges(&self.training()?.grads, &ranges)
    }

    /// Zeroes the gradients of a block.
    pub fn zero_grad(&self, range: Range<usize>) -> Result<()> {
        zero_ranges(&self.training()?.grads, &[range])
    }

    /// Notes which rows of the sparse table a batch touches.
    pub fn touch(&mut self, rows: &[u32]) {
        if let Some(s) = self.sparse.as_mut().filter(|s| !s.all) {
            for &r in rows {
                s.window[r as usize] = true;
                s.ever[r as usize] = true;
            }
        }
    }

    /// ‖gradient‖² of one parameter.
    pub fn grad_square(&self, spec: &Spec) -> Result<f64> {
        adamw::sum_squares(&self.training()?.grads, &[spec.range()])?.read()
    }

    /// ‖gradient‖₂ over all parameters that learn; waits for the device.
    pub fn grad_norm(&self) -> Result<f64> {
        Ok(self.grad_squares()?.read()?.sqrt())
    }

    /// ‖gradient‖² over all parameters that learn.
    pub fn grad_squares(&self) -> Result<SumSquares> {
        let mut ranges = vec![];
        for spec in self.trained() {
            match &self.sparse {
                Some(s) if s.start == spec.offset => ranges.extend(s.ranges(&s.window)),
                _ => ranges.push(spec.range()),
            }
        }
        adamw::sum_squares(&self.training()?.grads, &ranges)
    }

    /// What the `step`-th step (from 1) moves. Rows of the sparse table that no batch ever touched have zero gradient and
    /// moments: without weight decay their update is exactly zero and is skipped.
    fn segments(&self, step: u64, weight_decay: f64) -> Vec<Segment> {
        let mut segments: Vec<Segment> = vec![];
        for (spec, Learning { rate, since }) in self.learners() {
            let Some(since) = since.filter(|since| *since < step) else { continue };
            let weight_decay = if spec.decays() { weight_decay } else { 0.0 };
            let ranges = match &self.sparse {
                Some(s) if s.start == spec.offset && weight_decay == 0.0 => s.ranges(&s.ever),
                _ => vec![spec.range()],
            };
            segments.extend(ranges.into_iter().map(|range| Segment { range, weight_decay, rate, since }));
        }
        segments
    }

    /// One AdamW step, clipped by what [`Self::grad_squares`] gave; where that is not finite nothing moves.
    pub fn step(&self, step: AdamWStep, squares: &SumSquares, weight_decay: f64) -> Result<()> {
        let t = self.training()?;
        self.weights_change();
        let segments = self.segments(step.step, weight_decay);
        adamw::adamw(&self.weights, &t.m, &t.v, (&t.grads, squares), step, &segments)
    }

    /// Moves the average towards the weights after the `step`-th step (from 1); after the first it is the weights.
    pub fn average(&self, decay: f64, step: u64, weight_decay: f64) -> Result<()> {
        let Some(kept) = &self.training()?.average else { bail!("no average of the weights is kept") };
        if step == 1 {
            return kept.slice_set(&self.weights, 0, 0);
        }
        let ranges: Vec<Range<usize>> = self.segments(step, weight_decay).into_iter().map(|s| s.range).collect();
        average(kept, &self.weights, 1.0 - decay, &ranges)
    }

    /// Moves the rows of the sparse table that this window touched by `length` along the gradient of the table, if that has a
    /// direction; gives the values that they had.
    pub fn perturb_rows(&self, length: f64) -> Result<Vec<(usize, Tensor)>> {
        let (Some(s), grads) = (&self.sparse, &self.training()?.grads) else { return Ok(vec![]) };
        let ranges = s.ranges(&s.window);
        let keep = |range: &Range<usize>| {
            Ok((range.start, self.weights.narrow(0, range.start, range.len())?.force_contiguous()?))
        };
        let kept = ranges.iter().map(keep).collect::<Result<_>>()?;
        perturb(&self.weights, (grads, &adamw::sum_squares(grads, &ranges)?), length, &ranges)?;
        Ok(kept)
    }

    /// Puts back what [`Self::perturb_rows`] gave, to the bit.
    pub fn put_back(&self, kept: &[(usize, Tensor)]) -> Result<()> {
        kept.iter().try_for_each(|(offset, values)| self.weights.slice_set(values, 0, *offset))
    }
}

/// The arena of the squares' means in a checkpoint.
const SECOND_MOMENT: &str = "second_moment";

fn view(arena: &Tensor, offset: usize, shape: &[usize]) -> Result<Tensor> {
    arena.narrow(0, offset, shape.iter().product())?.reshape(shape)
}

#[cfg(test)]
mod tests;
