// One thread a chunk of the first half of a head and its partners in the second.
#include "../gpu/common.cuh"

// p: 0 x, 1 angles, 2 positions; n: 0 rows, 1 heads, 2 head_dim, 3 stride of x, 4 rows of angles, 5 whether back
template <class T> __device__ void rotate(const Args &a) {
    int heads = a.n[1], d = a.n[2], half = d / 2;
    // A head is a row here.
    Piece at = piece_of(a.n[0] * heads, half);
    if (!at.there) return;
    int row = at.row / heads;
    T *first = (T *)a.p[0] + (u64)row * a.n[3] + at.row % heads * d + at.j, *second = first + half;
    u32 position = ((const u32 *)a.p[2])[row];
    // A position outside cannot be refused from here: it shows as a loss that is not a number.
    bool inside = position < (u32)a.n[4];
    const float *cosines = (const float *)a.p[1] + (inside ? (u64)position * d : 0) + at.j;
    float x[CHUNK], y[CHUNK], c[CHUNK], s[CHUNK];
    load_chunk(x, first, at.there);
    load_chunk(y, second, at.there);
    load_chunk(c, cosines, at.there);
    load_chunk(s, cosines + half, at.there);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        float p = inside ? x[i] : NOT_A_NUMBER, q = y[i], sine = a.n[5] ? -s[i] : s[i];
        x[i] = p * c[i] - q * sine;
        y[i] = q * c[i] + p * sine;
    }
    store_chunk(first, x, at.there);
    store_chunk(second, y, at.there);
}
KERNEL_OF_BOTH(rotate)
