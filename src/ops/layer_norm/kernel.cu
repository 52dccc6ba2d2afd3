// One block a row, one thread a chunk of its columns, which stay in registers; parameter gradients in one partial sum a chunk
// of rows, each column in the hands of one thread.
#pragma once
#include "../gpu/common.cuh"

// Mean and reciprocal standard deviation of the row that the block's threads hold.
__device__ void row_stats(const float (&s)[CHUNK], int there, int h, float eps, float &mean, float &rstd) {
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) sum += s[i];
    mean = block_sum(sum) / h;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) squares += i < there ? (s[i] - mean) * (s[i] - mean) : 0.0f;
    rstd = 1.0f / sqrtf(block_sum(squares) / h + eps);
}

template <class T> __device__ void residual_norm(const Args &a) {
    int h = a.n[0];
    Piece at = piece_of_row(h);
    u64 first = (u64)at.row * h + at.j;
    T *to_s = (T *)a.p[0] + first, *to_y = (T *)a.p[1] + first;
    const float *bias = (const float *)a.p[3] + at.j;
    float s[CHUNK], residual[CHUNK], b[CHUNK], gamma[CHUNK], beta[CHUNK], mean, rstd;
    load_chunk(s, to_s, at.there);
    load_chunk(residual, (const T *)a.p[2] + first, at.there);
    load_chunk(b, bias, at.there);
    load_chunk(gamma, bias + h, at.there);
    load_chunk(beta, bias + 2 * h, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        float branch = s[i] + b[i];
        if (a.drop.threshold) branch *= factor(a.drop, (u32)(first + i));
        s[i] = as_stored<T>(branch + residual[i]);
    }
    store_chunk(to_s, s, at.there);
    row_stats(s, at.there, h, a.f[0], mean, rstd);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) s[i] = (s[i] - mean) * rstd * gamma[i] + beta[i];
    store_chunk(to_y, s, at.there);
}
KERNEL_OF_ROWS(residual_norm)

// One row's ds = rstd·(g − mean(g) − x̂·mean(g·x̂)) with g = dy·gamma and x̂ the normed row; `s` becomes ds.
__device__ void norm_backward(float (&s)[CHUNK], float (&dgamma)[CHUNK], float (&dbeta)[CHUNK], const float (&dy)[CHUNK],
                              const float (&gamma)[CHUNK], int there, int h, float eps) {
    float mean, rstd, sums[2] = {0.0f, 0.0f};
    row_stats(s, there, h, eps, mean, rstd);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        s[i] = (s[i] - mean) * rstd;
        dgamma[i] += dy[i] * s[i];
        dbeta[i] += dy[i];
        sums[0] += dy[i] * gamma[i];
        sums[1] += dy[i] * gamma[i] * s[i];
    }
    block_sums(sums);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) s[i] = rstd * (dy[i] * gamma[i] - sums[0] / h - s[i] * (sums[1] / h));
}

// p: 0 ds, 1 dbranch, 2 partial, 3 dy, 4 s, 5 gamma, 6 what is added to ds or none; n: 0 rows, 1 h, 2 rows a chunk
template <class T> __device__ void residual_norm_backward(const Args &a) {
    int rows = a.n[0], h = a.n[1], per_chunk = a.n[2], first = blockIdx.x * per_chunk;
    Piece at = piece_of_row(h);
    float gamma[CHUNK], dbias[CHUNK] = {}, dgamma[CHUNK] = {}, dbeta[CHUNK] = {};
    load_chunk(gamma, (const float *)a.p[5] + at.j, at.there);
    for (int r = first; r < min(first + per_chunk, rows); r++) {
        u64 place = (u64)r * h + at.j;
        float s[CHUNK], dy[CHUNK];
        load_chunk(s, (const T *)a.p[4] + place, at.there);
        load_chunk(dy, (const T *)a.p[3] + place, at.there);
        norm_backward(s, dgamma, dbeta, dy, gamma, at.there, h, a.f[0]);
        if (a.p[6]) {
            load_chunk(dy, (const T *)a.p[6] + place, at.there);
#pragma unroll
            for (int i = 0; i < CHUNK; i++) s[i] += dy[i];
        }
        store_chunk((T *)a.p[0] + place, s, at.there);
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            s[i] = as_stored<T>(s[i]);
            if (a.drop.threshold) s[i] *= factor(a.drop, (u32)(place + i));
            dbias[i] += s[i];
        }
        store_chunk((T *)a.p[1] + place, s, at.there);
    }
    float *to = (float *)a.p[2] + (u64)blockIdx.x * 3 * h + at.j;
    store_chunk(to, dbias, at.there);
    store_chunk(to + h, dgamma, at.there);
    store_chunk(to + 2 * h, dbeta, at.there);
}
KERNEL_OF_ROWS(residual_norm_backward)
