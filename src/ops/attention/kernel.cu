// Streaming softmax (Milakov & Gimelshein 2018; Dao 2022, FlashAttention) on packed rows, products in f32: the body for f32, for
// heads that tensor.cu does not take, and what that is tested against. A block is four warps over one (tile, head, row); each
// warp holds a few queries (or keys), its lanes hold the 32 keys (or queries) of a tile for the scores and the columns for the
// sums. `C` is head_dim / 32, rounded up. Scores never leave the registers.
#pragma once
#include "../gpu/common.cuh"

#define WARPS 4
// Queries, or keys, a warp and a block; fewer where wide heads would need more shared memory than every device has.
#define EACH (C <= 2 ? 4 : C == 4 ? 3 : 1)
#define BLOCK (WARPS * EACH)
#define TILE 32
// The widest heads have room for one tile: keys and values take turns.
#define ONE_TILE (C == 8)
// Where a query stands whose place is outside its row: it sees nothing, and a bias makes its scores NaN.
#define NOWHERE (-(1 << 30))

// What all kernels are given: places of the row and head, as `cuda.rs` lays them out.
template <class T> struct View {
    const T *at;
    int stride;
};

struct Pair {
    int q0, k0, queries, keys, d;
    float scale;
    Drop drop;
    const float *bias; // of this head, that of distance 0 in the middle; or none
    int reach;
    int window;        // keys further than this are not seen; negative: none is
    const u32 *places; // the queries' rows in the batch; or none
    u64 stats;         // where this head's logarithms and means of the row's first query are

    // Lanes beyond the row's end, whose results nobody stores, read what its last query does.
    __device__ int place(int i) const {
        i = min(i, queries - 1);
        if (!places) return i;
        int at = (int)(places[q0 + i] - (u32)k0);
        return at >= 0 && at < keys ? at : NOWHERE;
    }
    // Whether a query at this place sees key j.
    __device__ bool sees(int place, int j) const {
        return j < keys && (window < 0 || (j - place <= window && place - j <= window));
    }
    // What is added to a score; of a key that is seen.
    __device__ float offset(int place, int j) const {
        if (!bias) return 0.0f;
        return place == NOWHERE ? NOT_A_NUMBER : bias[reach + j - place];
    }
    __device__ float kept(int i, int j) const {
        return drop.threshold ? factor(drop, (u32)i * (u32)keys + (u32)j) : 1.0f;
    }
    // The keys that any of some queries sees.
    __device__ void seen_by(int first, int count, int &from, int &to) const {
        from = 0;
        to = keys;
        if (window < 0) return;
        int low = place(first), high = low;
        for (int i = first + 1; i < min(first + count, queries) && places; i++) {
            low = min(low, place(i));
            high = max(high, place(i));
        }
        if (!places) high = min(first + count, queries) - 1;
        from = max(0, low - window);
        to = min(keys, high + window + 1);
    }
    // The queries that may see any of some keys.
    __device__ void seeing(int first, int count, int &from, int &to) const {
        bool all = window < 0 || places;
        from = all ? 0 : max(0, first - window);
        to = all ? queries : min(queries, first + count + window);
    }
};

// p: 0 q, 1 k, 2 v, 3 dout, 4 cu_queries, 5 cu_keys, 6 bias, 7 places
// n: 0-3 strides of the first four, 4 d, 5 heads, 6 reach, 7 one more than the window or 0, 8 queries of the batch
__device__ Pair pair_of(const Args &a, int head, int row) {
    const u32 *cu_q = (const u32 *)a.p[4], *cu_k = (const u32 *)a.p[5];
    Pair p;
    p.q0 = cu_q[row];
    p.k0 = cu_k[row];
    p.queries = cu_q[row + 1] - p.q0;
    p.keys = cu_k[row + 1] - p.k0;
    p.d = a.n[4];
    p.scale = 1.0f / sqrtf((float)p.d);
    p.drop = part_of(a.drop, (u64)row * a.n[5] + head);
    p.reach = a.n[6];
    p.bias = a.p[6] ? (const float *)a.p[6] + (u64)head * (2 * p.reach + 1) : 0;
    p.window = a.n[7] - 1;
    p.places = (const u32 *)a.p[7];
    p.stats = (u64)head * a.n[8] + p.q0;
    return p;
}

template <class T> __device__ View<T> view(const Args &a, int which, int first, int column) {
    View<T> v = {(const T *)a.p[which] + (u64)first * a.n[which] + column, a.n[which]};
    return v;
}

