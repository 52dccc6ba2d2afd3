// The kernels compiled as C++, and a launch and a product as a device would do them, for `emulator.rs`.
#include "emulator.h"
#include "kernel.cu"
#include "../adamw/kernel.cu"
#include "../attention/tensor.cu"
#include "../convolution/kernel.cu"
#include "../disentangled/kernel.cu"
#include "../distance_bias/kernel.cu"
#include "../dropout/kernel.cu"
#include "../embedding/kernel.cu"
#include "../gated/kernel.cu"
#include "../gelu/kernel.cu"
#include "../rotary/kernel.cu"
#include "../rows/kernel.cu"

void emulator::enter() {
    kernel(*arguments);
    if (!copies[current].empty()) fail("copies to shared memory that nobody waits for");
    fibers[current].done = true;
    live--;
    idle = 0;
    if (live > 0 && arrived == live) fail("some threads wait at a barrier that others passed by");
    emulator_switch(&fibers[current].at, scheduler);
}

extern "C" void emulator_launch(void (*kernel)(Args), const Args *args, const unsigned *grid, unsigned threads, unsigned shared) {
    using namespace emulator;
    std::lock_guard<std::mutex> lock(one_launch);
    if (threads > MOST || threads % 32 || shared > SHARED - 32 * 4 || grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535)
        fail("a launch that a device would refuse");
    if (!stacks)
        stacks = (char *)mmap(0, (size_t)STACK * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    emulator::kernel = kernel;
    arguments = args;
    emulator::threads = threads;
    block_size = {threads, 1, 1};
    grid_size = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                block = {x, y, z};
                run_block((x + y + z) % 2);
            }
}

// As cublasGemmEx with alpha 1: column-major c[m, n] = op(a)·op(b) + beta·c.
template <class In, class Out>
static void product(bool ta, bool tb, int m, int n, int k, const In *a, int lda, const In *b, int ldb, float beta, Out *c, int ldc) {
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) emulator::fail("leading dimensions that cuBLAS would refuse");
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float sum = 0.0f;
            for (int l = 0; l < k; l++)
                sum += load(ta ? a[(size_t)i * lda + l] : a[(size_t)l * lda + i]) * load(tb ? b[(size_t)l * ldb + j] : b[(size_t)j * ldb + l]);
            Out &to = c[(size_t)j * ldc + i];
            store(to, beta == 0.0f ? sum : sum + beta * load(to));
        }
}

extern "C" void emulator_gemm(const int *n, const void *a, const void *b, void *c, float beta) {
    // ta, tb, m, n, k, lda, ldb, ldc, whether the operands are bf16, whether the result is
    if (n[8] && n[9]) product(n[0], n[1], n[2], n[3], n[4], (const bf16 *)a, n[5], (const bf16 *)b, n[6], beta, (bf16 *)c, n[7]);
    else if (n[8]) product(n[0], n[1], n[2], n[3], n[4], (const bf16 *)a, n[5], (const bf16 *)b, n[6], beta, (float *)c, n[7]);
    else product(n[0], n[1], n[2], n[3], n[4], (const float *)a, n[5], (const float *)b, n[6], beta, (float *)c, n[7]);
}
