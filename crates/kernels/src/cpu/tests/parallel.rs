//! Products spread over teams: the same bits for every team, and right.

use super::{
    super::{
        ffn::{Affine, coefficients},
        parallel::{gemv, gemv_all},
    },
    *,
};

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

#[test]
fn products_in_one_region_are_those_of_each() {
    for k in Kernels::available() {
        let shapes = [(37, DType::Q5_0), (5, DType::F16), (80, DType::Q8_0)];
        let mats = shapes.map(|(rows, dtype)| Mat::new(dtype, rows, 512, 32));
        let tiles = crate::quant::tile(
            Mat::new(DType::Q4_0, 48, 512, 9).get(),
            &mut Team::new(1).unwrap(),
        );
        let tiles = tiles.unwrap();
        let layout = crate::matrix::Layout::Tiles;
        let tiled = MatRef::with_layout(DType::Q4_0, 48, 512, layout, &tiles).unwrap();
        let x = input(k, &noise(33, 512));
        let all = [mats[0].get(), mats[1].get(), tiled, mats[2].get()];
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads).unwrap();
            let mut got = all.map(|m| vec![9.0; m.rows()]);
            let [a, b, c, d] = &mut got;
            let outs = [(all[0], &mut a[..]), (all[1], b), (all[2], c), (all[3], d)];
            gemv_all(&mut team, k, &x, outs);
            for (m, got) in all.iter().zip(&got) {
                let mut want = vec![0.0; m.rows()];
                k.dot_rows(*m, &x, &mut want);
                assert_eq!(*got, want, "{} {threads}", k.isa());
            }
            let (up, gate) = (&all[0], &Mat::new(DType::Q8_0, 37, 512, 5));
            let (mut products, mut ups) = (vec![9.0; 37], vec![9.0; 37]);
            let plain = |weight| Affine { weight, bias: None };
            let act = Act::GeluTanh;
            coefficients(
                &mut team,
                k,
                plain(gate.get()),
                plain(*up),
                act,
                &x,
                &mut products,
                &mut ups,
            );
            let mut want = vec![0.0; 37];
            k.dot_rows(gate.get(), &x, &mut want);
            k.glu(act, &mut want, &got[0]);
            assert_eq!((products, &ups), (want, &got[0]), "{} {threads}", k.isa());
        }
    }
}
