//! What a transformer layer is made of: sizes, rates, form and the checkpoint names of its modules.

use super::convolution::ConvolutionForm;
use super::relative::RelativeForm;
use crate::ops::gelu::Activation;

/// Sizes and rates that all layers of an encoder share.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerShape {
    pub hidden: usize,
    pub heads: usize,
    /// Width of the feed-forward part.
    pub inner: usize,
    pub act: Activation,
    pub eps: f32,
    /// Dropout after the attention and after the feed-forward part.
    pub hidden_dropout: [f32; 2],
    /// Dropout on attention probabilities.
    pub attention_dropout: f32,
    pub form: LayerForm,
}

/// How a layer is put together.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerForm {
    /// Norms stand before the attention and the feed-forward part, not behind their residual sums. The first layer then reads
    /// its input as it is, and the others' first norm is computed with the layer below.
    pub pre_norm: bool,
    /// The feed-forward part's activation is multiplied by a gate ([`crate::ops::gated`]).
    pub gated: bool,
    /// Dropout on the feed-forward part's inner activations, where they are gated.
    pub inner_dropout: f32,
    pub attention_bias: bool,
    pub feed_forward_bias: bool,
    pub norm_bias: bool,
    /// Attention by relative positions too ([`super::relative`]).
    pub relative: Option<RelativeForm>,
    /// The convolution beside layers that have a name for one ([`super::convolution`]).
    pub convolution: Option<ConvolutionForm>,
}

impl LayerForm {
    /// As Vaswani et al. 2017 have it.
    pub const POST_NORM: Self = Self {
        pre_norm: false,
        gated: false,
        inner_dropout: 0.0,
        attention_bias: true,
        feed_forward_bias: true,
        norm_bias: true,
        relative: None,
        convolution: None,
    };
}

impl LayerShape {
    /// Width of what the feed-forward part's first product gives.
    pub fn up(&self) -> usize {
        if self.form.gated { 2 * self.inner } else { self.inner }
    }
}

/// Checkpoint names of one layer's modules, each with `.weight` and, by the layer's form, `.bias`. Layers of the same names are
/// one: they share their parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNames {
    /// The module that all of them lie in.
    pub module: String,
    /// Query, key and value, or one module that is all three.
    pub projections: Vec<String>,
    /// Query and key of relative positions, as far as there are such and they have modules of their own.
    pub positions: Vec<String>,
    pub attention_output: String,
    pub attention_norm: String,
    pub up: String,
    pub down: String,
    pub output_norm: String,
    /// The convolution beside the layer, where there is one.
    pub convolution: Option<String>,
}

impl LayerNames {
    /// From names inside `module`: query, key and value; the attention's output and norm; the feed-forward part's two layers
    /// and norm.
    pub fn new(module: &str, projections: [&str; 3], attention: [&str; 2], feed_forward: [&str; 3]) -> Self {
        let inside = |name: &str| format!("{module}.{name}");
        let projections = projections.map(inside).to_vec();
        let ([attention_output, attention_norm], [up, down, output_norm]) =
            (attention.map(inside), feed_forward.map(inside));
        let module = module.to_owned();
        let (positions, convolution) = (vec![], None);
        Self { module, projections, positions, attention_output, attention_norm, up, down, output_norm, convolution }
    }

    /// The key's module, where it has one of its own.
    pub fn key(&self) -> Option<&str> {
        self.projections.get(1).map(String::as_str)
    }
}

/// Values that [`super::transformer::Activations`] holds for `tokens` of which `queries` are read above.
pub fn activation_len(shape: &LayerShape, tokens: usize, queries: usize) -> usize {
    let h = shape.hidden;
    let selects = queries != tokens;
    let projections = if selects { 2 * h * tokens + 2 * h * queries } else { 3 * h * tokens };
    // Norms that stand first leave their second sum to the output, and the selected rows of the residual here.
    let sums = if shape.form.pre_norm { 3 * h + if selects { h } else { 0 } } else { 4 * h };
    projections + (sums + shape.up() + shape.inner) * queries
}

/// Values that [`super::transformer::Scratch`] holds for passes over `tokens`.
pub fn scratch_len(shape: &LayerShape, tokens: usize) -> usize {
    let h = shape.hidden;
    let gate = if shape.form.gated { shape.inner } else { 0 };
    let carried = if shape.form.pre_norm { 2 * h } else { 0 };
    (7 * h + shape.up() + gate + carried) * tokens
}
