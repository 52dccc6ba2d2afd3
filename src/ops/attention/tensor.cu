// FlashAttention-2 (Dao 2023) on packed rows in bf16, products on tensor cores with sums in f32. A block is four warps over 64
// queries (or keys) of one (head, row), 16 a warp; keys and values (or queries and gradients) pass by in tiles, one on its way
// while another is worked on. Scores stay in registers: as the result of one product they have the form in which the next takes
// them. Nothing is added atomically: the backward pass computes scores once for dq and once for dk and dv.
//
// `D` is head_dim rounded up to 32, 64 or 128, with zeros in the columns beyond. Rows in shared memory lie D + 8 apart, so that
// the eight rows which an access reads lie in different banks.
#include "../gpu/tensor.cuh"
#include "kernel.cu"

#define ROWS 64
#define WIDTH (D + 8)
// Keys of a tile; and queries of one where keys stay, which hold two sums. As many as registers have room for.
#define KEYS (D == 128 ? 32 : 64)
#define QUERIES (D == 128 ? 16 : D == 64 ? 32 : 64)
#define LOG2_E 1.4426950408889634f
// Scores that are not there, and where the maximum begins: far above them, so that they weigh nothing beside it.
#define UNSEEN (-1e30f)
#define LOWEST (-1e29f)

// Begins to fetch rows `first` to `first + count` of `rows`, zeros where there are none.
template <int D> __device__ void begin_fetch(bf16 *to, View<bf16> from, int first, int count, int rows, int d) {
    for (int i = threadIdx.x; i < count * (D / 8); i += blockDim.x) {
        int r = i / (D / 8), x = i % (D / 8) * 8;
        bool there = first + r < rows && x < d;
        begin_copy(to + r * WIDTH + x, there ? from.at + (u64)(first + r) * from.stride + x : from.at, there);
    }
}

// Sixteen rows as fragments.
template <int D> __device__ void hold(u32 (&a)[D / 16][4], const bf16 *rows) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_matrices(a[k], rows + lane % 16 * WIDTH + lane / 16 * 8 + 16 * k);
}

// c[16, N] = a[16, D] · rows[N, D]ᵀ
template <int D, int N> __device__ void against(float (&c)[N / 8][4], const u32 (&a)[D / 16][4], const bf16 *rows) {
    int lane = threadIdx.x % 32;
    rows += (lane / 16 * 8 + lane % 8) * WIDTH + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) c[2 * n][i] = c[2 * n + 1][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            u32 b[4];
            load_matrices(b, rows + 16 * n * WIDTH + 16 * k);
            u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
            mma(c[2 * n], a[k], left);
            mma(c[2 * n + 1], a[k], right);
        }
    }
}

// c[16, D] += weights[16, N] · rows[N, D], weights rounded
template <int D, int N> __device__ void add_weighted(float (&c)[D / 8][4], const float (&weights)[N / 8][4], const bf16 *rows) {
    int lane = threadIdx.x % 32;
    rows += lane % 16 * WIDTH + lane / 16 * 8;
    wait_warp();
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const float(&w)[4] = weights[2 * k], (&x)[4] = weights[2 * k + 1];
        u32 a[4] = {pack(w[0], w[1]), pack(w[2], w[3]), pack(x[0], x[1]), pack(x[2], x[3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 b[4];
            load_matrices_transposed(b, rows + 16 * k * WIDTH + 16 * n);
            u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
            mma(c[2 * n], a, left);
            mma(c[2 * n + 1], a, right);
        }
    }
}

// Over the four lanes that share a row of a result.
__device__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// A warp's sixteen rows, times `factor[0]` and, the lower eight, `factor[1]`; `first` is the lane's upper row, of `rows`.
template <int D> __device__ void put(bf16 *to, int stride, const float (&c)[D / 8][4], const float (&factor)[2], int first, int rows, int d) {
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + 8 * half;
        if (row >= rows) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            if (8 * n < d)
                *(u32 *)(to + (u64)row * stride + 8 * n + column) = pack(c[n][2 * half] * factor[half], c[n][2 * half + 1] * factor[half]);
    }
}

