// Disentangled attention as ../attention/kernel.cu computes plain attention, with the same warps over the same tiles. The positions
// that a block's queries and a tile's keys are apart by lie side by side, so they pass by as a third matrix and a fourth; where
// only some tokens ask and these are far from one another, positions are read where they are. All matrices pass by 32 columns
// at a time, so that heads of every width fit.
//
// Nothing is added atomically: dq, dk and dv as in plain attention; the gradient of positions distance by distance, each in
// the hands of one warp for all rows of a group, and then summed up.
#pragma once
#include "../attention/kernel.cu"

// Queries, keys or distances that a warp and a block hold.
#define HELD 4
#define ALL_HELD (WARPS * HELD)
#define SLICE 32
#define APART (SLICE + 4)
// What a tile's rows and all that are held are apart by at most.
#define REACHED (ALL_HELD + TILE - 1)

// Two matrices that are read together: a row's queries and dout, its keys and values, the positions' queries and keys.
template <class T> struct Both {
    View<T> one, other;
};

// Shared memory, which `cuda.rs` asks for in this order.
struct Room {
    float *held, *held_other;       // [ALL_HELD][SLICE]
    float *tile, *tile_other;       // [TILE][APART]
    float *reached, *reached_other; // [REACHED][APART]
    float *weights;                 // of this warp, [HELD][TILE]
    int *rows;                      // likewise
};

__device__ Room room_of(float *at) {
    int warp = threadIdx.x / 32;
    Room r;
    r.held = at;
    r.held_other = r.held + ALL_HELD * SLICE;
    r.tile = r.held_other + ALL_HELD * SLICE;
    r.tile_other = r.tile + TILE * APART;
    r.reached = r.tile_other + TILE * APART;
    r.reached_other = r.reached + REACHED * APART;
    r.weights = r.reached_other + REACHED * APART + warp * HELD * TILE;
    r.rows = (int *)(r.weights + (ALL_HELD - warp * HELD) * TILE) + warp * HELD * TILE;
    return r;
}

// Rows that a tile reaches, in shared memory one slice after the other, or too many for it.
struct Reach {
    int first, count;
    __device__ bool fits() const { return count <= REACHED; }
};

// Where distances find their positions, and these.
template <class T> struct Positions {
    Both<T> of; // the queries, the keys; without an address where there are none
    const u32 *at;

    // What some places and keys are apart by; no position falls from one distance to the next.
    __device__ Reach reach(int lowest, int highest) const {
        Reach r = {(int)at[lowest], (int)(at[highest] - at[lowest]) + 1};
        return r;
    }
};

// As `pair_of`, which finds its 6 empty. p: 12 queries of positions, 13 their keys, 14 the position of distance 0 in a table;
// n: 11 stride of positions
template <class T> __device__ Pair pair_among(const Args &a, int head, int row, Positions<T> &positions) {
    Pair p = pair_of(a, head, row);
    const T *queries = (const T *)a.p[12], *keys = (const T *)a.p[13];
    int column = head * p.d;
    positions.of.one = {queries ? queries + column : queries, a.n[11]};
    positions.of.other = {keys ? keys + column : keys, a.n[11]};
    positions.at = (const u32 *)a.p[14];
    p.scale = 1.0f / sqrtf((float)(p.d * (1 + (queries != 0) + (keys != 0))));
    return p;
}

// A query's place in its row; the host has checked that it is there.
__device__ int place_of(const Pair &p, int i) { return max(p.place(i), 0); }

