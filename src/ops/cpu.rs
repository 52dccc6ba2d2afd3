//! What the CPU bodies share: the instruction set found at run time, loops over rows on all threads, and the vector maths
//! (exp, erf, sums) written so that LLVM turns it into full-width vector code.

use super::pool::for_each;
use std::ops::Range;
use std::sync::OnceLock;

/// The instructions that the kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the compiler's baseline offers (SSE2 on x86-64).
    Baseline,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL; AVX512-BF16 for bf16 products where the machine has it.
    Avx512,
    /// AVX-512 with AVX512-BF16, and AMX tiles for bf16 products.
    Amx,
}

impl Level {
    /// By the name that [`LEVEL_VARIABLE`] takes.
    pub const NAMES: [(&'static str, Self); 4] =
        [("baseline", Self::Baseline), ("avx2", Self::Avx2), ("avx512", Self::Avx512), ("amx", Self::Amx)];
}

/// Overrides the level: `baseline`, `avx2`, `avx512` or `amx`; never more than the machine has. For tests of every body
/// on one machine; f32 products at `baseline` are the `gemm` crate's, which chooses by itself.
pub const LEVEL_VARIABLE: &str = "BERTFT_CPU";

/// The best level this machine has, or the lower one that [`LEVEL_VARIABLE`] asks for.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let asked = asked_level().ok().flatten().unwrap_or(Level::Amx);
        #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
        if std::env::var_os(LEVEL_VARIABLE).is_some() && asked == Level::Amx && has_avx512_bf16() && !has_amx() {
            super::gemm::amx_emulator::install();
            return Level::Amx;
        }
        detect().min(asked)
    })
}

/// What [`LEVEL_VARIABLE`] asks for, or its value when that is none of the levels.
pub fn asked_level() -> std::result::Result<Option<Level>, String> {
    match std::env::var(LEVEL_VARIABLE) {
        Err(_) => Ok(None),
        Ok(asked) if asked.is_empty() => Ok(None),
        Ok(asked) => match Level::NAMES.iter().find(|(name, _)| *name == asked) {
            Some((_, level)) => Ok(Some(*level)),
            None => Err(asked),
        },
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if avx512 && has_avx512_bf16() && has_amx() {
        Level::Amx
    } else if avx512 {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Baseline
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// Whether the CPU multiplies bf16 pairs in AVX-512 registers.
pub fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// AMX tiles with bf16: the CPU has them and Linux grants them to this process (which this asks for).
pub fn has_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        let has_leaf_7 = std::arch::x86_64::__cpuid(0).eax >= 7;
        let edx = if has_leaf_7 { std::arch::x86_64::__cpuid_count(7, 0).edx } else { 0 };
        let (amx_bf16, amx_tile) = (edx >> 22 & 1, edx >> 24 & 1);
        // SAFETY: `arch_prctl` with this request reads and writes none of our memory.
        let granted = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 };
        amx_bf16 == 1 && amx_tile == 1 && granted()
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// Compiles a function once per [`Level`] and picks at run time. The body may call `#[inline(always)]` functions, and
/// [`madd`]`::<FMA>` for a multiply-add that is fused where the level has it. `fn name[T](…)` is generic over a number format
/// `T: Real`.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$t:ident])? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$t: $crate::ops::real::Real>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($t: $crate::ops::real::Real,)? const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$t: $crate::ops::real::Real>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<$($t,)? true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$t: $crate::ops::real::Real>)? ($($arg: $ty),*) $(-> $ret)? {
                    body::<$($t,)? true>($($arg),*)
                }
                match $crate::ops::cpu::level() {
                    $crate::ops::cpu::Level::Avx512 | $crate::ops::cpu::Level::Amx => {
                        // SAFETY: `level` found these features on this machine.
                        return unsafe { avx512 $(::<$t>)? ($($arg),*) }
                    }
                    // SAFETY: as above.
                    $crate::ops::cpu::Level::Avx2 => return unsafe { avx2 $(::<$t>)? ($($arg),*) },
                    $crate::ops::cpu::Level::Baseline => {}
                }
            }
            body::<$($t,)? false>($($arg),*)
        }
    };
}
pub(crate) use simd;

