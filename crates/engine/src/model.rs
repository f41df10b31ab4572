//! A model's weights in host memory: mapped from the file wherever the file's layout is the engine's.

mod load;

use crate::{arch::Config, error::Result, formats::Checkpoint, sparsity::Signal};
use countdown_kernels::{Bytes, DType, Layout, MatRef, ShapeError, cpu::Team, quant};
use std::{
    ops::Range,
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

    /// The transpose of a down projection `[hidden, inter]` that lies in rows; `data` is its bytes in elements of
    /// [`transposed_dtype`] and that layout. Those it has now are released.
    ///
    /// # Errors
    /// [`ShapeError`] where the lengths do not fit.
    pub(crate) fn transposed_as(&self, layout: Layout, data: Bytes) -> Result<Matrix, ShapeError> {
        let blank = Matrix {
            dtype: transposed_dtype(self.dtype, self.rows),
            rows: self.cols,
            cols: self.rows,
            ..self.clone()
        };
        blank.laid_out(layout, data)
    }

    /// The same, transposed here.
    pub(crate) fn transposed(&self, team: &mut Team) -> Matrix {
        let dtype = transposed_dtype(self.dtype, self.rows);
        // Tiles have no columns to be transposed.
        let blocks = quant::blocks_of(self.view());
        let rows = MatRef::new(self.dtype, self.rows, self.cols, &blocks);
        let data = rows.and_then(|rows| quant::transpose_pack(rows, dtype, team));
        let stride = dtype.row_bytes(self.rows).unwrap_or_default();
        data.and_then(|data| self.transposed_as(Layout::Rows { stride }, data))
            .expect("the type is one whose blocks fill the rows")
    }

    /// Whether rows lie in tiles, so that none can be read by itself.
    pub fn is_tiled(&self) -> bool {
        self.layout == Layout::Tiles
    }

    /// Some of the rows, sharing their memory.
    ///
    /// # Panics
    /// If the rows are beyond the matrix, or do not lie as blocks one after the other.
    pub(crate) fn rows_range(&self, rows: Range<usize>) -> Matrix {
        let bytes = self.view().row_bytes();
        assert_eq!(
            self.data.len(),
            self.rows * bytes,
            "rows one after the other"
        );
        Matrix {
            rows: rows.len(),
            data: self.data.slice(rows.start * bytes..rows.end * bytes),
            ..self.clone()
        }
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
        let Layout::Rows { stride } = self.layout else {
            panic!("tiles and parts have no rows of blocks")
        };
        let bytes = self.view().row_bytes();
        let mut data = self.data.to_vec();
        for &r in rows {
            let row = &mut data[r * stride..][..bytes];
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
    /// Added to W_gate x before the activation, `[inter]`.
    pub gate_bias: Option<Vec<f32>>,
    /// Added to W_up x, `[inter]`.
    pub up_bias: Option<Vec<f32>>,
    /// Added to y, `[hidden]`.
    pub down_bias: Option<Vec<f32>>,
}

impl Ffn {
    /// Whether any of its projections has a bias.
    pub(crate) fn has_biases(&self) -> bool {
        let biases = [&self.gate_bias, &self.up_bias, &self.down_bias];
        biases.into_iter().any(Option::is_some)
    }
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
    pub attn_norm: Option<Vec<f32>>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    /// Norms of q and k, over each head (`[head_dim]`) or over all of a token (`[heads * head_dim]`, `[kv_heads * head_dim]`).
    pub query_norm: Option<Vec<f32>>,
    pub key_norm: Option<Vec<f32>>,
    pub attn_output: Linear,
    pub post_attn_norm: Option<Vec<f32>>,
    pub ffn_norm: Option<Vec<f32>>,
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
    /// [`Error::Unsupported`](crate::Error::Unsupported) naming the family, tensor, shape or feature that does not fit; [`Error::Malformed`](crate::Error::Malformed) for metadata
    /// out of range.
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        down: DownLayout,
        threads: usize,
    ) -> Result<Model> {
        load::load(checkpoint, down, threads)
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
            let vectors = [
                &l.attn_norm,
                &l.query_norm,
                &l.key_norm,
                &l.post_attn_norm,
                &l.ffn_norm,
                &l.post_ffn_norm,
                &l.ffn.gate_bias,
                &l.ffn.up_bias,
                &l.ffn.down_bias,
            ];
            n += vectors
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
