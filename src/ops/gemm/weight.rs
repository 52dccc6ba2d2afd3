//! The products of a layer in both formats: with its weight (where it is packed, and what is made of the result), and for
//! the weight's gradient.

#[cfg(gpu)]
use super::cuda;
use super::epilogue::{Form, Out};
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch, on_gpu};
use candle_core::{DType, Device, Result, Tensor, bail};

/// A linear layer's weight as the products read it.
#[derive(Debug, Clone)]
pub enum Weight {
    /// The f32 master, `[out, in]`. Each product packs it in its own order and format where it does not read it in place.
    Master(Tensor),
    /// A copy of it in the format of the activations, packed for `x · wᵀ`. In training a copy would serve once a step and
    /// outlive it; in evaluation it serves all batches.
    Packed { panels: Tensor, out: usize, inp: usize },
}

impl Weight {
    /// Room for a packed copy of a weight `[out, inp]`, to be filled by [`Self::pack`].
    pub fn room(out: usize, inp: usize, dtype: DType, device: &Device) -> Result<Self> {
        let len = if on_gpu(device) {
            // As it lies, in the format of the activations.
            out * inp
        } else if dtype == DType::BF16 {
            <half::bf16 as Format>::packed_len(inp, out)
        } else {
            <f32 as Format>::packed_len(inp, out)
        };
        Ok(Self::Packed { panels: Tensor::zeros(len, dtype, device)?, out, inp })
    }

    /// A GPU's copy as a master in the format of the activations, which products in both directions read.
    pub fn as_it_lies(&self) -> Result<Self> {
        match self {
            Self::Master(_) => Ok(self.clone()),
            Self::Packed { panels, out, inp } => Ok(Self::Master(panels.reshape((*out, *inp))?)),
        }
    }

    /// Fills the copy from the master `[out, in]`, after each change of it.
    pub fn pack(&self, master: &Tensor) -> Result<()> {
        match self {
            Self::Master(_) => Ok(()),
            Self::Packed { panels, .. } => launch(&Pack, &[panels], &[master]),
        }
    }
}

/// How a format's products work.
pub trait Format: Real {
    /// Values of a packed `[depth, cols]`.
    fn packed_len(depth: usize, cols: usize) -> usize;

    /// Packs `wᵀ` of `w: [cols, depth]`, rows `stride` apart.
    fn pack_transposed(to: &mut [Self], w: &[f32], cols: usize, depth: usize, stride: usize);

    /// Hands `f` room for this many values, which it finds as another call left it.
    fn with_room<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;

    /// `a · b` with a packed `b: [a.cols, n]`.
    ///
    /// # Safety
    /// The views of `out` span `[a.rows, n]` and share no memory with anything else; the length of `b` was checked.
    unsafe fn times_packed(a: &Src<'_>, b: &[Self], n: usize, out: Out<'_, Self>) -> Result<()>;

