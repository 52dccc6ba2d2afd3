// What the kernels share: their one argument, the two number formats, dropout, and sums over a warp or a block.
//
// Every kernel takes one `Args` by value; its first lines name what it finds there. The order is that of the launch beside it in
// `cuda.rs`. Sums run in a fixed order and nothing is added atomically: the same input gives the same bits.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

struct Drop {
    u32 k0, k1, threshold;
    float scale;
};

struct Args {
    u64 p[12];
    int n[12];
    float f[4];
    Drop drop;
};

struct bf16 {
    unsigned short bits;
};

__device__ float load(const float &x) { return x; }
__device__ float load(const bf16 &x) { return __uint_as_float((u32)x.bits << 16); }
__device__ void store(float &to, float x) { to = x; }
// Rounds to nearest even; a NaN stays one.
__device__ void store(bf16 &to, float x) {
    u32 bits = __float_as_uint(x);
    to.bits = x != x ? 0x7fc0 : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define NOT_A_NUMBER __uint_as_float(0x7fc00000)

// As `rng::bits` and `Dropout::factor`.
__device__ float factor(const Drop &d, u32 i) {
    u32 x = i * 0x9e3779b9u ^ d.k0;
    x ^= x >> 16;
    x = x * 0x7feb352du + d.k1;
    x ^= x >> 15;
    x = x * 0x846ca68bu;
    x ^= x >> 16;
    return x >= d.threshold ? d.scale : 0.0f;
}

// As `rng::splitmix` and `Dropout::sub`.
__device__ u64 splitmix(u64 x) {
    u64 z = x + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ Drop part_of(const Drop &d, u64 part) {
    if (d.threshold == 0) return d;
    u64 k = splitmix(((u64)d.k1 << 32 | d.k0) ^ splitmix(part));
    Drop out = {(u32)k, (u32)(k >> 32), d.threshold, d.scale};
    return out;
}

__device__ float warp_sum(float x) {
    for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ float warp_max(float x) {
    for (int d = 16; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

// Over a block of at most 1024 threads; all get the sum.
__device__ float block_sum(float x) {
    __shared__ float sums[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) sums[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? sums[lane] : 0.0f);
}

// Makes the kernels `name_f32` and `name_bf16` of a function template.
#define KERNEL_OF_BOTH(name)                                             \
    extern "C" __global__ void name##_f32(Args a) { name<float>(a); }    \
    extern "C" __global__ void name##_bf16(Args a) { name<bf16>(a); }
