// One block a row; parameter gradients in one partial sum a chunk of rows, each column in the hands of one thread.
#pragma once
#include "../gpu/common.cuh"

// Mean and reciprocal standard deviation of a row.
template <class T> __device__ void row_stats(const T *s, int h, float eps, float &mean, float &rstd) {
    float sum = 0.0f;
    for (int j = threadIdx.x; j < h; j += blockDim.x) sum += load(s[j]);
    mean = block_sum(sum) / h;
    float squares = 0.0f;
    for (int j = threadIdx.x; j < h; j += blockDim.x) squares += (load(s[j]) - mean) * (load(s[j]) - mean);
    rstd = 1.0f / sqrtf(block_sum(squares) / h + eps);
}

template <class T> __device__ void residual_norm(const Args &a) {
    int h = a.n[0];
    u64 row = blockIdx.x;
    T *s = (T *)a.p[0] + row * h, *y = (T *)a.p[1] + row * h;
    const T *residual = (const T *)a.p[2] + row * h;
    const float *bias = (const float *)a.p[3], *gamma = bias + h, *beta = gamma + h;
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float branch = load(s[j]) + bias[j];
        float kept = a.drop.threshold ? branch * factor(a.drop, (u32)(row * h + j)) : branch;
        store(s[j], kept + load(residual[j]));
    }
    float mean, rstd;
    row_stats(s, h, a.f[0], mean, rstd);
    for (int j = threadIdx.x; j < h; j += blockDim.x) store(y[j], (load(s[j]) - mean) * rstd * gamma[j] + beta[j]);
}
KERNEL_OF_BOTH(residual_norm)

// One row's ds = rstd·(g − mean(g) − x̂·mean(g·x̂)) with g = dy·gamma and x̂ the normed row; `masked` gives dy.
template <class T, class F>
__device__ void norm_row_backward(T *ds, float *dgamma, float *dbeta, F masked, const T *s, const float *gamma, int h, float eps) {
    float mean, rstd, sum = 0.0f, sum_x = 0.0f;
    row_stats(s, h, eps, mean, rstd);
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float g = masked(j) * gamma[j];
        sum += g;
        sum_x += g * ((load(s[j]) - mean) * rstd);
    }
    float mean_g = block_sum(sum) / h, mean_gx = block_sum(sum_x) / h;
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float dy = masked(j), x = (load(s[j]) - mean) * rstd;
        dgamma[j] += dy * x;
        dbeta[j] += dy;
        store(ds[j], rstd * (dy * gamma[j] - mean_g - x * mean_gx));
    }
}

template <class T> __device__ void residual_norm_backward(const Args &a) {
    T *ds = (T *)a.p[0], *dbranch = (T *)a.p[1];
    float *partial = (float *)a.p[2];
    const T *dy = (const T *)a.p[3], *s = (const T *)a.p[4];
    const float *gamma = (const float *)a.p[5];
    int rows = a.n[0], h = a.n[1], per_chunk = a.n[2];
    DYNAMIC_SHARED(float, sums);
    float *dbias = sums, *dgamma = dbias + h, *dbeta = dgamma + h;
    for (int j = threadIdx.x; j < h; j += blockDim.x) dbias[j] = dgamma[j] = dbeta[j] = 0.0f;
    int first = blockIdx.x * per_chunk;
    for (int r = first; r < min(first + per_chunk, rows); r++) {
        u64 at = (u64)r * h;
        norm_row_backward(ds + at, dgamma, dbeta, [&](int j) { return load(dy[at + j]); }, s + at, gamma, h, a.f[0]);
        for (int j = threadIdx.x; j < h; j += blockDim.x) {
            float v = load(ds[at + j]);
            if (a.drop.threshold) v *= factor(a.drop, (u32)(at + j));
            store(dbranch[at + j], v);
            dbias[j] += v;
        }
    }
    for (int j = threadIdx.x; j < h; j += blockDim.x) {
        float *to = partial + (u64)blockIdx.x * 3 * h + j;
        to[0] = dbias[j];
        to[h] = dgamma[j];
        to[2 * h] = dbeta[j];
    }
}
KERNEL_OF_BOTH(residual_norm_backward)
