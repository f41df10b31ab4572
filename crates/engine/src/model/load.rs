//! Takes a model's weights from a checkpoint: by the family's names, in the engine's order of rows.

use super::{Down, DownLayout, Ffn, Layer, Linear, Matrix, Model};
use crate::{
    arch::{
        Config, Family, NormWeights, Params, Projections, QkNorm, Role, RopeRows, is_tied, names,
        rope,
    },
    error::{Error, Result},
    formats::{Checkpoint, Tensor},
};
use countdown_kernels::cpu::Team;
use std::collections::HashSet;

pub(super) fn load(checkpoint: &Checkpoint, down: DownLayout, threads: usize) -> Result<Model> {
    let family = Family::of(checkpoint)?;
    let config = family.config(checkpoint)?;
    let mut loader = Loader {
        checkpoint,
        params: Params::new(checkpoint)?,
        family,
        config: &config,
        used: HashSet::new(),
        team: crate::session::team(threads)?,
    };
    let table = [config.vocab, config.hidden];
    let embedding = loader.matrix(&loader.pick(names::EMBEDDING), table)?;
    let head = loader.head(&embedding)?;
    let output_norm = loader.norm(&loader.pick(names::OUTPUT_NORM), config.hidden)?;
    let layers = (0..config.layers.len())
        .map(|i| loader.layer(i, down))
        .collect::<Result<Vec<_>>>()?;
    loader.refuse_leftovers()?;
    Ok(Model {
        fingerprint: checkpoint.fingerprint(),
        path: checkpoint.path.clone(),
        is_tied: head.data.as_ptr() == embedding.data.as_ptr(),
        embedding,
        head,
        output_norm,
        layers,
        down_layout: down,
        config,
    })
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    params: Params<'a>,
    family: &'static Family,
    config: &'a Config,
    used: HashSet<String>,
    team: Team,
}

