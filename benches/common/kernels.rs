//! The loops behind the probes. Arithmetic runs in registers over enough independent sums to hide an instruction's latency;
//! every result is handed back, so that nothing can be left out.

use std::hint::black_box;

/// A loop of so many rounds, and what one round computes.
#[derive(Clone, Copy)]
pub struct Arithmetic {
    /// The instructions used, for the reader.
    pub name: &'static str,
    pub flops_a_round: usize,
    pub run: fn(usize),
}

/// The fastest f32 multiply-adds that this machine has, whatever level the program was asked to keep to.
pub fn f32_arithmetic() -> Arithmetic {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has it.
            let run = |n| unsafe { x86::fma_512(n) };
            return Arithmetic { name: "AVX-512", flops_a_round: 2 * 16 * x86::SUMS, run };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has it.
            let run = |n| unsafe { x86::fma_256(n) };
            return Arithmetic { name: "AVX2", flops_a_round: 2 * 8 * x86::SUMS, run };
        }
    }
    Arithmetic { name: "baseline", flops_a_round: 2 * plain::VALUES, run: plain::multiply_add }
}

/// The instruction of the engine that bf16 products use here.
pub fn bf16_arithmetic() -> Option<Arithmetic> {
    #[cfg(target_arch = "x86_64")]
    {
        use bertft::ops::{cpu, gemm::bf16_engine};
        let name = bf16_engine()?.name();
        if cpu::level() == cpu::Level::Amx {
            // SAFETY: the level says that the machine has it.
            let run = |n| unsafe { x86::tiles(n) };
            return Some(Arithmetic { name, flops_a_round: 2 * 4 * 16 * 16 * 32, run });
        }
        // SAFETY: the engine says that the machine has it.
        let run = |n| unsafe { x86::dot_pairs(n) };
        Some(Arithmetic { name, flops_a_round: 2 * 32 * x86::SUMS, run })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

mod plain {
    use super::black_box;

    /// Twelve registers of four, which leaves room for the two factors among SSE2's sixteen.
    pub const VALUES: usize = 48;

    pub fn multiply_add(rounds: usize) {
        let (factor, add) = (black_box(0.999f32), black_box(1e-3f32));
        let mut sums = [0f32; VALUES];
        for _ in 0..rounds {
            for s in &mut sums {
                // Where the baseline has no such instruction, `mul_add` would be a call.
                *s = if cfg!(target_arch = "aarch64") { s.mul_add(factor, add) } else { *s * factor + add };
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::black_box;
    use std::arch::{asm, x86_64::*};

    /// Two instructions a cycle times a latency of four to six cycles.
    pub const SUMS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub fn fma_512(rounds: usize) {
        let (factor, add) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        // Different starts: equal sums would be computed once.
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm512_set1_ps(black_box(i as f32)));
        for _ in 0..rounds {
            for s in &mut sums {
                *s = _mm512_fmadd_ps(*s, factor, add);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_256(rounds: usize) {
        let (factor, add) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm256_set1_ps(black_box(i as f32)));
        for _ in 0..rounds {
            for s in &mut sums {
                *s = _mm256_fmadd_ps(*s, factor, add);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_pairs(rounds: usize) {
        // 0x3c00 is 2⁻⁷ in bf16.
        let pairs = |bits: i32| {
            // SAFETY: both types are 512 plain bits.
            unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(black_box(bits))) }
        };
        let (a, b) = (pairs(0x3c00_3c00), pairs(0x3c01_3c00));
        let mut sums: [_; SUMS] = std::array::from_fn(|i| _mm512_set1_ps(black_box(i as f32)));
        for _ in 0..rounds {
            for s in &mut sums {
                *s = _mm512_dpbf16_ps(*s, a, b);
            }
        }
        black_box(sums);
    }

    /// `ldtilecfg`'s operand: all eight tiles 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// Four tiles of sums from two tiles of each operand, all in registers.
    ///
    /// # Safety
    /// The machine has AMX and the process has leave to use it.
    pub unsafe fn tiles(rounds: usize) {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        let operand = [black_box(0x3c00u16); 16 * 32];
        // SAFETY: reads `config` and 16 rows of 64 bytes of `operand`; the tiles are configured and given back inside.
        unsafe {
            asm!(
                "ldtilecfg [{config}]",
                "tileloadd tmm4, [{operand} + {stride}]",
                "tileloadd tmm5, [{operand} + {stride}]",
                "tileloadd tmm6, [{operand} + {stride}]",
                "tileloadd tmm7, [{operand} + {stride}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                "tilerelease",
                config = in(reg) &config,
                operand = in(reg) operand.as_ptr(),
                stride = in(reg) 64usize,
                rounds = inout(reg) rounds.max(1) => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly)
            );
        }
    }
}

/// A loop over memory, compiled for the widest registers; integers, so that the compiler may split sums as it likes.
macro_rules! stream {
    ($(#[$meta:meta])* $name:ident, $values:ident: $type:ty, $body:block) => {
        $(#[$meta])*
        pub fn $name($values: $type) {
            #[inline(always)]
            fn body($values: $type) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
                fn wide($values: $type) { body($values) }
                #[target_feature(enable = "avx2")]
                fn middle($values: $type) { body($values) }
                if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                    // SAFETY: the machine has these features.
                    return unsafe { wide($values) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { middle($values) };
                }
            }
            body($values)
        }
    };
}

stream! {
    /// Reads every value.
    read, values: &[u32], { black_box(values.iter().fold(0u32, |sum, v| sum.wrapping_add(*v))); }
}

stream! {
    /// Reads and writes every value.
    update, values: &mut [u32], {
        let add = black_box(1);
        for v in values.iter_mut() {
            *v = v.wrapping_add(add);
        }
    }
}
