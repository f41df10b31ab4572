// The largest logits, so that the host can draw a token without copying all of them.
//
// A warp keeps the KEPT largest of its share, and no warp waits for another: what a warp dropped is at most the last one that it kept, so above the largest of these nothing
// is missing. Shares are quads dealt in turns, since tokens that are likely together often have neighbouring numbers. Results go straight to the host's memory: there is no
// copy to wait for behind the kernel.

constexpr u32 KEPT = 8;
constexpr u32 RECORD = KEPT + 1;
constexpr u32 LANE_QUADS = 4;       // at most
constexpr u32 SHORTLIST_WARPS = 4;  // of a block

struct Shortlist {
    const float* logits;  // [vocab]
    u64* records;         // [warps, RECORD], the host's: KEPT times a logit and below it its token, largest first; then the sum of exp(logit - largest)
    const u32* words;     // [count], what else the host wants of the step
    u32* words_to;        // [count], the host's
    u32 count;
    u32 vocab;
    u32 warps;  // that have shares, of 1 to 32 * LANE_QUADS quads
};

// Unsigned, in the order of floats, both zeros alike; 0 stands for no logit.
__device__ u32 key_of(float v) {
    const u32 bits = __float_as_uint(v + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Of no logit it is not a number.
__device__ u32 bits_of(u32 key) { return key >> 31 ? key & 0x7fffffffu : ~key; }

extern "C" __global__ void __launch_bounds__(32 * SHORTLIST_WARPS) shortlist(const __grid_constant__ Shortlist s) {
    constexpr u32 THREADS = 32 * SHORTLIST_WARPS, EACH = 4 * LANE_QUADS;
    const u32 lane = threadIdx.x % 32, warp = blockIdx.x * SHORTLIST_WARPS + threadIdx.x / 32;
    const auto token = [&](u32 i) { return 4 * ((i / 4 * 32 + lane) * s.warps + warp) + i % 4; };
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < s.count; i += gridDim.x * THREADS) s.words_to[i] = s.words[i];
    if (warp >= s.warps) return;
    float v[EACH];
    u32 keys[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i += 4) {
        float4 quad = {};
        if (token(i + 3) < s.vocab) quad = *reinterpret_cast<const float4*>(s.logits + token(i));
        else {
            if (token(i) < s.vocab) quad.x = s.logits[token(i)];
            if (token(i + 1) < s.vocab) quad.y = s.logits[token(i + 1)];
            if (token(i + 2) < s.vocab) quad.z = s.logits[token(i + 2)];
        }
        v[i] = quad.x;
        v[i + 1] = quad.y;
        v[i + 2] = quad.z;
        v[i + 3] = quad.w;
    }
#pragma unroll
    for (u32 i = 0; i < EACH; i++) keys[i] = token(i) < s.vocab ? key_of(v[i]) : 0;

    u64 mine = 0;  // the lane's part of the record
    float largest = 0;
    for (u32 n = 0; n < KEPT; n++) {
        u32 best = 0, at = 0;
#pragma unroll
        for (u32 i = 0; i < EACH; i++)
            if (keys[i] > best) {
                best = keys[i];
                at = i;
            }
        const u32 key = __reduce_max_sync(~0u, best);
        // Of equals any: the others count as dropped.
        const u32 owner = __ffs(__ballot_sync(~0u, best == key)) - 1;
#pragma unroll
        for (u32 i = 0; i < EACH; i++)
            if (lane == owner && i == at) keys[i] = 0;
        const u32 which = __shfl_sync(~0u, token(at), owner);
        if (n == 0) largest = __uint_as_float(bits_of(key));
        if (lane == n) mine = u64(bits_of(key)) << 32 | which;
    }
    // Differences of infinities, and those of what is not a number, are not numbers: nor is the sum then.
    float sum = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++)
        if (token(i) < s.vocab) sum += expf(v[i] - largest) + (v[i] - v[i]);
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == KEPT) mine = __float_as_uint(sum);
    if (lane < RECORD) s.records[warp * RECORD + lane] = mine;
}
