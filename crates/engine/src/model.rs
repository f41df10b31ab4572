//! A model's weights in host memory: mapped from the file wherever the file's layout is the engine's.

use crate::{
    arch::{Config, Family, NormWeights, Role, RopeRows, is_tied, names},
    error::{Error, Result},
    formats::{Checkpoint, Metadata, Tensor},
    sparsity::Signal,
};
use countdown_kernels::{Bytes, DType, Layout, MatRef, ShapeError, cpu::Team, quant};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// An owned (or mapped) weight matrix `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    dtype: DType,
    rows: usize,
    cols: usize,
    layout: Layout,
    data: Bytes,
}

impl Matrix {
    /// `data` as `[rows, cols]` elements of `dtype`.
    ///
    /// # Errors
    /// [`ShapeError`] where the lengths do not fit.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: Bytes) -> Result<Matrix, ShapeError> {
        let layout = MatRef::new(dtype, rows, cols, &data)?.layout();
        Ok(Matrix {
            dtype,
            rows,
            cols,
            layout,
            data,
        })
    }

    /// The same matrix lying otherwise: `data` is its bytes in that layout. Those it has now are released, not to be in memory twice.
    ///
    /// # Errors
    /// [`ShapeError`] where the lengths do not fit.
    pub(crate) fn laid_out(&self, layout: Layout, data: Bytes) -> Result<Matrix, ShapeError> {
        MatRef::with_layout(self.dtype, self.rows, self.cols, layout, &data)?;
        self.data.release();
        Ok(Matrix {
            layout,
            data,
            ..self.clone()
        })
    }

    /// Whether rows lie in tiles, so that none can be read by itself.
    pub fn is_tiled(&self) -> bool {
        self.layout == Layout::Tiles
    }

    /// The matrix as kernels take it.
    pub fn view(&self) -> MatRef<'_> {
        MatRef::with_layout(self.dtype, self.rows, self.cols, self.layout, &self.data)
            .expect("lengths were checked when the matrix was made")
    }

    /// A copy with every element of some rows set to `value`. For experiments and tests: what does a row do?
    ///
    /// # Panics
    /// If a row is beyond the matrix, or its rows do not lie as blocks.
    pub fn with_rows_replaced(&self, rows: &[usize], value: f32) -> Matrix {
        let Layout::Rows(place) = self.layout else {
            panic!("tiles and parts have no rows of blocks")
        };
        let bytes = self.view().row_bytes();
        let mut data = self.data.to_vec();
        for &r in rows {
            let row = &mut data[r * place.stride..][..bytes];
            quant::pack_row(self.dtype, &vec![value; self.cols], row);
        }
        Matrix {
            data: data.into(),
            ..self.clone()
        }
    }
    /// Storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Rows (outputs of a product).
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns (inputs of a product).
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.rows * self.view().row_bytes()
    }
}

/// How the down projection lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DownLayout {
    /// As in the file, `[hidden, inter]`: nothing is copied; only dense steps are possible.
    #[default]
    Stored,
    /// `[inter, hidden]`, so that a neuron's weights are one row that can be skipped. Costs a copy in memory; quantised
    /// weights are quantised again along hidden, to Q8_0.
    Transposed,
}

/// The down projection in one of its layouts.
#[derive(Clone, Debug)]
pub enum Down {
    /// `[hidden, inter]`.
    Stored(Matrix),
    /// `[inter, hidden]`.
    Transposed(Matrix),
}

impl Down {
    /// The matrix, whatever its layout.
    pub fn matrix(&self) -> &Matrix {
        match self {
            Down::Stored(m) | Down::Transposed(m) => m,
        }
    }
}

/// The gated FFN of a layer: `y = W_down (act(W_gate x) * (W_up x))`.
#[derive(Clone, Debug)]
pub struct Ffn {
    /// `[inter, hidden]`.
    pub gate: Matrix,
    /// `[inter, hidden]`.
    pub up: Matrix,
    /// See [`DownLayout`].
    pub down: Down,
}

/// A projection with its optional bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[outputs, inputs]`.
    pub weight: Matrix,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

/// One transformer layer.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the field's own names
pub struct Layer {
    pub attn_norm: Vec<f32>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    /// Norms over each head of q and k, `[head_dim]`.
    pub query_norm: Option<Vec<f32>>,
    pub key_norm: Option<Vec<f32>>,
    pub attn_output: Linear,
    pub post_attn_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub ffn: Ffn,
    pub post_ffn_norm: Option<Vec<f32>>,
}

