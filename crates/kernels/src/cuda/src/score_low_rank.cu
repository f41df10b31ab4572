// Products B (A x) of a low-rank predictor, of one B or two. Every block multiplies its rows of A, and all need the whole product for their neurons' rows of B.

#if RANK > 0

// Neurons whose rows of B are in a slot. A team takes four slots at a time, a group; the first group has what is left over, so that its slots are soon free for the last rows.
constexpr u32 LOW_ROWS = SLOT_BYTES / OUTER_BYTES < DEAL_MAX ? SLOT_BYTES / OUTER_BYTES : DEAL_MAX;
__device__ u32 low_slots() { return ceil_div(row_count<LOW_ROWS>(), LOW_ROWS); }
__device__ u32 low_groups() { return ceil_div(low_slots(), ROWS_AT_ONCE); }
__device__ u32 low_group_slot(u32 group) { return group == 0 ? 0 : low_slots() - (low_groups() - group) * ROWS_AT_ONCE; }
// Neurons of a slot that a warp takes at once.
constexpr u32 LOW_AT_ONCE = MATRICES == 1 && LOW_ROWS > WARPS ? 2 : 1;
// Runs of 8 columns of B a lane.
constexpr u32 LOW_RUNS = ceil_div(RANK / 8, 32);

__device__ u32 first_low() { return range_begin(RANK, blockIdx.x); }
__device__ u32 low_count() { return range_begin(RANK, blockIdx.x + 1) - first_low(); }

// Streams this block's rows of A.
__device__ void stream_inner(const Ffn& f, Producer& p) {
    const u32 rows = low_count();
    for (u32 row = 0; row < rows; row++)
#pragma unroll
        for (u32 part = 0; part < INNER_PARTS; part++)
            p.fill<INNER_PART_BYTES>(f.inner + u64(first_low() + row) * INNER_ROW_BYTES + part * INNER_PART_BYTES,
                                     part + 1 < INNER_PARTS ? INNER_PART_BYTES : INNER_ROW_BYTES - (INNER_PARTS - 1) * INNER_PART_BYTES);
}

// Multiplies them, from place `first` on, and brings all blocks' products to shared().low_x. Gives the place after them.
__device__ u32 multiply_low(const Ffn& f, u32 first, const Input& x) {
    float* const sums = shared().low_sums;
    const u32 rows = low_count();
    for (u32 row = ROWS_AT_ONCE * team(); row < rows; row += ROWS_AT_ONCE * TEAMS) {
        some_rows<ROWS_AT_ONCE, 1, INNER_PARTS>(first, row, rows, sums, [&](const u8* at, u32 part) { return dot_part<INNER, INNER_RUNS>(at, part, x.columns); });
        sync_team();
        const u32 r = row + team_thread();
        if (team_thread() < ROWS_AT_ONCE && r < rows) put(f.low + first_low() + r, not_empty(sum_of_warps(sums + r * WARPS, WARPS)));
    }
    // Each block fetches the product once: all of them ask for the same few lines.
    for (u32 r = 4 * threadIdx.x; r < RANK; r += 4 * CONSUMERS) {
        float4 v = peek4(f.low + r);
        while (is_empty(v)) v = peek4(f.low + r);
        *reinterpret_cast<float4*>(shared().low_x + r) = v;
    }
    sync_consumers();
    return first + rows * INNER_PARTS;
}

// Multiplies this block's rows of B, from `place` on, a neuron a warp.
__device__ void score_low(u32 place) {
    const u32 lane = threadIdx.x % 32;
    float low[8 * LOW_RUNS];
#pragma unroll
    for (u32 i = 0; i < 8 * LOW_RUNS; i++) {
        const u32 r = 8 * (lane + i / 8 * 32) + i % 8;
        low[i] = r < RANK ? shared().low_x[r] : 0;
    }
    const u32 rows = row_count<LOW_ROWS>();
    for (u32 group = team(); group < low_groups(); group += TEAMS) {
        const u32 first = low_group_slot(group);
        const u32 count = low_group_slot(group + 1) - first;
        for (u32 i = 0; i < count; i++) wait_full(place + first + i);
        for (u32 of_warp = team_warp(); of_warp < LOW_ROWS; of_warp += WARPS * LOW_AT_ONCE) {
            constexpr u32 EACH = LOW_AT_ONCE * MATRICES, SUMS = ROWS_AT_ONCE * EACH;
            float v[SUMS];
#pragma unroll
            for (u32 i = 0; i < SUMS; i++) {
                v[i] = 0;
                const u32 r = min(of_warp + i % EACH / MATRICES * WARPS, LOW_ROWS - 1);
                const u8* row = slot(place + first + some_place(i / EACH, count)) + r * OUTER_BYTES + i % MATRICES * OUTER_ROW_BYTES;
#pragma unroll
                for (u32 k = 0; k < LOW_RUNS; k++)
                    if (RANK % 256 == 0 || lane + 32 * k < RANK / 8) dot8<OUTER>(row, RANK, lane + 32 * k, low + 8 * k, v[i]);
            }
            const float sum = warp_sums(v);
            const u32 i = lane / (32 / SUMS), r = of_warp + i % EACH / MATRICES * WARPS, to = (first + i / EACH) * LOW_ROWS + r;
            if (lane % (32 / SUMS) == 0 && i / EACH < count && r < LOW_ROWS && to < rows) shared().low_scores[to * MATRICES + i % MATRICES] = sum;
        }
        release(place + first, count);
        barrier_arrive_warp(shared().scored[group]);
    }
}

#endif
