// What becomes of a product: the bias, the activation or its slope; one thread a value.
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

// y += bias
template <class T> __device__ void epilogue_bias(const Args &a) {
    T *y = (T *)a.p[0];
    const float *bias = (const float *)a.p[1];
    int n = a.n[0], stride = a.n[1], j = blockIdx.y * blockDim.x + threadIdx.x;
    u64 at = (u64)blockIdx.x * stride + j;
    if (j < n) store(y[at], load(y[at]) + bias[j]);
}
KERNEL_OF_BOTH(epilogue_bias)

// u += bias, g = act(u)
template <class T> __device__ void epilogue_act(const Args &a) {
    T *u = (T *)a.p[0], *g = (T *)a.p[1];
    const float *bias = (const float *)a.p[2];
    int n = a.n[0], j = blockIdx.y * blockDim.x + threadIdx.x;
    u64 at = (u64)blockIdx.x * a.n[1] + j, at_g = (u64)blockIdx.x * a.n[2] + j;
    if (j >= n) return;
    store(u[at], load(u[at]) + bias[j]);
    float value, slope;
    activation(a.n[3], load(u[at]), value, slope);
    store(g[at_g], value);
}
KERNEL_OF_BOTH(epilogue_act)

// du *= act'(u)
template <class T> __device__ void epilogue_slope(const Args &a) {
    T *du = (T *)a.p[0];
    const T *u = (const T *)a.p[1];
    int n = a.n[0], j = blockIdx.y * blockDim.x + threadIdx.x;
    u64 at = (u64)blockIdx.x * a.n[1] + j, at_u = (u64)blockIdx.x * a.n[2] + j;
    if (j >= n) return;
    float value, slope;
    activation(a.n[3], load(u[at_u]), value, slope);
    store(du[at], load(du[at]) * slope);
}
KERNEL_OF_BOTH(epilogue_slope)
