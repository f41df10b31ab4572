// Products of whole rows with x, four rows at a time: the scores of CATS and M-CountDown, products beside the FFN, and A x of a low-rank predictor.

constexpr u32 ROWS_AT_ONCE = 4;

// The COUNT rows from `row` on, of which `rows` exist, EACH a place of BYTES each or in PARTS places each, all rows from place `first` on: adds up each warp's part in
// sums[row * WARPS]. `part` gives this thread's part of the product of a row's part, and where that lies.
template <u32 COUNT, u32 EACH, u32 PARTS, u32 BYTES = ROW_BYTES, class Part> __device__ void some_rows(u32 first, u32 row, u32 rows, float* sums, Part part) {
    static_assert(COUNT % EACH == 0, "they begin with a place");
    float v[COUNT];
    const u32 count = ceil_div(min(COUNT, rows - row), EACH) * PARTS;
    const u32 place = first + row / EACH * PARTS;
    for (u32 p = 0; p < count; p++) wait_full(place + p);
    // Of rows that do not exist, whatever lies there: nobody looks at their sums.
#pragma unroll
    for (u32 r = 0; r < COUNT; r++) {
        v[r] = 0;
#pragma unroll
        for (u32 p = 0; p < PARTS; p++) v[r] += part(slot(place + some_place(r / EACH * PARTS + p, count)) + r % EACH * BYTES, p);
    }
    release(place, count);
    const u32 lane = threadIdx.x % 32;
    const float sum = warp_sums(v);
    if (lane % (32 / COUNT) == 0) sums[(row + lane / (32 / COUNT)) * WARPS + team_warp()] = sum;
}

__device__ float sum_of_warps(const float* sums, u32 warps) {
    float sum = 0;
    for (u32 w = 0; w < warps; w++) sum += sums[w];
    return sum;
}
