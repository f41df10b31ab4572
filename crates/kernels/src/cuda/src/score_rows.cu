// Products of whole rows with x, four rows at a time, a row a place: the scores of CATS and M-CountDown, and A x of a low-rank predictor.

constexpr u32 ROWS_AT_ONCE = 4;

// The four rows of TYPE from `row` on, of which `rows` exist, at the places from `place + row` on: adds up each warp's part in sums[row * WARPS].
template <u32 TYPE> __device__ void four_rows(u32 place, u32 row, u32 rows, const Columns& x, float* sums) {
    float v[ROWS_AT_ONCE];
    const u32 count = min(ROWS_AT_ONCE, rows - row);
    for (u32 r = 0; r < count; r++) wait_full(place + row + r);
    // Of rows that do not exist, whatever lies there: nobody looks at their sums.
#pragma unroll
    for (u32 r = 0; r < ROWS_AT_ONCE; r++) v[r] = dot<TYPE>(place + row + r, x);
    release(place + row, count);
    const u32 lane = threadIdx.x % 32;
    const float sum = warp_sums(v);
    if (lane % (32 / ROWS_AT_ONCE) == 0) sums[(row + lane / (32 / ROWS_AT_ONCE)) * WARPS + team_warp()] = sum;
}

__device__ float sum_of_warps(const float* sums, u32 warps) {
    float sum = 0;
    for (u32 w = 0; w < warps; w++) sum += sums[w];
    return sum;
}
