// One block a row that is picked, added or averaged.
#include "../gpu/common.cuh"

template <class T> __device__ void gather_rows(const Args &a) {
    u32 row = ((const u32 *)a.p[2])[blockIdx.x];
    int n = a.n[0], to = a.n[1], from = a.n[2], rows = a.n[3];
    for (int j = threadIdx.x * CHUNK; j < n; j += blockDim.x * CHUNK) {
        float x[CHUNK];
        // An index outside cannot be refused from here: it shows as a loss that is not a number.
        bool inside = row < (u32)rows;
        load_chunk(x, (const T *)a.p[1] + (inside ? (u64)row * from : 0) + j, inside ? n - j : 0);
#pragma unroll
        for (int i = 0; i < CHUNK && !inside; i++) x[i] = NOT_A_NUMBER;
        store_chunk((T *)a.p[0] + (u64)blockIdx.x * to + j, x, n - j);
    }
}
KERNEL_OF_BOTH(gather_rows)

// x[index[i]] += part[i]; the first of equal indices adds for all of them, in their order.
template <class T> __device__ void add_rows(const Args &a) {
    const T *part = (const T *)a.p[1];
    const u32 *index = (const u32 *)a.p[2];
    int n = a.n[0], to = a.n[1], from = a.n[2], picked = a.n[3], rows = a.n[4], first = blockIdx.x;
    u32 row = index[first];
    // How many are equal before it and behind it.
    float equal[2] = {0.0f, 0.0f};
    for (int i = threadIdx.x; i < picked; i += blockDim.x)
        if (i != first && index[i] == row) equal[i > first] += 1.0f;
    block_sums(equal);
    if (equal[0] > 0.0f || row >= (u32)rows) return;
    int end = equal[1] > 0.0f ? picked : first + 1;
    for (int j = threadIdx.x * CHUNK; j < n; j += blockDim.x * CHUNK) {
        T *x = (T *)a.p[0] + (u64)row * to + j;
        float sum[CHUNK], more[CHUNK];
        load_chunk(sum, x, n - j);
        for (int i = first; i < end; i++) {
            if (index[i] != row) continue;
            load_chunk(more, part + (u64)i * from + j, n - j);
#pragma unroll
            for (int c = 0; c < CHUNK; c++) sum[c] += more[c];
        }
        store_chunk(x, sum, n - j);
    }
}
KERNEL_OF_BOTH(add_rows)

// out[row] = the mean of the row's tokens. p: 0 out, 1 x, 2 prefix sums; n: 0 columns
template <class T> __device__ void mean_rows(const Args &a) {
    const u32 *cu = (const u32 *)a.p[2];
    int n = a.n[0], j = (blockIdx.y * blockDim.x + threadIdx.x) * CHUNK;
    u32 first = cu[blockIdx.x], end = cu[blockIdx.x + 1];
    if (j >= n) return;
    float sum[CHUNK] = {}, token[CHUNK];
#pragma unroll 4
    for (u32 t = first; t < end; t++) {
        load_chunk(token, (const T *)a.p[1] + (u64)t * n + j, n - j);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) sum[i] += token[i];
    }
    float inverse = 1.0f / (end - first);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) sum[i] *= inverse;
    store_chunk((T *)a.p[0] + (u64)blockIdx.x * n + j, sum, n - j);
}
KERNEL_OF_BOTH(mean_rows)

// p: 0 dx, 1 dout, 2 prefix sums; n: 0 columns
template <class T> __device__ void mean_rows_backward(const Args &a) {
    const u32 *cu = (const u32 *)a.p[2];
    int n = a.n[0], j = (blockIdx.y * blockDim.x + threadIdx.x) * CHUNK;
    u32 first = cu[blockIdx.x], end = cu[blockIdx.x + 1];
    if (j >= n) return;
    float d[CHUNK], inverse = 1.0f / (end - first);
    load_chunk(d, (const T *)a.p[1] + (u64)blockIdx.x * n + j, n - j);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) d[i] *= inverse;
    for (u32 t = first; t < end; t++) store_chunk((T *)a.p[0] + (u64)t * n + j, d, n - j);
}
KERNEL_OF_BOTH(mean_rows_backward)
