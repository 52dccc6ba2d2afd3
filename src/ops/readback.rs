//! Numbers on their way from a device to the host, which need not wait until somebody reads them.

#[cfg(feature = "cuda")]
use super::gpu::{Gpu, Words};
#[cfg(feature = "cuda")]
use candle_core::Device;
use candle_core::{DType, Result, Tensor, bail};

/// What [`Readback::start`] was asked for.
#[derive(Debug)]
pub struct Readback(Numbers);

#[derive(Debug)]
enum Numbers {
    Here(Vec<f64>),
    #[cfg(feature = "cuda")]
    Coming(Words),
}

impl Readback {
    /// Asks the device of `numbers` for them: f64 scalars, or two f32s that hold the lower and the upper half of an f64's bits.
    /// A GPU copies them behind the work that it was given before, and is not waited for.
    pub fn start(numbers: &[&Tensor]) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(Device::Cuda(device)) = numbers.first().map(|t| t.device()) {
            let words = numbers.iter().map(|t| word_address(t)).collect::<Result<Vec<_>>>()?;
            return Ok(Self(Numbers::Coming(Gpu::new(device)?.fetch(&words)?)));
        }
        Ok(Self(Numbers::Here(numbers.iter().map(|t| number(t)).collect::<Result<_>>()?)))
    }

    /// Whether [`Self::wait`] has nothing to wait for.
    pub fn is_here(&self) -> bool {
        matches!(self.0, Numbers::Here(_))
    }

    /// The numbers, in the order of their tensors.
    ///
    /// # Errors
    /// What the device reports of all work before.
    pub fn wait(self) -> Result<Vec<f64>> {
        match self.0 {
            Numbers::Here(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Numbers::Coming(words) => Ok(words.wait()?.into_iter().map(f64::from_bits).collect()),
        }
    }
}

fn number(t: &Tensor) -> Result<f64> {
    match (t.dtype(), t.elem_count()) {
        (DType::F64, 1) => t.flatten_all()?.get(0)?.to_scalar(),
        (DType::F32, 2) => {
            let halves: Vec<f32> = t.flatten_all()?.to_vec1()?;
            Ok(super::adamw::whole([halves[0], halves[1]]))
        }
        (dtype, count) => bail!("readback: {count} values in {dtype:?} are not one f64"),
    }
}

/// Where the eight bytes of a number lie on its GPU.
#[cfg(feature = "cuda")]
fn word_address(t: &Tensor) -> Result<u64> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cuda(s) if layout.is_contiguous() => match (super::cuda_address(s)?, t.elem_count()) {
            ((at, DType::F64), 1) => Ok(at + 8 * layout.start_offset() as u64),
            ((at, DType::F32), 2) => Ok(at + 4 * layout.start_offset() as u64),
            ((_, dtype), count) => bail!("readback: {count} values in {dtype:?} are not one f64"),
        },
        _ => bail!("readback: numbers are dense and on one device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn numbers_come_back_in_order() {
        let scalar = |x: f64| Tensor::new(x, &Device::Cpu).unwrap();
        let halves = |x: u64| Tensor::new(&[x as u32, (x >> 32) as u32].map(f32::from_bits), &Device::Cpu).unwrap();
        let (a, b, c) = (scalar(1.5), halves((-0.1f64).to_bits()), halves(f64::NAN.to_bits()));
        let back = Readback::start(&[&a, &b, &c]).unwrap();
        assert!(back.is_here());
        let numbers = back.wait().unwrap();
        assert_eq!(numbers[..2], [1.5, -0.1]);
        assert!(numbers.len() == 3 && numbers[2].is_nan());
        assert!(Readback::start(&[]).unwrap().wait().unwrap().is_empty());
        let three = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let error = Readback::start(&[&three]).unwrap_err().to_string();
        assert!(error.contains("3 values in F32 are not one f64"), "{error}");
    }
}
