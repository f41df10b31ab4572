// Barriers in shared memory that count arrivals and bytes, and the bulk copies that bring them.

// 1 for compute-sanitizer's racecheck, which takes for mistakes what is none:
//
// - What a warp's lanes have done before __syncwarp where one of them arrives at a barrier for all. There each lane arrives for itself.
// - A number that may be read while it is written. There that is done by atomic operations.
// - Places of the ring that are read though they may be being filled, since nobody looks at what comes of it. There others are read.
// - Now and then, what comes before a barrier of some of a block's threads and what comes after. There they meet at one in shared memory.
#ifndef RACECHECK
#define RACECHECK 0
#endif
constexpr u32 SPEAKERS = RACECHECK ? 32 : 1;

__device__ u32 shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }

__device__ void barrier_init(u64& barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

__device__ void barrier_arrive(u64& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// A barrier at which so many warps arrive.
__device__ void barrier_init_warps(u64& barrier, u32 warps) { barrier_init(barrier, warps * SPEAKERS); }

// For all lanes of a warp.
__device__ void barrier_arrive_warp(u64& barrier) {
    __syncwarp();
    if (threadIdx.x % 32 < SPEAKERS) barrier_arrive(barrier);
}

__device__ void barrier_arrive_for_bytes(u64& barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}

// Arrives, and waits for all who do.
__device__ void barrier_sync(u64& barrier) {
    u64 phase;
    asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(phase) : "r"(shared_address(&barrier)) : "memory");
    u32 done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(shared_address(&barrier)), "l"(phase)
                     : "memory");
    } while (!done);
}

// A number in shared memory that one thread writes while others look at it.
__device__ u32 look_at(u32& number) { return RACECHECK ? atomicOr(&number, 0) : *const_cast<volatile u32*>(&number); }
__device__ void show(u32& number, u32 v) {
    if (RACECHECK) atomicExch(&number, v);
    else *const_cast<volatile u32*>(&number) = v;
}

// Whether the barrier's phase of that parity has ended.
__device__ bool barrier_done(u64& barrier, u32 parity) {
    u32 done;
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
    return done;
}

// Waits for the end of the barrier's phase of that parity.
__device__ void barrier_wait(u64& barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(shared_address(&barrier)), "r"(parity)
                     : "memory");
    } while (!done);
}

// Makes initialised barriers known to the copy engine.
__device__ void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// A weight is read once a token, so it should not push anything else out of the second-level cache.
__device__ u64 read_once() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Global to shared memory, counted on the barrier. All three are multiples of 16.
__device__ void bulk_copy(void* to, const void* from, u32 bytes, u64& barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(&barrier)), "l"(policy)
                 : "memory");
}
