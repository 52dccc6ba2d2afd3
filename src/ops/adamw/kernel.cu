// One launch over all segments, in blocks of 4096 values; the sum of squares, the moving average and the adversarial step over
// ranges, cut likewise.
#include "../gpu/common.cuh"

// start, end, number of its first block, and the bits of three f32: what weight decay keeps, the step size, and the inverse
// root of the second moment's correction
#define SEGMENT_WORDS 6
#define BLOCK_VALUES 4096
// Values of a thread at a time: 16 bytes.
#define FEW 4
#define MOST_DOUBLE 1.7976931348623157e308

// The segment that a block belongs to, and its part of it.
__device__ const u32 *part(const u32 *segments, int count, u32 block, u32 &start, u32 &end) {
    int low = 0, high = count;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (segments[middle * SEGMENT_WORDS + 2] <= block) low = middle;
        else high = middle;
    }
    const u32 *s = segments + low * SEGMENT_WORDS;
    start = s[0] + (block - s[2]) * BLOCK_VALUES;
    end = min(start + BLOCK_VALUES, s[1]);
    return s;
}

// The two f32 that a word holds.
__device__ float low(u64 bits) { return __uint_as_float((u32)bits); }
__device__ float high(u64 bits) { return __uint_as_float((u32)(bits >> 32)); }

// p: 0 weights, 1 first moment, 2 second, 3 gradients, 4 segments, 5 the sum of the gradients' squares, 6 the bits of the norm
// that they are clipped to, 7 and 8 the factors of the moments; n: 0 number of segments; f: 0 epsilon
extern "C" __global__ void adamw(Args a) {
    // One thread works it out for its block: f64 is slow where a GPU is made for other things. Negative: nothing moves.
    __shared__ float shared_scale;
    if (threadIdx.x == 0) {
        double norm = sqrt(*(const double *)a.p[5]), most = __longlong_as_double((long long)a.p[6]);
        double scale = most > 0.0 ? min(1.0, most / (norm + 1e-6)) : 1.0;
        shared_scale = norm <= MOST_DOUBLE ? (float)scale : -1.0f;
    }
    __syncthreads();
    float scale = shared_scale;
    if (scale < 0.0f) return;
    float *w = (float *)a.p[0], *m = (float *)a.p[1], *v = (float *)a.p[2];
    const float *g = (const float *)a.p[3];
    u32 start, end;
    const u32 *s = part((const u32 *)a.p[4], a.n[0], blockIdx.x, start, end);
    float keep = __uint_as_float(s[3]), step_size = __uint_as_float(s[4]), inverse_sqrt_correction2 = __uint_as_float(s[5]);
    float beta1 = low(a.p[7]), one_minus_beta1 = high(a.p[7]), beta2 = low(a.p[8]), one_minus_beta2 = high(a.p[8]);
    float epsilon = a.f[0];
    for (u32 i = start + threadIdx.x * FEW; i < end; i += blockDim.x * FEW) {
        float gs[FEW], ms[FEW], vs[FEW], ws[FEW];
        load_chunk(gs, g + i, end - i);
        load_chunk(ms, m + i, end - i);
        load_chunk(vs, v + i, end - i);
        load_chunk(ws, w + i, end - i);
#pragma unroll
        for (int k = 0; k < FEW; k++) {
            float gi = gs[k] * scale;
            ms[k] = beta1 * ms[k] + one_minus_beta1 * gi;
            vs[k] = beta2 * vs[k] + one_minus_beta2 * gi * gi;
            ws[k] = ws[k] * keep - step_size * ms[k] / (sqrtf(vs[k]) * inverse_sqrt_correction2 + epsilon);
        }
        store_chunk(m + i, ms, end - i);
        store_chunk(v + i, vs, end - i);
        store_chunk(w + i, ws, end - i);
    }
}

// average += share·(weights − average). p: 0 average, 1 weights, 2 segments; n: 0 their number; f: 0 share
extern "C" __global__ void average(Args a) {
    float *to = (float *)a.p[0];
    const float *w = (const float *)a.p[1];
    u32 start, end;
    part((const u32 *)a.p[2], a.n[0], blockIdx.x, start, end);
    for (u32 i = start + threadIdx.x * FEW; i < end; i += blockDim.x * FEW) {
        float x[FEW], y[FEW];
        load_chunk(x, to + i, end - i);
        load_chunk(y, w + i, end - i);
#pragma unroll
        for (int k = 0; k < FEW; k++) x[k] += a.f[0] * (y[k] - x[k]);
        store_chunk(to + i, x, end - i);
    }
}

// w += length·g/√squares, nothing where the root is zero or not finite. p: 0 weights, 1 gradients, 2 segments, 3 the sum of
// squares, 4 the bits of the length; n: 0 number of segments
extern "C" __global__ void perturb(Args a) {
    __shared__ float shared_factor;
    if (threadIdx.x == 0) {
        double norm = sqrt(*(const double *)a.p[3]), length = __longlong_as_double((long long)a.p[4]);
        shared_factor = norm > 0.0 && norm <= MOST_DOUBLE ? (float)(length / norm) : 0.0f;
    }
    __syncthreads();
    float factor = shared_factor;
    if (factor == 0.0f) return;
    float *w = (float *)a.p[0];
    const float *g = (const float *)a.p[1];
    u32 start, end;
    part((const u32 *)a.p[2], a.n[0], blockIdx.x, start, end);
    for (u32 i = start + threadIdx.x * FEW; i < end; i += blockDim.x * FEW) {
        float ws[FEW], gs[FEW];
        load_chunk(ws, w + i, end - i);
        load_chunk(gs, g + i, end - i);
#pragma unroll
        for (int k = 0; k < FEW; k++) ws[k] += factor * gs[k];
        store_chunk(w + i, ws, end - i);
    }
}

__device__ double block_sum_double(double x) {
    __shared__ double sums[256];
    sums[threadIdx.x] = x;
    for (int width = blockDim.x / 2; width > 0; width /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    }
    __syncthreads();
    return sums[0];
}

// partial[block] = Σ g² over the block's part; blocks of 256 threads
extern "C" __global__ void block_squares(Args a) {
    double *partial = (double *)a.p[0];
    const float *g = (const float *)a.p[1];
    u32 start, end;
    part((const u32 *)a.p[2], a.n[0], blockIdx.x, start, end);
    double sum = 0.0;
    for (u32 i = start + threadIdx.x * FEW; i < end; i += blockDim.x * FEW) {
        float gs[FEW];
        load_chunk(gs, g + i, end - i);
#pragma unroll
        for (int k = 0; k < FEW; k++) sum += (double)gs[k] * gs[k];
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out = Σ partial, by one block of 256 threads
extern "C" __global__ void sum_doubles(Args a) {
    double *out = (double *)a.p[0];
    const double *partial = (const double *)a.p[1];
    double sum = 0.0;
    for (int i = threadIdx.x; i < a.n[0]; i += blockDim.x) sum += partial[i];
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) *out = sum;
}
