//! What must hold of the model whatever its weights: packing, accumulation and thread count change nothing but rounding,
//! every parameter learns, dropout is the same in both directions.

mod common;

use bertft::data::{Batch, Dataset, Targets, Tokens};
use bertft::encoders::{Encoder, Read};
use bertft::heads::Objective;
use bertft::heads::sequence::{probabilities, sigmoids};
use bertft::metrics::ranking;
use bertft::metrics::threshold::{Criterion, Threshold};
use bertft::model::{Model, Pretrained, Task, Tuning};
use bertft::nn::params::{Layout, Params, Spec};
use bertft::nn::workspace::Space;
use bertft::optim::schedule::{Decay, Schedule};
use bertft::rng::{PassKey, splitmix};
use bertft::train::eval::Scored;
use bertft::train::log::Silent;
use bertft::train::step::{StepConfig, gradients, update};
use candle_core::{Device, Tensor};
use common::{FAMILIES, dataset, distance, fixture, floats, norm, trainable, worst};
use std::path::{Path, PathBuf};

/// Softmax does not see a shift, so the key bias has no gradient but rounding noise.
fn zero_by_nature(name: &str) -> bool {
    name.ends_with("attention.self.key.bias") || name.ends_with("pos_key_proj.bias")
}

/// A pretrained model with dropout 0.1 and a new head.
fn tiny(seed: u64) -> Model {
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
fn random_rows(model: &mut Model, lengths: &[usize]) -> Dataset {
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
fn models() -> Vec<(&'static str, Model, Dataset)> {
    let mut tiny = tiny(1);
    let rows = random_rows(&mut tiny, &[5, 1, 512, 33, 2, 16, 64, 17]);
    let case = |case| (case, trainable(&fixture(case, "model")), dataset(case));
    [case("pairs"), case("regression"), ("tiny", tiny, rows)].into_iter().chain(FAMILIES.map(case)).collect()
}

/// A case's model with all dropout live, whatever its family calls it.
fn lively(case: &str) -> Model {
    let (folder, source) = (tempfile::tempdir().unwrap(), fixture(case, "model"));
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    for (key, p) in [
        ("hidden_dropout_prob", 0.3),
        ("attention_probs_dropout_prob", 0.4),
        ("dropout", 0.3),
        ("attention_dropout", 0.4),
        ("embedding_dropout", 0.2),
        ("mlp_dropout", 0.3),
        ("classifier_dropout", 0.5),
        ("classifier_dropout_prob", 0.5),
        ("pooler_dropout", 0.2),
        ("seq_classif_dropout", 0.5),
    ] {
        config[key] = p.into();
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    trainable(folder.path())
}

fn all(data: &Dataset) -> Vec<usize> {
    (0..data.len()).collect()
}

fn grads(params: &Params) -> Vec<(String, Vec<f32>)> {
    params.specs().iter().map(|s| (s.name.clone(), floats(&params.grad(s.offset, &s.shape).unwrap()))).collect()
}

/// That gradients agree but for the order of summation.
fn assert_same_grads(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)], what: &str) {
    let total = b.iter().map(|(_, g)| norm(g).powi(2)).sum::<f64>().sqrt();
    assert!(total > 0.0);
    for ((name, a), (_, b)) in a.iter().zip(b) {
        let off = distance(a, b);
        assert!(off <= 2e-5 * norm(b) + 1e-7 * total, "{what}: {name} off by {off:e} of {:e}", norm(b));
    }
}

#[test]
fn a_packed_batch_is_each_row_alone() {
    for (name, mut model, data) in models() {
        // Not in the order of the data set, so that a row's place cannot pass for its number.
        let mut order = all(&data);
        order.reverse();
        let batch = data.batch(&order);
        let packed = floats(&model.logits(&batch).unwrap());
        let outputs = model.task().outputs();
        for (i, &row) in order.iter().enumerate() {
            let alone = floats(&model.logits(&data.batch(&[row])).unwrap());
            let off = worst(&packed[i * outputs..(i + 1) * outputs], &alone);
            assert!(off <= 1e-5, "{name}: row {row} off by {off:e}");
        }
        let scale = 1.0 / data.len() as f64;
        let mut sum = 0.0;
        for &row in &order {
            sum += model
                .forward_backward(&data.batch(&[row]), None, &Objective::default(), scale, row != order[0])
                .unwrap();
        }
        let alone = grads(&model.params);
        let whole = model.forward_backward(&batch, None, &Objective::default(), scale, false).unwrap();
        assert!((sum / whole - 1.0).abs() < 1e-6, "{name}: {sum} {whole}");
        assert_same_grads(&alone, &grads(&model.params), name);
    }
}

/// What an evaluation keeps of each row gives the scores that the whole logits give, of the set and of its slices.
#[test]
fn an_evaluation_scores_every_row_in_its_place() {
    for case in ["classification", "pairs", "regression", "multilabel"] {
        let (mut model, data) = (trainable(&fixture(case, "model")), dataset(case));
        let rows = all(&data);
        let logits = model.logits(&data.batch(&rows)).unwrap();
        let outputs = model.task().outputs();
        let scored = Scored::new(&mut model, &data, 3, None, &mut Silent).unwrap();
        let got = scored.evaluation(None, None).unwrap().metrics;
        let loss = model.loss_sum(&logits, &data.targets).unwrap() / data.len() as f64;
        assert!((got.get("loss").unwrap() - loss).abs() < 1e-6, "{case}: {got:?}, expected a loss of {loss}");
        if let Targets::Sets(sets) = &data.targets {
            let p = sigmoids(&floats(&logits));
            let expected = ranking::score_sets(&p, outputs, |row, label| sets.of(row).contains(&(label as u32)));
            assert_eq!([got.get("roc_auc"), got.get("map")], expected.map(Some));
            // One threshold for all labels, and one that finds every label of every row and more.
            let threshold = scored.best_threshold(Criterion::F1, false).unwrap();
            let tuned = scored.evaluation(None, Some(&threshold)).unwrap().metrics;
            assert!(tuned.get("micro_f1") > got.get("micro_f1") && tuned.get("threshold") == threshold.one());
            let each = scored.best_threshold(Criterion::F1, true).unwrap();
            let each = scored.evaluation(None, Some(&each)).unwrap().metrics;
            assert!(each.get("macro_f1") >= tuned.get("macro_f1") && each.get("threshold").is_none());
            let all = scored.evaluation(None, Some(&Threshold::One(0.0))).unwrap().metrics;
            assert_eq!(all.get("micro_recall"), Some(1.0));
        }
        let Targets::Class(truth) = &data.targets else {
            assert_eq!(got.get("average_precision"), None);
            continue;
        };
        let mut p = probabilities(&floats(&logits), outputs);
        if outputs == 2 {
            p = p.chunks(2).map(|row| row[1]).collect();
        }
        let expected = ranking::score(&p, truth, outputs);
        assert!(expected.iter().all(|x| (0.0..1.0).contains(x)), "{case}: {expected:?}");
        assert_eq!([got.get("roc_auc"), got.get("average_precision")], expected.map(Some), "{case}");
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    let live = FAMILIES.map(|case| (case, lively(case), dataset(case)));
    for (name, mut model, data) in models().into_iter().chain(live) {
        let batch = data.batch(&all(&data));
        let mut pass = |recompute: bool| {
            model.recompute_activations(recompute);
            let loss = model
                .forward_backward(&batch, Some(PassKey::new(9, 1)), &Objective::smoothed(0.1), 0.25, false)
                .unwrap();
            (loss, grads(&model.params))
        };
        let kept = pass(false);
        assert!(kept == pass(true), "{name}");
        assert!(kept == pass(false), "{name}: kept after recomputing");
    }
}

fn freeze(model: &mut Model, modules: &[&str]) -> bertft::Result<Option<String>> {
    model.tune(&Tuning { freeze: modules.iter().map(|m| m.to_string()).collect(), ..Tuning::default() })
}

/// What learns gets the same gradients as when all learns; what is frozen gets none, keeps its weights, and is not missed.
#[test]
fn frozen_modules_stay_and_the_others_learn_as_before() {
    let cases: [&[&str]; 5] = [
        &["embeddings"],
        &["bert.embeddings", "encoder.layer.0", "encoder.layer.1.attention"],
        &["bert", "classifier.bias"],
        &["encoder.layer.3.output.dense.weight", "embeddings.word_embeddings"],
        &["embeddings", "encoder.layer.[!3].*", "/attention.*dense/"],
    ];
    for modules in cases {
        let (mut free, mut model) = (tiny(1), tiny(1));
        let rows = random_rows(&mut free, &[5, 1, 40, 17]);
        let batch = rows.batch(&all(&rows));
        freeze(&mut model, modules).unwrap();
        let trained: Vec<String> = model.params.trained().map(|s| s.name.clone()).collect();
        assert!(!trained.is_empty() && trained.len() < model.params.specs().len(), "{modules:?}");
        let config = step_config(1);
        let weights = floats(model.params.weights());
        for (step, m) in [&mut free, &mut model].into_iter().enumerate() {
            let passed = gradients(m, std::slice::from_ref(&batch), &config, 0).unwrap();
            assert_eq!(m.unreached().unwrap(), Vec::<String>::new(), "{modules:?} {step}");
            update(m, passed.grad_norm, &config, 0).unwrap();
        }
        let squares: f64 = model.params.trained().map(|s| model.params.grad_square(s).unwrap()).sum();
        assert!((squares.sqrt() / model.params.grad_norm().unwrap() - 1.0).abs() < 1e-6, "{modules:?}");
        let after = floats(model.params.weights());
        for ((spec, (name, got)), (_, want)) in
            model.params.specs().iter().zip(grads(&model.params)).zip(grads(&free.params))
        {
            let moved = after[spec.range()] != weights[spec.range()];
            if trained.contains(&name) {
                assert!(moved && got == want, "{modules:?}: {name}");
            } else {
                assert!(!moved, "{modules:?}: {name} moved");
                let touches_all = name.ends_with("weight") && spec.shape.len() == 2 && name.contains("layer");
                assert!(!touches_all || norm(&got) == 0.0, "{modules:?}: a gradient of {name} was computed");
            }
        }
    }
    let mut model = tiny(1);
    let message = freeze(&mut model, &["encoder.layr.0"]).unwrap_err().to_string();
    assert!(message.contains("encoder.layr.0") && message.contains("encoder.layer.0?"), "{message}");
    assert!(freeze(&mut model, &["bert", "classifier"]).unwrap_err().to_string().contains("nothing is left"));
    assert!(freeze(&mut model, &["/[/"]).unwrap_err().to_string().contains("no pattern"));
}

/// Relative positions lie below all layers, and learn and freeze apart from them.
#[test]
fn relative_embeddings_are_frozen_and_learn_by_themselves() {
    for (case, own) in [("deberta_v3", "deberta.encoder.LayerNorm"), ("deberta_v2", "deberta.encoder.rel_embeddings")] {
        let data = dataset(case);
        let batch = data.batch(&all(&data));
        let pass = |frozen: &[&str]| {
            let mut model = trainable(&fixture(case, "model"));
            freeze(&mut model, frozen).unwrap();
            model.forward_backward(&batch, Some(PassKey::new(9, 1)), &Objective::default(), 1.0, false).unwrap();
            assert_eq!(model.unreached().unwrap(), Vec::<String>::new(), "{case} {frozen:?}");
            let trained: Vec<String> = model.params.trained().map(|s| s.name.clone()).collect();
            (trained, grads(&model.params), model)
        };
        let (_, free, mut model) = pass(&["classifier.bias"]);
        for frozen in [
            &["embeddings", "encoder.layer"][..],
            &["encoder.rel_embeddings", "encoder.LayerNorm"][..if case == "deberta_v3" { 2 } else { 1 }],
            &["encoder.layer.0", "encoder.rel_embeddings"],
        ] {
            let (trained, got, _) = pass(frozen);
            let is_frozen = frozen.iter().any(|module| own.ends_with(&format!(".{module}")));
            assert_eq!(trained.iter().any(|n| n.starts_with(own)), !is_frozen, "{case}, {frozen:?}");
            for ((name, got), (_, want)) in got.iter().zip(&free).filter(|((n, _), _)| trained.contains(n)) {
                assert!(got == want, "{case}, {frozen:?}: {name}");
            }
        }
        let (encoder, params) = model.encoder();
        let depth = |name: &str| encoder.depth(params.spec(name).unwrap());
        assert_eq!(depth("deberta.encoder.rel_embeddings.weight"), 0);
        let last = if case == "deberta_v3" { "query_proj" } else { "pos_key_proj" };
        assert_eq!(depth(&format!("deberta.encoder.layer.1.attention.self.{last}.weight")), 2);
    }
}

/// Whatever else is frozen, each parameter learns, with the gradient that it has when all learn: also what lies beside the
/// layers or below them all, such as DeBERTa's positions and their projections.
#[test]
fn every_parameter_learns_alone() {
    for case in ["classification"].into_iter().chain(FAMILIES) {
        let data = dataset(case);
        let batch = data.batch(&all(&data));
        let mut model = trainable(&fixture(case, "model"));
        let config = model.encoder().0.config().clone();
        let mut pass = |frozen: Vec<String>| {
            model.tune(&Tuning { freeze: frozen, ..Tuning::default() }).unwrap();
            // Nothing of an earlier pass may show through.
            model.params.zero_grad(0..model.params.arena_len()).unwrap();
            model.forward_backward(&batch, Some(PassKey::new(9, 1)), &Objective::default(), 1.0, false).unwrap();
            assert_eq!(model.unreached().unwrap(), Vec::<String>::new(), "{case}");
            let of = |s: &Spec| (s.name.clone(), floats(&model.params.grad(s.offset, &s.shape).unwrap()));
            model.params.trained().map(of).collect::<Vec<_>>()
        };
        let all = pass(vec![]);
        for (name, want) in &all {
            let others = all.iter().map(|(other, _)| other.clone()).filter(|other| other != name).collect();
            let got = pass(others);
            assert!(got == [(name.clone(), want.clone())], "{case}: {name}");
            assert!(norm(want) > 0.0 || config.is_without_gradient(name), "{case}: {name}");
        }
    }
}

fn step_config(seed: u64) -> StepConfig {
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

/// Micro-batches of different size; the gradients of an earlier window lie in the arena when each begins.
#[test]
fn accumulated_micro_batches_are_one_batch() {
    for case in ["classification", "pairs", "regression"] {
        let (mut model, data, config) = (trainable(&fixture(case, "model")), dataset(case), step_config(1));
        let rows = all(&data);
        let split: Vec<Batch> = [&rows[..4], &rows[4..5], &rows[5..8]].map(|r| data.batch(r)).to_vec();
        gradients(&mut model, &[data.batch(&rows[6..])], &config, 0).unwrap();
        let parts = gradients(&mut model, &split, &config, 0).unwrap();
        let (accumulated, stale) = (grads(&model.params), gradients(&mut model, &[data.batch(&rows[6..])], &config, 0));
        let whole = gradients(&mut model, &[data.batch(&rows[..8])], &config, 0).unwrap();
        assert_eq!((parts.rows, whole.rows), (8, 8));
        assert!((parts.loss_sum / whole.loss_sum - 1.0).abs() < 1e-6, "{case}: {parts:?} {whole:?}");
        assert!((parts.grad_norm / whole.grad_norm - 1.0).abs() < 1e-5, "{case}: {parts:?} {whole:?}");
        assert!((stale.unwrap().grad_norm / whole.grad_norm - 1.0).abs() > 1e-2, "{case}: the windows are alike");
        assert_same_grads(&accumulated, &grads(&model.params), case);
    }
}

#[test]
fn every_parameter_moves_and_rows_that_no_token_uses_stay() {
    let mut model = tiny(1);
    let data = random_rows(&mut model, &[20, 31, 8, 12, 9, 25, 14, 30]);
    let (config, before) = (step_config(5), floats(model.params.weights()));
    for step in 0..4 {
        let window = [data.batch(&[0, 1, 2, 3]), data.batch(&[4, 5, 6, 7])];
        let passed = gradients(&mut model, &window, &config, step).unwrap();
        assert_eq!(model.unreached().unwrap(), Vec::<String>::new());
        update(&model, passed.grad_norm, &config, step).unwrap();
    }
    let after = floats(model.params.weights());
    for spec in model.params.specs() {
        let width = *spec.shape.last().unwrap();
        let moved: Vec<bool> = (after[spec.range()].chunks(width).zip(before[spec.range()].chunks(width)))
            .flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| a != b).collect::<Vec<_>>())
            .collect();
        let used = |row: usize| match spec.name.as_str() {
            "bert.embeddings.word_embeddings.weight" => data.tokens.distinct().contains(&(row as u32)),
            "bert.embeddings.position_embeddings.weight" => row < 31,
            _ => true,
        };
        for (row, moved) in moved.chunks(width).enumerate() {
            let share = moved.iter().filter(|&&m| m).count() as f64 / width as f64;
            let right = if used(row) { share > 0.9 || zero_by_nature(&spec.name) } else { share == 0.0 };
            assert!(right, "{} row {row}: {share} of it moved, used: {}", spec.name, used(row));
        }
    }
    assert!(after.iter().all(|w| w.is_finite()));
}

fn set(to: &Tensor, value: f32) {
    to.slice_set(&Tensor::full(value, to.shape(), &Device::Cpu).unwrap(), 0, 0).unwrap();
}

#[test]
fn unreached_names_exactly_what_no_gradient_reached() {
    let mut model = tiny(1);
    let data = random_rows(&mut model, &[7, 12, 30]);
    let batch = data.batch(&all(&data));
    let specs = model.params.specs().to_vec();
    model.forward_backward(&batch, Some(PassKey::new(1, 0)), &Objective::default(), 1.0, false).unwrap();
    let mut planted: Vec<&str> = vec![];
    for spec in &specs {
        model.params.zero_grad(spec.range()).unwrap();
        if !zero_by_nature(&spec.name) {
            planted.push(&spec.name);
        }
        assert_eq!(model.unreached().unwrap(), planted);
    }
    assert_eq!(planted.len(), 5 + 4 * 15 + 4);

    // One value that is not finite, where a zero would be right.
    model.forward_backward(&batch, None, &Objective::default(), 1.0, false).unwrap();
    let key = specs.iter().find(|s| zero_by_nature(&s.name)).unwrap();
    set(&model.params.grad(key.offset + 1, &[1]).unwrap(), f32::NAN);
    assert_eq!(model.unreached().unwrap(), [key.name.as_str()]);

    // A head whose output does not depend on the encoder.
    let classifier = model.params.spec("classifier.weight").unwrap().clone();
    set(&model.params.weight(classifier.offset, &classifier.shape).unwrap(), 0.0);
    model.forward_backward(&batch, None, &Objective::default(), 1.0, false).unwrap();
    let below: Vec<&str> = planted.iter().filter(|n| !n.starts_with("classifier")).copied().collect();
    assert_eq!(model.unreached().unwrap(), below);
}

/// Losses and updates of five steps with dropout in a pool of so many threads.
fn five_steps(threads: usize, seed: u64) -> (Vec<f64>, Vec<f32>, Model) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut model = tiny(1);
        let data = random_rows(&mut model, &[70, 3, 120, 28, 41, 66, 9, 100, 35, 80]);
        let (config, before) = (step_config(seed), floats(model.params.weights()));
        let mut losses = vec![];
        for step in 0..5 {
            let window = [data.batch(&[0, 1, 2, 3, 4, 5]), data.batch(&[6, 7, 8, 9])];
            let passed = gradients(&mut model, &window, &config, step).unwrap();
            update(&model, passed.grad_norm, &config, step).unwrap();
            losses.push(passed.loss_sum);
        }
        let moved = floats(model.params.weights()).iter().zip(&before).map(|(a, b)| a - b).collect();
        (losses, moved, model)
    })
}

