// What a gated FFN is given, and what a block keeps in shared memory.

// y = residual + sum over the neurons kept of act(gate_i . x) * (up_i . x) * down_i.
struct Ffn {
    const u8* gate;  // [INTER, HIDDEN] of type WEIGHTS, one row behind the other
    const u8* up;    // the same
    const u8* down;  // the same of type DOWN: a row is what the neuron adds to y
    const float* x;         // [HIDDEN], at a multiple of 16 bytes
    const float* residual;  // [HIDDEN], or null for 0
    float* y;               // [HIDDEN]; may be residual
    u32* kept;              // 1: how many neurons were kept; or null. Not written by the dense kernel

    // The cut: a neuron of signal s is kept where its score exceeds tau. A score that is not a number exceeds nothing.
    const float* positive;  // [INTER], for SCORE_WEIGHTED
    const float* negative;  // [INTER], for SCORE_WEIGHTED
    float tau;
    u32 score;
    // Neurons that a block may take of those it keeps before all counts are known: somewhat less (0.85) than its part of those that are kept on average.
    u32 early;

    // The predictor.
    const u8* inner;    // [RANK, HIDDEN] of type INNER, where there are such rows
    const u8* outer;    // [INTER, MATRICES, RANK or HIDDEN] of type OUTER
    const float* bias;  // [MATRICES, INTER], or null

    // Passed between blocks (flow.cu): EMPTY before the first launch and after each.
    float* partial;  // [BLOCKS, HIDDEN]
    float* low;      // [RANK]: A x
    u16* shares;     // [BLOCKS, up to a multiple of 8]
    u64* entries;    // [BLOCKS, ROWS_MAX]

    const float* norm;  // [HIDDEN]: x is divided by its root mean square and multiplied by this; or null, and x is taken as it is
    float eps;          // added to the mean square

#if JOINED
    // The product before, which makes x: residual + output * attended, where it has rows.
    Product output;         // [HIDDEN, ATTENDED] of type WEIGHTS; it has no `out`
    const float* attended;  // [ATTENDED], at a multiple of 16 bytes
    float* words;           // [ATTENDED]: the same passed by attention's blocks, before that launch has ended; or null
    // The products after, with y or its norm, where they have rows.
    Product next[PRODUCTS];  // rows of HIDDEN weights of type WEIGHTS
    Product values;          // after them, of type VALUES
    const float* next_norm;  // as norm
    float next_eps;
    // Passed between blocks: EMPTY before the first launch, and `made` and `words` after each. What a launch has passed the next one empties.
    float* made;              // [HIDDEN]: x, or where NORMED what is normed and added to make it
    float* passed;            // [HIDDEN]: y, likewise
    float* passed_before;     // [HIDDEN]: y of the launch before, which is the residual unless NORMED; or null
    float* projected_before;  // [projected]: what attention was given by the launch before in words; or null
    u32 projected;
#if NORMED
    // The residual stream is x; where `output` has rows, the norm of what that makes is added to it first. Products after are of the stream with the norm of y added; where there
    // are none, the stream is written without, and a launch of its own adds that.
    float* stream;             // [HIDDEN]: where x is, and where the stream is written
    const float* output_norm;  // [HIDDEN]
    const float* y_norm;       // [HIDDEN]
    float added_eps;           // of both norms
    float* carried;            // [HIDDEN]: the stream as the next launch finds it, passed as y is
    float* carried_before;     // [HIDDEN]: the same of the launch before; or null
#endif
#endif
};

constexpr u32 SCORE_MAGNITUDE = 0;  // |s|
constexpr u32 SCORE_VALUE = 1;      // s
constexpr u32 SCORE_WEIGHTED = 2;   // max(s * positive, -s * negative)

// Of the item that begins in a slot: the neuron's signal, if it has one, and whether there is an item at all.
struct Item {
    float signal;
    u32 more;
};

// Groups of neurons whose scores are waited for together: of 32, or of what four slots of a low-rank predictor hold.
constexpr u32 GROUPS_MAX = ROWS_MAX / 4;

// Batches of neurons to take: the early ones, 32 at a time, and an empty one.
constexpr u32 BATCHES_MAX = ceil_div(ROWS_MAX, 32) + 2;

