// Reading memory and nothing else: what bounds everything that reads weights once.

struct Read {
    const uint4* from;  // [count]
    u32* sum;           // what the sum of all words is added to
    u64 count;
};

// Loads of a thread that are under way together.
constexpr u32 LOADS = 8;

__device__ uint4 load_streamed(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

__device__ u32 sum_of(uint4 v) { return v.x + v.y + v.z + v.w; }

extern "C" __global__ void __launch_bounds__(READ_THREADS) read_memory(const __grid_constant__ Read r) {
    // Kernels follow each other without a break, as those of a step do.
    let_next_kernel_start();
    const u64 all = u64(gridDim.x) * blockDim.x;
    u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x;
    u32 sum = 0;
    for (; i + (LOADS - 1) * all < r.count; i += LOADS * all) {
        uint4 v[LOADS];
#pragma unroll
        for (u32 k = 0; k < LOADS; k++) v[k] = load_streamed(r.from + i + k * all);
#pragma unroll
        for (u32 k = 0; k < LOADS; k++) sum += sum_of(v[k]);
    }
    for (; i < r.count; i += all) sum += sum_of(load_streamed(r.from + i));
    for (u32 lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    __shared__ u32 of_block;
    if (threadIdx.x == 0) of_block = 0;
    __syncthreads();
    if (threadIdx.x % 32 == 0) atomicAdd(&of_block, sum);
    __syncthreads();
    if (threadIdx.x == 0) {
        // So that the last kernel's end is the end of all.
        wait_for_previous_kernel();
        // Additions of all warps to one word would take up to a tenth of the time.
        atomicAdd(r.sum, of_block);
    }
}
