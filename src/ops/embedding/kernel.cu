// Forward: one block a token. Backward: tokens are ordered by their table row, and each row's run is summed by one block, so
// that nothing is added atomically however often a word occurs.
#include "../layer_norm/kernel.cu"

// Sizes as the launches give them.
struct Tables {
    int h, vocab, positions, types;
};

__device__ Tables tables_of(const Args &a) {
    Tables t = {a.n[0], a.n[1], a.n[2], a.n[3]};
    return t;
}

template <class T> __device__ void embed(const Args &a) {
    Tables t = tables_of(a);
    u64 token = blockIdx.x;
    int h = t.h;
    T *s = (T *)a.p[0] + token * h, *y = (T *)a.p[1] + token * h;
    const float *block = (const float *)a.p[2];
    u32 id = ((const u32 *)a.p[3])[token], position = ((const u32 *)a.p[4])[token], type = ((const u32 *)a.p[5])[token];
    // An index outside its table cannot be refused from here: it shows as a loss that is not a number.
    bool inside = id < t.vocab && position < t.positions && (t.types == 0 || type < t.types);
    const float *word = block + (inside ? (u64)id * h : 0);
    const float *place = block + (inside ? (u64)(t.vocab + position) * h : 0);
    const float *kind = block + (inside && t.types > 0 ? (u64)(t.vocab + t.positions + type) * h : 0);
    const float *gamma = block + (u64)(t.vocab + t.positions + t.types) * h, *beta = gamma + h;
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float v = t.types > 0 ? word[j] + kind[j] + place[j] : word[j] + place[j];
        store(s[j], inside ? v : NOT_A_NUMBER);
    }
    float mean, rstd;
    row_stats(s, h, a.f[0], mean, rstd);
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float v = (load(s[j]) - mean) * rstd * gamma[j] + beta[j];
        store(y[j], a.drop.threshold ? v * factor(a.drop, (u32)(token * h + j)) : v);
    }
}
KERNEL_OF_BOTH(embed)

// Through dropout and norm: ds, and dgamma and dbeta in partial sums.
template <class T> __device__ void embed_norm_backward(const Args &a) {
    T *ds = (T *)a.p[0];
    float *partial = (float *)a.p[1];
    const T *dy = (const T *)a.p[2], *s = (const T *)a.p[3];
    const float *gamma = (const float *)a.p[4];
    int rows = a.n[0], h = a.n[1], per_chunk = a.n[2];
    DYNAMIC_SHARED(float, sums);
    float *dgamma = sums, *dbeta = dgamma + h;
    for (int j = threadIdx.x; j < h; j += blockDim.x) dgamma[j] = dbeta[j] = 0.0f;
    int first = blockIdx.x * per_chunk;
    for (int r = first; r < min(first + per_chunk, rows); r++) {
        u64 at = (u64)r * h;
        auto masked = [&](int j) {
            float v = load(dy[at + j]);
            return a.drop.threshold ? v * factor(a.drop, (u32)(at + j)) : v;
        };
        norm_row_backward(ds + at, dgamma, dbeta, masked, s + at, gamma, h, a.f[0]);
    }
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float *to = partial + (u64)blockIdx.x * 2 * h + j;
        to[0] = dgamma[j];
        to[h] = dbeta[j];
    }
}
KERNEL_OF_BOTH(embed_norm_backward)

// order[rank of token t] = t, where tokens rank by key, then by place: counting, all keys against all.
extern "C" __global__ void order_by_key(Args a) {
    u32 *order = (u32 *)a.p[0];
    const u32 *keys = (const u32 *)a.p[1];
    int n = a.n[0], t = blockIdx.x * blockDim.x + threadIdx.x;
    __shared__ u32 tile[256];
    u32 mine = t < n ? keys[t] : 0, rank = 0;
    for (int first = 0; first < n; first += 256) {
        __syncthreads();
        if (first + (int)threadIdx.x < n) tile[threadIdx.x] = keys[first + threadIdx.x];
        __syncthreads();
        int here = min(256, n - first);
        for (int i = 0; i < here; i++) rank += tile[i] < mine || (tile[i] == mine && first + i < t);
    }
    if (t < n) order[rank] = t;
}

// table[key] += Σ ds over the tokens of that key, in their order; one block a place in the order, and the first of a run works.
template <class T> __device__ void add_runs(const Args &a) {
    float *table = (float *)a.p[0];
    const T *ds = (const T *)a.p[1];
    const u32 *keys = (const u32 *)a.p[2], *order = (const u32 *)a.p[3];
    int n = a.n[0], h = a.n[1], limit = a.n[2], first = blockIdx.x;
    u32 key = keys[order[first]];
    if (key >= (u32)limit || (first > 0 && keys[order[first - 1]] == key)) return;
    int end = first + 1;
    while (end < n && keys[order[end]] == key) end++;
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float sum = table[(u64)key * h + j];
#pragma unroll 8
        for (int i = first; i < end; i++) sum += load(ds[(u64)order[i] * h + j]);
        table[(u64)key * h + j] = sum;
    }
}
KERNEL_OF_BOTH(add_runs)

// partial[c][type][j]: of the few token types, each of which has many tokens.
template <class T> __device__ void type_sums(const Args &a) {
    float *partial = (float *)a.p[0];
    const T *ds = (const T *)a.p[1];
    const u32 *types = (const u32 *)a.p[2];
    int n = a.n[0], h = a.n[1], kinds = a.n[2], per_chunk = a.n[3];
    int j = blockIdx.y * blockDim.x + threadIdx.x, first = blockIdx.x * per_chunk;
    if (j >= h) return;
    for (int kind = 0; kind < kinds; kind++) {
        float sum = 0.0f;
        for (int t = first; t < min(first + per_chunk, n); t++)
            if (types[t] == (u32)kind) sum += load(ds[(u64)t * h + j]);
        partial[((u64)blockIdx.x * kinds + kind) * h + j] = sum;
    }
}
KERNEL_OF_BOTH(type_sums)