// Rows `first` to `first + count` of `rows` to shared memory, `width` apart, zeros where there are none.
template <int C, class T> __device__ void fetch(float *to, int width, View<T> from, int first, int count, int rows, int d) {
    for (int i = threadIdx.x; i < count * 32 * C; i += blockDim.x) {
        int r = i / (32 * C), x = i % (32 * C);
        to[r * width + x] = first + r < rows && x < d ? load(from.at[(u64)(first + r) * from.stride + x]) : 0.0f;
    }
}

struct alignas(16) Four {
    float x[4];
};

// Products of the warp's rows, which all lanes read, with the lane's own: four columns an access, each used for all rows.
template <int C> __device__ void dots(float (&sums)[EACH], const float *rows, const float *own) {
#pragma unroll
    for (int i = 0; i < EACH; i++) sums[i] = 0.0f;
#pragma unroll 4
    for (int x = 0; x < 32 * C; x += 4) {
        Four mine = *(const Four *)(own + x);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            Four row = *(const Four *)(rows + i * 32 * C + x);
#pragma unroll
            for (int c = 0; c < 4; c++) sums[i] += row.x[c] * mine.x[c];
        }
    }
}

// sums[i] += Σ over the lanes l of weights[i]·rows[l]
template <int C> __device__ void weigh(float (&sums)[EACH][C], const float (&weights)[EACH], const float *rows, int lane) {
    for (int l = 0; l < TILE; l++) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            float weight = __shfl_sync(0xffffffffu, weights[i], l);
#pragma unroll
            for (int c = 0; c < C; c++) sums[i][c] += weight * rows[l * (32 * C + 4) + lane + 32 * c];
        }
    }
}

template <int C, class T> __device__ void forward(const Args &a) {
    const int D = 32 * C, W = D + 4;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * BLOCK;
    Pair p = pair_of(a, head, row);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(float, room);
    float *ks = room, *vs = ONE_TILE ? ks : ks + TILE * W, *qs = vs + TILE * W;
    View<T> k = view<T>(a, 1, p.k0, head * p.d), v = view<T>(a, 2, p.k0, head * p.d);
    fetch<C>(qs, D, view<T>(a, 0, p.q0, head * p.d), first, BLOCK, p.queries, p.d);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float top[EACH], total[EACH], sum[EACH][C];
    int place[EACH], from, to;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        top[i] = -1e30f;
        total[i] = 0.0f;
        place[i] = p.place(first + warp * EACH + i);
#pragma unroll
        for (int c = 0; c < C; c++) sum[i][c] = 0.0f;
    }
    p.seen_by(first, BLOCK, from, to);
    for (int at = from; at < to; at += TILE) {
        __syncthreads();
        fetch<C>(ks, W, k, at, TILE, p.keys, p.d);
        if (!ONE_TILE) fetch<C>(vs, W, v, at, TILE, p.keys, p.d);
        __syncthreads();
        int j = at + lane;
        float e[EACH];
        dots<C>(e, qs + warp * EACH * D, ks + lane * W);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            bool sees = p.sees(place[i], j);
            float s = sees ? e[i] * p.scale + p.offset(place[i], j) : -1e30f;
            float new_top = fmaxf(top[i], warp_max(s)), shrink = expf(top[i] - new_top);
            e[i] = sees ? expf(s - new_top) : 0.0f;
            top[i] = new_top;
            total[i] = total[i] * shrink + warp_sum(e[i]);
            e[i] *= p.kept(first + warp * EACH + i, j);
#pragma unroll
            for (int c = 0; c < C; c++) sum[i][c] *= shrink;
        }
        if (ONE_TILE) {
            __syncthreads();
            fetch<C>(vs, W, v, at, TILE, p.keys, p.d);
            __syncthreads();
        }
        weigh<C>(sum, e, vs, lane);
    }
    T *out = (T *)a.p[8];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int query = first + warp * EACH + i;
#pragma unroll
        for (int c = 0; c < C; c++) {
            int x = lane + 32 * c;
            if (query < p.queries && x < p.d)
                store(out[(u64)(p.q0 + query) * a.n[9] + head * p.d + x], sum[i][c] / total[i]);
        }
    }
}

