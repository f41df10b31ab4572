// y from the sums of all blocks: each publishes its own, and adds up all blocks' sums of a few columns.

constexpr u32 QUADS = HIDDEN / 4;
// Columns of a block, in fours, at most.
constexpr u32 STRIPE = ceil_div(QUADS, BLOCKS);
static_assert(STRIPE * 4 <= CONSUMERS, "a column a thread");
constexpr u32 STRIPE_GROUPS = CONSUMERS / STRIPE;
#if JOINED
__device__ float* gathered() { return shared().room; }
#else
static_assert(GATHER_BYTES <= SLOTS * SLOT_BYTES, "every team's sums fit in the ring");
__device__ float* gathered() { return reinterpret_cast<float*>(shared_memory); }
#endif

// What y is added to, column c.
__device__ float residual(const Ffn& f, u32 c) {
#if JOINED && !NORMED
    if (f.output.rows) return peek(f.made + c);
#endif
    return f.residual ? f.residual[c] : 0;
}

// Adds up and writes y. For all consumers, once they are done with the neurons.
__device__ void gather(const Ffn& f, Columns& y) {
    float* const room = gathered();
    const u32 first = range_begin(QUADS, blockIdx.x), quads = range_begin(QUADS, blockIdx.x + 1) - first;
    const u32 c = 4 * first + threadIdx.x;
    // Before others can know that this block is done with it.
    float total = threadIdx.x < 4 * quads ? residual(f, c) : 0;
    if (TEAMS > 1) {
        sync_consumers();
        if (team() > 0) put_columns(room + (team() - 1) * HIDDEN, y, false);
        sync_consumers();
        if (team() == 0)
            for (u32 t = 1; t < TEAMS; t++) {
                const Columns other = load_columns(room + (t - 1) * HIDDEN);
#pragma unroll
                for (u32 i = 0; i < 8 * RUNS_EACH; i++) y.v[i] += other.v[i];
            }
    }
    if (team() == 0) put_columns(f.partial + blockIdx.x * HIDDEN, y, true);
    sync_consumers();

    constexpr u32 EACH = ceil_div(BLOCKS, STRIPE_GROUPS);
    const u32 quad = threadIdx.x % STRIPE, group = threadIdx.x / STRIPE;
    const u32 column = 4 * (first + quad);
    const bool mine = quad < quads && group < STRIPE_GROUPS;
    float4 v[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) v[i] = mine && group + i * STRIPE_GROUPS < BLOCKS ? empty4() : make_float4(0, 0, 0, 0);
    bool missing;
    do {
        // All that are missing are asked for before any is looked at.
        missing = false;
#pragma unroll
        for (u32 i = 0; i < EACH; i++)
            if (is_empty(v[i])) v[i] = peek4(f.partial + (group + i * STRIPE_GROUPS) * HIDDEN + column);
#pragma unroll
        for (u32 i = 0; i < EACH; i++) missing |= is_empty(v[i]);
        if (missing) pause();
    } while (missing);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        if (mine && group + i * STRIPE_GROUPS < BLOCKS) put(f.partial + (group + i * STRIPE_GROUPS) * HIDDEN + column, empty4());
        sum = make_float4(sum.x + v[i].x, sum.y + v[i].y, sum.z + v[i].z, sum.w + v[i].w);
    }
    if (mine) reinterpret_cast<float4*>(room)[threadIdx.x] = sum;
    sync_consumers();
    if (threadIdx.x < 4 * quads) {
        for (u32 g = 0; g < STRIPE_GROUPS; g++) total += room[g * STRIPE * 4 + threadIdx.x];
        f.y[c] = total;
#if JOINED
        pass_on(f, c, total);
#if NORMED
        if (f.output.rows && next_rows(f) == 0) f.stream[c] = shared().stream[c];
#endif
#endif
    }
#if JOINED
    empty_read(f, first, first + quads);
#endif
}
