//! Storage types of weights: how many elements make a block, and how many bytes a block takes.

use std::fmt;

/// How the elements of a matrix row are stored. Quantised types store a row as whole blocks; the layouts are drawn in
/// `crate::quant`. Up to `Q6_K` they are those of GGUF. The last four are this crate's own, for predictors: cheap copies
/// of matrices, read densely to decide which rows of the matrices themselves to read. No model file holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the variants are the field's own names
#[allow(non_camel_case_types)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4_K,
    Q5_K,
    Q6_K,
    Q3_0,
    Q2_0,
    T2,
    Q8_H,
}

impl DType {
    /// Every storage type, in a fixed order: `ALL[t as usize] == t`.
    pub const ALL: [DType; 15] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
        DType::Q3_0,
        DType::Q2_0,
        DType::T2,
        DType::Q8_H,
    ];

    /// The name the field uses, for example `"Q4_K"`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q8_0 => "Q8_0",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q5_0 => "Q5_0",
            DType::Q5_1 => "Q5_1",
            DType::Q4_K => "Q4_K",
            DType::Q5_K => "Q5_K",
            DType::Q6_K => "Q6_K",
            DType::Q3_0 => "Q3_0",
            DType::Q2_0 => "Q2_0",
            DType::T2 => "T2",
            DType::Q8_H => "Q8_H",
        }
    }

    /// The type of that name, whatever the case of its letters.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Elements in one block; 1 for the float types.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1 => 32,
            DType::Q3_0 | DType::Q2_0 | DType::T2 | DType::Q8_H => 32,
            DType::Q4_K | DType::Q5_K | DType::Q6_K => 256,
        }
    }

    /// Bytes in one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q8_0 => 34,
            DType::Q4_0 | DType::Q8_H => 18,
            DType::Q4_1 => 20,
            DType::Q5_0 => 22,
            DType::Q5_1 => 24,
            DType::Q4_K => 144,
            DType::Q5_K => 176,
            DType::Q6_K => 210,
            DType::Q3_0 => 14,
            DType::Q2_0 => 10,
            DType::T2 => 8,
        }
    }

    /// Bytes in a row of `cols` elements, or `None` where `cols` is no whole number of blocks
    /// or the product overflows.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Average bits a weight, block scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.block_bytes() as f64 / self.block_len() as f64
    }

    /// Whether elements are stored in blocks, and so multiplied as integers (everything but the float types).
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_indexed_by_the_type_itself_and_names_round_trip() {
        for (i, t) in DType::ALL.into_iter().enumerate() {
            assert_eq!(t as usize, i);
            assert_eq!(DType::from_name(&t.name().to_lowercase()), Some(t));
        }
        assert_eq!(DType::from_name("Q9_9"), None);
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DType::F16.row_bytes(3), Some(6));
        assert_eq!(DType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(DType::Q4_0.row_bytes(48), None);
        assert_eq!(DType::Q6_K.row_bytes(512), Some(420));
        assert_eq!(DType::Q3_0.row_bytes(96), Some(42));
        assert_eq!(DType::F32.row_bytes(usize::MAX), None);
    }
}
