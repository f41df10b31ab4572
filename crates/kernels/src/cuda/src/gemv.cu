// Products of up to three matrices with one vector, in one launch.
//
// Most rows of all matrices, one after the other, are dealt to blocks in contiguous ranges, one block a multiprocessor; the last ones go to whoever has time. One thread, the
// producer, streams a block's rows through a ring of slots in shared memory by bulk copies, which begin before the kernel before has ended; the consumers multiply, all of
// them each slot, so that it is soon free again; one warp more, the writer, adds up their parts.
//
// The host defines
//
//   COLS        length of rows, whole 16-byte vectors
//   WEIGHTS     their type (weights.cu)
//   GEMV_STATE  bytes of the state, which lies behind the slots; then come the levels of x of quantised types (levels.cu)

struct Gemv {
    Product products[PRODUCTS];  // rows of COLS weights
    const float* x;              // [COLS], at a multiple of 16 bytes
    const float* norm;           // [COLS]: x is divided by its root mean square and multiplied by this; or null, and x is taken as it is
    float eps;                   // added to the mean square
    u32 rows;                    // of all products
    u32 dealt;                   // of these, the first ones, those that are dealt to blocks beforehand
    u32 slots;
    u32 slot_rows;               // rows of a slot, at most
    u32 slot_bytes;              // a multiple of 128
    u32* tickets;                // a counter, 0 between launches
};

constexpr u32 GEMV_CONSUMERS = 256;
constexpr u32 GEMV_WARPS = GEMV_CONSUMERS / 32;
// Two warps more: the producer streams rows, the writer adds up the consumers' parts of their products.
constexpr u32 GEMV_THREADS = GEMV_CONSUMERS + 64;
constexpr u32 GEMV_SLOTS_MAX = 16;
constexpr u32 GEMV_SLOT_ROWS_MAX = 8;
constexpr u32 GEMV_SLOT_BYTES = 16384;  // about
// Slots that may be on their way at once: with more, blocks get unequal shares of the memory, and while the kernel before runs, what its blocks tell each other queues up
// behind weights.
constexpr u32 GEMV_WINDOW = 4;
constexpr u32 GEMV_CALM = 2;  // for the first round

struct GemvState {
    float parts[GEMV_SLOTS_MAX][GEMV_SLOT_ROWS_MAX][GEMV_WARPS];  // of the products of a slot's rows
    uint2 rows[GEMV_SLOTS_MAX];                                   // the first row of a slot, and how many there are: 0 is the end
    u64 full[GEMV_SLOTS_MAX];                                     // flips when a slot's bytes have arrived
    u64 read[GEMV_SLOTS_MAX];                                     // flips when all consumers have read it
    u64 empty[GEMV_SLOTS_MAX];                                    // flips when their parts are read, too
    float squares[GEMV_WARPS];
};
static_assert(sizeof(GemvState) <= GEMV_STATE && GEMV_STATE % 16 == 0, "the host knows how large it is");

extern __shared__ __align__(128) u8 shared_memory[];

// How a row is multiplied: by a team of warps, whose threads hold the parts of x that they multiply; short rows have several teams. A thread's parts are vectors of floats or
// blocks of levels.
struct Row {
    static constexpr u32 BYTES = Weights<WEIGHTS>::row_bytes(COLS);
    static constexpr bool LEVELS = Weights<WEIGHTS>::LEVELS;
    static constexpr u32 PART = LEVELS ? COLUMNS : 16 / (BYTES / COLS);  // columns
    static constexpr u32 PARTS = COLS / PART;
    static constexpr u32 WARPS = PARTS > 128 ? 8 : PARTS > 64 ? 4 : PARTS > 32 ? 2 : 1;  // of a team
    static constexpr u32 TEAMS = GEMV_WARPS / WARPS;
    static constexpr u32 TEAM = 32 * WARPS;
    static constexpr u32 EACH = ceil_div(PARTS, TEAM);  // parts of a thread

    __device__ static u32 part(u32 k) { return threadIdx.x % TEAM + k * TEAM; }
    __device__ static bool has(u32 k) { return PARTS % TEAM == 0 || part(k) < PARTS; }
};

// The factor of x's norm, from the sum of squares that each thread of a team has seen.
__device__ float norm_factor(const Gemv& g, float squares, float* sums) {
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) squares += __shfl_xor_sync(~0u, squares, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
    sync_some(1, GEMV_CONSUMERS);
    squares = 0;
#pragma unroll
    for (u32 w = 0; w < Row::WARPS; w++) squares += sums[threadIdx.x / Row::TEAM * Row::WARPS + w];
    return 1.0f / sqrtf(squares / COLS + g.eps);
}