__device__ int warp_lowest(int x) {
    for (int d = 16; d > 0; d /= 2) x = min(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

__device__ int warp_highest(int x) { return -warp_lowest(-x); }

// Columns `x` to `x + SLICE` of rows `first` to `first + count` of `rows` to shared memory; zeros where there are none.
template <class T> __device__ void fetch_slice(float *to, int apart, View<T> from, int first, int count, int rows, int x, int d) {
    for (int i = threadIdx.x; i < count * (SLICE / CHUNK); i += blockDim.x) {
        int r = i / (SLICE / CHUNK), at = i % (SLICE / CHUNK) * CHUNK;
        bool there = from.at && first + r < rows;
        float part[CHUNK];
        load_chunk(part, there ? from.at + (u64)(first + r) * from.stride + x + at : from.at, there ? d - x - at : 0);
        store_chunk(to + r * apart + at, part, CHUNK);
    }
}

// How a lane reads a slice of the rows that a tile reaches: not at all, from shared memory, or where they lie.
struct Nowhere {
    __device__ float one(int, int) const { return 0.0f; }
};

struct Here {
    const float *at;
    int first;
    __device__ Four four(int row, int x) const { return *(const Four *)(at + (row - first) * APART + x); }
    __device__ float one(int row, int x) const { return at[(row - first) * APART + x]; }
};

template <class T> struct There {
    View<T> from;
    int x, d;
    __device__ float one(int row, int at) const {
        return from.at && x + at < d ? load(from.at[(u64)row * from.stride + x + at]) : 0.0f;
    }
    __device__ Four four(int row, int at) const {
        Four f;
#pragma unroll
        for (int c = 0; c < 4; c++) f.x[c] = one(row, at + c);
        return f;
    }
};

// One slice of s_i += held_i·(own + one_i) + own·other_i and, going back, of dp_i += held_other_i·own_other.
template <bool BACK, class Reader>
__device__ void add_scores(float (&s)[HELD], float (&dp)[HELD], const Room &room, Reader one, Reader other, const int (&row)[HELD]) {
    int held = threadIdx.x / 32 * HELD * SLICE, own = threadIdx.x % 32 * APART;
#pragma unroll 2
    for (int x = 0; x < SLICE; x += 4) {
        Four mine = *(const Four *)(room.tile + own + x), back;
        if (BACK) back = *(const Four *)(room.tile_other + own + x);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            Four h = *(const Four *)(room.held + held + i * SLICE + x), near = one.four(row[i], x), far = other.four(row[i], x);
#pragma unroll
            for (int c = 0; c < 4; c++) s[i] += h.x[c] * (mine.x[c] + near.x[c]) + mine.x[c] * far.x[c];
            if (BACK) {
                h = *(const Four *)(room.held_other + held + i * SLICE + x);
#pragma unroll
                for (int c = 0; c < 4; c++) dp[i] += h.x[c] * back.x[c];
            }
        }
    }
}

// Rows of a pair that pass by or are held: `count` of them, from `first` on.
template <class T> struct Rows {
    Both<T> of;
    int first, count;
};

// Raw scores of what a warp holds and its lanes' rows of a tile and, going back, dout·vᵀ; `row` is each pair's position.
template <bool BACK, int C, class T>
__device__ void meet(float (&s)[HELD], float (&dp)[HELD], const Room &room, const Rows<T> &held, const Rows<T> &tile,
                     const Both<T> &positions, Reach reach, const int (&row)[HELD], int d) {
#pragma unroll
    for (int i = 0; i < HELD; i++) s[i] = dp[i] = 0.0f;
    for (int x = 0; x < C * SLICE; x += SLICE) {
        __syncthreads();
        fetch_slice(room.held, SLICE, held.of.one, held.first, ALL_HELD, held.count, x, d);
        fetch_slice(room.tile, APART, tile.of.one, tile.first, TILE, tile.count, x, d);
        if (BACK) {
            fetch_slice(room.held_other, SLICE, held.of.other, held.first, ALL_HELD, held.count, x, d);
            fetch_slice(room.tile_other, APART, tile.of.other, tile.first, TILE, tile.count, x, d);
        }
        if (reach.fits()) {
            fetch_slice(room.reached, APART, positions.one, reach.first, reach.count, reach.first + reach.count, x, d);
            fetch_slice(room.reached_other, APART, positions.other, reach.first, reach.count, reach.first + reach.count, x, d);
        }
        __syncthreads();
        if (reach.fits()) {
            Here one = {room.reached, reach.first}, other = {room.reached_other, reach.first};
            add_scores<BACK>(s, dp, room, one, other, row);
        } else {
            There<T> one = {positions.one, x, d}, other = {positions.other, x, d};
            add_scores<BACK>(s, dp, room, one, other, row);
        }
    }
}

// One slice of sums_i += Σ over the lanes l of weights_i[l]·(rows[l] + near[row_i[l]])
template <class Reader> __device__ void weigh_slice(float (&sums)[HELD], const Room &room, bool of_tile, Reader near) {
    int lane = threadIdx.x % 32;
    for (int l = 0; l < TILE; l++) {
        float own = of_tile ? room.tile[l * APART + lane] : 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) sums[i] += room.weights[i * TILE + l] * (own + near.one(room.rows[i * TILE + l], lane));
    }
}

