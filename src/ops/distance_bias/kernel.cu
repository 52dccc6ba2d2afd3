// Small tables: one thread a value.
#include "../gpu/common.cuh"

// values[head][c] = table[bucket[c]][head]
extern "C" __global__ void distance_bias(Args a) {
    float *values = (float *)a.p[0];
    const float *table = (const float *)a.p[1];
    const u32 *bucket = (const u32 *)a.p[2];
    int columns = a.n[0], heads = a.n[1], c = blockIdx.y * blockDim.x + threadIdx.x, head = blockIdx.x;
    if (c < columns) values[(u64)head * columns + c] = table[bucket[c] * heads + head];
}

// dtable[b][head] (+)= Σ dvalues[head][c] over the columns of bucket b
extern "C" __global__ void distance_bias_backward(Args a) {
    float *table = (float *)a.p[0];
    const float *values = (const float *)a.p[1];
    const u32 *bucket = (const u32 *)a.p[2];
    int columns = a.n[0], heads = a.n[1], accumulate = a.n[2], head = blockIdx.y;
    u32 b = blockIdx.x;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < columns; c += blockDim.x)
        if (bucket[c] == b) sum += values[(u64)head * columns + c];
    sum = block_sum(sum);
    float *to = &table[b * heads + head];
    if (threadIdx.x == 0) *to = accumulate ? *to + sum : sum;
}