// Rows of a product beside the FFN that a team multiplies at once, at most (joined.cu).
constexpr u32 PRODUCT_ROWS_MAX = 8;

// Room for one thing after the other: levels of x, if it is rounded; sums of each warp for all rows; and what blocks' sums are added up in (gather.cu), which is in the ring where
// no rows come through that any more.
constexpr u32 LEVELS_ROOM = LEVELS || (FORM > 0 && RANK == 0) ? levels_bytes(WIDEST) / 4 : 0;
constexpr u32 ROW_SUMS = FORM > 0 && RANK == 0 ? 2 * HALF / 32 : WARPS;  // of a row, or of both rows of a predictor's outer matrices
constexpr u32 ROW_ROOM = ceil_div(ROWS_MAX, PRODUCT_ROWS_MAX) * PRODUCT_ROWS_MAX * ROW_SUMS;
constexpr u32 GATHER_BYTES = larger((TEAMS - 1) * HIDDEN * 4, CONSUMERS * 16);
constexpr u32 ROOM = ceil_div(larger(larger(ROW_ROOM, LEVELS_ROOM), JOINED ? GATHER_BYTES / 4 : 0), 4) * 4;  // whole vectors
// Sums of each warp for a block's rows of A.
constexpr u32 LOW_ROOM = ceil_div(ceil_div(RANK, BLOCKS), 4) * 4 * WARPS;

struct alignas(16) Shared {
    float room[ROOM];
#if JOINED && NORMED
    float stream[HIDDEN];        // the residual stream
#endif
#if RANK > 0
    float low_x[RANK];           // A x
    float low_sums[LOW_ROOM];
    float low_scores[ROWS_MAX * MATRICES];
#endif
    RingState ring;
    alignas(16) u16 left_before[256];  // neurons that blocks before that one did not take early
#if RACECHECK
    u64 meetings[TEAMS + 1];     // of each team, and of all consumers
#endif
    u64 scored[GROUPS_MAX];
    u64 kept[ROWS_MAX];          // neurons that this block's scores keep, with their signals; then those that it takes
    u64 chosen[BATCHES_MAX];     // flips when a batch of the latter is there
    u32 batch[BATCHES_MAX];      // how many there are in it
    u32 takes;                   // how many this block takes in all; with the second batch
    Item items[SLOTS_MAX];
    float cuts[2 + (FORM > 0 ? MATRICES : 0)][ROWS_MAX];  // what this block's neurons are decided by: positive, negative, biases
    alignas(16) float exchange[TEAMS][2][2][WARPS];
    alignas(16) float squares[TEAMS][WARPS];
};

constexpr u32 SLOTS_FIT = (SHARED_BYTES - sizeof(Shared)) / SLOT_BYTES;
constexpr u32 SLOTS = SLOTS_FIT < SLOTS_MAX ? SLOTS_FIT : SLOTS_MAX;
static_assert(SHARED_BYTES > sizeof(Shared) && SLOTS_FIT >= 4, "a ring of four rows fits in no less shared memory");
static_assert(RANK == 0 || SLOTS >= 4 * INNER_PARTS, "rows of A that are multiplied together fit in the ring");
static_assert(SLOTS > 3 * (TEAMS - 1), "the ends of all teams' neurons fit in the ring");

extern __shared__ __align__(128) u8 shared_memory[];

__device__ Shared& shared() { return *reinterpret_cast<Shared*>(shared_memory + SLOTS * SLOT_BYTES); }
__device__ u8* slot(u32 place) { return shared_memory + place % SLOTS * SLOT_BYTES; }
// The i-th of `count` places that are there; what is in others nobody needs.
__device__ u32 some_place(u32 i, u32 count) { return RACECHECK ? min(i, count - 1) : i; }
// Row r of those that share slots from a place on.
__device__ const u8* packed_row(u32 place, u32 r) { return slot(place + r / PACK) + r % PACK * ROW_BYTES; }

