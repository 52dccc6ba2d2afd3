//! bf16 against the f32 reference: what rounding activations and weights to 8 bits may change, and what it may not. A machine
//! without bf16 products computes them here in plain loops.

mod common;

use bertft::data::Dataset;
use bertft::heads::Objective;
use bertft::model::Model;
use bertft::ops::gemm::allow_plain_bf16;
use bertft::optim::schedule::{Decay, Schedule};
use bertft::rng::PassKey;
use bertft::train::step::{StepConfig, gradients, update};
use candle_core::DType;
use common::{FAMILIES, dataset, distance, fixture, floats, norm, trainable_in, worst};

/// BERT's cases, then those of the other families.
fn cases() -> Vec<&'static str> {
    ["classification", "pairs", "regression"].into_iter().chain(FAMILIES).collect()
}

/// The case's model in f32 and in bf16.
fn both(case: &str) -> [Model; 2] {
    allow_plain_bf16();
    [DType::F32, DType::BF16].map(|dtype| trainable_in(&fixture(case, "model"), dtype))
}

fn all(data: &Dataset) -> Vec<usize> {
    (0..data.len()).collect()
}

fn grads(model: &Model) -> Vec<(String, Vec<f32>)> {
    let p = &model.params;
    p.specs().iter().map(|s| (s.name.clone(), floats(&p.grad(s.offset, &s.shape).unwrap()))).collect()
}

/// The f32 logits and gradients are within 1e-5 and 1e-4 of `transformers`' (tests/golden.rs); here the distance to them.
#[test]
fn logits_and_gradients_are_near_those_of_f32() {
    for case in cases() {
        let (data, [mut exact, mut rounded]) = (dataset(case), both(case));
        let batch = data.batch(&all(&data));
        let (a, b) = (floats(&exact.logits(&batch).unwrap()), floats(&rounded.logits(&batch).unwrap()));
        let size = a.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(worst(&a, &b) > 0.0, "{case}: bf16 was not used");
        assert!(worst(&a, &b) <= 0.02 * size.max(1.0), "{case}: logits {a:?} and {b:?}");

        let scale = 1.0 / data.len() as f64;
        let key = Some(PassKey::new(3, 0));
        let losses = [&mut exact, &mut rounded]
            .map(|m| m.forward_backward(&batch, key, &Objective::default(), scale, false).unwrap());
        assert!((losses[0] / losses[1] - 1.0).abs() < 0.01, "{case}: {losses:?}");
        let total = exact.params.grad_norm().unwrap();
        let mut wrong = vec![];
        for ((name, want), (_, got)) in grads(&exact).iter().zip(&grads(&rounded)) {
            let (off, size) = (distance(got, want), norm(want));
            if off.is_nan() || off > 0.05 * size + 2e-3 * total {
                wrong.push(format!("{name}: off by {off:e} of {size:e}"));
            }
        }
        assert!(wrong.is_empty(), "{case}, norm {total}:\n{}", wrong.join("\n"));
        assert_eq!(rounded.unreached().unwrap(), Vec::<String>::new(), "{case}");
    }
}

/// Twenty steps of AdamW: the f32 master weights collect updates far below bf16's resolution.
#[test]
fn the_loss_curve_follows_f32() {
    for case in cases() {
        let (data, mut models) = (dataset(case), both(case));
        let config = StepConfig {
            schedule: Schedule { peak: 2e-4, decay: Decay::Linear, warmup: 2, total: 20 },
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: 1.0,
            objective: Objective::default(),
            ema_decay: 0.0,
            fgm_epsilon: 0.0,
            accumulation: 2,
            seed: 5,
        };
        let rows = all(&data);
        let mut first = f64::NAN;
        for step in 0..20u64 {
            let window: Vec<_> = rows.chunks(rows.len().div_ceil(2)).map(|rows| data.batch(rows)).collect();
            let [exact, rounded] = [0, 1].map(|i: usize| {
                let passed = gradients(&mut models[i], &window, &config, step).unwrap();
                update(&models[i], &passed, &config, step).unwrap();
                let passed = passed.read().unwrap();
                passed.loss_sum / passed.rows as f64
            });
            if step == 0 {
                first = exact;
            }
            assert!((exact - rounded).abs() <= 0.01 * first, "{case}, step {step}: {exact} in f32, {rounded} in bf16");
            // Some fixtures learn slowly at this rate; but what they learn must be a multiple of what bf16 may miss.
            assert!(step < 19 || exact < 0.97 * first, "{case}: nothing was learned, {first} to {exact}");
        }
    }
}

#[test]
fn a_packed_batch_is_each_row_alone_and_recomputing_changes_no_bit() {
    allow_plain_bf16();
    for case in cases() {
        let (data, mut model) = (dataset(case), trainable_in(&fixture(case, "model"), DType::BF16));
        let batch = data.batch(&all(&data));
        let (packed, outputs) = (floats(&model.logits(&batch).unwrap()), model.task().outputs());
        for row in 0..data.len() {
            let alone = floats(&model.logits(&data.batch(&[row])).unwrap());
            let off = worst(&packed[row * outputs..(row + 1) * outputs], &alone);
            // The encoder's part is the same to the bit; the head's f32 products may sum in another order.
            assert!(off <= 1e-5, "{case}: row {row} off by {off:e}");
        }
        let mut pass = |recompute: bool| {
            model.recompute_activations(recompute);
            let loss =
                model.forward_backward(&batch, Some(PassKey::new(9, 1)), &Objective::default(), 0.25, false).unwrap();
            (loss, grads(&model))
        };
        assert!(pass(false) == pass(true), "{case}");
    }
}
