// Gated FFNs for one token, each one launch: BLOCKS blocks of THREADS threads with SHARED_BYTES of dynamic shared memory.
//
// A block scores the neurons dealt to it, decides, and takes its share of all that are kept; a method says how neurons are scored. The stream of
// weights through a block's ring never stops: the rows to score, then some of the block's own neurons, then the rest of its share. Its beginning depends on no
// other kernel, so that it is there when the one before ends (programmatic dependent launch). Consumers multiply, the producer (one thread) fills the
// ring, the chooser (one warp) decides and deals.

// The dense product: every neuron, three rows each.
struct Dense {
    static constexpr u32 ROWS = 3;
};

// Signals that are products of one matrix, computed for all neurons.
template <bool UP> struct ByRows {
    static constexpr u32 ROWS = 2;
    static constexpr u32 DEAL = PACK;

    __device__ static const u8* row_scored(const Ffn& f, u64 row) { return (UP ? f.up : f.gate) + row * ROW_BYTES; }
    __device__ static const u8* row_kept(const Ffn& f, u64 row) { return (UP ? f.gate : f.up) + row * ROW_BYTES; }
    __device__ static u32 rows() { return row_count<DEAL>(); }
    __device__ static u32 places() { return ceil_div(rows(), PACK); }
    __device__ static u32 groups() { return ceil_div(rows(), 32); }
    __device__ static u32 group_begin(u32 group) { return 32 * group; }
    __device__ static u32 arrivals(u32 group) { return ceil_div(min(32u, rows() - 32 * group), ROWS_AT_ONCE); }
    __device__ static void stream(const Ffn& f, Producer& p, u32 place) {
        const u32 row = place * PACK;
        p.fill<PACK_BYTES>(row_scored(f, neuron<DEAL>(row)), min(PACK, rows() - row) * ROW_BYTES);
    }
    // Gives the place after what is scored.
    __device__ static u32 score(const Ffn& f, u32 first, const Input& x) {
        const u32 rows = ByRows::rows();
        for (u32 row = ROWS_AT_ONCE * team(); row < rows; row += ROWS_AT_ONCE * TEAMS) {
            some_rows<ROWS_AT_ONCE, PACK, 1>(first, row, rows, shared().room, [&](const u8* at, u32) { return dot(at, x); });
            barrier_arrive_warp(shared().scored[row / 32]);
        }
        return first + places();
    }
    __device__ static float signal(u32 row) {
        const float v = sum_of_warps(shared().room + row * WARPS, WARPS);
        return UP ? v : act(v);
    }
    __device__ static float coefficient(float product, float signal) { return UP ? act(product) * signal : product * signal; }
};

#if RANK > 0
// Signals of a low-rank predictor.
struct Predicted {
    static constexpr u32 ROWS = 3;
    static constexpr u32 DEAL = LOW_ROWS;

    __device__ static u32 places() { return low_slots(); }
    __device__ static u32 groups() { return low_groups(); }
    __device__ static u32 group_begin(u32 group) { return low_group_slot(group) * LOW_ROWS; }
    __device__ static u32 arrivals(u32) { return 1; }
    __device__ static void stream(const Ffn& f, Producer& p, u32 place) {
        const u32 row = place * DEAL;
        p.fill<DEAL * OUTER_BYTES>(f.outer + u64(neuron<DEAL>(row)) * OUTER_BYTES, min(DEAL, row_count<DEAL>() - row) * OUTER_BYTES);
    }
    __device__ static u32 score(const Ffn& f, u32 place, const Input& x) {
        place = multiply_low(f, place, x);
        score_low(place);
        return place + places();
    }
    __device__ static float signal(u32 row) {
        const float* v = shared().low_scores + row * MATRICES;
        return predicted(row, v[0], v[MATRICES - 1]);
    }
};
#elif FORM > 0
// Signals of a predictor whose outer matrices are multiplied with x itself.
struct Predicted {
    static constexpr u32 ROWS = 3;
    static constexpr u32 DEAL = OUTER_EACH;