/// `a * b + c`. Without FMA `mul_add` would be a library call an element.
#[inline(always)]
pub fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Width of the partial sums; one AVX-512 register.
pub const LANES: usize = 16;

/// Σ f(x₀[i], x₁[i], …) over slices of one length, in four registers of [`LANES`] partial sums so that no addition waits for
/// the one before. The order is fixed, so the same input gives the same bits.
#[inline(always)]
pub fn lane_sum<const N: usize>(xs: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let n = xs[0].len();
    // Fixed-size blocks: inside them no index is checked, which would keep the loop from becoming vector code.
    let block = |at: usize| xs.map(|x| x[at..].first_chunk::<LANES>().expect("slices of one length"));
    let add = |acc: &mut [f32; LANES], at: usize| {
        let block = block(at);
        for (l, a) in acc.iter_mut().enumerate() {
            *a += f(block.map(|x| x[l]));
        }
    };
    let (mut a, mut b, mut c, mut d) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let mut i = 0;
    while n - i >= 4 * LANES {
        add(&mut a, i);
        add(&mut b, i + LANES);
        add(&mut c, i + 2 * LANES);
        add(&mut d, i + 3 * LANES);
        i += 4 * LANES;
    }
    while n - i >= LANES {
        add(&mut a, i);
        i += LANES;
    }
    for l in 0..LANES {
        a[l] = (a[l] + b[l]) + (c[l] + d[l]);
    }
    let mut sum = fold(in_memory(a), |a, b| a + b);
    while i < n {
        sum += f(xs.map(|x| x[i]));
        i += 1;
    }
    sum
}

/// The same lanes. LLVM forms vectors backwards from where values end up; a pairwise reduction would make it form pairs,
/// sixteen values stored side by side make it form whole registers.
#[inline(always)]
pub fn in_memory(lanes: [f32; LANES]) -> [f32; LANES] {
    std::hint::black_box(lanes)
}

/// Reduces the lanes pairwise.
#[inline(always)]
pub fn fold(mut acc: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            acc[l] = f(acc[l], acc[l + width]);
        }
        width /= 2;
    }
    acc[0]
}

/// eˣ to about 1e-7 relative, for x in [-87, 88] (clamped outside): 2ⁿ·P(r) with r = x − n·ln 2 (Cephes `expf`).
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer held in the low mantissa bits
    let x = x.clamp(-87.0, 88.0);
    let shifted = madd::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, -0.693_359_4, x);
    let r = madd::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = madd::<FMA>(p, r, 1.398_2e-3);
    p = madd::<FMA>(p, r, 8.333_452e-3);
    p = madd::<FMA>(p, r, 4.166_579_6e-2);
    p = madd::<FMA>(p, r, 1.666_666_5e-1);
    p = madd::<FMA>(p, r, 5.0e-1);
    let p = madd::<FMA>(p * r, r, r) + 1.0;
    let scale = f32::from_bits(
        ((shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127) << 23) as u32,
    );
    p * scale
}

/// erf(x) to about 3e-7 absolute: an odd/even rational approximation on [-4, 4], ±1 outside.
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let t = x * x;
    let mut p = -2.726_142_3e-10;
    p = madd::<FMA>(p, t, 2.770_681_4e-8);
    p = madd::<FMA>(p, t, -2.101_024e-6);
    p = madd::<FMA>(p, t, -5.692_506_5e-5);
    p = madd::<FMA>(p, t, -7.349_906e-4);
    p = madd::<FMA>(p, t, -2.954_6e-3);
    p = madd::<FMA>(p, t, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5;
    q = madd::<FMA>(q, t, -2.133_740_6e-4);
    q = madd::<FMA>(q, t, -1.682_827e-3);
    q = madd::<FMA>(q, t, -7.373_329e-3);
    q = madd::<FMA>(q, t, -1.426_473_9e-2);
    x * p / q
}

