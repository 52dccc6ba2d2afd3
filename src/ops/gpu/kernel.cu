// Sums that the gradients of several ops end with.
#include "common.cuh"

// Slices of the partial sums that a block adds up side by side: one thread a column would wait for memory a thousand times.
#define SLICES 16

// out[j] (+)= Σ_c partial[c][j]; a block has 32 columns, a warp a slice of the partial sums
extern "C" __global__ void sum_partials(Args a) {
    float *out = (float *)a.p[0];
    const float *partial = (const float *)a.p[1];
    __shared__ float sums[SLICES][32];
    int n = a.n[0], chunks = a.n[1], accumulate = a.n[2], slice = threadIdx.x / 32, lane = threadIdx.x % 32;
    int j = blockIdx.x * 32 + lane, each = (chunks + SLICES - 1) / SLICES;
    float sum = 0.0f;
    if (j < n) {
#pragma unroll 8
        for (int c = slice * each; c < min((slice + 1) * each, chunks); c++) sum += partial[(u64)c * n + j];
    }
    sums[slice][lane] = sum;
    __syncthreads();
    if (slice > 0 || j >= n) return;
    for (int i = 1; i < SLICES; i++) sum += sums[i][lane];
    out[j] = accumulate ? out[j] + sum : sum;
}

// partial[c][j] = Σ of column j over the rows of chunk c
template <class T> __device__ void column_sums(const Args &a) {
    const T *x = (const T *)a.p[1];
    int rows = a.n[0], n = a.n[1], stride = a.n[2], per_chunk = a.n[3];
    int j = (blockIdx.y * blockDim.x + threadIdx.x) * CHUNK, first = blockIdx.x * per_chunk;
    if (j >= n) return;
    float sum[CHUNK] = {}, row[CHUNK];
#pragma unroll 4
    for (int r = first; r < min(first + per_chunk, rows); r++) {
        load_chunk(row, x + (u64)r * stride + j, n - j);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) sum[i] += row[i];
    }
    store_chunk((float *)a.p[0] + (u64)blockIdx.x * n + j, sum, n - j);
}
KERNEL_OF_BOTH(column_sums)

// to[i] = from[i], rounded
extern "C" __global__ void round_to_bf16(Args a) {
    u64 n = a.p[2], i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * CHUNK;
    if (i >= n) return;
    int there = n - i < CHUNK ? (int)(n - i) : CHUNK;
    float x[CHUNK];
    load_chunk(x, (const float *)a.p[1] + i, there);
    store_chunk((bf16 *)a.p[0] + i, x, there);
}
