//! Logits, gradients and training curves against `transformers` (`golden/make_fixtures.py`, `golden/README.md`).
//!
//! Bounds: logits within 1e-5, every parameter's gradient ‖g − r‖ ≤ 1e-4·‖r‖ + 1e-7·‖all of r‖, losses of a curve within
//! 1e-4. The reference's own distance from f64 (its `f32_error`) is some hundred times smaller than each of them.

mod common;

use bertft::data::config::TaskKind;
use bertft::data::{Batch, Dataset};
use bertft::encoders::Read;
use bertft::heads::Objective;
use bertft::model::{BertftJson, Model, Pretrained, Task};
use bertft::nn::workspace::Space;
use bertft::optim::schedule::{Decay, Schedule};
use bertft::rng::PassKey;
use bertft::train::class_weights::ClassWeights;
use bertft::train::step::{StepConfig, gradients, update};
use candle_core::{Device, Tensor};
use common::{FAMILIES, dataset, distance, fixture, floats, norm, trainable, worst};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// BERT's cases, then those of the other families.
fn cases() -> Vec<&'static str> {
    let of_bert = [
        "classification",
        "pairs",
        "regression",
        "multilabel",
        "tokens",
        "tokens_modernbert",
        "span",
        "span_modernbert",
    ];
    of_bert.into_iter().chain(FAMILIES).collect()
}

#[derive(Deserialize)]
struct Expected {
    loss64: f64,
    grad_norm64: f64,
}

#[derive(Deserialize)]
struct Curve {
    optimizer: Optimizer,
    steps: Vec<Step>,
    /// Per parameter; cases that keep their final weights have none.
    #[serde(default)]
    updates: BTreeMap<String, Update>,
}

#[derive(Deserialize)]
struct Optimizer {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    learning_rate: f64,
    warmup_steps: u64,
    max_steps: u64,
    max_grad_norm: f64,
    lr_scheduler_type: String,
    label_smoothing_factor: f64,
}

#[derive(Deserialize)]
struct Step {
    rows: Vec<Vec<usize>>,
    loss: f64,
    learning_rate: f64,
    grad_norm: f64,
}

#[derive(Deserialize)]
struct Update {
    update_norm: f64,
    update_sum: f64,
}

fn json<T: for<'a> Deserialize<'a>>(case: &str, file: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(case, file)).unwrap()).unwrap()
}

fn tensors(case: &str, file: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(case, file), &Device::Cpu).unwrap()
}

fn whole(data: &Dataset) -> Batch {
    data.batch(&(0..data.len()).collect::<Vec<_>>())
}

/// What the sum of a batch's losses is divided by: its rows, or its labelled tokens.
fn divisor(batch: &Batch) -> f64 {
    Objective::default().divisor(&batch.targets, batch.len())
}

fn weights(model: &Model) -> BTreeMap<String, Vec<f32>> {
    let p = &model.params;
    p.specs().iter().map(|s| (s.name.clone(), floats(&p.weight(s.offset, &s.shape).unwrap()))).collect()
}

/// The gradients by name, each in the parameter's shape.
fn grads(model: &Model) -> BTreeMap<String, Tensor> {
    let p = &model.params;
    p.specs().iter().map(|s| (s.name.clone(), p.grad(s.offset, &s.shape).unwrap())).collect()
}

#[test]
fn logits_and_loss() {
    for case in cases() {
        let (mut model, batch) = (trainable(&fixture(case, "model")), whole(&dataset(case)));
        let reference = tensors(case, "expected.safetensors");
        let logits = model.logits(&batch).unwrap();
        for name in ["logits", "logits64"] {
            assert_eq!(logits.dims(), reference[name].dims(), "{case}");
            let off = worst(&floats(&logits), &floats(&reference[name]));
            assert!(off <= 1e-5, "{case}: {name} off by {off:e}");
        }
        let loss = model.loss_sum(&logits, &batch.targets).unwrap() / divisor(&batch);
        let expected: Expected = json(case, "expected.json");
        assert!((loss - expected.loss64).abs() <= 1e-6, "{case}: loss {loss}, expected {}", expected.loss64);
    }
}

