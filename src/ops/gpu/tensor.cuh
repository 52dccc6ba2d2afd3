// Tensor cores and copies past the registers, as PTX names them (compute capability 8.0); the emulator does the same.
//
// A fragment is a warp's share of a matrix in registers, two bf16 in each, the first in the lower half. Lane l has, with
// g = l / 4 and t = 2·(l % 4):
//   a, 16 × 16: rows g and g + 8 of columns t, t + 1; then the same of columns t + 8, t + 9
//   b, 16 × 8:  column g of rows t, t + 1; then of rows t + 8, t + 9
//   c, 16 × 8 in f32: columns t, t + 1 of row g, then of row g + 8
#pragma once
#include "common.cuh"

#ifdef __CUDACC__

// Lets the lanes of a warp that went apart meet again: what follows needs all of them at once.
__device__ void wait_warp() { __syncwarp(); }

// c += a · b
__device__ void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }

// Four matrices of 8 × 8; lane l gives the address of row l % 8 of matrix l / 8 and gets row l / 4, columns t and t + 1, of each.
__device__ void load_matrices(u32 (&x)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(row)) : "memory");
}

// The same transposed: the lane gets column l / 4, rows t and t + 1.
__device__ void load_matrices_transposed(u32 (&x)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared_address(row)) : "memory");
}

// Begins to copy 16 bytes to shared memory, or zeros where there is nothing.
__device__ void begin_copy(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Waits for the copies that this thread began.
__device__ void end_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }

// Two values rounded to one register.
__device__ u32 pack(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

// 2^x, small results flushed to zero.
__device__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

using emulator::wait_warp;

struct Fragments {
    u32 a[4], b[2];
};

inline float half_of(u32 x, int upper) { return __uint_as_float(upper ? x & 0xffff0000u : x << 16); }

inline void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    emulator::show(mine);
    int l = emulator::current % 32;
    for (int i = 0; i < 4; i++) {
        int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            u32 left = emulator::lane<Fragments>(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2];
            u32 right = emulator::lane<Fragments>(column * 4 + k % 8 / 2).b[k / 8];
            c[i] += half_of(left, k % 2) * half_of(right, k % 2);
        }
    }
    emulator::wait_warp();
}

inline void read_matrices(u32 (&x)[4], const bf16 *mine, bool transposed) {
    emulator::aligned(mine);
    emulator::show(mine);
    int l = emulator::current % 32;
    for (int m = 0; m < 4; m++) {
        auto at = [&](int row, int column) { return (u32)emulator::lane<const bf16 *>(8 * m + row)[column].bits; };
        int far = l / 4, near = l % 4 * 2;
        x[m] = transposed ? at(near, far) | at(near + 1, far) << 16 : at(far, near) | at(far, near + 1) << 16;
    }
    emulator::wait_warp();
}

inline void load_matrices(u32 (&x)[4], const bf16 *row) { read_matrices(x, row, false); }
inline void load_matrices_transposed(u32 (&x)[4], const bf16 *row) { read_matrices(x, row, true); }

inline void begin_copy(void *to, const void *from, bool there) {
    emulator::aligned(to);
    emulator::aligned(from);
    emulator::Copy copy = {to, from, there};
    if (emulator::late) emulator::copies[emulator::current].push_back(copy);
    else emulator::copy_now(copy);
}

inline void end_copies() {
    auto &mine = emulator::copies[emulator::current];
    for (auto &copy : mine) emulator::copy_now(copy);
    mine.clear();
}

inline u32 pack(float first, float second) {
    bf16 x, y;
    store(x, first);
    store(y, second);
    return x.bits | (u32)y.bits << 16;
}

inline float power_of_2(float x) { return exp2f(x); }

#endif
