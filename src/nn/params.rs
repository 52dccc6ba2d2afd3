//! All parameters of a model in one flat arena, and beside it one arena each for gradients and the two moments.
//!
//! Layout is decided once ([`Layout`]); parameters that one kernel reads together (query, key and value; a bias and the layer
//! norm after it) are neighbours, so that one view serves it. Names are the Hugging Face checkpoint's.

use super::workspace::Space;
use crate::ops::adamw::{self, AdamWStep, Segment};
use crate::ops::gemm::{Weight, keeps_packed};
use crate::ops::on_gpu;
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
    /// N(0, initializer_range²)
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
}

/// Packed copies of the weights that products read in evaluation, made when first asked for after a change of the weights.
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
    /// Which of them do not learn.
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
        let frozen = layout.specs.iter().map(Spec::is_fixed).collect();
        Ok(Self { specs: layout.specs, frozen, by_name, weights, training: None, sparse, dtype: space.dtype, copies })
    }

    /// Allocates gradients and moments, all zero.
    pub fn start_training(&mut self) -> Result<()> {
        let zeros = || Tensor::zeros(self.weights.elem_count(), DType::F32, self.weights.device());
        self.training = Some(Training { grads: zeros()?, m: zeros()?, v: zeros()? });
        // The optimizer changes the weights under them.
        self.copies.packed.borrow_mut().clear();
        Ok(())
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

    /// Keeps the parameters that `frozen` picks as they are: they get no update and take no part in the gradient's norm.
    pub fn freeze(&mut self, frozen: impl Fn(&Spec) -> bool) {
        self.frozen = self.specs.iter().map(|s| s.is_fixed() || frozen(s)).collect();
    }

    /// The parameters that learn.
    pub fn trained(&self) -> impl Iterator<Item = &Spec> {
        self.specs.iter().zip(&self.frozen).filter(|(_, frozen)| !**frozen).map(|(spec, _)| spec)
    }

    /// Whether any parameter in a range of the arena learns.
    pub fn trains(&self, range: Range<usize>) -> bool {
        let first = self.specs.partition_point(|s| s.range().end <= range.start);
        let last = self.specs.partition_point(|s| s.offset < range.end);
        self.frozen[first..last.max(first)].iter().any(|frozen| !frozen)
    }

    pub fn spec(&self, name: &str) -> Option<&Spec> {
        self.by_name.get(name).map(|&i| &self.specs[i])
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
        if on_gpu(self.device()) {
            return 3 * 4 * self.arena_len();
        }
        let bytes = |s: &Spec| 4 * s.len();
        let grads: usize = self.trained().map(|s| sparse(s).map_or(bytes(s), pages_of)).sum();
        let moments: usize = if weight_decay > 0.0 { self.trained().map(bytes).sum() } else { grads };
        grads + 2 * moments
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
        Ok(fresh)
    }

    /// To be called whenever weights come from outside.
    fn weights_loaded(&self) {
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

    /// The arenas `[weights, m, v]`, for a checkpoint.
    pub fn state(&self) -> Result<[&Tensor; 3]> {
        let t = self.training()?;
        Ok([&self.weights, &t.m, &t.v])
    }

    /// Puts back one of the arenas that [`Self::state`] gave, by its place there.
    pub fn restore(&mut self, which: usize, values: &Tensor) -> Result<()> {
        self.state()?[which].slice_set(values, 0, 0)?;
        self.weights_loaded();
        if let (2, Some(s)) = (which, self.sparse.as_mut().filter(|s| !s.all)) {
            let rows = values.narrow(0, s.start, s.ever.len() * s.width)?.reshape((s.ever.len(), s.width))?;
            let touched: Vec<f32> = rows.max(1)?.to_vec1()?;
            s.ever = touched.iter().map(|&x| x != 0.0).collect();
        }
        Ok(())
    }

    /// Replaces the weights alone.
    pub fn restore_weights(&self, weights: &Tensor) -> Result<()> {
        self.weights_loaded();
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

    /// Notes which rows of the sparse table a batch touches; the tensor is read where it matters.
    pub fn touch(&mut self, rows: &Tensor) -> Result<()> {
        if let Some(s) = self.sparse.as_mut().filter(|s| !s.all) {
            for r in rows.to_vec1::<u32>()? {
                s.window[r as usize] = true;
                s.ever[r as usize] = true;
            }
        }
        Ok(())
    }

    /// ‖gradient‖² of one parameter.
    pub fn grad_square(&self, spec: &Spec) -> Result<f64> {
        adamw::sum_squares(&self.training()?.grads, &[spec.range()])
    }

    /// ‖gradient‖₂ over all parameters that learn.
    pub fn grad_norm(&self) -> Result<f64> {
        let mut ranges = vec![];
        for spec in self.trained() {
            match &self.sparse {
                Some(s) if s.start == spec.offset => ranges.extend(s.ranges(&s.window)),
                _ => ranges.push(spec.range()),
            }
        }
        Ok(adamw::sum_squares(&self.training()?.grads, &ranges)?.sqrt())
    }

    /// One AdamW step. Rows of the sparse table that no batch ever touched have zero gradient and moments: without weight
    /// decay their update is exactly zero and is skipped.
    pub fn step(&self, step: AdamWStep, weight_decay: f64) -> Result<()> {
        let mut segments: Vec<Segment> = vec![];
        for spec in self.trained() {
            let weight_decay = if spec.decays() { weight_decay } else { 0.0 };
            let ranges = match &self.sparse {
                Some(s) if s.start == spec.offset && weight_decay == 0.0 => s.ranges(&s.ever),
                _ => vec![spec.range()],
            };
            segments.extend(ranges.into_iter().map(|range| Segment { range, weight_decay }));
        }
        let t = self.training()?;
        adamw::adamw(&self.weights, &t.m, &t.v, &t.grads, step, &segments)
    }
}

fn view(arena: &Tensor, offset: usize, shape: &[usize]) -> Result<Tensor> {
    arena.narrow(0, offset, shape.iter().product())?.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> Params {
        let mut layout = Layout::default();
        layout.block(&[("table".into(), vec![5, 2], Init::Normal)]);
        layout.block(&[("a.weight".into(), vec![2, 2], Init::Normal), ("a.bias".into(), vec![2], Init::Zeros)]);
        let n = layout.arena_len();
        let space = Space::f32(&Device::Cpu);
        let mut p = Params::new(layout, (0..n).map(|i| i as f32).collect(), space, Some("table")).unwrap();
        p.start_training().unwrap();
        p
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn views_are_the_arena() {
        let p = params();
        assert_eq!(p.count(), 16);
        let a = p.spec("a.weight").unwrap();
        assert_eq!(a.offset, 16);
        assert_eq!(values(&p.weight(16, &[6]).unwrap()), [16., 17., 18., 19., 20., 21.]);
        assert!(a.decays() && !p.spec("a.bias").unwrap().decays());
        for (name, decays) in [
            ("layer.0.output_layer_norm.weight", false),
            ("layers.0.attn_norm.weight", false),
            ("embeddings.norm.weight", false),
            ("embeddings.LayerNorm.weight", false),
            ("relative_attention_bias.weight", false),
            ("normal.weight", true),
        ] {
            assert_eq!(Spec { name: name.into(), ..a.clone() }.decays(), decays, "{name}");
        }
    }

    fn rows(rows: &[u32]) -> Tensor {
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn what_is_absent_has_room_and_no_name() {
        let mut layout = Layout::default();
        let member = |name: &str, init| (name.to_owned(), vec![3], init);
        layout.block(&[member("bias", Init::Absent), member("gamma", Init::Ones), member("beta", Init::Absent)]);
        assert_eq!(layout.arena_len(), 9);
        assert_eq!(layout.specs().iter().map(|s| (s.name.as_str(), s.offset)).collect::<Vec<_>>(), [("gamma", 3)]);
        let p = Params::new(layout, vec![0.0; 9], Space::f32(&Device::Cpu), None).unwrap();
        assert!(p.trains(3..6) && !p.trains(0..3) && !p.trains(6..9));
    }

    #[test]
    fn untouched_rows_stay_and_touched_rows_are_cleared() {
        let mut p = params();
        let g = p.grad(0, &[5, 2]).unwrap();
        p.begin_window().unwrap();
        p.touch(&rows(&[1, 2, 4])).unwrap();
        g.slice_set(&Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap(), 0, 1).unwrap();
        assert_eq!(p.grad_norm().unwrap(), 2.0);
        let step = AdamWStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 0.0, step: 1, grad_scale: 1.0 };
        p.step(AdamWStep { epsilon: 1e-8, ..step }, 0.0).unwrap();
        let w = values(&p.weight(0, &[10]).unwrap());
        assert_eq!(w[..2], [0., 1.]);
        assert!((w[2] - 1.9).abs() < 1e-6 && w[6..] == [6., 7., 8., 9.]);
        p.begin_window().unwrap();
        assert_eq!(p.grad_norm().unwrap(), 0.0);
        assert_eq!(values(&g), vec![0.0; 10]);
        // With decay every row moves.
        p.step(AdamWStep { step: 2, epsilon: 1e-8, ..step }, 0.5).unwrap();
        assert!((values(&p.weight(0, &[10]).unwrap())[1] - 0.95).abs() < 1e-6);
    }

    #[test]
    fn a_checkpoint_brings_back_which_rows_have_moments() {
        let mut p = params();
        p.touch(&rows(&[3])).unwrap();
        p.grad(0, &[5, 2]).unwrap().slice_set(&Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap(), 0, 3).unwrap();
        let step = AdamWStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, step: 1, grad_scale: 1.0 };
        p.step(step, 0.0).unwrap();
        let saved: Vec<Tensor> = p.state().unwrap().iter().map(|t| t.copy().unwrap()).collect();
        let mut q = params();
        saved.iter().enumerate().for_each(|(i, arena)| q.restore(i, arena).unwrap());
        for x in [&mut p, &mut q] {
            x.begin_window().unwrap();
            x.step(AdamWStep { step: 2, ..step }, 0.0).unwrap();
        }
        assert_eq!(values(&p.weight(0, &[22]).unwrap()), values(&q.weight(0, &[22]).unwrap()));
        assert_ne!(values(&q.weight(0, &[22]).unwrap()), values(&saved[0]));
    }
}
