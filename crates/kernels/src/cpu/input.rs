//! An activation vector in the representations that dot products read.

/// Elements that share an activation scale.
pub(super) const BLOCK: usize = 32;
/// Elements the int8 representations are padded to, with zeros: the longest weight block.
const PAD: usize = 256;

/// 64 bytes on a cache line of their own, so that no vector load of activations straddles two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

/// An activation vector: in `f32` always, and, where its length is a multiple of 32, in int8 blocks of 32.
///
/// A block's scale is `max|x| / 127`; its levels are `x / scale` rounded to nearest, ties to even. A block that holds
/// a NaN has the scale NaN, so that it reaches every product.
///
/// Filled by [`Kernels::prepare`](super::Kernels::prepare).
#[derive(Clone, Default)]
pub struct Input {
    /// The vector, padded with zeros to a multiple of 32.
    x: Vec<f32>,
    len: usize,
    /// Levels in their natural order.
    levels: Vec<Line>,
    /// Levels by groups of four blocks A B C D: first the first halves of A B C D, then their second halves. That is
    /// the order in which the nibbles of four Q4_0 blocks lie when low and high nibbles are separated.
    halves: Vec<Line>,
    /// Levels by groups of eight blocks: first the first quarters of all eight, then their second quarters, and so on. That
    /// is the order in which the two-bit levels of eight blocks lie when the four pairs of bits of a byte are separated.
    quarters: Vec<Line>,
    /// One scale a block, padded with zeros.
    scales: Vec<f32>,
    /// One sum of levels a block, padded with zeros.
    totals: Vec<i32>,
    /// One scale times sum of levels a block, padded with zeros: what a constant weight of 1 contributes.
    sums: Vec<f32>,
}

/// A block in int8.
///
/// Kernels of tiles have all of it at hand before they come to the weights, so that no check of an index parts what a step
/// loads from where it is used: compilers broadcast four levels as they are loaded only within one run of instructions.
#[derive(Clone, Copy)]
#[cfg(target_arch = "x86_64")]
pub(super) struct Block<'a> {
    pub(super) levels: &'a [i8; BLOCK],
    pub(super) scale: f32,
    /// The sum of the levels.
    pub(super) total: i32,
    /// The scale times that.
    pub(super) sum: f32,
}

/// As many blocks in int8 as the longest weight block has.
#[derive(Clone, Copy)]
#[cfg(target_arch = "x86_64")]
pub(super) struct SuperBlock<'a> {
    pub(super) levels: &'a [i8; PAD],
    pub(super) scales: &'a [f32; PAD / BLOCK],
    pub(super) sums: &'a [f32; PAD / BLOCK],
}

impl Input {
    /// An empty input that takes vectors of up to `len` elements without allocating.
    pub fn with_capacity(len: usize) -> Input {
        let blocks = len.next_multiple_of(PAD) / BLOCK;
        Input {
            x: Vec::with_capacity(len.next_multiple_of(BLOCK)),
            len: 0,
            levels: Vec::with_capacity(blocks / 2),
            halves: Vec::with_capacity(blocks / 2),
            quarters: Vec::with_capacity(blocks / 2),
            scales: Vec::with_capacity(blocks),
            totals: Vec::with_capacity(blocks),
            sums: Vec::with_capacity(blocks),
        }
    }

    /// The vector in `f32`.
    pub fn x(&self) -> &[f32] {
        &self.x[..self.len]
    }

    /// The vector in `f32`, padded with zeros to a multiple of 32.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn padded(&self) -> &[f32] {
        &self.x
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the int8 blocks are there.
    pub fn is_blocked(&self) -> bool {
        self.len.is_multiple_of(BLOCK)
    }

    /// Levels in natural order, padded with zeros to a multiple of 256.
    #[inline(always)]
    pub(super) fn levels(&self) -> &[i8] {
        flat(&self.levels)
    }

    /// Levels by halves of groups of four blocks, as long as [`Input::levels`].
    #[inline(always)]
    #[cfg(any(target_arch = "x86_64", test))]
    pub(super) fn halves(&self) -> &[i8] {
        flat(&self.halves)
    }

    /// Levels by quarters of groups of eight blocks, as long as [`Input::levels`].
    #[inline(always)]
    #[cfg(any(target_arch = "x86_64", test))]
    pub(super) fn quarters(&self) -> &[i8] {
        flat(&self.quarters)
    }