#[test]
fn a_seed_gives_the_same_bits_and_threads_change_only_rounding() {
    let (losses, moved, model) = five_steps(2, 42);
    let (again, moved_again, _) = five_steps(2, 42);
    assert_eq!(losses, again);
    assert!(moved == moved_again, "the same seed gave other weights");

    for threads in [1, 3] {
        let (others, other, _) = five_steps(threads, 42);
        for (a, b) in others.iter().zip(&losses) {
            assert!((a / b - 1.0).abs() < 1e-5, "{threads} threads: {others:?} {losses:?}");
        }
        let (mut off, mut size) = (0.0, 0.0);
        for spec in model.params.specs().iter().filter(|s| !zero_by_nature(&s.name)) {
            off += distance(&other[spec.range()], &moved[spec.range()]).powi(2);
            size += norm(&moved[spec.range()]).powi(2);
        }
        let off = (off / size).sqrt();
        // Measured: 2e-5 and 6e-5. Adam lifts rounding in small gradients to the size of an update.
        assert!(off <= 3e-4, "{threads} threads: updates off by {off:e}");
    }
    let (losses_43, moved_43, _) = five_steps(2, 43);
    assert!((losses_43[0] / losses[0] - 1.0).abs() > 1e-4, "{losses_43:?} {losses:?}");
    assert!(distance(&moved, &moved_43) > 0.1 * norm(&moved));
}