/// Every gradient of the mean loss over all rows, with and without a dropout key: dropout is 0 in the config.
#[test]
fn gradients_of_every_parameter() {
    for case in cases() {
        let (mut model, batch) = (trainable(&fixture(case, "model")), whole(&dataset(case)));
        let (reference, expected): (_, Expected) = (tensors(case, "expected.safetensors"), json(case, "expected.json"));
        for key in [None, Some(PassKey::new(3, 0))] {
            let scale = 1.0 / divisor(&batch);
            let loss = model.forward_backward(&batch, key, &Objective::default(), scale, false).unwrap() * scale;
            assert!((loss - expected.loss64).abs() <= 1e-6, "{case}: loss {loss}, expected {}", expected.loss64);
            let total = model.params.grad_norm().unwrap();
            assert!((total / expected.grad_norm64 - 1.0).abs() <= 1e-5, "{case}: {total} {}", expected.grad_norm64);

            let ours = grads(&model);
            let names: BTreeSet<_> = ours.keys().map(|n| format!("grad.{n}")).collect();
            let wanted: BTreeSet<_> = reference.keys().filter(|n| n.starts_with("grad.")).cloned().collect();
            assert_eq!(names, wanted, "{case}");
            let mut wrong = vec![];
            for (name, grad) in &ours {
                let r = &reference[&format!("grad.{name}")];
                assert_eq!(grad.dims(), r.dims(), "{case}: {name}");
                let (off, size) = (distance(&floats(grad), &floats(r)), norm(&floats(r)));
                if off.is_nan() || off > 1e-4 * size + 1e-7 * expected.grad_norm64 {
                    wrong.push(format!("{name}: off by {off:e} of {size:e}"));
                }
            }
            assert!(wrong.is_empty(), "{case}, key {key:?}:\n{}", wrong.join("\n"));
            assert_eq!(model.unreached().unwrap(), Vec::<String>::new(), "{case}");
        }
    }
}

#[derive(Deserialize)]
struct Losses {
    /// By scikit-learn.
    balanced: Vec<f64>,
    variants: Vec<Variant>,
}

#[derive(Deserialize)]
struct Variant {
    class_weights: Option<Vec<f32>>,
    #[serde(default)]
    label_smoothing: f64,
    #[serde(default)]
    focal_gamma: f64,
    loss: f64,
    full: BTreeMap<String, Vec<f32>>,
    norms: BTreeMap<String, f64>,
}

/// `torch.nn.CrossEntropyLoss` with weights and smoothing, the focal loss, and `BCEWithLogitsLoss` with `pos_weight`, over a window of unequal batches: the mean
/// divides by the whole window's weights.
#[test]
fn weighted_and_focal_losses() {
    for case in ["classification", "pairs", "multilabel"] {
        let (mut model, data, losses) =
            (trainable(&fixture(case, "model")), dataset(case), json::<Losses>(case, "losses.json"));
        let balanced = ClassWeights::Balanced.resolve(&model.task().labels, &data.targets).unwrap();
        assert_eq!(balanced, losses.balanced.iter().map(|&w| w as f32).collect::<Vec<_>>(), "{case}");
        let mut config = json::<Curve>(case, "curve_linear.json").config();
        let rows: Vec<usize> = (0..data.len()).collect();
        let window = [&rows[..5], &rows[5..6], &rows[6..]].map(|rows| data.batch(rows));
        for (i, v) in losses.variants.into_iter().enumerate() {
            let Variant { class_weights, label_smoothing, focal_gamma, .. } = v;
            config.objective = Objective { label_smoothing, class_weights, focal_gamma, r_drop: 0.0 };
            let what = format!("{case}, variant {i}");
            let passed = gradients(&mut model, &window, &config, 0).unwrap().read().unwrap();
            let loss = passed.loss_sum / passed.divisor;
            assert!((loss - v.loss).abs() <= 1e-6, "{what}: loss {loss}, expected {}", v.loss);
            let ours = grads(&model);
            let total = v.norms.values().map(|n| n * n).sum::<f64>().sqrt();
            for (name, full) in &v.full {
                let (off, size) = (distance(&floats(&ours[name]), full), norm(full));
                assert!(off <= 1e-4 * size + 1e-7 * total, "{what}: {name} off by {off:e} of {size:e}");
            }
            for (name, &expected) in &v.norms {
                let size = norm(&floats(&ours[name]));
                assert!((size - expected).abs() <= 1e-4 * expected + 1e-7 * total, "{what}: {name} {size} {expected}");
            }
        }
    }
}

