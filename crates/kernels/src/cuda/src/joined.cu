// The products before and after an FFN, in its launch: attention's output, which is added to the residual stream and makes the FFN's x, and the next layer's queries, keys and
// values of what the FFN makes of that. Their rows come through the same ring, in contiguous ranges of each block, so that the memory is busy while blocks tell each other
// what they have made, and while attention, the only launch between, runs.

#if JOINED

// This block's rows of `rows`, EACH a place.
template <u32 EACH> struct Rows {
    u32 first, count;
    __device__ Rows(u32 rows) {
        first = range_begin(rows / EACH, blockIdx.x) * EACH;
        count = range_begin(rows / EACH, blockIdx.x + 1) * EACH - first;
    }
    __device__ u32 places() const { return count / EACH; }
};

__device__ u32 next_rows(const Ffn& f) {
    u32 rows = 0;
#pragma unroll
    for (u32 p = 0; p < PRODUCTS; p++) rows += f.next[p].rows;
    return rows;
}

__device__ void stream_output(const Ffn& f, Producer& p) {
    const Rows<OUTPUT_PACK> mine(f.output.rows);
    for (u32 i = 0; i < mine.count; i += OUTPUT_PACK) p.fill<OUTPUT_PACK * OUTPUT_ROW_BYTES>(f.output.weights + u64(mine.first + i) * OUTPUT_ROW_BYTES);
}

// Bytes that a block asks for at a time while blocks tell each other y, which is known the sooner.
#ifndef NEXT_CALM_BYTES
#define NEXT_CALM_BYTES 16384
#endif

__device__ void stream_next(const Ffn& f, Producer& p) {
    const u32 start = p.asked;
    const auto calm = [&] { p.window = p.asked - start < SLOTS ? NEXT_CALM_BYTES : WINDOW_BYTES; };
    const Rows<PACK> mine(next_rows(f));
    for (u32 i = 0; i < mine.count; i += PACK) {
        calm();
        u32 row = mine.first + i;
        const Product& product = product_of(f.next, row);
        p.fill<PACK_BYTES>(product.weights + u64(row) * ROW_BYTES);
    }
    if constexpr (VALUES_APART) {
        const Rows<1> values(f.values.rows);
        for (u32 i = 0; i < values.count; i++) {
            calm();
            p.fill<VALUE_BYTES>(f.values.weights + u64(values.first + i) * VALUE_BYTES);
        }
    }
}

// Rows of a product that a team multiplies at once. Most are there before what they are multiplied with, and a row of levels takes less time than its sum over lanes.
constexpr u32 PRODUCT_ROWS = LEVELS && SLOTS >= 2 * PRODUCT_ROWS_MAX ? PRODUCT_ROWS_MAX : ROWS_AT_ONCE;

// Multiplies `rows` rows of COLS of TYPE from place `first` on, EACH a place; `done` takes them and their sums, a row a thread. For all consumers.
template <u32 TYPE, u32 EACH, u32 COLS = HIDDEN, class Done> __device__ void multiply_rows(u32 first, u32 rows, const Input& x, Done done) {
    float* const sums = shared().room;
    for (u32 row = PRODUCT_ROWS * team(); row < rows; row += PRODUCT_ROWS * TEAMS)
        some_rows<PRODUCT_ROWS, EACH, 1, Weights<TYPE>::row_bytes(COLS)>(first, row, rows, sums, [&](const u8* at, u32) { return dot<TYPE, COLS>(at, x); });
    sync_consumers();
    for (u32 row = threadIdx.x; row < rows; row += CONSUMERS) done(row, sum_of_warps(sums + row * WARPS, WARPS));
    sync_consumers();
}

#if NORMED

// Every block keeps the residual stream, of which a thread needs the columns that it has, the same in every team.
__device__ void keep_stream(const Columns& x) {
    float* const stream = shared().stream;
    if (team() == 0) put_columns(stream, x, false);
    sync_consumers();
}

// A norm of what is to be added. A thread of levels has so many columns that their weights would push others out of registers: it asks for them into the first-level cache.
__device__ Norm ask_norm(const float* weight, float eps) {
    if constexpr (LEVELS) {
#pragma unroll
        for (u32 k = 0; k < RUNS_EACH; k++)
            if (weight && has_run(k)) asm volatile("prefetch.global.L1 [%0];" ::"l"(weight + 8 * run(k)));
        return {weight, eps, {}};
    } else {
        return load_norm(weight, eps);
    }
}

