//! Picking rows out of the packed layout and adding them back: the last layer and the heads read some tokens only.

#[cfg(gpu)]
mod cuda;

#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::index::Index;
use crate::ops::real::Real;
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;

/// `out[i] = x[index[i]]`; `index` holds row numbers of `x`.
pub fn gather_rows(out: &Tensor, x: &Tensor, index: &Index) -> Result<()> {
    index.expect("gather_rows", out.dim(0)?, x.dim(0)?)?;
    launch(&Gather, &[out], &[x, index.tensor()])
}

/// `x[index[i]] += part[i]`; backward of [`gather_rows`].
pub fn add_rows(x: &Tensor, part: &Tensor, index: &Index) -> Result<()> {
    index.expect("add_rows", part.dim(0)?, x.dim(0)?)?;
    launch(&Add, &[x], &[part, index.tensor()])
}

/// Sets the given ranges of a vector to zero.
pub fn zero_ranges(x: &Tensor, ranges: &[Range<usize>]) -> Result<()> {
    launch(&Zero { ranges }, &[x], &[])
}

/// `out[row] = ` the mean of the row's tokens in `x: [tokens, cols]`; `cu` holds the prefix sums of the rows' lengths.
pub fn mean_rows(out: &Tensor, x: &Tensor, cu: &[u32]) -> Result<()> {
    launch(&Mean { cu }, &[out], &[x])
}

/// From the gradient of the means to that of every token; backward of [`mean_rows`].
pub fn mean_rows_backward(dx: &Tensor, dout: &Tensor, cu: &[u32]) -> Result<()> {
    launch(&MeanBackward { cu }, &[dx], &[dout])
}

struct Mean<'a> {
    cu: &'a [u32],
}

impl Kernel for Mean<'_> {
    fn name(&self) -> &'static str {
        "mean_rows"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([out], [x]) = (dst, src) else { bail!("mean_rows: one destination, one source") };
        let n = out.cols;
        check_means("mean_rows", self.cu, (out.rows, n, out.stride), (x.rows, x.cols, x.stride))?;
        let mut sum = vec![0f32; n];
        by_format!(out, T => {
            let (x, out) = (x.values::<T>()?, out.values::<T>()?);
            for (out, w) in out.chunks_exact_mut(n).zip(self.cu.windows(2)) {
                sum.fill(0.0);
                for token in x[w[0] as usize * n..w[1] as usize * n].chunks_exact(n) {
                    sum.iter_mut().zip(token).for_each(|(s, v)| *s += v.to_f32());
                }
                let inverse = 1.0 / (w[1] - w[0]) as f32;
                out.iter_mut().zip(&sum).for_each(|(o, s)| *o = Real::from_f32(s * inverse));
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        let ([out], [x]) = (dst, src) else { bail!("mean_rows: one destination, one source") };
        cuda::mean("mean_rows", self.cu, gpu, out, x, false)
    }
}

struct MeanBackward<'a> {
    cu: &'a [u32],
}

impl Kernel for MeanBackward<'_> {
    fn name(&self) -> &'static str {
        "mean_rows_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([dx], [dout]) = (dst, src) else { bail!("mean_rows_backward: one destination, one source") };
        let n = dx.cols;
        check_means("mean_rows_backward", self.cu, (dout.rows, dout.cols, dout.stride), (dx.rows, n, dx.stride))?;
        by_format!(dx, T => {
            let (dx, dout) = (dx.values::<T>()?, dout.values::<T>()?);
            for (dout, w) in dout.chunks_exact(n).zip(self.cu.windows(2)) {
                let inverse = 1.0 / (w[1] - w[0]) as f32;
                for token in dx[w[0] as usize * n..w[1] as usize * n].chunks_exact_mut(n) {
                    token.iter_mut().zip(dout).for_each(|(d, g)| *d = Real::from_f32(g.to_f32() * inverse));
                }
            }
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        let ([dx], [dout]) = (dst, src) else { bail!("mean_rows_backward: one destination, one source") };
        cuda::mean("mean_rows_backward", self.cu, gpu, dout, dx, true)
    }
}

