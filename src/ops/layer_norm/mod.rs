//! Layer norm (Ba et al. 2016) fused with what stands before it in a post-norm block: the branch's bias, dropout and
//! the residual sum. Mean and reciprocal deviation are computed again in the backward pass: the row is in L1 anyway.

pub(crate) mod cpu;
#[cfg(gpu)]
mod cuda;

use crate::ops::dropout::Dropout;
#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::{Dst, Kernel, Src, by_format, launch};
use candle_core::{Result, Tensor, bail};

/// `s = residual + dropout(s + bias)`, `y = norm(s)·gamma + beta`.
///
/// `s, y, residual: [tokens, hidden]`; on entry `s` holds the branch's product, on return the pre-norm sum that
/// [`residual_norm_backward`] reads. `params: [3, hidden]` = bias, gamma, beta, always f32; all else f32 or bf16 alike.
pub fn residual_norm(
    s: &Tensor,
    y: &Tensor,
    residual: &Tensor,
    params: &Tensor,
    eps: f32,
    dropout: Dropout,
) -> Result<()> {
    launch(&Forward { eps, dropout }, &[s, y], &[residual, params])
}

/// Backward of [`residual_norm`]: from `dy` to `ds` (the residual's gradient), `dbranch` (the branch product's) and
/// `dparams: [3, hidden]` = dbias, dgamma, dbeta, added to if `accumulate`.
pub struct ResidualNormGrads<'a> {
    pub ds: &'a Tensor,
    pub dbranch: &'a Tensor,
    pub dparams: &'a Tensor,
}

/// See [`ResidualNormGrads`].
pub fn residual_norm_backward(
    out: ResidualNormGrads<'_>,
    dy: &Tensor,
    s: &Tensor,
    params: &Tensor,
    eps: f32,
    dropout: Dropout,
    accumulate: bool,
) -> Result<()> {
    launch(&Backward { eps, dropout, accumulate }, &[out.ds, out.dbranch, out.dparams], &[dy, s, params])
}

/// The same where more reads the sum than this norm: `carried` is the gradient of `s` that comes from there.
pub fn residual_norm_backward_onto(
    out: ResidualNormGrads<'_>,
    carried: &Tensor,
    dy: &Tensor,
    s: &Tensor,
    params: &Tensor,
    eps: f32,
    dropout: Dropout,
    accumulate: bool,
) -> Result<()> {
    launch(&Backward { eps, dropout, accumulate }, &[out.ds, out.dbranch, out.dparams], &[dy, s, params, carried])
}

struct Forward {
    eps: f32,
    dropout: Dropout,
}

impl Kernel for Forward {
    fn name(&self) -> &'static str {
        "residual_norm"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([s, y], [residual, params]) = (dst, src) else { bail!("residual_norm: two destinations, two sources") };
        check("residual_norm", s.rows, s.cols, &[(y.rows, y.cols), (residual.rows, residual.cols)], params)?;
        let h = s.cols;
        by_format!(y, T => {
            cpu::residual_norm::<T>(
                s.values()?, y.values()?, residual.values()?, params.f32()?, h, self.eps, self.dropout,
            );
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::forward(self, gpu, dst, src)
    }
}

struct Backward {
    eps: f32,
    dropout: Dropout,
    accumulate: bool,
}

impl Kernel for Backward {
    fn name(&self) -> &'static str {
        "residual_norm_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([ds, dbranch, dparams], [dy, s, params, carried @ ..]) = (dst, src) else {
            bail!("residual_norm_backward: three destinations, three sources or four")
        };
        let carried = carried.first();
        let shape = (ds.rows, ds.cols);
        let same = [
            (dbranch.rows, dbranch.cols),
            (dy.rows, dy.cols),
            (s.rows, s.cols),
            carried.map_or(shape, |c| (c.rows, c.cols)),
        ];
        check("residual_norm_backward", ds.rows, ds.cols, &same, params)?;
        let dparams = dparams.f32()?;
        if dparams.len() != 3 * ds.cols {
            bail!("residual_norm_backward: dparams is not [3, {}]", ds.cols);
        }
        by_format!(ds, T => {
            cpu::residual_norm_backward::<T>(
                ds.values()?,
                dbranch.values()?,
                dparams,
                dy.values()?,
                s.values()?,
                carried.map(Src::values).transpose()?,
                params.f32()?,
                self.eps,
                self.dropout,
                self.accumulate,
            );
        });
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::backward(self, gpu, dst, src)
    }
}

