// One thread a chunk of values.
#include "../gelu/kernel.cu"

// What the kernels of neighbours are given. p: 2 prefix sums, 3 the tokens that are read, or none for all; n: 0 rows and 1 columns
// of what is written, 2 kernel, 3 rows of the batch, 4 tokens that are read
struct Neighbours {
    const u32 *cu, *queries;
    int kernel, batch, read;

    // The bounds of a token's row.
    __device__ void row(int token, int &start, int &end) const {
        int low = 0, high = batch;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (cu[middle] <= (u32)token) low = middle;
            else high = middle;
        }
        start = cu[low];
        end = cu[low + 1];
    }
    // The number of a token among those that are read, which ascend; negative if it is not.
    __device__ int number(int token) const {
        if (!queries) return token;
        int low = 0, high = read;
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (queries[middle] <= (u32)token) low = middle;
            else high = middle;
        }
        return read > 0 && queries[low] == (u32)token ? low : -1;
    }
};

__device__ Neighbours neighbours(const Args &a) {
    Neighbours n = {(const u32 *)a.p[2], (const u32 *)a.p[3], a.n[2], a.n[3], a.n[4]};
    return n;
}

// col[q][c·kernel + j] = x[t + j − kernel / 2][c], or 0 outside the row. p: 0 col, 1 x
template <class T> __device__ void unfold(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    Neighbours of = neighbours(a);
    const T *x = (const T *)a.p[1];
    int token = of.queries ? (int)of.queries[at.row] : at.row, h = a.n[1] / of.kernel, start, end;
    of.row(token, start, end);
    float part[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        int c = (at.j + i) / of.kernel, s = token + (at.j + i) % of.kernel - of.kernel / 2;
        part[i] = i < at.there && s >= start && s < end ? load(x[(u64)s * h + c]) : 0.0f;
    }
    store_chunk((T *)a.p[0] + (u64)at.row * a.n[1] + at.j, part, at.there);
}
KERNEL_OF_BOTH(unfold)

// dx[s] += Σ over j of dcol of the token whose j-th neighbour s is. p: 0 dx, 1 dcol
template <class T> __device__ void fold(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    Neighbours of = neighbours(a);
    const T *dcol = (const T *)a.p[1];
    T *dx = (T *)a.p[0] + (u64)at.row * a.n[1] + at.j;
    int start, end;
    of.row(at.row, start, end);
    float sum[CHUNK];
    load_chunk(sum, dx, at.there);
    for (int j = 0; j < of.kernel; j++) {
        int token = at.row + of.kernel / 2 - j;
        if (token < start || token >= end) continue;
        int q = of.number(token);
        if (q < 0) continue;
        const T *from = dcol + ((u64)q * a.n[1] + at.j) * of.kernel + j;
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            if (i < at.there) sum[i] += load(from[i * of.kernel]);
    }
    store_chunk(dx, sum, at.there);
}
KERNEL_OF_BOTH(fold)

// As `activation`, and tanh behind the others.
__device__ void convolution_activation(int act, float x, float &value, float &slope) {
    if (act < 4) return activation(act, x, value, slope);
    value = tanhf(x);
    slope = 1.0f - value * value;
}

// u += bias, y = act(dropout(u)). p: 0 u, 1 y, 2 bias; n: 0 rows, 1 columns, 2 the activation
template <class T> __device__ void bias_dropped_act(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    u64 place = (u64)at.row * a.n[1] + at.j;
    float u[CHUNK], bias[CHUNK], slope;
    load_chunk(u, (const T *)a.p[0] + place, at.there);
    load_chunk(bias, (const float *)a.p[2] + at.j, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) u[i] = as_stored<T>(u[i] + bias[i]);
    store_chunk((T *)a.p[0] + place, u, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (a.drop.threshold) u[i] *= factor(a.drop, (u32)(place + i));
        convolution_activation(a.n[2], u[i], u[i], slope);
    }
    store_chunk((T *)a.p[1] + place, u, at.there);
}
KERNEL_OF_BOTH(bias_dropped_act)

// du = dropout(dy ∘ act'(dropout(u))). p: 0 du, 1 dy, 2 u; n as above
template <class T> __device__ void bias_dropped_act_backward(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    u64 place = (u64)at.row * a.n[1] + at.j;
    float d[CHUNK], u[CHUNK], value, slope;
    load_chunk(d, (const T *)a.p[1] + place, at.there);
    load_chunk(u, (const T *)a.p[2] + place, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        float kept = a.drop.threshold ? factor(a.drop, (u32)(place + i)) : 1.0f;
        convolution_activation(a.n[2], u[i] * kept, value, slope);
        d[i] *= slope * kept;
    }
    store_chunk((T *)a.p[0] + place, d, at.there);
}
KERNEL_OF_BOTH(bias_dropped_act_backward)
