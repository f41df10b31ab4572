// x as rows of quantised weights are multiplied with it: rounded once to 8 bits with a scale for each block of 32 columns, as on the CPU, so that products are sums of
// integers, four columns an instruction, and scales come once a block.

// A block of x.
struct Levels {
    u32 q[8];       // 32 signed levels
    float scale;
    int totals[2];  // of the first and the last 16 levels
};

// An int of 22 bits added to the first is the mantissa of a float, which less the second is that int.
constexpr int INT_AS_FLOAT = 0x4b400000;  // 1.5 * 2^23
constexpr float INT_OFFSET = 12582912.0f;
__device__ float int_value(int sum) { return __int_as_float(sum) - INT_OFFSET; }

// sum + four bytes times four signed bytes.
__device__ int dot_bytes(u32 bytes, u32 with_sign, int sum) {
    asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(bytes), "r"(with_sign));
    return sum;
}

// A block of a row of TYPE times a block of x.
template <u32 TYPE> __device__ float dot_block(const u8* row, u32 cols, u32 block, const Levels& x) {
    using W = Weights<TYPE>;
    u32 q[8];
    W::levels(row, cols, block, q);
    int sums[2];
    if constexpr (W::HALVES) {
        sums[0] = INT_AS_FLOAT - int(W::MIDDLE) * x.totals[0];
        sums[1] = INT_AS_FLOAT - int(W::MIDDLE) * x.totals[1];
    } else {
        sums[0] = INT_AS_FLOAT - int(W::MIDDLE) * (x.totals[0] + x.totals[1]);
    }
#pragma unroll
    for (u32 k = 0; k < 8; k++) {
        int& sum = sums[W::HALVES ? k / 4 : 0];
        sum = dot_bytes(q[k], x.q[k], sum);
    }
    const float2 s = W::scale(row, cols, 4 * block);
    float product = s.x * int_value(sums[0]);
    if constexpr (W::HALVES) product = fmaf(W::scale(row, cols, 4 * block + 2).x, int_value(sums[1]), product);
    if constexpr (W::OFFSETS) product = fmaf(s.y, float(x.totals[0] + x.totals[1]), product);
    return x.scale * product;
}

// In shared memory: the first halves of all blocks' levels and then the second ones, so that lanes which take neighbouring blocks meet few banks twice, and of each block a
// scale and the two totals in half words.
__host__ __device__ constexpr u32 levels_bytes(u32 cols) { return cols + cols / 4; }

__device__ Levels load_levels(const u8* from, u32 cols, u32 block) {
    const u32 blocks = cols / COLUMNS;
    const uint4* halves = reinterpret_cast<const uint4*>(from);
    const uint4 a = halves[block], b = halves[blocks + block];
    const uint2 about = reinterpret_cast<const uint2*>(from + cols)[block];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}, __uint_as_float(about.x), {short(about.y), short(about.y >> 16)}};
}

// Rounds EACH columns, 4 or 8, from EACH * part on. For all lanes of a warp, with parts in turn, of which those beyond the columns do not count.
template <u32 EACH> __device__ void store_part(const float* v, u32 part, u32 cols, u8* to) {
    // As words, whose order a NaN ends.
    u32 bits = 0;
#pragma unroll
    for (u32 c = 0; c < EACH; c++) bits = max(bits, __float_as_uint(v[c]) & 0x7fffffffu);
#pragma unroll
    for (u32 d = 1; d < COLUMNS / EACH; d *= 2) bits = max(bits, __shfl_xor_sync(~0u, bits, d));
    const float largest = __uint_as_float(bits);
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    u32 words[EACH / 4] = {};
    int total = 0;
#pragma unroll
    for (u32 w = 0; w < EACH / 4; w++) {
#pragma unroll
        for (u32 c = 0; c < 4; c++) words[w] |= u32(__float2int_rn(v[4 * w + c] * inverse) & 255) << 8 * c;
        total = dot_bytes(0x01010101u, words[w], total);
    }
#pragma unroll
    for (u32 d = 1; d < COLUMNS / 2 / EACH; d *= 2) total += __shfl_xor_sync(~0u, total, d);
    const u32 totals = u32(total & 0xffff) | u32(__shfl_xor_sync(~0u, total, COLUMNS / 2 / EACH)) << 16;
    const u32 block = EACH * part / COLUMNS, word = EACH * part % COLUMNS / 4;
    if (EACH * part >= cols) return;
    u32* const at = reinterpret_cast<u32*>(to) + word / 4 * (cols / 8) + 4 * block + word % 4;
#pragma unroll
    for (u32 w = 0; w < EACH / 4; w++) at[w] = words[w];
    if (word == 0) reinterpret_cast<uint2*>(to + cols)[block] = make_uint2(__float_as_uint(largest / 127.0f), totals);
}

// Rounds x, or x times factor times norm, [cols], for THREADS threads; a lane takes four columns. Whoever reads the levels waits for all of them.
template <u32 THREADS> __device__ void store_levels(const float* x, const float* norm, float factor, u32 cols, u8* to) {
    const u32 quads = cols / 4;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ceil_div(quads, 32) * 32; i += THREADS) {
        float4 v = make_float4(0, 0, 0, 0);
        if (i < quads) {
            v = reinterpret_cast<const float4*>(x)[i];
            if (norm) {
                const float4 w = reinterpret_cast<const float4*>(norm)[i];
                v = make_float4(v.x * (factor * w.x), v.y * (factor * w.y), v.z * (factor * w.z), v.w * (factor * w.w));
            }
        }
        const float columns[4] = {v.x, v.y, v.z, v.w};
        store_part<4>(columns, i, cols, to);
    }
}
