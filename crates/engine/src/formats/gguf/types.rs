//! GGUF's numbers for tensor types.

use crate::kernels::DType;

/// The types that can be loaded, with their numbers.
const LOADABLE: [(u32, DType); 11] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (12, DType::Q4_K),
    (13, DType::Q5_K),
    (14, DType::Q6_K),
    (30, DType::BF16),
];

/// Types that exist but cannot be loaded, for error messages.
const KNOWN: [(u32, &str); 32] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The types that a GGUF file can hold and this engine can compute with: all but those for predictors.
pub fn dtypes() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|&t| number(t).is_some())
}

/// The number that stands for `dtype` in a file, if a file can hold it.
pub(super) fn number(dtype: DType) -> Option<u32> {
    let entry = LOADABLE.iter().find(|(_, t)| *t == dtype);
    entry.map(|(n, _)| *n)
}

/// The type that `number` stands for, or its name (or number) if it cannot be loaded.
pub(super) fn from_number(number: u32) -> Result<DType, String> {
    if let Some((_, dtype)) = LOADABLE.iter().find(|(n, _)| *n == number) {
        return Ok(*dtype);
    }
    match KNOWN.iter().find(|(n, _)| *n == number) {
        Some((_, name)) => Err((*name).into()),
        None => Err(format!("number {number}")),
    }
}

/// The types that can be loaded, for error messages.
pub(super) fn loadable() -> String {
    dtypes().map(DType::name).collect::<Vec<_>>().join(", ")
}

/// `dtype`, or where rows of `cols` are no whole number of its blocks, the type that llama.cpp's
/// quantiser takes instead.
pub(crate) fn fitting(dtype: DType, cols: usize) -> DType {
    let small_blocks = match dtype {
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        other => other,
    };
    let choice = [dtype, small_blocks]
        .into_iter()
        .find(|t| t.row_bytes(cols).is_some());
    choice.unwrap_or(DType::F16)
}

/// GGUF's number for "mostly this type", if it has one.
pub(crate) fn file_type(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q4_K => 14,
        DType::Q5_K => 16,
        DType::Q6_K => 18,
        DType::BF16 => 32,
        DType::Q3_0 | DType::Q2_0 | DType::T2 | DType::Q8_H => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_number_of_its_own_but_for_those_of_predictors() {
        assert_eq!(dtypes().count(), LOADABLE.len());
        for dtype in dtypes() {
            assert_eq!(number(dtype).map(from_number), Some(Ok(dtype)));
        }
        for dtype in [DType::Q3_0, DType::Q2_0, DType::T2, DType::Q8_H] {
            assert_eq!(number(dtype), None);
            assert!(!loadable().contains(dtype.name()));
        }
        for (n, name) in KNOWN {
            assert_eq!(from_number(n), Err(name.into()));
        }
        assert_eq!(from_number(999), Err("number 999".into()));
    }
}
