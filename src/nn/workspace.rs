//! Buffers that live as long as the run: a step of a size seen before allocates nothing.

use candle_core::{DType, Device, Result, Tensor};

/// A tensor that grows to the largest view asked of it. Fresh memory is zeroed by the system page by page, so what is
/// reserved and never used costs nothing.
#[derive(Debug, Default)]
pub struct Buffer(Option<Tensor>);

impl Buffer {
    /// The first `rows · cols` values as a matrix; their content is whatever was there.
    pub fn view(&mut self, rows: usize, cols: usize, device: &Device) -> Result<Tensor> {
        let need = rows * cols;
        let tensor = match self.0.take() {
            Some(t) if t.elem_count() >= need => t,
            // A quarter more than asked, so that slightly longer batches to come do not allocate again.
            _ => Tensor::zeros(need + need / 4, DType::F32, device)?,
        };
        let view = tensor.narrow(0, 0, need)?.reshape((rows, cols));
        self.0 = Some(tensor);
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_memory_until_it_must_grow() {
        let mut b = Buffer::default();
        let first = b.view(4, 3, &Device::Cpu).unwrap();
        let ones = Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap();
        first.slice_set(&ones, 0, 0).unwrap();
        assert_eq!(b.view(3, 2, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap(), vec![vec![1.0; 2]; 3]);
        assert_eq!(b.view(10, 10, &Device::Cpu).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
