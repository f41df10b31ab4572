//! What a decode step calls allocates nothing once its memory is there.

use countdown_kernels::{
    DType, MatRef,
    cpu::{
        Act, Input, Kernels, Score, Team,
        ffn::{
            Affine, Decider, Estimate, FfnWork, SparseFfn, sparse_ffn, sparse_ffn_rows, sum_all,
        },
        gemm::{GemmWork, matmul, matmul_transposed},
        parallel::gemv,
    },
    reference,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(p, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test, so that nothing else allocates meanwhile.
#[test]
fn calls_allocate_nothing_the_second_time() {
    const INTER: usize = 96;
    const HIDDEN: usize = 256;
    const TOKENS: usize = 9;
    let x: Vec<f32> = (0..INTER * HIDDEN).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut team = Team::new(2).unwrap();
    // A thread allocates when it begins, which on a busy machine may be late.
    team.run(&|_| {});
    for k in Kernels::available() {
        for dtype in DType::ALL {
            let data = reference::packed(dtype, &x);
            let m = MatRef::new(dtype, INTER, HIDDEN, &data).unwrap();
            let ffn = SparseFfn {
                gate: m,
                up: m,
                down: m,
                gate_bias: None,
                up_bias: None,
                act: Act::Silu,
            };
            let mut input = Input::with_capacity(HIDDEN);
            let (mut ffn_work, mut gemm_work) = (FfnWork::new(INTER, HIDDEN), GemmWork::new());
            let (mut out, mut y) = (vec![0.0; TOKENS * INTER], vec![0.0; TOKENS * HIDDEN]);
            let mut run = || {
                k.prepare(&x[..HIDDEN], &mut input);
                gemv(&mut team, k, m, &input, &mut out[..INTER]);
                sum_all(
                    &mut team,
                    k,
                    m,
                    &out[..INTER],
                    &mut ffn_work,
                    &mut y[..HIDDEN],
                );
                let affine = Affine {
                    weight: m,
                    bias: None,
                };
                let estimate = Estimate::Product {
                    gate: affine,
                    up: affine,
                };
                for decide in [
                    Decider::Gate,
                    Decider::Up,
                    Decider::Estimate(estimate, &input),
                ] {
                    sparse_ffn(
                        &mut team,
                        k,
                        &ffn,
                        decide,
                        Score::Magnitude,
                        0.5,
                        &input,
                        &mut ffn_work,
                        &mut y[..HIDDEN],
                    );
                }
                sparse_ffn_rows(
                    &mut team,
                    k,
                    &ffn,
                    &[1, 5, 80],
                    &input,
                    &mut ffn_work,
                    &mut y[..HIDDEN],
                );
                matmul(
                    &mut team,
                    k,
                    m,
                    &x[..TOKENS * HIDDEN],
                    TOKENS,
                    &mut out,
                    &mut gemm_work,
                );
                matmul_transposed(&mut team, k, m, &out, TOKENS, &mut y, &mut gemm_work);
                k.exp_below(&mut y, 0.0);
            };
            run();
            let before = CALLS.load(Relaxed);
            run();
            assert_eq!(CALLS.load(Relaxed), before, "{} {dtype}", k.isa());
        }
    }
}
