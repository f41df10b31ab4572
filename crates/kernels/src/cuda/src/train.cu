// Training predictors: the losses and their gradients, element by element, and the optimiser's step. Products are cuBLAS's.
//
// A thread has a column, which is a neuron, and a run of CHUNK tokens; sums over tokens are written apart and added in order afterwards, so results are the same each time.

constexpr u32 CHUNK = 64;
constexpr u32 LOSS_THREADS = 128;

struct Standardise {
    float* x;             // [n]: rows of `cols`
    const float* mean;    // [cols]
    const float* factor;  // [cols]
    u64 n;
    u32 cols;
};

// x = (x - mean) * factor.
extern "C" __global__ void __launch_bounds__(256) standardise(const __grid_constant__ Standardise s) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < s.n; i += gridDim.x * 256u) s.x[i] = (s.x[i] - s.mean[i % s.cols]) * s.factor[i % s.cols];
}

// The loss of a logit with its label, and the slope by the logit.
__device__ float cross_entropy(float logit, float label, float& slope) {
    const float e = expf(-fabsf(logit));
    const float inverse = 1.0f / (1.0f + e);
    slope = (logit >= 0 ? inverse : e * inverse) - label;
    return fmaxf(logit, 0.0f) - label * logit + log1pf(e);
}

// Column i of token t, of labels in rows of words.
__device__ float label(const u32* labels, u32 words, u32 t, u32 i) { return labels[u64(t) * words + i / 32] >> i % 32 & 1; }

// The block's sum, in one of `count` places of its own.
__device__ void put_block_sum(float v, float* sums, u32 place, u32 count) {
    __syncthreads();
    v = block_sum(v);
    if (threadIdx.x == 0) sums[(blockIdx.y * gridDim.x + blockIdx.x) * count + place] = v;
}

struct LogitLoss {
    float* logits;        // [tokens, inter], without bias; become `scale` times slopes
    const float* bias;    // [inter]
    const u32* labels;    // [tokens, words]
    float* bias_parts;    // [chunks, inter]: slopes by the bias
    float* sums;          // [chunks, column blocks]: losses
    u32 tokens, inter, words;
    float scale;
};

extern "C" __global__ void __launch_bounds__(LOSS_THREADS) logit_loss(const __grid_constant__ LogitLoss l) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u32 i = blockIdx.x * LOSS_THREADS + threadIdx.x;
    const u32 first = blockIdx.y * CHUNK, end = min(first + CHUNK, l.tokens);
    float losses = 0, slopes = 0;
    if (i < l.inter) {
        const float bias = l.bias[i];
#pragma unroll 4
        for (u32 t = first; t < end; t++) {
            float& z = l.logits[u64(t) * l.inter + i];
            float slope;
            losses += cross_entropy(z + bias, label(l.labels, l.words, t, i), slope);
            z = slope * l.scale;
            slopes += slope * l.scale;
        }
        l.bias_parts[u64(blockIdx.y) * l.inter + i] = slopes;
    }
    put_block_sum(losses, l.sums, 0, 1);
}

// act(x), and its slope. Both activations are x times the logistic function of an odd polynomial.
__device__ float activate(float x, u32 gelu, float& slope) {
    const float c = 2.0f * 0.7978846f, cubic = 0.044715f, q = x * x;
    const float h = gelu ? c * x * (1.0f + cubic * q) : x;
    const float dh = gelu ? c * (1.0f + 3.0f * cubic * q) : 1.0f;
    const float p = 1.0f / (1.0f + expf(-h));
    slope = p + x * p * (1.0f - p) * dh;
    return x * p;
}

struct ProductLoss {
    float* gate;             // [tokens, inter], without bias; become `scale` times slopes
    float* up;               // the same
    const float* gate_bias;  // [inter]
    const float* up_bias;    // [inter]
    const float* squash;     // ln sharpness, level
    const float* weight;     // [inter]: factors of scores
    const u32* labels;       // [tokens, words]
    float* gate_parts;       // [chunks, inter]: slopes by the bias
    float* up_parts;
    float* sums;             // [chunks, column blocks, 3]: losses, slopes by level, slopes by ln sharpness
    u32 tokens, inter, words, gelu;
    float scale, floor;
};

