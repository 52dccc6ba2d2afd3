use super::*;
use crate::data::config::TaskKind;
use crate::data::{Targets, Tokens};
use crate::model::Task;
use crate::nn::workspace::Space;
#[cfg(all(gpu, not(feature = "cuda")))]
use crate::train::config::Precision;
use crate::train::log::Silent;
use crate::train::run_dir::Existing;
use crate::train::step::{late, small_memory, start};
use candle_core::Device;
use std::path::Path;

fn space(config: &TrainConfig) -> Space<'static> {
    Space { dtype: config.precision.dtype(), device: &Device::Cpu }
}

/// Weights after training in a directory of their own, and what `events.jsonl` has of warnings.
fn train(config: &TrainConfig) -> Result<(Vec<f32>, State, Vec<String>)> {
    let (weights, state, events) = train_logged(config)?;
    Ok((weights, state, events.into_iter().filter(|line| line.contains("warning")).collect()))
}

/// As [`train`], with all of `events.jsonl`.
fn train_logged(config: &TrainConfig) -> Result<(Vec<f32>, State, Vec<String>)> {
    let source = Pretrained::open(Path::new("tests/golden/fixtures/classification/model"))?;
    let task = Task { kind: TaskKind::Classification, labels: ["a", "b", "c", "d"].map(String::from).to_vec() };
    let (mut model, mut report) = Model::load(&source, task, 1, space(config))?;
    let rows: Vec<Vec<u32>> = (0..22u32).map(|i| (0..3 + i % 5).map(|j| 1 + (i * 7 + j) % 20).collect()).collect();
    let tokens = Tokens::from_rows(rows.iter().map(|ids| (ids.clone(), vec![0; ids.len()], false)));
    let targets = Targets::Class((0..22).map(|i| i % 4).collect());
    let data = Dataset { tokens, targets, lines: (1..=22).collect(), file: "t".into() };
    start(&mut model, config, &Plan::new(config, &data), &mut report)?;
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::check(dir.path(), Existing::Refuse, &[])?;
    run.prepare(Existing::Refuse)?;
    let mut log = EventLog::open(&run, 0)?;
    let json = r#"{"version":"0","task":"classification","text":"text","label":"label","header":true,"max_length":16}"#;
    let extra: BertftJson = serde_json::from_str(json).unwrap();
    let outcome = Trainer {
        model: &mut model,
        train: &data,
        eval: &[],
        config: config.clone(),
        class_weights: None,
        run: &run,
        source: &source,
        extra: &extra,
        identity: &Identity(serde_json::Map::new()),
        log: &mut log,
        reporter: &mut Silent,
        started: Instant::now(),
    }
    .run(State::default())?;
    let events = std::fs::read_to_string(dir.path().join("events.jsonl")).unwrap();
    let events = events.lines().map(String::from).collect();
    Ok((model.params.weights().to_vec1()?, outcome.state, events))
}

/// A memory that holds two rows a pass: batches of eight become two, and the weights are those of eight but for rounding.
#[test]
fn a_step_that_does_not_fit_is_done_in_smaller_batches() {
    let config = TrainConfig {
        batch_size: Some(8),
        auto_find_batch_size: true,
        fgm_epsilon: 0.5,
        learning_rate: 1e-3,
        ..TrainConfig::default()
    };
    let (want, state, warnings) = train(&config).unwrap();
    assert_eq!((state.step, state.samples, state.batch_size, warnings.len()), (9, 66, None, 0));
    let loss = state.logged_loss;
    small_memory::MOST_ROWS.set(2);
    let (got, state, warnings) = train(&config).unwrap();
    assert_eq!((state.step, state.samples, state.batch_size), (9, 66, Some(2)));
    assert!(warnings.len() == 2 && warnings[0].contains("step 1: the device's memory is full"), "{warnings:?}");
    assert!(warnings[1].contains("batches have 2 rows, 4 of them to a step"), "{warnings:?}");
    // AdamW makes steps of rounding where a gradient is zero by nature, so all weights together are compared.
    let norm =
        |of: &dyn Fn(f32, f32) -> f32| want.iter().zip(&got).map(|(a, b)| of(*a, *b).powi(2)).sum::<f32>().sqrt();
    let (differs, moved) = (norm(&|a, b| a - b), norm(&|a, _| a) * 1e-4);
    assert!(differs > 0.0 && differs < moved, "{differs} {moved}");
    assert!((state.logged_loss / loss - 1.0).abs() < 1e-4, "{} {loss}", state.logged_loss);
    // The same where the numbers of the step before are not known yet.
    late::NUMBERS.set(true);
    let later = train(&config).unwrap();
    late::NUMBERS.set(false);
    assert!(later.0 == got && later.1.logged_loss == state.logged_loss && later.2.len() == 2, "{:?}", later.2);
    // Not even one row fits, and nobody asked for smaller batches.
    for (most, auto_find_batch_size) in [(0, true), (2, false)] {
        small_memory::MOST_ROWS.set(most);
        let error = train(&TrainConfig { auto_find_batch_size, ..config.clone() }).unwrap_err();
        assert!(matches!(&error, Error::Candle(e) if is_out_of_memory(e)), "{error}");
    }
}

/// A GPU's bf16 products read copies of the weights: they must follow the steps.
#[cfg(all(gpu, not(feature = "cuda")))]
#[test]
fn bf16_learns_as_f32_does_on_a_gpu() {
    let losses = [Precision::F32, Precision::Bf16].map(|precision| {
        let config = TrainConfig { batch_size: Some(8), learning_rate: 3e-3, precision, ..TrainConfig::default() };
        [0.3, 3.0].map(|epochs| {
            let state = train(&TrainConfig { epochs, ..config.clone() }).unwrap().1;
            state.logged_loss / state.logged_divisor
        })
    });
    // How far the mean of all steps lies below the first step's.
    let [falls, falls_too] = losses.map(|[begins, mean]| begins - mean);
    assert!(falls > 0.01 && (falls_too / falls - 1.0).abs() < 0.05, "{losses:?}");
}

/// As on a GPU, where a step's numbers are read in the next one.
#[test]
fn numbers_that_come_late_change_nothing() {
    let config = TrainConfig {
        batch_size: Some(8),
        logging_steps: 2,
        ema_decay: 0.9,
        unfreeze_layers_per_epoch: 1,
        ..TrainConfig::default()
    };
    let broken =
        TrainConfig { learning_rate: 1e30, max_grad_norm: 0.0, unfreeze_layers_per_epoch: 0, ..config.clone() };
    let run = || {
        let (weights, state, events) = train_logged(&config).unwrap();
        let fields = |line: &String| {
            let mut event: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
            // These measure time, or name the directory.
            event.retain(|key, _| !["tokens_per_second", "path", "time"].contains(&key.as_str()));
            event
        };
        let counts = (state.step, state.samples, state.tokens, state.logged_loss, state.logged_divisor);
        let events: Vec<_> = events.iter().map(fields).collect();
        (weights, counts, events, train(&broken).unwrap_err().to_string())
    };
    let at_once = run();
    late::NUMBERS.set(true);
    let later = run();
    late::NUMBERS.set(false);
    assert!(at_once.0 == later.0, "the weights differ");
    assert_eq!((at_once.1, &at_once.2, &at_once.3), (later.1, &later.2, &later.3));
    assert_eq!(at_once.2.iter().filter(|event| event["event"] == "step").count(), 4, "{:?}", at_once.2);
    assert!(at_once.3.starts_with("step 2: the loss is NaN on the rows at t lines"), "{}", at_once.3);
}
