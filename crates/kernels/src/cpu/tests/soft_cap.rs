use crate::{
    cpu::{Kernels, soft_cap},
    reference,
};

#[test]
fn soft_caps_follow_the_formula() {
    // From where the hyperbolic tangent is its argument to where it is one, the seam at a quarter included.
    let steps = (0..4000).map(|i| 1e-6 * 1.005f32.powi(i));
    let seams = [0.25f32, 0.25f32.next_down(), 0.25f32.next_up(), 0.0, 90.0];
    let x: Vec<f32> = steps.chain(seams).flat_map(|x| [x, -x]).collect();
    for cap in [1.0f32, 30.0, 50.0] {
        let x: Vec<f32> = x.iter().map(|x| cap * x).collect();
        let want = reference::soft_cap(cap, &x);
        let mut portable = x.clone();
        soft_cap(cap, &mut portable);
        for k in Kernels::available() {
            let mut got = x.clone();
            k.soft_cap(cap, &mut got);
            assert_eq!(got, portable, "{}", k.isa());
        }
        for ((x, got), want) in x.iter().zip(portable).zip(want) {
            // Beyond a quarter, one less at most 0.76 with an error of 3 eps (an exponential, a sum, a quotient), of a result of 0.24 and
            // more; a quotient and a product by the cap.
            let bound = 12.0 * f64::from(f32::EPSILON) * want.abs();
            let off = (f64::from(got) - want).abs();
            assert!(off <= bound, "{cap} {x}: {got} for {want}");
            assert!(got.abs() <= cap);
        }
    }
    let mut nan = [f32::NAN, 1.0];
    soft_cap(2.0, &mut nan);
    assert!(nan[0].is_nan() && nan[1].is_finite());
}
