//! The table of rotary angles that layers of one base share.

use crate::ops::rotary::angles;
use candle_core::{Device, Result, Tensor};

/// Angles of a base, for as many positions as were asked for so far.
#[derive(Debug)]
pub struct RotaryTable {
    pub theta: f64,
    head_dim: usize,
    table: Option<Tensor>,
}

impl RotaryTable {
    pub fn new(theta: f64, head_dim: usize) -> Self {
        Self { theta, head_dim, table: None }
    }

    /// Makes sure that rows of so many tokens find their positions.
    pub fn reach(&mut self, longest: usize, device: &Device) -> Result<()> {
        if self.table.as_ref().is_none_or(|t| t.dims()[0] < longest) {
            let positions = longest.next_power_of_two();
            let values = angles(positions, self.head_dim, self.theta);
            self.table = Some(Tensor::from_vec(values, (positions, self.head_dim), device)?);
        }
        Ok(())
    }

    /// `[positions, head_dim]`, f32; nothing before [`Self::reach`].
    pub fn table(&self) -> Option<&Tensor> {
        self.table.as_ref()
    }
}