// dq; and for the other two, of each head and query: the logarithm of Σ exp(score), and Σ p·dp. p: 8 dq, 9 logs, 10 means
template <int C, class T> __device__ void backward_queries(const Args &a) {
    const int D = 32 * C, W = D + 4;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * BLOCK;
    Pair p = pair_of(a, head, row);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(float, room);
    float *ks = room, *vs = ONE_TILE ? ks : ks + TILE * W, *qs = vs + TILE * W, *os = qs + BLOCK * D;
    View<T> k = view<T>(a, 1, p.k0, head * p.d), v = view<T>(a, 2, p.k0, head * p.d);
    fetch<C>(qs, D, view<T>(a, 0, p.q0, head * p.d), first, BLOCK, p.queries, p.d);
    fetch<C>(os, D, view<T>(a, 3, p.q0, head * p.d), first, BLOCK, p.queries, p.d);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float top[EACH], total[EACH], mean[EACH], sum[EACH][C];
    int place[EACH], from, to;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        top[i] = -1e30f;
        total[i] = mean[i] = 0.0f;
        place[i] = p.place(first + warp * EACH + i);
#pragma unroll
        for (int c = 0; c < C; c++) sum[i][c] = 0.0f;
    }
    p.seen_by(first, BLOCK, from, to);
    for (int pass = 0; pass < 2; pass++) {
        for (int at = from; at < to; at += TILE) {
            int j = at + lane;
            float s[EACH], dp[EACH];
            __syncthreads();
            fetch<C>(ks, W, k, at, TILE, p.keys, p.d);
            if (!ONE_TILE) fetch<C>(vs, W, v, at, TILE, p.keys, p.d);
            __syncthreads();
            dots<C>(s, qs + warp * EACH * D, ks + lane * W);
            if (ONE_TILE) {
                __syncthreads();
                fetch<C>(vs, W, v, at, TILE, p.keys, p.d);
                __syncthreads();
            }
            dots<C>(dp, os + warp * EACH * D, vs + lane * W);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                bool sees = p.sees(place[i], j);
                s[i] = sees ? s[i] * p.scale + p.offset(place[i], j) : -1e30f;
                dp[i] *= p.kept(first + warp * EACH + i, j);
                if (pass == 0) {
                    float new_top = fmaxf(top[i], warp_max(s[i])), shrink = expf(top[i] - new_top);
                    float e = sees ? expf(s[i] - new_top) : 0.0f;
                    top[i] = new_top;
                    total[i] = total[i] * shrink + warp_sum(e);
                    mean[i] = mean[i] * shrink + warp_sum(e * dp[i]);
                } else {
                    dp[i] = sees ? expf(s[i] - top[i]) * (dp[i] - mean[i]) * p.scale : 0.0f;
                }
            }
            if (pass == 0) continue;
            if (ONE_TILE) {
                __syncthreads();
                fetch<C>(ks, W, k, at, TILE, p.keys, p.d);
                __syncthreads();
            }
            weigh<C>(sum, dp, ks, lane);
        }
#pragma unroll
        for (int i = 0; i < EACH && pass == 0; i++) {
            top[i] += logf(total[i]);
            mean[i] /= total[i];
        }
    }
    T *dq = (T *)a.p[8];
    float *logs = (float *)a.p[9], *means = (float *)a.p[10];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int query = first + warp * EACH + i;
        if (query >= p.queries) continue;
#pragma unroll
        for (int c = 0; c < C; c++) {
            int x = lane + 32 * c;
            if (x < p.d) store(dq[(u64)(p.q0 + query) * a.n[9] + head * p.d + x], sum[i][c]);
        }
        if (lane == 0) {
            logs[p.stats + query] = top[i];
            means[p.stats + query] = mean[i];
        }
    }
}

// dk and dv: a warp holds keys, its lanes the queries of a tile. p: 8 dk, 9 logs, 10 means, 11 dv; n: 9 and 10 strides of dk and dv
template <int C, class T> __device__ void backward_keys(const Args &a) {
    const int D = 32 * C, W = D + 4;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * BLOCK;
    Pair p = pair_of(a, head, row);
    if (first >= p.keys) return;
    DYNAMIC_SHARED(float, room);
    float *qs = room, *os = ONE_TILE ? qs : qs + TILE * W, *ks = os + TILE * W, *vs = ks + BLOCK * D;
    View<T> q = view<T>(a, 0, p.q0, head * p.d), o = view<T>(a, 3, p.q0, head * p.d);
    fetch<C>(ks, D, view<T>(a, 1, p.k0, head * p.d), first, BLOCK, p.keys, p.d);
    fetch<C>(vs, D, view<T>(a, 2, p.k0, head * p.d), first, BLOCK, p.keys, p.d);
    const float *logs = (const float *)a.p[9], *means = (const float *)a.p[10];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, from, to;
    float dk[EACH][C], dv[EACH][C];
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int c = 0; c < C; c++) dk[i][c] = dv[i][c] = 0.0f;
    p.seeing(first, BLOCK, from, to);
    for (int at = from; at < to; at += TILE) {
        float prob[EACH], ds[EACH];
        __syncthreads();
        fetch<C>(qs, W, q, at, TILE, p.queries, p.d);
        if (!ONE_TILE) fetch<C>(os, W, o, at, TILE, p.queries, p.d);
        __syncthreads();
        dots<C>(prob, ks + warp * EACH * D, qs + lane * W);
        if (ONE_TILE) {
            __syncthreads();
            fetch<C>(os, W, o, at, TILE, p.queries, p.d);
            __syncthreads();
        }
        dots<C>(ds, vs + warp * EACH * D, os + lane * W);
        int query = at + lane;
        bool asks = query < p.queries;
        int place = p.place(query);
        float log = asks ? logs[p.stats + query] : 0.0f, mean = asks ? means[p.stats + query] : 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int j = first + warp * EACH + i;
            bool sees = asks && p.sees(place, j);
            float kept = p.kept(query, j);
            prob[i] = sees ? expf(prob[i] * p.scale + p.offset(place, j) - log) : 0.0f;
            ds[i] = sees ? prob[i] * (ds[i] * kept - mean) * p.scale : 0.0f;
            prob[i] *= kept;
        }
        weigh<C>(dv, prob, os, lane);
        if (ONE_TILE) {
            __syncthreads();
            fetch<C>(qs, W, q, at, TILE, p.queries, p.d);
            __syncthreads();
        }
        weigh<C>(dk, ds, qs, lane);
    }
    T *to_k = (T *)a.p[8], *to_v = (T *)a.p[11];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int j = first + warp * EACH + i;
