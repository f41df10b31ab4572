//! Rows of quantised weights as device code reads them: blocks of 32 columns in parts, as `src/weights.cu` draws them.

use crate::{
    DType,
    quant::{five_bit_levels, scales_and_mins, third_bit, two_bit_levels},
};

/// Columns of a block, whatever the type.
pub(super) const BLOCK: usize = 32;

/// Bytes of what a row of so many blocks is made of.
struct Parts {
    /// Levels, or their nibbles or lowest two bits.
    low: usize,
    /// Their bits above.
    high: usize,
    scales: usize,
}

impl Parts {
    fn of(dtype: DType, blocks: usize) -> Parts {
        let (low, high, scales) = match dtype {
            DType::Q8_0 => (32 * blocks, 0, 2 * blocks),
            DType::Q4_0 => (16 * blocks, 0, 2 * blocks),
            DType::Q4_1 => (16 * blocks, 0, 4 * blocks),
            DType::Q5_0 => (16 * blocks, 4 * blocks, 2 * blocks),
            DType::Q5_1 => (16 * blocks, 4 * blocks, 4 * blocks),
            DType::Q4_K => (16 * blocks, 0, 2 * blocks + blocks / 2),
            DType::Q5_K => (16 * blocks, 4 * blocks, 2 * blocks + blocks / 2),
            DType::Q6_K => (16 * blocks, 8 * blocks, 2 * blocks + blocks / 4),
            DType::Q3_0 => (8 * blocks, 4 * blocks, 2 * blocks),
            DType::Q2_0 => (8 * blocks, 0, 2 * blocks),
            DType::T2 => (8 * blocks, 0, 0),
            _ => unreachable!("{dtype} has no kernels"),
        };
        Parts { low, high, scales }
    }
}

/// Bytes of a row.
pub(super) fn row_bytes(dtype: DType, cols: usize) -> usize {
    let Parts { low, high, scales } = Parts::of(dtype, cols / BLOCK);
    (low + high + scales).next_multiple_of(16)
}

/// Writes a row of the type's own blocks as device code reads it.
pub(super) fn put_row(dtype: DType, row: &[u8], out: &mut [u8]) {
    let stored = row.chunks_exact(dtype.block_bytes());
    let each = dtype.block_len() / BLOCK;
    let blocks = stored.len() * each;
    let parts = Parts::of(dtype, blocks);
    let (low, rest) = out.split_at_mut(parts.low);
    let (high, scales) = rest.split_at_mut(parts.high);
    for (i, block) in stored.enumerate() {
        for (j, levels) in levels(dtype, block).iter().take(each).enumerate() {
            let b = i * each + j;
            let bytes = parts.low / blocks;
            let low = &mut low[bytes * b..][..bytes];
            match bytes {
                32 => low.copy_from_slice(levels),
                16 => put_nibbles(levels, low),
                _ => put_bits(levels, 0, low),
            }
            let above = 8 * bytes / BLOCK;
            let bytes = parts.high / blocks;
            put_bits(levels, above, &mut high[bytes * b..][..bytes]);
        }
        put_scales(dtype, block, i, blocks, scales);
    }
}

/// Levels of up to eight blocks of 32; bytes from 0 on.
fn levels(dtype: DType, block: &[u8]) -> [[u8; 32]; 8] {
    let mut out = [[0; 32]; 8];
    match dtype {
        DType::Q8_0 => out[0] = std::array::from_fn(|i| block[2 + i] ^ 0x80),
        DType::Q4_0 => out[0] = nibbles(&block[2..18]),
        DType::Q4_1 => out[0] = nibbles(&block[4..20]),
        DType::Q5_0 => out[0] = five_bit_levels(&block[2..22]),
        DType::Q5_1 => out[0] = five_bit_levels(&block[4..24]),
        DType::Q2_0 => out[0] = two_bit_levels(&block[2..10]),
        DType::T2 => out[0] = two_bit_levels(block),
        DType::Q3_0 => {
            let (low, high) = (two_bit_levels(&block[2..10]), &block[10..14]);
            out[0] = std::array::from_fn(|j| low[j] | (high[j % 4] >> third_bit(j) & 1) << 2);
        }
        DType::Q6_K => {
            let (ql, qh) = block[..192].split_at(128);
            for (h, out) in out.chunks_exact_mut(4).enumerate() {
                let (ql, qh) = (&ql[64 * h..][..64], &qh[32 * h..][..32]);
                for (part, out) in out.iter_mut().enumerate() {
                    let low = &ql[32 * (part % 2)..][..32];
                    let shift = part / 2 * 4;
                    *out = std::array::from_fn(|l| {
                        low[l] >> shift & 15 | (qh[l] >> (2 * part) & 3) << 4
                    });
                }
            }
        }
        // Q4_K and Q5_K: the nibbles end the block, and the fifth bits are before them.
        _ => {
            let (head, qs) = block.split_at(block.len() - 128);
            let fifth = &head[16..];
            for (j, out) in out.iter_mut().enumerate() {
                let qs = &qs[j / 2 * 32..][..32];
                let shift = j % 2 * 4;
                *out = std::array::from_fn(|l| {
                    qs[l] >> shift & 15 | (fifth.get(l).unwrap_or(&0) >> j & 1) << 4
                });
            }
        }
    }
    out
}

/// Elements 0 to 15 are low nibbles, the others high ones.
fn nibbles(qs: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 })
}

