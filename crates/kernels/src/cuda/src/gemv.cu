// Products of up to three matrices with one vector, in one launch; rows of embeddings.
//
// Rows of all matrices, one after the other, are dealt to blocks in contiguous ranges, one block a multiprocessor. One thread, the producer, streams a block's rows
// through a ring of slots in shared memory by bulk copies, which begin before the kernel before has ended; the other warps, the consumers, multiply. A slot
// holds a few rows of one matrix.

struct Product {
    const u8* weights;      // [rows, cols], one row behind the other
    const float* bias;      // [rows], or null
    const float* residual;  // [rows], or null: added, too; may be `out`
    float* out;             // [rows]
    u32 rows;
};

constexpr u32 PRODUCTS = 3;

struct Gemv {
    Product products[PRODUCTS];  // those that are missing have no rows
    const float* x;              // [cols], at a multiple of 16 bytes
    u32 cols;
    u32 rows;        // of all products
    u32 slots;
    u32 slot_rows;   // rows of a slot, at most
    u32 slot_bytes;  // a multiple of 128
    float eps;           // added to the mean square
    const float* norm;   // [cols]: x is divided by its root mean square and multiplied by this; or null, and x is taken as it is
};

constexpr u32 GEMV_CONSUMERS = 256;
constexpr u32 GEMV_THREADS = GEMV_CONSUMERS + 32;
constexpr u32 GEMV_WARPS = GEMV_CONSUMERS / 32;
constexpr u32 GEMV_SLOTS_MAX = 16;

struct GemvState {
    u64 full[GEMV_SLOTS_MAX];   // flips when a slot's bytes have arrived
    u64 empty[GEMV_SLOTS_MAX];  // flips when it is read
    float squares[GEMV_WARPS];
};

extern __shared__ __align__(128) u8 shared_memory[];

// The matrix that a row belongs to; `row` becomes which of its rows it is.
__device__ const Product& product_of(const Gemv& g, u32& row) {
    u32 p = 0;
    while (p + 1 < PRODUCTS && row >= g.products[p].rows) row -= g.products[p++].rows;
    return g.products[p];
}

// What x is divided by, the root mean square, as a factor, from the squares that each consumer has seen.
__device__ float norm_factor(const Gemv& g, float squares, float* sums) {
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) squares += __shfl_xor_sync(~0u, squares, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
    sync_some(1, GEMV_CONSUMERS);
    squares = 0;
#pragma unroll
    for (u32 w = 0; w < GEMV_WARPS; w++) squares += sums[w];
    return 1.0f / sqrtf(squares / g.cols + g.eps);
}

// How a row of TYPE is multiplied: what x is in shared memory, and a lane's part of products of TOGETHER rows with it.
template <u32 TYPE, bool LEVELS = Weights<TYPE>::LEVELS> struct Operand;

// Floats: x, or its norm, with quad j of vector i at [j][i], so that lanes which take neighbouring vectors meet no bank twice.
template <u32 TYPE> struct Operand<TYPE, false> {
    using W = Weights<TYPE>;
    static constexpr u32 QUADS = W::COLUMNS / 4;

    __device__ static u32 bytes(u32 cols) { return 4 * cols; }

    __device__ static void store(const Gemv& g, u8* to, float* sums) {
        float4* x = reinterpret_cast<float4*>(to);
        const u32 vectors = g.cols / W::COLUMNS;
        float squares = 0;
        for (u32 i = threadIdx.x; i < vectors * QUADS; i += GEMV_CONSUMERS) {
            const float4 v = reinterpret_cast<const float4*>(g.x)[i];
            x[i % QUADS * vectors + i / QUADS] = v;
            squares = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares))));
        }
        if (!g.norm) return;
        const float factor = norm_factor(g, squares, sums);
        for (u32 i = threadIdx.x; i < vectors * QUADS; i += GEMV_CONSUMERS) {
            const float4 w = reinterpret_cast<const float4*>(g.norm)[i];
            float4& v = x[i % QUADS * vectors + i / QUADS];
            v = make_float4(v.x * (factor * w.x), v.y * (factor * w.y), v.z * (factor * w.z), v.w * (factor * w.w));
        }
    }

    template <u32 TOGETHER> __device__ static void dot(const u8* const (&rows)[TOGETHER], u32 cols, const u8* from, float (&v)[TOGETHER]) {
        const float4* x = reinterpret_cast<const float4*>(from);
        const u32 vectors = cols / W::COLUMNS;
#pragma unroll 4
        for (u32 i = threadIdx.x % 32; i < vectors; i += 32) {
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
            for (u32 k = 0; k < TOGETHER; k++) {
                float values[W::COLUMNS];
                W::values(reinterpret_cast<const uint4*>(rows[k])[i], values);
                float sum = 0;
#pragma unroll
                for (u32 c = 0; c < W::COLUMNS; c++) sum = fmaf(values[c], xs[c], sum);
                v[k] += sum;
            }
        }
    }
};