// From products to scores in powers of two, of the lane's two queries and the keys of a tile.
template <int N> __device__ void to_scores(float (&s)[N / 8][4], const Pair &p, const int (&place)[2], int at) {
    float scale = p.scale * LOG2_E;
    bool plain = at + N <= p.keys && p.window < 0 && !p.bias;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int j = at + 8 * n + threadIdx.x % 4 * 2 + i % 2;
            s[n][i] *= scale;
            if (!plain) s[n][i] = p.sees(place[i / 2], j) ? s[n][i] + LOG2_E * p.offset(place[i / 2], j) : UNSEEN;
        }
}

// Dropout on a tile of the lane's two queries, `first` and the one eight below.
template <int N> __device__ void drop_some(float (&x)[N / 8][4], const Pair &p, int first, int at) {
    if (!p.drop.threshold) return;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[n][i] *= p.kept(first + i / 2 * 8, at + 8 * n + threadIdx.x % 4 * 2 + i % 2);
}

// The maxima of rows with another tile's scores, and what that leaves of earlier sums.
template <int N> __device__ void raise(float (&top)[2], float (&shrink)[2], const float (&s)[N / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = top[half];
#pragma unroll
        for (int n = 0; n < N / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = row_max(most);
        shrink[half] = power_of_2(top[half] - most);
        top[half] = most;
    }
}

template <int D> __device__ void forward_tensor(const Args &a) {
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * ROWS, column = head * a.n[4];
    Pair p = pair_of(a, head, row);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(bf16, tiles);
    View<bf16> k = view<bf16>(a, 1, p.k0, column), v = view<bf16>(a, 2, p.k0, column);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = first + 16 * warp + lane / 4, from, to;
    begin_fetch<D>(tiles, view<bf16>(a, 0, p.q0, column), first, ROWS, p.queries, p.d);
    end_copies();
    __syncthreads();
    u32 q[D / 16][4];
    hold<D>(q, tiles + 16 * warp * WIDTH);
    __syncthreads();
    auto begin_tile = [&](int at, int stage) {
        begin_fetch<D>(tiles + 2 * stage * KEYS * WIDTH, k, at, KEYS, p.keys, p.d);
        begin_fetch<D>(tiles + (2 * stage + 1) * KEYS * WIDTH, v, at, KEYS, p.keys, p.d);
    };
    int place[2] = {p.place(mine), p.place(mine + 8)};
    float top[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f}, sum[D / 8][4] = {};
    p.seen_by(first, ROWS, from, to);
    if (from < to) begin_tile(from, 0);
    for (int at = from, stage = 0; at < to; at += KEYS, stage ^= 1) {
        end_copies();
        __syncthreads();
        if (at + KEYS < to) begin_tile(at + KEYS, stage ^ 1);
        if (first + 16 * warp >= p.queries) continue; // of the whole warp
        const bf16 *ks = tiles + 2 * stage * KEYS * WIDTH, *vs = ks + KEYS * WIDTH;
        float s[KEYS / 8][4], shrink[2];
        against<D, KEYS>(s, q, ks);
        to_scores<KEYS>(s, p, place, at);
        raise<KEYS>(top, shrink, s);
#pragma unroll
        for (int half = 0; half < 2; half++) total[half] *= shrink[half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = power_of_2(s[n][i] - top[i / 2]);
                total[i / 2] += s[n][i];
            }
        drop_some<KEYS>(s, p, mine, at);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n][i] *= shrink[i / 2];
        add_weighted<D, KEYS>(sum, s, vs);
    }
    float inverse[2] = {1.0f / row_sum(total[0]), 1.0f / row_sum(total[1])};
    put<D>((bf16 *)a.p[8] + (u64)p.q0 * a.n[9] + column, a.n[9], sum, inverse, mine, p.queries, p.d);
}

