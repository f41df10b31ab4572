//! T2: 32 ternary weights without a scale; 2 bits a weight. Whoever uses the products scales them.
//!
//! ```text
//! byte  0                          8
//!       | qs[0] qs[1] ...   qs[7]  |      bits 2 p and 2 p + 1 of qs[i]: element i + 8 p
//!       | four levels a byte       |      w = q - 1; q = 3 is never written
//! ```

use super::{
    Format, nearest,
    q2_0::{levels, put_levels},
};
use crate::dtype::DType;

pub(crate) struct T2;

impl Format for T2 {
    const DTYPE: DType = DType::T2;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        for (w, q) in out.iter_mut().zip(levels(block)) {
            *w = f32::from(q as i8 - 1);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let q = |j: usize| (nearest(x[j], -1, 1) + 1) as u8;
        put_levels(block, std::array::from_fn(q));
    }
}
