// Types and arithmetic that all device code shares. The files of this folder have no headers: what the host names, in that order, is one translation unit.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__host__ __device__ constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
__host__ __device__ constexpr u32 larger(u32 a, u32 b) { return a > b ? a : b; }

__device__ float half_value(u16 h) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}

__device__ u16 half_bits(float v) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
    return h;
}

__device__ u16 bf16_bits(float v) {
    const u32 bits = __float_as_uint(v);
    // To the nearest, ties to even; a NaN stays one.
    return v != v ? 0x7fff : u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

__device__ float silu(float x) { return x / (1.0f + expf(-x)); }

__device__ float gelu_tanh(float x) {
    // 0.5 (1 + tanh u) = 1 / (1 + e^-2u), which does not cancel where u is far below zero.
    const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

// The sums over a warp of N values a lane, N a power of two: lanes [i * 32 / N, (i + 1) * 32 / N) get the i-th. Halving what a
// lane is responsible for at each step takes 6 exchanges for 4 values instead of 20.
template <u32 N> __device__ float warp_sums(float (&v)[N]) {
    const u32 lane = threadIdx.x % 32;
    u32 distance = 16;
#pragma unroll
    for (u32 n = N / 2; n > 0; n /= 2, distance /= 2) {
        const bool upper = lane & distance;
#pragma unroll
        for (u32 i = 0; i < n; i++) {
            const float give = upper ? v[i] : v[i + n];
            const float keep = upper ? v[i + n] : v[i];
            v[i] = keep + __shfl_xor_sync(~0u, give, distance);
        }
    }
#pragma unroll
    for (u32 d = 16 / N; d > 0; d /= 2) v[0] += __shfl_xor_sync(~0u, v[0], d);
    return v[0];
}

// Threads of the blocks that take a row each.
constexpr u32 ROW_THREADS = 512;

// The sum over the block's threads, for all of them.
__device__ float block_sum(float v) {
    __shared__ float sums[ROW_THREADS / 32];
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (u32 w = 0; w < blockDim.x / 32; w++) sum += sums[w];
    return sum;
}
