//! Q8_0: 32 signed bytes under one scale; 8.5 bits a weight.
//!
//! ```text
//! byte  0      2                               34
//!       | d    | q[0] q[1] ...          q[31]  |      w[i] = d * q[i]
//!       | f16  | i8                            |
//! ```

use super::{Format, half_at, inverse, largest, nearest, put_half};
use crate::dtype::DType;

pub(crate) struct Q8_0;

impl Format for Q8_0 {
    const DTYPE: DType = DType::Q8_0;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (w, &q) in out.iter_mut().zip(&block[2..34]) {
            *w = d * f32::from(q as i8);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        // Lengths that the compiler knows.
        let (x, _) = x.split_first_chunk::<32>().expect("a block");
        let d = put_half(block, 0, largest(x) / 127.0);
        let inv = inverse(d);
        for (q, &v) in block[2..34].iter_mut().zip(x) {
            *q = nearest(v * inv, -127, 127) as i8 as u8;
        }
    }
}