    __device__ static u32 rows() { return row_count<DEAL>(); }
    __device__ static u32 places() { return ceil_div(rows(), DEAL); }
    __device__ static u32 groups() { return ceil_div(rows(), 32); }
    __device__ static u32 group_begin(u32 group) { return 32 * group; }
    __device__ static u32 arrivals(u32 group) { return ceil_div(min(32u, rows() - 32 * group), ROWS_AT_ONCE); }
    __device__ static void stream(const Ffn& f, Producer& p, u32 place) {
        const u32 row = place * DEAL;
        p.fill<DEAL * OUTER_BYTES>(f.outer + u64(neuron<DEAL>(row)) * OUTER_BYTES, min(DEAL, rows() - row) * OUTER_BYTES);
    }
    __device__ static u32 score(const Ffn& f, u32 first, const Input& input) {
        const Levels x = LEVELS ? input.levels : input_levels(input.columns);
        const u32 rows = Predicted::rows();
        for (u32 row = ROWS_AT_ONCE * team(); row < rows; row += ROWS_AT_ONCE * TEAMS) {
            four_neurons(first, row, rows, x, shared().room);
            barrier_arrive_warp(shared().scored[row / 32]);
        }
        return first + places();
    }
    __device__ static float signal(u32 row) {
        const float* sums = shared().room + row * ROW_SUMS;
        return predicted(row, sum_of_warps(sums, ROW_SUMS / 2), MATRICES == 2 ? sum_of_warps(sums + ROW_SUMS / 2, ROW_SUMS / 2) : 0);
    }
};
#endif

// Neurons before its last at which a block lets the next kernel start, so that the memory is busy while blocks end, some sooner than others.
#ifndef AHEAD_BYTES
#define AHEAD_BYTES 49152
#endif
template <class Method> constexpr u32 AHEAD = AHEAD_BYTES / (Method::ROWS * ROW_BYTES);

// What the producer streams before and after the neurons' rows, and what consumers make of it: their x, and the place where the neurons' rows begin.
__device__ void begin_stream(const Ffn& f, Producer& p) {
#if JOINED
    // Attention finds room at once.
    if (next_rows(f)) let_next_kernel_start();
    stream_output(f, p);
#endif
}
template <class Method> __device__ void end_stream(const Ffn& f, Producer& p) {
    fill_end<Method>(p);
#if JOINED
    stream_next(f, p);
#endif
}
__device__ void wait_for_input(const Ffn& f) {
#if JOINED
    if (f.words) return;
#endif
    wait_for_previous_kernel();
}
__device__ Input begin(const Ffn& f, const Norm& norm, u32& place) {
#if JOINED
#if NORMED
    const Norm added = ask_norm(f.output_norm, f.added_eps);
#endif
    place = make_input(f);
    if (f.output.rows) {
#if NORMED
        const Input x = input_of(add_to_stream(load_words(f.made), added), norm);
#else
        const Input x = input_of(load_words(f.made), norm);
#endif
        // Attention has ended long since, and the launch before it: what is written from here on may be what that one has emptied.
        wait_for_previous_kernel();
        return x;
    }
#endif
    const Columns x = load_columns(f.x);
#if JOINED && NORMED
    keep_stream(x);
#endif
    return input_of(x, norm);
}
__device__ void end(const Ffn& f, Columns& y, u32 place) {
    gather(f, y);
#if JOINED
    multiply_next(f, place);
#endif
}