fn check(name: &str, rows: usize, cols: usize, others: &[(usize, usize)], params: &Src<'_>) -> Result<()> {
    if others.iter().any(|&o| o != (rows, cols)) || params.rows * params.cols != 3 * cols {
        bail!("{name}: [{rows}, {cols}] against {others:?} and parameters [{}, {}]", params.rows, params.cols);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bf16, close, flat, matrix, rounded, values, wide, zeros};

    /// The definition in f64: (s, y).
    fn forward(x: &[f32], residual: &[f32], p: &[f32], h: usize, eps: f64, drop: Dropout) -> (Vec<f64>, Vec<f64>) {
        let s: Vec<f64> = (0..x.len())
            .map(|i| residual[i] as f64 + drop.factor(i as u32) as f64 * (x[i] as f64 + p[i % h] as f64))
            .collect();
        let y = s
            .chunks(h)
            .flat_map(|row| {
                let mean = row.iter().sum::<f64>() / h as f64;
                let rstd = 1.0 / (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / h as f64 + eps).sqrt();
                (0..h).map(move |j| (row[j] - mean) * rstd * p[h + j] as f64 + p[2 * h + j] as f64).collect::<Vec<_>>()
            })
            .collect();
        (s, y)
    }

    #[test]
    fn forward_and_gradients_match_the_definition() {
        for (tokens, h, p) in [(1, 1, 0.0), (3, 5, 0.3), (67, 40, 0.1), (130, 33, 0.0)] {
            let drop = Dropout::new(p, 11);
            let (x, res, params) = (matrix(tokens, h, 1), matrix(tokens, h, 2), matrix(3, h, 3));
            let (s, y) = (x.copy().unwrap(), zeros(tokens, h));
            residual_norm(&s, &y, &res, &params, 1e-5, drop).unwrap();
            let (s64, y64) = forward(&flat(&x), &flat(&res), &flat(&params), h, 1e-5, drop);
            close(&flat(&s), &s64, 1e-6, "s");
            close(&flat(&y), &y64, 2e-5, "y");
            if h == 1 {
                continue; // the variance is 0 and the loss below flat: nothing to differentiate
            }
            // Central differences in f64 of the loss Σ dy·y.
            let dy = matrix(tokens, h, 4);
            let (w, f) = (flat(&dy), |x: &[f32], r: &[f32], p: &[f32]| forward(x, r, p, h, 1e-5, drop).1);
            let loss =
                |x: &[f32], r: &[f32], p: &[f32]| f(x, r, p).iter().zip(&w).map(|(a, b)| a * *b as f64).sum::<f64>();
            let (xv, rv, pv) = (flat(&x), flat(&res), flat(&params));
            let numeric = |which: usize, i: usize| {
                let step = |d: f32| {
                    let mut v = [xv.clone(), rv.clone(), pv.clone()];
                    v[which][i] += d;
                    (v[which][i] as f64, loss(&v[0], &v[1], &v[2]))
                };
                let ((a, la), (b, lb)) = (step(1e-3), step(-1e-3));
                (la - lb) / (a - b)
            };
            let (ds, dbranch) = (zeros(tokens, h), zeros(tokens, h));
            for accumulate in [false, true] {
                let dparams = matrix(3, h, 5);
                let start = if accumulate { values(3 * h, 5) } else { vec![0.0; 3 * h] };
                let out = ResidualNormGrads { ds: &ds, dbranch: &dbranch, dparams: &dparams };
                residual_norm_backward(out, &dy, &s, &params, 1e-5, drop, accumulate).unwrap();
                let want: Vec<f64> = (0..3 * h).map(|i| numeric(2, i) + start[i] as f64).collect();
                close(&flat(&dparams), &want, 2e-3, "dparams");
            }
            let picks: Vec<usize> = (0..tokens * h).step_by(1 + tokens * h / 50).collect();
            for (which, t, what) in [(1, &ds, "ds"), (0, &dbranch, "dbranch")] {
                let all = flat(t);
                let got: Vec<f32> = picks.iter().map(|&i| all[i]).collect();
                close(&got, &picks.iter().map(|&i| numeric(which, i)).collect::<Vec<_>>(), 3e-3, what);
            }
        }
    }

    #[test]
    fn thread_count_changes_only_rounding() {
        let (x, res, params, dy) = (matrix(300, 48, 1), matrix(300, 48, 2), matrix(3, 48, 3), matrix(300, 48, 4));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (s, y) = (x.copy().unwrap(), zeros(300, 48));
                let drop = Dropout::new(0.1, 3);
                residual_norm(&s, &y, &res, &params, 1e-5, drop).unwrap();
                let (ds, db, dp) = (zeros(300, 48), zeros(300, 48), zeros(3, 48));
                let out = ResidualNormGrads { ds: &ds, dbranch: &db, dparams: &dp };
                residual_norm_backward(out, &dy, &s, &params, 1e-5, drop, false).unwrap();
                (flat(&y), flat(&ds), flat(&db), flat(&dp))
            })
        };
        let (one, three) = (run(1), run(3));
        assert_eq!((&one.0, &one.1, &one.2), (&three.0, &three.1, &three.2));
        close(&one.3, &three.3.iter().map(|&v| v as f64).collect::<Vec<_>>(), 1e-5, "dparams");
        assert_eq!(run(3), three);
    }

    /// What is carried adds to the sum's gradient, before dropout parts the branch's from it.
    #[test]
    fn a_carried_gradient_adds_to_the_sums() {
        for (tokens, h) in [(1, 15), (33, 40)] {
            let (s, dy, carried, params) =
                (matrix(tokens, h, 1), matrix(tokens, h, 2), matrix(tokens, h, 3), matrix(3, h, 4));
            let drop = Dropout::new(0.3, 5);
            let run = |carried: Option<&Tensor>, dy: &Tensor, s: &Tensor| {
                let (ds, branch, dparams) = (dy.zeros_like().unwrap(), dy.zeros_like().unwrap(), zeros(3, h));
                let out = ResidualNormGrads { ds: &ds, dbranch: &branch, dparams: &dparams };
                match carried {
                    None => residual_norm_backward(out, dy, s, &params, 1e-5, drop, false).unwrap(),
                    Some(c) => residual_norm_backward_onto(out, c, dy, s, &params, 1e-5, drop, false).unwrap(),
                }
                (ds, branch, dparams)
            };
            let (alone, both) = (run(None, &dy, &s), run(Some(&carried), &dy, &s));
            let c = flat(&carried);
            let plus = |v: &[f32], f: &dyn Fn(usize) -> f32| {
                v.iter().enumerate().map(|(i, v)| f64::from(v + f(i) * c[i])).collect::<Vec<f64>>()
            };
            close(&flat(&both.0), &plus(&flat(&alone.0), &|_| 1.0), 1e-6, "ds");
            close(&flat(&both.1), &plus(&flat(&alone.1), &|i| drop.factor(i as u32)), 1e-6, "dbranch");
            let bias: Vec<f64> =
                (0..h).map(|j| flat(&both.1).iter().skip(j).step_by(h).map(|&v| v as f64).sum()).collect();
            close(&flat(&both.2)[..h], &bias, 1e-5, "dbias");
            assert_eq!(flat(&both.2)[h..], flat(&alone.2)[h..]);
            let got = run(Some(&bf16(&carried)), &bf16(&dy), &bf16(&s));
            let want = run(Some(&wide(&bf16(&carried))), &wide(&bf16(&dy)), &wide(&bf16(&s)));
            rounded(&got.0, &want.0, 0.0, "ds");
            rounded(&got.1, &want.1, 3.0, "dbranch"); // rounded twice
        }
    }

    #[test]
    fn bf16_is_f32_rounded() {
        for (tokens, h) in [(1, 15), (17, 33), (130, 96)] {
            let (x, residual) = (bf16(&matrix(tokens, h, 1)), bf16(&matrix(tokens, h, 2)));
            let (params, dy, drop) = (matrix(3, h, 3), bf16(&matrix(tokens, h, 4)), Dropout::new(0.1, 3));
            let run = |x: &Tensor, residual: &Tensor, dy: &Tensor, kept: Option<&Tensor>| {
                let (s, y) = (x.copy().unwrap(), dy.zeros_like().unwrap());
                residual_norm(&s, &y, residual, &params, 1e-5, drop).unwrap();
                let (ds, branch, dparams) = (dy.zeros_like().unwrap(), dy.zeros_like().unwrap(), zeros(3, h));
                let out = ResidualNormGrads { ds: &ds, dbranch: &branch, dparams: &dparams };
                residual_norm_backward(out, dy, kept.unwrap_or(&s), &params, 1e-5, drop, false).unwrap();
                (s, y, ds, branch, dparams)
            };
            let got = run(&x, &residual, &dy, None);
            // Both backward passes begin at the sum as bf16 kept it.
            let want = run(&wide(&x), &wide(&residual), &wide(&dy), Some(&wide(&got.0)));
            rounded(&got.0, &want.0, 0.0, "s");
            rounded(&got.1, &want.1, 3.0, "y");
            rounded(&got.2, &want.2, 0.0, "ds");
            rounded(&got.3, &want.3, 1.0, "dbranch"); // rounded twice
            let want: Vec<f64> = flat(&want.4).iter().map(|&v| v as f64).collect();
            close(&flat(&got.4), &want, 0.02, "dparams");
        }
    }
}
