// Products of up to three matrices with one vector, in one launch; rows of embeddings.
//
// Rows of all matrices, one after the other, are dealt to blocks in contiguous ranges. The warps of a block that share a row take four rows at a time, so
// that eight vectors of weights are on their way for every thread and each x that is fetched is used four times.

struct Product {
    const u8* weights;      // [rows, cols], `stride` bytes from row to row
    const float* bias;      // [rows], or null
    const float* residual;  // [rows], or null: added, too; may be `out`
    float* out;             // [rows]
    u32 rows;
    u32 stride;
};

constexpr u32 PRODUCTS = 3;

struct Gemv {
    Product products[PRODUCTS];  // those that are missing have no rows
    const float* x;              // [cols], at a multiple of 16 bytes
    u32 cols;
    u32 rows;       // of all products
    u32 row_warps;  // that share a row: 1, 2, 4 or 8
};

constexpr u32 GEMV_THREADS = 256;
constexpr u32 GEMV_WARPS = GEMV_THREADS / 32;
// Rows whose sums are kept until all warps have added theirs.
constexpr u32 GEMV_CHUNK = 256;
// Bytes of a block's first rows that wait in the second-level cache until x is known.
constexpr u32 GEMV_AHEAD = 65536;

extern __shared__ __align__(128) u8 shared_memory[];

// The matrix that a row belongs to, and which of its rows it is.
__device__ const Product& product_of(const Gemv& g, u32& row) {
    u32 p = 0;
    while (p + 1 < PRODUCTS && row >= g.products[p].rows) row -= g.products[p++].rows;
    return g.products[p];
}

__device__ const u8* gemv_row(const Gemv& g, u32 row) {
    const Product& p = product_of(g, row);
    return p.weights + u64(row) * p.stride;
}

template <u32 TYPE> __device__ void gemv(const Gemv& g) {
    using W = Weights<TYPE>;
    constexpr u32 QUADS = W::COLUMNS / 4;
    constexpr u32 ROWS = 4;
    constexpr u32 DEEP = 2;
    const u32 vectors = g.cols / W::COLUMNS;
    const u32 first = u64(g.rows) * blockIdx.x / gridDim.x, end = u64(g.rows) * (blockIdx.x + 1) / gridDim.x;
    if (threadIdx.x == 0)
        for (u32 row = first, bytes = 0; row < end && bytes < GEMV_AHEAD; row++, bytes += W::row_bytes(g.cols)) prefetch(gemv_row(g, row), W::row_bytes(g.cols));
    wait_for_previous_kernel();
    let_next_kernel_start();

    // Quad j of vector i lies at [j][i], so that lanes which take neighbouring vectors meet no bank twice.
    float4* x = reinterpret_cast<float4*>(shared_memory);
    for (u32 i = threadIdx.x; i < vectors * QUADS; i += GEMV_THREADS) x[i % QUADS * vectors + i / QUADS] = reinterpret_cast<const float4*>(g.x)[i];
    __syncthreads();
    float* sums = reinterpret_cast<float*>(x + vectors * QUADS);  // [GEMV_CHUNK][row_warps]

    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 team = warp / g.row_warps, teams = GEMV_WARPS / g.row_warps, part = warp % g.row_warps;
    const u32 step = 32 * g.row_warps;
    for (u32 chunk = first; chunk < end; chunk += GEMV_CHUNK) {
        const u32 count = min(GEMV_CHUNK, end - chunk);
        for (u32 r = ROWS * team; r < count; r += ROWS * teams) {
            const u8* rows[ROWS];
            float v[ROWS] = {};
#pragma unroll
            for (u32 k = 0; k < ROWS; k++) rows[k] = gemv_row(g, chunk + min(r + k, count - 1));
            const u32 there = min(ROWS, count - r);
            for (u32 at = 32 * part + lane; at < vectors; at += DEEP * step) {
                uint4 w[DEEP][ROWS];
#pragma unroll
                for (u32 d = 0; d < DEEP; d++)
#pragma unroll
                    for (u32 k = 0; k < ROWS; k++) {
                        w[d][k] = make_uint4(0, 0, 0, 0);
                        if (k < there && at + d * step < vectors) w[d][k] = read_weights(rows[k] + 16 * (at + d * step));
                    }
#pragma unroll
                for (u32 d = 0; d < DEEP; d++) {
                    const u32 i = at + d * step;
                    if (i >= vectors) break;
                    float xs[W::COLUMNS];
#pragma unroll
                    for (u32 j = 0; j < QUADS; j++) {
                        const float4 q = x[j * vectors + i];
                        xs[4 * j] = q.x;
                        xs[4 * j + 1] = q.y;
                        xs[4 * j + 2] = q.z;
                        xs[4 * j + 3] = q.w;
                    }
#pragma unroll
                    for (u32 k = 0; k < ROWS; k++) {
                        float values[W::COLUMNS], sum = 0;
                        W::values(w[d][k], values);
#pragma unroll
                        for (u32 c = 0; c < W::COLUMNS; c++) sum = fmaf(values[c], xs[c], sum);
                        v[k] = fmaf(W::scale(rows[k], g.cols, i * W::COLUMNS), sum, v[k]);
                    }
                }
            }
            const float sum = warp_sums(v);
            const u32 k = lane / (32 / ROWS);
            if (lane % (32 / ROWS) == 0 && k < there) sums[(r + k) * g.row_warps + part] = sum;
        }
        __syncthreads();
        for (u32 r = threadIdx.x; r < count; r += GEMV_THREADS) {
            u32 row = chunk + r;
            const Product& p = product_of(g, row);
            float sum = 0;
            for (u32 w = 0; w < g.row_warps; w++) sum += sums[r * g.row_warps + w];
            if (p.bias) sum += p.bias[row];
            if (p.residual) sum += p.residual[row];
            p.out[row] = sum;
        }
        __syncthreads();
    }
}

