//! Weights laid out for the steps that will run on them.
//!
//! - What steps read only of the neurons they keep lies *neuron-major*: a neuron's rows side by side. A row is half a kilobyte to
//!   a few kilobytes, too short for the hardware to fetch ahead; a neuron's rows as one run come up to twice as fast. Each row
//!   lies in *parts*, for types whose products or sums are quicker so ([`RowForm::Parts`]).
//! - What steps read as a whole lies in *tiles* of sixteen rows, for types whose products are quicker so ([`quant::tile`]).

use crate::{
    backend::cpu,
    error::{Error, Result},
    model::{Down, DownLayout, Ffn, Layer, Linear, Matrix, Model, transposed_dtype},
    sparsity::{Keep, Outer, Predictor, Rule, Signal, SparsityPlan, predictor::Rest},
};
use countdown_kernels::{
    Bytes, Layout,
    cpu::{Kernels, Team},
    quant::{self, Beside, RowForm, Rows},
};
use std::sync::Arc;

/// What is done with the FFNs; all else is read as a whole. For all but [`Packing::Dense`] down is transposed
/// ([`DownLayout`]), if it is not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Three matrices of rows: for any plan.
    #[default]
    Apart,
    /// All are read as a whole.
    Dense,
    /// Up and down side by side: for a gate that is read of all neurons.
    UpDown,
    /// Gate and down side by side: for an up that is read of all neurons.
    GateDown,
    /// All three side by side: for neurons chosen before any of their rows is read.
    GateUpDown,
    /// As they are, until [`SparsityPlan::packed`] moves down beside what is left of gate and up with the plan.
    DownWithPlan,
}

impl Packing {
    /// What suits the steps of a plan; `None` is dense.
    pub fn of(plan: Option<&SparsityPlan>) -> Packing {
        let Some(plan) = plan else {
            return Packing::Dense;
        };
        plan.rules.first().map_or(Packing::Apart, of_rule)
    }
}

fn of_rule(rule: &Rule) -> Packing {
    match (reads_rows(rule), &rule.predictor) {
        ([true, true], Some(_)) => Packing::GateUpDown,
        ([false, false], Some(_)) => Packing::DownWithPlan,
        ([true, false], _) => Packing::GateDown,
        ([false, true], _) => Packing::UpDown,
        // Both are read as a whole first, to know what to keep.
        _ => Packing::Apart,
    }
}

/// Whether steps by a rule read gate and up of the neurons kept, row by row.
fn reads_rows(rule: &Rule) -> [bool; 2] {
    match (&rule.predictor, rule.keep, rule.signal) {
        (Some(p), ..) => [p.rest.is_none(); 2],
        (None, Keep::Above(_), Signal::Gate) => [false, true],
        (None, Keep::Above(_), Signal::Up) => [true, false],
        (None, ..) => [true, true],
    }
}

/// Refuses a model whose down projections have no row for each neuron.
fn check_down(model: &Model) -> Result<()> {
    if model.down_layout == DownLayout::Transposed {
        return Ok(());
    }
    Err(Error::Plan {
        cause: "needs transposed down projections, but the model was opened with stored ones"
            .into(),
        remedy: "open the model with DownLayout::Transposed, or pack it for the plan: Model::packed(Packing::of(Some(&plan)), threads)".into(),
    })
}

/// Refuses a plan whose steps read rows that the model does not have.
pub(crate) fn check(plan: &SparsityPlan, model: &Model) -> Result<()> {
    check_down(model)?;
    for (rule, layer) in plan.rules.iter().zip(&model.layers) {
        let [gate, up] = reads_rows(rule);
        if gate && layer.ffn.gate.is_tiled() || up && layer.ffn.up.is_tiled() {
            return Err(Error::Plan {
                cause: "skips rows of matrices that are packed to be read as a whole".into(),
                remedy:
                    "pack the model for the plan: Model::packed(Packing::of(Some(&plan)), threads)"
                        .into(),
            });
        }
    }
    Ok(())
}

impl Model {
    /// The same model packed so, matrix after matrix: what a packed one was made from is freed as soon as no one else has it.
    /// Any plan that can run gives the same results but for rounding (a session refuses one that needs rows of tiles); those that
    /// suit the packing are faster. `threads` help to copy.
    ///
    /// # Errors
    /// [`Error::Machine`] where threads cannot be started.
    pub fn packed(mut self, packing: Packing, threads: usize) -> Result<Model> {
        let mut tiler = Tiler::new(threads)?;
        tiler.tile(&mut self.head);
        for layer in &mut self.layers {
            let Layer {
                query,
                key,
                value,
                attn_output,
                ffn,
                ..
            } = layer;
            for linear in [query, key, value, attn_output] {
                tiler.tile(&mut linear.weight);
            }
            tiler.pack(ffn, packing);
        }
        if packing != Packing::Dense {
            self.down_layout = DownLayout::Transposed;
        }
        Ok(self)
    }

    /// The FFNs of some layers, packed so.
    pub(crate) fn packed_ffns(
        &self,
        layers: &[usize],
        packing: Packing,
        threads: usize,
    ) -> Result<Vec<Ffn>> {
        let mut tiler = Tiler::new(threads)?;
        let mut packed = |l: &usize| {
            let mut ffn = self.layers[*l].ffn.clone();
            tiler.pack(&mut ffn, packing);
            ffn
        };
        Ok(layers.iter().map(&mut packed).collect())
    }
}

