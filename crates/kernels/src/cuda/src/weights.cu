// Types of weights, as rows lie on the card: whole 16-byte vectors. Rows of quantised types are blocks of 32 columns, in parts: first all levels, then their high bits,
// then all scales, up to a multiple of 16 bytes. A weight is scale * (level - MIDDLE) + offset.
//
//            levels                                     scales
//   Q8_0     a byte a column, the level and 128         f16 a block
//   Q4_0     nibbles                                    f16 a block
//   Q4_1     nibbles                                    f16 scale and f16 offset a block
//   Q5_0     nibbles and a fifth bit                    f16 a block
//   Q5_1     nibbles and a fifth bit                    f16 scale and f16 offset a block
//   Q4_K     nibbles                                    a byte for scale and a byte for offset a block; then f16 units of both for each 8 blocks
//   Q5_K     nibbles and a fifth bit                    the same
//   Q6_K     nibbles and two high bits                  a signed byte for each 16 columns; then f16 unit for each 8 blocks
//   Q3_0     pairs of bits and a third bit              f16 a block
//   Q2_0     pairs of bits                              f16 a block
//   T2       pairs of bits                              none
//
// Nibbles: 4 bytes for each 8 columns, low nibbles the first four, high nibbles the others. Pairs of bits, and two high bits, of a block: bits 8 * i + 2 * k and the next of the
// first word are those of column 4 * k + i, and of the second word those of column 16 + 4 * k + i. One high bit, the fifth or third: bit 8 * i + k is that of column 4 * k + i.

constexpr u32 BF16 = 0;
constexpr u32 F16 = 1;
constexpr u32 F32 = 2;
constexpr u32 Q8_0 = 3;
constexpr u32 Q4_0 = 4;
constexpr u32 Q4_1 = 5;
constexpr u32 Q5_0 = 6;
constexpr u32 Q5_1 = 7;
constexpr u32 Q4_K = 8;
constexpr u32 Q5_K = 9;
constexpr u32 Q6_K = 10;
// Of predictors alone.
constexpr u32 Q3_0 = 11;
constexpr u32 Q2_0 = 12;
constexpr u32 T2 = 13;

template <u32 TYPE> struct Weights;

// Of a float type.
struct Floats {
    static constexpr bool LEVELS = false, OFFSETS = false;
};

template <> struct Weights<BF16> : Floats {
    static constexpr u32 COLUMNS = 8;  // of a vector
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return 2 * cols; }
    // The columns of a vector.
    __device__ static void values(const uint4& w, float* v) {
        const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            v[2 * i] = __uint_as_float(words[i] << 16);
            v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
    // Columns 8 * run to 8 * run + 8 of a row.
    __device__ static void eight(const u8* row, u32, u32 run, float* v) { values(reinterpret_cast<const uint4*>(row)[run], v); }
};

// The low and the high half of a word.
__device__ float2 two_halves(u32 w) {
    float2 v;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(v.x), "=f"(v.y) : "r"(w));
    return v;
}

template <> struct Weights<F16> : Floats {
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
    __device__ static void eight(const u8* row, u32, u32 run, float* v) { values(reinterpret_cast<const uint4*>(row)[run], v); }
};

template <> struct Weights<F32> : Floats {
    static constexpr u32 COLUMNS = 4;
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return 4 * cols; }
    __device__ static void values(const uint4& w, float* v) {
        v[0] = __uint_as_float(w.x);
        v[1] = __uint_as_float(w.y);
        v[2] = __uint_as_float(w.z);
        v[3] = __uint_as_float(w.w);
    }
    __device__ static void eight(const u8* row, u32, u32 run, float* v) {
        values(reinterpret_cast<const uint4*>(row)[2 * run], v);
        values(reinterpret_cast<const uint4*>(row)[2 * run + 1], v + 4);
    }
};

// Four bytes as floats, less an offset: a byte as the mantissa of 2^23 needs no conversion, of which there are few a cycle.
__device__ void four_bytes(u32 w, float offset, float* v) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) v[i] = __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7440 + i)) - offset;
}
constexpr float BYTE_OFFSET = 8388608.0f;

