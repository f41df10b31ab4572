// Attention of several tokens over keys and values of 16 bits, by matrix instructions: queries and weights are rounded to 16 bits as well, sums are not.
//
// A warp has 16 rows: their queries, sums and scores stay in its registers, as the instructions want them. Tiles of keys and values come while the ones before are multiplied.

constexpr u32 QUERIES = PROMPT_THREADS / 32 * 16;
constexpr u32 TILE = HEAD <= 128 ? 64 : 32;
constexpr u32 WIDTH = ceil_div(HEAD, 16) * 16;  // with zeros behind
constexpr u32 PITCH = WIDTH + 8;                // of a row in shared memory: neighbours begin in other banks
// Bytes of shared memory.
constexpr u32 PROMPT_SHARED = 2 * 2 * TILE * PITCH * 2;

constexpr float LOG2_E = 1.4426950408889634f;
__device__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ u32 two_half_bits(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// d += a b for a [16, 16] and b [16, 8]. Lane l has columns 2 (l % 4) and the next of rows l / 4 and l / 4 + 8: of a, two columns a register, of both rows, then those 8 columns
// further on; of d, a column a register. Of b it has rows 2 (l % 4) and the next, then those 8 further on, of column l / 4.
__device__ void multiply_tile(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four tiles [8, 8] as b of two instructions: lane l says where row l % 8 of tile l / 8 lies.
__device__ void load_tiles(u32 (&b)[4], const u16* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(u32(__cvta_generic_to_shared(at)))
                 : "memory");
}
__device__ void load_transposed_tiles(u32 (&b)[4], const u16* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(u32(__cvta_generic_to_shared(at)))
                 : "memory");
}

// Begins to fetch rows of keys or values from position `from` on, zeros beyond `to`.
__device__ void fetch_tile(const u8* rows, u32 from, u32 to, u16* tile) {
    for (u32 i = threadIdx.x; i < TILE * (HEAD / 8); i += PROMPT_THREADS) {
        const u32 r = i / (HEAD / 8), run = i % (HEAD / 8), p = min(from + r, to - 1);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(u32(__cvta_generic_to_shared(tile + r * PITCH + 8 * run))),
                     "l"(rows + (u64(p) * HEAD + 8 * run) * CACHE_BYTES), "r"(from + r < to ? 16 : 0)
                     : "memory");
    }
}

