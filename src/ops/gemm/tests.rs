//! The products against f64, on odd shapes and views.

use super::*;
use crate::ops::bias::add_bias;
use crate::ops::gelu::{bias_act, bias_act_backward};
use crate::ops::testing::{bf16, close, flat, matrix, vector, zeros};
use candle_core::Device;
use half::bf16 as Bf16;

/// `c + op(a) · op(b)` in f64.
fn reference(c: &Tensor, a: &Tensor, b: &Tensor) -> Vec<f64> {
    let (a, b, c) =
        (a.to_dtype(candle_core::DType::F64), b.to_dtype(candle_core::DType::F64), c.to_dtype(candle_core::DType::F64));
    let c = (c.unwrap() + a.unwrap().contiguous().unwrap().matmul(&b.unwrap().contiguous().unwrap()).unwrap()).unwrap();
    c.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn all_three_f32_forms_on_odd_shapes_and_views() {
    // Of f32 sums over so many terms below 1.
    let bound = |depth: usize| 2e-7 * (depth as f64).max(50.0);
    for (t, i, o) in SHAPES {
        let (x, master, dy) = (matrix(t, i, 1), matrix(o, i, 2), matrix(t, o, 3));
        let w = Weight::Master(master.clone());
        let (y, bias) = (matrix(t, o, 9), vector(o, 7));
        let want = reference(&zeros(t, o), &x, &master.t().unwrap());
        for w in f32_weights(&master) {
            linear(&y, &x, &w, None).unwrap();
            close(&flat(&y), &want, bound(i), "y");
            let plain = y.copy().unwrap();
            linear(&y, &x, &w, Some(&bias)).unwrap();
            add_bias(&plain, &bias).unwrap();
            assert_eq!(flat(&y), flat(&plain), "y with bias");
        }
        for accumulate in [false, true] {
            let dx = matrix(t, i, 4);
            let start = if accumulate { dx.copy().unwrap() } else { zeros(t, i) };
            linear_input_grad(&dx, &dy, &w, accumulate).unwrap();
            close(&flat(&dx), &reference(&start, &dy, &master), bound(o), "dx");
            let dw = matrix(o, i, 5);
            let start = if accumulate { dw.copy().unwrap() } else { zeros(o, i) };
            linear_weight_grad(&dw, &dy, &x, accumulate).unwrap();
            close(&flat(&dw), &reference(&start, &dy.t().unwrap(), &x), bound(t), "dw");
        }
        // A strided destination: only its columns change.
        let wide = matrix(t, o + 3, 6);
        let before = flat(&wide.narrow(1, 0, 3).unwrap());
        linear(&wide.narrow(1, 3, o).unwrap(), &x, &w, None).unwrap();
        close(
            &flat(&wide.narrow(1, 3, o).unwrap()),
            &reference(&zeros(t, o), &x, &master.t().unwrap()),
            bound(i),
            "view",
        );
        assert_eq!(flat(&wide.narrow(1, 0, 3).unwrap()), before);
    }
}

/// The master, and its packed copy where the machine has our kernel.
fn f32_weights(master: &Tensor) -> Vec<Weight> {
    let mut weights = vec![Weight::Master(master.clone())];
    if f32::ours() {
        weights.push(packed(master, DType::F32));
    }
    weights
}

#[test]
fn f32_products_with_activations_are_their_steps() {
    for (t, i, o) in SHAPES {
        for act in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            let (x, master, bias) = (matrix(t, i, 1), matrix(o, i, 2), vector(o, 7));
            for w in f32_weights(&master) {
                let (u, g) = (matrix(t, o, 8), matrix(t, o, 9));
                linear_act(&u, &g, &x, &w, &bias, act).unwrap();
                let (u_steps, g_steps) = (zeros(t, o), zeros(t, o));
                linear(&u_steps, &x, &w, None).unwrap();
                bias_act(&u_steps, &g_steps, &bias, act).unwrap();
                assert_eq!(flat(&u), flat(&u_steps));
                close(&flat(&g), &f64s(&g_steps), 1e-6, "g");
            }
            let (w, dy, below) = (Weight::Master(master), matrix(t, o, 3), matrix(t, i, 4));
            let (du, db) = (matrix(t, i, 8), vector(i, 5));
            linear_act_backward(&du, &db, &dy, &w, &below, act, true).unwrap();
            let (du_steps, db_steps) = (zeros(t, i), vector(i, 5));
            linear_input_grad(&du_steps, &dy, &w, false).unwrap();
            bias_act_backward(&du_steps, &db_steps, &below, act, true).unwrap();
            close(&flat(&du), &f64s(&du_steps), 1e-6, "du");
            close(&flat(&db), &f64s(&db_steps), 1e-5, "dbias");
        }
    }
}

fn f64s(t: &Tensor) -> Vec<f64> {
    flat(t).iter().map(|&v| v as f64).collect()
}

