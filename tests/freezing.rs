//! What is frozen stays and costs nothing; what learns beside it learns as if all did.

mod common;
#[allow(dead_code)] // not every test file uses it
#[path = "common/models.rs"]
mod models;

use bertft::heads::Objective;
use bertft::model::{Model, Tuning};
use bertft::nn::params::Spec;
use bertft::rng::PassKey;
use bertft::train::step::{gradients, update};
use common::{FAMILIES, dataset, fixture, floats, norm, trainable};
use models::{all, grads, models, random_rows, set, step_config, tiny};

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
            update(m, &passed, &config, 0).unwrap();
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
