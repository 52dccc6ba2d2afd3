// Runs the kernels on the CPU, block after block: each thread of a block is a fiber, which hands over where it would wait
// for the others. x86-64 with the System V calling convention. Shared memory begins as NaNs, blocks of odd number run their
// threads in the opposite order and copy to shared memory as late as they may, and a barrier that not all threads reach ends
// the process with a message.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#define __global__
#define __device__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(T, name) T *name = (T *)emulator::shared

using std::max;
using std::min;

static inline unsigned min(unsigned a, int b) { return a < (unsigned)b ? a : (unsigned)b; }
static inline float __uint_as_float(unsigned x) { float f; memcpy(&f, &x, 4); return f; }
static inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
static inline double __longlong_as_double(long long x) { double d; memcpy(&d, &x, 8); return d; }

struct Index { unsigned x, y, z; };

extern "C" void emulator_switch(void **save, void *load);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
    push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
    ret
)");

struct Args;

namespace emulator {
const int STACK = 1 << 16, MOST = 1024, SHARED = 48 << 10;

struct Fiber {
    void *at;
    Index place;
    bool done;
};

static std::mutex one_launch;
static Fiber fibers[MOST];
static char *stacks;
static void *scheduler;
static int current, threads, live, arrived, generation, idle;
static int warp_arrived[MOST / 32], warp_generation[MOST / 32];
static char slots[MOST][32];
static Index block, block_size, grid_size;
static bool late;
struct Copy { void *to; const void *from; bool there; };
static std::vector<Copy> copies[MOST];
alignas(64) static char shared[SHARED];
static void (*kernel)(Args);
static const Args *arguments;

static void fail(const char *what) {
    fprintf(stderr, "emulator: %s\n", what);
    abort();
}

static void yield() {
    if (++idle > 8 * threads) fail("threads wait for one another for ever: a barrier that not all of them reach");
    emulator_switch(&fibers[current].at, scheduler);
}

static void wait_block() {
    int mine = generation;
    if (++arrived == live) {
        arrived = idle = 0;
        generation++;
    }
    while (generation == mine) yield();
}

static void wait_warp() {
    int w = current / 32, mine = warp_generation[w];
    if (++warp_arrived[w] == min(32, threads - w * 32)) {
        warp_arrived[w] = idle = 0;
        warp_generation[w]++;
    }
    while (warp_generation[w] == mine) yield();
}

template <class T> T exchange(T mine, int lane) {
    memcpy(slots[current], &mine, sizeof mine);
    wait_warp();
    T other;
    memcpy(&other, slots[current / 32 * 32 + lane], sizeof other);
    wait_warp();
    return other;
}

// Shows the warp what its lanes have, until all of them wait again.
template <class T> static void show(const T &mine) {
    static_assert(sizeof(T) <= sizeof slots[0], "room of a slot");
    memcpy(slots[current], &mine, sizeof mine);
    wait_warp();
}

// What lane i showed.
template <class T> static T lane(int i) {
    T shown;
    memcpy(&shown, slots[current / 32 * 32 + i], sizeof shown);
    return shown;
}

static void copy_now(const Copy &c) {
    if (c.there) memcpy(c.to, c.from, 16);
    else memset(c.to, 0, 16);
}

static void aligned(const void *at) {
    if ((size_t)at % 16) fail("16 bytes at an address that is not a multiple of 16");
}

static void enter(); // defined where `Args` is whole

static void run_block(int order) {
    memset(shared, 0xff, sizeof shared);
    live = threads;
    arrived = idle = 0;
    for (int i = 0; i < threads; i++) {
        void **top = (void **)(stacks + (size_t)(i + 1) * STACK) - 1; // aligned as at a function's entry
        *--top = (void *)enter;
        top -= 6;
        fibers[i].at = top;
        fibers[i].done = false;
        fibers[i].place = {i % block_size.x, 0, 0};
    }
    late = order;
    while (live > 0)
        for (int i = 0; i < threads; i++) {
            current = order ? threads - 1 - i : i;
            if (!fibers[current].done) emulator_switch(&scheduler, fibers[current].at);
        }
}
} // namespace emulator

#define threadIdx (emulator::fibers[emulator::current].place)
#define blockIdx (emulator::block)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define __syncthreads() emulator::wait_block()
#define __shfl_xor_sync(mask, x, d) emulator::exchange(x, (emulator::current % 32) ^ (d))
#define __shfl_sync(mask, x, lane) emulator::exchange(x, (lane))
