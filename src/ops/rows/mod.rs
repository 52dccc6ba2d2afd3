//! Picking rows out of the packed layout and adding them back: the last layer and the heads read some tokens only.

#[cfg(gpu)]
mod cuda;

#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// `out[i] = x[index[i]]`; `index` holds row numbers of `x` (u32).
pub fn gather_rows(out: &Tensor, x: &Tensor, index: &Tensor) -> Result<()> {
    launch(&Gather, &[out], &[x, index])
}

/// `x[index[i]] += part[i]`; backward of [`gather_rows`].
pub fn add_rows(x: &Tensor, part: &Tensor, index: &Tensor) -> Result<()> {
    launch(&Add, &[x], &[part, index])
}

/// Sets the given ranges of a vector to zero.
pub fn zero_ranges(x: &Tensor, ranges: &[Range<usize>]) -> Result<()> {
    launch(&Zero { ranges }, &[x], &[])
}

struct Zero<'a> {
    ranges: &'a [Range<usize>],
}

impl Kernel for Zero<'_> {
    fn name(&self) -> &'static str {
        "zero_ranges"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], _: &[Src<'_>]) -> Result<()> {
        let ([x], n) = (dst, self.ranges.iter().map(|r| r.end).max().unwrap_or(0)) else {
            bail!("zero_ranges: one destination")
        };
        let x = x.f32()?;
        if n > x.len() {
            bail!("zero_ranges: a range ends at {n} of {}", x.len());
        }
        self.ranges.iter().for_each(|r| x[r.clone()].fill(0.0));
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        _ = src;
        cuda::zero(self.ranges, gpu, dst)
    }
}

struct Gather;

impl Kernel for Gather {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([out], [x, index]) = (dst, src) else { bail!("gather_rows: one destination, two sources") };
        let (n, index) = (out.cols, index.u32()?);
        check("gather_rows", n, out.rows, x.cols, index, x.rows)?;
        by_format!(out, T => {
            let values = x.values::<T>()?;
            for (out, &i) in out.values::<T>()?.chunks_exact_mut(n).zip(index) {
                out.copy_from_slice(&values[i as usize * x.stride..][..n]);
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::gather(gpu, dst, src)
    }
}

struct Add;

impl Kernel for Add {
    fn name(&self) -> &'static str {
        "add_rows"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([x], [part, index]) = (dst, src) else { bail!("add_rows: one destination, two sources") };
        let (n, index) = (part.cols, index.u32()?);
        check("add_rows", n, part.rows, x.cols, index, x.rows)?;
        let stride = x.stride;
        by_format!(x, T => {
            let x = x.values::<T>()?;
            for (part, &i) in part.values::<T>()?.chunks_exact(n).zip(index) {
                for (x, p) in x[i as usize * stride..][..n].iter_mut().zip(part) {
                    *x = Real::from_f32(Real::to_f32(*x) + Real::to_f32(*p));
                }
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::add(gpu, dst, src)
    }
}

fn check(name: &str, cols: usize, picked: usize, cols_of_x: usize, index: &[u32], rows: usize) -> Result<()> {
    if cols != cols_of_x || picked != index.len() || index.iter().any(|&i| i as usize >= rows) {
        bail!("{name}: {picked} rows of {cols} by {} indices into [{rows}, {cols_of_x}]", index.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, flat, matrix, zeros};

    #[test]
    fn gather_then_add_back() {
        let (x, out) = (matrix(5, 3, 1), zeros(3, 3));
        let index = Tensor::new(&[4u32, 0, 4], x.device()).unwrap();
        gather_rows(&out, &x, &index).unwrap();
        assert_eq!(flat(&out), flat(&x.index_select(&index, 0).unwrap()));
        let sum = x.copy().unwrap();
        add_rows(&sum, &out, &index).unwrap();
        assert_eq!(flat(&sum), flat(&x.index_add(&index, &out, 0).unwrap()));
        let (x, out) = (bf16(&x), bf16(&out));
        gather_rows(&out, &x, &index).unwrap();
        add_rows(&x, &out, &index).unwrap();
        let want: Vec<f32> = flat(&bf16(&sum));
        let close = flat(&x).iter().zip(&want).all(|(a, b)| (a - b).abs() <= b.abs() * 0.01 + 1e-6);
        assert!(close, "{:?} is not {want:?}", flat(&x));
        assert!(gather_rows(&out, &x, &Tensor::new(&[5u32, 0, 0], x.device()).unwrap()).is_err());
    }
}