constexpr u32 COLUMNS = 32;  // of a block

// Scales of quantised types: SIZE bytes in a row of so many blocks, and scale and offset of columns 8 * run and on. HALVES: each 16 columns have their own.
struct Scale {
    static constexpr bool OFFSETS = false, HALVES = false;
    __host__ __device__ static constexpr u32 size(u32 blocks) { return 2 * blocks; }
    __device__ static float2 get(const u8* at, u32, u32 run) { return make_float2(half_value(reinterpret_cast<const u16*>(at)[run / 4]), 0); }
};

// Zero lies between the levels 1 and 2.
struct ScaleOfFour {
    static constexpr bool OFFSETS = true, HALVES = false;
    __host__ __device__ static constexpr u32 size(u32 blocks) { return 2 * blocks; }
    __device__ static float2 get(const u8* at, u32, u32 run) {
        const float d = half_value(reinterpret_cast<const u16*>(at)[run / 4]);
        return make_float2(d, -1.5f * d);
    }
};

struct NoScale {
    static constexpr bool OFFSETS = false, HALVES = false;
    __host__ __device__ static constexpr u32 size(u32) { return 0; }
    __device__ static float2 get(const u8*, u32, u32) { return make_float2(1, 0); }
};

struct ScaleAndOffset {
    static constexpr bool OFFSETS = true, HALVES = false;
    __host__ __device__ static constexpr u32 size(u32 blocks) { return 4 * blocks; }
    __device__ static float2 get(const u8* at, u32, u32 run) { return two_halves(reinterpret_cast<const u32*>(at)[run / 4]); }
};

// Six bits each for scale and offset, in bytes.
struct ScalesOfUnits {
    static constexpr bool OFFSETS = true, HALVES = false;
    __host__ __device__ static constexpr u32 size(u32 blocks) { return 2 * blocks + blocks / 2; }
    __device__ static float2 get(const u8* at, u32 blocks, u32 run) {
        const u32 both = reinterpret_cast<const u16*>(at)[run / 4];
        const float2 units = two_halves(reinterpret_cast<const u32*>(at + 2 * blocks)[run / 32]);
        return make_float2(units.x * float(both & 255), -(units.y * float(both >> 8)));
    }
};

struct HalfScalesOfUnits {
    static constexpr bool OFFSETS = false, HALVES = true;
    __host__ __device__ static constexpr u32 size(u32 blocks) { return 2 * blocks + blocks / 4; }
    __device__ static float2 get(const u8* at, u32 blocks, u32 run) {
        const float scale = float(reinterpret_cast<const signed char*>(at)[run / 2]);
        return make_float2(half_value(reinterpret_cast<const u16*>(at + 2 * blocks)[run / 32]) * scale, 0);
    }
};

