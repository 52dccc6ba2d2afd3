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

// The tables' rows of a token, or none for an index outside its table, which cannot be refused from here: it shows as a loss
// that is not a number. Without tables of positions or types nothing of theirs is added.
template <class T> __device__ void embed(const Args &a) {
    Tables t = tables_of(a);
    int h = t.h;
    Piece at = piece_of_row(h);
    const float *block = (const float *)a.p[2] + at.j;
    u32 id = ((const u32 *)a.p[3])[at.row], position = ((const u32 *)a.p[4])[at.row], type = ((const u32 *)a.p[5])[at.row];
    bool inside = id < (u32)t.vocab && (t.positions == 0 || position < (u32)t.positions) && (t.types == 0 || type < (u32)t.types);
    const float *norm = block + (u64)(t.vocab + t.positions + t.types) * h;
    float s[CHUNK], part[CHUNK], gamma[CHUNK], beta[CHUNK], mean, rstd;
    load_chunk(s, block + (inside ? (u64)id * h : 0), at.there);
    if (t.types > 0) {
        load_chunk(part, block + (inside ? (u64)(t.vocab + t.positions + type) * h : 0), at.there);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) s[i] += part[i];
    }
    if (t.positions > 0) {
        load_chunk(part, block + (inside ? (u64)(t.vocab + position) * h : 0), at.there);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) s[i] += part[i];
    }
#pragma unroll
    for (int i = 0; i < CHUNK; i++) s[i] = inside ? as_stored<T>(s[i]) : NOT_A_NUMBER;
    load_chunk(gamma, norm, at.there);
    load_chunk(beta, norm + h, at.there);
    u64 place = (u64)at.row * h + at.j;
    store_chunk((T *)a.p[0] + place, s, at.there);
    row_stats(s, at.there, h, a.f[0], mean, rstd);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        s[i] = (s[i] - mean) * rstd * gamma[i] + beta[i];
        if (a.drop.threshold) s[i] *= factor(a.drop, (u32)(place + i));
    }
    store_chunk((T *)a.p[1] + place, s, at.there);
}
KERNEL_OF_ROWS(embed)

// Through dropout and norm: ds, and dgamma and dbeta in partial sums. p: 0 ds, 1 partial, 2 dy, 3 s, 4 gamma; n: 0 rows, 1 h,
// 2 rows a chunk
template <class T> __device__ void embed_norm_backward(const Args &a) {
    int rows = a.n[0], h = a.n[1], per_chunk = a.n[2], first = blockIdx.x * per_chunk;
    Piece at = piece_of_row(h);
    float gamma[CHUNK], dgamma[CHUNK] = {}, dbeta[CHUNK] = {};
    load_chunk(gamma, (const float *)a.p[4] + at.j, at.there);
    for (int r = first; r < min(first + per_chunk, rows); r++) {
        u64 place = (u64)r * h + at.j;
        float s[CHUNK], dy[CHUNK];
        load_chunk(s, (const T *)a.p[3] + place, at.there);
        load_chunk(dy, (const T *)a.p[2] + place, at.there);
#pragma unroll
        for (int i = 0; i < CHUNK && a.drop.threshold; i++) dy[i] *= factor(a.drop, (u32)(place + i));
        norm_backward(s, dgamma, dbeta, dy, gamma, at.there, h, a.f[0]);
        store_chunk((T *)a.p[0] + place, s, at.there);
    }
    float *to = (float *)a.p[1] + (u64)blockIdx.x * 2 * h + at.j;
    store_chunk(to, dgamma, at.there);
    store_chunk(to + h, dbeta, at.there);
}
KERNEL_OF_ROWS(embed_norm_backward)

// Tokens ranked by key, then by place: order[rank] = token, sorted[rank] = its key. Counting, all keys against all: one launch,
// and less than a product of the batch costs.
extern "C" __global__ void order_by_key(Args a) {
    u32 *order = (u32 *)a.p[0], *sorted = (u32 *)a.p[1];
    const u32 *keys = (const u32 *)a.p[2];
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
    if (t >= n) return;
    order[rank] = t;
    sorted[rank] = mine;
}

// table[key] += Σ ds over the tokens of that key, in their order; one block a place in the order, and the first of a run works.
// p: 0 table, 1 ds, 2 order, 3 sorted; n: 0 tokens, 1 h, 2 rows of the table
template <class T> __device__ void add_runs(const Args &a) {
    float *table = (float *)a.p[0];
    const T *ds = (const T *)a.p[1];
    const u32 *order = (const u32 *)a.p[2], *sorted = (const u32 *)a.p[3];
    int n = a.n[0], h = a.n[1], limit = a.n[2], first = blockIdx.x;
    u32 key = sorted[first];
    if (key >= (u32)limit || (first > 0 && sorted[first - 1] == key)) return;
    // Where the run ends: a word may be a tenth of a batch, too many to look at one after the other.
    int end = n;
    for (int low = first; end - low > 1;) {
        int middle = (low + end) / 2;
        if (sorted[middle] == key) low = middle;
        else end = middle;
    }
    for (int j = threadIdx.x * CHUNK; j < h; j += blockDim.x * CHUNK) {
        float sum[CHUNK], row[CHUNK];
        load_chunk(sum, table + (u64)key * h + j, h - j);
#pragma unroll 4
        for (int i = first; i < end; i++) {
            load_chunk(row, ds + (u64)order[i] * h + j, h - j);
#pragma unroll
            for (int c = 0; c < CHUNK; c++) sum[c] += row[c];
        }
        store_chunk(table + (u64)key * h + j, sum, h - j);
    }
}
KERNEL_OF_BOTH(add_runs)

// partial[c][type][j]: of the few token types, each of which has many tokens.
template <class T> __device__ void type_sums(const Args &a) {
    const T *ds = (const T *)a.p[1];
    const u32 *types = (const u32 *)a.p[2];
    int n = a.n[0], h = a.n[1], kinds = a.n[2], per_chunk = a.n[3];
    int j = (blockIdx.y * blockDim.x + threadIdx.x) * CHUNK, first = blockIdx.x * per_chunk;
    if (j >= h) return;
    for (int kind = 0; kind < kinds; kind++) {
        float sum[CHUNK] = {}, row[CHUNK];
        for (int t = first; t < min(first + per_chunk, n); t++) {
            if (types[t] != (u32)kind) continue;
            load_chunk(row, ds + (u64)t * h + j, h - j);
#pragma unroll
            for (int c = 0; c < CHUNK; c++) sum[c] += row[c];
        }
        store_chunk((float *)a.p[0] + ((u64)blockIdx.x * kinds + kind) * h + j, sum, h - j);
    }
}
KERNEL_OF_BOTH(type_sums)
