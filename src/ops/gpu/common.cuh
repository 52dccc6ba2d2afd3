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
    u64 p[16];
    int n[16];
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

// What is left of a value when it is stored as a T.
template <class T> __device__ float as_stored(float x) {
    T stored;
    store(stored, x);
    return load(stored);
}

// Values side by side that one thread works on: a bf16 each would be too few bytes on their way at a time to keep the memory
// busy. Read and written 16 bytes at a time where the address allows it; of the last ones of a row only `there` exist, the
// others read as zeros.
#define CHUNK 8

struct __attribute__((may_alias, aligned(16))) Sixteen {
    u32 x[4];
};

__device__ bool at_once(const void *at, int there, int n) { return there >= n && (u64)at % 16 == 0; }

template <int N> __device__ void load_chunk(float (&x)[N], const float *from, int there) {
    if (at_once(from, there, N)) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            Sixteen part = ((const Sixteen *)from)[i];
#pragma unroll
            for (int k = 0; k < 4; k++) x[4 * i + k] = __uint_as_float(part.x[k]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = i < there ? from[i] : 0.0f;
    }
}

__device__ void load_chunk(float (&x)[CHUNK], const bf16 *from, int there) {
    if (at_once(from, there, CHUNK)) {
        Sixteen part = *(const Sixteen *)from;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            x[2 * k] = __uint_as_float(part.x[k] << 16);
            x[2 * k + 1] = __uint_as_float(part.x[k] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) x[i] = i < there ? load(from[i]) : 0.0f;
    }
}

template <int N> __device__ void store_chunk(float *to, const float (&x)[N], int there) {
    if (at_once(to, there, N)) {
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            Sixteen part;
#pragma unroll
            for (int k = 0; k < 4; k++) part.x[k] = __float_as_uint(x[4 * i + k]);
            ((Sixteen *)to)[i] = part;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < there) to[i] = x[i];
    }
}

__device__ void store_chunk(bf16 *to, const float (&x)[CHUNK], int there) {
    bf16 rounded[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) store(rounded[i], x[i]);
    if (at_once(to, there, CHUNK)) {
        Sixteen part;
#pragma unroll
        for (int k = 0; k < 4; k++) part.x[k] = rounded[2 * k].bits | (u32)rounded[2 * k + 1].bits << 16;
        *(Sixteen *)to = part;
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            if (i < there) to[i] = rounded[i];
    }
}

// A thread's chunk of a matrix, where the grid has one thread a chunk (`Grid::chunks`).
struct Piece {
    int row, j, there; // none there: no work
};

__device__ Piece piece_of(int rows, int columns) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x, a_row = (columns + CHUNK - 1) / CHUNK, row = i / a_row;
    Piece p = {(int)row, (int)(i % a_row) * CHUNK, 0};
    if (row < (u32)rows) p.there = min(CHUNK, columns - p.j);
    return p;
}

// The same where a block has the row, and one thread a chunk of it (`Grid::rows`).
__device__ Piece piece_of_row(int columns) {
    Piece p = {(int)blockIdx.x, (int)threadIdx.x * CHUNK, 0};
    p.there = max(0, min(CHUNK, columns - p.j));
    return p;
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

// Over a block of at most 1024 threads; all get the sums.
template <int N> __device__ void block_sums(float (&x)[N]) {
    __shared__ float sums[N][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(x[i]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++)
        if (lane == 0) sums[i][warp] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(lane < warps ? sums[i][lane] : 0.0f);
}

__device__ float block_sum(float x) {
    float sum[1] = {x};
    block_sums(sum);
    return sum[0];
}

// The most threads of a block that has a row (`Grid::rows`): a thread gets a share of the registers that leaves room for all.
#define ROW_THREADS 512

// Makes the kernels `name_f32` and `name_bf16` of a function template.
#define KERNEL_OF_BOTH(name)                                             \
    extern "C" __global__ void name##_f32(Args a) { name<float>(a); }    \
    extern "C" __global__ void name##_bf16(Args a) { name<bf16>(a); }

// The same where a block has a row.
#define KERNEL_OF_ROWS(name)                                                                              \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) name##_f32(Args a) { name<float>(a); }      \
    extern "C" __global__ void __launch_bounds__(ROW_THREADS) name##_bf16(Args a) { name<bf16>(a); }