// Adds up the rows of a tile, where there are such, and what lies at each pair's row of `near`, where there is such.
template <int C, class T>
__device__ void add_weighed(float (&sums)[HELD][C], const float (&weights)[HELD], const Room &room, View<T> tile, int first, int count,
                     View<T> near, Reach reach, const int (&row)[HELD], int d) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < C; c++) {
        int x = c * SLICE;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < HELD && c == 0; i++) {
            room.weights[i * TILE + lane] = weights[i];
            room.rows[i * TILE + lane] = row[i];
        }
        if (tile.at) fetch_slice(room.tile, APART, tile, first, TILE, count, x, d);
        if (near.at && reach.fits())
            fetch_slice(room.reached, APART, near, reach.first, reach.count, reach.first + reach.count, x, d);
        __syncthreads();
        float part[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) part[i] = sums[i][c];
        if (!near.at) weigh_slice(part, room, tile.at, Nowhere());
        else if (reach.fits()) weigh_slice(part, room, tile.at, Here{room.reached, reach.first});
        else weigh_slice(part, room, tile.at, There<T>{near, x, d});
#pragma unroll
        for (int i = 0; i < HELD; i++) sums[i][c] = part[i];
    }
}

// What a warp holds, times a factor each, to rows `first` and on of `rows`.
template <int C, class T>
__device__ void put_held(T *to, int stride, const float (&sums)[HELD][C], const float (&factor)[HELD], int first, int rows, int d) {
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int c = 0; c < C; c++) {
            int x = threadIdx.x % 32 + SLICE * c;
            if (first + i < rows && x < d) store(to[(u64)(first + i) * stride + x], sums[i][c] * factor[i]);
        }
}

// What a block that holds queries begins with.
template <int C> struct Asking {
    int place[HELD], low, high;
    float top[HELD], total[HELD], mean[HELD], sum[HELD][C];

    __device__ Asking(const Pair &p, int first) {
        int warp = threadIdx.x / 32, any = place_of(p, first + threadIdx.x % ALL_HELD);
        low = warp_lowest(any);
        high = warp_highest(any);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            place[i] = place_of(p, first + warp * HELD + i);
            top[i] = -1e30f;
            total[i] = mean[i] = 0.0f;
#pragma unroll
            for (int c = 0; c < C; c++) sum[i][c] = 0.0f;
        }
    }
};

// p: 8 out; n: 9 its stride
template <int C, class T> __device__ void disentangled(const Args &a) {
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * ALL_HELD;
    Positions<T> positions;
    Pair p = pair_among(a, head, row, positions);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(float, shared);
    Room room = room_of(shared);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = head * p.d;
    View<T> q = view<T>(a, 0, p.q0, column), k = view<T>(a, 1, p.k0, column), v = view<T>(a, 2, p.k0, column);
    Both<T> keys_first = {positions.of.other, positions.of.one};
    Asking<C> mine(p, first);
    Rows<T> asking = {{q, q}, first, p.queries};
    for (int at = 0; at < p.keys; at += TILE) {
        int j = at + lane, near[HELD];
        float e[HELD], none[HELD];
        Reach reach = positions.reach(mine.low - (min(at + TILE, p.keys) - 1), mine.high - at);
#pragma unroll
        for (int i = 0; i < HELD; i++) near[i] = positions.at[mine.place[i] - min(j, p.keys - 1)];
        Rows<T> tile = {{k, v}, at, p.keys};
        meet<false, C>(e, none, room, asking, tile, keys_first, reach, near, p.d);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            float s = j < p.keys ? e[i] * p.scale : -1e30f;
            float new_top = fmaxf(mine.top[i], warp_max(s)), shrink = expf(mine.top[i] - new_top);
            e[i] = j < p.keys ? expf(s - new_top) : 0.0f;
            mine.top[i] = new_top;
            mine.total[i] = mine.total[i] * shrink + warp_sum(e[i]);
            e[i] *= p.kept(first + warp * HELD + i, j);
#pragma unroll
            for (int c = 0; c < C; c++) mine.sum[i][c] *= shrink;
        }
        View<T> no_positions = {0, 0};
        add_weighed<C>(mine.sum, e, room, v, at, p.keys, no_positions, reach, near, p.d);
    }
    float factor[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) factor[i] = 1.0f / mine.total[i];
    put_held<C>((T *)a.p[8] + (u64)p.q0 * a.n[9] + column, a.n[9], mine.sum, factor, first + warp * HELD, p.queries, p.d);
}