impl SparsityPlan {
    /// The same plan with its predictors laid out for steps on `model`, which is packed for it. Where something of gate and up is left
    /// with a predictor ([`Packing::DownWithPlan`]), down moves beside it: the model still suits any plan, this one best.
    /// `threads` help to copy.
    ///
    /// # Errors
    /// [`Error::Plan`] for a plan made for another model, or a model that is not packed for plans; [`Error::Machine`] where threads cannot be started.
    pub fn packed(&self, model: &mut Model, threads: usize) -> Result<SparsityPlan> {
        self.check_fits(model)?;
        check_down(model)?;
        self.packed_beside(model.layers.iter_mut().map(|l| &mut l.ffn), threads)
    }

    /// The same on the FFNs of its rules, which it fits.
    pub(crate) fn packed_beside<'a>(
        &self,
        ffns: impl Iterator<Item = &'a mut Ffn>,
        threads: usize,
    ) -> Result<SparsityPlan> {
        let mut tiler = Tiler::new(threads)?;
        let mut plan = self.clone();
        for (rule, ffn) in plan.rules.iter_mut().zip(ffns) {
            let Some(predictor) = &mut rule.predictor else {
                continue;
            };
            let mut packed = Predictor::clone(predictor);
            let (first, second): (&mut Linear, Option<&mut Linear>) = match &mut packed.outer {
                Outer::Logits(l) | Outer::Gate(l) => (l, None),
                Outer::Product { gate, up } => (gate, Some(up)),
            };
            tiler.tile(&mut first.weight);
            if let Some(second) = second {
                tiler.tile(&mut second.weight);
            }
            if let Some(Rest { gate, up }) = &mut packed.rest {
                tiler.side_by_side(&mut [gate, up], &mut ffn.down);
            }
            *predictor = Arc::new(packed);
        }
        Ok(plan)
    }
}

/// Lays matrices out as the kernels in use prefer.
struct Tiler {
    team: Team,
    kernels: &'static Kernels,
}

impl Tiler {
    fn new(threads: usize) -> Result<Tiler> {
        let team = crate::session::team(threads)?;
        let kernels = cpu::kernels()?;
        Ok(Tiler { team, kernels })
    }

    /// In tiles, where they are quicker and can be.
    fn tile(&mut self, m: &mut Matrix) {
        if m.is_tiled() || !self.kernels.prefers_tiles(m.view()) {
            return;
        }
        unpack(m);
        if let Some(data) = quant::tile(m.view(), &mut self.team) {
            *m = m.laid_out(Layout::Tiles, data).expect(LAID_OUT);
        }
    }

    fn pack(&mut self, ffn: &mut Ffn, packing: Packing) {
        let Ffn { gate, up, down, .. } = ffn;
        match packing {
            Packing::Dense => {
                let down = match down {
                    Down::Stored(down) => Some(down),
                    Down::Transposed(_) => None,
                };
                let all = [gate, up].into_iter().chain(down);
                all.for_each(|m| self.tile(m));
            }
            Packing::UpDown => {
                self.tile(gate);
                self.side_by_side(&mut [up], down);
            }
            Packing::GateDown => {
                self.tile(up);
                self.side_by_side(&mut [gate], down);
            }
            Packing::GateUpDown => self.side_by_side(&mut [gate, up], down),
            Packing::Apart | Packing::DownWithPlan => {
                if let Down::Stored(stored) = down {
                    *down = Down::Transposed(stored.transposed(&mut self.team));
                }
            }
        }
    }

    /// Rows that are multiplied, and behind them rows that are summed, neuron by neuron in one memory.
    fn side_by_side(&mut self, multiplied: &mut [&mut Matrix], summed: &mut Down) {
        let form = |in_parts| match in_parts {
            true => RowForm::Parts,
            false => RowForm::Same,
        };
        multiplied.iter_mut().for_each(|m| unpack(m));
        let (Down::Stored(m) | Down::Transposed(m)) = &mut *summed;
        unpack(m);
        let mut rows: Vec<_> = multiplied
            .iter()
            .map(|m| {
                let form = form(self.kernels.multiplies_parts(m.dtype()));
                (Rows::Of(m.view()), form)
            })
            .collect();
        let down = match &*summed {
            Down::Transposed(m) => Rows::Of(m.view()),
            Down::Stored(m) => Rows::ColumnsOf(m.view(), transposed_dtype(m.dtype(), m.rows())),
        };
        rows.push((down, form(self.kernels.sums_parts(down.dtype()))));
        let Beside { data, views } = quant::interleave(&rows, &mut self.team);
        let mut views = views
            .into_iter()
            .map(|(range, layout)| (layout, data.slice(range)));
        for (m, (layout, data)) in multiplied.iter_mut().zip(&mut views) {
            **m = m.laid_out(layout, data).expect(LAID_OUT);
        }
        let (layout, data) = views.next().expect("a view for each of the rows");
        let down = match &*summed {
            Down::Transposed(m) => m.laid_out(layout, data),
            Down::Stored(m) => m.transposed_as(layout, data),
        };
        *summed = Down::Transposed(down.expect(LAID_OUT));
    }
}

/// Back to rows of blocks, should a model or plan be packed again.
fn unpack(m: &mut Matrix) {
    let view = m.view();
    if !matches!(view.layout(), Layout::Rows { .. }) {
        let data = Bytes::from(quant::blocks_of(view).into_owned());
        *m = Matrix::new(m.dtype(), m.rows(), m.cols(), data).expect(LAID_OUT);
    }
}

const LAID_OUT: &str = "the bytes were just laid out so";
