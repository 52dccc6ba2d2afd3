//! Models with rows for the tests of what holds whatever the weights.

use crate::common::{FAMILIES, dataset, fixture, floats, trainable};
use bertft::data::{Dataset, Targets, Tokens};
use bertft::heads::Objective;
use bertft::model::{Model, Pretrained, Task};
use bertft::nn::params::Params;
use bertft::nn::workspace::Space;
use bertft::optim::schedule::{Decay, Schedule};
use bertft::rng::splitmix;
use bertft::train::step::StepConfig;
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};

/// Softmax does not see a shift, so the key bias has no gradient but rounding noise.
pub fn zero_by_nature(name: &str) -> bool {
    name.ends_with("attention.self.key.bias") || name.ends_with("pos_key_proj.bias")
}

/// A pretrained model with dropout 0.1 and a new head.
pub fn tiny(seed: u64) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/bert-tiny-4l-128h");
    let task = Task {
        kind: bertft::data::config::TaskKind::Classification,
        labels: ["a", "b", "c"].map(String::from).to_vec(),
    };
    let (mut model, _) = Model::load(&Pretrained::open(&dir).unwrap(), task, seed, Space::f32(&Device::Cpu)).unwrap();
    model.params.start_training().unwrap();
    model
}

/// Rows of random tokens, the second half of each of type 1.
pub fn random_rows(model: &mut Model, lengths: &[usize]) -> Dataset {
    let vocab = model.encoder().0.config().embedding.vocab as u64;
    let mut made = 0;
    let mut row = |length: usize| {
        let ids: Vec<u32> = (made..made + length).map(|i| (splitmix(i as u64) % vocab) as u32).collect();
        made += length;
        (ids, (0..length).map(|i| u8::from(2 * i >= length)).collect::<Vec<u8>>(), false)
    };
    let tokens = Tokens::from_rows(lengths.iter().map(|&length| row(length)));
    let targets = Targets::Class((0..lengths.len() as u32).map(|i| i % model.task().outputs() as u32).collect());
    Dataset { tokens, targets, lines: (1..=lengths.len() as u64).collect(), file: PathBuf::from("random") }
}

/// Models with rows for each: wide random weights and odd sizes; regression; the pretrained one up to its last position.
pub fn models() -> Vec<(&'static str, Model, Dataset)> {
    let mut tiny = tiny(1);
    let rows = random_rows(&mut tiny, &[5, 1, 512, 33, 2, 16, 64, 17]);
    let case = |case| (case, trainable(&fixture(case, "model")), dataset(case));
    [case("pairs"), case("regression"), ("tiny", tiny, rows)].into_iter().chain(FAMILIES.map(case)).collect()
}

pub fn all(data: &Dataset) -> Vec<usize> {
    (0..data.len()).collect()
}

pub fn grads(params: &Params) -> Vec<(String, Vec<f32>)> {
    params.specs().iter().map(|s| (s.name.clone(), floats(&params.grad(s.offset, &s.shape).unwrap()))).collect()
}

pub fn step_config(seed: u64) -> StepConfig {
    StepConfig {
        schedule: Schedule { peak: 1e-3, decay: Decay::Constant, warmup: 0, total: 100 },
        weight_decay: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 1.0,
        objective: Objective::smoothed(0.1),
        ema_decay: 0.0,
        fgm_epsilon: 0.0,
        accumulation: 4,
        seed,
    }
}

pub fn set(to: &Tensor, value: f32) {
    to.slice_set(&Tensor::full(value, to.shape(), &Device::Cpu).unwrap(), 0, 0).unwrap();
}
