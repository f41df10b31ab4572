//! The float types: blocks of one element, little-endian.

use super::Format;
use crate::dtype::DType;
use half::{bf16, f16};

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Format for F32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn unpack(b: &[u8], out: &mut [f32]) {
        out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    fn pack(x: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&x[0].to_le_bytes());
    }
}

impl Format for F16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn unpack(b: &[u8], out: &mut [f32]) {
        out[0] = f16::from_le_bytes([b[0], b[1]]).to_f32();
    }
    fn pack(x: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes());
    }
}

impl Format for Bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn unpack(b: &[u8], out: &mut [f32]) {
        out[0] = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    }
    fn pack(x: &[f32], block: &mut [u8]) {
        block.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes());
    }
}