#[test]
fn seeds_draw_heads_and_passes_draw_dropout() {
    let (a, b, c) = (tiny(1), tiny(1), tiny(2));
    let (at, others) = (a.params.spec("bert.pooler.dense.weight").unwrap().offset, [&b, &c]);
    let [same, different] = others.map(|m| worst(&floats(a.params.weights()), &floats(m.params.weights())));
    assert!(same == 0.0 && different > 0.0);
    assert_eq!(floats(a.params.weights())[..at], floats(c.params.weights())[..at]);

    let mut model = a;
    let data = random_rows(&mut model, &[7, 12, 30]);
    let batch = data.batch(&all(&data));
    let mut loss = |key| model.forward_backward(&batch, key, &Objective::default(), 1.0, false).unwrap();
    let (off, first) = (loss(None), loss(Some(PassKey::new(1, 0))));
    assert_eq!(first, loss(Some(PassKey::new(1, 0))));
    let others = [off, loss(Some(PassKey::new(1, 1))), loss(Some(PassKey::new(2, 0)))];
    assert!(others.iter().all(|o| (o / first - 1.0).abs() > 1e-4), "{first} {others:?}");
    assert_eq!(off, loss(None));
}

/// Central differences of the loss along each parameter's gradient, under one dropout key: an error anywhere in the
/// backward pass, masks included, shows in all parameters below it.
#[test]
fn gradients_with_dropout_are_the_slope_of_the_loss() {
    // Not modernbert_mean: the ReLU of its head has no slope where it bends.
    let deberta = ["deberta_v3", "deberta_v2", "deberta_conv", "deberta_conv_one"].map(|case| (case, 1e-4));
    for (case, slack) in [("pairs", 0.0), ("modernbert", 0.0)].into_iter().chain(deberta) {
        let (mut model, data) = (lively(case), dataset(case));
        let (batch, key) = (data.batch(&all(&data)), Some(PassKey::new(9, 4)));
        let smoothed = Objective::smoothed(0.1);
        for objective in [Objective { r_drop: 2.0, ..smoothed.clone() }, smoothed] {
            slopes(&mut model, &batch, key, &objective, slack);
        }
    }
}

