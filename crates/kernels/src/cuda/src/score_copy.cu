// Scores act(g) * u of a copy of gate and up in 4 bits. A neuron's part of the copy, a place in the ring:
//
//   byte  0               HIDDEN / 2      HIDDEN          + HIDDEN / 16        + HIDDEN / 16
//         | gate, levels  | up, levels    | gate, scales  | up, scales         |   and up to a multiple of 16 bytes
//
// Levels of 32 columns are 16 bytes, as in Q4_0: low nibbles are columns 0..16, high nibbles 16..32, and level q stands for d (q - 8) with d the f16
// scale. x is rounded to 8 bits with a scale for each 32 columns, as on the CPU.
//
// One half of a team takes gate, the other up, a thread for every 32 columns, four neurons at a time.

constexpr u32 COPY_BLOCKS = HIDDEN / 32;

struct Levels {
    u32 q[8];     // 32 levels
    float scale;
    int start;    // -8 times the sum of the levels, plus what makes an int of 22 bits the mantissa of a float
};

constexpr int INT_AS_FLOAT = 0x4b400000;  // 1.5 * 2^23
constexpr float INT_OFFSET = 12582912.0f;

// Of x times the factor of its norm.
__device__ Levels load_levels(const Ffn& f, float factor) {
    const u32 block = team_thread() % HALF;
    Levels l = {};
    if (block >= COPY_BLOCKS) return l;
    float v[32];
    float largest = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float4 p = reinterpret_cast<const float4*>(f.x)[8 * block + i];
        const float4 w = f.norm ? reinterpret_cast<const float4*>(f.norm)[8 * block + i] : make_float4(1, 1, 1, 1);
        v[4 * i] = p.x * (factor * w.x);
        v[4 * i + 1] = p.y * (factor * w.y);
        v[4 * i + 2] = p.z * (factor * w.z);
        v[4 * i + 3] = p.w * (factor * w.w);
    }
    bool nan = false;
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        largest = fmaxf(largest, fabsf(v[i]));
        nan |= v[i] != v[i];
    }
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    l.scale = nan ? __uint_as_float(0x7fffffffu) : largest / 127.0f;
    int sum = 0;
#pragma unroll
    for (u32 i = 0; i < 32; i++) {
        const int q = __float2int_rn(v[i] * inverse);
        sum += q;
        l.q[i / 4] |= u32(q & 255) << 8 * (i % 4);
    }
    l.start = INT_AS_FLOAT - 8 * sum;
    return l;
}

__device__ int dot_bytes(u32 a, u32 b, int sum) {
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

// This thread's part of gate^ x or up^ x of the neuron at a place.
__device__ float copy_dot(u32 place, const Levels& x) {
    const u32 block = team_thread() % HALF;
    const u32 matrix = team_thread() / HALF;
    if (block >= COPY_BLOCKS) return 0;
    const u8* at = slot(place);
    const uint4 w = reinterpret_cast<const uint4*>(at)[matrix * COPY_BLOCKS + block];
    const u16 d = reinterpret_cast<const u16*>(at + HIDDEN)[matrix * COPY_BLOCKS + block];
    const u32 words[4] = {w.x, w.y, w.z, w.w};
    int sum = x.start;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        sum = dot_bytes(words[i] & 0x0f0f0f0fu, x.q[i], sum);
        sum = dot_bytes(words[i] >> 4 & 0x0f0f0f0fu, x.q[4 + i], sum);
    }
    return half_value(d) * x.scale * (__int_as_float(sum) - INT_OFFSET);
}

// The four neurons from `row` on, as four_rows.
__device__ void four_copies(u32 row, u32 rows, const Levels& x, float* sums) {
    float v[ROWS_AT_ONCE];
    const u32 count = min(ROWS_AT_ONCE, rows - row);
    for (u32 r = 0; r < count; r++) wait_full(row + r);
#pragma unroll
    for (u32 r = 0; r < ROWS_AT_ONCE; r++) v[r] = copy_dot(row + r, x);
    release(row, count);
    const u32 lane = threadIdx.x % 32;
    const float sum = warp_sums(v);
    if (lane % (32 / ROWS_AT_ONCE) == 0) sums[(row + lane / (32 / ROWS_AT_ONCE)) * WARPS + team_warp()] = sum;
}