/// tanh(x) to about 1e-7 absolute.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0)
}

/// Transposes in place.
pub fn transpose16(x: &mut [[u32; 16]; 16]) {
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx512 {
        // SAFETY: the level says that the machine has AVX-512.
        return unsafe { transpose16_avx512(x) };
    }
    #[cfg(target_arch = "x86_64")]
    if level() >= Level::Avx2 {
        // SAFETY: the level says that the machine has AVX2.
        return unsafe { transpose16_avx2(x) };
    }
    for i in 0..16 {
        for j in 0..i {
            (x[i][j], x[j][i]) = (x[j][i], x[i][j]);
        }
    }
}

/// In three stages: 32-bit and 64-bit neighbours inside 128-bit lanes, then the lanes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose16_avx512(x: &mut [[u32; 16]; 16]) {
    use std::arch::x86_64::*;
    let mut r = [_mm512_setzero_si512(); 16];
    for (r, row) in r.iter_mut().zip(x.iter()) {
        // SAFETY: a row is 64 bytes.
        *r = unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
    }
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // u[4g + c]: in lane l column 4l + c of rows 4g to 4g + 3.
    let mut u = t;
    for g in (0..16).step_by(4) {
        u[g] = _mm512_unpacklo_epi64(t[g], t[g + 2]);
        u[g + 1] = _mm512_unpackhi_epi64(t[g], t[g + 2]);
        u[g + 2] = _mm512_unpacklo_epi64(t[g + 1], t[g + 3]);
        u[g + 3] = _mm512_unpackhi_epi64(t[g + 1], t[g + 3]);
    }
    for c in 0..4 {
        // Immediates: 0x88 takes lanes 0 and 2 of both operands, 0xdd lanes 1 and 3.
        let (even_a, odd_a) = (_mm512_shuffle_i32x4(u[c], u[4 + c], 0x88), _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd));
        let (even_b, odd_b) =
            (_mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88), _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd));
        let columns = [
            (c, _mm512_shuffle_i32x4(even_a, even_b, 0x88)),
            (4 + c, _mm512_shuffle_i32x4(odd_a, odd_b, 0x88)),
            (8 + c, _mm512_shuffle_i32x4(even_a, even_b, 0xdd)),
            (12 + c, _mm512_shuffle_i32x4(odd_a, odd_b, 0xdd)),
        ];
        for (column, values) in columns {
            // SAFETY: a row is 64 bytes.
            unsafe { _mm512_storeu_si512(x[column].as_mut_ptr().cast(), values) };
        }
    }
}

/// By its quarters of 8 × 8, each in three stages as above.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn transpose16_avx2(x: &mut [[u32; 16]; 16]) {
    use std::arch::x86_64::*;
    let quarter = |x: &[[u32; 16]; 16], row: usize, col: usize| {
        // SAFETY: a row is 64 bytes, `col` 0 or 8.
        let r: [__m256i; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_si256(x[row + i][col..].as_ptr().cast()) });
        let mut t = r;
        for i in 0..4 {
            t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        // u[4g + c]: in lane l column 4l + c of rows 4g to 4g + 3.
        let mut u = t;
        for g in [0, 4] {
            u[g] = _mm256_unpacklo_epi64(t[g], t[g + 2]);
            u[g + 1] = _mm256_unpackhi_epi64(t[g], t[g + 2]);
            u[g + 2] = _mm256_unpacklo_epi64(t[g + 1], t[g + 3]);
            u[g + 3] = _mm256_unpackhi_epi64(t[g + 1], t[g + 3]);
        }
        let mut out = t;
        for c in 0..4 {
            out[c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x20);
            out[4 + c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x31);
        }
        out
    };
    let quarters = [(0, 0), (0, 8), (8, 0), (8, 8)].map(|(row, col)| (row, col, quarter(x, row, col)));
    for (row, col, columns) in quarters {
        for (i, column) in columns.into_iter().enumerate() {
            // SAFETY: a row is 64 bytes, `row` 0 or 8.
            unsafe { _mm256_storeu_si256(x[col + i][row..].as_mut_ptr().cast(), column) };
        }
    }
}