/// The two passes of R-Drop are under masks of their own: were they the same, they would agree, and the divergence be 0.
#[test]
fn r_drop_compares_passes_under_different_masks() {
    for case in ["pairs", "modernbert"] {
        let (mut model, data) = (lively(case), dataset(case));
        let batch = data.batch(&all(&data));
        let mut loss = |key: Option<PassKey>, r_drop: f64| {
            let objective = Objective { r_drop, ..Objective::default() };
            model.forward_backward(&batch, key, &objective, 1.0, false).unwrap()
        };
        // Without dropout the passes are the same, and so are their losses.
        let plain = loss(None, 0.0);
        assert!((loss(None, 5.0) / plain - 1.0).abs() < 1e-6, "{case}: {plain}");
        let key = Some(PassKey::new(9, 4));
        let (little, more) = (loss(key, 1e-9), loss(key, 1.0));
        assert!(more > 1.001 * little, "{case}: no divergence, {little} {more}");
        // The mean of two losses, the first of which is that of the plain pass.
        let first = loss(key, 0.0);
        assert!((little / first - 1.0).abs() > 1e-4, "{case}: the second pass is the first once more, {first}");
    }
}

/// A value that no gradient has.
const UNTOUCHED: f32 = 1.25e30;

/// Below the lowest part that learns no gradient is computed, in any family; above it they are those of a model of which all
/// learns.
#[test]
fn nothing_is_computed_below_the_lowest_part_that_learns() {
    for (name, mut model, data) in models() {
        let (batch, key) = (data.batch(&all(&data)), Some(PassKey::new(9, 1)));
        let pass = |model: &mut Model| {
            let len = model.params.arena_len();
            set(&model.params.grad(0, &[len]).unwrap(), UNTOUCHED);
            model.forward_backward(&batch, key, &Objective::default(), 0.25, false).unwrap();
            grads(&model.params)
        };
        let free = pass(&mut model);
        let config = model.encoder().0.config();
        let (layers, shared) = (config.names.layers.len(), model.encoder().0.shares_layers());
        let plain = Tuning::default();
        let mut cases: Vec<Tuning> =
            (1..=layers).filter(|_| !shared).map(|n| Tuning { freeze_layers: n, ..plain.clone() }).collect();
        let freeze = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        cases.push(Tuning { freeze: freeze(&["embeddings"]), ..plain.clone() });
        if shared {
            cases.push(Tuning { freeze: freeze(&["embeddings", "encoder"]), ..plain });
        }
        for tuning in cases {
            model.tune(&tuning).unwrap();
            let learns: Vec<String> = model.params.trained().map(|s| s.name.clone()).collect();
            assert!(learns.len() < free.len());
            for ((what, got), (_, want)) in pass(&mut model).iter().zip(&free) {
                // One kernel computes a norm's gradients and those of the bias before it.
                let beside = what.ends_with("mlp.Wo.bias");
                if learns.contains(what) {
                    assert_eq!(got, want, "{name}, {tuning:?}: {what}");
                } else if !beside {
                    assert!(got.iter().all(|g| *g == UNTOUCHED), "{name}, {tuning:?}: {what} was computed");
                }
            }
        }
    }
}

