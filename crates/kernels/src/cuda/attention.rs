//! Attention on the card, with its cache of keys and values.

use super::{
    Cuda, CudaError, EMPTY, Joints, Taken, driver,
    launch::{Grid, Source, sources},
};
use crate::DType;
use cudarc::driver::{CudaFunction, CudaSlice, sys::CUfunction_attribute};

const SOURCES: [Source; 5] = sources![
    "types.cu",
    "weights.cu",
    "flow.cu",
    "attend.cu",
    "attend_prompt.cu"
];
const OF_FLOATS: [Source; 1] = sources!["prompt_floats.cu"];
const OF_HALVES: [Source; 1] = sources!["prompt_halves.cu"];

/// `PROMPT_THREADS` of `attend_prompt.cu`.
const PROMPT_THREADS: usize = 256;
/// Query heads that one launch takes together, at most.
const MOST_TOGETHER: usize = 8;
/// Query heads that eight warps may take together with room beside them: a thread has some 160 registers for five, and 185 for six.
const MOST_BESIDE: usize = 5;
/// Shared memory that a kernel may have without asking for more, and parts that the context is cut in, at most.
const MOST_SHARED: usize = 47 << 10;
const MOST_SPANS: usize = 64;
/// Widest head.
const MOST_COLUMNS: usize = 256;

/// What attention is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Positions of the cache.
    pub context: usize,
    /// Type of keys and values, `F16` or `F32`.
    pub cache: DType,
    /// How heads of queries and keys may be taken ([`AttentionCall::norms`]).
    pub queries_and_keys: Taken,
}

impl AttentionShape {
    /// Bytes of a layer's keys and values.
    pub fn cache_bytes(&self) -> usize {
        let each = if self.cache == DType::F32 { 4 } else { 2 };
        2 * self.kv_heads * self.context * self.head_dim * each
    }

    /// Queries of a block of a prompt's attention, and its bytes of shared memory: `QUERIES` and `PROMPT_SHARED` of `prompt_floats.cu` and `prompt_halves.cu`.
    fn prompt_blocks(&self) -> (usize, usize) {
        if self.cache == DType::F32 {
            const QUERIES: usize = 64;
            const TILE: usize = 32;
            let floats = (QUERIES + 2 * TILE) * (self.head_dim + 4) + QUERIES * (TILE + 1);
            (QUERIES, 4 * floats)
        } else {
            let tile = if self.head_dim <= 128 { 64 } else { 32 };
            let pitch = self.head_dim.next_multiple_of(16) + 8;
            (PROMPT_THREADS / 32 * 16, 2 * 4 * tile * pitch)
        }
    }

    /// Parts that the context is cut in: as many as fill the card.
    fn spans(&self, multiprocessors: usize) -> usize {
        let rows = self.heads / self.together();
        (multiprocessors / rows).clamp(1, MOST_SPANS)
    }

    /// Warps of a block: eight, or four where the arrays of `attend.cu` have no room for the sums of more, or threads have so many registers that an FFN's block finds none beside eight.
    fn warps(&self, spans: usize) -> usize {
        let head = self.head_dim;
        let room = |warps: usize| warps * self.together() * (head + 2);
        let joined = spans * (head / self.pieces(spans) + 4);
        let own_and_turns = 3 * head;
        let norms = match self.queries_and_keys {
            Taken::AsIs => 0,
            Taken::Normed => 2 * head,
        };
        let has_room = 4 * (room(8) + joined + own_and_turns + norms) <= MOST_SHARED;
        if has_room && self.together() <= MOST_BESIDE {
            8
        } else {
            4
        }
    }

    /// Parts that a head's columns are joined in: as many as there are spans for.
    fn pieces(&self, spans: usize) -> usize {
        let quads = self.head_dim / 4;
        let fits = |p: &usize| quads.is_multiple_of(*p) && self.together() * p <= spans;
        (1..=quads).rev().find(fits).unwrap_or(1)
    }

    /// Query heads that are taken together: a divisor of those that share keys.
    fn together(&self) -> usize {
        let group = self.heads / self.kv_heads;
        let fits = (1..=MOST_TOGETHER).rev().find(|n| group.is_multiple_of(*n));
        fits.unwrap_or(1)
    }
}

/// Keys and values of one layer, `[kv_heads, context, head_dim]` each.
pub struct KvCache {
    keys: CudaSlice<u8>,
    values: CudaSlice<u8>,
}