// As `backward_queries` of plain attention. p: 8 dq, 9 logs, 10 means; n: 9 stride of dq
template <int C, class T> __device__ void disentangled_backward_queries(const Args &a) {
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * ALL_HELD;
    Positions<T> positions;
    Pair p = pair_among(a, head, row, positions);
    if (first >= p.queries) return;
    DYNAMIC_SHARED(float, shared);
    Room room = room_of(shared);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = head * p.d;
    View<T> q = view<T>(a, 0, p.q0, column), k = view<T>(a, 1, p.k0, column);
    View<T> v = view<T>(a, 2, p.k0, column), o = view<T>(a, 3, p.q0, column);
    Both<T> keys_first = {positions.of.other, positions.of.one};
    Asking<C> mine(p, first);
    Rows<T> asking = {{q, o}, first, p.queries};
    for (int pass = 0; pass < 2; pass++) {
        for (int at = 0; at < p.keys; at += TILE) {
            int j = at + lane, near[HELD];
            float s[HELD], dp[HELD];
            Reach reach = positions.reach(mine.low - (min(at + TILE, p.keys) - 1), mine.high - at);
#pragma unroll
            for (int i = 0; i < HELD; i++) near[i] = positions.at[mine.place[i] - min(j, p.keys - 1)];
            Rows<T> tile = {{k, v}, at, p.keys};
            meet<true, C>(s, dp, room, asking, tile, keys_first, reach, near, p.d);
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                bool sees = j < p.keys;
                s[i] = sees ? s[i] * p.scale : -1e30f;
                dp[i] *= p.kept(first + warp * HELD + i, j);
                if (pass == 0) {
                    float new_top = fmaxf(mine.top[i], warp_max(s[i])), shrink = expf(mine.top[i] - new_top);
                    float e = sees ? expf(s[i] - new_top) : 0.0f;
                    mine.top[i] = new_top;
                    mine.total[i] = mine.total[i] * shrink + warp_sum(e);
                    mine.mean[i] = mine.mean[i] * shrink + warp_sum(e * dp[i]);
                } else {
                    dp[i] = sees ? expf(s[i] - mine.top[i]) * (dp[i] - mine.mean[i]) * p.scale : 0.0f;
                }
            }
            if (pass == 1) add_weighed<C>(mine.sum, dp, room, k, at, p.keys, keys_first.one, reach, near, p.d);
        }
#pragma unroll
        for (int i = 0; i < HELD && pass == 0; i++) {
            mine.top[i] += logf(mine.total[i]);
            mine.mean[i] /= mine.total[i];
        }
    }
    float ones[HELD], *logs = (float *)a.p[9], *means = (float *)a.p[10];
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        int query = first + warp * HELD + i;
        ones[i] = 1.0f;
        if (lane > 0 || query >= p.queries) continue;
        logs[p.stats + query] = mine.top[i];
        means[p.stats + query] = mine.mean[i];
    }
    put_held<C>((T *)a.p[8] + (u64)p.q0 * a.n[9] + column, a.n[9], mine.sum, ones, first + warp * HELD, p.queries, p.d);
}