/// With `freeze_layers` a layer's own norm learns with it, though it is computed with the layer below.
#[test]
fn norms_that_stand_first_belong_to_their_layer() {
    let mut model = trainable(&fixture("modernbert", "model"));
    model.tune(&Tuning { freeze_layers: 2, ..Tuning::default() }).unwrap();
    let learns: Vec<&str> = model.params.trained().map(|s| s.name.as_str()).filter(|n| n.contains("norm")).collect();
    let mut expected: Vec<String> =
        (2..5).flat_map(|i| ["attn", "mlp"].map(|of| format!("model.layers.{i}.{of}_norm.weight"))).collect();
    expected.extend(["model.final_norm.weight".into(), "head.norm.weight".into()]);
    let sorted = |names: &mut Vec<&str>| names.sort_unstable();
    let (mut learns, mut expected) = (learns, expected.iter().map(String::as_str).collect());
    sorted(&mut learns);
    sorted(&mut expected);
    assert_eq!(learns, expected);
}

fn slopes(model: &mut Model, batch: &Batch, key: Option<PassKey>, objective: &Objective, slack: f64) {
    model.forward_backward(batch, key, objective, 1.0, false).unwrap();
    let (weights, grads, specs) = (floats(model.params.weights()), grads(&model.params), model.params.specs().to_vec());
    for (spec, (name, grad)) in specs.iter().zip(&grads).filter(|(s, _)| !zero_by_nature(&s.name)) {
        let slope = norm(grad);
        let mut at = |by: f64| {
            let mut moved = weights.clone();
            let to = &mut moved[spec.range()];
            to.iter_mut().zip(grad).for_each(|(w, &g)| *w = (*w as f64 + by * g as f64 / slope) as f32);
            let n = moved.len();
            model.params.restore_weights(&Tensor::from_vec(moved, n, &Device::Cpu).unwrap()).unwrap();
            model.forward_backward(batch, key, objective, 1.0, false).unwrap()
        };
        // Of fourth order in the step, which is shorter where the loss is steep.
        let step = 0.01f64.min(0.1 / slope);
        let measured = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
        // Measured: 5e-5 of the slope at most; `slack` where the loss rounds more than it rises.
        let off = (measured - slope).abs();
        assert!(off <= 1e-3 * slope + slack, "{name}: the loss rises by {measured}, its gradient says {slope}");
    }
    model.params.restore_weights(&Tensor::from_vec(weights.clone(), weights.len(), &Device::Cpu).unwrap()).unwrap();
}

