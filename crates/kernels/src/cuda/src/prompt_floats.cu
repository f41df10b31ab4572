// Attention of several tokens over keys and values of 32 bits. Each thread has four rows and every sixteenth column.

constexpr u32 QUERIES = 64;
constexpr u32 TILE = 32;
constexpr u32 ROWS_EACH = QUERIES / 16, KEYS_EACH = TILE / 16, COLUMNS_EACH = ceil_div(HEAD, 16);
constexpr u32 PITCH = HEAD + 4;  // of a row in shared memory: neighbours begin in other banks
// Bytes of shared memory.
constexpr u32 PROMPT_SHARED = (QUERIES * PITCH + 2 * TILE * PITCH + QUERIES * (TILE + 1)) * 4;

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
