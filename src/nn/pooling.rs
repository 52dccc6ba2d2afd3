//! How a head for whole rows reads the first token's hidden state: `out(dropout(act(dense(dropout(x)))))`. The families differ
//! in names, activation and dropout only.

/// The dense layer between the hidden states and the last layer of a classifier, and the names of both.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooling {
    /// Checkpoint name of the dense layer, `[hidden, hidden]`.
    pub dense: String,
    pub act: PoolingActivation,
    /// Before the dense layer and after its activation.
    pub dropout: [f32; 2],
    /// Checkpoint name of the last layer, `[labels, hidden]`.
    pub out: String,
}

/// Between the dense layer and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingActivation {
    Tanh,
    Relu,
    /// Exact, by erf.
    Gelu,
}

impl Pooling {
    /// `pooler.dense`, tanh, dropout, `classifier`, as BERT has it; `pooler` is the dense layer's name.
    pub fn of_pooler(pooler: String, dropout: f32) -> Self {
        Self { dense: pooler, act: PoolingActivation::Tanh, dropout: [0.0, dropout], out: "classifier".into() }
    }

    /// `classifier.dense` between two dropouts, `classifier.out_proj`, as RoBERTa has it.
    pub fn of_classifier(act: PoolingActivation, dropout: f32) -> Self {
        let (dense, out) = ("classifier.dense".into(), "classifier.out_proj".into());
        Self { dense, act, dropout: [dropout; 2], out }
    }
}
