//! Buffers that live as long as the run: a step of a size seen before allocates nothing.

use candle_core::{DType, Device, Result, Tensor};

/// Where activations live and in which format.
#[derive(Debug, Clone, Copy)]
pub struct Space<'a> {
    /// f32 or bf16.
    pub dtype: DType,
    pub device: &'a Device,
}

impl<'a> Space<'a> {
    pub fn f32(device: &'a Device) -> Self {
        Self { dtype: DType::F32, device }
    }
}

/// One part in this is allocated beyond what is asked, so that slightly longer batches to come do not allocate again.
pub const SLACK: usize = 16;

/// A tensor that grows to the largest view asked of it. Fresh memory is zeroed by the system page by page, so what is
/// reserved and never used costs nothing. All views of one buffer have one format.
#[derive(Debug, Default)]
pub struct Buffer(Option<Tensor>);

impl Buffer {
    /// The first `rows · cols` values as a matrix; their content is whatever was there.
    pub fn view(&mut self, rows: usize, cols: usize, space: Space<'_>) -> Result<Tensor> {
        let need = rows * cols;
        let tensor = match self.0.take() {
            Some(t) if t.elem_count() >= need => t,
            _ => zeros(need + need / SLACK, space)?,
        };
        let view = tensor.narrow(0, 0, need)?.reshape((rows, cols));
        self.0 = Some(tensor);
        view
    }
}

/// Zeros that the system gives page by page. candle's own in bf16 are written one by one.
fn zeros(len: usize, space: Space<'_>) -> Result<Tensor> {
    if space.dtype == DType::BF16 && space.device.is_cpu() {
        return Tensor::from_vec(bytemuck::zeroed_vec::<half::bf16>(len), len, space.device);
    }
    Tensor::zeros(len, space.dtype, space.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_memory_until_it_must_grow() {
        let mut b = Buffer::default();
        let space = Space::f32(&Device::Cpu);
        let first = b.view(4, 3, space).unwrap();
        let ones = Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap();
        first.slice_set(&ones, 0, 0).unwrap();
        assert_eq!(b.view(3, 2, space).unwrap().to_vec2::<f32>().unwrap(), vec![vec![1.0; 2]; 3]);
        assert_eq!(b.view(10, 10, space).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}
