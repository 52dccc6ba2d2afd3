//! What must hold of the model whatever its weights: packing, accumulation and thread count change nothing but rounding,
//! every parameter learns, dropout is the same in both directions.

mod common;
#[path = "common/models.rs"]
mod models;

use bertft::data::{Batch, Targets};
use bertft::encoders::{Encoder, Read};
use bertft::heads::Objective;
use bertft::heads::sequence::{probabilities, sigmoids};
use bertft::metrics::ranking;
use bertft::metrics::threshold::{Criterion, Threshold};
use bertft::model::Model;
use bertft::nn::params::{Layout, Params};
use bertft::nn::workspace::Space;
use bertft::rng::PassKey;
use bertft::train::eval::Scored;
use bertft::train::log::Silent;
use bertft::train::step::{gradients, update};
use candle_core::{Device, Tensor};
use common::{FAMILIES, dataset, distance, fixture, floats, norm, trainable, worst};
use models::{all, grads, models, random_rows, set, step_config, tiny, zero_by_nature};

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

/// Micro-batches of different size; the gradients of an earlier window lie in the arena when each begins.
#[test]
fn accumulated_micro_batches_are_one_batch() {
    for case in ["classification", "pairs", "regression"] {
        let (mut model, data, config) = (trainable(&fixture(case, "model")), dataset(case), step_config(1));
        let rows = all(&data);
        let split: Vec<Batch> = [&rows[..4], &rows[4..5], &rows[5..8]].map(|r| data.batch(r)).to_vec();
        gradients(&mut model, &[data.batch(&rows[6..])], &config, 0).unwrap();
        let parts = gradients(&mut model, &split, &config, 0).unwrap().read().unwrap();
        let accumulated = grads(&model.params);
        let stale = gradients(&mut model, &[data.batch(&rows[6..])], &config, 0).unwrap().read().unwrap();
        let whole = gradients(&mut model, &[data.batch(&rows[..8])], &config, 0).unwrap().read().unwrap();
        assert_eq!((parts.rows, whole.rows), (8, 8));
        assert!((parts.loss_sum / whole.loss_sum - 1.0).abs() < 1e-6, "{case}: {parts:?} {whole:?}");
        assert!((parts.grad_norm / whole.grad_norm - 1.0).abs() < 1e-5, "{case}: {parts:?} {whole:?}");
        assert!((stale.grad_norm / whole.grad_norm - 1.0).abs() > 1e-2, "{case}: the windows are alike");
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
        update(&model, &passed, &config, step).unwrap();
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
            update(&model, &passed, &config, step).unwrap();
            losses.push(passed.read().unwrap().loss_sum);
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
