//! bf16 against f32 over all that decides which kernels compute a head on a device and how: its width, rows shorter and longer
//! than a block, windows, biases, and which tokens ask.

use super::*;
use crate::ops::testing::{bf16, close, flat, matrix, near, wide, zeros};
use candle_core::DType;

const LENGTHS: [u32; 6] = [1, 17, 64, 65, 130, 3];

fn prefix(lengths: &[u32]) -> Vec<u32> {
    (0..=lengths.len()).map(|n| lengths[..n].iter().sum()).collect()
}

/// Output, gradients of queries, and of keys and values side by side; and of the bias.
fn run(qkv: [&Tensor; 2], dout: &Tensor, spec: AttentionSpec<'_>) -> [Tensor; 3] {
    let [q, kv] = qkv;
    let (n, hidden) = q.dims2().unwrap();
    // Rows that lie apart, and none of the results where another was.
    let (k, v) = (kv.narrow(1, 0, hidden).unwrap(), kv.narrow(1, hidden, hidden).unwrap());
    let nothing = |rows, columns| (Tensor::ones((rows, columns), q.dtype(), q.device()).unwrap() * f64::NAN).unwrap();
    let (out, dq, dkv) = (nothing(n, hidden), nothing(n, hidden), nothing(k.dim(0).unwrap(), 2 * hidden));
    let p = Projections { q, k: &k, v: &v };
    attention(&out, p, spec).unwrap();
    attention_backward(ProjectionGrads::Split { dq: &dq, dkv: &dkv }, dout, p, spec).unwrap();
    [out, dq, dkv]
}

fn compare(heads: usize, d: usize, window: Option<usize>, biased: bool, asking: &[u32]) {
    let (cu, hidden) = (prefix(&LENGTHS), heads * d);
    let tokens = *cu.last().unwrap() as usize;
    let counts: Vec<u32> =
        cu.windows(2).map(|w| asking.iter().filter(|i| (w[0]..w[1]).contains(i)).count() as u32).collect();
    let cu_queries = prefix(&counts);
    let n = asking.len();
    let q = bf16(&(matrix(n, hidden, 1) * 3.0).unwrap());
    let (kv, dout) = (bf16(&(matrix(tokens, 2 * hidden, 2) * 2.0).unwrap()), bf16(&matrix(n, hidden, 3)));
    let queries = Index::new(asking, q.device()).unwrap();
    let (values, grads) = ((matrix(heads, 2 * 130 + 1, 7) * 2.0).unwrap(), [zeros(heads, 261), zeros(heads, 261)]);
    let spec = |grad| AttentionSpec {
        cu_queries: &cu_queries,
        bias: biased.then_some(DistanceBias { values: &values, grad: Some(grad) }),
        window,
        queries: (n < tokens).then_some(&queries),
        ..AttentionSpec::plain(&cu, heads, Dropout::new(0.15, 3))
    };
    let got = run([&q, &kv], &dout, spec(&grads[0]));
    let want = run([&wide(&q), &wide(&kv)], &wide(&dout), spec(&grads[1]));
    let name = |what: &str| format!("{what} of {heads} heads of {d}, window {window:?}, bias {biased}, {n} queries");
    near(&got[0], &want[0], &name("out"));
    near(&got[1], &want[1], &name("dq"));
    for (i, what) in ["dk", "dv"].into_iter().enumerate() {
        let part = |t: &Tensor| t.narrow(1, i * hidden, hidden).unwrap().contiguous().unwrap();
        near(&part(&got[2]), &part(&want[2]), &name(what));
    }
    let want: Vec<f64> = flat(&grads[1]).iter().map(|&v| f64::from(v)).collect();
    close(&flat(&grads[0]), &want, 1e-3, &name("dbias"));
}

#[test]
fn all_forms_match_f32() {
    let every: Vec<u32> = (0..LENGTHS.iter().sum()).collect();
    let firsts = [0, 1, 18, 82, 147, 277];
    let some = [1, 2, 17, 20, 83, 100, 146, 147, 150, 200, 210, 276, 277, 279];
    for (heads, d) in [(2, 8), (2, 32), (1, 40), (2, 64), (1, 96), (1, 128), (1, 12), (1, 136)] {
        compare(heads, d, None, false, &every);
        compare(heads, d, Some(9), false, &every);
    }
    for d in [32, 64, 128] {
        compare(2, d, Some(70), true, &every);
        compare(1, d, Some(0), true, &every);
        for asking in [&firsts[..], &some] {
            compare(1, d, Some(20), false, asking);
            compare(1, d, None, true, asking);
        }
    }
}

/// Views that begin or go on at odd places are served too.
#[test]
fn rows_that_are_not_aligned() {
    let (tokens, d) = (21, 32);
    let cu = [0, 5, 21];
    for skip in [0, 1, 8] {
        let whole = bf16(&matrix(tokens, 3 * d + 8 + skip, 1));
        let part = |t: &Tensor, i: usize| t.narrow(1, skip + i * d, d).unwrap();
        let spec = AttentionSpec::plain(&cu, 1, Dropout::OFF);
        let run = |t: &Tensor, dtype| {
            let out = Tensor::zeros((tokens, d), dtype, t.device()).unwrap();
            attention(&out, Projections { q: &part(t, 0), k: &part(t, 1), v: &part(t, 2) }, spec).unwrap();
            out
        };
        near(&run(&whole, DType::BF16), &run(&wide(&whole), DType::F32), "out");
    }
}
