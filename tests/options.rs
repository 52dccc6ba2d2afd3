//! Training options on the model's side against PyTorch (`golden/make_options.py`), and what must hold of them whatever
//! the weights.

mod common;

use bertft::data::Batch;
use bertft::data::config::TaskKind;
use bertft::error::Error;
use bertft::model::{LoadReport, Model, Pretrained, Task, Thaw, Tuning};
use bertft::nn::workspace::Space;
use bertft::ops::gemm::allow_plain_bf16;
use bertft::train::config::TrainConfig;
use bertft::train::plan::Plan;
use bertft::train::scheduler::{Anneal, Scheduler, SchedulerKwargs};
use bertft::train::step::{StepConfig, gradients, start, tune, update};
use candle_core::{DType, Device, Tensor};
use common::{dataset, distance, fixture, floats, norm, trainable, trainable_in};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct Options {
    settings: Settings,
    curves: BTreeMap<String, Curve>,
}

#[derive(Deserialize)]
struct Settings {
    steps: u64,
    learning_rate: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    warmup: u64,
    layer_wise_lr_decay: f64,
    head_rate: f64,
    thaw_every: u64,
    ema_decay: f64,
    fgm_epsilon: f64,
}

#[derive(Deserialize)]
struct Curve {
    steps: Vec<Step>,
    updates: BTreeMap<String, Update>,
}

#[derive(Deserialize)]
struct Step {
    rows: Vec<Vec<usize>>,
    loss: f64,
    grad_norm: f64,
}

#[derive(Deserialize)]
struct Update {
    update_norm: f64,
    update_sum: f64,
}

fn options() -> Options {
    serde_json::from_slice(&std::fs::read(fixture("classification", "options.json")).unwrap()).unwrap()
}

/// The option of each curve, as the config and the model are told.
fn told(name: &str, s: &Settings) -> (TrainConfig, Tuning) {
    let plain = TrainConfig {
        learning_rate: s.learning_rate,
        weight_decay: s.weight_decay,
        max_grad_norm: s.max_grad_norm,
        warmup_steps: s.warmup,
        gradient_accumulation_steps: 2,
        ..TrainConfig::default()
    };
    let epoch_starts = (0..9).map(|epoch| epoch * s.thaw_every).collect();
    let (decay, head) = (s.layer_wise_lr_decay, Some(s.head_rate));
    match name {
        "groups" => (plain, Tuning { layer_wise_lr_decay: decay, head_rate: head, ..Tuning::default() }),
        "thaw" => (plain, Tuning { thaw: Some(Thaw { layers_per_epoch: 1, epoch_starts }), ..Tuning::default() }),
        "ema" => (TrainConfig { ema_decay: s.ema_decay, ..plain }, Tuning::default()),
        "fgm" => (TrainConfig { fgm_epsilon: s.fgm_epsilon, ..plain }, Tuning::default()),
        other => panic!("{other}"),
    }
}

#[test]
fn curves_are_those_of_pytorch() {
    let Options { settings, curves } = options();
    assert_eq!(curves.len(), 4);
    for (name, curve) in curves {
        let (mut model, data) = (trainable(&fixture("classification", "model")), dataset("classification"));
        let (config, tuning) = told(&name, &settings);
        model.tune(&tuning).unwrap();
        if config.ema_decay > 0.0 {
            model.params.start_average().unwrap();
        }
        let (config, before) = (StepConfig::new(&config, settings.steps), floats(model.params.weights()));
        for (i, expected) in curve.steps.iter().enumerate() {
            let window: Vec<Batch> = expected.rows.iter().map(|rows| data.batch(rows)).collect();
            let passed = gradients(&mut model, &window, &config, i as u64).unwrap();
            update(&model, &passed, &config, i as u64).unwrap();
            let passed = passed.read().unwrap();
            let loss = passed.loss_sum / passed.divisor;
            assert!((loss - expected.loss).abs() <= 1e-4, "{name}, step {i}: {loss} {}", expected.loss);
            let off = (passed.grad_norm / expected.grad_norm - 1.0).abs();
            assert!(off <= 1e-4, "{name}, step {i}: norm {} {}", passed.grad_norm, expected.grad_norm);
        }
        model.params.swap_average();
        let after = floats(model.params.weights());
        // Adam divides the key bias's rounding noise by its own size.
        for spec in model.params.specs().iter().filter(|s| !s.name.ends_with("key.bias")) {
            let (a, b, expected) = (&after[spec.range()], &before[spec.range()], &curve.updates[&spec.name]);
            let (size, sum) = (distance(a, b), a.iter().zip(b).map(|(a, b)| f64::from(a - b)).sum::<f64>());
            let most = 1e-3 * expected.update_norm;
            let what = format!("{name}: {}", spec.name);
            assert!((size - expected.update_norm).abs() <= most, "{what} moved {size}, {}", expected.update_norm);
            let most = most * (a.len() as f64).sqrt();
            assert!((sum - expected.update_sum).abs() <= most, "{what} moved by {sum}, {}", expected.update_sum);
        }
    }
}

