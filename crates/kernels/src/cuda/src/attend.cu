// Attention of one token: rotates it, appends it to the cache and attends to all that is there, in one launch.
//
// A block takes a span of the context for one key/value head and the query heads that share it. How many spans there are does not depend on the context, so
// that a launch can be recorded; spans get longer with it. Groups of lanes hold a row of keys or values between them, 8 columns a lane, and carry their own
// softmax; they are joined in the warp, in the block, and over the spans, for which each block of a head takes a piece of its columns: blocks tell each other
// by words that say themselves whether they are there (flow.cu).
//
// The host defines
//
//   HEAD        width of a head, a multiple of 8, 256 at most
//   GROUP       query heads that share a key/value head and are taken together, 8 at most
//   CACHE_F32   1: keys and values are f32, 0: f16
//   SPANS       parts that the context is cut in
//   PIECES      parts that a head's columns are joined in, whole fours
//   ATTEND_WARPS  warps of a block
//   HEADS_NORMED  1: heads of queries and keys may be normed before they are rotated

struct Attend {
    const float* q;       // [heads, HEAD]
    const float* k;       // [kv_heads, HEAD]
    const float* v;       // [kv_heads, HEAD]
    float* out;           // [heads, HEAD]; may be q
    u8* keys;             // [kv_heads, context, HEAD]
    u8* values;           // [kv_heads, context, HEAD]
    const float2* turns;  // [context, pairs]: cosines and sines; columns i and i + pairs turn together
    const u32* position;  // 1: how many tokens there are before
    float* partial;       // [gridDim.x, GROUP, PIECES, SPANS, HEAD / PIECES + 4]: sums, the sum of weights, the largest score, and two zeros; EMPTY between launches
    u32 context;
    u32 window;  // positions seen, the own one included
    u32 pairs;
    u32 shares;  // launches of GROUP heads for a key/value head; gridDim.x is kv_heads * shares
    float scale;
    float cap;     // scores are cap * tanh(score / cap); 0 for none
    float* words;         // [heads, HEAD], or null: the result once more, for blocks of the next launch that wait for it (flow.cu)
    const float* q_norm;  // [HEAD], where HEADS_NORMED: heads of queries are divided by their root mean squares and multiplied by this; or null
    const float* k_norm;  // [HEAD], the same of keys
    float eps;            // added to mean squares
    const float* herald;  // null, or q, k and v are words that blocks of the launch before pass, and this is one that they pass before
};

#if CACHE_F32
constexpr u32 CACHE_BYTES = 4;
using Cached = Weights<F32>;
#else
constexpr u32 CACHE_BYTES = 2;
using Cached = Weights<F16>;
#endif

__device__ void to_cache(u8* row, u32 column, float v) {
#if CACHE_F32
    reinterpret_cast<float*>(row)[column] = v;
#else
    reinterpret_cast<u16*>(row)[column] = half_bits(v);
#endif
}

// The i-th two columns of a head: those that turn together, and then those that do not.
__device__ uint2 two_columns(u32 i, u32 pairs) { return i < pairs ? make_uint2(i, i + pairs) : make_uint2(2 * i, 2 * i + 1); }

// Two columns turned.
__device__ float2 turned(float2 v, float2 t) { return make_float2(v.x * t.x - v.y * t.y, v.y * t.x + v.x * t.y); }

__device__ float capped(float score, float cap) { return cap > 0 ? cap * tanhf(score / cap) : score; }

