//! The two number formats of activations. Kernels are generic over them: they read and write [`Real`]s and compute in f32.

use candle_core::DType;
use half::bf16;

/// A stored number: f32, or bf16 (the upper half of an f32).
pub trait Real: Copy + Send + Sync + 'static {
    const DTYPE: DType;
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
    /// The values in f32: the slice itself, or a copy in `room`, which is as long.
    fn widen<'a>(values: &'a [Self], room: &'a mut [f32]) -> &'a [f32];
    /// The slice itself if it has this format.
    fn of_f32s(s: &[f32]) -> Option<&[Self]>;
    fn of_bf16s(s: &[bf16]) -> Option<&[Self]>;
    fn of_f32s_mut(s: &mut [f32]) -> Option<&mut [Self]>;
    fn of_bf16s_mut(s: &mut [bf16]) -> Option<&mut [Self]>;
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn widen<'a>(values: &'a [Self], _: &'a mut [f32]) -> &'a [f32] {
        values
    }

    fn of_f32s(s: &[f32]) -> Option<&[Self]> {
        Some(s)
    }

    fn of_bf16s(_: &[bf16]) -> Option<&[Self]> {
        None
    }

    fn of_f32s_mut(s: &mut [f32]) -> Option<&mut [Self]> {
        Some(s)
    }

    fn of_bf16s_mut(_: &mut [bf16]) -> Option<&mut [Self]> {
        None
    }
}

impl Real for bf16 {
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }

    /// Written without branches, unlike the `half` crate's, so that loops over it become vector code.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        // Rounding could carry a NaN's mantissa over into the sign: keep it a quiet NaN.
        bf16::from_bits(if x.is_nan() { 0x7fc0 } else { rounded as u16 })
    }

    #[inline(always)]
    fn widen<'a>(values: &'a [Self], room: &'a mut [f32]) -> &'a [f32] {
        let room = &mut room[..values.len()];
        for (wide, value) in room.iter_mut().zip(values) {
            *wide = Real::to_f32(*value);
        }
        room
    }

    fn of_f32s(_: &[f32]) -> Option<&[Self]> {
        None
    }

    fn of_bf16s(s: &[bf16]) -> Option<&[Self]> {
        Some(s)
    }

    fn of_f32s_mut(_: &mut [f32]) -> Option<&mut [Self]> {
        None
    }

    fn of_bf16s_mut(s: &mut [bf16]) -> Option<&mut [Self]> {
        Some(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (got, want) = (<bf16 as Real>::from_f32(x), bf16::from_f32(x));
            assert!(got == want || (got.is_nan() && want.is_nan()), "{x}: {got} is not {want}");
            assert!(x.is_nan() || Real::to_f32(got) == got.to_f32());
        }
        assert!(<bf16 as Real>::from_f32(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