impl Curve {
    fn config(&self) -> StepConfig {
        let o = &self.optimizer;
        let decay = match o.lr_scheduler_type.as_str() {
            "linear" => Decay::Linear,
            "cosine" => Decay::Cosine { num_cycles: 0.5 },
            other => panic!("{other}"),
        };
        StepConfig {
            schedule: Schedule { peak: o.learning_rate, decay, warmup: o.warmup_steps, total: o.max_steps },
            weight_decay: o.weight_decay,
            beta1: o.betas[0],
            beta2: o.betas[1],
            epsilon: o.eps,
            max_grad_norm: o.max_grad_norm,
            objective: Objective::smoothed(o.label_smoothing_factor),
            ema_decay: 0.0,
            fgm_epsilon: 0.0,
            accumulation: 2,
            seed: 42,
        }
    }
}

/// Trains a case along its curve; returns the model's weights before and after.
fn follow(case: &str, curve: &Curve) -> [BTreeMap<String, Vec<f32>>; 2] {
    let (mut model, data) = (trainable(&fixture(case, "model")), dataset(case));
    let (before, config) = (weights(&model), curve.config());
    assert_eq!(curve.steps.len() as u64, config.schedule.total);
    for (i, expected) in curve.steps.iter().enumerate() {
        let window: Vec<Batch> = expected.rows.iter().map(|rows| data.batch(rows)).collect();
        let passed = gradients(&mut model, &window, &config, i as u64).unwrap();
        let rate = update(&model, &passed, &config, i as u64).unwrap();
        let passed = passed.read().unwrap();
        let loss = passed.loss_sum / passed.divisor;
        let what = format!("{case} {}, step {i}", curve.optimizer.lr_scheduler_type);
        assert!((loss - expected.loss).abs() <= 1e-4, "{what}: loss {loss}, expected {}", expected.loss);
        assert!((rate - expected.learning_rate).abs() <= 1e-12, "{what}: {rate} {}", expected.learning_rate);
        // The reference's own norm is up to 2e-6 from that in f64.
        let off = (passed.grad_norm / expected.grad_norm - 1.0).abs();
        assert!(off <= 1e-4, "{what}: gradient norm {}, expected {}", passed.grad_norm, expected.grad_norm);
    }
    [before, weights(&model)]
}

/// Adam divides the key bias's rounding noise by its own size: where it walks means nothing.
fn walks_on_noise(case: &str, name: &str) -> bool {
    // What shifts the scores of all tokens alike leaves an answer's softmax as it is.
    let shifts = ["qa_outputs.bias", "layer.1.output.LayerNorm.bias", "classifier.bias"];
    if case.starts_with("span") && shifts.iter().any(|bias| name.ends_with(bias)) {
        return true;
    }
    ["key.bias", "k_lin.bias", "attn.k.bias", "pos_key_proj.bias"].iter().any(|key| name.ends_with(key))
}

/// Updates may differ by 1e-3 of their size: the reference's own are up to 1e-4 from those in f64 (Adam's first steps divide
/// a gradient by its size, which lifts rounding in small entries to the size of an update).
const UPDATE_TOLERANCE: f64 = 1e-3;

/// Cases that keep the weights at the end of their curve; the others the norms of what changed.
const WITH_FINAL_WEIGHTS: [&str; 3] = ["pairs", "regression", "multilabel"];

#[test]
fn curves_with_final_weights() {
    for case in WITH_FINAL_WEIGHTS {
        let curve: Curve = json(case, "curve_linear.json");
        let [before, after] = follow(case, &curve);
        let reference = tensors(case, "curve_linear.safetensors");
        assert_eq!(after.keys().collect::<BTreeSet<_>>(), reference.keys().collect(), "{case}");
        for (name, ours) in after.iter().filter(|(n, _)| !walks_on_noise(case, n)) {
            let theirs = floats(&reference[name]);
            let (off, size) = (distance(ours, &theirs), distance(&theirs, &before[name]));
            assert!(size > 0.0 && off <= UPDATE_TOLERANCE * size, "{case}: {name} off by {off:e}, moved {size:e}");
        }
    }
}

#[test]
fn curves_with_norms_of_updates() {
    let linear = cases().into_iter().filter(|case| !WITH_FINAL_WEIGHTS.contains(case));
    let curves = linear.map(|case| (case, "curve_linear.json")).chain([("classification", "curve_cosine.json")]);
    for (case, file) in curves {
        let curve: Curve = json(case, file);
        let [before, after] = follow(case, &curve);
        assert_eq!(after.keys().collect::<Vec<_>>(), curve.updates.keys().collect::<Vec<_>>(), "{case} {file}");
        for (name, expected) in curve.updates.iter().filter(|(n, _)| !walks_on_noise(case, n)) {
            let (a, b) = (&after[name], &before[name]);
            let size = distance(a, b);
            let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (a - b) as f64).sum();
            let off = (size - expected.update_norm).abs();
            assert!(
                off <= UPDATE_TOLERANCE * expected.update_norm,
                "{case} {file}: {name} moved {size}, {off:e} too far"
            );
            // A vector that is off by ε·‖u‖ has a sum that is off by at most √n·ε·‖u‖.
            let off = (sum - expected.update_sum).abs();
            let most = (a.len() as f64).sqrt() * UPDATE_TOLERANCE * expected.update_norm;
            assert!(off <= most, "{case} {file}: the update of {name} sums to {sum}, expected {}", expected.update_sum);
        }
    }
}

