// Scores act(g) * u of a copy of gate and up in 4 bits. A neuron's part of the copy, a place in the ring:
//
//   byte  0               HIDDEN / 2      HIDDEN          + HIDDEN / 16        + HIDDEN / 16
//         | gate, levels  | up, levels    | gate, scales  | up, scales         |   and up to a multiple of 16 bytes
//
// Levels of 32 columns are 16 bytes, as in Q4_0: low nibbles are columns 0..16, high nibbles 16..32, and level q stands for d (q - 8) with d the f16
// scale. x is rounded as levels.cu does it.
//
// A team takes four neurons at a time, a thread 32 columns: of both matrices, or where teams have two halves, one half of gate and the other of up.

#if HIDDEN % 32 == 0

constexpr u32 COPY_MATRICES = 2 * HALF / TEAM;  // of a thread

// This thread's part of gate^ x or up^ x of the neuron at a place.
__device__ float copy_dot(u32 place, u32 matrix, const Levels& x) {
    constexpr u32 BLOCKS_ALL = HIDDEN / COLUMNS;
    const u32 block = team_thread() % HALF;
    if (block >= BLOCKS_ALL) return 0;
    const u8* at = slot(place);
    const uint4 w = reinterpret_cast<const uint4*>(at)[matrix * BLOCKS_ALL + block];
    const u16 d = reinterpret_cast<const u16*>(at + HIDDEN)[matrix * BLOCKS_ALL + block];
    const u32 words[4] = {w.x, w.y, w.z, w.w};
    int sum = INT_AS_FLOAT - 8 * (x.totals[0] + x.totals[1]);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        sum = dot_bytes(words[i] & 0x0f0f0f0fu, x.q[i], sum);
        sum = dot_bytes(words[i] >> 4 & 0x0f0f0f0fu, x.q[4 + i], sum);
    }
    return half_value(d) * x.scale * int_value(sum);
}

// The four neurons from `row` on, all of them from place `first` on, as some_rows: of each, the sums of gate's warps, then those of up's.
__device__ void four_copies(u32 first, u32 row, u32 rows, const Levels& x, float* sums) {
    constexpr u32 EACH = COPY_MATRICES;
    float v[ROWS_AT_ONCE * EACH];
    const u32 count = min(ROWS_AT_ONCE, rows - row);
    for (u32 r = 0; r < count; r++) wait_full(first + row + r);
#pragma unroll
    for (u32 i = 0; i < ROWS_AT_ONCE * EACH; i++) v[i] = copy_dot(first + row + i / EACH, EACH == 2 ? i % EACH : team_thread() / HALF, x);
    release(first + row, count);
    const u32 lane = threadIdx.x % 32;
    const float sum = warp_sums(v);
    const u32 i = lane / (32 / (ROWS_AT_ONCE * EACH));
    if (lane % (32 / (ROWS_AT_ONCE * EACH)) == 0) sums[(row + i / EACH) * ROW_SUMS + i % EACH * WARPS + team_warp()] = sum;
}

#endif