// As `backward_queries` in kernel.cu: all keys pass by twice, first for the logarithms and means, then for dq; but where they
// are one tile, as in batches of short texts, its scores are still there.
template <int D> __device__ void backward_queries_tensor(const Args &a) {
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * ROWS, column = head * a.n[4];
    Pair p = pair_of(a, head, row);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(bf16, tiles);
    View<bf16> k = view<bf16>(a, 1, p.k0, column), v = view<bf16>(a, 2, p.k0, column);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = first + 16 * warp + lane / 4, from, to;
    begin_fetch<D>(tiles, view<bf16>(a, 0, p.q0, column), first, ROWS, p.queries, p.d);
    begin_fetch<D>(tiles + ROWS * WIDTH, view<bf16>(a, 3, p.q0, column), first, ROWS, p.queries, p.d);
    end_copies();
    __syncthreads();
    u32 q[D / 16][4], o[D / 16][4];
    hold<D>(q, tiles + 16 * warp * WIDTH);
    hold<D>(o, tiles + (ROWS + 16 * warp) * WIDTH);
    __syncthreads();
    p.seen_by(first, ROWS, from, to);
    int count = from < to ? (to - from + KEYS - 1) / KEYS : 0, steps = count == 1 ? 1 : 2 * count;
    auto begin_tile = [&](int step) {
        int at = from + step % count * KEYS, stage = step % 2;
        begin_fetch<D>(tiles + 2 * stage * KEYS * WIDTH, k, at, KEYS, p.keys, p.d);
        begin_fetch<D>(tiles + (2 * stage + 1) * KEYS * WIDTH, v, at, KEYS, p.keys, p.d);
    };
    int place[2] = {p.place(mine), p.place(mine + 8)};
    float top[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f}, mean[2] = {0.0f, 0.0f}, sum[D / 8][4] = {};
    if (count > 0) begin_tile(0);
    for (int step = 0; step < steps; step++) {
        end_copies();
        __syncthreads();
        if (step + 1 < steps) begin_tile(step + 1);
        if (first + 16 * warp >= p.queries) continue; // of the whole warp
        int at = from + step % count * KEYS;
        const bf16 *ks = tiles + step % 2 * 2 * KEYS * WIDTH, *vs = ks + KEYS * WIDTH;
        float s[KEYS / 8][4], dp[KEYS / 8][4];
        against<D, KEYS>(s, q, ks);
        against<D, KEYS>(dp, o, vs);
        to_scores<KEYS>(s, p, place, at);
        drop_some<KEYS>(dp, p, mine, at);
        if (step < count) {
            float shrink[2];
            raise<KEYS>(top, shrink, s);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                total[half] *= shrink[half];
                mean[half] *= shrink[half];
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float e = power_of_2(s[n][i] - top[i / 2]);
                    total[i / 2] += e;
                    mean[i / 2] += e * dp[n][i];
                }
            if (step + 1 < count) continue;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                total[half] = row_sum(total[half]);
                mean[half] = row_sum(mean[half]) / total[half];
                top[half] += log2f(total[half]);
            }
            if (count > 1) continue;
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = power_of_2(s[n][i] - top[i / 2]) * (dp[n][i] - mean[i / 2]);
        add_weighted<D, KEYS>(sum, s, ks);
    }
    float scale[2] = {p.scale, p.scale};
    put<D>((bf16 *)a.p[8] + (u64)p.q0 * a.n[9] + column, a.n[9], sum, scale, mine, p.queries, p.d);
    float *logs = (float *)a.p[9], *means = (float *)a.p[10];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = mine + 8 * half;
        if (lane % 4 != 0 || query >= p.queries) continue;
        logs[p.stats + query] = top[half] / LOG2_E;
        means[p.stats + query] = mean[half];
    }
}