// Adds the norm of v. Gives the stream then.
__device__ Columns add_to_stream(Columns v, const Norm& norm) {
    const float factor = norm_factor(v, norm.eps);
#pragma unroll
    for (u32 i = 0; i < 2 * RUNS_EACH; i++) {
        if (!has_run(i / 2)) continue;
        const u32 quad = 2 * run(i / 2) + i % 2;
        const float4 x = reinterpret_cast<const float4*>(shared().stream)[quad];
        const float* const columns = norm.columns.v + 4 * i;
        const float4 w = LEVELS ? reinterpret_cast<const float4*>(norm.weight)[quad] : make_float4(columns[0], columns[1], columns[2], columns[3]);
        float* const to = v.v + 4 * i;
        to[0] = fmaf(to[0] * factor, w.x, x.x);
        to[1] = fmaf(to[1] * factor, w.y, x.y);
        to[2] = fmaf(to[2] * factor, w.z, x.z);
        to[3] = fmaf(to[3] * factor, w.w, x.w);
    }
    // Every team has read it.
    if (TEAMS > 1) sync_consumers();
    keep_stream(v);
    return v;
}

// Tells the next launch's blocks this block's columns of the stream.
__device__ void pass_stream_on(const Ffn& f) {
    const float* const stream = shared().stream;
    const u32 first = 4 * range_begin(HIDDEN / 4, blockIdx.x), end = 4 * range_begin(HIDDEN / 4, blockIdx.x + 1);
    for (u32 c = first + threadIdx.x; c < end; c += CONSUMERS) {
        put(f.carried + c, not_empty(stream[c]));
        f.stream[c] = stream[c];
    }
}

#endif

// Makes x, or where NORMED what is normed and added to make it, of which every block makes some columns, a thread each (gather.cu says that there are so many). Gives how many
// places it took.
__device__ u32 make_input(const Ffn& f) {
    const Rows<OUTPUT_PACK> mine(f.output.rows);
    if (f.output.rows == 0) return 0;
    const u32 c = mine.first + threadIdx.x;
    const bool has = threadIdx.x < mine.count;
    // What is there before attention is fetched while it runs.
    float base = has && f.output.bias ? f.output.bias[c] : 0;
#if NORMED
    if (f.carried_before) keep_stream(load_words(f.carried_before));
#else
    if (has && f.passed_before) base += await_word(f.passed_before + c);
#endif
    const Input attended = input_of<ATTENDED>(f.words ? load_words<ATTENDED>(f.words) : load_columns<ATTENDED>(f.attended), {});
#if NORMED
    if (!f.carried_before) keep_stream(peek_columns(f.x));
#else
    if (has && !f.passed_before) base += peek(f.residual + c);
#endif
    multiply_rows<WEIGHTS, OUTPUT_PACK, ATTENDED>(0, mine.count, attended, [&](u32, float sum) { put(f.made + c, not_empty(base + sum)); });
    return mine.places();
}

// Tells all blocks column c of y.
__device__ void pass_on(const Ffn& f, u32 c, float y) {
    if (next_rows(f)) put(f.passed + c, not_empty(y));
}

// Empties this block's part, quads [first, end) of HIDDEN / 4, of what nobody reads any more. To a block that adds up columns all blocks' sums were there, so all have read x, and
// attention what it was given. It is written again by the launch after the next, or by the next one once this one has ended.
__device__ void empty_read(const Ffn& f, u32 first, u32 end) {
    const auto empty = [=](float* words, u32 count) {
        if (!words) return;
        const u32 to = count * end / (HIDDEN / 4);
        for (u32 i = count * first / (HIDDEN / 4) + threadIdx.x; i < to; i += CONSUMERS) put(words + i, __uint_as_float(EMPTY));
    };
    if (f.output.rows) empty(f.made, HIDDEN);
    empty(f.words, ATTENDED);
    empty(f.passed_before, HIDDEN);
#if NORMED
    empty(f.carried_before, HIDDEN);
#endif
    empty(f.projected_before, f.projected);
}

// Multiplies y, whose rows' places begin at `place`.
__device__ void multiply_next(const Ffn& f, u32 place) {
    if (next_rows(f) == 0) return;
    const Norm norm = load_norm(f.next_norm, f.next_eps);
#if NORMED
    const Norm added = ask_norm(f.y_norm, f.added_eps);
    const Columns x = add_to_stream(load_words(f.passed), added);
    pass_stream_on(f);
    const Input y = input_of(x, norm);
#else
    const Input y = input_of(load_words(f.passed), norm);
#endif
    // Attention may wait for it.
    const auto pass = [](const Product& p, u32 row, float sum) { put(p.out + row, not_empty(sum + (p.bias ? p.bias[row] : 0))); };
    const Rows<PACK> mine(next_rows(f));
    multiply_rows<WEIGHTS, PACK>(place, mine.count, y, [&](u32 i, float sum) {
        u32 row = mine.first + i;
        const Product& p = product_of(f.next, row);
        pass(p, row, sum);
    });
    if constexpr (VALUES_APART) {
        const Rows<1> values(f.values.rows);
        multiply_rows<VALUES, 1>(place + mine.places(), values.count, y, [&](u32 i, float sum) { pass(f.values, values.first + i, sum); });
    }
}

#endif
