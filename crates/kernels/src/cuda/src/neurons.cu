// The neurons kept: for each a stream of its rows, the product with x, and its row of down added to y.

// Streams the rows of a neuron: item number `item` of those that begin at `start`. For one thread of the producer.
template <class Method> __device__ void fill_neuron(const Ffn& f, u32 start, u32 item, u64 e) {
    const u32 place = start + item * Method::ROWS;
    const u64 at = u64(entry_row(e)) * ROW_BYTES;
    wait_empty(place);
    shared().items[place % SLOTS] = {entry_signal(e), 1};
    if constexpr (Method::ROWS == 3) {
        fill<ROW_BYTES>(place, f.gate + at);
        fill<ROW_BYTES>(place + 1, f.up + at);
    } else {
        fill<ROW_BYTES>(place, Method::rows_kept(f) + at);
    }
    fill<ROW_BYTES>(place + Method::ROWS - 1, f.down + at);
}

// Tells every team that there are no more neurons.
template <class Method> __device__ void fill_end(u32 start, u32 items) {
    for (u32 t = 0; t < TEAMS; t++) {
        const u32 place = start + (items + t) * Method::ROWS;
        wait_empty(place);
        shared().items[place % SLOTS] = {0, 0};
        barrier_arrive(shared().ring.full[place % SLOTS]);
    }
}

// Takes a team's neurons, until there are no more.
template <class Method> __device__ void consume_neurons(u32 start, const Columns& x, Columns& y) {
    constexpr u32 DOTS = Method::ROWS - 1;
    const u32 lane = threadIdx.x % 32;
    for (u32 i = 0, item = team();; i++, item += TEAMS) {
        const u32 place = start + item * Method::ROWS;
        wait_full(place);
        const Item about = shared().items[place % SLOTS];
        if (!about.more) return;
        float v[DOTS];
#pragma unroll
        for (u32 d = 0; d < DOTS; d++) {
            if (d > 0) wait_full(place + d);
            v[d] = dot(place + d, x);
        }
        release(place, DOTS);
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
        wait_full(place + DOTS);
        axpy(c, place + DOTS, y);
        release(place + DOTS, 1);
    }
}