struct Embed {
    const u8* table;    // [vocabulary, cols]
    const u32* tokens;  // [blocks]
    float* out;         // [blocks, cols]
    u32 cols;
    u32 stride;
    float scale;
};

// A token a block.
template <u32 TYPE> __device__ void embed(const Embed& e) {
    using W = Weights<TYPE>;
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = e.table + u64(e.tokens[blockIdx.x]) * e.stride;
    float* out = e.out + u64(blockIdx.x) * e.cols;
    for (u32 i = threadIdx.x; i < e.cols / W::COLUMNS; i += blockDim.x) {
        float v[W::COLUMNS];
        W::values(reinterpret_cast<const uint4*>(row)[i], v);
        const float scale = W::scale(row, e.cols, i * W::COLUMNS) * e.scale;
        for (u32 c = 0; c < W::COLUMNS; c++) out[i * W::COLUMNS + c] = v[c] * scale;
    }
}

struct Unpack {
    const u8* rows;  // [blocks, cols]
    u16* out;        // [blocks, cols], f16
    u32 cols;
    u32 stride;
};

// Rows as f16, for products of prompts. A row a block.
template <u32 TYPE> __device__ void unpack_rows(const Unpack& u) {
    using W = Weights<TYPE>;
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = u.rows + u64(blockIdx.x) * u.stride;
    u16* out = u.out + u64(blockIdx.x) * u.cols;
    for (u32 i = threadIdx.x; i < u.cols / W::COLUMNS; i += blockDim.x) {
        float v[W::COLUMNS];
        W::values(reinterpret_cast<const uint4*>(row)[i], v);
        const float scale = W::scale(row, u.cols, i * W::COLUMNS);
        for (u32 c = 0; c < W::COLUMNS; c++) out[i * W::COLUMNS + c] = half_bits(v[c] * scale);
    }
}

#define KERNELS_OF(TYPE, name)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 2) gemv_##name(const __grid_constant__ Gemv g) { gemv<TYPE>(g); }        \
    extern "C" __global__ void __launch_bounds__(256) embed_##name(const __grid_constant__ Embed e) { embed<TYPE>(e); }
KERNELS_OF(BF16, bf16)
KERNELS_OF(F16, f16)
KERNELS_OF(F32, f32)
KERNELS_OF(Q8_0, q8_0)
KERNELS_OF(Q4_0, q4_0)
extern "C" __global__ void __launch_bounds__(256) unpack_q8_0(const __grid_constant__ Unpack u) { unpack_rows<Q8_0>(u); }
extern "C" __global__ void __launch_bounds__(256) unpack_q4_0(const __grid_constant__ Unpack u) { unpack_rows<Q4_0>(u); }