// The score c |act(gate) up| as the logit sharpness * (ln(score^2 + floor) - level).
extern "C" __global__ void __launch_bounds__(LOSS_THREADS) product_loss(const __grid_constant__ ProductLoss l) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u32 i = blockIdx.x * LOSS_THREADS + threadIdx.x;
    const u32 first = blockIdx.y * CHUNK, end = min(first + CHUNK, l.tokens);
    float losses = 0, levels = 0, sharps = 0, gates = 0, ups = 0;
    if (i < l.inter) {
        const float gate_bias = l.gate_bias[i], up_bias = l.up_bias[i];
        const float w = l.weight[i] * l.weight[i];
        const float sharpness = expf(l.squash[0]), level = l.squash[1];
#pragma unroll 4
        for (u32 t = first; t < end; t++) {
            float& gate = l.gate[u64(t) * l.inter + i];
            float& up = l.up[u64(t) * l.inter + i];
            float by_gate;
            const float a = activate(gate + gate_bias, l.gelu, by_gate);
            const float u = up + up_bias;
            const float s = a * u;
            const float square = w * s * s + l.floor;
            const float above = logf(square) - level;
            float slope;
            losses += cross_entropy(sharpness * above, label(l.labels, l.words, t, i), slope);
            slope *= l.scale * sharpness;
            levels -= slope;
            sharps += slope * above;
            const float by_score = slope * 2.0f * w * s / square;
            gate = by_score * u * by_gate;
            up = by_score * a;
            gates += gate;
            ups += up;
        }
        l.gate_parts[u64(blockIdx.y) * l.inter + i] = gates;
        l.up_parts[u64(blockIdx.y) * l.inter + i] = ups;
    }
    put_block_sum(losses, l.sums, 0, 3);
    put_block_sum(levels, l.sums, 1, 3);
    put_block_sum(sharps, l.sums, 2, 3);
}

struct Columns {
    const float* parts;  // [rows, cols]
    float* out;          // [cols]
    u32 rows, cols;
};

// Sums of columns, from the first row on.
extern "C" __global__ void __launch_bounds__(256) column_sums(const __grid_constant__ Columns c) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    const u32 i = blockIdx.x * 256u + threadIdx.x;
    if (i >= c.cols) return;
    float sum = 0;
    for (u32 r = 0; r < c.rows; r++) sum += c.parts[u64(r) * c.cols + i];
    c.out[i] = sum;
}

struct AdamW {
    float* parameters;      // [n]
    float* first;           // [n]: means of gradients
    float* second;          // [n]: means of their squares
    const float* gradient;  // [n]
    u64 n, decayed_from, decayed_to;
    float rate, decay, beta1, beta2, first_scale, second_scale, epsilon;
};

extern "C" __global__ void __launch_bounds__(256) adamw(const __grid_constant__ AdamW o) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < o.n; i += gridDim.x * 256u) {
        const float g = o.gradient[i];
        const float m = o.beta1 * o.first[i] + (1.0f - o.beta1) * g;
        const float v = o.beta2 * o.second[i] + (1.0f - o.beta2) * g * g;
        float w = o.parameters[i] - o.rate * (m * o.first_scale) / (sqrtf(v * o.second_scale) + o.epsilon);
        if (i >= o.decayed_from && i < o.decayed_to) w -= o.rate * o.decay * w;
        o.first[i] = m;
        o.second[i] = v;
        o.parameters[i] = w;
    }
}

struct Ternary {
    const float* weights;  // [n]
    float* out;            // [n], or the blocks' sums of |weights|
    u64 n;
    float scale;
};

extern "C" __global__ void __launch_bounds__(256) magnitudes(const __grid_constant__ Ternary t) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    float sum = 0;
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < t.n; i += gridDim.x * 256u) sum += fabsf(t.weights[i]);
    put_block_sum(sum, t.out, 0, 1);
}

// Weights rounded to -1, 0 or 1 times the scale.
extern "C" __global__ void __launch_bounds__(256) round_ternary(const __grid_constant__ Ternary t) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < t.n; i += gridDim.x * 256u) {
        const float w = t.weights[i];
        t.out[i] = fabsf(w) > 0.5f * t.scale ? copysignf(t.scale, w) : 0.0f;
    }
}