// Waits until the bytes of a place are there. For consumers. Copies may arrive in any order, and a team does not wait for those meant for others: it could come here a round
// of the ring before what the slot is still waiting for, whose phase looks like the end of its own. Not once the place has been asked for.
__device__ void wait_full(u32 place) {
    if constexpr (TEAMS > 1)
        while (look_at(shared().ring.asked) <= place) __nanosleep(0);
    barrier_wait(shared().ring.full[place % SLOTS], place / SLOTS % 2);
}

// Bytes of weights that a block asks for at a time. Fewer do not fill the memory's latency; with more, blocks get unequal shares of it and what blocks tell each
// other queues up behind weights.
#ifndef WINDOW_BYTES
#define WINDOW_BYTES 40960
#endif
// The same while blocks may wait for each other's words: of the first ring, while the kernel before runs, and of neurons taken before all counts are known.
#ifndef CALM_BYTES
#define CALM_BYTES (JOINED ? 32768 : 24576)
#endif
// Picoseconds a byte, from the host: no block asks for more than its share of what the memory can give, so that none falls behind. 0 for no limit; here 132 blocks share the
// 3.2 TB/s of an H100.
#ifndef PACE
#define PACE 41
#endif
// Short rows come as fast as one thread can ask for them, and a look at the time would take as long as a row.
constexpr bool PACED = PACE > 0 && !LEVELS;
// A block that falls behind all the same asks for so many bytes more at a time for each nanosecond, and so gets a larger share, but not for more than so many nanoseconds.
// Where the next kernel's ring fills beside the last rows, it does better without.
#ifndef BEHIND
#define BEHIND (JOINED ? 4 : 0)
#endif
constexpr u64 BEHIND_MAX = 16384;

__device__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// Places filled between two looks at what has arrived and at the time: about 9 kB of rows, for a look takes as long as a copy.
constexpr u32 LOOK_WANTED = larger(9216 / PACK_BYTES, 1);
constexpr u32 LOOK = LOOK_WANTED < SLOTS / 4 ? LOOK_WANTED : SLOTS / 4;

// The producer: one thread, which fills places in turn. It issues a copy every 300 ns or sooner, so it counts slots instead of dividing.
struct Producer {
    u32 slot = 0, phase = 0;                   // where the next place lies
    u32 asked = 0, arrived = 0;                // places filled, and those that are taken to be there
    u32 arrived_slot = 0, arrived_phase = 0;   // where the first of those lies that are not
    u32 window = CALM_BYTES;                   // bytes that may be on their way
    u32 unseen = LOOK, unpaced = 0;            // places filled since the last look, and their bytes
    u64 policy = read_once();
    u64 due = nanoseconds();

    __device__ static void next(u32& slot, u32& phase) {
        if (++slot == SLOTS) {
            slot = 0;
            phase ^= 1;
        }
    }
    __device__ void wait() {
        u64& empty = shared().ring.empty[slot];
        if (barrier_done(empty, phase ^ 1)) return;
        barrier_wait(empty, phase ^ 1);
        resume();
    }
    // After waiting for others of its block, which is not falling behind.
    __device__ void resume() {
        if (!PACED) return;
        const u64 now = nanoseconds();
        if (now > due) due = now;
    }

    // Waits until no more is on its way than may be, if places are of so many bytes, and for the time.
    __device__ void look(u32 bytes) {
        u32 last = SLOTS, last_phase = 0;
        u32 window = this->window;
        if (PACED && BEHIND > 0) {
            const u64 now = nanoseconds();
            if (now > due) window += BEHIND * u32(min(now - due, BEHIND_MAX));
        }
        // A slot cannot be waited for once it is asked to be filled again.
        while ((asked - arrived) * bytes >= window || asked - arrived + LOOK > SLOTS) {
            last = arrived_slot;
            last_phase = arrived_phase;
            next(arrived_slot, arrived_phase);
            arrived++;
        }
        // Where that has arrived, those asked for before have, or are about to.
        if (last < SLOTS) barrier_wait(shared().ring.full[last], last_phase);
        if (PACED) {
            while (nanoseconds() < due) {}
            due += unpaced * PACE / 1000;
        }
        unseen = unpaced = 0;
    }