// As `backward_keys` of plain attention. p: 8 dk, 9 logs, 10 means, 11 dv; n: 9 and 10 strides of dk and dv
template <int C, class T> __device__ void disentangled_backward_keys(const Args &a) {
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * ALL_HELD;
    Positions<T> positions;
    Pair p = pair_among(a, head, row, positions);
    if (first >= p.keys) return;
    DYNAMIC_SHARED(float, shared);
    Room room = room_of(shared);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = head * p.d, last = min(first + ALL_HELD, p.keys) - 1;
    View<T> q = view<T>(a, 0, p.q0, column), k = view<T>(a, 1, p.k0, column);
    View<T> v = view<T>(a, 2, p.k0, column), o = view<T>(a, 3, p.q0, column);
    const float *logs = (const float *)a.p[9] + p.stats, *means = (const float *)a.p[10] + p.stats;
    float dk[HELD][C] = {}, dv[HELD][C] = {};
    Rows<T> answering = {{k, v}, first, p.keys};
    for (int at = 0; at < p.queries; at += TILE) {
        int query = at + lane, place = place_of(p, query), near[HELD];
        float prob[HELD], ds[HELD];
        bool asks = query < p.queries;
        Reach reach = positions.reach(warp_lowest(place) - last, warp_highest(place) - first);
#pragma unroll
        for (int i = 0; i < HELD; i++) near[i] = positions.at[place - min(first + warp * HELD + i, p.keys - 1)];
        Rows<T> tile = {{q, o}, at, p.queries};
        meet<true, C>(prob, ds, room, answering, tile, positions.of, reach, near, p.d);
        float log = asks ? logs[query] : 0.0f, mean = asks ? means[query] : 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            int j = first + warp * HELD + i;
            bool sees = asks && j < p.keys;
            float kept = p.kept(query, j);
            prob[i] = sees ? expf(prob[i] * p.scale - log) : 0.0f;
            ds[i] = sees ? prob[i] * (ds[i] * kept - mean) * p.scale : 0.0f;
            prob[i] *= kept;
        }
        View<T> no_positions = {0, 0};
        add_weighed<C>(dv, prob, room, o, at, p.queries, no_positions, reach, near, p.d);
        add_weighed<C>(dk, ds, room, q, at, p.queries, positions.of.one, reach, near, p.d);
    }
    float ones[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) ones[i] = 1.0f;
    put_held<C>((T *)a.p[8] + (u64)p.k0 * a.n[9] + column, a.n[9], dk, ones, first + warp * HELD, p.keys, p.d);
    put_held<C>((T *)a.p[11] + (u64)p.k0 * a.n[10] + column, a.n[10], dv, ones, first + warp * HELD, p.keys, p.d);
}

// One slice of the scores of queries, which lanes hold, with the keys at a warp's distances, and of dout·vᵀ.
template <class Reader>
__device__ void add_diagonals(float (&s)[HELD], float (&dp)[HELD], const Room &room, Reader keys, Reader values, const int (&key)[HELD]) {
    int held = threadIdx.x / 32 * HELD * SLICE, own = threadIdx.x % 32 * APART;
#pragma unroll 2
    for (int x = 0; x < SLICE; x += 4) {
        Four q = *(const Four *)(room.tile + own + x), o = *(const Four *)(room.tile_other + own + x);
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            Four pq = *(const Four *)(room.held + held + i * SLICE + x), pk = *(const Four *)(room.held_other + held + i * SLICE + x);
            Four k = keys.four(key[i], x), v = values.four(key[i], x);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[i] += q.x[c] * (k.x[c] + pk.x[c]) + pq.x[c] * k.x[c];
                dp[i] += o.x[c] * v.x[c];
            }
        }
    }
}

