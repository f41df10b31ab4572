// Products of whole rows with x, four rows at a time, a row a place: the scores of CATS and M-CountDown, and A x of a low-rank predictor.

constexpr u32 ROWS_AT_ONCE = 4;

// The four rows from `row` on, of which `rows` exist, in PARTS places each, all rows from place `first` on: adds up each warp's part in sums[row * WARPS]. `part` gives this
// thread's part of the product of a row's part at a place.
template <u32 PARTS, class Part> __device__ void four_rows(u32 first, u32 row, u32 rows, float* sums, Part part) {
    float v[ROWS_AT_ONCE];
    const u32 count = min(ROWS_AT_ONCE, rows - row) * PARTS;
    const u32 place = first + row * PARTS;
    for (u32 p = 0; p < count; p++) wait_full(place + p);
    // Of rows that do not exist, whatever lies there: nobody looks at their sums.
#pragma unroll
    for (u32 r = 0; r < ROWS_AT_ONCE; r++) {
        v[r] = 0;
#pragma unroll
        for (u32 p = 0; p < PARTS; p++) v[r] += part(place + r * PARTS + p, p);
    }
    release(place, count);
    const u32 lane = threadIdx.x % 32;
    const float sum = warp_sums(v);
    if (lane % (32 / ROWS_AT_ONCE) == 0) sums[(row + lane / (32 / ROWS_AT_ONCE)) * WARPS + team_warp()] = sum;
}

__device__ float sum_of_warps(const float* sums, u32 warps) {
    float sum = 0;
    for (u32 w = 0; w < warps; w++) sum += sums[w];
    return sum;
}
