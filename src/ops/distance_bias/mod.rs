//! An attention bias by bucketed distance (Raffel et al. 2020, T5; bidirectional, as MPNet has it): from a table of one
//! row a bucket and one column a head to the scores' bias by distance, and back. [`crate::ops::attention`] adds the latter.

#[cfg(gpu)]
mod cuda;

#[cfg(gpu)]
use crate::ops::gpu::{Gpu, View};
use crate::ops::{Dst, Kernel, Src, launch};
use candle_core::{Result, Tensor, bail};

/// Buckets that [`bucket`] numbers: half of them for keys before the query or at it, half for keys behind it.
pub const BUCKETS: usize = 32;
/// Distances of this size and beyond share a bucket.
const MAX_DISTANCE: f32 = 128.0;

/// The bucket of `key − query`: one a distance up to 7, then as many for each doubling as f32 logarithms give.
pub fn bucket(distance: i64) -> usize {
    const SIDE: usize = BUCKETS / 2;
    const EXACT: usize = SIDE / 2;
    let side = if distance > 0 { SIDE } else { 0 };
    let n = distance.unsigned_abs() as usize;
    if n < EXACT {
        return side + n;
    }
    let doublings = (n as f32 / EXACT as f32).ln() / (MAX_DISTANCE / EXACT as f32).ln();
    side + SIDE.min(EXACT + (doublings * (SIDE - EXACT) as f32) as usize + 1) - 1
}

/// `values[head, key − query + reach] = table[bucket(key − query), head]`; `table: [buckets, heads]` with at least
/// [`BUCKETS`] rows, `values: [heads, 2·reach + 1]`, both f32.
pub fn expand(values: &Tensor, table: &Tensor) -> Result<()> {
    launch(&Expand, &[values], &[table])
}

/// The gradient of [`expand`]'s table from that of its values; added to `dtable` if `accumulate`.
pub fn collect(dtable: &Tensor, dvalues: &Tensor, accumulate: bool) -> Result<()> {
    launch(&Collect { accumulate }, &[dtable], &[dvalues])
}

/// The bucket of each column of values, if table and values fit each other.
fn buckets(name: &str, table: (usize, usize), values: (usize, usize)) -> Result<Vec<usize>> {
    let ((rows, heads), (same, columns)) = (table, values);
    if rows < BUCKETS || heads != same || columns.is_multiple_of(2) {
        bail!("{name}: a table [{rows}, {heads}] for values [{same}, {columns}]");
    }
    let reach = (columns / 2) as i64;
    Ok((-reach..=reach).map(bucket).collect())
}

struct Expand;

impl Kernel for Expand {
    fn name(&self) -> &'static str {
        "distance_bias"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([values], [table]) = (dst, src) else { bail!("distance_bias: one destination, one source") };
        let (heads, columns) = (values.rows, values.cols);
        let buckets = buckets("distance_bias", (table.rows, table.cols), (heads, columns))?;
        let table = table.f32()?;
        for (head, row) in values.f32()?.chunks_exact_mut(columns).enumerate() {
            for (v, bucket) in row.iter_mut().zip(&buckets) {
                *v = table[bucket * heads + head];
            }
        }
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::expand(gpu, dst, src)
    }
}

struct Collect {
    accumulate: bool,
}

impl Kernel for Collect {
    fn name(&self) -> &'static str {
        "distance_bias_backward"
    }

    fn cpu(&self, dst: &mut [Dst<'_>], src: &[Src<'_>]) -> Result<()> {
        let ([table], [values]) = (dst, src) else { bail!("distance_bias_backward: one destination, one source") };
        let (heads, columns) = (values.rows, values.cols);
        let buckets = buckets("distance_bias_backward", (table.rows, table.cols), (heads, columns))?;
        let table = table.f32()?;
        if !self.accumulate {
            table.fill(0.0);
        }
        for (head, row) in values.f32()?.chunks_exact(columns).enumerate() {
            for (v, bucket) in row.iter().zip(&buckets) {
                table[bucket * heads + head] += v;
            }
        }
        Ok(())
    }

    #[cfg(gpu)]
    fn cuda(&self, gpu: &Gpu<'_>, dst: &[View], src: &[View]) -> Result<()> {
        cuda::collect(self.accumulate, gpu, dst, src)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{flat, matrix};

    /// Where `MPNetEncoder.relative_position_bucket` of `transformers` changes its bucket, among distances 0 to 600.
    #[test]
    fn buckets_are_those_of_the_reference() {
        let starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for n in 0..600i64 {
            let at = starts.iter().rposition(|&s| s <= n).unwrap();
            assert_eq!(bucket(-n), at, "{n} before");
            assert_eq!(bucket(n), if n == 0 { 0 } else { 16 + at }, "{n} behind");
        }
    }

    #[test]
    fn collecting_is_the_transpose_of_expanding() {
        let (table, dvalues) = (matrix(33, 3, 1), matrix(3, 2 * 40 + 1, 2));
        let (values, dtable) = (matrix(3, 81, 3), matrix(33, 3, 4));
        expand(&values, &table).unwrap();
        let start = flat(&dtable);
        collect(&dtable, &dvalues, true).unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a * b) as f64).sum::<f64>();
        let moved: Vec<f32> = flat(&dtable).iter().zip(&start).map(|(a, b)| a - b).collect();
        assert!((dot(&flat(&values), &flat(&dvalues)) - dot(&flat(&table), &moved)).abs() < 1e-4);
        collect(&dtable, &dvalues, false).unwrap();
        let off = flat(&dtable).iter().zip(&moved).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5 && moved.iter().any(|m| m.abs() > 0.1));
        assert_eq!(flat(&values)[81 + 40 + 9], flat(&table)[bucket(9) * 3 + 1]);
        assert!(expand(&matrix(3, 80, 1), &table).is_err() && expand(&values, &matrix(16, 3, 1)).is_err());
    }
}
