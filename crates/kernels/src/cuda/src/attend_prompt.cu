// Attention of several tokens, after `store` has rotated them and appended them to the cache.
//
// The rows of a block are queries that share a key/value head, token by token; keys and values pass through shared memory in tiles, and the softmax is carried
// along, so that nothing is as large as the context squared. Each thread has four rows and every sixteenth column.

struct Store {
    float* q;             // [tokens, heads, HEAD]: rotated in place
    const float* k;       // [tokens, kv_heads, HEAD]
    const float* v;       // [tokens, kv_heads, HEAD]
    u8* keys;             // as Attend
    u8* values;
    const float2* turns;  // as Attend
    const u32* position;  // 1: of the first token
    u32 heads;
    u32 kv_heads;
    u32 context;
    u32 pairs;
};

// A token a block.
extern "C" __global__ void __launch_bounds__(256) store(const __grid_constant__ Store s) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u32 position = *s.position + blockIdx.x;
    const float2* turns = s.turns + u64(position) * s.pairs;
    float* q = s.q + u64(blockIdx.x) * s.heads * HEAD;
    for (u32 i = threadIdx.x; i < s.heads * s.pairs; i += 256) {
        float* head = q + i / s.pairs * HEAD;
        const u32 c = i % s.pairs;
        const float2 v = turned(make_float2(head[c], head[c + s.pairs]), turns[c]);
        head[c] = v.x;
        head[c + s.pairs] = v.y;
    }
    const u64 at = u64(blockIdx.x) * s.kv_heads * HEAD;
    for (u32 i = threadIdx.x; i < s.kv_heads * TWOS; i += 256) {
        const u32 head = i / TWOS;
        const uint2 c = two_columns(i % TWOS, s.pairs);
        const u64 row = (u64(head) * s.context + position) * HEAD * CACHE_BYTES;
        const float *k = s.k + at + head * HEAD, *v = s.v + at + head * HEAD;
        float2 key = make_float2(k[c.x], k[c.y]);
        if (i % TWOS < s.pairs) key = turned(key, turns[i % TWOS]);
        to_cache(s.keys + row, c.x, key.x);
        to_cache(s.keys + row, c.y, key.y);
        to_cache(s.values + row, c.x, v[c.x]);
        to_cache(s.values + row, c.y, v[c.y]);
    }
}

struct AttendPrompt {
    const float* q;    // [tokens, heads, HEAD]
    float* out;        // the same
    const u8* keys;    // as Attend
    const u8* values;
    const u32* position;  // 1: of the first token
    u32 tokens;
    u32 heads;
    u32 group;  // query heads that share a key/value head
    u32 context;
    u32 window;
    float scale;
    float cap;
};

constexpr u32 QUERIES = 64;
constexpr u32 TILE = 32;
constexpr u32 PROMPT_THREADS = 256;
constexpr u32 ROWS_EACH = QUERIES / 16, KEYS_EACH = TILE / 16, COLUMNS_EACH = ceil_div(HEAD, 16);
constexpr u32 PITCH = HEAD + 4;  // of a row in shared memory: neighbours begin in other banks
// Bytes of shared memory.
constexpr u32 PROMPT_SHARED = (QUERIES * PITCH + 2 * TILE * PITCH + QUERIES * (TILE + 1)) * 4;

extern __shared__ __align__(128) u8 shared_memory[];

// Rows of keys or values from position `from` on, zeros beyond `to`.
__device__ void load_tile(const u8* rows, u32 from, u32 to, float* tile) {
    for (u32 i = threadIdx.x; i < TILE * (HEAD / 8); i += PROMPT_THREADS) {
        const u32 r = i / (HEAD / 8), run = i % (HEAD / 8);
        float v[8] = {};
        if (from + r < to) Cached::eight(rows + u64(from + r) * HEAD * CACHE_BYTES, HEAD, run, v);
#pragma unroll
        for (u32 k = 0; k < 8; k++) tile[r * PITCH + 8 * run + k] = v[k];
    }
}

