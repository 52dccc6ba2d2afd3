// What becomes of a product: the bias, the activation or its slope; one thread a chunk of values.
#pragma once
#include "../gpu/common.cuh"

// act(x) and act'(x); numbers as `Activation` declares them.
__device__ void activation(int act, float x, float &value, float &slope) {
    if (act == 0) {
        float cdf = 0.5f + 0.5f * erff(x * 0.70710678f);
        value = x * cdf;
        slope = x * 0.3989423f * expf(-0.5f * x * x) + cdf;
    } else if (act == 1) {
        float t = tanhf(0.7978846f * (0.044715f * x * x * x + x));
        value = 0.5f * x * (1.0f + t);
        slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978846f * (3.0f * 0.044715f * x * x + 1.0f);
    } else if (act == 2) {
        value = x > 0.0f ? x : 0.0f;
        slope = x > 0.0f ? 1.0f : 0.0f;
    } else {
        float s = 1.0f / (1.0f + expf(-x));
        value = x * s;
        slope = s * (x * (1.0f - s) + 1.0f);
    }
}

// y += bias. n: 0 rows, 1 columns, 2 stride
template <class T> __device__ void epilogue_bias(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    T *y = (T *)a.p[0] + (u64)at.row * a.n[2] + at.j;
    float x[CHUNK], bias[CHUNK];
    load_chunk(x, y, at.there);
    load_chunk(bias, (const float *)a.p[1] + at.j, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) x[i] += bias[i];
    store_chunk(y, x, at.there);
}
KERNEL_OF_BOTH(epilogue_bias)

// u += bias, g = act(u). n: 0 rows, 1 columns, 2 and 3 strides of u and g, 4 the activation
template <class T> __device__ void epilogue_act(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    T *u = (T *)a.p[0] + (u64)at.row * a.n[2] + at.j;
    float x[CHUNK], bias[CHUNK], slope;
    load_chunk(x, u, at.there);
    load_chunk(bias, (const float *)a.p[2] + at.j, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) x[i] = as_stored<T>(x[i] + bias[i]);
    store_chunk(u, x, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) activation(a.n[4], x[i], x[i], slope);
    store_chunk((T *)a.p[1] + (u64)at.row * a.n[3] + at.j, x, at.there);
}
KERNEL_OF_BOTH(epilogue_act)

// du *= act'(u). n: 0 rows, 1 columns, 2 and 3 strides of du and u, 4 the activation
template <class T> __device__ void epilogue_slope(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    T *du = (T *)a.p[0] + (u64)at.row * a.n[2] + at.j;
    float x[CHUNK], u[CHUNK], value, slope;
    load_chunk(x, du, at.there);
    load_chunk(u, (const T *)a.p[1] + (u64)at.row * a.n[3] + at.j, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        activation(a.n[4], u[i], value, slope);
        x[i] *= slope;
    }
    store_chunk(du, x, at.there);
}
KERNEL_OF_BOTH(epilogue_slope)