    // Streams bytes to the next place, once it is free; BYTES of them or, at an end, fewer.
    template <u32 BYTES> __device__ void fill(const u8* from, u32 bytes = BYTES) {
        wait();
        send<BYTES>(from, bytes);
    }
    // The same to a place that is known to be free.
    template <u32 BYTES> __device__ void send(const u8* from, u32 bytes = BYTES) {
        u64& full = expect<BYTES>(bytes);
        bulk_copy(shared_memory + slot * SLOT_BYTES, from, bytes, full, policy);
        advance();
    }
    // The same of two times BYTES from two places in memory.
    template <u32 BYTES> __device__ void send_two(const u8* first, const u8* second) {
        u64& full = expect<2 * BYTES>(2 * BYTES);
        bulk_copy(shared_memory + slot * SLOT_BYTES, first, BYTES, full, policy);
        bulk_copy(shared_memory + slot * SLOT_BYTES + BYTES, second, BYTES, full, policy);
        advance();
    }
    template <u32 BYTES> __device__ u64& expect(u32 bytes) {
        count(BYTES);
        unpaced += BYTES;
        u64& full = shared().ring.full[slot];
        barrier_arrive_for_bytes(full, bytes);
        return full;
    }
    // Leaves what lies at the next place as it is, once that is free, and says that it is there.
    __device__ void leave() {
        wait();
        count(PACK_BYTES);
        barrier_arrive(shared().ring.full[slot]);
        advance();
    }
    __device__ void count(u32 bytes) {
        if (unseen == LOOK) look(bytes);
        unseen++;
    }
    __device__ void advance() {
        show(shared().ring.asked, ++asked);
        next(slot, phase);
    }
};

// Gives `count` places from `place` back. For every warp of the team that they were meant for.
__device__ void release(u32 place, u32 count) {
#if RACECHECK
    for (u32 i = 0; i < count; i++) barrier_arrive_warp(shared().ring.empty[(place + i) % SLOTS]);
#else
    __syncwarp();
    if (threadIdx.x % 32 < count) barrier_arrive(shared().ring.empty[(place + threadIdx.x % 32) % SLOTS]);
#endif
}

__device__ void init_shared() {
    Shared& s = shared();
    for (u32 i = threadIdx.x; i < SLOTS; i += THREADS) {
        barrier_init(s.ring.full[i], 1);
        barrier_init_warps(s.ring.empty[i], WARPS);
    }
    if (threadIdx.x < BATCHES_MAX) barrier_init_warps(s.chosen[threadIdx.x], 1);
    if (threadIdx.x == 0) s.ring.asked = 0;
#if RACECHECK
    if (threadIdx.x <= TEAMS) barrier_init(s.meetings[threadIdx.x], threadIdx.x < TEAMS ? TEAM : CONSUMERS);
#endif
}

// Neurons are dealt to blocks in runs of `RUN`, so that blocks which are about as far read memory about the same place. The neuron of a block's row, and how many rows it has.
// In each round they come in another order, lest a block always meets the same memory channels.
constexpr u32 TURN = 37;
__device__ u32 turn(u32 round) { return (blockIdx.x + round * TURN) % BLOCKS; }
template <u32 RUN> __device__ u32 neuron(u32 row) { return (row / RUN * BLOCKS + turn(row / RUN)) * RUN + row % RUN; }
template <u32 RUN> __device__ u32 row_count() {
    constexpr u32 RUNS_ALL = ceil_div(INTER, RUN);
    constexpr u32 ROUNDS = RUNS_ALL / BLOCKS, REST = RUNS_ALL % BLOCKS;
    constexpr u32 MISSING = RUNS_ALL * RUN - INTER;
    if constexpr (REST == 0) return ROUNDS * RUN - (turn(ROUNDS - 1) == BLOCKS - 1 ? MISSING : 0);
    const u32 last = turn(ROUNDS);
    return REST > 0 && last < REST ? (ROUNDS + 1) * RUN - (last + 1 == REST ? MISSING : 0) : ROUNDS * RUN;
}