    /// Scales of the blocks, padded with zeros to a multiple of 8.
    #[inline(always)]
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Sums of levels of the blocks, padded with zeros to a multiple of 8.
    #[inline(always)]
    #[cfg(any(target_arch = "x86_64", test))]
    pub(super) fn totals(&self) -> &[i32] {
        &self.totals
    }

    /// Scale times sum of levels of the blocks, padded with zeros to a multiple of 8.
    #[inline(always)]
    #[cfg(any(target_arch = "x86_64", test))]
    pub(super) fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// The int8 blocks, padded with blocks of zeros to a multiple of 8.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block<'_>> + Clone {
        let numbers = self.scales.iter().zip(&self.totals).zip(&self.sums);
        let levels = self.levels().as_chunks().0;
        levels
            .iter()
            .zip(numbers)
            .map(|(levels, ((scale, total), sum))| Block {
                levels,
                scale: *scale,
                total: *total,
                sum: *sum,
            })
    }

    /// The int8 blocks by eight.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn super_blocks(&self) -> impl Iterator<Item = SuperBlock<'_>> + Clone {
        let numbers = self
            .scales
            .as_chunks()
            .0
            .iter()
            .zip(self.sums.as_chunks().0);
        let levels = self.levels().as_chunks().0;
        levels
            .iter()
            .zip(numbers)
            .map(|(levels, (scales, sums))| SuperBlock {
                levels,
                scales,
                sums,
            })
    }

    /// Takes over `x` and computes the blocks. Compiled once per instruction set, with the same results.
    #[inline(always)]
    pub(super) fn fill(&mut self, x: &[f32]) {
        self.x.clear();
        self.x.extend_from_slice(x);
        self.x.resize(x.len().next_multiple_of(BLOCK), 0.0);
        self.len = x.len();
        let padded = if self.is_blocked() {
            x.len().next_multiple_of(PAD)
        } else {
            0
        };
        self.levels.resize(padded / 64, Line([0; 64]));
        self.halves.resize(padded / 64, Line([0; 64]));
        self.quarters.resize(padded / 64, Line([0; 64]));
        self.scales.resize(padded / BLOCK, 0.0);
        self.totals.resize(padded / BLOCK, 0);
        self.sums.resize(padded / BLOCK, 0.0);
        if padded == 0 {
            return;
        }
        let levels = flat_mut(&mut self.levels);
        let blocks = x.len() / BLOCK;
        for (b, (x, q)) in x
            .chunks_exact(BLOCK)
            .zip(levels.chunks_exact_mut(BLOCK))
            .enumerate()
        {
            // The bits of non-negative floats are ordered as the floats are, and those of a NaN come last.
            let bits = x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
            let largest = f32::from_bits(bits);
            // 127 over a smaller number could overflow. The comparison fails for NaN as well.
            let inverse = if largest > 1e-30 {
                127.0 / largest
            } else {
                0.0
            };
            let mut sum = 0;
            for (q, v) in q.iter_mut().zip(x) {
                let level = (v * inverse).round_ties_even() as i32;
                sum += level;
                *q = level as i8;
            }
            self.scales[b] = largest / 127.0;
            self.totals[b] = sum;
            self.sums[b] = largest / 127.0 * sum as f32;
        }
        levels[blocks * BLOCK..].fill(0);
        self.scales[blocks..].fill(0.0);
        self.totals[blocks..].fill(0);
        self.sums[blocks..].fill(0.0);
        for (group, halves) in levels
            .chunks_exact(128)
            .zip(flat_mut(&mut self.halves).chunks_exact_mut(128))
        {
            for (piece, q) in group.chunks_exact(16).enumerate() {
                let to = piece % 2 * 64 + piece / 2 * 16;
                halves[to..to + 16].copy_from_slice(q);
            }
        }
        for (group, quarters) in levels
            .chunks_exact(256)
            .zip(flat_mut(&mut self.quarters).chunks_exact_mut(256))
        {
            for (piece, q) in group.chunks_exact(8).enumerate() {
                let to = piece % 4 * 64 + piece / 4 * 8;
                quarters[to..to + 8].copy_from_slice(q);
            }
        }
    }
}

fn flat(lines: &[Line]) -> &[i8] {
    // SAFETY: `Line` is 64 bytes of `i8` without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 64) }
}

fn flat_mut(lines: &mut [Line]) -> &mut [i8] {
    // SAFETY: as in `flat`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
}
