// All kernels as one unit, for the compiler.
#define DYNAMIC_SHARED(T, name) extern __shared__ T name[]
#include "kernel.cu"
#include "../adamw/kernel.cu"
#include "../attention/kernel.cu"
#include "../distance_bias/kernel.cu"
#include "../embedding/kernel.cu"
#include "../gelu/kernel.cu"
#include "../rows/kernel.cu"
