//! The key/value cache.

use super::super::{Kernels, gemm::LANES};
use crate::{DType, quant};

/// Keys and values of one layer, of a float type, in the order in which [`attend`](super::attend) multiplies them: `LANES` neighbours in the
/// lanes of a panel. Positions are the lanes of keys, elements of a head those of values; both are padded to whole panels.
///
/// ```text
/// keys:    [kv_heads, context / LANES, head_dim, LANES positions]
/// values:  [kv_heads, head_dim / LANES, context, LANES elements]
/// ```
#[derive(Clone, Debug)]
pub struct LayerCache {
    dtype: DType,
    /// A multiple of `LANES`.
    pub(super) context: usize,
    pub(super) head_dim: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl LayerCache {
    /// Bytes that a cache of these sizes takes (keys and values), or `None` where they overflow or the type is no float.
    pub fn bytes(dtype: DType, kv_heads: usize, context: usize, head_dim: usize) -> Option<usize> {
        let [keys, values] = LayerCache::sizes(dtype, kv_heads, context, head_dim)?;
        keys.checked_add(values)
    }

    /// Bytes of keys and of values.
    fn sizes(dtype: DType, kv_heads: usize, context: usize, head_dim: usize) -> Option<[usize; 2]> {
        let element = (!dtype.is_quantized()).then(|| dtype.block_bytes())?;
        let positions = context.checked_next_multiple_of(LANES)?;
        let rows = kv_heads.checked_mul(positions)?.checked_mul(element)?;
        let values = head_dim.checked_next_multiple_of(LANES)?;
        Some([rows.checked_mul(head_dim)?, rows.checked_mul(values)?])
    }

    /// An empty cache.
    ///
    /// # Panics
    /// If [`LayerCache::bytes`] gives `None` for these sizes.
    pub fn new(dtype: DType, kv_heads: usize, context: usize, head_dim: usize) -> LayerCache {
        let sizes = LayerCache::sizes(dtype, kv_heads, context, head_dim);
        let [keys, values] = sizes.expect("sizes were checked by the caller");
        LayerCache {
            dtype,
            context: context.next_multiple_of(LANES),
            head_dim,
            keys: vec![0; keys],
            values: vec![0; values],
        }
    }

    /// Stores the key and the value (each `[kv_heads, head_dim]`) of a position.
    ///
    /// # Panics
    /// If `position` is beyond the context.
    pub fn store(&mut self, position: usize, key: &[f32], value: &[f32]) {
        assert!(position < self.context);
        let (dim, element) = (self.head_dim, self.dtype.block_bytes());
        let (block, lane) = (position / LANES, position % LANES);
        let panels = dim.div_ceil(LANES);
        each_part(self.dtype, dim, key, |h, p, packed| {
            let first = (h * self.context / LANES + block) * dim + p * LANES;
            for (i, x) in packed.chunks_exact(element).enumerate() {
                let at = ((first + i) * LANES + lane) * element;
                self.keys[at..at + element].copy_from_slice(x);
            }
        });
        each_part(self.dtype, dim, value, |h, p, packed| {
            let at = ((h * panels + p) * self.context + position) * LANES * element;
            self.values[at..at + packed.len()].copy_from_slice(packed);
        });
    }

    /// Unpacks the keys of `LANES` positions, a whole block from position `from` on, `[head_dim, LANES]`.
    pub(super) fn keys(&self, k: &Kernels, head: usize, from: usize, out: &mut [[f32; LANES]]) {
        let line = LANES * self.dtype.block_bytes();
        let at = (head * self.context + from) / LANES * self.head_dim * line;
        let bytes = &self.keys[at..at + self.head_dim * line];
        k.unpack_run(self.dtype, bytes, out.as_flattened_mut());
    }

    /// Unpacks elements `LANES * panel..` of the values of positions `from..`, as many as `out` has, `[positions, LANES]`.
    pub(super) fn values(
        &self,
        k: &Kernels,
        head: usize,
        panel: usize,
        from: usize,
        out: &mut [[f32; LANES]],
    ) {
        let line = LANES * self.dtype.block_bytes();
        let panels = self.head_dim.div_ceil(LANES);
        let at = ((head * panels + panel) * self.context + from) * line;
        let bytes = &self.values[at..at + out.len() * line];
        k.unpack_run(self.dtype, bytes, out.as_flattened_mut());
    }
}

/// Packs `x`, heads of `dim` elements, and shows `put` each part of a head that fills a panel: `put(head, panel, bytes)`.
fn each_part(dtype: DType, dim: usize, x: &[f32], mut put: impl FnMut(usize, usize, &[u8])) {
    let mut packed = [0; LANES * DType::F32.block_bytes()];
    for (h, head) in x.chunks_exact(dim).enumerate() {
        for (p, part) in head.chunks(LANES).enumerate() {
            let packed = &mut packed[..part.len() * dtype.block_bytes()];
            quant::pack_row(dtype, part, packed);
            put(h, p, packed);
        }
    }
}
