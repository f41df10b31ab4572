// Rows of weights as floats: embeddings of tokens, and quantised weights for products of prompts.

struct Embed {
    const u8* table;    // [vocabulary, cols]
    const u32* tokens;  // [blocks]
    float* out;         // [blocks, cols]
    u32 cols;
    u32 stride;
    float scale;
};

// A token a block.
template <u32 TYPE> __device__ void embed(const Embed& e) {
    using W = Weights<TYPE>;
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = e.table + u64(e.tokens[blockIdx.x]) * e.stride;
    float* out = e.out + u64(blockIdx.x) * e.cols;
    for (u32 i = threadIdx.x; i < e.cols / W::COLUMNS; i += blockDim.x) {
        float v[W::COLUMNS];
        W::values(reinterpret_cast<const uint4*>(row)[i], v);
        const float scale = W::scale(row, e.cols, i * W::COLUMNS) * e.scale;
        for (u32 c = 0; c < W::COLUMNS; c++) out[i * W::COLUMNS + c] = v[c] * scale;
    }
}

struct Unpack {
    const u8* rows;  // [blocks, cols]
    u16* out;        // [blocks, cols], f16
    u32 cols;
    u32 stride;
};

// Rows as f16, for products of prompts. A row a block.
template <u32 TYPE> __device__ void unpack_rows(const Unpack& u) {
    using W = Weights<TYPE>;
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = u.rows + u64(blockIdx.x) * u.stride;
    u16* out = u.out + u64(blockIdx.x) * u.cols;
    for (u32 i = threadIdx.x; i < u.cols / W::COLUMNS; i += blockDim.x) {
        float v[W::COLUMNS];
        W::values(reinterpret_cast<const uint4*>(row)[i], v);
        const float scale = W::scale(row, u.cols, i * W::COLUMNS);
        for (u32 c = 0; c < W::COLUMNS; c++) out[i * W::COLUMNS + c] = half_bits(v[c] * scale);
    }
}

#define KERNELS_OF(TYPE, name)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) embed_##name(const __grid_constant__ Embed e) { embed<TYPE>(e); }
KERNELS_OF(BF16, bf16)
KERNELS_OF(F16, f16)
KERNELS_OF(F32, f32)
KERNELS_OF(Q8_0, q8_0)
KERNELS_OF(Q4_0, q4_0)
extern "C" __global__ void __launch_bounds__(256) unpack_q8_0(const __grid_constant__ Unpack u) { unpack_rows<Q8_0>(u); }
extern "C" __global__ void __launch_bounds__(256) unpack_q4_0(const __grid_constant__ Unpack u) { unpack_rows<Q4_0>(u); }