__host__ __device__ constexpr u32 power_of_two(u32 n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

constexpr u32 ATTEND_THREADS = 32 * ATTEND_WARPS;
constexpr u32 LANES = power_of_two(HEAD / 8);  // that hold a row
constexpr u32 GROUPS = ATTEND_THREADS / LANES;
constexpr u32 AT_ONCE = 2;  // rows of each group
constexpr u32 STEP = AT_ONCE * GROUPS;  // and of a block
constexpr u32 ROW_BYTES = HEAD * CACHE_BYTES;
constexpr u32 AHEAD = 65536 / ROW_BYTES;  // rows on their way to the second-level cache: those of two steps do not fill the memory's latency
constexpr float LEAST = -3.0e38f;
constexpr u32 PIECE = HEAD / PIECES;
constexpr u32 PIECE_QUADS = PIECE / 4 + 1;
constexpr u32 TWOS = HEAD / 2;                                               // of a row
constexpr u32 TWOS_EACH = ceil_div((GROUP + 2) * TWOS, ATTEND_THREADS);  // of queries, key and value
constexpr u32 SQUARES = TWOS % 32 == 0 ? TWOS / 32 : TWOS;                   // sums of squares of a row: of warps, or where those have parts of two rows, of threads
static_assert(HEAD % 8 == 0 && HEAD <= 256 && GROUP <= 8, "a group of lanes fits in a warp, and its sums in registers");

// Eight columns of a row of keys or values.
struct Row {
    uint4 w[CACHE_BYTES / 2];
};

__device__ Row load_row(const u8* rows, u32 position, u32 column) {
    Row r;
    const uint4* at = reinterpret_cast<const uint4*>(rows + (u64(position) * HEAD + column) * CACHE_BYTES);
#pragma unroll
    for (u32 i = 0; i < CACHE_BYTES / 2; i++) r.w[i] = at[i];
    return r;
}

// Asks for bytes into the second-level cache: a multiple of 16, as their address.
__device__ void prefetch(const u8* from, u32 bytes) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory"); }

__device__ void values_of(const Row& r, float* v) {
#pragma unroll
    for (u32 i = 0; i < CACHE_BYTES / 2; i++) Cached::values(r.w[i], v + i * Cached::COLUMNS);
}

extern "C" __global__ void __launch_bounds__(ATTEND_THREADS) attend(const __grid_constant__ Attend a) {
    __shared__ float room[ATTEND_WARPS][GROUP][HEAD + 2];
    __shared__ __align__(16) float spans[SPANS][PIECE + 4];
    __shared__ __align__(16) u8 own[2][ROW_BYTES];
    __shared__ float2 turns[HEAD / 2];
#if HEADS_NORMED
    __shared__ float norms[2][HEAD];  // of queries and keys
#endif
    // An FFN that waits for words reads weights until they are there.
    if (a.words) let_next_kernel_start();
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 column = threadIdx.x % LANES * 8, group = threadIdx.x / LANES;
    const bool holds = column < HEAD;
    const u32 head = blockIdx.x / a.shares;
    const u64 queries = u64(blockIdx.x) * GROUP * HEAD;
    u8* const keys = a.keys + u64(head) * a.context * ROW_BYTES;
    u8* const values = a.values + u64(head) * a.context * ROW_BYTES;

    // Neither the position nor what earlier steps have put in the cache is written by a kernel that may still run.
    const u32 position = *a.position, seen = position + 1;
    const u32 oldest = seen > a.window ? seen - a.window : 0;
    const u32 span = ceil_div(seen - oldest, SPANS);
    const u32 from = min(oldest + span * blockIdx.y, seen), to = min(from + span, seen);
    for (u32 i = threadIdx.x; i < a.pairs; i += ATTEND_THREADS) turns[i] = a.turns[u64(position) * a.pairs + i];
#if HEADS_NORMED
    if (a.q_norm)
        for (u32 i = threadIdx.x; i < 2 * HEAD; i += ATTEND_THREADS) norms[i / HEAD][i % HEAD] = i < HEAD ? a.q_norm[i] : a.k_norm[i - HEAD];
#endif
    Row next_k[AT_ONCE] = {}, next_v[AT_ONCE] = {};
#pragma unroll
    for (u32 u = 0; u < AT_ONCE; u++) {
        const u32 p = from + u * GROUPS + group;
        if (!holds || p >= min(to, position)) continue;
        next_k[u] = load_row(keys, p, column);
        next_v[u] = load_row(values, p, column);
    }
    const bool appends = from <= position && position < to;
    const u32 rows = appends ? GROUP + 2 : GROUP;
    // Row r of those that this block reads: queries, the key and the value.
    const auto row = [&](u32 r) { return r < GROUP ? a.q + queries + r * HEAD : (r == GROUP ? a.k : a.v) + u64(head) * HEAD; };
    // For long there is nothing to be had: one thread asks, and seldom. Then one lane of each warp that has queries does.
    if (a.herald && threadIdx.x == 0)
        while (is_empty(peek(a.herald))) __nanosleep(400);
    __syncthreads();
    if (!a.herald) wait_for_previous_kernel();
    else if (lane == 0 && threadIdx.x < GROUP * TWOS) await_word(row(threadIdx.x / TWOS) + two_columns(threadIdx.x % TWOS, a.pairs).x);
    __syncwarp();
    let_next_kernel_start();
    // Rows of earlier steps, of those from `first` on.
    const auto ask = [&](u32 first, u32 count) {
        const u32 end = min(first + count, min(to, position));
        if (threadIdx.x > 0 || first >= end) return;
        prefetch(keys + u64(first) * ROW_BYTES, (end - first) * ROW_BYTES);
        prefetch(values + u64(first) * ROW_BYTES, (end - first) * ROW_BYTES);
    };
    ask(from + STEP, AHEAD);

    float2 twos[TWOS_EACH];
#pragma unroll
    for (u32 u = 0; u < TWOS_EACH; u++) twos[u] = make_float2(__uint_as_float(EMPTY), 0);
    bool missing;
    do {
        missing = false;
#pragma unroll
        for (u32 u = 0; u < TWOS_EACH; u++) {
            const u32 i = threadIdx.x + u * ATTEND_THREADS;
            if (i >= rows * TWOS || !(is_empty(twos[u].x) || is_empty(twos[u].y))) continue;
            const uint2 c = two_columns(i % TWOS, a.pairs);
            twos[u] = make_float2(peek(row(i / TWOS) + c.x), peek(row(i / TWOS) + c.y));
        }
#pragma unroll
        for (u32 u = 0; u < TWOS_EACH; u++) missing |= threadIdx.x + u * ATTEND_THREADS < rows * TWOS && (is_empty(twos[u].x) || is_empty(twos[u].y));
    } while (a.herald && missing);

    float* const rotated_q = &room[0][0][0];
#if HEADS_NORMED
    if (a.q_norm) {
        float* const squares = rotated_q + GROUP * HEAD;
        static_assert((GROUP + 1) * SQUARES <= (ATTEND_WARPS - 1) * GROUP * (HEAD + 2), "there is room");
#pragma unroll
        for (u32 u = 0; u < TWOS_EACH; u++) {
            const u32 i = threadIdx.x + u * ATTEND_THREADS;
            float s = twos[u].x * twos[u].x + twos[u].y * twos[u].y;
            if (SQUARES < TWOS)
#pragma unroll
                for (u32 d = 16; d > 0; d /= 2) s += __shfl_xor_sync(~0u, s, d);
            const u32 to = SQUARES < TWOS ? i / 32 : i;
            if (to < (GROUP + 1) * SQUARES && (SQUARES == TWOS || lane == 0)) squares[to] = s;
        }
        __syncthreads();
#pragma unroll
        for (u32 u = 0; u < TWOS_EACH; u++) {
            const u32 i = threadIdx.x + u * ATTEND_THREADS, r = i / TWOS;
            if (r > GROUP) break;
            float sum = 0;
            for (u32 s = 0; s < SQUARES; s++) sum += squares[r * SQUARES + s];
            const float factor = 1.0f / sqrtf(sum / HEAD + a.eps);
            const uint2 c = two_columns(i % TWOS, a.pairs);
            twos[u].x *= factor * norms[r / GROUP][c.x];
            twos[u].y *= factor * norms[r / GROUP][c.y];
        }
    }
#endif
#pragma unroll
    for (u32 u = 0; u < TWOS_EACH; u++) {
        const u32 i = threadIdx.x + u * ATTEND_THREADS, r = i / TWOS;
        if (r >= rows) break;
        const uint2 c = two_columns(i % TWOS, a.pairs);
        float2 v = twos[u];
        if (r <= GROUP && i % TWOS < a.pairs) v = turned(v, turns[i % TWOS]);
        if (r < GROUP) {
            rotated_q[r * HEAD + c.x] = v.x * a.scale;
            rotated_q[r * HEAD + c.y] = v.y * a.scale;
        } else {
            u8* const cached = (r == GROUP ? keys : values) + u64(position) * ROW_BYTES;
            u8* const both[2] = {own[r - GROUP], cached};
#pragma unroll
            for (u32 b = 0; b < 2; b++) {
                to_cache(both[b], c.x, v.x);
                to_cache(both[b], c.y, v.y);
            }
        }
    }
    __syncthreads();
    if (appends)
#pragma unroll
        for (u32 u = 0; u < AT_ONCE; u++) {
            if (!holds || from + u * GROUPS + group != position) continue;
            next_k[u] = load_row(own[0], 0, column);
            next_v[u] = load_row(own[1], 0, column);
        }
    float q[GROUP][8], sums[GROUP][8] = {}, largest[GROUP], weight[GROUP] = {};
#pragma unroll
    for (u32 h = 0; h < GROUP; h++) {
        largest[h] = LEAST;
#pragma unroll
        for (u32 i = 0; i < 8; i++) q[h][i] = holds ? rotated_q[h * HEAD + column + i] : 0;
    }
    __syncthreads();

    for (u32 base = from; base < to; base += STEP) {
        ask(base + STEP + AHEAD, STEP);
        float scores[AT_ONCE][GROUP];
        Row rows[AT_ONCE];
#pragma unroll
        for (u32 u = 0; u < AT_ONCE; u++) {
            float k[8];
            values_of(next_k[u], k);
            rows[u] = next_v[u];
            // The next rows are on their way while these are multiplied.
            const u32 p = base + (AT_ONCE + u) * GROUPS + group;
            if (holds && p < to) {
                next_k[u] = p == position ? load_row(own[0], 0, column) : load_row(keys, p, column);
                next_v[u] = p == position ? load_row(own[1], 0, column) : load_row(values, p, column);
            }
#pragma unroll
            for (u32 h = 0; h < GROUP; h++) {
                float s = 0;
#pragma unroll
                for (u32 i = 0; i < 8; i++) s = fmaf(q[h][i], k[i], s);
                scores[u][h] = s;
            }
        }
#pragma unroll
        for (u32 d = LANES / 2; d > 0; d /= 2)
#pragma unroll
            for (u32 u = 0; u < AT_ONCE; u++)
#pragma unroll
                for (u32 h = 0; h < GROUP; h++) scores[u][h] += __shfl_xor_sync(~0u, scores[u][h], d);
#pragma unroll
        for (u32 h = 0; h < GROUP; h++) {
            float top = largest[h];
#pragma unroll
            for (u32 u = 0; u < AT_ONCE; u++) {
                scores[u][h] = base + u * GROUPS + group < to ? capped(scores[u][h], a.cap) : LEAST;
                top = fmaxf(top, scores[u][h]);
            }
            const float shrink = expf(largest[h] - top);
            largest[h] = top;
            weight[h] *= shrink;
#pragma unroll
            for (u32 i = 0; i < 8; i++) sums[h][i] *= shrink;
        }
#pragma unroll
        for (u32 u = 0; u < AT_ONCE; u++) {
            float v[8];
            values_of(rows[u], v);
#pragma unroll
            for (u32 h = 0; h < GROUP; h++) {
                const float w = scores[u][h] > LEAST ? expf(scores[u][h] - largest[h]) : 0;
                weight[h] += w;
#pragma unroll
                for (u32 i = 0; i < 8; i++) sums[h][i] = fmaf(w, v[i], sums[h][i]);
            }
        }
    }

    // The groups of a warp.
#pragma unroll
    for (u32 h = 0; h < GROUP; h++)
#pragma unroll
        for (u32 d = LANES; d < 32; d *= 2) {
            const float other = __shfl_xor_sync(~0u, largest[h], d);
            const float top = fmaxf(largest[h], other);
            const float shrink = expf(largest[h] - top);
            weight[h] *= shrink;
            weight[h] += __shfl_xor_sync(~0u, weight[h], d);
            largest[h] = top;
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                sums[h][i] *= shrink;
                sums[h][i] += __shfl_xor_sync(~0u, sums[h][i], d);
            }
        }
    if (lane < LANES && holds)
#pragma unroll
        for (u32 h = 0; h < GROUP; h++) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) room[warp][h][column + i] = sums[h][i];
            room[warp][h][HEAD] = largest[h];
            room[warp][h][HEAD + 1] = weight[h];
        }
    __syncthreads();

    // The warps of a block: a quad of sums, or the largest score and the sum of weights, a thread.
    constexpr u32 PARTIAL = SPANS * (PIECE + 4);  // of a piece
    float* const all = a.partial + u64(blockIdx.x) * GROUP * PIECES * PARTIAL;
    for (u32 i = threadIdx.x; i < GROUP * PIECES * PIECE_QUADS; i += ATTEND_THREADS) {
        const u32 piece = i / PIECE_QUADS, quad = i % PIECE_QUADS, h = piece / PIECES;
        const u32 c = quad + 1 == PIECE_QUADS ? HEAD + 1 : piece % PIECES * PIECE + 4 * quad;
        float top = LEAST, v[4] = {};
#pragma unroll
        for (u32 w = 0; w < ATTEND_WARPS; w++) top = fmaxf(top, room[w][h][HEAD]);
#pragma unroll
        for (u32 w = 0; w < ATTEND_WARPS; w++) {
            const float shrink = expf(room[w][h][HEAD] - top);
#pragma unroll
            for (u32 k = 0; k < 4; k++)
                if (k == 0 || c < HEAD) v[k] = fmaf(shrink, room[w][h][c + k], v[k]);
        }
        if (c > HEAD) v[1] = top;
        put(all + piece * PARTIAL + blockIdx.y * (PIECE + 4) + 4 * quad, make_float4(not_empty(v[0]), not_empty(v[1]), not_empty(v[2]), not_empty(v[3])));
    }

    // The spans: a block has every SPANS-th piece.
    for (u32 piece = blockIdx.y; piece < GROUP * PIECES; piece += SPANS) {
        float* const parts = all + piece * PARTIAL;
        for (u32 i = 4 * threadIdx.x; i < PARTIAL; i += 4 * ATTEND_THREADS) {
            float4 v = peek4(parts + i);
            while (is_empty(v)) v = peek4(parts + i);
            put(parts + i, empty4());
            *reinterpret_cast<float4*>(&spans[0][0] + i) = v;
        }
        __syncthreads();
        for (u32 c = threadIdx.x; c < PIECE; c += ATTEND_THREADS) {
            float top = LEAST, sum = 0, weights = 0;
#pragma unroll 16
            for (u32 s = 0; s < SPANS; s++) top = fmaxf(top, spans[s][PIECE + 1]);
#pragma unroll 16
            for (u32 s = 0; s < SPANS; s++) {
                const float shrink = expf(spans[s][PIECE + 1] - top);
                sum = fmaf(shrink, spans[s][c], sum);
                weights = fmaf(shrink, spans[s][PIECE], weights);
            }
            const float result = sum / weights;
            if (a.words) put(a.words + queries + piece * PIECE + c, not_empty(result));
            a.out[queries + piece * PIECE + c] = result;
        }
        __syncthreads();
    }
    // When this launch has ended, so has the one before.
    if (a.herald) wait_for_previous_kernel();
}