/// All weights of a model. A clone shares their memory.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shape and constants.
    pub config: Config,
    /// Identifies the weights; plans carry it. See [`Checkpoint::fingerprint`].
    pub fingerprint: String,
    /// Where the weights came from.
    pub path: PathBuf,
    /// `[vocab, hidden]`.
    pub embedding: Matrix,
    /// `[vocab, hidden]`; shares the embedding's memory where the two are tied.
    pub head: Matrix,
    /// `[hidden]`.
    pub output_norm: Vec<f32>,
    /// From the first to the last.
    pub layers: Vec<Layer>,
    /// Whether the head is the embedding.
    pub is_tied: bool,
    /// The layout of every layer's down projection.
    pub down_layout: DownLayout,
}

impl Model {
    /// Opens a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// Whatever [`Model::from_checkpoint`] or opening the files gives.
    pub fn open(path: &Path, down: DownLayout, threads: usize) -> Result<Model> {
        Model::from_checkpoint(&Checkpoint::open(path)?, down, threads)
    }

    /// Takes the weights of an opened checkpoint. `threads` help to transpose.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the family, tensor, shape or feature that does not fit; [`Error::Malformed`] for metadata
    /// out of range.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        down: DownLayout,
        threads: usize,
    ) -> Result<Model> {
        let family = Family::of(checkpoint)?;
        let config = family.config(checkpoint)?;
        let mut loader = Loader {
            checkpoint,
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

    /// Weight bytes that a dense decode step reads, by part.
    pub fn bytes_per_token(&self) -> StepBytes {
        let mut b = StepBytes {
            head: self.head.bytes() + self.embedding.bytes() / self.config.vocab,
            ..StepBytes::default()
        };
        for l in &self.layers {
            for m in [&l.query, &l.key, &l.value, &l.attn_output] {
                b.attention += m.weight.bytes();
            }
            b.gate += l.ffn.gate.bytes();
            b.up += l.ffn.up.bytes();
            b.down += l.ffn.down.matrix().bytes();
        }
        b
    }

    /// Parameters in all.
    pub fn parameters(&self) -> u64 {
        let size = |m: &Matrix| (m.rows * m.cols) as u64;
        let mut n = size(&self.embedding) + self.output_norm.len() as u64;
        if !self.is_tied {
            n += size(&self.head);
        }
        for l in &self.layers {
            for m in [&l.query, &l.key, &l.value, &l.attn_output] {
                n += size(&m.weight) + m.bias.as_ref().map_or(0, Vec::len) as u64;
            }
            for m in [&l.ffn.gate, &l.ffn.up, l.ffn.down.matrix()] {
                n += size(m);
            }
            let norms = [
                &l.query_norm,
                &l.key_norm,
                &l.post_attn_norm,
                &l.post_ffn_norm,
            ];
            n += (l.attn_norm.len() + l.ffn_norm.len()) as u64;
            n += norms
                .iter()
                .map(|v| v.as_ref().map_or(0, Vec::len) as u64)
                .sum::<u64>();
        }
        n
    }
}

/// Weight bytes of one decode step by what they belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct StepBytes {
    pub attention: usize,
    pub gate: usize,
    pub up: usize,
    pub down: usize,
    pub head: usize,
}

impl StepBytes {
    /// All parts.
    pub fn total(&self) -> usize {
        self.attention + self.ffn() + self.head
    }
    /// Bytes of a step that reads this much of the FFNs for all neurons, and the rest for the share `kept`.
    pub fn at(&self, reads: ReadDensely, kept: f64) -> f64 {
        let (gate, up, down) = (self.gate as f64, self.up as f64, self.down as f64);
        let ffn = match reads {
            ReadDensely::All => gate + up + down,
            ReadDensely::Gate => gate + kept * (up + down),
            ReadDensely::Up => up + kept * (gate + down),
            ReadDensely::GateAndUp => gate + up + kept * down,
            ReadDensely::Predictor { bytes, rest } => {
                let rest = rest.map_or(gate + up, |rest| rest as f64);
                bytes as f64 + kept * (rest + down)
            }
        };
        (self.attention + self.head) as f64 + ffn
    }
    /// The three FFN matrices.
    pub fn ffn(&self) -> usize {
        self.gate + self.up + self.down
    }
}

