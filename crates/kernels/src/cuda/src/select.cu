// Which neurons are kept, and which block takes which of them: what the chooser's warp does.
//
// The first few neurons that a block keeps it takes itself, so that its ring stays full while blocks tell each other how many they have
// left. What is left is dealt so that all blocks take as many, by the counts alone: the same x gives the same sums in the same order.

__device__ u64 entry(u32 row, float signal) { return u64(__float_as_uint(signal)) << 32 | row; }
__device__ u32 entry_row(u64 e) { return u32(e); }
__device__ float entry_signal(u64 e) { return __uint_as_float(u32(e >> 32)); }

__device__ bool is_kept(const Ffn& f, float signal, float positive, float negative) {
    const float score = f.score == SCORE_VALUE ? signal : fmaxf(signal * positive, -signal * negative);
    return score > f.tau;
}

// Fetches what this block's neurons are decided by, which depends on no other kernel.
template <class Method> __device__ void fetch_cuts(const Ffn& f) {
    Shared& s = shared();
    for (u32 row = threadIdx.x % 32; row < row_count<Method::DEAL>(); row += 32) {
        const u32 i = neuron<Method::DEAL>(row);
        s.cuts[0][row] = f.score == SCORE_WEIGHTED ? f.positive[i] : 1;
        s.cuts[1][row] = f.score == SCORE_WEIGHTED ? f.negative[i] : 1;
#if FORM > 0
        for (u32 m = 0; m < MATRICES; m++) s.cuts[2 + m][row] = f.bias ? f.bias[m * INTER + i] : 0;
#endif
    }
    __syncwarp();
}

// Appends the neurons kept among rows [from, to) of this block to shared().kept, which has `kept`; `group` is the barrier of their scores. Gives how many there are then.
template <class Method> __device__ u32 select(const Ffn& f, u32 group, u32 from, u32 to, u32 kept) {
    Shared& s = shared();
    const u32 lane = threadIdx.x % 32;
    barrier_wait(s.scored[group], 0);
    for (; from < to; from += 32) {
        const u32 row = from + lane;
        float signal = 0;
        bool keep = false;
        if (row < to) {
            signal = Method::signal(row);
            keep = is_kept(f, signal, s.cuts[0][row], s.cuts[1][row]);
        }
        const u32 which = __ballot_sync(~0u, keep);
        if (keep) s.kept[kept + __popc(which & ((1u << lane) - 1))] = entry(neuron<Method::DEAL>(row), signal);
        kept += __popc(which);
    }
    __syncwarp();
    return kept;
}

// A block's counts, of neurons taken early and of those left, in one half word.
constexpr u32 COUNT_BITS = 8;
constexpr u32 COUNT_MAX = 254;
static_assert(ROWS_MAX <= COUNT_MAX, "a block has too many neurons");
__device__ u32 early_of(u32 counts) { return counts >> COUNT_BITS; }
__device__ u32 left_of(u32 counts) { return counts & 255; }

// Publishes the neurons [early, kept) of shared().kept for others, and how many this block has.
__device__ void publish(const Ffn& f, u32 early, u32 kept) {
    const u32 lane = threadIdx.x % 32;
    for (u32 i = early + lane; i < kept; i += 32) put(f.entries + blockIdx.x * ROWS_MAX + i - early, shared().kept[i]);
    if (lane == 0) put(f.shares + blockIdx.x, u16(early << COUNT_BITS | (kept - early)));
}

// Sum over the lanes before this one; `total` gets that over all.
__device__ u32 sum_before(u32 v, u32& total) {
    const u32 lane = threadIdx.x % 32;
    u32 sum = v;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        const u32 other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
    }
    total = __shfl_sync(~0u, sum, 31);
    return sum - v;
}