    /// `a · w` with `w: [a.cols, n]` in f32 as it lies.
    ///
    /// # Safety
    /// As above; `w` has the right shape.
    unsafe fn times_rows(a: &Src<'_>, w: &Src<'_>, out: Out<'_, Self>) -> Result<()>;

    /// `aᵀ · b` over the rows of both.
    ///
    /// # Safety
    /// As above; `a` and `b` have as many rows, at least one.
    unsafe fn transposed_times(a: &Src<'_>, b: &Src<'_>, out: Out<'_, Self>) -> Result<()>;
}

struct Pack;

impl Kernel for Pack {
    fn name(&self) -> &'static str {
        "pack_weight"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([to], [w]) = (dst, src) else { bail!("pack_weight: one destination, one source") };
        by_format!(to, T => {
            let to = to.values::<T>()?;
            if to.len() != T::packed_len(w.cols, w.rows) {
                bail!("pack_weight: {} values for [{}, {}]", to.len(), w.rows, w.cols);
            }
            T::pack_transposed(to, w.f32()?, w.rows, w.cols, w.stride);
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::pack(gpu, dst, src)
    }
}

/// `x · wᵀ` and what `form` makes of it, with a further source or none.
pub fn times_transposed(
    name: &'static str,
    dst: &[&Tensor],
    (x, w): (&Tensor, &Weight),
    form: Form,
    beside: Option<&Tensor>,
) -> Result<()> {
    let (source, is) = match w {
        Weight::Master(w) => (w, Source::Transposed),
        // Panels are padded, so their length alone would not tell a wrong shape.
        Weight::Packed { out, inp, .. } if dst[0].dim(1)? != *out || x.dim(1)? != *inp => {
            bail!("{name}: {:?} by a packed weight [{out}, {inp}] does not give {:?}", x.dims(), dst[0].dims())
        }
        Weight::Packed { panels, .. } => (panels, Source::Packed),
    };
    let src = [x, source, beside.unwrap_or(x)];
    launch(&TimesWeight { name, is, form }, dst, &src[..2 + usize::from(beside.is_some())])
}

/// `dy · w` and what `form` makes of it, with a further source or none.
pub fn times_rows(
    name: &'static str,
    dst: &Tensor,
    (dy, w): (&Tensor, &Weight),
    form: Form,
    beside: Option<&Tensor>,
) -> Result<()> {
    let Weight::Master(w) = w else { bail!("{name}: this weight was packed for evaluation only") };
    let src = [dy, w, beside.unwrap_or(dy)];
    launch(&TimesWeight { name, is: Source::Rows, form }, &[dst], &src[..2 + usize::from(beside.is_some())])
}

/// What the second source is: the right operand as it lies, its transpose, or a packed copy.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Source {
    Rows,
    Transposed,
    Packed,
}

pub(super) struct TimesWeight {
    pub name: &'static str,
    pub is: Source,
    pub form: Form,
}

impl Kernel for TimesWeight {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let Some(first) = dst.first() else { bail!("{}: no destination", self.name) };
        by_format!(first, T => self.run::<T>(dst, src))
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::times_weight(self, gpu, dst, src)
    }
}

impl TimesWeight {
    fn run<T: Format>(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let [a, w, rest @ ..] = src else { bail!("{}: two or three sources", self.name) };
        let (m, k, n) = (a.rows, a.cols, dst[0].cols);
        let fits = match self.is {
            Source::Rows => (w.rows, w.cols) == (k, n),
            Source::Transposed => (w.rows, w.cols) == (n, k),
            Source::Packed => w.rows * w.cols == T::packed_len(k, n),
        };
        if k == 0 || !fits {
            bail!("{}: [{m}, {k}] by a weight of [{}, {}] does not give {n} columns", self.name, w.rows, w.cols);
        }
        let out = self.form.out::<T>(self.name, (m, n), dst, rest)?;
        // SAFETY: the views of `out` are [m, n] and no two arguments share memory; the weight's shape was checked.
        unsafe {
            match self.is {
                Source::Rows => T::times_rows(a, w, out),
                Source::Packed => T::times_packed(a, w.values()?, n, out),
                Source::Transposed => T::with_room(T::packed_len(k, n), |room| {
                    T::pack_transposed(room, w.f32()?, n, k, w.stride);
                    T::times_packed(a, room, n, out)
                }),
            }
        }
    }
}

/// `dw[out, in] = dyᵀ · x` in f32, added to `dw` if `accumulate`.
pub fn weight_grad(dw: &Tensor, dy: &Tensor, x: &Tensor, accumulate: bool) -> Result<()> {
    launch(&WeightGrad { accumulate }, &[dw], &[dy, x])
}

struct WeightGrad {
    accumulate: bool,
}

impl Kernel for WeightGrad {
    fn name(&self) -> &'static str {
        "linear_weight_grad"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dw], [dy, x]) = (dst, src) else { bail!("linear_weight_grad: one destination, two sources") };
        let (m, n, tokens) = (dy.cols, x.cols, dy.rows);
        if tokens == 0 || x.rows != tokens || (dw.rows, dw.cols) != (m, n) {
            let (r, c) = (dw.rows, dw.cols);
            bail!("linear_weight_grad: [{tokens}, {m}]ᵀ · [{}, {n}] does not give [{r}, {c}]", x.rows);
        }
        let c = (dw.f32()?.as_mut_ptr(), dw.stride);
        // SAFETY: `dw` is [m, n] and shares no memory with the operands, which have as many rows.
        by_format!(dy, T => unsafe { T::transposed_times(dy, x, Out::Sum { c, add: self.accumulate }) })
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::weight_grad(self.accumulate, gpu, dst, src)
    }
}
