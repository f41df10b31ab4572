//! Attention on a card, of a step's token or a prompt's.

use super::{Buffer, CudaBackend, error, weights::turns};
use crate::{
    arch::{Config, Rope},
    backend::{Attending, Backend},
    error::Result,
    model::{Layer, Model},
};
use countdown_kernels::cuda::{AttentionCall, AttentionKernels, Cuda, CudaSlice, KvCache, Taken};
use std::sync::Arc;

/// Keys and values of all layers, and the rope tables for their positions.
pub(crate) struct Cache {
    layers: Vec<KvCache>,
    turns: Vec<(Arc<Rope>, CudaSlice<f32>)>,
}

impl Cache {
    /// Empty.
    pub(super) fn new(
        cuda: &Cuda,
        attention: &AttentionKernels,
        c: &Config,
        context: usize,
    ) -> Result<Cache> {
        let mut tables: Vec<(Arc<Rope>, CudaSlice<f32>)> = Vec::new();
        for rope in c.layers.iter().filter_map(|l| l.rope.as_ref()) {
            if !tables.iter().any(|(r, _)| r == rope) {
                let table = cuda.upload(&turns(rope, context));
                tables.push((rope.clone(), table.map_err(error)?));
            }
        }
        let layer = |_| attention.cache(cuda).map_err(error);
        Ok(Cache {
            layers: c.layers.iter().map(layer).collect::<Result<_>>()?,
            turns: tables,
        })
    }
}

/// Whether heads of queries and keys are normed by some layer.
pub(super) fn queries_and_keys(model: &Model) -> Taken {
    let is_normed = |l: &Layer| {
        let norms = [&l.query_norm, &l.key_norm].map(|w| w.as_deref());
        are_of_heads(&model.config, norms)
    };
    if model.layers.iter().any(is_normed) {
        Taken::Normed
    } else {
        Taken::AsIs
    }
}

/// Whether norms of q and k are there, and go over a head and not over all of a token.
fn are_of_heads(c: &Config, norms: [Option<&[f32]>; 2]) -> bool {
    norms
        .iter()
        .all(|w| w.is_some_and(|w| w.len() == c.head_dim))
}

impl CudaBackend {
    /// See [`Backend::attention`].
    pub(super) fn attend(&mut self, cache: &mut Cache, c: &Config, call: Attending<'_, Buffer>) {
        let Attending {
            layer,
            spec,
            start,
            tokens,
            norms,
            q,
            k,
            v,
        } = call;
        // In a step those of heads belong to its launch.
        let of_heads = match norms {
            [Some(q), Some(k)]
                if tokens == 1 && are_of_heads(c, [q.weight, k.weight].map(Some)) =>
            {
                Some([q, k])
            }
            _ => {
                self.norm_queries_and_keys(c, tokens, norms, [&mut *q, &mut *k]);
                None
            }
        };
        if self.issuing.is_none() {
            self.flush();
            self.place(start);
        } else {
            // A step is of one token.
            self.flush_for_attention([q, k, v]);
        }
        let rope = spec.rope.as_ref().map(|rope| {
            let table = cache.turns.iter().find(|(r, _)| r == rope);
            let (_, turns) = table.expect("`cache` made a table for every rope");
            (turns, rope.frequencies.len())
        });
        let call = AttentionCall {
            rope,
            position: &self.given,
            norms: of_heads.map(|n| (n.map(|n| self.weights.vector(n.weight)), c.norm_eps)),
            window: spec.window,
            scale: c.attention_scale,
            cap: c.attention_soft_cap,
        };
        let (cuda, cache) = (&self.cuda, &mut cache.layers[layer]);
        let kv = [&k.data, &v.data];
        let done = if tokens == 1 {
            // In a step that is issued as a whole an FFN follows.
            let joints = self.joints.as_mut().filter(|_| self.issuing.is_some());
            self.attention
                .attend(cuda, call, cache, &mut q.data, kv, joints)
        } else {
            let (wide, n) = (&mut self.wide, tokens * q.width);
            self.attention
                .attend_prompt(cuda, call, cache, tokens, &mut q.data, kv, wide)
                .and_then(|()| cuda.copy(wide, n, &mut q.data))
        };
        self.check(done);
    }
}