// partial[group][distance] = Σ over the rows of a group of what the gradients of scores give the queries and keys of that
// distance's position. p: 8 partial, 9 logs, 10 means; n: 6 the furthest distance, 9 rows, 10 rows of a group, 12 columns
template <int C, class T> __device__ void disentangled_backward_positions(const Args &a) {
    int head = blockIdx.y, reach = a.n[6], first = (int)blockIdx.x * ALL_HELD - reach;
    int last = min(first + ALL_HELD - 1, reach), first_row = blockIdx.z * a.n[10];
    DYNAMIC_SHARED(float, shared);
    Room room = room_of(shared);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float dqueries[HELD][C] = {}, dkeys[HELD][C] = {};
    for (int row = first_row; row < min(first_row + a.n[10], a.n[9]); row++) {
        Positions<T> positions;
        Pair p = pair_among(a, head, row, positions);
        int column = head * p.d;
        View<T> q = view<T>(a, 0, p.q0, column), k = view<T>(a, 1, p.k0, column);
        View<T> v = view<T>(a, 2, p.k0, column), o = view<T>(a, 3, p.q0, column);
        const float *logs = (const float *)a.p[9] + p.stats, *means = (const float *)a.p[10] + p.stats;
        // Queries that have keys at these distances, where places are the queries' own numbers.
        int from = p.places ? 0 : max(0, first), to = p.places ? p.queries : min(p.queries, p.keys + last);
        for (int at = from; at < to; at += TILE) {
            int query = at + lane, place = place_of(p, query), low = max(0, warp_lowest(place) - last), key[HELD];
            int high = min(p.keys - 1, warp_highest(place) - first);
            if (low > high) continue; // of the whole block
            float s[HELD] = {}, dp[HELD] = {};
            Reach keys = {low, high - low + 1};
#pragma unroll
            for (int i = 0; i < HELD; i++) key[i] = min(max(place - first - warp * HELD - i, low), high);
            for (int x = 0; x < C * SLICE; x += SLICE) {
                __syncthreads();
                for (int i = threadIdx.x; i < ALL_HELD * SLICE; i += blockDim.x) {
                    There<T> one = {positions.of.one, x, p.d}, other = {positions.of.other, x, p.d};
                    int position = positions.at[min(first + i / SLICE, last)];
                    room.held[i] = one.one(position, i % SLICE);
                    room.held_other[i] = other.one(position, i % SLICE);
                }
                fetch_slice(room.tile, APART, q, at, TILE, p.queries, x, p.d);
                fetch_slice(room.tile_other, APART, o, at, TILE, p.queries, x, p.d);
                if (keys.fits()) {
                    fetch_slice(room.reached, APART, k, keys.first, keys.count, p.keys, x, p.d);
                    fetch_slice(room.reached_other, APART, v, keys.first, keys.count, p.keys, x, p.d);
                }
                __syncthreads();
                if (keys.fits()) add_diagonals(s, dp, room, Here{room.reached, keys.first}, Here{room.reached_other, keys.first}, key);
                else add_diagonals(s, dp, room, There<T>{k, x, p.d}, There<T>{v, x, p.d}, key);
            }
            bool asks = query < p.queries;
            float log = asks ? logs[query] : 0.0f, mean = asks ? means[query] : 0.0f;
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                int distance = first + warp * HELD + i, j = place - distance;
                bool sees = asks && distance <= last && j >= 0 && j < p.keys;
                s[i] = sees ? expf(s[i] * p.scale - log) * (dp[i] * p.kept(query, j) - mean) * p.scale : 0.0f;
            }
            View<T> none = {0, 0};
            if (positions.of.other.at) add_weighed<C>(dkeys, s, room, q, at, p.queries, none, keys, key, p.d);
            if (positions.of.one.at) add_weighed<C>(dqueries, s, room, none, at, p.queries, k, keys, key, p.d);
        }
    }
    float ones[HELD], *partial = (float *)a.p[8] + (u64)blockIdx.z * (2 * reach + 1) * a.n[12] + head * a.n[4];
    int mine = first + warp * HELD + reach;
#pragma unroll
    for (int i = 0; i < HELD; i++) ones[i] = 1.0f;
    if (a.p[12]) put_held<C>(partial, a.n[12], dqueries, ones, mine, last + reach + 1, a.n[4]);
    if (a.p[12]) partial += a.n[5] * a.n[4];
    if (a.p[13]) put_held<C>(partial, a.n[12], dkeys, ones, mine, last + reach + 1, a.n[4]);
}

// Of each position, the sum over groups and over the distances that have it, which begin where `starts` says. p: 0 dpositions,
// 1 partial, 2 starts; n: 0 positions, 1 columns, 2 stride of dpositions, 3 groups, 4 distances
template <class T> __device__ void disentangled_sum_positions(const Args &a) {
    Piece at = piece_of(a.n[0], a.n[1]);
    if (!at.there) return;
    const u32 *starts = (const u32 *)a.p[2];
    float sum[CHUNK] = {}, part[CHUNK];
    for (int group = 0; group < a.n[3]; group++)
        for (u32 distance = starts[at.row]; distance < starts[at.row + 1]; distance++) {
            load_chunk(part, (const float *)a.p[1] + ((u64)group * a.n[4] + distance) * a.n[1] + at.j, at.there);
#pragma unroll
            for (int i = 0; i < CHUNK; i++) sum[i] += part[i];
        }
    store_chunk((T *)a.p[0] + (u64)at.row * a.n[2] + at.j, sum, at.there);
}
KERNEL_OF_BOTH(disentangled_sum_positions)

#define DISENTANGLED_KERNEL(name, C)                                                                                          \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name##_##C##_f32(Args a) { name<C, float>(a); }                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32) name##_##C##_bf16(Args a) { name<C, bf16>(a); }
#define DISENTANGLED_KERNELS(C)                              \
    DISENTANGLED_KERNEL(disentangled, C)                     \
    DISENTANGLED_KERNEL(disentangled_backward_queries, C)    \
    DISENTANGLED_KERNEL(disentangled_backward_keys, C)       \
    DISENTANGLED_KERNEL(disentangled_backward_positions, C)
DISENTANGLED_KERNELS(1)
DISENTANGLED_KERNELS(2)
DISENTANGLED_KERNELS(4)
DISENTANGLED_KERNELS(8)