/// An encoder with parameters of its own, whose gradients can be driven without a head.
fn encoder_of(model: &mut Model) -> (Encoder, Params) {
    let weights = floats(model.params.weights());
    let config = model.encoder().0.config().clone();
    let (mut layout, word) = (Layout::default(), config.names.embeddings.word.clone());
    let encoder = Encoder::new(&mut layout, config);
    let weights = weights[..layout.arena_len()].to_vec();
    let mut params = Params::new(layout, weights, Space::f32(&Device::Cpu), Some(&word)).unwrap();
    params.start_training().unwrap();
    (encoder, params)
}

#[test]
fn reading_the_first_tokens_is_reading_all_and_leaving_the_rest() {
    for (name, mut model, data) in models() {
        let (mut encoder, mut params) = encoder_of(&mut model);
        let (batch, h) = (data.batch(&all(&data)), encoder.config().layer.hidden);
        let tokens = batch.ids.len();
        let every = floats(&encoder.forward(&params, &batch, Read::All, None, true).unwrap());
        let mut grad = vec![0f32; tokens * h];
        let firsts = &batch.cu_seqlens[..batch.len()];
        let seeds: Vec<f32> = (0..batch.len() * h).map(|i| (i as f32 * 0.7).sin()).collect();
        for (seed, &at) in seeds.chunks(h).zip(firsts) {
            grad[at as usize * h..][..h].copy_from_slice(seed);
        }
        let grad = Tensor::from_vec(grad, (tokens, h), &Device::Cpu).unwrap();
        encoder.backward(&mut params, &grad, false).unwrap();
        let full = grads(&params);

        let first = encoder.forward(&params, &batch, Read::First, None, true).unwrap();
        assert_eq!(first.dims(), [batch.len(), h]);
        for (row, &at) in floats(&first).chunks(h).zip(firsts) {
            let off = worst(row, &every[at as usize * h..][..h]);
            assert!(off <= 1e-6, "{name}: hidden states off by {off:e}");
        }
        let kept = floats(&first);
        let seeds = Tensor::from_vec(seeds, (batch.len(), h), &Device::Cpu).unwrap();
        encoder.backward(&mut params, &seeds, false).unwrap();
        assert_same_grads(&grads(&params), &full, name);

        // Evaluation keeps nothing and shares its buffers among layers; it must compute the same.
        let evaluated = floats(&encoder.forward(&params, &batch, Read::First, None, false).unwrap());
        assert_eq!(evaluated, kept, "{name}");
        assert!(encoder.backward(&mut params, &seeds, false).is_err(), "{name}: backward of an evaluation pass");
    }
}
