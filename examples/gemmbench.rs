use bertft::ops::gemm::*;
use candle_core::*;
use std::time::Instant;
fn main() {
    let d = &Device::Cpu;
    for threads in [1usize, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
        for (t, i, o) in [(400usize, 384usize, 1152usize), (400, 384, 384), (400, 384, 1536), (400, 1536, 384), (4096, 384, 1536), (400, 768, 3072), (400, 3072, 768), (32, 384, 1536)] {
            let x = Tensor::randn(0f32, 1., (t, i), d).unwrap().to_dtype(DType::BF16).unwrap();
            let dy = Tensor::randn(0f32, 1., (t, o), d).unwrap().to_dtype(DType::BF16).unwrap();
            let m = Tensor::randn(0f32, 1., (o, i), d).unwrap();
            let p = PackedWeight::new(o, i, true, d).unwrap();
            p.pack(&m).unwrap();
            let y = Tensor::zeros((t, o), DType::BF16, d).unwrap();
            let dx = Tensor::zeros((t, i), DType::BF16, d).unwrap();
            let dw = Tensor::zeros((o, i), DType::F32, d).unwrap();
            let w = Weight::Bf16(p.clone());
            let f = 2.0 * (t * i * o) as f64;
            let time = |g: &dyn Fn()| { for _ in 0..3 { g(); } let n = (2e10 / f).ceil() as usize; let mut best = f64::MAX; for _ in 0..5 { let s = Instant::now(); for _ in 0..n { g(); } best = best.min(s.elapsed().as_secs_f64() / n as f64); } best };
            let a = time(&|| linear(&y, &x, &w, None).unwrap());
            let b = time(&|| linear_input_grad(&dx, &dy, &w, false).unwrap());
            let c = time(&|| linear_weight_grad(&dw, &dy, &x, false).unwrap());
            let e = time(&|| p.pack(&m).unwrap());
            let (x3, dy3, y3, dw3) = (x.to_dtype(DType::F32).unwrap(), dy.to_dtype(DType::F32).unwrap(), y.to_dtype(DType::F32).unwrap(), &dw);
            let w3 = Weight::F32(m.clone());
            let g = time(&|| linear(&y3, &x3, &w3, None).unwrap());
            let h = time(&|| linear_weight_grad(dw3, &dy3, &x3, false).unwrap());
            println!("{threads} threads [{t},{i}]x{o}: fwd {:.0} dx {:.0} dw {:.0} GFLOP/s, pack {:.2} ms ({:.1} GB/s); f32 fwd {:.0} dw {:.0}", f / a / 1e9, f / b / 1e9, f / c / 1e9, e * 1e3, (i * o * 12) as f64 / e / 1e9, f / g / 1e9, f / h / 1e9);
        }
        });
    }
}
