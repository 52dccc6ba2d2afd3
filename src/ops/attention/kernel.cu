// Streaming softmax (Milakov & Gimelshein 2018; Dao 2022, FlashAttention) on packed rows, products in f32. A block is four
// warps over one (tile, head, row); each warp holds a few queries (or keys), its lanes hold the 32 keys (or queries) of a tile
// for the scores and the columns for the sums. `C` is head_dim / 32, rounded up. Scores never leave the registers.
#include "../gpu/common.cuh"

#define WARPS 4
// Queries, or keys, a warp and a block; fewer where the widest heads would need more shared memory than every device has.
#define EACH (C == 4 ? 3 : 4)
#define BLOCK (WARPS * EACH)
#define TILE 32

// What all three kernels are given: places of the row and head, as `cuda.rs` lays them out.
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
    const u32 *places; // the queries' rows in the batch; or none

    __device__ int place(int i) const { return places ? (int)places[q0 + i] - k0 : i; }
    __device__ float score(float product, int i, int j) const {
        return product * scale + (bias ? bias[reach + j - place(i)] : 0.0f);
    }
    __device__ float kept(int i, int j) const {
        return drop.threshold ? factor(drop, (u32)i * (u32)keys + (u32)j) : 1.0f;
    }
};

// p: 0 q, 1 k, 2 v, 3 dout, 4 cu_queries, 5 cu_keys, 6 bias, 7 places; n: 0-3 strides of those, 4 d, 5 heads, 6 reach
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
    p.places = (const u32 *)a.p[7];
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

template <int C> __device__ float dot(const float *one, const float *own) {
    float sum = 0.0f;
#pragma unroll 16
    for (int x = 0; x < 32 * C; x++) sum += one[x] * own[x];
    return sum;
}

template <int C, class T> __device__ void forward(const Args &a) {
    const int D = 32 * C, W = D + 1;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * BLOCK;
    Pair p = pair_of(a, head, row);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(float, room);
    float *ks = room, *vs = ks + TILE * W, *qs = vs + TILE * W;
    View<T> k = view<T>(a, 1, p.k0, head * p.d), v = view<T>(a, 2, p.k0, head * p.d);
    fetch<C>(qs, D, view<T>(a, 0, p.q0, head * p.d), first, BLOCK, p.queries, p.d);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float top[EACH], total[EACH], sum[EACH][C];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        top[i] = -1e30f;
        total[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < C; c++) sum[i][c] = 0.0f;
    }
    for (int at = 0; at < p.keys; at += TILE) {
        __syncthreads();
        fetch<C>(ks, W, k, at, TILE, p.keys, p.d);
        fetch<C>(vs, W, v, at, TILE, p.keys, p.d);
        __syncthreads();
        int j = at + lane;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int query = first + warp * EACH + i;
            if (query >= p.queries) continue; // of the whole warp
            float s = j < p.keys ? p.score(dot<C>(qs + (warp * EACH + i) * D, ks + lane * W), query, j) : -1e30f;
            float new_top = fmaxf(top[i], warp_max(s)), shrink = expf(top[i] - new_top);
            float e = j < p.keys ? expf(s - new_top) : 0.0f;
            top[i] = new_top;
            total[i] = total[i] * shrink + warp_sum(e);
            e *= p.kept(query, j);
#pragma unroll
            for (int c = 0; c < C; c++) sum[i][c] *= shrink;
            for (int l = 0; l < TILE; l++) {
                float weight = __shfl_sync(0xffffffffu, e, l);
#pragma unroll
                for (int c = 0; c < C; c++) sum[i][c] += weight * vs[l * W + lane + 32 * c];
            }
        }
    }
    T *out = (T *)a.p[8];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int query = first + warp * EACH + i;
#pragma unroll
        for (int c = 0; c < C; c++) {
            int x = lane + 32 * c;
            if (query < p.queries && x < p.d)
                store(out[(u64)(p.q0 + query) * a.n[7] + head * p.d + x], sum[i][c] / total[i]);
        }
    }
}

// dq; and for the other two, of each query and head: the logarithm of Σ exp(score), and Σ p·dp. p: 8 dq, 9 logs, 10 means
template <int C, class T> __device__ void backward_queries(const Args &a) {
    const int D = 32 * C, W = D + 1;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * BLOCK;
    Pair p = pair_of(a, head, row);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(float, room);
    float *ks = room, *vs = ks + TILE * W, *qs = vs + TILE * W, *os = qs + BLOCK * D;
    View<T> k = view<T>(a, 1, p.k0, head * p.d), v = view<T>(a, 2, p.k0, head * p.d);
    fetch<C>(qs, D, view<T>(a, 0, p.q0, head * p.d), first, BLOCK, p.queries, p.d);
    fetch<C>(os, D, view<T>(a, 3, p.q0, head * p.d), first, BLOCK, p.queries, p.d);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float top[EACH], total[EACH], mean[EACH], sum[EACH][C];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        top[i] = -1e30f;
        total[i] = mean[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < C; c++) sum[i][c] = 0.0f;
    }
    for (int pass = 0; pass < 2; pass++) {
        for (int at = 0; at < p.keys; at += TILE) {
            __syncthreads();
            fetch<C>(ks, W, k, at, TILE, p.keys, p.d);
            fetch<C>(vs, W, v, at, TILE, p.keys, p.d);
            __syncthreads();
            int j = at + lane;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int mine = warp * EACH + i, query = first + mine;
                if (query >= p.queries) continue; // of the whole warp
                float s = j < p.keys ? p.score(dot<C>(qs + mine * D, ks + lane * W), query, j) : -1e30f;
                float dp = j < p.keys ? dot<C>(os + mine * D, vs + lane * W) * p.kept(query, j) : 0.0f;
                if (pass == 0) {
                    float new_top = fmaxf(top[i], warp_max(s)), shrink = expf(top[i] - new_top);
                    float e = j < p.keys ? expf(s - new_top) : 0.0f;
                    top[i] = new_top;
                    total[i] = total[i] * shrink + warp_sum(e);
                    mean[i] = mean[i] * shrink + warp_sum(e * dp);
                    continue;
                }
                float ds = j < p.keys ? expf(s - top[i]) * (dp - mean[i]) * p.scale : 0.0f;
                for (int l = 0; l < TILE; l++) {
                    float weight = __shfl_sync(0xffffffffu, ds, l);
#pragma unroll
                    for (int c = 0; c < C; c++) sum[i][c] += weight * ks[l * W + lane + 32 * c];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < EACH && pass == 0; i++) {
            if (first + warp * EACH + i >= p.queries) continue;
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
            if (x < p.d) store(dq[(u64)(p.q0 + query) * a.n[7] + head * p.d + x], sum[i][c]);
        }
        if (lane == 0) {
            logs[(u64)(p.q0 + query) * a.n[5] + head] = top[i];
            means[(u64)(p.q0 + query) * a.n[5] + head] = mean[i];
        }
    }
}

