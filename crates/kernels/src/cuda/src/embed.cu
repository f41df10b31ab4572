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
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = e.table + u64(e.tokens[blockIdx.x]) * e.stride;
    float* out = e.out + u64(blockIdx.x) * e.cols;
    for (u32 run = threadIdx.x; run < e.cols / 8; run += blockDim.x) {
        float v[8];
        values8<TYPE>(row, e.cols, run, v);
        for (u32 i = 0; i < 8; i++) out[8 * run + i] = v[i] * e.scale;
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
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u8* row = u.rows + u64(blockIdx.x) * u.stride;
    u16* out = u.out + u64(blockIdx.x) * u.cols;
    for (u32 run = threadIdx.x; run < u.cols / 8; run += blockDim.x) {
        float v[8];
        values8<TYPE>(row, u.cols, run, v);
        for (u32 i = 0; i < 8; i++) out[8 * run + i] = half_bits(v[i]);
    }
}

#define EMBED_OF(TYPE, name) extern "C" __global__ void __launch_bounds__(256) embed_##name(const __grid_constant__ Embed e) { embed<TYPE>(e); }
#define UNPACK_OF(TYPE, name) extern "C" __global__ void __launch_bounds__(256) unpack_##name(const __grid_constant__ Unpack u) { unpack_rows<TYPE>(u); }
EMBED_OF(BF16, bf16)
EMBED_OF(F16, f16)
EMBED_OF(F32, f32)
EMBED_OF(Q8_0, q8_0)
EMBED_OF(Q4_0, q4_0)
EMBED_OF(Q4_1, q4_1)
EMBED_OF(Q5_0, q5_0)
EMBED_OF(Q5_1, q5_1)
EMBED_OF(Q4_K, q4_k)
EMBED_OF(Q5_K, q5_k)
EMBED_OF(Q6_K, q6_k)
UNPACK_OF(Q8_0, q8_0)
UNPACK_OF(Q4_0, q4_0)
UNPACK_OF(Q4_1, q4_1)
UNPACK_OF(Q5_0, q5_0)
UNPACK_OF(Q5_1, q5_1)
UNPACK_OF(Q4_K, q4_k)
UNPACK_OF(Q5_K, q5_k)
UNPACK_OF(Q6_K, q6_k)