#[derive(Deserialize)]
struct Schedules {
    schedules: Vec<Rates>,
}

#[derive(Deserialize)]
struct Rates {
    name: Scheduler,
    kwargs: SchedulerKwargs,
    total: u64,
    warmup: u64,
    peak: f64,
    rates: Vec<f64>,
}

#[test]
fn schedules_are_those_of_transformers_and_pytorch() {
    let file = fixture("", "schedules.json");
    let all: Schedules = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(all.schedules.len() >= 45);
    for s in all.schedules {
        let config = TrainConfig {
            learning_rate: s.peak,
            lr_scheduler_type: s.name,
            lr_scheduler_kwargs: s.kwargs.clone(),
            warmup_steps: s.warmup,
            ..TrainConfig::default()
        };
        assert_eq!(config.check(TaskKind::Classification, true), Ok(()));
        let schedule = config.schedule(s.total);
        for (i, want) in s.rates.iter().enumerate() {
            let got = schedule.at(i as u64);
            let off = (got - want).abs();
            assert!(off <= 1e-9 * s.peak, "{:?} {:?}, step {i} of {}: {got} {want}", s.name, s.kwargs, s.total);
        }
    }
    let kwargs = SchedulerKwargs { anneal_strategy: Some(Anneal::Linear), ..SchedulerKwargs::default() };
    assert!(!kwargs.is_default());
}

/// The pretrained model of four layers, with dropout 0.1 and a new head, told to train as `config` says for five epochs of
/// two steps.
fn begun(config: &TrainConfig, dtype: DType) -> Result<(Model, LoadReport), Error> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/models/bert-tiny-4l-128h");
    let labels = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
    let task = Task { kind: TaskKind::Classification, labels };
    let space = Space { dtype, device: &Device::Cpu };
    let (mut model, mut report) = Model::load(&Pretrained::open(&dir).unwrap(), task, config.seed, space).unwrap();
    start(&mut model, config, &plan(), &mut report)?;
    Ok((model, report))
}

fn plan() -> Plan {
    let config = TrainConfig { batch_size: Some(6), epochs: 5.0, ..TrainConfig::default() };
    Plan::new(&config, &dataset("classification"))
}

fn moved(model: &Model, before: &[f32]) -> Vec<String> {
    let after = floats(model.params.weights());
    let moved = model.params.specs().iter().filter(|s| after[s.range()] != before[s.range()]);
    moved.map(|s| s.name.clone()).collect()
}

/// A window of two batches of rows.
fn window(step: u64) -> Vec<Batch> {
    let data = dataset("classification");
    let of = |rows: [u64; 3]| data.batch(&rows.map(|r| ((r + 5 * step) % 12) as usize));
    vec![of([0, 1, 2]), of([3, 7, 9])]
}

fn steps(model: &mut Model, config: &TrainConfig, steps: std::ops::Range<u64>) -> Vec<f64> {
    let config = StepConfig::new(config, 10);
    let step = |step: u64| {
        let passed = gradients(model, &window(step), &config, step).unwrap();
        update(model, &passed, &config, step).unwrap();
        passed.read().unwrap().loss_sum
    };
    steps.map(step).collect()
}