// dk and dv: a warp holds keys, its lanes the queries of a tile. p: 8 dk, 9 logs, 10 means, 11 dv; n: 7 and 8 strides of dk and dv
template <int C, class T> __device__ void backward_keys(const Args &a) {
    const int D = 32 * C, W = D + 1;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * BLOCK;
    Pair p = pair_of(a, head, row);
    if (first >= p.keys) return;
    DYNAMIC_SHARED(float, room);
    float *qs = room, *os = qs + TILE * W, *ks = os + TILE * W, *vs = ks + BLOCK * D;
    View<T> q = view<T>(a, 0, p.q0, head * p.d), o = view<T>(a, 3, p.q0, head * p.d);
    fetch<C>(ks, D, view<T>(a, 1, p.k0, head * p.d), first, BLOCK, p.keys, p.d);
    fetch<C>(vs, D, view<T>(a, 2, p.k0, head * p.d), first, BLOCK, p.keys, p.d);
    const float *logs = (const float *)a.p[9], *means = (const float *)a.p[10];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float dk[EACH][C], dv[EACH][C];
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int c = 0; c < C; c++) dk[i][c] = dv[i][c] = 0.0f;
    for (int at = 0; at < p.queries; at += TILE) {
        __syncthreads();
        fetch<C>(qs, W, q, at, TILE, p.queries, p.d);
        fetch<C>(os, W, o, at, TILE, p.queries, p.d);
        __syncthreads();
        int query = at + lane;
        bool asks = query < p.queries;
        float log = asks ? logs[(u64)(p.q0 + query) * a.n[5] + head] : 0.0f;
        float mean = asks ? means[(u64)(p.q0 + query) * a.n[5] + head] : 0.0f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int mine = warp * EACH + i, j = first + mine;
            if (j >= p.keys) continue; // of the whole warp
            float kept = asks ? p.kept(query, j) : 0.0f;
            float prob = asks ? expf(p.score(dot<C>(ks + mine * D, qs + lane * W), query, j) - log) : 0.0f;
            float ds = prob * (dot<C>(vs + mine * D, os + lane * W) * kept - mean) * p.scale;
            prob *= kept;
            for (int l = 0; l < TILE; l++) {
                float weight = __shfl_sync(0xffffffffu, prob, l), slope = __shfl_sync(0xffffffffu, ds, l);
#pragma unroll
                for (int c = 0; c < C; c++) {
                    dv[i][c] += weight * os[l * W + lane + 32 * c];
                    dk[i][c] += slope * qs[l * W + lane + 32 * c];
                }
            }
        }
    }
    T *to_k = (T *)a.p[8], *to_v = (T *)a.p[11];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int j = first + warp * EACH + i;
#pragma unroll
        for (int c = 0; c < C; c++) {
            int x = lane + 32 * c;
            if (j >= p.keys || x >= p.d) continue;
            store(to_k[(u64)(p.k0 + j) * a.n[7] + head * p.d + x], dk[i][c]);
            store(to_v[(u64)(p.k0 + j) * a.n[8] + head * p.d + x], dv[i][c]);
        }
    }
}

// dbias[head][distance + reach] += Σ over rows and queries of the score's gradient; one block a (distance, head), so that no two
// add to one place. p: 8 dbias; n: 7 rows
template <class T> __device__ void attention_bias_grad(const Args &a) {
    int head = blockIdx.y, distance = (int)blockIdx.x - a.n[6];
    const float *logs = (const float *)a.p[9], *means = (const float *)a.p[10];
    float sum = 0.0f;
    for (int row = 0; row < a.n[7]; row++) {
        Pair p = pair_of(a, head, row);
        View<T> q = view<T>(a, 0, p.q0, head * p.d), o = view<T>(a, 3, p.q0, head * p.d);
        View<T> k = view<T>(a, 1, p.k0, head * p.d), v = view<T>(a, 2, p.k0, head * p.d);
        for (int i = threadIdx.x; i < p.queries; i += blockDim.x) {
            int j = p.place(i) + distance;
            if (j < 0 || j >= p.keys) continue;
            float s = 0.0f, dp = 0.0f;
            for (int x = 0; x < p.d; x++) {
                s += load(q.at[(u64)i * q.stride + x]) * load(k.at[(u64)j * k.stride + x]);
                dp += load(o.at[(u64)i * o.stride + x]) * load(v.at[(u64)j * v.stride + x]);
            }
            u64 at = (u64)(p.q0 + i) * a.n[5] + head;
            sum += expf(p.score(s, i, j) - logs[at]) * (dp * p.kept(i, j) - means[at]);
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