extern "C" __global__ void __launch_bounds__(PROMPT_THREADS) attend_prompt(const __grid_constant__ AttendPrompt a) {
    u16* const tiles = reinterpret_cast<u16*>(shared_memory);  // [2][keys, values][TILE][PITCH]
    if (WIDTH > HEAD)
        for (u32 r = threadIdx.x; r < 2 * 2 * TILE; r += PROMPT_THREADS) *reinterpret_cast<uint4*>(tiles + r * PITCH + HEAD) = make_uint4(0, 0, 0, 0);
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u32 start = *a.position;
    const u32 lane = threadIdx.x % 32;
    // The blocks that see most begin first.
    const u32 rows = a.tokens * a.group, first = (gridDim.x - 1 - blockIdx.x) * QUERIES, own = first + threadIdx.x / 32 * 16;
    const u64 cache = u64(blockIdx.y) * a.context * HEAD * CACHE_BYTES;
    const auto end_of = [&](u32 r) { return start + r / a.group + 1; };
    const auto begin_of = [&](u32 r) { return end_of(r) > a.window ? end_of(r) - a.window : 0; };
    // Row r is the query of token r / group and of head r % group.
    const auto at = [&](u32 r) { return (u64(r / a.group) * a.heads + blockIdx.y * a.group + r % a.group) * HEAD; };
    // Positions that any of the block's rows sees.
    const u32 from = begin_of(first), to = end_of(min(first + QUERIES, rows) - 1);
    const auto fetch = [&](u32 base, u32 stage) {
        fetch_tile(a.keys + cache, base, to, tiles + 2 * stage * TILE * PITCH);
        fetch_tile(a.values + cache, base, to, tiles + (2 * stage + 1) * TILE * PITCH);
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    fetch(from, 0);

    u32 q[WIDTH / 16][4];
#pragma unroll
    for (u32 k = 0; k < WIDTH / 16; k++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 r = own + lane / 4 + i % 2 * 8, c = 16 * k + lane % 4 * 2 + i / 2 * 8;
            const float2 v = r < rows && c < HEAD ? *reinterpret_cast<const float2*>(a.q + at(r) + c) : make_float2(0, 0);
            q[k][i] = two_half_bits(v.x * a.scale, v.y * a.scale);
        }
    float sums[WIDTH / 8][4] = {}, largest[2] = {minus_infinity(), minus_infinity()}, weight[2] = {};
    for (u32 base = from, stage = 0; base < to; base += TILE, stage ^= 1) {
        // What is fetched next goes where all have been.
        if (base + TILE < to) fetch(base + TILE, stage ^ 1);
        else asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        const u16 *keys = tiles + 2 * stage * TILE * PITCH, *values = keys + TILE * PITCH;
        float s[TILE / 8][4] = {};
#pragma unroll
        for (u32 k = 0; k < WIDTH / 16; k++)
#pragma unroll
            for (u32 n = 0; n < TILE / 16; n++) {
                u32 b[4];
                load_tiles(b, keys + (16 * n + lane / 16 * 8 + lane % 8) * PITCH + 16 * k + lane / 8 % 2 * 8);
                multiply_tile(s[2 * n], q[k], b[0], b[1]);
                multiply_tile(s[2 * n + 1], q[k], b[2], b[3]);
            }
        if (a.cap > 0)
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) s[n][j] = capped(s[n][j], a.cap);
        // Whether all of the warp's rows see all of the tile.
        const bool whole = base >= begin_of(own + 15) && base + TILE <= end_of(own);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 r = own + lane / 4 + 8 * i, begin = begin_of(r), end = end_of(r);
            float top = largest[i];
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n++)
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    float& v = s[n][2 * i + j];
                    const u32 p = base + 8 * n + lane % 4 * 2 + j;
                    v = whole || (p >= begin && p < end) ? LOG2_E * v : minus_infinity();
                    top = fmaxf(top, v);
                }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            // A row that has seen nothing yet.
            const float less = top > minus_infinity() ? top : 0;
            const float shrink = exp2f(largest[i] - less);
            largest[i] = top;
            weight[i] *= shrink;
#pragma unroll
            for (u32 n = 0; n < TILE / 8; n++)
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    float& v = s[n][2 * i + j];
                    v = exp2f(v - less);
                    weight[i] += v;
                }
#pragma unroll
            for (u32 n = 0; n < WIDTH / 8; n++)
#pragma unroll
                for (u32 j = 0; j < 2; j++) sums[n][2 * i + j] *= shrink;
        }
#pragma unroll
        for (u32 k = 0; k < TILE / 16; k++) {
            const u32 w[4] = {two_half_bits(s[2 * k][0], s[2 * k][1]), two_half_bits(s[2 * k][2], s[2 * k][3]), two_half_bits(s[2 * k + 1][0], s[2 * k + 1][1]),
                              two_half_bits(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
            for (u32 n = 0; n < WIDTH / 16; n++) {
                u32 b[4];
                load_transposed_tiles(b, values + (16 * k + lane % 16) * PITCH + 16 * n + lane / 16 * 8);
                multiply_tile(sums[2 * n], w, b[0], b[1]);
                multiply_tile(sums[2 * n + 1], w, b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        float all = weight[i];
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        const u32 r = own + lane / 4 + 8 * i;
        if (r >= rows) continue;
#pragma unroll
        for (u32 n = 0; n < HEAD / 8; n++)
            *reinterpret_cast<float2*>(a.out + at(r) + 8 * n + lane % 4 * 2) = make_float2(sums[n][2 * i] / all, sums[n][2 * i + 1] / all);
    }
}