#[test]
fn wrong_shapes_and_shared_storage_are_refused() {
    let (x, w) = (matrix(3, 4, 1), Weight::Master(matrix(5, 6, 2)));
    assert!(linear(&matrix(3, 5, 3), &x, &w, None).is_err());
    let shared = matrix(8, 4, 1);
    let (y, x) = (shared.narrow(0, 0, 4).unwrap(), shared.narrow(0, 4, 4).unwrap());
    assert!(
        linear(&y, &x, &Weight::Master(matrix(4, 4, 2)), None).unwrap_err().to_string().contains("shares its storage")
    );
}

/// (tokens, in, out): fractions and multiples of tiles, panels, blocks and passes, in every position.
const SHAPES: [(usize, usize, usize); 15] = [
    (1, 1, 1),
    (1, 32, 32),
    (15, 17, 31),
    (16, 64, 16),
    (17, 33, 1),
    (31, 15, 33),
    (32, 32, 64),
    (33, 31, 17),
    (13, 96, 160),
    (97, 128, 48),
    (200, 65, 129),
    (33, 384, 40),
    (1025, 33, 31),
    (2100, 40, 33),
    (40, 2048, 33),
];

fn packed(w: &Tensor, dtype: DType) -> Weight {
    let (out, inp) = w.dims2().unwrap();
    let packed = Weight::room(out, inp, dtype, &Device::Cpu).unwrap();
    packed.pack(w).unwrap();
    packed
}

/// Within the rounding of the result to bf16 (half a step: 2⁻⁸ relative at most) and of f32 sums over `depth` terms below 1.
fn close_bf16(got: &Tensor, want: &[f64], depth: usize, what: &str) {
    close_bf16_via(got, want, &vec![0.0; want.len()], depth, what);
}

/// The same where a GPU rounds the product, `products` or as large, before more becomes of it.
fn close_bf16_via(got: &Tensor, want: &[f64], products: &[f64], depth: usize, what: &str) {
    let sums = 1e-7 * (depth as f64).sqrt() * 4.0;
    for (i, ((g, w), product)) in flat(got).iter().zip(want).zip(products).enumerate() {
        let bound = (w.abs() + on_a_gpu(*product)) / 255.9 + sums + 1e-6;
        assert!((*g as f64 - w).abs() <= bound, "{what}[{i}] of {:?}: {g} is not {w}", got.dims());
    }
}

/// The size of what only a GPU rounds.
fn on_a_gpu(value: f64) -> f64 {
    if on_gpu(&Device::Cpu) { value.abs() } else { 0.0 }
}

