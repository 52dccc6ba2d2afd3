// Sums that the gradients of several ops end with.
#include "common.cuh"

// out[j] (+)= Σ_c partial[c][j]
extern "C" __global__ void sum_partials(Args a) {
    float *out = (float *)a.p[0];
    const float *partial = (const float *)a.p[1];
    int n = a.n[0], chunks = a.n[1], accumulate = a.n[2];
    int j = blockIdx.y * blockDim.x + threadIdx.x;
    if (j >= n) return;
    float sum = 0.0f;
    for (int c = 0; c < chunks; c++) sum += partial[(u64)c * n + j];
    out[j] = accumulate ? out[j] + sum : sum;
}

// partial[c][j] = Σ of column j over the rows of chunk c
template <class T> __device__ void column_sums(const Args &a) {
    float *partial = (float *)a.p[0];
    const T *x = (const T *)a.p[1];
    int rows = a.n[0], n = a.n[1], stride = a.n[2], per_chunk = a.n[3];
    int j = blockIdx.y * blockDim.x + threadIdx.x, first = blockIdx.x * per_chunk;
    if (j >= n) return;
    float sum = 0.0f;
    for (int r = first; r < min(first + per_chunk, rows); r++) sum += load(x[(u64)r * stride + j]);
    partial[(u64)blockIdx.x * n + j] = sum;
}
KERNEL_OF_BOTH(column_sums)

// to[i] = from[i], rounded
extern "C" __global__ void round_to_bf16(Args a) {
    bf16 *to = (bf16 *)a.p[0];
    const float *from = (const float *)a.p[1];
    u64 n = a.p[2], i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) store(to[i], from[i]);
}
