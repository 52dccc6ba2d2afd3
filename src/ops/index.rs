//! Row numbers that ops read on their device. They come from the host and are checked there, so that a wrong one is refused
//! alike on all devices and nothing waits for one.

use super::to_device;
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

/// Row numbers, u32 `[len]`, on a device and on the host.
#[derive(Debug, Clone)]
pub struct Index {
    tensor: Tensor,
    values: Arc<[u32]>,
}

impl Index {
    pub fn new(values: &[u32], device: &Device) -> Result<Self> {
        Ok(Self { tensor: to_device(values, values.len(), device)?, values: values.into() })
    }

    /// On the device, as kernels read them.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub fn values(&self) -> &[u32] {
        &self.values
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Refuses any other number of them, and numbers outside a table of `limit` rows.
    pub fn expect(&self, name: &str, len: usize, limit: usize) -> Result<()> {
        if self.len() != len {
            bail!("{name}: {} indices for {len} rows", self.len());
        }
        match self.values.iter().find(|&&i| i as usize >= limit) {
            Some(i) => bail!("{name}: index {i} outside a table of {limit} rows"),
            None => Ok(()),
        }
    }
}