impl Loader<'_> {
    fn is_gguf(&self) -> bool {
        self.params.is_gguf()
    }

    fn pick(&self, (gguf, hf): (&str, &str)) -> String {
        if self.is_gguf() { gguf } else { hf }.to_owned()
    }

    fn name(&self, role: Role, layer: usize) -> String {
        if self.is_gguf() {
            role.gguf(layer)
        } else {
            role.hugging_face(layer, (self.family.hf_name)(role))
        }
    }

    fn unsupported(&self, cause: String) -> Error {
        self.family.unfit(self.checkpoint, cause)
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self
            .checkpoint
            .tensor(name)
            .ok_or_else(|| self.unsupported(format!("tensor {name} is missing")))?;
        if tensor.shape != shape {
            return Err(self.unsupported(format!(
                "tensor {name} has shape {:?}, expected {shape:?}",
                tensor.shape
            )));
        }
        self.used.insert(name.to_owned());
        Ok(tensor)
    }

    fn matrix(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Matrix> {
        let t = self.tensor(name, &[rows, cols])?;
        let (dtype, data) = (t.dtype, t.data.clone());
        Matrix::new(dtype, rows, cols, data)
            .map_err(|e| self.unsupported(format!("tensor {name}: {e}")))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let v = self.tensor(name, &[len])?.to_f32();
        if v.iter().all(|x| x.is_finite()) {
            Ok(v)
        } else {
            Err(Error::NotFinite(format!("tensor {name}")))
        }
    }

    /// Norm weights as factors.
    fn norm(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let mut v = self.vector(name, len)?;
        if !self.is_gguf() && self.family.hf_norms == NormWeights::MinusOne {
            v.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(v)
    }

    /// The norm of that role, if layers of the family have one.
    fn layer_norm(&mut self, role: Role, layer: usize, len: usize) -> Result<Option<Vec<f32>>> {
        if !self.family.norms.contains(&role) {
            return Ok(None);
        }
        self.norm(&self.name(role, layer), len).map(Some)
    }

    /// A bias, if the file has it.
    fn bias(&mut self, role: Role, layer: usize, len: usize) -> Result<Option<Vec<f32>>> {
        let name = self.name(role, layer);
        let is_there = self.checkpoint.tensor(&name).is_some();
        if is_there || self.family.biases.require(role, &self.params) {
            self.vector(&name, len).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The matrices of some projections with `cols` inputs and so many rows each, which may lie below each other in one.
    fn projections<const N: usize>(
        &mut self,
        layer: usize,
        (fused, apart): (Role, [Role; N]),
        rows: [usize; N],
        cols: usize,
    ) -> Result<[Matrix; N]> {
        let mut matrices = Vec::with_capacity(N);
        if self.family.projections == Projections::Fused {
            let all = self.matrix(&self.name(fused, layer), [rows.iter().sum(), cols])?;
            let mut from = 0;
            for n in rows {
                matrices.push(all.rows_range(from..from + n));
                from += n;
            }
        } else {
            for (role, n) in apart.into_iter().zip(rows) {
                matrices.push(self.matrix(&self.name(role, layer), [n, cols])?);
            }
        }
        Ok(matrices.try_into().expect("one matrix for each projection"))
    }

    /// Brings the rows of q or k into half-split order.
    fn unpermute(&self, l: Linear) -> Linear {
        if !self.is_gguf() || self.family.gguf_permutes_rope == RopeRows::HalfSplit {
            return l;
        }
        let (order, head_dim) = (self.family.gguf_permutes_rope, self.config.head_dim);
        let source = |row: usize| order.in_file(row, head_dim);
        let view = l.weight.view();
        let mut data = Vec::with_capacity(l.weight.bytes());
        for row in 0..l.weight.rows {
            data.extend_from_slice(view.row(source(row)));
        }
        l.weight.data.release();
        Linear {
            bias: l.bias.map(|b| (0..b.len()).map(|i| b[source(i)]).collect()),
            weight: Matrix {
                data: data.into(),
                ..l.weight
            },
        }
    }

    fn down(&mut self, layer: usize, inter: usize, layout: DownLayout) -> Result<Down> {
        let hidden = self.config.hidden;
        let name = self.name(Role::Down, layer);
        let stored = self.matrix(&name, [hidden, inter])?;
        if layout == DownLayout::Stored {
            return Ok(Down::Stored(stored));
        }
        Ok(Down::Transposed(stored.transposed(&mut self.team)))
    }

    fn layer(&mut self, i: usize, down: DownLayout) -> Result<Layer> {
        let c = self.config;
        let (hidden, inter) = (c.hidden, c.layers[i].inter);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let (query_norm, key_norm) = match self.family.qk_norm {
            QkNorm::Head => (c.head_dim, c.head_dim),
            QkNorm::Token => (q, kv),
        };
        let apart = [Role::Query, Role::Key, Role::Value];
        let qkv = self.projections(i, (Role::QueryKeyValue, apart), [q, kv, kv], hidden)?;
        let [query, key, value] = qkv;
        let query = Linear {
            weight: query,
            bias: self.bias(Role::QueryBias, i, q)?,
        };
        let key = Linear {
            weight: key,
            bias: self.bias(Role::KeyBias, i, kv)?,
        };
        let fused = (Role::GateUp, [Role::Gate, Role::Up]);
        let [gate, up] = self.projections(i, fused, [inter; 2], hidden)?;
        Ok(Layer {
            attn_norm: self.layer_norm(Role::AttnNorm, i, hidden)?,
            query: self.unpermute(query),
            key: self.unpermute(key),
            value: Linear {
                weight: value,
                bias: self.bias(Role::ValueBias, i, kv)?,
            },
            query_norm: self.layer_norm(Role::QueryNorm, i, query_norm)?,
            key_norm: self.layer_norm(Role::KeyNorm, i, key_norm)?,
            attn_output: Linear {
                weight: self.matrix(&self.name(Role::AttnOutput, i), [hidden, q])?,
                bias: self.bias(Role::AttnOutputBias, i, hidden)?,
            },
            post_attn_norm: self.layer_norm(Role::PostAttnNorm, i, hidden)?,
            ffn_norm: self.layer_norm(Role::FfnNorm, i, hidden)?,
            ffn: Ffn {
                gate,
                up,
                down: self.down(i, inter, down)?,
                gate_bias: self.bias(Role::GateBias, i, inter)?,
                up_bias: self.bias(Role::UpBias, i, inter)?,
                down_bias: self.bias(Role::DownBias, i, hidden)?,
            },
            post_ffn_norm: self.layer_norm(Role::PostFfnNorm, i, hidden)?,
        })
    }

    /// The output head: a tensor of its own, or the embedding.
    fn head(&mut self, embedding: &Matrix) -> Result<Matrix> {
        let name = self.pick(names::HEAD);
        if is_tied(self.checkpoint) {
            self.used.insert(name);
            return Ok(embedding.clone());
        }
        self.matrix(&name, [self.config.vocab, self.config.hidden])
    }

    /// A tensor nobody asked for means that the model computes something this family does not.
    fn refuse_leftovers(&self) -> Result<()> {
        // The configuration has what it needs of these.
        let is_read = |name: &str| {
            names::is_derived(name) || self.is_gguf() && rope::GGUF_DIVISORS.contains(&name)
        };
        match self
            .checkpoint
            .tensors()
            .find(|t| !self.used.contains(&t.name) && !is_read(&t.name))
        {
            None => Ok(()),
            Some(t) => Err(self.unsupported(format!(
                "tensor {} has no place in the {} family",
                t.name, self.family.name
            ))),
        }
    }
}