/// Four bytes for each eight columns: low nibbles the first four, high nibbles the others.
fn put_nibbles(levels: &[u8; 32], to: &mut [u8]) {
    for (eight, to) in levels.chunks_exact(8).zip(to.chunks_exact_mut(4)) {
        for (i, to) in to.iter_mut().enumerate() {
            *to = eight[i] & 15 | eight[4 + i] << 4;
        }
    }
}

/// In one word a bit of each column, or in two words two bits of each, from bit `from` on; where device code finds them with one shift and one mask.
fn put_bits(levels: &[u8; 32], from: usize, to: &mut [u8]) {
    let words = to.len() / 4;
    for (word, to) in to.chunks_exact_mut(4).enumerate() {
        for (i, to) in to.iter_mut().enumerate() {
            let each = (1u8 << words) - 1;
            let fours =
                (0..8 / words).map(|k| levels[32 / words * word + 4 * k + i] >> from & each);
            *to = fours
                .enumerate()
                .fold(0, |byte, (k, bits)| byte | bits << (k * words));
        }
    }
}

/// The scales of the type's block `i`, of a row of so many blocks of 32.
fn put_scales(dtype: DType, block: &[u8], i: usize, blocks: usize, to: &mut [u8]) {
    let (of_blocks, units) = to.split_at_mut((2 * blocks).min(to.len()));
    match dtype {
        DType::T2 => (),
        DType::Q8_0 | DType::Q4_0 | DType::Q5_0 | DType::Q3_0 | DType::Q2_0 => {
            of_blocks[2 * i..][..2].copy_from_slice(&block[..2]);
        }
        DType::Q4_1 | DType::Q5_1 => to[4 * i..][..4].copy_from_slice(&block[..4]),
        DType::Q6_K => {
            of_blocks[16 * i..][..16].copy_from_slice(&block[192..208]);
            units[2 * i..][..2].copy_from_slice(&block[208..210]);
        }
        _ => {
            let (scales, mins) = scales_and_mins(&block[4..16]);
            let both = of_blocks[16 * i..][..16].chunks_exact_mut(2);
            for (to, (scale, min)) in both.zip(scales.into_iter().zip(mins)) {
                to.copy_from_slice(&[scale, min]);
            }
            units[4 * i..][..4].copy_from_slice(&block[..4]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cuda::weights::{PREDICTORS, TYPES},
        quant,
    };
    use half::f16;

    /// A weight of a row on the card, by the drawing in `weights.cu`.
    fn weight(dtype: DType, row: &[u8], cols: usize, column: usize) -> f32 {
        let (b, c, blocks) = (column / 32, column % 32, cols / 32);
        let half = |at: usize| f16::from_le_bytes([row[at], row[at + 1]]).to_f32();
        let word = |at: usize| u32::from_le_bytes(row[at..at + 4].try_into().unwrap());
        let parts = Parts::of(dtype, blocks);
        let nibble = || row[16 * b + c / 8 * 4 + c % 4] >> (c % 8 / 4 * 4) & 15;
        let (k, i) = (c / 4, c % 4);
        let pair = |at: usize| (word(at + 8 * b + c / 16 * 4) >> (8 * i + 2 * (k % 4)) & 3) as u8;
        let (low, bits) = match parts.low / blocks {
            32 => (row[column], 8),
            16 => (nibble(), 4),
            _ => (pair(0), 2),
        };
        let high = match parts.high / blocks {
            0 => 0,
            4 => (word(parts.low + 4 * b) >> (8 * i + k) & 1) as u8,
            _ => pair(parts.low),
        };
        let level = low | high.checked_shl(bits).unwrap_or(0);
        let at = parts.low + parts.high;
        let q = f32::from(level);
        match dtype {
            DType::Q8_0 => half(at + 2 * b) * (q - 128.0),
            DType::Q4_0 => half(at + 2 * b) * (q - 8.0),
            DType::Q3_0 => half(at + 2 * b) * (q - 4.0),
            DType::Q2_0 => half(at + 2 * b) * (q - 1.5),
            DType::T2 => q - 1.0,
            DType::Q5_0 => half(at + 2 * b) * (q - 16.0),
            DType::Q4_1 | DType::Q5_1 => half(at + 4 * b) * q + half(at + 4 * b + 2),
            DType::Q6_K => {
                let unit = half(at + 2 * blocks + b / 8 * 2);
                unit * f32::from(row[at + column / 16] as i8) * (q - 32.0)
            }
            _ => {
                let units = at + 2 * blocks + b / 8 * 4;
                let (scale, min) = (row[at + 2 * b], row[at + 2 * b + 1]);
                half(units) * f32::from(scale) * q - half(units + 2) * f32::from(min)
            }
        }
    }

    #[test]
    fn rows_on_the_card_are_the_same_numbers() {
        let types = TYPES.into_iter().map(|(dtype, _)| dtype);
        let types = types.chain(PREDICTORS);
        for dtype in types.filter(|t| t.is_quantized()) {
            let cols = 3 * dtype.block_len().max(96);
            let x = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 300.0 - 1.0;
            let values: Vec<f32> = (0..cols).map(x).collect();
            let mut stored = vec![0; dtype.row_bytes(cols).unwrap()];
            quant::pack_row(dtype, &values, &mut stored);
            let mut expected = vec![0.0; cols];
            quant::unpack_row(dtype, &stored, &mut expected);
            let mut row = vec![0; row_bytes(dtype, cols)];
            put_row(dtype, &stored, &mut row);
            let got: Vec<f32> = (0..cols).map(|c| weight(dtype, &row, cols, c)).collect();
            assert_eq!(got, expected, "{dtype}");
        }
    }
}