// Waits for every block's counts, and gives the range of this block among all neurons left, counted from the first block on. Everybody waits for
// this, and it is one warp's work: every instruction counts.
__device__ uint2 share(const Ffn& f) {
    Shared& s = shared();
    // A lane's blocks are the halves of one vector: everybody reads these few lines.
    constexpr u32 EACH = 8;
    const u32 lane = threadIdx.x % 32;
    const u32 first = lane * EACH;
    u32 counts[EACH] = {};
    if (first < BLOCKS) {
        bool missing;
        do {
            const uint4 v = peek4(f.shares + first);
            const u32 words[4] = {v.x, v.y, v.z, v.w};
            missing = false;
#pragma unroll
            for (u32 i = 0; i < EACH; i++) {
                counts[i] = BLOCKS % EACH == 0 || first + i < BLOCKS ? words[i / 2] >> 16 * (i % 2) & 0xffff : 0;
                missing |= counts[i] == EMPTY_HALF;
            }
            if (missing) pause();
        } while (missing);
    }
    __syncwarp();
    // Early in the upper half, left in the lower.
    u32 sum = 0;
    u32 before[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        before[i] = sum;
        sum += early_of(counts[i]) << 16 | left_of(counts[i]);
    }
    u32 all;
    const u32 base = sum_before(sum, all);
    const u32 left = all & 0xffff, total = left + (all >> 16);
    uint4 packed;
    u32* halves = &packed.x;
#pragma unroll
    for (u32 i = 0; i < EACH; i += 2) halves[i / 2] = (base + before[i]) & 0xffff | (base + before[i + 1]) << 16;
    reinterpret_cast<uint4*>(s.left_before)[lane] = packed;
    // A block takes its equal part of all, less what it has taken; where it has taken more, others take less.
    u32 takes = 0, mine = 0, end = 0;
    u32 part = range_begin(total, first);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        const u32 next = range_begin(total, first + i + 1);
        if (first + i == blockIdx.x) mine = takes;
        if (first + i < BLOCKS) takes += max(int(next - part) - int(early_of(counts[i])), 0);
        if (first + i == blockIdx.x) end = takes;
        part = next;
    }
    u32 all_takes;
    const u32 taken = sum_before(takes, all_takes);
    mine = __shfl_sync(~0u, taken + mine, blockIdx.x / EACH);
    end = __shfl_sync(~0u, taken + end, blockIdx.x / EACH);
    if (f.kept && blockIdx.x == 0 && lane == 0) *f.kept = total;
    // Each lane has written its part of left_before, and will read others'.
    __syncwarp();
    return make_uint2(min(mine, left), min(end, left));
}

// The n-th of all neurons left, which no other block asks for.
__device__ u64 take(const Ffn& f, u32 n) {
    const Shared& s = shared();
    u32 low = 0, high = BLOCKS;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (s.left_before[middle] <= n) low = middle;
        else high = middle;
    }
    u64* at = f.entries + low * ROWS_MAX + n - s.left_before[low];
    u64 e;
    while ((e = peek(at)) == EMPTY_PAIR) pause();
    put(at, EMPTY_PAIR);
    return e;
}

// Decides about this block's neurons and tells the producer which to stream: shared().kept in batches, the early ones and then 32 at a time.
template <class Method> __device__ void choose(const Ffn& f) {
    Shared& s = shared();
    const u32 lane = threadIdx.x % 32;
    const u32 groups = Method::groups();
    u32 kept = 0;
    for (u32 g = 0; g + 1 < groups; g++) kept = select<Method>(f, g, Method::group_begin(g), Method::group_begin(g + 1), kept);
    const u32 early = min(kept, f.early);
    if (lane == 0) s.batch[0] = early;
    barrier_arrive_warp(s.chosen[0]);
    if (groups > 0) kept = select<Method>(f, groups - 1, Method::group_begin(groups - 1), row_count<Method::DEAL>(), kept);
    publish(f, early, kept);
    const uint2 range = share(f);
    if (lane == 0) s.takes = early + range.y - range.x;
    u32 batch = 1;
    for (u32 n = range.x; n < range.y; n += 32, batch++) {
        if (n + lane < range.y) s.kept[early + n - range.x + lane] = take(f, n + lane);
        if (lane == 0) s.batch[batch] = min(32u, range.y - n);
        barrier_arrive_warp(s.chosen[batch]);
    }
    if (lane == 0) s.batch[batch] = 0;
    barrier_arrive_warp(s.chosen[batch]);
}