#[test]
fn layers_are_frozen_thawed_and_drawn_anew() {
    let config = TrainConfig { freeze_layers: 2, learning_rate: 1e-3, ..TrainConfig::default() };
    let (mut model, _) = begun(&config, DType::F32).unwrap();
    let before = floats(model.params.weights());
    steps(&mut model, &config, 0..2);
    let names = moved(&model, &before);
    let below = ["embeddings", "layer.0.", "layer.1."];
    assert_eq!(names.len(), 2 * 16 + 4);
    assert!(names.iter().all(|n| !below.iter().any(|b| n.contains(b))), "{names:?}");

    // Two layers with each epoch of two steps; the embeddings in the epoch after the last layers.
    let config = TrainConfig { unfreeze_layers_per_epoch: 2, freeze: vec!["*.2.*.bias".into()], ..config };
    let config = TrainConfig { freeze_layers: 0, ..config };
    let (mut model, _) = begun(&config, DType::F32).unwrap();
    let mut counts = vec![];
    for epoch in 0..4 {
        let before = floats(model.params.weights());
        steps(&mut model, &config, 2 * epoch..2 * epoch + 2);
        counts.push(moved(&model, &before).len());
    }
    // Eight of layer 2's are biases.
    assert_eq!(counts, [4, 4 + 2 * 16 - 8, 4 + 4 * 16 - 8, 4 + 4 * 16 - 8 + 5]);

    let config = TrainConfig { reinit_layers: 1, ..TrainConfig::default() };
    let ((plain, old), (new, report)) =
        (begun(&TrainConfig::default(), DType::F32).unwrap(), begun(&config, DType::F32).unwrap());
    let names = moved(&new, &floats(plain.params.weights()));
    assert!(names.iter().all(|n| n.contains("layer.3.")) && names.len() > 10, "{names:?}");
    assert_eq!((report.initialised.len(), report.loaded), (old.initialised.len() + 16, old.loaded - 16));
    let (again, _) = begun(&config, DType::F32).unwrap();
    let other = begun(&TrainConfig { seed: 7, ..config }, DType::F32).unwrap().0;
    assert_eq!(floats(again.params.weights()), floats(new.params.weights()));
    assert_ne!(floats(other.params.weights()), floats(new.params.weights()));
    let query = new.params.spec("bert.encoder.layer.3.attention.self.query.weight").unwrap();
    let drawn = norm(&floats(&new.params.weight(query.offset, &query.shape).unwrap())) / (query.len() as f64).sqrt();
    assert!((drawn / 0.02 - 1.0).abs() < 0.02, "{drawn}");
}

#[test]
fn what_cannot_be_is_refused() {
    let plain = TrainConfig::default();
    let freeze = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    for (config, says) in [
        (TrainConfig { freeze_layers: 5, ..plain.clone() }, "freeze_layers is 5, but the model has 4 layers"),
        (TrainConfig { reinit_layers: 5, ..plain.clone() }, "reinit_layers is 5, but the model has 4 layers"),
        (TrainConfig { reinit_layers: 2, freeze_layers: 3, ..plain.clone() }, "anew, but it never learns"),
        (
            TrainConfig { reinit_layers: 1, freeze: freeze(&["*.3.output.*"]), ..plain.clone() },
            "anew, but it never learns",
        ),
        (TrainConfig { fgm_epsilon: 1.0, freeze_layers: 1, ..plain.clone() }, "fgm_epsilon"),
        (TrainConfig { layer_wise_lr_decay: 0.9, freeze_layers: 4, ..plain.clone() }, "nothing below the head"),
        (TrainConfig { unfreeze_layers_per_epoch: 1, freeze_layers: 4, ..plain.clone() }, "nothing below the head"),
        (TrainConfig { fgm_epsilon: 1.0, unfreeze_layers_per_epoch: 1, ..plain.clone() }, "fgm_epsilon"),
        (
            TrainConfig { unfreeze_layers_per_epoch: 1, freeze: freeze(&["pooler", "classifier"]), ..plain.clone() },
            "nothing is left to train",
        ),
        (
            TrainConfig { head_learning_rate: Some(1e-3), freeze: freeze(&["pooler", "classifier"]), ..plain.clone() },
            "head_learning_rate is set",
        ),
    ] {
        let error = begun(&config, DType::F32).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(says), "{error}");
    }
    // The fixture's config has no dropout; ALBERT's layers are one.
    let told = |case: &str, config: TrainConfig| {
        let mut model = trainable(&fixture(case, "model"));
        tune(&mut model, &config, &plan(), &mut LoadReport::default()).unwrap_err().to_string()
    };
    assert!(told("pairs", TrainConfig { r_drop: 1.0, ..plain.clone() }).contains("r_drop"));
    let shared: [fn(&mut TrainConfig); 4] = [
        |c| c.freeze_layers = 1,
        |c| c.reinit_layers = 1,
        |c| c.layer_wise_lr_decay = 0.9,
        |c| c.unfreeze_layers_per_epoch = 1,
    ];
    for change in shared {
        let mut config = plain.clone();
        change(&mut config);
        assert!(told("albert", config).contains("share their parameters"));
    }
}

