//! One training step, as the trainer makes it: forward and backward with dropout, gradient norm, clipping and AdamW.

use super::data::{ROWS, VOCAB, batch, sentence_lengths, values};
use super::peaks::Work;
use super::timing::{Timing, alternate};
use bertft::data::{Batch, config::TaskKind};
use bertft::encoders::{Encoder, EncoderConfig};
use bertft::model::{Model, Pretrained, Task};
use bertft::nn::params::{Init, Layout};
use bertft::nn::workspace::Space;
use bertft::train::config::TrainConfig;
use bertft::train::step::{StepConfig, gradients, update};
use bertft::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// Shapes that need no download: name, layers, hidden, heads, inner.
const SHAPES: [(&str, usize, usize, usize, usize); 2] =
    [("minilm-l6", 6, 384, 12, 1536), ("bert-base", 12, 768, 12, 3072)];

/// A model directory; with random weights if it was asked for by the name of a shape.
pub struct Source {
    pub name: String,
    pretrained: Pretrained,
    /// Kept until the weights are read.
    _made: Option<TempDir>,
}

impl Source {
    /// Opens the directory or makes the shape of that name.
    pub fn open(name: &str) -> Result<Self> {
        let made = SHAPES.iter().find(|s| s.0 == name).map(|&(_, l, h, a, i)| make(l, h, a, i)).transpose()?;
        let pretrained = Pretrained::open(made.as_ref().map_or(Path::new(name), |d| d.path()))?;
        Ok(Self { name: name.into(), pretrained, _made: made })
    }
}

/// Writes a model directory with random weights.
fn make(layers: usize, hidden: usize, heads: usize, inner: usize) -> Result<TempDir> {
    let failed = |e: std::io::Error| Error::Failed(format!("a temporary model directory: {e}"));
    let dir = tempfile::tempdir().map_err(failed)?;
    let json = serde_json::json!({
        "model_type": "bert", "vocab_size": VOCAB, "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "intermediate_size": inner,
    });
    let file = dir.path().join("config.json");
    std::fs::write(&file, json.to_string()).map_err(failed)?;
    let mut layout = Layout::default();
    Encoder::new(&mut layout, EncoderConfig::from_json(&json, &file)?);
    let mut tensors = HashMap::new();
    for spec in layout.specs() {
        let scale = match spec.init {
            Init::Normal => Tensor::from_vec(values(spec.len(), spec.offset as u32), spec.shape.clone(), &Device::Cpu)?,
            Init::Zeros | Init::Fixed | Init::Absent => Tensor::zeros(spec.shape.clone(), DType::F32, &Device::Cpu)?,
            Init::Ones => Tensor::full(1f32 / 0.04, spec.shape.clone(), &Device::Cpu)?,
        };
        tensors.insert(spec.name.clone(), (scale * 0.04)?);
    }
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors"))?;
    Ok(dir)
}

/// Rows to train on.
pub struct Workload {
    pub name: &'static str,
    pub batch: Batch,
}

impl Workload {
    /// Short sentences, and full rows.
    pub fn all() -> [Self; 2] {
        [
            Self { name: "SST-2 lengths", batch: batch(&sentence_lengths()) },
            Self { name: "rows of 128", batch: batch(&[128; ROWS]) },
        ]
    }

    pub fn tokens(&self) -> usize {
        self.batch.ids.len()
    }
}

/// A model in training.
pub struct Training {
    model: Model,
    config: StepConfig,
    step: u64,
}

impl Training {
    pub fn new(source: &Source, dtype: DType) -> Result<Self> {
        let labels = vec!["no".into(), "yes".into()];
        let task = Task { kind: TaskKind::Classification, labels };
        let (mut model, _) = Model::load(&source.pretrained, task, 42, Space { dtype, device: &Device::Cpu })?;
        model.params.start_training()?;
        // As after an epoch: half of the vocabulary was met, so AdamW has its rows to move.
        let words = model.encoder().0.config().embedding.vocab as u32;
        model.params.touch(&(0..words).step_by(2).collect::<Vec<_>>());
        model.params.begin_window()?;
        Ok(Self { model, config: StepConfig::new(&TrainConfig::default(), 1 << 40), step: 0 })
    }

    /// One step on one batch.
    pub fn step(&mut self, batch: &Batch) -> Result<()> {
        let window = gradients(&mut self.model, std::slice::from_ref(batch), &self.config, self.step)?;
        update(&self.model, &window, &self.config, self.step)?;
        self.step += 1;
        Ok(())
    }

    /// 6·N a token and 12·layers·hidden·length of its row, N the weights of the layers. What the last layer saves by computing
    /// the first token of each row only is not taken off, so that rates compare with other programs'.
    pub fn work(&mut self, workload: &Workload) -> Work {
        let dtype = self.model.params.space().dtype;
        let config = self.model.encoder().0.config();
        let (layers, h, inner) = (config.names.layers.len(), config.layer.hidden, config.layer.inner);
        let weights = layers * (4 * h * h + 2 * h * inner);
        let lengths = workload.batch.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize);
        let pairs: usize = lengths.map(|l| l * l).sum();
        let flops = (6 * weights * workload.tokens() + 12 * layers * h * pairs) as f64;
        if dtype == DType::BF16 { Work::Bf16 { flops } } else { Work::F32 { flops } }
    }

    /// Seconds a step on one thread and on all of them, in turns. All are used from outside of the pool, as by the trainer.
    pub fn time(&mut self, workload: &Workload, one: &rayon::ThreadPool, budget: Duration) -> Result<[Timing; 2]> {
        let this = Mutex::new(self);
        let step = || this.lock().expect("no step panicked").step(&workload.batch);
        let (mut alone, mut together) = (|| one.install(step), step);
        alternate(budget, [&mut alone, &mut together])
    }
}