// Levels.
template <u32 TYPE> struct Operand<TYPE, true> {
    __device__ static u32 bytes(u32 cols) { return levels_bytes(cols); }

    __device__ static void store(const Gemv& g, u8* to, float* sums) {
        float factor = 1, squares = 0;
        if (g.norm) {
            for (u32 i = threadIdx.x; i < g.cols / 4; i += GEMV_CONSUMERS) {
                const float4 v = reinterpret_cast<const float4*>(g.x)[i];
                squares = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares))));
            }
            factor = norm_factor(g, squares, sums);
        }
        store_levels<GEMV_CONSUMERS>(g.x, g.norm, factor, g.cols, to);
    }

    template <u32 TOGETHER> __device__ static void dot(const u8* const (&rows)[TOGETHER], u32 cols, const u8* from, float (&v)[TOGETHER]) {
#pragma unroll 4
        for (u32 block = threadIdx.x % 32; block < cols / COLUMNS; block += 32) {
            const Levels x = load_levels(from, cols, block);
#pragma unroll
            for (u32 k = 0; k < TOGETHER; k++) v[k] += dot_block<TYPE>(rows[k], cols, block, x);
        }
    }
};

template <u32 TYPE> __device__ void gemv(const Gemv& g) {
    using X = Operand<TYPE>;
    const u32 row_bytes = Weights<TYPE>::row_bytes(g.cols);
    const u32 first = u64(g.rows) * blockIdx.x / gridDim.x, end = u64(g.rows) * (blockIdx.x + 1) / gridDim.x;
    u8* const ring = shared_memory;
    u8* const x = ring + g.slots * g.slot_bytes;
    GemvState& s = *reinterpret_cast<GemvState*>(x + X::bytes(g.cols));
    if (threadIdx.x < g.slots) {
        barrier_init(s.full[threadIdx.x], 1);
        barrier_init(s.empty[threadIdx.x], 1);
    }
    barriers_ready();
    __syncthreads();
    if (threadIdx.x >= GEMV_CONSUMERS) {
        if (threadIdx.x > GEMV_CONSUMERS) return;
        const u64 policy = read_once();
        u32 slot = 0, phase = 0;
        for (u32 row = first; row < end; row += g.slot_rows) {
            const u32 count = min(g.slot_rows, end - row);
            barrier_wait(s.empty[slot], phase ^ 1);
            barrier_arrive_for_bytes(s.full[slot], count * row_bytes);
            // As a rule all are of one matrix.
            for (u32 done = 0, some; done < count; done += some) {
                u32 in_product = row + done;
                const Product& p = product_of(g, in_product);
                some = min(count - done, p.rows - in_product);
                bulk_copy(ring + slot * g.slot_bytes + done * row_bytes, p.weights + u64(in_product) * row_bytes, some * row_bytes, s.full[slot], policy);
            }
            if (++slot == g.slots) {
                slot = 0;
                phase ^= 1;
            }
        }
        return;
    }
    wait_for_previous_kernel();
    let_next_kernel_start();
    X::store(g, x, s.squares);
    sync_some(1, GEMV_CONSUMERS);

    // A slot is always read by the same warp, two rows at a time: warps wait for neither bytes nor each other together, and none is a round ahead, where it would
    // take an old phase of a barrier for a new one.
    constexpr u32 TOGETHER = 2;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 round = 0;
    for (u32 slot = warp; slot < g.slots;) {
        const u32 row = first + (round * g.slots + slot) * g.slot_rows;
        if (row >= end) break;
        const u32 count = min(g.slot_rows, end - row);
        const u8* const rows = ring + slot * g.slot_bytes;
        barrier_wait(s.full[slot], round % 2);
        for (u32 r = 0; r < count; r += TOGETHER) {
            // Of a row that does not exist, the last one: nobody looks at its sum.
            const u8* at[TOGETHER];
#pragma unroll
            for (u32 k = 0; k < TOGETHER; k++) at[k] = rows + min(r + k, count - 1) * row_bytes;
            float v[TOGETHER] = {};
            X::dot(at, g.cols, x, v);
            float sum = warp_sums(v);
            const u32 k = lane / (32 / TOGETHER);
            if (lane % (32 / TOGETHER) == 0 && r + k < count) {
                u32 in_product = row + r + k;
                const Product& p = product_of(g, in_product);
                if (p.bias) sum += p.bias[in_product];
                if (p.residual) sum += p.residual[in_product];
                p.out[in_product] = sum;
            }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(s.empty[slot]);
        slot += GEMV_WARPS;
        if (slot >= g.slots) {
            slot = warp;
            round++;
        }
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
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = e.table + u64(e.tokens[blockIdx.x]) * e.stride;
    float* out = e.out + u64(blockIdx.x) * e.cols;
    for (u32 run = threadIdx.x; run < e.cols / 8; run += blockDim.x) {
        float v[8];
        values8<TYPE>(row, e.cols, run, v);
        for (u32 i = 0; i < 8; i++) out[8 * run + i] = v[i] * e.scale;
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
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = u.rows + u64(blockIdx.x) * u.stride;
    u16* out = u.out + u64(blockIdx.x) * u.cols;
    for (u32 run = threadIdx.x; run < u.cols / 8; run += blockDim.x) {
        float v[8];
        values8<TYPE>(row, u.cols, run, v);
        for (u32 i = 0; i < 8; i++) out[8 * run + i] = half_bits(v[i]);
    }
}

#define KERNELS_OF(TYPE, name)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 1) gemv_##name(const __grid_constant__ Gemv g) { gemv<TYPE>(g); }        \
    extern "C" __global__ void __launch_bounds__(256) embed_##name(const __grid_constant__ Embed e) { embed<TYPE>(e); }
#define UNPACK_OF(TYPE, name) extern "C" __global__ void __launch_bounds__(256) unpack_##name(const __grid_constant__ Unpack u) { unpack_rows<TYPE>(u); }
KERNELS_OF(BF16, bf16)
KERNELS_OF(F16, f16)
KERNELS_OF(F32, f32)
KERNELS_OF(Q8_0, q8_0)
KERNELS_OF(Q4_0, q4_0)
KERNELS_OF(Q4_1, q4_1)
KERNELS_OF(Q5_0, q5_0)
KERNELS_OF(Q5_1, q5_1)
KERNELS_OF(Q4_K, q4_k)
KERNELS_OF(Q5_K, q5_k)
KERNELS_OF(Q6_K, q6_k)
UNPACK_OF(Q8_0, q8_0)
UNPACK_OF(Q4_0, q4_0)
UNPACK_OF(Q4_1, q4_1)
UNPACK_OF(Q5_0, q5_0)
UNPACK_OF(Q5_1, q5_1)
UNPACK_OF(Q4_K, q4_k)
UNPACK_OF(Q5_K, q5_k)
UNPACK_OF(Q6_K, q6_k)