__device__ u32 team() { return threadIdx.x / TEAM; }
__device__ u32 team_thread() { return threadIdx.x % TEAM; }
__device__ u32 team_warp() { return threadIdx.x % TEAM / 32; }
// Waits for all `threads` of a team or, `who` being TEAMS, of all of them; `id` is their barrier.
__device__ void meet(u32 who, u32 id, u32 threads) {
#if RACECHECK
    barrier_sync(shared().meetings[who]);
#else
    sync_some(id, threads);
#endif
}
__device__ void sync_team() { meet(team(), 1 + team(), TEAM); }

// A thread's columns of x or y, or of another vector of COLS: runs of 8 from columns 8 * (team_thread() + k * TEAM).
struct Columns {
    float v[8 * RUNS_EACH];
};

template <u32 COLS = HIDDEN> __device__ bool has_run(u32 k) { return COLS / 8 == RUNS_EACH * TEAM || team_thread() + k * TEAM < COLS / 8; }
__device__ u32 run(u32 k) { return team_thread() + k * TEAM; }

template <u32 COLS = HIDDEN> __device__ Columns load_columns(const float* x) {
    Columns c;
#pragma unroll
    for (u32 k = 0; k < RUNS_EACH; k++) {
        float4 lo = make_float4(0, 0, 0, 0), hi = lo;
        if (has_run<COLS>(k)) {
            lo = reinterpret_cast<const float4*>(x)[2 * run(k)];
            hi = reinterpret_cast<const float4*>(x)[2 * run(k) + 1];
        }
        const float v[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
        for (u32 i = 0; i < 8; i++) c.v[8 * k + i] = v[i];
    }
    return c;
}

// The same of what a kernel has written that may have ended since this one began.
__device__ Columns peek_columns(const float* x) {
    Columns c;
#pragma unroll
    for (u32 i = 0; i < 2 * RUNS_EACH; i++) {
        const float4 v = has_run(i / 2) ? peek4(x + 8 * run(i / 2) + 4 * (i % 2)) : make_float4(0, 0, 0, 0);
        c.v[4 * i] = v.x;
        c.v[4 * i + 1] = v.y;
        c.v[4 * i + 2] = v.z;
        c.v[4 * i + 3] = v.w;
    }
    return c;
}

// Writes a thread's columns, or publishes them as words.
__device__ void put_columns(float* to, const Columns& y, bool publish) {
#pragma unroll
    for (u32 k = 0; k < RUNS_EACH; k++) {
        if (!has_run(k)) continue;
        const float* v = y.v + 8 * k;
        float4 lo = make_float4(v[0], v[1], v[2], v[3]), hi = make_float4(v[4], v[5], v[6], v[7]);
        if (publish) {
            lo = make_float4(not_empty(lo.x), not_empty(lo.y), not_empty(lo.z), not_empty(lo.w));
            hi = make_float4(not_empty(hi.x), not_empty(hi.y), not_empty(hi.z), not_empty(hi.w));
            put(to + 8 * run(k), lo);
            put(to + 8 * run(k) + 4, hi);
        } else {
            reinterpret_cast<float4*>(to)[2 * run(k)] = lo;
            reinterpret_cast<float4*>(to)[2 * run(k) + 1] = hi;
        }
    }
}

// A thread's columns of words that blocks put (flow.cu), once the team has found all to be there. At first one lane asks for its warp: all blocks ask for the same few lines, and so many
// questions would keep waiting those who write them.
template <u32 COLS = HIDDEN> __device__ Columns load_words(const float* x) {
    if (threadIdx.x % 32 == 0 && has_run<COLS>(0)) await_word(x + 8 * run(0));
    __syncwarp();
    Columns c;
    float4 v[2 * RUNS_EACH];
#pragma unroll
    for (u32 i = 0; i < 2 * RUNS_EACH; i++) v[i] = has_run<COLS>(i / 2) ? empty4() : make_float4(0, 0, 0, 0);
    bool missing;
    do {
        missing = false;
#pragma unroll
        for (u32 i = 0; i < 2 * RUNS_EACH; i++)
            if (is_empty(v[i])) v[i] = peek4(x + 8 * run(i / 2) + 4 * (i % 2));
#pragma unroll
        for (u32 i = 0; i < 2 * RUNS_EACH; i++) missing |= is_empty(v[i]);
    } while (missing);
    sync_team();
#pragma unroll
    for (u32 i = 0; i < 2 * RUNS_EACH; i++) {
        c.v[4 * i] = v[i].x;
        c.v[4 * i + 1] = v[i].y;
        c.v[4 * i + 2] = v[i].z;
        c.v[4 * i + 3] = v[i].w;
    }
    return c;
}

// What x is divided by, the root mean square, as a factor; for all consumers.
__device__ float norm_factor(const Columns& x, float eps) {
    float squares = 0;
#pragma unroll
    for (u32 i = 0; i < 8 * RUNS_EACH; i++) squares = fmaf(x.v[i], x.v[i], squares);
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) squares += __shfl_xor_sync(~0u, squares, d);
    float* sums = shared().squares[team()];
    if (threadIdx.x % 32 == 0) sums[team_warp()] = squares;
    sync_team();
    squares = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) squares += sums[w];
    return 1.0f / sqrtf(squares / HIDDEN + eps);
}