// x, or its norm, as rows of TYPE are multiplied with it.
template <u32 TYPE, bool LEVELS = Weights<TYPE>::LEVELS> struct Operand;

template <u32 TYPE> struct Operand<TYPE, false> {
    using W = Weights<TYPE>;
    static constexpr u32 BYTES = 0;  // of shared memory
    float x[Row::EACH * Row::PART], norm[Row::EACH * Row::PART];

    __device__ static void fetch(const float* from, float* to) {
#pragma unroll
        for (u32 k = 0; k < Row::EACH; k++)
#pragma unroll
            for (u32 q = 0; q < Row::PART / 4; q++) {
                const float4 v = Row::has(k) ? reinterpret_cast<const float4*>(from)[Row::part(k) * (Row::PART / 4) + q] : make_float4(0, 0, 0, 0);
                float* at = to + k * Row::PART + 4 * q;
                at[0] = v.x;
                at[1] = v.y;
                at[2] = v.z;
                at[3] = v.w;
            }
    }

    // What depends on no other kernel.
    __device__ void prepare(const Gemv& g) {
        if (g.norm) fetch(g.norm, norm);
    }

    __device__ void load(const Gemv& g, float* sums, u8*) {
        fetch(g.x, x);
        if (!g.norm) return;
        float squares = 0;
#pragma unroll
        for (u32 i = 0; i < Row::EACH * Row::PART; i++) squares = fmaf(x[i], x[i], squares);
        const float factor = norm_factor(g, squares, sums);
#pragma unroll
        for (u32 i = 0; i < Row::EACH * Row::PART; i++) x[i] *= factor * norm[i];
    }

    // This thread's part of the product of a row and x.
    __device__ float dot(const u8* row) const {
        float all = 0;
#pragma unroll
        for (u32 k = 0; k < Row::EACH; k++) {
            if (!Row::has(k)) continue;
            float w[Row::PART], sum = 0;
            W::values(reinterpret_cast<const uint4*>(row)[Row::part(k)], w);
#pragma unroll
            for (u32 c = 0; c < Row::PART; c++) sum = fmaf(w[c], x[k * Row::PART + c], sum);
            all += sum;
        }
        return all;
    }
};

template <u32 TYPE> struct Operand<TYPE, true> {
    static constexpr u32 BYTES = levels_bytes(COLS);
    Levels x[Row::EACH];

    __device__ void prepare(const Gemv&) {}

    __device__ void load(const Gemv& g, float* sums, u8* room) {
        float factor = 1;
        if (g.norm) {
            float squares = 0;
            for (u32 i = threadIdx.x % Row::TEAM; i < COLS / 4; i += Row::TEAM) {
                const float4 v = reinterpret_cast<const float4*>(g.x)[i];
                squares = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares))));
            }
            factor = norm_factor(g, squares, sums);
        }
        store_levels<GEMV_CONSUMERS>(g.x, g.norm, factor, COLS, room);
        sync_some(1, GEMV_CONSUMERS);
#pragma unroll
        for (u32 k = 0; k < Row::EACH; k++) x[k] = Row::has(k) ? load_levels(room, COLS, Row::part(k)) : Levels{};
    }

    __device__ float dot(const u8* row) const {
        float all = 0;
#pragma unroll
        for (u32 k = 0; k < Row::EACH; k++)
            if (Row::has(k)) all += dot_block<TYPE>(row, COLS, Row::part(k), x[k]);
        return all;
    }
};

// A place in the ring, as each of those who go round it counts.
struct Turn {
    u32 slot = 0, phase = 0;

    __device__ void next(u32 slots) {
        if (++slot == slots) {
            slot = 0;
            phase ^= 1;
        }
    }
};

// Streams rows through the ring. For one thread.
struct RowStream {
    const Gemv& g;
    GemvState& s;
    u8* ring;
    u64 policy = read_once();
    Turn at = {}, arrives = {};  // the next slot, and the first of those that may be on their way
    u32 asked = 0, arrived = 0;  // slots

    __device__ void fill(u32 row, u32 count) {
        constexpr u32 row_bytes = Row::BYTES;
        for (const u32 most = asked < g.slots ? GEMV_CALM : GEMV_WINDOW; asked - arrived >= min(most, g.slots); arrived++) {
            barrier_wait(s.full[arrives.slot], arrives.phase);
            arrives.next(g.slots);
        }
        asked++;
        u64& full = s.full[at.slot];
        barrier_wait(s.empty[at.slot], at.phase ^ 1);
        s.rows[at.slot] = make_uint2(row, count);
        barrier_arrive_for_bytes(full, count * row_bytes);
        // As a rule all are of one matrix.
        for (u32 done = 0, some; done < count; done += some) {
            u32 in_product = row + done;
            const Product& p = product_of(g.products, in_product);
            some = min(count - done, p.rows - in_product);
            bulk_copy(ring + at.slot * g.slot_bytes + done * row_bytes, p.weights + u64(in_product) * row_bytes, some * row_bytes, full, policy);
        }
        at.next(g.slots);
    }

