//! Calls that no caller makes stop at once.

use super::*;

#[test]
#[should_panic(expected = "row 7 of 3")]
fn a_list_that_names_a_row_beyond_the_last_panics() {
    let m = Mat::new(DType::F32, 3, 4, 1);
    let x = input(Kernels::best(), &[0.0; 4]);
    Kernels::best().dot_list(m.get(), &[1, 7], &x, &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "columns cut a block")]
fn columns_that_cut_a_block_panic() {
    let m = Mat::new(DType::Q8_0, 1, 64, 1);
    Kernels::best().axpy_rows(m.get(), &[1.0], 0..16, &mut [0.0; 16]);
}
