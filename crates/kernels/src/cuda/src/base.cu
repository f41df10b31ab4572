// Types, the shape this code is compiled for, and arithmetic on 16-bit weights.
//
// The files of this folder are one translation unit, in the order that the host names them, without any header: what is
// needed of 16-bit floats is a shift or one instruction. The host defines
//
//   HIDDEN        width of x and y, a multiple of 8
//   INTER         neurons
//   BLOCKS        blocks of a launch, at most one for each multiprocessor
//   SHARED_BYTES  dynamic shared memory of a block; less than half of a multiprocessor's, so that the next kernel's blocks
//                 find room beside those that still run
//   WEIGHTS_F16   1: weights are f16, 0: bf16
//   ACT_GELU      1: the activation is GELU by tanh, 0: SiLU
//   RANK          width of the low-rank predictor, a multiple of 8
//
// and may define what was tuned on an H100: TEAMS, WINDOW_BYTES, CALM_BYTES, PACE (state.cu), AHEAD_ROWS, AHEAD_BYTES (ffn.cu).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__host__ __device__ constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }

// A team of threads holds x and y in its registers, two runs of 8 columns a thread, and takes one neuron at a time. Narrow
// models have several teams a block. Half a team has a thread for every 32 columns (see score_copy.cu).
constexpr u32 HALF = ceil_div(HIDDEN, 1024) * 32;
constexpr u32 TEAM = 2 * HALF;
constexpr u32 WARPS = TEAM / 32;
#ifndef TEAMS
constexpr u32 TEAMS = TEAM < 256 ? 256 / TEAM : 1;
#endif
constexpr u32 CONSUMERS = TEAMS * TEAM;
// Two warps more: the producer streams weights, the chooser says which.
constexpr u32 PRODUCER = CONSUMERS;
constexpr u32 CHOOSER = CONSUMERS + 32;
constexpr u32 THREADS = CONSUMERS + 64;

constexpr u32 RUNS = HIDDEN / 8;
constexpr u32 ROW_BYTES = HIDDEN * 2;
// Neurons are dealt to blocks in runs of at most this many; so many has a block at most, in fours.
constexpr u32 DEAL_MAX = 16;
constexpr u32 ROWS_MAX = ceil_div(ceil_div(INTER, BLOCKS) + DEAL_MAX, 4) * 4;

static_assert(HIDDEN % 8 == 0 && RANK % 8 == 0, "rows are whole 16-byte vectors");
static_assert(BLOCKS <= 256, "eight blocks' counts a lane");

// The first of n things dealt to block b in contiguous ranges.
__device__ u32 range_begin(u32 n, u32 b) { return n * b / BLOCKS; }
static_assert(INTER < 65536, "counts of neurons are half words, and their products with blocks words");

// Two 16-bit weights of one word, the one at the lower address first.
__device__ float2 unpack(u32 w) {
#if WEIGHTS_F16
    float2 v;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(v.x), "=f"(v.y) : "r"(w));
    return v;
#else
    return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u));
#endif
}

__device__ float half_value(u16 h) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}

// 8 weights times 8 values, added to sum.
__device__ void dot8(const uint4& w, const float* v, float& sum) {
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const float2 p = unpack(words[i]);
        sum = fmaf(p.x, v[2 * i], sum);
        sum = fmaf(p.y, v[2 * i + 1], sum);
    }
}

// 8 weights times c, added to 8 sums.
__device__ void axpy8(float c, const uint4& w, float* sums) {
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const float2 p = unpack(words[i]);
        sums[2 * i] = fmaf(c, p.x, sums[2 * i]);
        sums[2 * i + 1] = fmaf(c, p.y, sums[2 * i + 1]);
    }
}

__device__ float act(float x) {
#if ACT_GELU
    // 0.5 (1 + tanh u) = 1 / (1 + e^-2u), which does not cancel where u is far below zero.
    const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
#else
    return x / (1.0f + expf(-x));
#endif
}

// The sums over a warp of N values a lane, N a power of two: lanes [i * 32 / N, (i + 1) * 32 / N) get the i-th. Halving what a
// lane is responsible for at each step takes 6 exchanges for 4 values instead of 20.
template <u32 N> __device__ float warp_sums(float (&v)[N]) {
    const u32 lane = threadIdx.x % 32;
    u32 distance = 16;
#pragma unroll
    for (u32 n = N / 2; n > 0; n /= 2, distance /= 2) {
        const bool upper = lane & distance;
#pragma unroll
        for (u32 i = 0; i < n; i++) {
            const float give = upper ? v[i] : v[i + n];
            const float keep = upper ? v[i + n] : v[i];
            v[i] = keep + __shfl_xor_sync(~0u, give, distance);
        }
    }
#pragma unroll
    for (u32 d = 16 / N; d > 0; d /= 2) v[0] += __shfl_xor_sync(~0u, v[0], d);
    return v[0];
}
