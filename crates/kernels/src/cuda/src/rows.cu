// What is done to rows of activations: norms, sums, and what prompts need between their products.

struct Norm {
    const float* x;       // [blocks, cols]
    const float* weight;  // [cols]
    float* y;             // [blocks, cols]; may be x
    u32 cols;
    float eps;
};

// y = x / rms(x) * weight, a row a block.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) rms_norm(const __grid_constant__ Norm n) {
    const float* x = n.x + u64(blockIdx.x) * n.cols;
    float* y = n.y + u64(blockIdx.x) * n.cols;
    wait_for_previous_kernel();
    let_next_kernel_start();
    float squares = 0;
    for (u32 i = threadIdx.x; i < n.cols; i += blockDim.x) squares = fmaf(x[i], x[i], squares);
    const float factor = 1.0f / sqrtf(block_sum(squares) / n.cols + n.eps);
    for (u32 i = threadIdx.x; i < n.cols; i += blockDim.x) y[i] = x[i] * factor * n.weight[i];
}

struct NormAdd {
    float* x;             // [blocks, cols]
    const float* y;       // [blocks, cols]
    const float* weight;  // [cols]
    u32 cols;
    float eps;
    float scale;
};

// x += scale * y / rms(y) * weight, a row a block.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) norm_add(const __grid_constant__ NormAdd n) {
    float* x = n.x + u64(blockIdx.x) * n.cols;
    const float* y = n.y + u64(blockIdx.x) * n.cols;
    wait_for_previous_kernel();
    let_next_kernel_start();
    float squares = 0;
    for (u32 i = threadIdx.x; i < n.cols; i += blockDim.x) squares = fmaf(y[i], y[i], squares);
    const float factor = 1.0f / sqrtf(block_sum(squares) / n.cols + n.eps);
    for (u32 i = threadIdx.x; i < n.cols; i += blockDim.x) x[i] = fmaf(n.scale, y[i] * factor * n.weight[i], x[i]);
}

struct Add {
    float* x;        // [n]
    const float* y;  // [n], or [every] and then added to every run of so many
    u64 n;
    u32 every;       // 0: y has n elements
    float scale;
};

// x += scale y.
extern "C" __global__ void __launch_bounds__(256) add(const __grid_constant__ Add a) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < a.n; i += gridDim.x * 256u) a.x[i] = fmaf(a.scale, a.y[a.every ? i % a.every : i], a.x[i]);
}

struct Cap {
    float* x;  // [n]
    u64 n;
    float scale;
    float cap;  // 0 for none
};

// x = cap tanh(scale x / cap).
extern "C" __global__ void __launch_bounds__(256) cap(const __grid_constant__ Cap c) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < c.n; i += gridDim.x * 256u) {
        const float x = c.x[i] * c.scale;
        c.x[i] = c.cap > 0 ? c.cap * tanhf(x / c.cap) : x;
    }
}

struct Round {
    const float* x;  // [n]
    u16* to;         // [n]
    u64 n;
};

// Activations as 16-bit floats.
extern "C" __global__ void __launch_bounds__(256) round_bf16(const __grid_constant__ Round r) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < r.n; i += gridDim.x * 256u) r.to[i] = bf16_bits(r.x[i]);
}

extern "C" __global__ void __launch_bounds__(256) round_f16(const __grid_constant__ Round r) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < r.n; i += gridDim.x * 256u) r.to[i] = half_bits(r.x[i]);
}

struct Multiply {
    float* gate;      // [n]: W_gate x, becomes the coefficients, or the activated gate
    const float* up;  // [n], or null for 1
    u64 n;
    u32 gelu;
};

// gate = act(gate) * up.
extern "C" __global__ void __launch_bounds__(256) multiply(const __grid_constant__ Multiply m) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    for (u64 i = blockIdx.x * 256u + threadIdx.x; i < m.n; i += gridDim.x * 256u) {
        const float a = m.gelu ? gelu_tanh(m.gate[i]) : silu(m.gate[i]);
        m.gate[i] = m.up ? a * m.up[i] : a;
    }
}