// What x is multiplied by once it is normed, which no other kernel writes; or null.
struct Norm {
    const float* weight;
    float eps;
    Columns columns;
};

__device__ Norm load_norm(const float* weight, float eps) { return {weight, eps, weight ? load_columns(weight) : Columns{}}; }

// x as it is multiplied: the columns of this thread, and of levels the block of 32 columns with the thread's number.
struct Input {
    Columns columns;
    Levels levels;
};

constexpr u32 ALL = 15;  // the barrier of all consumers
__device__ void sync_consumers() { meet(TEAMS, ALL, CONSUMERS); }

// This thread's block of x, of which it has `columns`; for all consumers, before anything else is in the room.
template <u32 COLS = HIDDEN> __device__ Levels input_levels(const Columns& columns) {
    u8* room = reinterpret_cast<u8*>(shared().room);
#pragma unroll
    for (u32 k = 0; k < RUNS_EACH; k++)
        if (k % TEAMS == team()) store_part<8>(columns.v + 8 * k, run(k), COLS, room);
    sync_consumers();
    const u32 block = team_thread() % HALF;
    const Levels levels = block < COLS / COLUMNS ? load_levels(room, COLS, block) : Levels{};
    sync_consumers();
    return levels;
}

// x, of which this thread has `columns`, normed.
template <u32 COLS = HIDDEN> __device__ Input input_of(const Columns& columns, const Norm& norm) {
    Input in = {columns};
    if (norm.weight) {
        const float factor = norm_factor(columns, norm.eps);
#pragma unroll
        for (u32 i = 0; i < 8 * RUNS_EACH; i++) in.columns.v[i] *= factor * norm.columns.v[i];
    }
    if constexpr (LEVELS) in.levels = input_levels<COLS>(in.columns);
    return in;
}

// This thread's part of the product of EACH runs' worth of a row of TYPE, the runs from EACH * part on, which lie at `at`, and x.
template <u32 TYPE, u32 EACH = 2, u32 COLS = HIDDEN> __device__ float dot_part(const u8* at, u32 part, const Columns& x) {
    float sum[2] = {0, 0};
#pragma unroll
    for (u32 k = 0; k < EACH; k++)
        if (has_run<COLS>(EACH * part + k)) dot8<TYPE>(at, COLS, run(k), x.v + 8 * (EACH * part + k), sum[k % 2]);
    return sum[0] + sum[1];
}

// The same of a whole row of gate or up, or one of COLS.
template <u32 TYPE = WEIGHTS, u32 COLS = HIDDEN> __device__ float dot(const u8* row, const Input& x) {
    if constexpr (!Weights<TYPE>::LEVELS) return dot_part<TYPE, 2, COLS>(row, 0, x.columns);
    else return team_thread() < COLS / COLUMNS ? dot_block<TYPE>(row, COLS, team_thread(), x.levels) : 0;
}

// Adds c times the row of down at a place to y.
__device__ void axpy(float c, u32 place, Columns& y) {
#pragma unroll
    for (u32 k = 0; k < RUNS_EACH; k++)
        if (has_run(k)) axpy8<DOWN>(c, slot(place), HIDDEN, run(k), y.v + 8 * k);
}