// Of a quantised type, whose levels have so many bits.
template <u32 BITS, u32 MIDDLE_, class SCALES> struct Blocks {
    static constexpr bool LEVELS = true, OFFSETS = SCALES::OFFSETS, HALVES = SCALES::HALVES;
    static constexpr u32 MIDDLE = MIDDLE_;
    __host__ __device__ static constexpr u32 row_bytes(u32 cols) { return ceil_div(cols * BITS / 8 + SCALES::size(cols / COLUMNS), 16) * 16; }

    // Levels are bytes, nibbles or pairs of bits, and high bits, those of word k of a block's levels where the low ones leave off.
    static constexpr u32 LOW = BITS == 8 ? 8 : BITS >= 4 ? 4 : 2;
    static constexpr u32 HIGH = BITS - LOW;
    __device__ static u32 high(const u8* row, u32 cols, u32 block, u32 k) {
        if constexpr (HIGH == 0) return 0;
        const u32* words = reinterpret_cast<const u32*>(row + cols * LOW / 8) + HIGH * block;
        if constexpr (HIGH == 1) return words[0] >> k << LOW & 0x01010101u << LOW;
        return words[k / 4] >> 2 * (k % 4) << LOW & 0x03030303u << LOW;
    }
    // Pairs of bits of word k, of the four words that `pairs` has.
    __device__ static u32 pair(u32 pairs, u32 k) { return pairs >> 2 * (k % 4) & 0x03030303u; }

    // The 32 levels of a block, a byte each.
    __device__ static void levels(const u8* row, u32 cols, u32 block, u32 (&q)[8]) {
        if constexpr (BITS == 8) {
            const uint4 a = reinterpret_cast<const uint4*>(row)[2 * block], b = reinterpret_cast<const uint4*>(row)[2 * block + 1];
            const u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (u32 k = 0; k < 8; k++) q[k] = words[k];
        } else if constexpr (LOW == 2) {
            const uint2 pairs = reinterpret_cast<const uint2*>(row)[block];
#pragma unroll
            for (u32 k = 0; k < 8; k++) q[k] = pair(k < 4 ? pairs.x : pairs.y, k) | high(row, cols, block, k);
        } else {
            const uint4 a = reinterpret_cast<const uint4*>(row)[block];
            const u32 words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
            for (u32 k = 0; k < 8; k++) q[k] = words[k / 2] >> 4 * (k % 2) & 0x0f0f0f0fu | high(row, cols, block, k);
        }
    }

    // Columns 8 * run to 8 * run + 8 of a row, less scale and offset.
    __device__ static void eight(const u8* row, u32 cols, u32 run, float* v) {
        uint2 q;
        if constexpr (BITS == 8) {
            q = reinterpret_cast<const uint2*>(row)[run];
        } else if constexpr (LOW == 2) {
            const u32 block = run / 4, k = run % 4 * 2;
            const u32 w = reinterpret_cast<const u32*>(row)[2 * block + k / 4];
            q = make_uint2(pair(w, k) | high(row, cols, block, k), pair(w, k + 1) | high(row, cols, block, k + 1));
        } else {
            const u32 w = reinterpret_cast<const u32*>(row)[run];
            const u32 block = run / 4, k = run % 4 * 2;
            q = make_uint2(w & 0x0f0f0f0fu | high(row, cols, block, k), w >> 4 & 0x0f0f0f0fu | high(row, cols, block, k + 1));
        }
        four_bytes(q.x, BYTE_OFFSET + MIDDLE, v);
        four_bytes(q.y, BYTE_OFFSET + MIDDLE, v + 4);
    }

    // Scale and offset of the same columns.
    __device__ static float2 scale(const u8* row, u32 cols, u32 run) { return SCALES::get(row + cols * BITS / 8, cols / COLUMNS, run); }
};

template <> struct Weights<Q8_0> : Blocks<8, 128, Scale> {};
template <> struct Weights<Q4_0> : Blocks<4, 8, Scale> {};
template <> struct Weights<Q4_1> : Blocks<4, 0, ScaleAndOffset> {};
template <> struct Weights<Q5_0> : Blocks<5, 16, Scale> {};
template <> struct Weights<Q5_1> : Blocks<5, 0, ScaleAndOffset> {};
template <> struct Weights<Q4_K> : Blocks<4, 0, ScalesOfUnits> {};
template <> struct Weights<Q5_K> : Blocks<5, 0, ScalesOfUnits> {};
template <> struct Weights<Q6_K> : Blocks<6, 32, HalfScalesOfUnits> {};
template <> struct Weights<Q3_0> : Blocks<3, 4, Scale> {};
template <> struct Weights<Q2_0> : Blocks<2, 0, ScaleOfFour> {};
template <> struct Weights<T2> : Blocks<2, 1, NoScale> {};

// Columns 8 * run to 8 * run + 8 of a row, rounded as the host rounds them.
template <u32 TYPE> __device__ void values8(const u8* row, u32 cols, u32 run, float* v) {
    using W = Weights<TYPE>;
    W::eight(row, cols, run, v);
    if constexpr (W::LEVELS) {
        const float2 s = W::scale(row, cols, run);
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = __fadd_rn(__fmul_rn(v[i], s.x), s.y);
    }
}
