use super::*;
use crate::ops::attention::head_dropout;
use crate::ops::dropout::Dropout;
use crate::ops::testing::{bf16, close, flat, matrix, rounded, wide};

/// Buckets, the longest distance, and behind half of the buckets every distance at which the next bucket begins.
const BUCKETS: [(usize, usize, &[i64]); 4] = [
    (
        256,
        512,
        &[
            129, 130, 131, 133, 134, 136, 137, 139, 140, 142, 143, 145, 146, 148, 150, 151, 153, 155, 156, 158, 160,
            161, 163, 165, 167, 169, 170, 172, 174, 176, 178, 180, 182, 184, 186, 188, 190, 192, 194, 196, 198, 201,
            203, 205, 207, 210, 212, 214, 216, 219, 221, 224, 226, 229, 231, 234, 236, 239, 241, 244, 247, 249, 252,
            255, 258, 260, 263, 266, 269, 272, 275, 278, 281, 284, 287, 290, 294, 297, 300, 303, 307, 310, 313, 317,
            320, 324, 327, 331, 335, 338, 342, 346, 349, 353, 357, 361, 365, 369, 373, 377, 381, 385, 390, 394, 398,
            403, 407, 411, 416, 420, 425, 430, 434, 439, 444, 449, 454, 459, 464, 469, 474, 479, 484, 490, 495, 500,
            506, 512, 517, 523, 528, 534, 540, 546, 552, 558, 564, 570, 577, 583, 589, 596, 602, 609, 616, 622, 629,
            636, 643, 650, 657, 664, 672, 679, 686, 694,
        ],
    ),
    (
        32,
        128,
        &[
            17, 19, 22, 25, 28, 32, 37, 43, 49, 56, 64, 74, 84, 97, 111, 128, 146, 168, 193, 221, 254, 291, 334, 384,
            441, 506, 581, 667,
        ],
    ),
    (8, 40, &[5, 9, 19, 40, 84, 178, 381]),
    (5, 9, &[3, 9, 33, 129, 513]),
];

/// As `make_log_bucket_position` of `transformers` 4.57 has them.
#[test]
fn buckets_are_those_of_the_reference() {
    for (buckets, longest, starts) in BUCKETS {
        let middle = buckets as i64 / 2;
        for distance in 0..700i64 {
            let begun = starts.iter().filter(|start| **start <= distance).count() as i64;
            let expected = if distance <= middle { distance } else { middle + begun };
            assert_eq!(log_bucket(distance, buckets, longest), expected, "{distance} of {buckets} to {longest}");
            assert_eq!(log_bucket(-distance, buckets, longest), -expected);
        }
    }
}

/// Positions of distances up to `reach` of which those beyond `exact` share some, or leave some out.
fn distances(reach: usize, exact: i64) -> Vec<u32> {
    let bucket =
        |x: i64| x.signum() * (x.abs().min(exact) + (x.abs() - exact).max(0) / 3 + i64::from(x.abs() > exact + 4));
    let all: Vec<i64> = (-(reach as i64)..=reach as i64).map(bucket).collect();
    all.iter().map(|x| (x - all[0]) as u32 + 1).collect()
}