/// Rows, columns and stride of the means and of the tokens.
fn check_means(name: &str, cu: &[u32], means: (usize, usize, usize), tokens: (usize, usize, usize)) -> Result<()> {
    let prefix = cu.first() == Some(&0)
        && cu.last().is_some_and(|&n| n as usize == tokens.0)
        && cu.windows(2).all(|w| w[0] < w[1]);
    if !prefix || means.0 + 1 != cu.len() || means.1 != tokens.1 || means.2 != means.1 || tokens.2 != tokens.1 {
        bail!("{name}: {} means of {} over {} tokens of {}, {} rows", means.0, means.1, tokens.0, tokens.1, cu.len());
    }
    Ok(())
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
        check("gather_rows", n, x.cols)?;
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
        check("add_rows", n, x.cols)?;
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

fn check(name: &str, cols: usize, cols_of_x: usize) -> Result<()> {
    if cols == cols_of_x { Ok(()) } else { bail!("{name}: rows of {cols} of rows of {cols_of_x}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, flat, matrix, zeros};

    #[test]
    fn means_of_rows_and_back() {
        [7, 16].into_iter().for_each(means_of_rows);
    }

    fn means_of_rows(columns: usize) {
        let (x, cu) = (matrix(20, columns, 1), [0u32, 1, 16, 18, 20]);
        let (out, dx, dout) = (zeros(4, columns), zeros(20, columns), matrix(4, columns, 2));
        mean_rows(&out, &x, &cu).unwrap();
        mean_rows_backward(&dx, &dout, &cu).unwrap();
        for (row, w) in cu.windows(2).enumerate() {
            let (start, len) = (w[0] as usize, (w[1] - w[0]) as usize);
            let want = flat(&x.narrow(0, start, len).unwrap().mean(0).unwrap());
            let got = flat(&out.get(row).unwrap());
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {want:?}");
            for token in start..start + len {
                let want = flat(&(dout.get(row).unwrap() / len as f64).unwrap());
                assert!(flat(&dx.get(token).unwrap()).iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
        let (half, back) = (bf16(&out), bf16(&dx));
        mean_rows(&half, &bf16(&x), &cu).unwrap();
        mean_rows_backward(&back, &bf16(&dout), &cu).unwrap();
        assert!(flat(&half).iter().zip(flat(&out)).all(|(a, b)| (a - b).abs() < 0.01));
        assert!(flat(&back).iter().zip(flat(&dx)).all(|(a, b)| (a - b).abs() < 0.01));
        assert!(mean_rows(&out, &x, &[0, 1, 16, 16, 20]).is_err() && mean_rows(&out, &x, &[0, 20]).is_err());
    }

    #[test]
    fn gather_then_add_back() {
        [3, 16].into_iter().for_each(gather_and_add);
    }

    fn gather_and_add(columns: usize) {
        let (x, out) = (matrix(5, columns, 1), zeros(3, columns));
        let index = Index::new(&[4, 0, 4], x.device()).unwrap();
        gather_rows(&out, &x, &index).unwrap();
        assert_eq!(flat(&out), flat(&x.index_select(index.tensor(), 0).unwrap()));
        let sum = x.copy().unwrap();
        add_rows(&sum, &out, &index).unwrap();
        assert_eq!(flat(&sum), flat(&x.index_add(index.tensor(), &out, 0).unwrap()));
        let (x, out) = (bf16(&x), bf16(&out));
        gather_rows(&out, &x, &index).unwrap();
        add_rows(&x, &out, &index).unwrap();
        let want: Vec<f32> = flat(&bf16(&sum));
        let close = flat(&x).iter().zip(&want).all(|(a, b)| (a - b).abs() <= b.abs() * 0.01 + 1e-6);
        assert!(close, "{:?} is not {want:?}", flat(&x));
        for wrong in [&[5, 0, 0][..], &[0, 0], &[0; 4]] {
            let wrong = Index::new(wrong, x.device()).unwrap();
            assert!(gather_rows(&out, &x, &wrong).is_err() && add_rows(&x, &out, &wrong).is_err());
        }
    }
}
