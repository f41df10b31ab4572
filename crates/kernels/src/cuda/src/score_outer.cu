// Signals by a predictor's outer matrices, and the scores of one without an inner matrix: a copy of gate and up in few bits, or ternary weights, multiplied with x as
// rounded by levels.cu.
//
// A team takes four neurons at a time, a thread 32 columns: of both matrices, or where teams have two halves, one half of the first and the other of the second.

#if FORM > 0

// A neuron's signal, of the products of its rows.
__device__ float predicted(u32 row, float first, float second) {
    const auto& cuts = shared().cuts;
    first += cuts[2][row];
    if constexpr (FORM == LOGITS) return first;
    if constexpr (FORM == GATE) return act(first);
    return act(first) * (second + cuts[MATRICES + 1][row]);
}

#if RANK == 0

static_assert(HIDDEN % COLUMNS == 0 && Weights<OUTER>::LEVELS, "rows are blocks of levels");

// Neurons whose rows share a slot.
constexpr u32 OUTER_EACH = SLOT_BYTES >= 4 * OUTER_BYTES ? 4 : SLOT_BYTES >= 2 * OUTER_BYTES ? 2 : 1;
constexpr u32 HALVES = TEAM / HALF;
// Matrices of a thread.
constexpr u32 OUTER_MATRICES = ceil_div(MATRICES, HALVES);

// This thread's part of the product of x and a row of the neuron at `at`.
__device__ float outer_dot(const u8* at, u32 matrix, const Levels& x) {
    const u32 block = team_thread() % HALF;
    if (block >= HIDDEN / COLUMNS || matrix >= MATRICES) return 0;
    return dot_block<OUTER>(at + matrix * OUTER_ROW_BYTES, HIDDEN, block, x);
}

// The four neurons from `row` on, all of them from place `first` on, as some_rows: of each, the sums of the warps that have the first matrix, then of those that have the second.
__device__ void four_neurons(u32 first, u32 row, u32 rows, const Levels& x, float* sums) {
    constexpr u32 EACH = OUTER_MATRICES;
    float v[ROWS_AT_ONCE * EACH];
    const u32 place = first + row / OUTER_EACH, count = ceil_div(min(ROWS_AT_ONCE, rows - row), OUTER_EACH);
    for (u32 p = 0; p < count; p++) wait_full(place + p);
#pragma unroll
    for (u32 i = 0; i < ROWS_AT_ONCE * EACH; i++) {
        const u32 r = i / EACH;
        v[i] = outer_dot(slot(place + some_place(r / OUTER_EACH, count)) + r % OUTER_EACH * OUTER_BYTES, HALVES == 1 ? i % EACH : team_thread() / HALF, x);
    }
    release(place, count);
    const u32 lane = threadIdx.x % 32;
    const float sum = warp_sums(v);
    const u32 i = lane / (32 / (ROWS_AT_ONCE * EACH));
    if (lane % (32 / (ROWS_AT_ONCE * EACH)) == 0) sums[(row + i / EACH) * ROW_SUMS + i % EACH * WARPS + team_warp()] = sum;
}

#endif

#endif