/// What a step reads of its FFNs for every neuron, kept or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadDensely {
    /// All three matrices.
    All,
    /// Gate.
    Gate,
    /// Up.
    Up,
    /// Gate and up: what it takes to know the coefficients exactly.
    GateAndUp,
    /// Predictors, over all layers.
    Predictor {
        /// What they read themselves.
        bytes: usize,
        /// What is left to be read of gate and up if all neurons are kept; `None` for all of them.
        rest: Option<usize>,
    },
}

impl ReadDensely {
    /// What knowing a signal exactly reads.
    pub fn of(signal: Signal) -> ReadDensely {
        match signal {
            Signal::Gate => ReadDensely::Gate,
            Signal::Up => ReadDensely::Up,
            Signal::Product => ReadDensely::GateAndUp,
        }
    }
}

/// The type a transposed down projection is stored in: rows run along hidden, so K-quants of the other direction cannot
/// be kept, and 8 bits lose next to nothing of any of them.
pub(crate) fn transposed_dtype(stored: DType, hidden: usize) -> DType {
    match stored {
        float if !float.is_quantized() => float,
        _ if hidden.is_multiple_of(DType::Q8_0.block_len()) => DType::Q8_0,
        _ => DType::F16,
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    family: &'static Family,
    config: &'a Config,
    used: HashSet<String>,
    team: Team,
}

impl Loader<'_> {
    fn is_gguf(&self) -> bool {
        matches!(self.checkpoint.metadata, Metadata::Gguf(_))
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
        Error::Unsupported {
            path: self.checkpoint.path.clone(),
            cause,
            remedy: format!(
                "check that the file is complete and of the {} family it claims",
                self.family.name
            ),
        }
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

    fn extra_norm(&mut self, role: Role, layer: usize, len: usize) -> Result<Option<Vec<f32>>> {
        if !self.family.extras.contains(&role) {
            return Ok(None);
        }
        self.norm(&self.name(role, layer), len).map(Some)
    }

    fn linear(
        &mut self,
        (role, bias): (Role, Option<Role>),
        layer: usize,
        shape: [usize; 2],
    ) -> Result<Linear> {
        let weight = self.matrix(&self.name(role, layer), shape)?;
        let bias = match bias.filter(|b| self.family.extras.contains(b)) {
            Some(b) => Some(self.vector(&self.name(b, layer), shape[0])?),
            None => None,
        };
        Ok(Linear { weight, bias })
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
        let dtype = transposed_dtype(stored.dtype, hidden);
        let data = quant::transpose_pack(stored.view(), dtype, &mut self.team)
            .and_then(|data| Matrix::new(dtype, inter, hidden, data.into()));
        stored.data.release();
        data.map(Down::Transposed)
            .map_err(|e| self.unsupported(format!("tensor {name}: {e}")))
    }

    fn layer(&mut self, i: usize, down: DownLayout) -> Result<Layer> {
        let c = self.config;
        let (hidden, inter) = (c.hidden, c.layers[i].inter);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let query = self.linear((Role::Query, Some(Role::QueryBias)), i, [q, hidden])?;
        let key = self.linear((Role::Key, Some(Role::KeyBias)), i, [kv, hidden])?;
        Ok(Layer {
            attn_norm: self.norm(&self.name(Role::AttnNorm, i), hidden)?,
            query: self.unpermute(query),
            key: self.unpermute(key),
            value: self.linear((Role::Value, Some(Role::ValueBias)), i, [kv, hidden])?,
            query_norm: self.extra_norm(Role::QueryNorm, i, c.head_dim)?,
            key_norm: self.extra_norm(Role::KeyNorm, i, c.head_dim)?,
            attn_output: self.linear((Role::AttnOutput, None), i, [hidden, q])?,
            post_attn_norm: self.extra_norm(Role::PostAttnNorm, i, hidden)?,
            ffn_norm: self.norm(&self.name(Role::FfnNorm, i), hidden)?,
            ffn: Ffn {
                gate: self.matrix(&self.name(Role::Gate, i), [inter, hidden])?,
                up: self.matrix(&self.name(Role::Up, i), [inter, hidden])?,
                down: self.down(i, inter, down)?,
            },
            post_ffn_norm: self.extra_norm(Role::PostFfnNorm, i, hidden)?,
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
        let derived = |name: &str| name.ends_with("rotary_emb.inv_freq");
        match self
            .checkpoint
            .tensors()
            .find(|t| !self.used.contains(&t.name) && !derived(&t.name))
        {
            None => Ok(()),
            Some(t) => Err(self.unsupported(format!(
                "tensor {} has no place in the {} family",
                t.name, self.family.name
            ))),
        }
    }
}
