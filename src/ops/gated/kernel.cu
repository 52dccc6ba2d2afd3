// One thread a chunk of the gated half and the one beside it.
#include "../gelu/kernel.cu"

// g = dropout(act(x)·gate), x and gate side by side. p: 0 g, 1 up; n: 0 rows, 1 columns of g, 2 the activation
template <class T> __device__ void gated(const Args &a) {
    int n = a.n[1];
    Piece at = piece_of(a.n[0], n);
    if (!at.there) return;
    u64 place = (u64)at.row * n + at.j;
    const T *up = (const T *)a.p[1] + (u64)at.row * 2 * n + at.j;
    float x[CHUNK], gate[CHUNK], slope;
    load_chunk(x, up, at.there);
    load_chunk(gate, up + n, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        activation(a.n[2], x[i], x[i], slope);
        x[i] *= gate[i];
        if (a.drop.threshold) x[i] *= factor(a.drop, (u32)(place + i));
    }
    store_chunk((T *)a.p[0] + place, x, at.there);
}
KERNEL_OF_BOTH(gated)

// p: 0 dup, 1 dg, 2 up; n as above
template <class T> __device__ void gated_backward(const Args &a) {
    int n = a.n[1];
    Piece at = piece_of(a.n[0], n);
    if (!at.there) return;
    u64 place = (u64)at.row * n + at.j, wide = (u64)at.row * 2 * n + at.j;
    const T *up = (const T *)a.p[2] + wide;
    T *dup = (T *)a.p[0] + wide;
    float x[CHUNK], gate[CHUNK], d[CHUNK];
    load_chunk(x, up, at.there);
    load_chunk(gate, up + n, at.there);
    load_chunk(d, (const T *)a.p[1] + place, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        float value, slope;
        activation(a.n[2], x[i], value, slope);
        if (a.drop.threshold) d[i] *= factor(a.drop, (u32)(place + i));
        x[i] = d[i] * gate[i] * slope;
        gate[i] = d[i] * value;
    }
    store_chunk(dup, x, at.there);
    store_chunk(dup + n, gate, at.there);
}
KERNEL_OF_BOTH(gated_backward)