#[test]
fn a_checkpoint_with_old_names_in_half_precision() {
    let pretrained = Pretrained::open(&fixture("old_names", "model")).unwrap();
    let refused = pretrained.task().unwrap_err();
    assert!(refused.to_string().contains("no classifier") && refused.exit_code() == 2, "{refused}");

    let task = Task { kind: TaskKind::Classification, labels: vec!["a".into(), "b".into()] };
    let (mut model, report) = Model::load(&pretrained, task, 7, Space::f32(&Device::Cpu)).unwrap();
    let new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"];
    assert_eq!(report.initialised, new);
    assert_eq!(report.unused, Vec::<String>::new());
    // 16 a layer, three tables and the norm of the embeddings.
    assert_eq!((report.loaded, model.params.specs().len()), (3 * 16 + 5, 3 * 16 + 5 + 4));

    let batch = whole(&dataset("classification"));
    let (encoder, params) = model.encoder();
    let hidden = encoder.forward(params, &batch, Read::All, None, false).unwrap();
    let reference = &tensors("old_names", "expected.safetensors")["last_hidden_state"];
    assert_eq!(hidden.dims(), reference.dims());
    let off = worst(&floats(&hidden), &floats(reference));
    assert!(off <= 1e-5, "hidden states off by {off:e}");
}

#[test]
fn tasks_are_read_from_the_directory() {
    let task = |case: &str| Pretrained::open(&fixture(case, "model")).unwrap().task().unwrap();
    let labels = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let expected = labels(&["cold", "good", "dull", "neutral", "long"]);
    assert_eq!(task("classification"), Task { kind: TaskKind::Classification, labels: expected });
    let expected = labels(&["different", "same"]);
    assert_eq!(task("pairs"), Task { kind: TaskKind::Classification, labels: expected });
    assert_eq!(task("regression"), Task { kind: TaskKind::Regression, labels: vec![] });
}

fn save(model: &Model, dir: &Path, source: &Path) {
    let data = toml::from_str("train = 'train.csv'\nmax_length = 40").unwrap();
    let extra = BertftJson::new(TaskKind::Classification, &data);
    model.save(dir, &Pretrained::open(source).unwrap(), &extra).unwrap();
}

/// After some training, so that what is saved is not what was loaded.
#[test]
fn a_saved_directory_gives_the_same_logits_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for case in cases() {
        let (source, dir, data) = (fixture(case, "model"), folder.path().join(case), dataset(case));
        let (mut model, batch) = (trainable(&source), whole(&data));
        let untrained = floats(&model.logits(&batch).unwrap());
        let config = json::<Curve>(case, "curve_linear.json").config();
        for step in 5..8 {
            let passed = gradients(&mut model, &[data.batch(&[0, 3, 4])], &config, step).unwrap();
            update(&model, &passed, &config, step).unwrap();
        }
        // Twice: the second replaces the first.
        save(&trainable(&source), &dir, &source);
        save(&model, &dir, &source);
        let mut again = trainable(&dir);
        assert_eq!(again.task(), model.task(), "{case}");
        let logits = floats(&again.logits(&batch).unwrap());
        assert_eq!(logits, floats(&model.logits(&batch).unwrap()), "{case}");
        assert!(worst(&logits, &untrained) > 1e-3, "{case}");
        for (name, tensor) in candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu).unwrap() {
            assert_eq!(floats(&tensor), weights(&model)[&name], "{case}: {name}");
        }
    }
}

/// The vector level is fixed in a process, so the lower ones get processes of their own.
#[test]
fn every_vector_level_is_as_right() {
    const LEVEL: &str = bertft::ops::cpu::LEVEL_VARIABLE;
    if std::env::var_os(LEVEL).is_some() {
        return;
    }
    for level in ["baseline", "avx2"] {
        let tests = std::env::current_exe().unwrap();
        let output = std::process::Command::new(tests).env(LEVEL, level).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !text.contains("running 0 tests"), "{level}: {text}");
    }
}
