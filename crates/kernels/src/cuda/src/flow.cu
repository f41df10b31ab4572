// Values that pass from block to block within a launch, and order between launches.
//
// A word that another block waits for says itself whether it is there: memory for such words holds EMPTY between launches (the host fills it
// once), the writer stores the value, the reader asks until it is not EMPTY and stores EMPTY back when nobody needs it any more. That takes one way through the
// second-level cache, where a counter beside the data takes a fence and two. All blocks of a launch must be resident.

// A NaN that no arithmetic yields.
constexpr u32 EMPTY = 0xffffffffu;
constexpr u64 EMPTY_PAIR = ~0ull;
constexpr u16 EMPTY_HALF = 0xffff;

// Such words should never leave the second-level cache: a part of a sector written, or looked at, that has left it costs a trip to memory, behind the weights.
__device__ u64 keep_cached() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ void put(u16* to, u16 v) { asm volatile("st.relaxed.gpu.global.L2::cache_hint.u16 [%0], %1, %2;" ::"l"(to), "h"(v), "l"(keep_cached()) : "memory"); }
__device__ void put(u32* to, u32 v) { asm volatile("st.relaxed.gpu.global.L2::cache_hint.u32 [%0], %1, %2;" ::"l"(to), "r"(v), "l"(keep_cached()) : "memory"); }
__device__ void put(u64* to, u64 v) { asm volatile("st.relaxed.gpu.global.L2::cache_hint.u64 [%0], %1, %2;" ::"l"(to), "l"(v), "l"(keep_cached()) : "memory"); }
__device__ void put(float* to, float4 v) {
    asm volatile("st.relaxed.gpu.global.L2::cache_hint.v4.f32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "l"(keep_cached())
                 : "memory");
}

__device__ void put(float* to, float v) { put(reinterpret_cast<u32*>(to), __float_as_uint(v)); }

__device__ float peek(const float* from) {
    float v;
    asm volatile("ld.relaxed.gpu.global.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(v) : "l"(from), "l"(keep_cached()) : "memory");
    return v;
}
__device__ u64 peek(const u64* from) {
    u64 v;
    asm volatile("ld.relaxed.gpu.global.L2::cache_hint.u64 %0, [%1], %2;" : "=l"(v) : "l"(from), "l"(keep_cached()) : "memory");
    return v;
}
__device__ uint4 peek4(const u16* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from), "l"(keep_cached())
                 : "memory");
    return v;
}
__device__ float4 peek4(const float* from) {
    float4 v;
    asm volatile("ld.relaxed.gpu.global.L2::cache_hint.v4.f32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(from), "l"(keep_cached())
                 : "memory");
    return v;
}

// Between two looks, so that those who wait leave the memory to those who work.
__device__ void pause() { __nanosleep(64); }

__device__ bool is_empty(float v) { return __float_as_uint(v) == EMPTY; }
__device__ bool is_empty(float4 v) { return is_empty(v.x) || is_empty(v.y) || is_empty(v.z) || is_empty(v.w); }
__device__ float4 empty4() {
    const float e = __uint_as_float(EMPTY);
    return make_float4(e, e, e, e);
}

// A word, once it is there.
__device__ float await_word(const float* from) {
    float v;
    while (is_empty(v = peek(from))) {}
    return v;
}

// A value as it may be put: a NaN that happens to be EMPTY becomes another.
__device__ float not_empty(float v) { return is_empty(v) ? __uint_as_float(0x7fffffffu) : v; }

// Programmatic dependent launch. Before it waits, a kernel may read what no kernel that can still run writes: weights, and in attention what earlier steps left.
__device__ void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Once one thread of every block said so (or they ended), the next kernel's blocks may start beside them.
__device__ void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// A barrier among `threads` threads of a block, whole warps; 0 is __syncthreads'.
__device__ void sync_some(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Work that is not dealt to blocks beforehand, for whoever has time: multiprocessors get unequal shares of the memory, by a tenth and more. A block draws numbers from a counter
// of the launch, DRAWN ahead since a number takes as long as a row, until there are no more; so all blocks together draw DRAWN numbers each too many, by which the last one
// knows itself and puts the counter back. For one thread of a block, once the kernel before has ended, which may use the same counter.
constexpr u32 DRAWN = 3;
struct Tickets {
    u32* counter;
    u32 count;  // of all blocks
    u32 drawn[DRAWN];

    __device__ Tickets(u32* counter, u32 count) : counter(counter), count(count) {
#pragma unroll
        for (u32 i = 0; i < DRAWN; i++) drawn[i] = atomicAdd(counter, 1);
    }

    // The next number; `count` or more is none.
    __device__ u32 next() {
        const u32 n = drawn[0];
#pragma unroll
        for (u32 i = 0; i + 1 < DRAWN; i++) drawn[i] = drawn[i + 1];
        if (n < count) {
            drawn[DRAWN - 1] = atomicAdd(counter, 1);
            return n;
        }
        const u32 last = count + DRAWN * gridDim.x - 1;
        bool is_last = n == last;
#pragma unroll
        for (u32 i = 0; i + 1 < DRAWN; i++) is_last |= drawn[i] == last;
        if (is_last) *counter = 0;
        return n;
    }
};