#pragma unroll
        for (int c = 0; c < C; c++) {
            int x = lane + 32 * c;
            if (j >= p.keys || x >= p.d) continue;
            store(to_k[(u64)(p.k0 + j) * a.n[9] + head * p.d + x], dk[i][c]);
            store(to_v[(u64)(p.k0 + j) * a.n[10] + head * p.d + x], dv[i][c]);
        }
    }
}

// dbias[head][distance + reach] += Σ over rows and queries of the score's gradient; one block a (distance, head), so that no two
// add to one place. p: 8 dbias, 9 logs, 10 means; n: 9 rows
template <class T> __device__ void attention_bias_grad(const Args &a) {
    int head = blockIdx.y, distance = (int)blockIdx.x - a.n[6];
    const float *logs = (const float *)a.p[9], *means = (const float *)a.p[10];
    float sum = 0.0f;
    for (int row = 0; row < a.n[9]; row++) {
        Pair p = pair_of(a, head, row);
        View<T> q = view<T>(a, 0, p.q0, head * p.d), o = view<T>(a, 3, p.q0, head * p.d);
        View<T> k = view<T>(a, 1, p.k0, head * p.d), v = view<T>(a, 2, p.k0, head * p.d);
        for (int i = threadIdx.x; i < p.queries; i += blockDim.x) {
            int place = p.place(i), j = place + distance;
            if (j < 0 || !p.sees(place, j)) continue;
            float s = 0.0f, dp = 0.0f;
            for (int x = 0; x < p.d; x += CHUNK) {
                float qs[CHUNK], ks[CHUNK], os[CHUNK], vs[CHUNK];
                load_chunk(qs, q.at + (u64)i * q.stride + x, p.d - x);
                load_chunk(ks, k.at + (u64)j * k.stride + x, p.d - x);
                load_chunk(os, o.at + (u64)i * o.stride + x, p.d - x);
                load_chunk(vs, v.at + (u64)j * v.stride + x, p.d - x);
#pragma unroll
                for (int c = 0; c < CHUNK; c++) {
                    s += qs[c] * ks[c];
                    dp += os[c] * vs[c];
                }
            }
            s = s * p.scale + p.offset(place, j) - logs[p.stats + i];
            sum += expf(s) * (dp * p.kept(i, j) - means[p.stats + i]);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) ((float *)a.p[8])[(u64)head * (2 * a.n[6] + 1) + blockIdx.x] += sum;
}
KERNEL_OF_BOTH(attention_bias_grad)

#define ATTENTION_KERNELS(C)                                                                                             \
    extern "C" __global__ void attention_##C##_f32(Args a) { forward<C, float>(a); }                                     \
    extern "C" __global__ void attention_##C##_bf16(Args a) { forward<C, bf16>(a); }                                     \
    extern "C" __global__ void attention_backward_queries_##C##_f32(Args a) { backward_queries<C, float>(a); }           \
    extern "C" __global__ void attention_backward_queries_##C##_bf16(Args a) { backward_queries<C, bf16>(a); }           \
    extern "C" __global__ void attention_backward_keys_##C##_f32(Args a) { backward_keys<C, float>(a); }                 \
    extern "C" __global__ void attention_backward_keys_##C##_bf16(Args a) { backward_keys<C, bf16>(a); }
ATTENTION_KERNELS(1)
ATTENTION_KERNELS(2)
ATTENTION_KERNELS(4)
ATTENTION_KERNELS(8)
