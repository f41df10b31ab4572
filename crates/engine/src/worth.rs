//! Whether skipping neurons pays on this machine: FFNs with and without a plan, timed.

use crate::{
    backend::{
        Backend, FfnCall,
        cpu::{Buffer, Cpu},
    },
    error::Result,
    model::{Ffn, Matrix, Model},
    packing::Packing,
    sparsity::{Rule, SparsityPlan},
};
use countdown_kernels::DType;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Layers that are timed, evenly spread: they differ little.
const LAYERS: usize = 3;
/// Times each is timed; the median counts.
const ROUNDS: usize = 7;
/// Bytes read between two FFNs, which in a step come from memory.
const FLUSHED: usize = 64 << 20;

/// What the FFNs of some layers take for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfnTimes {
    /// All neurons, matrices as they suit that best.
    pub dense: Duration,
    /// The neurons that the plan keeps when it keeps as many as it was made to, matrices as they suit that best.
    pub sparse: Duration,
}

impl FfnTimes {
    /// Times up to three layers of a model that is as its file has it ([`DownLayout::Stored`](crate::DownLayout)), not packed yet. Inputs are
    /// noise, as large as it takes to keep the share of neurons that the plan is for.
    ///
    /// # Errors
    /// [`Error::Plan`](crate::Error::Plan) for a plan made for another model; [`Error::Machine`](crate::Error::Machine) where threads cannot be started.
    pub fn measure(model: &Model, plan: &SparsityPlan, threads: usize) -> Result<FfnTimes> {
        plan.check_fits(model)?;
        let layers = model.layers.len();
        let timed: Vec<usize> = (0..layers)
            .step_by(layers.div_ceil(LAYERS).max(1))
            .collect();
        let plan = SparsityPlan {
            rules: timed.iter().map(|&l| plan.rules[l].clone()).collect(),
            provenance: plan.provenance.clone(),
        };
        let dense_ffns = model.packed_ffns(&timed, Packing::Dense, threads)?;
        let mut sparse_ffns = model.packed_ffns(&timed, Packing::of(Some(&plan)), threads)?;
        let plan = plan.packed_beside(sparse_ffns.iter_mut(), threads)?;
        let mut bed = Bed::new(model, threads)?;
        let mut totals = FfnTimes {
            dense: Duration::ZERO,
            sparse: Duration::ZERO,
        };
        let pairs = dense_ffns.iter().zip(&sparse_ffns);
        for ((all, some), rule) in pairs.zip(&plan.rules) {
            bed.scale_input(some, rule, 1.0 - plan.provenance.target);
            let mut times = [const { Vec::new() }; 2];
            for _ in 0..ROUNDS {
                flush(&model.head);
                times[0].push(bed.run(all, None).1);
                flush(&model.head);
                times[1].push(bed.run(some, Some(rule)).1);
            }
            let [dense, sparse] = times.map(|mut t| {
                t.sort();
                t[ROUNDS / 2]
            });
            totals.dense += dense;
            totals.sparse += sparse;
        }
        Ok(totals)
    }
}

/// What runs FFNs, and an input for them.
struct Bed {
    cpu: Cpu,
    noise: Vec<f32>,
    input: Buffer,
    output: Buffer,
}

impl Bed {
    fn new(model: &Model, threads: usize) -> Result<Bed> {
        let hidden = model.config.hidden;
        let cpu = Cpu::new(model, threads, 1, 1, DType::F16)?;
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut uniform = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
        Ok(Bed {
            noise: (0..hidden).map(|_| uniform()).collect(),
            input: cpu.buffer(1, hidden)?,
            output: cpu.buffer(1, hidden)?,
            cpu,
        })
    }

    fn set_scale(&mut self, scale: f32) {
        let input: Vec<f32> = self.noise.iter().map(|x| x * scale).collect();
        self.cpu.upload(&input, &mut self.input);
    }

    /// Scales the input so that about the share `kept` of the neurons is kept: the larger it is, the more are.
    fn scale_input(&mut self, ffn: &Ffn, rule: &Rule, kept: f64) {
        let wanted = (kept * ffn.gate.rows() as f64) as usize;
        let (mut low, mut high) = (-20.0f32, 20.0f32);
        for _ in 0..16 {
            let middle = (low + high) / 2.0;
            self.set_scale(middle.exp2());
            if self.run(ffn, Some(rule)).0 < wanted {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.set_scale(high.exp2());
    }

    /// The neurons computed for the input, and the time that took.
    fn run(&mut self, ffn: &Ffn, rule: Option<&Rule>) -> (usize, Duration) {
        let call = FfnCall {
            layer: 0,
            start: 0,
            tokens: 1,
            weights: ffn,
            rule,
            observer: None,
        };
        let start = Instant::now();
        self.cpu.ffn(call, &self.input, &mut self.output);
        let elapsed = start.elapsed();
        let kept = self.cpu.take_kept().expect("the CPU's FFNs do not fail");
        (kept, elapsed)
    }
}

/// Reads other memory, so that what was read before leaves the caches.
fn flush(other: &Matrix) {
    let bytes = other.view().data();
    let bytes = &bytes[..bytes.len().min(FLUSHED)];
    black_box(bytes.iter().step_by(64).fold(0u8, |sum, b| sum ^ b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DownLayout,
        sparsity::{Keep, Practical},
    };
    use std::path::Path;

    #[test]
    fn what_is_timed_keeps_the_share_that_the_plan_is_for() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte-llama");
        let [dense, sparse] = [DownLayout::Stored, DownLayout::Transposed]
            .map(|down| Model::open(&path, down, 1).unwrap());
        for method in Practical::Computed.methods() {
            let name = method.name;
            let mut plan =
                SparsityPlan::ideal(&sparse, method, method.signal.unwrap(), 0.7).unwrap();
            for rule in &mut plan.rules {
                rule.keep = Keep::Above(0.1);
            }
            let mut bed = Bed::new(&sparse, 1).unwrap();
            let (ffn, rule) = (&sparse.layers[0].ffn, &plan.rules[0]);
            bed.scale_input(ffn, rule, 0.3);
            let inter = ffn.gate.rows();
            let kept = bed.run(ffn, Some(rule)).0;
            let wanted = inter * 3 / 10;
            assert!(kept.abs_diff(wanted) <= 2, "{name}: {kept} for {wanted}");
            assert_eq!(bed.run(&dense.layers[0].ffn, None).0, inter);

            let times = FfnTimes::measure(&dense, &plan, 2).unwrap();
            assert!(times.dense > Duration::ZERO && times.sparse > Duration::ZERO);
            plan.rules.pop();
            assert!(FfnTimes::measure(&dense, &plan, 1).is_err());
        }
    }
}
