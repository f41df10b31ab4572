// The neurons kept: for each a stream of its rows, the product with x, and its row of down added to y.

// A neuron's places: one or two for what is multiplied with x, and one for down.
template <class Method> constexpr u32 DOT_PLACES = ceil_div(Method::ROWS - 1, PACK);
template <class Method> constexpr u32 PLACES = DOT_PLACES<Method> + 1;

// Streams the rows of a neuron.
template <class Method> __device__ void fill_neuron(const Ffn& f, Producer& p, u64 e) {
    const u64 row = entry_row(e);
    p.wait();
    shared().items[p.slot] = {entry_signal(e), 1};
    if constexpr (Method::ROWS == 2) {
        p.send<ROW_BYTES>(Method::row_kept(f, row));
    } else if constexpr (PACK == 1) {
        p.send<ROW_BYTES>(f.gate + row * ROW_BYTES);
        p.fill<ROW_BYTES>(f.up + row * ROW_BYTES);
    } else {
        p.send_two<ROW_BYTES>(f.gate + row * ROW_BYTES, f.up + row * ROW_BYTES);
    }
    p.fill<DOWN_BYTES>(f.down + row * DOWN_BYTES);
}

// Tells every team that there are no more neurons.
template <class Method> __device__ void fill_end(Producer& p) {
    const u32 after = p.asked + TEAMS * PLACES<Method>;
    for (u32 i = 0; i < TEAMS * PLACES<Method>; i++) {
        p.wait();
        shared().items[p.slot] = {__uint_as_float(after), 0};
        p.leave();
    }
}

// Takes a team's neurons, until there are no more. Gives the place after those of all teams.
template <class Method> __device__ u32 consume_neurons(u32 start, const Input& x, Columns& y) {
    constexpr u32 DOTS = Method::ROWS - 1;
    const u32 lane = threadIdx.x % 32;
    for (u32 i = 0, item = team();; i++, item += TEAMS) {
        const u32 place = start + item * PLACES<Method>;
        wait_full(place);
        const Item about = shared().items[place % SLOTS];
        if (!about.more) {
#if JOINED
            // Rows follow. A slot is not given back before the producer has taken it.
            for (u32 i = 1; i < PLACES<Method>; i++) wait_full(place + i);
            release(place, PLACES<Method>);
#endif
            return __float_as_uint(about.signal);
        }
        float v[DOTS];
        if (DOT_PLACES<Method> > 1) wait_full(place + 1);
#pragma unroll
        for (u32 d = 0; d < DOTS; d++) v[d] = dot(packed_row(place, d), x);
        release(place, DOT_PLACES<Method>);
        const float sum = warp_sums(v);
        // Two sets of sums in turns: nobody writes one again before all have read it.
        float(*sums)[WARPS] = shared().exchange[team()][i % 2];
        if (lane % (32 / DOTS) == 0) sums[lane / (32 / DOTS)][team_warp()] = sum;
        sync_team();
#pragma unroll
        for (u32 d = 0; d < DOTS; d++) v[d] = sum_of_warps(sums[d], WARPS);
        float c;
        if constexpr (DOTS == 2) c = act(v[0]) * v[1];
        else c = Method::coefficient(v[0], about.signal);
        const u32 last = place + DOT_PLACES<Method>;
        wait_full(last);
        axpy(c, last, y);
        release(last, 1);
    }
}