// As `backward_keys` in kernel.cu. Scores are transposed: keys are the rows, queries the columns.
template <int D> __device__ void backward_keys_tensor(const Args &a) {
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * ROWS, column = head * a.n[4];
    Pair p = pair_of(a, head, row);
    if (first >= p.keys) return;
    DYNAMIC_SHARED(bf16, tiles);
    View<bf16> q = view<bf16>(a, 0, p.q0, column), o = view<bf16>(a, 3, p.q0, column);
    const float *logs = (const float *)a.p[9] + p.stats, *means = (const float *)a.p[10] + p.stats;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = first + 16 * warp + lane / 4, from, to;
    begin_fetch<D>(tiles, view<bf16>(a, 1, p.k0, column), first, ROWS, p.keys, p.d);
    begin_fetch<D>(tiles + ROWS * WIDTH, view<bf16>(a, 2, p.k0, column), first, ROWS, p.keys, p.d);
    end_copies();
    __syncthreads();
    u32 k[D / 16][4], v[D / 16][4];
    hold<D>(k, tiles + 16 * warp * WIDTH);
    hold<D>(v, tiles + (ROWS + 16 * warp) * WIDTH);
    __syncthreads();
    auto begin_tile = [&](int at, int stage) {
        begin_fetch<D>(tiles + 2 * stage * QUERIES * WIDTH, q, at, QUERIES, p.queries, p.d);
        begin_fetch<D>(tiles + (2 * stage + 1) * QUERIES * WIDTH, o, at, QUERIES, p.queries, p.d);
    };
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, scale = p.scale * LOG2_E;
    p.seeing(first, ROWS, from, to);
    if (from < to) begin_tile(from, 0);
    for (int at = from, stage = 0; at < to; at += QUERIES, stage ^= 1) {
        end_copies();
        __syncthreads();
        if (at + QUERIES < to) begin_tile(at + QUERIES, stage ^ 1);
        if (first + 16 * warp >= p.keys) continue; // of the whole warp
        const bf16 *qs = tiles + 2 * stage * QUERIES * WIDTH, *os = qs + QUERIES * WIDTH;
        float s[QUERIES / 8][4], dp[QUERIES / 8][4];
        against<D, QUERIES>(s, k, qs);
        against<D, QUERIES>(dp, v, os);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                int query = at + 8 * n + lane % 4 * 2 + side, place = p.place(query);
                bool asks = query < p.queries;
                float log = asks ? logs[query] * LOG2_E : 0.0f, mean = asks ? means[query] : 0.0f;
#pragma unroll
                for (int i = side; i < 4; i += 2) {
                    int j = mine + i / 2 * 8;
                    bool sees = asks && p.sees(place, j);
                    float kept = p.kept(query, j);
                    float prob = sees ? power_of_2(s[n][i] * scale + LOG2_E * p.offset(place, j) - log) : 0.0f;
                    dp[n][i] = sees ? prob * (dp[n][i] * kept - mean) : 0.0f;
                    s[n][i] = prob * kept;
                }
            }
        add_weighted<D, QUERIES>(dv, s, os);
        add_weighted<D, QUERIES>(dk, dp, qs);
    }
    float scales[2] = {p.scale, p.scale}, ones[2] = {1.0f, 1.0f};
    put<D>((bf16 *)a.p[8] + (u64)p.k0 * a.n[9] + column, a.n[9], dk, scales, mine, p.keys, p.d);
    put<D>((bf16 *)a.p[11] + (u64)p.k0 * a.n[10] + column, a.n[10], dv, ones, mine, p.keys, p.d);
}

// So many blocks are on a multiprocessor at a time at least, which bounds the registers of a thread.
#define TENSOR_KERNEL(name, body, D, blocks) \
    extern "C" __global__ void __launch_bounds__(128, blocks) name##_tensor_##D##_bf16(Args a) { body##_tensor<D>(a); }
#define TENSOR_KERNELS(D, forward_blocks, backward_blocks)                                  \
    TENSOR_KERNEL(attention, forward, D, forward_blocks)                                    \
    TENSOR_KERNEL(attention_backward_queries, backward_queries, D, backward_blocks)         \
    TENSOR_KERNEL(attention_backward_keys, backward_keys, D, backward_blocks)
TENSOR_KERNELS(32, 4, 3)
TENSOR_KERNELS(64, 3, 3)
TENSOR_KERNELS(128, 3, 2)
