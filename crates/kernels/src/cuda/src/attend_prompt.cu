// Attention of several tokens: `store` rotates them and appends them to the cache, then `attend_prompt` (prompt_floats.cu, prompt_halves.cu) attends.
//
// The rows of a block are queries that share a key/value head, token by token; keys and values pass through shared memory in tiles, and the softmax is carried
// along, so that nothing is as large as the context squared.

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

constexpr u32 PROMPT_THREADS = 256;

extern __shared__ __align__(128) u8 shared_memory[];
