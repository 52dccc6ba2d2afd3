// All kernels as one unit, for the compiler.
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]
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
