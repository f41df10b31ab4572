//! Products spread over teams: the same bits for every team, and right.

use super::{super::parallel::gemv, *};

#[test]
fn parallel_products_give_the_same_bits_for_every_team() {
    for k in Kernels::available() {
        for dtype in [DType::F32, DType::Q8_0, DType::Q5_0, DType::Q4_K] {
            let m = Mat::new(dtype, 37, 512, 32);
            let x = input(k, &noise(33, 512));
            let mut want = vec![0.0; 37];
            k.dot_rows(m.get(), &x, &mut want);
            for threads in [1, 2, 5] {
                let mut team = Team::new(threads).unwrap();
                let mut got = vec![9.0; 37];
                gemv(&mut team, k, m.get(), &x, &mut got);
                assert_eq!(got, want, "{} {dtype} {threads}", k.isa());
            }
        }
    }
}