/// What may differ from layer to layer.
#[derive(Clone, Copy)]
pub struct AttentionCall<'a> {
    /// Cosines and sines in turns, `[context, pairs]`, and `pairs`: columns i and i + pairs of a head turn together, others do not.
    /// Without it none do.
    pub rope: Option<(&'a CudaSlice<f32>, usize)>,
    /// Tokens that are in the cache before these, 1 number.
    pub position: &'a CudaSlice<u32>,
    /// What heads of queries and of keys are multiplied by once they are divided by their root mean squares, `[head_dim]` each, and what is added to mean squares; they are taken as
    /// they are if `None`. Of one token.
    pub norms: Option<([&'a CudaSlice<f32>; 2], f32)>,
    /// Positions seen, the own one included; all if `None`.
    pub window: Option<usize>,
    /// Factor of scores.
    pub scale: f32,
    /// Scores are `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
}

/// Attention kernels of one shape, and the memory that their blocks speak through.
pub struct AttentionKernels {
    shape: AttentionShape,
    /// Parts that the context is cut in.
    spans: usize,
    attend: CudaFunction,
    store: CudaFunction,
    attend_prompt: CudaFunction,
    partial: CudaSlice<u32>,
}

/// What a block of a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Footprint {
    /// Bytes of shared memory.
    pub shared: usize,
    /// Warps.
    pub warps: usize,
    /// Registers of a thread.
    pub registers: usize,
}

#[repr(C)]
struct AttendArguments {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    keys: u64,
    values: u64,
    turns: u64,
    position: u64,
    partial: u64,
    context: u32,
    window: u32,
    pairs: u32,
    shares: u32,
    scale: f32,
    cap: f32,
    words: u64,
    norms: [u64; 2],
    eps: f32,
    herald: u64,
}

#[repr(C)]
struct StoreArguments {
    q: u64,
    k: u64,
    v: u64,
    keys: u64,
    values: u64,
    turns: u64,
    position: u64,
    heads: u32,
    kv_heads: u32,
    context: u32,
    pairs: u32,
}

#[repr(C)]
struct PromptArguments {
    q: u64,
    out: u64,
    keys: u64,
    values: u64,
    position: u64,
    tokens: u32,
    heads: u32,
    group: u32,
    context: u32,
    window: u32,
    scale: f32,
    cap: f32,
}

impl AttentionKernels {
    /// Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::Attention`] for a shape that has no kernels, [`CudaError::NoCompiler`], [`CudaError::Code`] or what the driver says.
    pub fn new(cuda: &Cuda, shape: AttentionShape) -> Result<AttentionKernels, CudaError> {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim,
            cache,
            ..
        } = shape;
        let is_grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        let is_width = head_dim.is_multiple_of(8) && (1..=MOST_COLUMNS).contains(&head_dim);
        if !is_grouped || !is_width || !matches!(cache, DType::F16 | DType::F32) {
            return Err(CudaError::Attention { shape });
        }
        let together = shape.together();
        let spans = shape.spans(cuda.card().multiprocessors);
        let pieces = shape.pieces(spans);
        let prompts = match cache {
            DType::F32 => OF_FLOATS,
            _ => OF_HALVES,
        };
        let sources = [&SOURCES[..], &prompts].concat();
        let module = cuda.module(
            &sources,
            &[
                ("HEAD", head_dim),
                ("GROUP", together),
                ("CACHE_F32", usize::from(cache == DType::F32)),
                ("SPANS", spans),
                ("PIECES", pieces),
                ("ATTEND_WARPS", shape.warps(spans)),
                (
                    "HEADS_NORMED",
                    usize::from(shape.queries_and_keys == Taken::Normed),
                ),
            ],
        )?;
        Ok(AttentionKernels {
            shape,
            spans,
            attend: Cuda::function(&module, "attend", 0)?,
            store: Cuda::function(&module, "store", 0)?,
            attend_prompt: Cuda::function(&module, "attend_prompt", shape.prompt_blocks().1)?,
            partial: cuda.upload(&vec![EMPTY; heads * spans * (head_dim + 4 * pieces)])?,
        })
    }

    /// What a block of attention of one token takes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn footprint(&self) -> Result<Footprint, CudaError> {
        let ask = |attribute| {
            let asked = self.attend.get_attribute(attribute);
            asked
                .map(|n| n as usize)
                .map_err(|e| driver("asking about a kernel", e))
        };
        Ok(Footprint {
            shared: ask(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            warps: self.shape.warps(self.spans),
            registers: ask(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        })
    }

    /// An empty cache for one layer.
    ///
    /// # Errors
    /// What the driver says.
    pub fn cache(&self, cuda: &Cuda) -> Result<KvCache, CudaError> {
        let bytes = self.shape.cache_bytes() / 2;
        Ok(KvCache {
            keys: cuda.zeros(bytes)?,
            values: cuda.zeros(bytes)?,
        })
    }

    /// Norms q, `[heads, head_dim]`, and k, if the call says so, rotates them, appends k and v, `[kv_heads, head_dim]`, and attends; the result replaces q. With joints, an FFN that
    /// takes it must follow ([`super::FfnLaunch::join_output`]), or [`Joints::forget`]; and q, k and v come through them where an FFN before passes them
    /// ([`super::FfnLaunch::join_attention`]).
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If lengths do not fit. A position beyond the cache writes beyond it.
    pub fn attend(
        &mut self,
        cuda: &Cuda,
        call: AttentionCall,
        cache: &mut KvCache,
        q: &mut CudaSlice<f32>,
        [k, v]: [&CudaSlice<f32>; 2],
        joints: Option<&mut Joints>,
    ) -> Result<(), CudaError> {
        let s = self.shape;
        let kv = s.kv_heads * s.head_dim;
        assert!(q.len() >= s.heads * s.head_dim && k.len() >= kv && v.len() >= kv);
        self.check(call, cache);
        let rows = s.heads / s.together();
        let joints = joints.map(|j| j.attend(cuda, s.heads * s.head_dim));
        let out = cuda.address(q);
        let projected = joints.as_ref().and_then(|j| j.projected);
        let (q, k, v, herald) = match projected {
            None => (out, cuda.address(k), cuda.address(v), 0),
            Some([q, herald]) => {
                let k = q + 4 * (s.heads * s.head_dim) as u64;
                (q, k, k + 4 * kv as u64, herald)
            }
        };
        let arguments = AttendArguments {
            q,
            k,
            v,
            out,
            keys: cuda.address(&cache.keys),
            values: cuda.address(&cache.values),
            turns: call.rope.map_or(0, |(turns, _)| cuda.address(turns)),
            position: cuda.address(call.position),
            partial: cuda.address(&self.partial),
            context: s.context as u32,
            window: window(call),
            pairs: call.rope.map_or(0, |(_, pairs)| pairs as u32),
            shares: (rows / s.kv_heads) as u32,
            scale: call.scale,
            cap: call.cap.unwrap_or(0.0),
            words: joints.map_or(0, |j| j.out),
            norms: call
                .norms
                .map_or([0; 2], |(all, _)| all.map(|w| cuda.address(w))),
            eps: call.norms.map_or(0.0, |(_, eps)| eps),
            herald,
        };
        let grid = Grid {
            blocks: (rows, self.spans),
            threads: 32 * s.warps(self.spans),
            shared: 0,
        };
        // SAFETY: as `Attend` is declared; lengths were checked, the position is the caller's to check.
        unsafe { cuda.launch(&self.attend, grid, arguments) }
    }

    /// The same for several tokens, `[tokens, heads, head_dim]`; q is rotated and the result goes to `out`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// As [`AttentionKernels::attend`].
    #[allow(clippy::too_many_arguments)] // the operands of attention
    pub fn attend_prompt(
        &mut self,
        cuda: &Cuda,
        call: AttentionCall,
        cache: &mut KvCache,
        tokens: usize,
        q: &mut CudaSlice<f32>,
        [k, v]: [&CudaSlice<f32>; 2],
        out: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let s = self.shape;
        let (width, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        assert!(q.len() >= tokens * width && out.len() >= tokens * width);
        assert!(k.len() >= tokens * kv && v.len() >= tokens * kv);
        self.check(call, cache);
        assert!(call.norms.is_none(), "of one token");
        let store = StoreArguments {
            q: cuda.address(q),
            k: cuda.address(k),
            v: cuda.address(v),
            keys: cuda.address(&cache.keys),
            values: cuda.address(&cache.values),
            turns: call.rope.map_or(0, |(turns, _)| cuda.address(turns)),
            position: cuda.address(call.position),
            heads: s.heads as u32,
            kv_heads: s.kv_heads as u32,
            context: s.context as u32,
            pairs: call.rope.map_or(0, |(_, pairs)| pairs as u32),
        };
        // SAFETY: as `Store` is declared; lengths were checked, the position is the caller's to check.
        unsafe { cuda.launch(&self.store, Grid::of(tokens, PROMPT_THREADS), store)? };
        let group = s.heads / s.kv_heads;
        let arguments = PromptArguments {
            q: cuda.address(q),
            out: cuda.address(out),
            keys: cuda.address(&cache.keys),
            values: cuda.address(&cache.values),
            position: cuda.address(call.position),
            tokens: tokens as u32,
            heads: s.heads as u32,
            group: group as u32,
            context: s.context as u32,
            window: window(call),
            scale: call.scale,
            cap: call.cap.unwrap_or(0.0),
        };
        let (queries, shared) = s.prompt_blocks();
        let grid = Grid {
            blocks: ((tokens * group).div_ceil(queries), s.kv_heads),
            threads: PROMPT_THREADS,
            shared,
        };
        // SAFETY: as `AttendPrompt` is declared; otherwise as above.
        unsafe { cuda.launch(&self.attend_prompt, grid, arguments) }
    }

    fn check(&self, call: AttentionCall, cache: &KvCache) {
        let bytes = self.shape.cache_bytes() / 2;
        assert!(cache.keys.len() == bytes && cache.values.len() == bytes);
        assert!(!call.position.is_empty());
        assert!(call.norms.is_none_or(|(all, _)| {
            self.shape.queries_and_keys == Taken::Normed
                && all.iter().all(|w| w.len() == self.shape.head_dim)
        }));
        assert!(call.rope.is_none_or(|(turns, pairs)| {
            2 * pairs <= self.shape.head_dim && turns.len() >= 2 * pairs * self.shape.context
        }));
    }
}

fn window(call: AttentionCall) -> u32 {
    let all = u32::MAX as usize;
    call.window.unwrap_or(all).min(all) as u32
}
