// The shape that the FFN's code is compiled for. The host defines
//
//   HIDDEN        width of x and y, a multiple of 8
//   INTER         neurons
//   BLOCKS        blocks of a launch, at most one for each multiprocessor
//   SHARED_BYTES  dynamic shared memory of a block; less than half of a multiprocessor's, so that the next kernel's blocks
//                 find room beside those that still run, unless that is attention, which needs little
//   JOINED        1: the products before and after the FFN belong to its launch (joined.cu)
//   WEIGHTS       type of gate and up (weights.cu)
//   DOWN          type of down
//   VALUES        where JOINED, the type that the values' projection may have instead of WEIGHTS; both are floats or neither is
//   ATTENDED      where JOINED, width of what attention makes, a multiple of 8; HIDDEN elsewhere
//   NORMED        where JOINED, 1: what attention's output and the neurons make is normed before it is added to the residual stream, 0: it is not
//   ACT_GELU      1: the activation is GELU by tanh, 0: SiLU
//   FORM          what a predictor makes of its outer matrices' products (score_outer.cu); 0 where there is none
//   OUTER         type of its outer matrices, which have a row a neuron
//   RANK          rows of its inner matrix and columns of the outer ones, a multiple of 8; 0 where the outer ones are multiplied with x itself
//   INNER         type of its inner matrix
//
// and tools/cuda_probe.py, to tune on a card, TEAMS, WINDOW_BYTES, CALM_BYTES, PACE (state.cu), AHEAD_BYTES (ffn.cu).

// A team of threads holds x and y in its registers and takes one neuron at a time. Narrow models have several teams a block. Of floats a thread has two runs of 8
// columns of both. Gate and up in levels (weights.cu) take fewer instructions, so that what a neuron's sums take together counts for more: teams are half as large
// and more, and a thread has a block of 32 columns of x, and four runs of y. Where attention makes more columns than x has, they are as large as those need.
constexpr bool LEVELS = Weights<WEIGHTS>::LEVELS;
constexpr u32 WIDEST = larger(HIDDEN, ATTENDED);
constexpr u32 HALF = ceil_div(WIDEST, 1024) * 32;  // a thread for every 32 columns
constexpr u32 TEAM = LEVELS ? HALF : 2 * HALF;
constexpr u32 WARPS = TEAM / 32;
constexpr u32 RUNS_EACH = LEVELS ? 4 : 2;
#ifndef TEAMS
constexpr u32 TEAMS = TEAM < 256 ? (256 + TEAM / 2) / TEAM : 1;
#endif
constexpr u32 CONSUMERS = TEAMS * TEAM;
// Two warps more: the producer streams weights, the chooser says which.
constexpr u32 PRODUCER = CONSUMERS;
constexpr u32 CHOOSER = CONSUMERS + 32;
constexpr u32 THREADS = CONSUMERS + 64;

constexpr u32 ROW_BYTES = Weights<WEIGHTS>::row_bytes(HIDDEN);
// Rows of gate and up, and of products beside them, that share a slot of the ring: one thread asks for all of a block's rows, and for a slot of 2 kB it takes as long as the
// memory does for 4. Rows that are multiplied one after the other, or a neuron's two.
__host__ __device__ constexpr u32 pack(u32 row_bytes) { return row_bytes <= 3072 ? 2 : 1; }
constexpr u32 PACK = pack(ROW_BYTES);
constexpr u32 PACK_BYTES = PACK * ROW_BYTES;
constexpr u32 DOWN_BYTES = Weights<DOWN>::row_bytes(HIDDEN);
#if JOINED
constexpr u32 OUTPUT_ROW_BYTES = Weights<WEIGHTS>::row_bytes(ATTENDED);
constexpr u32 OUTPUT_PACK = pack(OUTPUT_ROW_BYTES);
constexpr bool VALUES_APART = VALUES != WEIGHTS;
constexpr u32 VALUE_BYTES = Weights<VALUES>::row_bytes(HIDDEN);
static_assert(Weights<VALUES>::LEVELS == LEVELS, "x is in levels or it is not");
#else
constexpr u32 OUTPUT_ROW_BYTES = 0, OUTPUT_PACK = 1;
constexpr u32 VALUE_BYTES = 0;
#endif
// A predictor's forms.
constexpr u32 LOGITS = 1;   // the product
constexpr u32 GATE = 2;     // act of it
constexpr u32 PRODUCT = 3;  // act of one times the other
constexpr u32 MATRICES = FORM == PRODUCT ? 2 : 1;
// A row of its inner matrix comes in parts of so many runs a thread: whole, but where floats would need larger slots than the FFN's own rows.
constexpr u32 INNER_RUNS = Weights<INNER>::LEVELS ? RUNS_EACH : 2;
constexpr u32 INNER_PARTS = ceil_div(HIDDEN / 8, INNER_RUNS * TEAM);
constexpr u32 INNER_ROW_BYTES = Weights<INNER>::row_bytes(HIDDEN);
constexpr u32 INNER_PART_BYTES = RANK == 0 ? 0 : INNER_PARTS == 1 ? INNER_ROW_BYTES : INNER_RUNS * TEAM * Weights<INNER>::row_bytes(8);
// Rows of its outer matrices, a neuron's one behind the other.
constexpr u32 OUTER_ROW_BYTES = Weights<OUTER>::row_bytes(RANK > 0 ? RANK : HIDDEN);
constexpr u32 OUTER_BYTES = FORM == 0 ? 0 : MATRICES * OUTER_ROW_BYTES;
// Neurons are dealt to blocks in runs of at most this many; so many has a block at most, in fours.
constexpr u32 DEAL_MAX = 16;
constexpr u32 ROWS_MAX = ceil_div(ceil_div(INTER, BLOCKS) + DEAL_MAX, 4) * 4;

static_assert(HIDDEN % 8 == 0 && ATTENDED % 8 == 0 && RANK % 8 == 0, "rows are whole runs of 8 columns");
static_assert(BLOCKS <= 256, "eight blocks' counts a lane");

// The first of n things dealt to block b in contiguous ranges.
__device__ u32 range_begin(u32 n, u32 b) { return n * b / BLOCKS; }
static_assert(INTER < 65536, "counts of neurons are half words, and their products with blocks words");

// 8 weights in a row, columns 8 * run and on, times 8 values, added to sum.
template <u32 TYPE> __device__ void dot8(const u8* row, u32 cols, u32 run, const float* v, float& sum) {
    using W = Weights<TYPE>;
    float w[8];
    W::eight(row, cols, run, w);
    float part = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) part = fmaf(w[i], v[i], part);
    if constexpr (W::LEVELS) {
        const float2 s = W::scale(row, cols, run);
        part *= s.x;
        if constexpr (W::OFFSETS) {
            float total = 0;
#pragma unroll
            for (u32 i = 0; i < 8; i++) total += v[i];
            part = fmaf(s.y, total, part);
        }
    }
    sum += part;
}

// 8 weights times c, added to 8 sums.
template <u32 TYPE> __device__ void axpy8(float c, const u8* row, u32 cols, u32 run, float* sums) {
    using W = Weights<TYPE>;
    float w[8], offset = 0;
    W::eight(row, cols, run, w);
    if constexpr (W::LEVELS) {
        const float2 s = W::scale(row, cols, run);
        offset = c * s.y;
        c *= s.x;
    }
#pragma unroll
    for (u32 i = 0; i < 8; i++) sums[i] = fmaf(c, w[i], sums[i]);
    if constexpr (W::OFFSETS) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) sums[i] += offset;
    }
}

__device__ float act(float x) { return ACT_GELU ? gelu_tanh(x) : silu(x); }
