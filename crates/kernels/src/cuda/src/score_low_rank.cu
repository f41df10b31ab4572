// Scores B (A x) + b of a low-rank predictor. Every block multiplies its rows of A, and all need the whole product for their rows of B.

#if RANK > 0

constexpr u32 LOW_BYTES = RANK * 2;
// Rows of B in a slot. A team takes four slots at a time, a group; the first group has what is left over, so that its slots are soon free for the last rows.
constexpr u32 LOW_ROWS = SLOT_BYTES / LOW_BYTES < DEAL_MAX ? SLOT_BYTES / LOW_BYTES : DEAL_MAX;
static_assert(LOW_ROWS > 0, "a row of B fits in a slot");
__device__ u32 low_slots() { return ceil_div(row_count<LOW_ROWS>(), LOW_ROWS); }
__device__ u32 low_groups() { return ceil_div(low_slots(), ROWS_AT_ONCE); }
__device__ u32 low_group_slot(u32 group) { return group == 0 ? 0 : low_slots() - (low_groups() - group) * ROWS_AT_ONCE; }
// Runs of 8 columns of B a lane.
constexpr u32 LOW_RUNS = ceil_div(RANK / 8, 32);

__device__ u32 first_low() { return range_begin(RANK, blockIdx.x); }
__device__ u32 low_count() { return range_begin(RANK, blockIdx.x + 1) - first_low(); }

// Parts of shared().room.
__device__ float* low_scores() { return shared().room; }
__device__ float* low_sums() { return shared().room + ROWS_MAX; }
__device__ float* low_x() { return shared().room + ROWS_MAX + ROOM_LOW; }

// Multiplies this block's rows of A, from place `first` on, and brings all blocks' products to low_x().
__device__ void multiply_low(const Ffn& f, u32 first, const Input& x) {
    const u32 rows = low_count();
    for (u32 row = ROWS_AT_ONCE * team(); row < rows; row += ROWS_AT_ONCE * TEAMS) {
        some_rows<ROWS_AT_ONCE, 1, LOW_PARTS>(first, row, rows, low_sums(), [&](const u8* at, u32 part) { return dot_part<PREDICTOR>(at, part, x.columns); });
        sync_team();
        const u32 r = row + team_thread();
        if (team_thread() < ROWS_AT_ONCE && r < rows)
            put(reinterpret_cast<u32*>(f.low) + first_low() + r, __float_as_uint(not_empty(sum_of_warps(low_sums() + r * WARPS, WARPS))));
    }
    // Each block fetches the product once: all of them ask for the same few lines.
    for (u32 r = 4 * threadIdx.x; r < RANK; r += 4 * CONSUMERS) {
        float4 v = peek4(f.low + r);
        while (is_empty(v)) v = peek4(f.low + r);
        *reinterpret_cast<float4*>(low_x() + r) = v;
    }
    sync_consumers();
}

// Multiplies this block's rows of B, from `place` on, a row a warp.
__device__ void score_low(u32 place) {
    const u32 lane = threadIdx.x % 32;
    float low[8 * LOW_RUNS];
#pragma unroll
    for (u32 i = 0; i < 8 * LOW_RUNS; i++) {
        const u32 r = 8 * (lane + i / 8 * 32) + i % 8;
        low[i] = r < RANK ? low_x()[r] : 0;
    }
    const u32 rows = row_count<LOW_ROWS>();
    for (u32 group = team(); group < low_groups(); group += TEAMS) {
        const u32 first = low_group_slot(group);
        const u32 count = low_group_slot(group + 1) - first;
        for (u32 i = 0; i < count; i++) wait_full(place + first + i);
        for (u32 r = team_warp(); r < LOW_ROWS; r += WARPS) {
            float v[ROWS_AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < ROWS_AT_ONCE; i++) {
                v[i] = 0;
                const u8* row = slot(place + first + i) + r * LOW_BYTES;
#pragma unroll
                for (u32 k = 0; k < LOW_RUNS; k++)
                    if (RANK % 256 == 0 || lane + 32 * k < RANK / 8) dot8<PREDICTOR>(row, RANK, lane + 32 * k, low + 8 * k, v[i]);
            }
            const float sum = warp_sums(v);
            const u32 i = lane / (32 / ROWS_AT_ONCE), to = (first + i) * LOW_ROWS + r;
            if (lane % (32 / ROWS_AT_ONCE) == 0 && i < count && to < rows) low_scores()[to] = sum;
        }
        release(place + first, count);
        if (lane == 0) barrier_arrive(shared().scored[group]);
    }
}

#endif