/// Forward and gradients by the definition in f64: out, dq, dk, dv, dpositions.
fn reference(
    [q, k, v, positions, dout]: [&[f32]; 5],
    hidden: usize,
    spec: &DisentangledSpec<'_>,
    places: &[u32],
) -> [Vec<f64>; 5] {
    let (heads, sides, reach) = (spec.attention.heads, spec.sides(), spec.distances.len() / 2);
    let d = hidden / heads;
    let scale = 1.0 / ((d * (1 + sides)) as f64).sqrt();
    let mut r = [q.len(), q.len(), k.len(), k.len(), positions.len()].map(|n| vec![0f64; n]);
    let [out, dq, dk, dv, dp] = &mut r;
    let (cu_q, cu_k) = (spec.attention.cu_queries, spec.attention.cu_keys);
    for row in 0..cu_k.len() - 1 {
        let (q0, q1) = (cu_q[row] as usize, cu_q[row + 1] as usize);
        let (k0, k1) = (cu_k[row] as usize, cu_k[row + 1] as usize);
        for head in 0..heads {
            let drop = head_dropout(&spec.attention, row, head);
            let at = |i: usize, c: usize| i * hidden + head * d + c;
            // Where the query and the key of a pair's position begin.
            let place = |i: usize, j: usize, keys: bool| {
                let p = spec.distances[reach + places[i] as usize - j] as usize;
                p * sides * hidden + if keys && spec.position_to_content { hidden } else { 0 } + head * d
            };
            let dot = |a: &[f32], i: usize, b: &[f32], j: usize| {
                (0..d).map(|c| a[i + c] as f64 * b[j + c] as f64).sum::<f64>()
            };
            for i in q0..q1 {
                let score = |j: usize| {
                    let mut s = dot(q, at(i, 0), k, at(j, 0));
                    if spec.content_to_position {
                        s += dot(q, at(i, 0), positions, place(i, j, true));
                    }
                    if spec.position_to_content {
                        s += dot(k, at(j, 0), positions, place(i, j, false));
                    }
                    s * scale
                };
                let scores: Vec<f64> = (k0..k1).map(score).collect();
                let top = scores.iter().cloned().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| (s - top).exp() / total).collect();
                let f: Vec<f64> = (0..p.len()).map(|j| drop.factor(((i - q0) * (k1 - k0) + j) as u32) as f64).collect();
                let g: Vec<f64> = (0..p.len()).map(|j| f[j] * dot(dout, at(i, 0), v, at(k0 + j, 0))).collect();
                let mean: f64 = p.iter().zip(&g).map(|(p, g)| p * g).sum();
                for (j, ds) in (0..p.len()).map(|j| (j, p[j] * (g[j] - mean) * scale)) {
                    for c in 0..d {
                        let (qa, ka) = (at(i, c), at(k0 + j, c));
                        out[qa] += p[j] * f[j] * v[ka] as f64;
                        dv[ka] += p[j] * f[j] * dout[qa] as f64;
                        dq[qa] += ds * k[ka] as f64;
                        dk[ka] += ds * q[qa] as f64;
                        if spec.content_to_position {
                            let a = place(i, k0 + j, true) + c;
                            dq[qa] += ds * positions[a] as f64;
                            dp[a] += ds * q[qa] as f64;
                        }
                        if spec.position_to_content {
                            let a = place(i, k0 + j, false) + c;
                            dk[ka] += ds * positions[a] as f64;
                            dp[a] += ds * k[ka] as f64;
                        }
                    }
                }
            }
        }
    }
    r
}