/// Everything at once.
fn together() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        head_learning_rate: Some(3e-3),
        layer_wise_lr_decay: 0.8,
        reinit_layers: 1,
        freeze: vec!["encoder.layer.1.attention".into()],
        lr_scheduler_type: Scheduler::OneCycle,
        ema_decay: 0.7,
        r_drop: 1.5,
        fgm_epsilon: 0.5,
        gradient_accumulation_steps: 2,
        ..TrainConfig::default()
    }
}

/// With other options between stopping and going on nothing but the checkpoint's arenas is kept.
#[test]
fn a_resumed_run_has_the_same_bits_with_all_options() {
    let thawed = TrainConfig { unfreeze_layers_per_epoch: 1, fgm_epsilon: 0.0, weight_decay: 0.1, ..together() };
    allow_plain_bf16();
    for (config, dtype, recompute) in
        [(together(), DType::F32, false), (thawed, DType::F32, true), (together(), DType::BF16, true)]
    {
        let begin = || {
            let (mut model, _) = begun(&config, dtype).unwrap();
            model.recompute_activations(recompute);
            model
        };
        let mut whole = begin();
        let losses = steps(&mut whole, &config, 0..10);
        let mut first = begin();
        steps(&mut first, &config, 0..5);
        let saved: Vec<(&str, Tensor)> =
            first.params.state().unwrap().iter().map(|(n, t)| (*n, t.copy().unwrap())).collect();
        assert_eq!(saved.len(), 4);
        // What an evaluation does in between changes nothing.
        first.params.swap_average();
        first.logits(&window(0)[0]).unwrap();
        first.params.swap_average();
        let mut second = begin();
        steps(&mut second, &config, 0..1);
        saved.iter().for_each(|(name, arena)| second.params.restore(name, arena).unwrap());
        for resumed in [&mut first, &mut second] {
            assert_eq!(steps(resumed, &config, 5..10), losses[5..]);
            for ((name, a), (_, b)) in resumed.params.state().unwrap().into_iter().zip(whole.params.state().unwrap()) {
                assert!(floats(a) == floats(b), "{name} of {config:?}");
            }
        }
        let (weights, average) = (floats(whole.params.weights()), floats(whole.params.state().unwrap()[3].1));
        assert_ne!(weights, average);
    }
}

/// The gradients of a window under FGM and R-Drop do not depend on its split into batches, nor on recomputing.
#[test]
fn accumulation_is_one_batch_under_fgm() {
    let data = dataset("classification");
    let config = StepConfig::new(&TrainConfig { fgm_epsilon: 2.0, ..TrainConfig::default() }, 10);
    let grads = |split: &[&[usize]], epsilon: f64| {
        let mut model = trainable_in(&fixture("classification", "model"), DType::F32);
        let weights = floats(model.params.weights());
        let window: Vec<Batch> = split.iter().map(|rows| data.batch(rows)).collect();
        let config = StepConfig { fgm_epsilon: epsilon, accumulation: 4, ..config.clone() };
        gradients(&mut model, &window, &config, 0).unwrap();
        assert_eq!(floats(model.params.weights()), weights);
        floats(&model.params.grad(0, &[model.params.arena_len()]).unwrap())
    };
    let whole = grads(&[&[0, 1, 2, 3, 4, 5]], 2.0);
    let parts = grads(&[&[0, 1], &[2], &[3, 4, 5]], 2.0);
    assert!(distance(&whole, &parts) <= 2e-5 * norm(&whole));
    let clean = grads(&[&[0, 1, 2, 3, 4, 5]], 0.0);
    assert!(distance(&whole, &clean) > 0.2 * norm(&clean));
    // Without a perturbation the second pass is the first once more.
    let double: Vec<f32> = clean.iter().map(|g| 2.0 * g).collect();
    assert!(distance(&grads(&[&[0, 1, 2, 3, 4, 5]], 1e-6), &double) <= 1e-4 * norm(&double));
}