    __device__ void all() {
        const u32 first = u64(g.dealt) * blockIdx.x / gridDim.x, end = u64(g.dealt) * (blockIdx.x + 1) / gridDim.x;
        for (u32 row = first; row < end; row += g.slot_rows) fill(row, min(g.slot_rows, end - row));
        wait_for_previous_kernel();
        Tickets tickets(g.tickets, ceil_div(g.rows - g.dealt, g.slot_rows));
        for (u32 n = tickets.next(); n < tickets.count; n = tickets.next()) {
            const u32 row = g.dealt + n * g.slot_rows;
            fill(row, min(g.slot_rows, g.rows - row));
        }
        barrier_wait(s.empty[at.slot], at.phase ^ 1);
        s.rows[at.slot] = make_uint2(0, 0);
        barrier_arrive(s.full[at.slot]);
    }
};

// Adds up the parts of products. For a warp, a row a lane.
__device__ void write_products(const Gemv& g, GemvState& s) {
    const u32 lane = threadIdx.x % 32;
    for (Turn at;; at.next(g.slots)) {
        barrier_wait(s.full[at.slot], at.phase);
        const uint2 rows = s.rows[at.slot];
        if (rows.y == 0) return;
        const bool mine = lane < rows.y;
        u32 row = rows.x + lane;
        const Product& p = product_of(g.products, row);
        const float bias = mine && p.bias ? p.bias[row] : 0;
        barrier_wait(s.read[at.slot], at.phase);
        float sum = 0;
        if (mine)
#pragma unroll
            for (u32 w = 0; w < Row::WARPS; w++) sum += s.parts[at.slot][lane][w];
        barrier_arrive_warp(s.empty[at.slot]);
        if (!mine) continue;
        // Nobody else adds to it, so the sum does not depend on who comes first; and nobody waits for what is there.
        if (p.adds) atomicAdd(p.out + row, sum + bias);
        else p.out[row] = sum + bias;
    }
}

__device__ void multiply_rows(const Gemv& g) {
    u8* const ring = shared_memory;
    GemvState& s = *reinterpret_cast<GemvState*>(ring + g.slots * g.slot_bytes);
    if (threadIdx.x < g.slots) {
        barrier_init(s.full[threadIdx.x], 1);
        barrier_init_warps(s.read[threadIdx.x], GEMV_WARPS);
        barrier_init_warps(s.empty[threadIdx.x], 1);
    }
    barriers_ready();
    __syncthreads();
    if (threadIdx.x >= GEMV_CONSUMERS + 32) {
        wait_for_previous_kernel();
        write_products(g, s);
        return;
    }
    if (threadIdx.x >= GEMV_CONSUMERS) {
        if (threadIdx.x == GEMV_CONSUMERS) RowStream{g, s, ring}.all();
        return;
    }
    Operand<WEIGHTS> x;
    x.prepare(g);
    wait_for_previous_kernel();
    let_next_kernel_start();
    x.load(g, s.squares, reinterpret_cast<u8*>(&s) + GEMV_STATE);

    // Rows that a team takes together, for which it adds up at once.
    constexpr u32 TOGETHER = GEMV_SLOT_ROWS_MAX * Row::BYTES <= GEMV_SLOT_BYTES + Row::BYTES ? 4 : 2;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % Row::WARPS, team = threadIdx.x / Row::TEAM;
    for (Turn at;; at.next(g.slots)) {
        const u8* const rows = ring + at.slot * g.slot_bytes;
        barrier_wait(s.full[at.slot], at.phase);
        const u32 count = s.rows[at.slot].y;
        if (count == 0) break;
        for (u32 r = TOGETHER * team; r < count; r += TOGETHER * Row::TEAMS) {
            float v[TOGETHER];
            // Of a row that does not exist, the last one: nobody looks at its sum.
#pragma unroll
            for (u32 k = 0; k < TOGETHER; k++) v[k] = x.dot(rows + min(r + k, count - 1) * Row::BYTES);
            const float sum = warp_sums(v);
            const u32 k = lane / (32 / TOGETHER);
            if (lane % (32 / TOGETHER) == 0 && r + k < count) s.parts[at.slot][r + k][warp] = sum;
        }
        barrier_arrive_warp(s.read[at.slot]);
    }
}

extern "C" __global__ void __launch_bounds__(GEMV_THREADS, 1) gemv(const __grid_constant__ Gemv g) { multiply_rows(g); }