fn prefix(lengths: &[u32]) -> Vec<u32> {
    let sums = lengths.iter().scan(0, |sum, l| {
        *sum += l;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}

/// The results of both passes: out, dq, dkv, dpositions.
fn run([q, kv, positions, dout]: [&Tensor; 4], spec: DisentangledSpec<'_>) -> [Tensor; 4] {
    let h = q.dims()[1];
    let like = |t: &Tensor, seed| matrix(t.dims()[0], t.dims()[1], seed).to_dtype(q.dtype()).unwrap();
    let (k, v) = (kv.narrow(1, 0, h).unwrap(), kv.narrow(1, h, h).unwrap());
    let p = Projections { q, k: &k, v: &v };
    let (out, dq, dkv, dpositions) = (like(q, 5), like(q, 6), like(kv, 7), like(positions, 8));
    disentangled_attention(&out, p, positions, spec).unwrap();
    let to = ProjectionGrads::Split { dq: &dq, dkv: &dkv };
    disentangled_attention_backward(to, &dpositions, dout, p, positions, spec).unwrap();
    if spec.attention.queries.is_none() {
        let all = matrix(q.dims()[0], 3 * h, 9).to_dtype(q.dtype()).unwrap();
        disentangled_attention_backward(ProjectionGrads::Fused(&all), &dpositions, dout, p, positions, spec).unwrap();
        assert_eq!(flat(&all.narrow(1, 0, h).unwrap()), flat(&dq));
        assert_eq!(flat(&all.narrow(1, h, 2 * h).unwrap()), flat(&dkv));
    }
    [out, dq, dkv, dpositions]
}

/// Rows shorter and longer than a block and than the exact distances; all queries, the first of each row, and any.
#[test]
fn matches_the_definition_on_odd_shapes() {
    let lengths = [1u32, 70, 3, 17, 33, 135];
    let (cu_k, tokens) = (prefix(&lengths), 259usize);
    let every: Vec<u32> = (0..tokens as u32).collect();
    let some: (&[u32], &[u32]) = (&[0, 3, 1, 0, 2, 4], &[3, 20, 70, 72, 91, 100, 124, 150, 199, 258]);
    for (heads, d, p, exact, sides) in [
        (2, 8, 0.2, 200, [true, true]),
        (1, 5, 0.0, 20, [true, true]),
        (3, 16, 0.1, 64, [true, false]),
        (1, 64, 0.1, 33, [false, true]),
        (2, 3, 0.0, 1, [true, true]),
        (1, 100, 0.1, 50, [true, true]),
        (1, 250, 0.0, 30, [true, true]),
    ] {
        let (hidden, distances) = (heads * d, distances(140, exact));
        for (counts, asking) in [(&lengths[..], &every[..]), (&[1; 6], &[0, 1, 71, 74, 91, 124]), some] {
            let (cu_q, n) = (prefix(counts), asking.len());
            let queries = Index::new(asking, &candle_core::Device::Cpu).unwrap();
            let spec = DisentangledSpec {
                attention: AttentionSpec {
                    cu_queries: &cu_q,
                    queries: (n < tokens).then_some(&queries),
                    ..AttentionSpec::plain(&cu_k, heads, Dropout::new(p, 3))
                },
                distances: &distances,
                content_to_position: sides[0],
                position_to_content: sides[1],
            };
            let count = *distances.last().unwrap() as usize + 3;
            let (q, kv) = ((matrix(n, hidden, 1) * 2.0).unwrap(), (matrix(tokens, 2 * hidden, 2) * 2.0).unwrap());
            let (positions, dout) = ((matrix(count, spec.sides() * hidden, 3) * 2.0).unwrap(), matrix(n, hidden, 4));
            let (k, v) = (kv.narrow(1, 0, hidden).unwrap(), kv.narrow(1, hidden, hidden).unwrap());
            let sources = [&q, &k, &v, &positions, &dout].map(flat);
            let want = reference(sources.each_ref().map(Vec::as_slice), hidden, &spec, asking);
            let [out, dq, dkv, dpositions] = run([&q, &kv, &positions, &dout], spec);
            let what = |name: &str| format!("{name}, {heads} heads of {d}, {n} queries");
            close(&flat(&out), &want[0], 1e-5, &what("out"));
            close(&flat(&dq), &want[1], 2e-5, &what("dq"));
            close(&flat(&dkv.narrow(1, 0, hidden).unwrap()), &want[2], 2e-5, &what("dk"));
            close(&flat(&dkv.narrow(1, hidden, hidden).unwrap()), &want[3], 2e-5, &what("dv"));
            close(&flat(&dpositions), &want[4], 4e-5, &what("dpositions"));
        }
    }
}

#[test]
fn bf16_is_f32_rounded_and_threads_change_no_bit() {
    let (lengths, heads, hidden) = ([1u32, 90, 17, 4, 33, 20, 2, 9, 5, 64], 2, 16);
    let (cu, first, distances) = (prefix(&lengths), prefix(&[1; 10]), distances(95, 40));
    let (tokens, count) = (245, *distances.last().unwrap() as usize + 1);
    let rows = Index::new(&cu[..10], &candle_core::Device::Cpu).unwrap();
    for selected in [false, true] {
        let n = if selected { 10 } else { tokens };
        let spec = DisentangledSpec {
            attention: AttentionSpec {
                cu_queries: if selected { &first } else { &cu },
                queries: selected.then_some(&rows),
                ..AttentionSpec::plain(&cu, heads, Dropout::new(0.2, 5))
            },
            distances: &distances,
            content_to_position: true,
            position_to_content: true,
        };
        let sources =
            [matrix(n, hidden, 1), matrix(tokens, 2 * hidden, 2), matrix(count, 2 * hidden, 3), matrix(n, hidden, 4)]
                .map(|t| bf16(&(t * 2.0).unwrap()));
        let widened = sources.each_ref().map(wide);
        let (got, want) = (run(sources.each_ref(), spec), run(widened.each_ref(), spec));
        for ((got, want), what) in got.iter().zip(&want).zip(["out", "dq", "dkv", "dpositions"]) {
            rounded(got, want, 0.0, what);
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| run(widened.each_ref(), spec));
            for (a, b) in again.iter().zip(&want) {
                assert_eq!(flat(a), flat(b), "{threads} threads");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (q, positions) = (matrix(5, 8, 1), matrix(9, 16, 2));
    let (out, p) = (matrix(5, 8, 3), Projections { q: &q, k: &q, v: &q });
    let good = DisentangledSpec {
        attention: AttentionSpec::plain(&[0, 5], 2, Dropout::OFF),
        distances: &[0, 1, 2, 3, 4, 5, 6, 7, 8],
        content_to_position: true,
        position_to_content: true,
    };
    disentangled_attention(&out, p, &positions, good).unwrap();
    let falling = [0, 1, 2, 3, 4, 3, 6, 7, 8];
    let outside = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let wrong = [
        DisentangledSpec { distances: &good.distances[..7], ..good },
        DisentangledSpec { distances: &good.distances[..8], ..good },
        DisentangledSpec { distances: &falling, ..good },
        DisentangledSpec { distances: &outside, ..good },
        DisentangledSpec { content_to_position: false, ..good },
        DisentangledSpec { content_to_position: false, position_to_content: false, ..good },
        DisentangledSpec { attention: AttentionSpec { window: Some(2), ..good.attention }, ..good },
        DisentangledSpec { attention: AttentionSpec { cu_queries: &[0, 4], ..good.attention }, ..good },
    ];
    for (i, spec) in wrong.into_iter().enumerate() {
        assert!(disentangled_attention(&out, p, &positions, spec).is_err(), "{i}");
    }
}
