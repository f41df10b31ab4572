//! Names of instruction sets.

use std::fmt;

/// An instruction set that has kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// The base set of the target: runs everywhere.
    Scalar,
    /// 128-bit vectors of AArch64.
    Neon,
    /// AVX2, FMA and F16C: 256-bit vectors.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI, with F16C and FMA: 512-bit vectors and byte dot products; and pairs of `bf16` where
    /// the CPU has AVX-512 BF16 as well.
    Avx512,
}

impl Isa {
    /// Its name on the command line: `"scalar"`, `"neon"`, `"avx2"`, `"avx512"`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An instruction set asked for by name that this CPU lacks, or that no one has heard of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernels for instruction set \"{asked}\" on this CPU; it has {}", has.join(", "))]
pub struct IsaError {
    /// The name given.
    pub asked: String,
    /// The names that would do.
    pub has: Vec<&'static str>,
}