// For one thread.
template <class Method> __device__ void produce(const Ffn& f) {
    Shared& s = shared();
    Producer p;
    begin_stream(f, p);
    const u32 start = p.asked, places = Method::places();
#if RANK > 0
    stream_inner(f, p);
#endif
    for (u32 place = 0; place < places; place++) {
        if (p.asked >= start + SLOTS) p.window = WINDOW_BYTES;
        Method::stream(f, p, place);
    }
    u32 items = 0;
    for (u32 batch = 0;; batch++) {
        barrier_wait(s.chosen[batch], 0);
        p.resume();
        const u32 end = items + s.batch[batch];
        if (batch > 0 && end == items) break;
        for (; items < end; items++) {
            if (batch > 0 && items + AHEAD<Method> >= s.takes) let_next_kernel_start();
            p.window = batch > 0 || barrier_done(s.chosen[1], 0) ? WINDOW_BYTES : CALM_BYTES;
            fill_neuron<Method>(f, p, s.kept[items]);
        }
    }
    // Where it said so already, or there were too few neurons for it.
    let_next_kernel_start();
    end_stream<Method>(f, p);
}

template <class Method> __device__ void ffn_sparse(const Ffn& f) {
    init_shared();
    // Every warp that scores arrives once for each item of the group.
    if (threadIdx.x < Method::groups()) barrier_init_warps(shared().scored[threadIdx.x], Method::arrivals(threadIdx.x) * WARPS);
    barriers_ready();
    __syncthreads();
    if (threadIdx.x >= PRODUCER && threadIdx.x < CHOOSER) {
        if (threadIdx.x == PRODUCER) produce<Method>(f);
        return;
    }
    if (threadIdx.x >= CHOOSER) fetch_cuts<Method>(f);
    const Norm norm = load_norm(f.norm, f.eps);
    if (threadIdx.x >= CHOOSER) {
        wait_for_previous_kernel();
        choose<Method>(f);
        return;
    }
    wait_for_input(f);
    u32 place = 0;
    const Input x = begin(f, norm, place);
    Columns y = {};
    place = Method::score(f, place, x);
    place = consume_neurons<Method>(place, x, y);
    end(f, y, place);
    // All blocks' sums were there, so all have read what they were told before. (The last block has columns, however few there are.)
    if (blockIdx.x == BLOCKS - 1) {
        for (u32 b = threadIdx.x; b < BLOCKS; b += CONSUMERS) put(f.shares + b, EMPTY_HALF);
#if RANK > 0
        for (u32 r = threadIdx.x; r < RANK; r += CONSUMERS) put(reinterpret_cast<u32*>(f.low) + r, EMPTY);
#endif
    }
}

// What is compiled for a predictor has its kernel, and what is not all others.
#if FORM > 0
extern "C" __global__ void ffn_predicted(const __grid_constant__ Ffn f) { ffn_sparse<Predicted>(f); }
#else

// Streams all neurons. For one thread.
__device__ void produce_all(const Ffn& f) {
    Producer p;
    begin_stream(f, p);
    const u32 rows = row_count<1>();
    for (u32 i = 0; i < rows; i++) {
        if (i == (JOINED ? 0 : SLOTS / 3)) p.window = WINDOW_BYTES;
        // Early enough for the next kernel's ring to be full before blocks tell each other their sums.
        if (i == rows / 10 * 9) {
            wait_for_previous_kernel();
            let_next_kernel_start();
        }
        fill_neuron<Dense>(f, p, entry(neuron<1>(i), 0));
    }
    end_stream<Dense>(f, p);
}

extern "C" __global__ void ffn_dense(const __grid_constant__ Ffn f) {
    init_shared();
    barriers_ready();
    __syncthreads();
    if (threadIdx.x >= PRODUCER) {
        if (threadIdx.x == PRODUCER) produce_all(f);
        return;
    }
    const Norm norm = load_norm(f.norm, f.eps);
    wait_for_input(f);
    u32 place = 0;
    const Input x = begin(f, norm, place);
    Columns y = {};
    place = consume_neurons<Dense>(place, x, y);
    end(f, y, place);
}

extern "C" __global__ void ffn_by_up(const __grid_constant__ Ffn f) { ffn_sparse<ByRows<true>>(f); }
extern "C" __global__ void ffn_by_gate(const __grid_constant__ Ffn f) { ffn_sparse<ByRows<false>>(f); }
#endif