/// Splits `0..n` into one contiguous range a thread (at least `grain` items each) and runs `f(chunk, range)` on all of
/// them. Chunks depend only on `n`, `grain` and the thread count, so partial sums kept per chunk are repeatable.
pub fn for_chunks(n: usize, grain: usize, f: impl Fn(usize, Range<usize>) + Sync) {
    let chunks = chunk_count(n, grain);
    if chunks <= 1 {
        if n > 0 {
            f(0, 0..n);
        }
        return;
    }
    for_each(chunks, |c| f(c, chunk(n, chunks, c)));
}

/// How many chunks [`for_chunks`] makes.
pub fn chunk_count(n: usize, grain: usize) -> usize {
    rayon::current_num_threads().min(n.div_ceil(grain.max(1)))
}

fn chunk(n: usize, chunks: usize, c: usize) -> Range<usize> {
    n * c / chunks..n * (c + 1) / chunks
}

/// A mutable slice that several threads may write at disjoint places.
#[derive(Clone, Copy)]
pub struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `range`, whose callers promise disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range outside the slice");
        // SAFETY: inside the slice by the check above, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

/// Adds the chunks' partial sums (`partial` holds one vector of `out.len()` a chunk) in chunk order; without
/// `accumulate` the old values of `out` are dropped.
pub fn reduce_partials(out: &mut [f32], partial: &[f32], accumulate: bool) {
    if !accumulate {
        out.fill(0.0);
    }
    for p in partial.chunks_exact(out.len().max(1)) {
        for (o, v) in out.iter_mut().zip(p) {
            *o += v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    simd! {
        fn map_exp(x: &mut [f32]) { for v in x { *v = exp::<FMA>(*v) } }
    }
    simd! {
        fn map_erf(x: &mut [f32]) { for v in x { *v = erf::<FMA>(*v) } }
    }
    simd! {
        fn map_tanh(x: &mut [f32]) { for v in x { *v = tanh::<FMA>(*v) } }
    }

    /// erf by its Taylor series and continued fraction in f64.
    pub(crate) fn erf64(x: f64) -> f64 {
        libm::erf(x)
    }

    #[test]
    fn vector_functions_are_close_to_f64() {
        let x: Vec<f32> = (-8000..=8000).map(|i| i as f32 * 0.005).collect();
        let (mut e, mut r, mut t) = (x.clone(), x.clone(), x.clone());
        map_exp(&mut e);
        map_erf(&mut r);
        map_tanh(&mut t);
        for (i, &x) in x.iter().enumerate() {
            let x = x as f64;
            assert!((e[i] as f64 / x.exp() - 1.0).abs() < 3e-7, "exp({x}) = {}", e[i]);
            assert!((r[i] as f64 - erf64(x)).abs() < 4e-7, "erf({x}) = {}", r[i]);
            assert!((t[i] as f64 - x.tanh()).abs() < 3e-7, "tanh({x}) = {}", t[i]);
        }
    }

    #[test]
    fn transposition() {
        let mut x: [[u32; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 16 + j) as u32));
        transpose16(&mut x);
        assert!((0..256).all(|k| x[k % 16][k / 16] == k as u32));
    }

    #[test]
    fn chunks_cover_everything_once() {
        for n in [0, 1, 2, 7, 100] {
            let mut seen = vec![0u8; n];
            let shared = Shared::new(&mut seen);
            // SAFETY: chunks are disjoint.
            for_chunks(n, 3, |_, r| unsafe { shared.range(r) }.iter_mut().for_each(|v| *v += 1));
            assert!(seen.iter().all(|&v| v == 1));
        }
    }
}
