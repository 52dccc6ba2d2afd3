// One thread a chunk of all values.
#include "../gpu/common.cuh"

// y (+)= dropout(x). p: 0 y, 1 x, 2 values, 3 number of the first; n: 0 whether to add
template <class Y, class X> __device__ void masked(const Args &a) {
    u64 n = a.p[2], first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * CHUNK;
    if (first >= n) return;
    int there = n - first < CHUNK ? (int)(n - first) : CHUNK;
    float x[CHUNK], y[CHUNK];
    load_chunk(x, (const X *)a.p[1] + first, there);
    if (a.n[0]) load_chunk(y, (const Y *)a.p[0] + first, there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (a.drop.threshold) x[i] *= factor(a.drop, (u32)a.p[3] + (u32)first + i);
        if (a.n[0]) x[i] += y[i];
    }
    store_chunk((Y *)a.p[0] + first, x, there);
}
extern "C" __global__ void dropout_f32_f32(Args a) { masked<float, float>(a); }
extern "C" __global__ void dropout_f32_bf16(Args a) { masked<float, bf16>(a); }
extern "C" __global__ void dropout_bf16_f32(Args a) { masked<bf16, float>(a); }
extern "C" __global__ void dropout_bf16_bf16(Args a) { masked<bf16, bf16>(a); }