#[test]
fn bf16_products_on_odd_shapes_and_views() {
    allow_plain_bf16();
    for (t, i, o) in SHAPES {
        let (x, dy) = (bf16(&matrix(t, i, 1)), bf16(&matrix(t, o, 3)));
        let (master, bias) = (matrix(o, i, 2), vector(o, 7));
        let (w, rounded) = (Weight::Master(master.clone()), bf16(&master));
        let plus = |values: Vec<f64>, b: &[f32]| -> Vec<f64> {
            values.iter().enumerate().map(|(k, v)| v + b[k % b.len()] as f64).collect()
        };
        let product = reference(&zeros(t, o), &x, &rounded.t().unwrap());
        let y = bf16(&matrix(t, o, 9));
        linear(&y, &x, &w, None).unwrap();
        close_bf16(&y, &product, i, "y");
        let from_copy = bf16(&matrix(t, o, 8));
        linear(&from_copy, &x, &packed(&master, DType::BF16), None).unwrap();
        assert_eq!(flat(&y), flat(&from_copy), "y from a packed copy");
        linear(&y, &x, &w, Some(&bias)).unwrap();
        close_bf16_via(&y, &plus(product.clone(), &flat(&bias)), &product, i, "y with bias");
        for accumulate in [false, true] {
            let dx = bf16(&matrix(t, i, 4));
            let start = if accumulate { dx.copy().unwrap() } else { zeros(t, i) };
            linear_input_grad(&dx, &dy, &w, accumulate).unwrap();
            close_bf16(&dx, &reference(&start, &dy, &rounded), o, "dx");
            let dw = matrix(o, i, 5);
            let start = if accumulate { dw.copy().unwrap() } else { zeros(o, i) };
            linear_weight_grad(&dw, &dy, &x, accumulate).unwrap();
            // f32 sums: their error grows with the tokens, not with the result.
            close(&flat(&dw), &reference(&start, &dy.t().unwrap(), &x), 2e-7 * (t as f64).max(16.0), "dw");
        }
        // Strided views on both sides: only their columns change.
        let (wide_y, wide_x) = (bf16(&matrix(t, o + 5, 6)), bf16(&matrix(t, i + 3, 8)));
        let before = flat(&wide_y.narrow(1, 0, 5).unwrap());
        let x = wide_x.narrow(1, 3, i).unwrap();
        linear(&wide_y.narrow(1, 5, o).unwrap(), &x, &w, None).unwrap();
        let want = reference(&zeros(t, o), &x, &rounded.t().unwrap());
        close_bf16(&wide_y.narrow(1, 5, o).unwrap().contiguous().unwrap(), &want, i, "view");
        assert_eq!(flat(&wide_y.narrow(1, 0, 5).unwrap()), before);
        let dw = matrix(o, i, 5);
        linear_weight_grad(&dw, &wide_y.narrow(1, 5, o).unwrap(), &x, false).unwrap();
        let want = reference(&zeros(o, i), &wide_y.narrow(1, 5, o).unwrap().t().unwrap(), &x);
        close(&flat(&dw), &want, 1e-6 * (t * i) as f64, "dw of views");
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if bf16_engine() == Some(Bf16Engine::Amx) && !crate::ops::cpu::has_amx() {
        assert!(super::amx_emulator::tile_instructions() > 0, "the tiles were not emulated");
    }
}

#[test]
fn bf16_products_with_activations_are_those_of_f32_steps() {
    allow_plain_bf16();
    for (t, i, o) in SHAPES {
        for act in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            let (x, master, bias) = (bf16(&matrix(t, i, 1)), matrix(o, i, 2), vector(o, 7));
            let rounded = Weight::Master(bf16(&master).to_dtype(DType::F32).unwrap());
            let w = Weight::Master(master);
            let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let (u, g) = (bf16(&zeros(t, o)), bf16(&zeros(t, o)));
            linear_act(&u, &g, &x, &w, &bias, act).unwrap();
            let (u32, g32) = (zeros(t, o), zeros(t, o));
            linear_act(&u32, &g32, &wide(&x), &rounded, &bias, act).unwrap();
            let product: Vec<f64> = f64s(&u32).iter().zip(f64s(&bias).iter().cycle()).map(|(u, b)| u - b).collect();
            close_bf16_via(&u, &f64s(&u32), &product, i, "u");
            // The activation of the rounded u; |act'| stays below 1.2.
            for (((got, want), u), product) in f64s(&g).iter().zip(f64s(&g32)).zip(f64s(&u32)).zip(product) {
                let bound = (u.abs() + on_a_gpu(product)) / 100.0 + 1e-5;
                assert!((got - want).abs() <= bound, "{act:?}: {got} is not {want} at {u}");
            }
            // Back to the layer below: its u has the width of this layer's input.
            let (dy, below) = (bf16(&matrix(t, o, 3)), bf16(&matrix(t, i, 4)));
            let (du, db) = (bf16(&zeros(t, i)), vector(i, 5));
            linear_act_backward(&du, &db, &dy, &w, &below, act, false).unwrap();
            let (du32, db32) = (zeros(t, i), vector(i, 5));
            linear_act_backward(&du32, &db32, &wide(&dy), &rounded, &wide(&below), act, false).unwrap();
            close_bf16_via(&du, &f64s(&du32), &f64s(&du32), o, "du");
            let sums = flat(&du)
                .chunks(i)
                .fold(vec![0f64; i], |sum, row| sum.iter().zip(row).map(|(s, v)| s + *v as f64).collect());
            close(&flat(&db), &sums, 1e-6 * t as f64, "dbias");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    let (x, dy, master) = (matrix(150, 96, 1), matrix(150, 200, 2), matrix(200, 96, 3));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (y, dw) = (zeros(150, 200), zeros(200, 96));
            linear(&y, &x, &Weight::Master(master.clone()), None).unwrap();
            linear_weight_grad(&dw, &dy, &x, false).unwrap();
            (flat(&y), flat(&dw))
        })
    };
    if f32::ours() {
        assert_eq!(run(1), run(3));
    }
    allow_plain_bf16();
    let (x, dy) = (bf16(&x), bf16(&dy));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (w, y, dw) = (packed(&master, DType::BF16), bf16(&zeros(150, 200)), zeros(200, 96));
            linear(&y, &x, &w, None).unwrap();
            linear_weight_grad(&dw, &dy, &x, false).unwrap();
            (flat(&y), flat(&dw))
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn bf16_refuses_wrong_shapes_and_copies_made_for_evaluation() {
    allow_plain_bf16();
    let x = bf16(&matrix(3, 4, 1));
    let y = Tensor::full(Bf16::ZERO, (3, 5), &Device::Cpu).unwrap();
    assert!(linear(&y, &x, &packed(&matrix(5, 6, 2), DType::BF16), None).is_err());
    assert!(linear(&y, &x, &packed(&matrix(5, 4, 2), DType::BF16), Some(&vector(4, 1))).is_err());
    assert!(linear(&y, &matrix(3, 4, 1), &packed(&matrix(5, 4, 2), DType::BF16), None).is_err());
    assert!(linear(&y, &x, &packed(&matrix(5, 4, 2), DType::BF16), None).is_ok());
    let evaluation = Weight::room(5, 4, DType::BF16, &Device::Cpu).unwrap();
    assert!(linear_input_grad(&x, &y, &evaluation, false).is_err());
}
