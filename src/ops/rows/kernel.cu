// One block a row that is picked or added.
#include "../gpu/common.cuh"

template <class T> __device__ void gather_rows(const Args &a) {
    T *out = (T *)a.p[0];
    const T *x = (const T *)a.p[1];
    u32 row = ((const u32 *)a.p[2])[blockIdx.x];
    int n = a.n[0], to = a.n[1], from = a.n[2], rows = a.n[3];
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        T *place = &out[(u64)blockIdx.x * to + j];
        // An index outside cannot be refused from here: it shows as a loss that is not a number.
        if (row < (u32)rows) *place = x[(u64)row * from + j];
        else store(*place, NOT_A_NUMBER);
    }
}
KERNEL_OF_BOTH(gather_rows)

// x[index[i]] += part[i]; the first of equal indices adds for all of them, in their order.
template <class T> __device__ void add_rows(const Args &a) {
    T *x = (T *)a.p[0];
    const T *part = (const T *)a.p[1];
    const u32 *index = (const u32 *)a.p[2];
    int n = a.n[0], to = a.n[1], from = a.n[2], picked = a.n[3], rows = a.n[4], first = blockIdx.x;
    u32 row = index[first];
    for (int i = 0; i < first; i++)
        if (index[i] == row) return;
    if (row >= (u32)rows) return;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        float sum = load(x[(u64)row * to + j]);
        for (int i = first; i < picked; i++)
            if (index[i] == row) sum += load(part[(u64)i * from + j]);
        store(x[(u64)row * to + j], sum);
    }
}
KERNEL_OF_BOTH(add_rows)
