//! Q5_0: 32 five-bit levels around 16 under one scale; 5.5 bits a weight.
//!
//! ```text
//! byte  0      2      6                               22
//!       | d    | qh   | qs[0] qs[1] ...       qs[15]  |      low nibble of qs[i]:  element i
//!       | f16  | u32  | two nibbles a byte            |      high nibble of qs[i]: element i + 16
//!                                                            bit i of qh: fifth bit of element i
//!                                                            w = d * (q - 16)
//! ```

use super::{Format, extreme, half_at, inverse, level, put_half};
use crate::dtype::DType;

pub(crate) struct Q5_0;

impl Format for Q5_0 {
    const DTYPE: DType = DType::Q5_0;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        let q = levels(&block[2..22]);
        for (w, q) in out.iter_mut().zip(q) {
            *w = d * f32::from(q as i8 - 16);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        // Levels reach from -16 to 15, so the element of largest magnitude, whatever its sign, gets -16.
        let d = put_half(block, 0, extreme(x) / -16.0);
        let inv = inverse(d);
        put_levels(&mut block[2..22], |i| level(x[i] * inv + 16.0, 31));
    }
}

/// The 32 levels of `qh qs`, as Q5_0 and Q5_1 both store them.
#[inline(always)]
pub(crate) fn levels(bytes: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let qs = &bytes[4..20];
    std::array::from_fn(|i| {
        let nibble = if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
        nibble | ((high >> i & 1) as u8) << 4
    })
}

/// Stores level `q(i)` of every element `i` as `qh qs`.
pub(super) fn put_levels(bytes: &mut [u8], q: impl Fn(usize) -> u8) {
    let high = (0..32).fold(0u32, |h, i| h | u32::from(q(i) >> 4) << i);
    bytes[..4].copy_from_slice(&high.to_le_bytes());
    for (i, b) in bytes[4..20].iter_mut().enumerate() {
        *b = q(i) & 15 | q(i + 16) << 4;
    }
}
