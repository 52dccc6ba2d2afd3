//! How a head reads a hidden state: `out(dropout(norm(act(dense(dropout(x))))))`, the norm in some families only; a head for
//! tokens is mostly `out(dropout(x))`. The families differ in names, activation, dropout and biases.

use crate::ops::gelu::Activation;

/// What is between the hidden states and the last layer of a classifier, and the names of both.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooling {
    /// Checkpoint name of the dense layer, `[hidden, hidden]`; without it there is no activation and no norm either.
    pub dense: Option<String>,
    pub dense_bias: bool,
    /// Behind the activation.
    pub norm: Option<PoolingNorm>,
    pub act: PoolingActivation,
    /// Before the dense layer and after its activation.
    pub dropout: [f32; 2],
    /// Checkpoint name of the last layer, `[labels, hidden]`.
    pub out: String,
}

/// A layer norm between the activation and the last layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolingNorm {
    /// Checkpoint name.
    pub name: String,
    pub eps: f32,
    pub bias: bool,
}

/// Between the dense layer and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingActivation {
    Tanh,
    Relu,
    /// Exact, by erf.
    Gelu,
    /// The tanh approximation.
    GeluTanh,
    Silu,
}

impl From<Activation> for PoolingActivation {
    fn from(act: Activation) -> Self {
        match act {
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu => Self::Relu,
            Activation::Silu => Self::Silu,
        }
    }
}

impl Pooling {
    /// `pooler.dense`, tanh, dropout, `classifier`, as BERT has it; `pooler` is the dense layer's name.
    pub fn of_pooler(pooler: String, dropout: f32) -> Self {
        let (act, out) = (PoolingActivation::Tanh, "classifier".into());
        Self { dense: Some(pooler), dense_bias: true, norm: None, act, dropout: [0.0, dropout], out }
    }

    /// `classifier.dense` between two dropouts, `classifier.out_proj`, as RoBERTa has it.
    pub fn of_classifier(act: PoolingActivation, dropout: f32) -> Self {
        let (dense, out) = (Some("classifier.dense".into()), "classifier.out_proj".into());
        Self { dense, dense_bias: true, norm: None, act, dropout: [dropout; 2], out }
    }

    /// Dropout and `classifier`, as most families have it for tokens.
    pub fn of_tokens(dropout: f32) -> Self {
        let (act, out) = (PoolingActivation::Tanh, "classifier".into());
        Self { dense: None, dense_bias: false, norm: None, act, dropout: [0.0, dropout], out }
    }

    /// `qa_outputs` behind a dropout, which most families do not have, for the ends of answers.
    pub fn of_spans(dropout: f32) -> Self {
        Self { out: "qa_outputs".into(), ..Self::of_tokens(dropout) }
    }

    /// Whether a parameter is this head's.
    pub fn holds(&self, name: &str) -> bool {
        let norm = self.norm.as_ref().is_some_and(|norm| name.starts_with(&norm.name));
        self.dense.as_ref().is_some_and(|dense| name.starts_with(dense)) || name.starts_with(&self.out) || norm
    }
}
