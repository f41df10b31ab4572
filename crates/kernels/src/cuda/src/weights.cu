// Types of weights, as rows lie on the card: whole 16-byte vectors; of quantised types first all levels, then all scales.
//
//   Q8_0   | a byte a column                                   | an f16 scale for each 32 columns | up to a multiple of 16 bytes |
//   Q4_0   | 4 bytes for each 8 columns: low nibbles are the first four, high nibbles the others; level q stands for q - 8 | the same |

constexpr u32 BF16 = 0;
constexpr u32 F16 = 1;
constexpr u32 F32 = 2;
constexpr u32 Q8_0 = 3;
constexpr u32 Q4_0 = 4;

template <u32 TYPE> struct Weights;

// Of a float type: no scales.
struct Unscaled {
    __device__ static float scale(const u8*, u32, u32) { return 1; }
};

template <> struct Weights<BF16> : Unscaled {
    static constexpr u32 COLUMNS = 8;  // of a vector
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return 2 * cols; }
    // The columns of a vector, less their scale.
    __device__ static void values(const uint4& w, float* v) {
        const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            v[2 * i] = __uint_as_float(words[i] << 16);
            v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
    // Columns 8 * run to 8 * run + 8 of a row, less their scale.
    __device__ static void eight(const u8* row, u32 run, float* v) { values(reinterpret_cast<const uint4*>(row)[run], v); }
};

// The low and the high half of a word.
__device__ float2 two_halves(u32 w) {
    float2 v;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(v.x), "=f"(v.y) : "r"(w));
    return v;
}

template <> struct Weights<F16> : Unscaled {
    static constexpr u32 COLUMNS = 8;
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return 2 * cols; }
    __device__ static void values(const uint4& w, float* v) {
        const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float2 p = two_halves(words[i]);
            v[2 * i] = p.x;
            v[2 * i + 1] = p.y;
        }
    }
    __device__ static void eight(const u8* row, u32 run, float* v) { values(reinterpret_cast<const uint4*>(row)[run], v); }
};

template <> struct Weights<F32> : Unscaled {
    static constexpr u32 COLUMNS = 4;
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return 4 * cols; }
    __device__ static void values(const uint4& w, float* v) {
        v[0] = __uint_as_float(w.x);
        v[1] = __uint_as_float(w.y);
        v[2] = __uint_as_float(w.z);
        v[3] = __uint_as_float(w.w);
    }
    __device__ static void eight(const u8* row, u32 run, float* v) {
        values(reinterpret_cast<const uint4*>(row)[2 * run], v);
        values(reinterpret_cast<const uint4*>(row)[2 * run + 1], v + 4);
    }
};

// Four bytes as floats, less 128: a byte as the mantissa of 2^23 needs no conversion, of which there are few a cycle.
__device__ void four_bytes(u32 w, float offset, float* v) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) v[i] = __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7440 + i)) - offset;
}
constexpr float OFFSET_BYTE = 8388608.0f + 128.0f;
constexpr float OFFSET_NIBBLE = 8388608.0f + 8.0f;

template <> struct Weights<Q8_0> {
    static constexpr u32 COLUMNS = 16;
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return ceil_div(cols + cols / 16, 16) * 16; }
    __device__ static float scale(const u8* row, u32 cols, u32 column) { return half_value(reinterpret_cast<const u16*>(row + cols)[column / 32]); }
    __device__ static void values(const uint4& w, float* v) {
        const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) four_bytes(words[i] ^ 0x80808080u, OFFSET_BYTE, v + 4 * i);
    }
    __device__ static void eight(const u8* row, u32 run, float* v) {
        const uint2 w = reinterpret_cast<const uint2*>(row)[run];
        four_bytes(w.x ^ 0x80808080u, OFFSET_BYTE, v);
        four_bytes(w.y ^ 0x80808080u, OFFSET_BYTE, v + 4);
    }
};

template <> struct Weights<Q4_0> {
    static constexpr u32 COLUMNS = 32;
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return ceil_div(cols / 2 + cols / 16, 16) * 16; }
    __device__ static float scale(const u8* row, u32 cols, u32 column) { return half_value(reinterpret_cast<const u16*>(row + cols / 2)[column / 32]); }
    __device__ static void word(u32 w, float* v) {
        four_bytes(w & 0x0f0f0f0fu, OFFSET_NIBBLE, v);
        four_bytes(w >> 4 & 0x0f0f0f0fu, OFFSET_NIBBLE, v + 4);
    }
    __device__ static void values(const uint4& w, float* v) {
        word(w.x, v);
        word(w.y, v + 8);
        word(w.z, v + 16);
        word(w.w, v + 24);
    }
    __device__ static void eight(const u8* row, u32 run, float* v) { word(reinterpret_cast<const u32*>(row)[run], v); }
};

// Global memory to the second-level cache; a hint. Both are multiples of 16.
__device__ void prefetch(const void* from, u32 bytes) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory"); }
