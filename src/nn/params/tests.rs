use super::*;

fn params() -> Params {
    let mut layout = Layout::default();
    layout.block(&[("table".into(), vec![5, 2], Init::Normal)]);
    layout.block(&[("a.weight".into(), vec![2, 2], Init::Normal), ("a.bias".into(), vec![2], Init::Zeros)]);
    let n = layout.arena_len();
    let space = Space::f32(&Device::Cpu);
    let mut p = Params::new(layout, (0..n).map(|i| i as f32).collect(), space, Some("table")).unwrap();
    p.start_training().unwrap();
    p
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn views_are_the_arena() {
    let p = params();
    assert_eq!(p.count(), 16);
    let a = p.spec("a.weight").unwrap();
    assert_eq!(a.offset, 16);
    assert_eq!(values(&p.weight(16, &[6]).unwrap()), [16., 17., 18., 19., 20., 21.]);
    assert!(a.decays() && !p.spec("a.bias").unwrap().decays());
    for (name, decays) in [
        ("layer.0.output_layer_norm.weight", false),
        ("layers.0.attn_norm.weight", false),
        ("embeddings.norm.weight", false),
        ("embeddings.LayerNorm.weight", false),
        ("relative_attention_bias.weight", false),
        ("normal.weight", true),
    ] {
        assert_eq!(Spec { name: name.into(), ..a.clone() }.decays(), decays, "{name}");
    }
}

#[test]
fn every_parameter_is_told_how_it_learns() {
    let mut p = params();
    let message = p.learn(vec![Learning::PLAIN; 2]).unwrap_err().to_string();
    assert!(message.contains("how 2 parameters learn, for a model of 3"), "{message}");
    p.learn(vec![Learning::PLAIN, Learning::NEVER, Learning::PLAIN]).unwrap();
    assert_eq!(p.trained().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["table", "a.bias"]);
}

#[test]
fn untouched_rows_stay_and_touched_rows_are_cleared() {
    let mut p = params();
    let g = p.grad(0, &[5, 2]).unwrap();
    p.begin_window().unwrap();
    p.touch(&[1, 2, 4]);
    g.slice_set(&Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap(), 0, 1).unwrap();
    assert_eq!(p.grad_norm().unwrap(), 2.0);
    let step = AdamWStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 0.0, step: 1, max_grad_norm: 0.0 };
    p.step(AdamWStep { epsilon: 1e-8, ..step }, &p.grad_squares().unwrap(), 0.0).unwrap();
    let w = values(&p.weight(0, &[10]).unwrap());
    assert_eq!(w[..2], [0., 1.]);
    assert!((w[2] - 1.9).abs() < 1e-6 && w[6..] == [6., 7., 8., 9.]);
    p.begin_window().unwrap();
    assert_eq!(p.grad_norm().unwrap(), 0.0);
    assert_eq!(values(&g), vec![0.0; 10]);
    // With decay every row moves.
    p.step(AdamWStep { step: 2, epsilon: 1e-8, ..step }, &p.grad_squares().unwrap(), 0.5).unwrap();
    assert!((values(&p.weight(0, &[10]).unwrap())[1] - 0.95).abs() < 1e-6);
}

#[test]
fn a_checkpoint_brings_back_which_rows_have_moments() {
    let mut p = params();
    p.touch(&[3]);
    p.grad(0, &[5, 2]).unwrap().slice_set(&Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap(), 0, 3).unwrap();
    let step = AdamWStep { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, step: 1, max_grad_norm: 0.0 };
    p.step(step, &p.grad_squares().unwrap(), 0.0).unwrap();
    let saved: Vec<(&str, Tensor)> = p.state().unwrap().iter().map(|(n, t)| (*n, t.copy().unwrap())).collect();
    let mut q = params();
    saved.iter().for_each(|(name, arena)| q.restore(name, arena).unwrap());
    for x in [&mut p, &mut q] {
        x.begin_window().unwrap();
        x.step(AdamWStep { step: 2, ..step }, &x.grad_squares().unwrap(), 0.0).unwrap();
    }
    assert_eq!(values(&p.weight(0, &[22]).unwrap()), values(&q.weight(0, &[22]).unwrap()));
    assert_ne!(values(&q.weight(0, &[22]).unwrap()), values(&saved[0].1));
}

#[test]
fn what_is_absent_has_room_and_no_name() {
    let mut layout = Layout::default();
    let member = |name: &str, init| (name.to_owned(), vec![3], init);
    layout.block(&[member("bias", Init::Absent), member("gamma", Init::Ones), member("beta", Init::Absent)]);
    assert_eq!(layout.arena_len(), 9);
    assert_eq!(layout.specs().iter().map(|s| (s.name.as_str(), s.offset)).collect::<Vec<_>>(), [("gamma", 3)]);
    let p = Params::new(layout, vec![0.0; 9], Space::f32(&Device::Cpu), None).unwrap();
    assert!(p.trains(3..6) && !p.trains(0..3) && !p.trains(6..9));
}

/// A GPU's bf16 copy serves a step's passes, and is made anew when the step has moved the weights.
#[cfg(all(gpu, not(feature = "cuda")))]
#[test]
fn copies_on_a_gpu_follow_the_steps() {
    let mut layout = Layout::default();
    layout.block(&[("w.weight".into(), vec![4, 6], Init::Normal)]);
    let space = Space { dtype: DType::BF16, device: &Device::Cpu };
    let mut p = Params::new(layout, vec![0.5; 24], space, None).unwrap();
    p.start_training().unwrap();
    let copy = |p: &Params| match p.linear(0, 4, 6).unwrap() {
        Weight::Master(w) => (w.dtype(), values(&w.to_dtype(DType::F32).unwrap())),
        other => panic!("{other:?}"),
    };
    assert_eq!(copy(&p), (DType::BF16, vec![0.5; 24]));
    p.grad(0, &[24]).unwrap().slice_set(&Tensor::ones(24, DType::F32, &Device::Cpu).unwrap(), 0, 0).unwrap();
    assert_eq!(copy(&p).1, vec![0.5; 24]);
    let (learning_rate, max_grad_norm) = (0.25, 0.0);
    let step = AdamWStep { learning_rate, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, step: 1, max_grad_norm };
    p.step(step, &p.grad_squares().unwrap(), 0.0).unwrap();
    assert!(copy(&p).1.iter().all(|w| (w - 0.25).abs() < 0.01), "{:?}", copy(&p));
}