extern "C" __global__ void __launch_bounds__(PROMPT_THREADS) attend_prompt(const __grid_constant__ AttendPrompt a) {
    float* const q = reinterpret_cast<float*>(shared_memory);
    float* const keys = q + QUERIES * PITCH;
    float* const values = keys + TILE * PITCH;
    float* const weights = values + TILE * PITCH;  // [QUERIES][TILE + 1]
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u32 start = *a.position;
    const u32 tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const u32 rows = a.tokens * a.group, first = blockIdx.x * QUERIES;
    const u64 cache = u64(blockIdx.y) * a.context * HEAD * CACHE_BYTES;
    // Row r is the query of token r / group and of head r % group.
    for (u32 i = threadIdx.x; i < QUERIES * HEAD; i += PROMPT_THREADS) {
        const u32 r = first + i / HEAD, c = i % HEAD;
        const u64 head = u64(r / a.group) * a.heads + blockIdx.y * a.group + r % a.group;
        q[i / HEAD * PITCH + c] = r < rows ? a.q[head * HEAD + c] * a.scale : 0;
    }
    // Positions that any of the block's rows sees.
    const u32 last = min(first + QUERIES, rows) - 1;
    const u32 seen_first = start + first / a.group + 1, to = start + last / a.group + 1;
    const u32 from = seen_first > a.window ? seen_first - a.window : 0;

    float sums[ROWS_EACH][COLUMNS_EACH] = {}, largest[ROWS_EACH], weight[ROWS_EACH] = {};
    u32 begins[ROWS_EACH], ends[ROWS_EACH];
#pragma unroll
    for (u32 i = 0; i < ROWS_EACH; i++) {
        largest[i] = LEAST;
        const u32 r = first + ty * ROWS_EACH + i;
        ends[i] = start + r / a.group + 1;
        begins[i] = ends[i] > a.window ? ends[i] - a.window : 0;
    }
    for (u32 base = from; base < to; base += TILE) {
        __syncthreads();
        load_tile(a.keys + cache, base, to, keys);
        load_tile(a.values + cache, base, to, values);
        __syncthreads();
        float s[ROWS_EACH][KEYS_EACH] = {};
        for (u32 c = 0; c < HEAD; c += 4) {
            float4 k[KEYS_EACH];
#pragma unroll
            for (u32 j = 0; j < KEYS_EACH; j++) k[j] = *reinterpret_cast<const float4*>(keys + (tx + 16 * j) * PITCH + c);
#pragma unroll
            for (u32 i = 0; i < ROWS_EACH; i++) {
                const float4 x = *reinterpret_cast<const float4*>(q + (ty * ROWS_EACH + i) * PITCH + c);
#pragma unroll
                for (u32 j = 0; j < KEYS_EACH; j++) s[i][j] = fmaf(x.x, k[j].x, fmaf(x.y, k[j].y, fmaf(x.z, k[j].z, fmaf(x.w, k[j].w, s[i][j]))));
            }
        }
#pragma unroll
        for (u32 i = 0; i < ROWS_EACH; i++) {
            float top = largest[i];
#pragma unroll
            for (u32 j = 0; j < KEYS_EACH; j++) {
                const u32 p = base + tx + 16 * j;
                s[i][j] = p >= begins[i] && p < ends[i] ? capped(s[i][j], a.cap) : LEAST;
                top = fmaxf(top, s[i][j]);
            }
#pragma unroll
            for (u32 d = 8; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
            const float shrink = expf(largest[i] - top);
            largest[i] = top;
            float sum = 0;
#pragma unroll
            for (u32 j = 0; j < KEYS_EACH; j++) {
                const float w = s[i][j] > LEAST ? expf(s[i][j] - top) : 0;
                weights[(ty * ROWS_EACH + i) * (TILE + 1) + tx + 16 * j] = w;
                sum += w;
            }
#pragma unroll
            for (u32 d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
            weight[i] = fmaf(weight[i], shrink, sum);
#pragma unroll
            for (u32 j = 0; j < COLUMNS_EACH; j++) sums[i][j] *= shrink;
        }
        __syncwarp();
        // A row's weights were written by its own half of a warp.
        for (u32 p = 0; p < TILE; p++) {
            float w[ROWS_EACH];
#pragma unroll
            for (u32 i = 0; i < ROWS_EACH; i++) w[i] = weights[(ty * ROWS_EACH + i) * (TILE + 1) + p];
#pragma unroll
            for (u32 j = 0; j < COLUMNS_EACH; j++) {
                const u32 c = tx + 16 * j;
                const float v = HEAD % 16 == 0 || c < HEAD ? values[p * PITCH + c] : 0;
#pragma unroll
                for (u32 i = 0; i < ROWS_EACH; i++) sums[i][j] = fmaf(w[i], v, sums[i][j]);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < ROWS_EACH; i++) {
        const u32 r = first + ty * ROWS_EACH + i;
        if (r >= rows) continue;
        const u64 head = u64(r / a.group) * a.heads + blockIdx.y * a.group + r % a.group;
#pragma unroll
        for (u32 j = 0; j < COLUMNS_EACH; j++)
            if (tx + 16 * j < HEAD) a.out[head * HEAD + tx + 16 * j] = sums[i][j] / weight[i];
    }
}
