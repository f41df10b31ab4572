//! `countdown doctor`: what this machine offers and what countdown makes of it.

use crate::{
    bandwidth::Probe,
    commands::serve::KEY_VARIABLE,
    console::{self, print},
    device::kernel_cache,
    failure::Result,
    machine,
    plans::{CACHE_VARIABLE, cache_folder},
    table,
};
use clap::Args;
use countdown::{
    Error,
    bench::card_bandwidth,
    kernels::{cpu::Kernels, cuda::Card},
    session::physical_cores,
};
use serde::Serialize;
use std::{
    fs::File,
    path::{Path, PathBuf},
    thread,
};

/// Show what this machine offers: instruction sets, cores, memory, folders
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown doctor
  countdown doctor --bandwidth
  countdown doctor --json")]
pub(crate) struct DoctorArgs {
    /// Measure how fast memory is read, the limit of decoding (takes a second and 256 MiB; on each card another and 1 GiB)
    #[arg(long)]
    bandwidth: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Forces an instruction set.
const ISA_VARIABLE: &str = "COUNTDOWN_ISA";

/// The environment variables understood, and what they do.
const VARIABLES: [(&str, &str); 4] = [
    (ISA_VARIABLE, "forces an instruction set"),
    (
        CACHE_VARIABLE,
        "folder for plans made by automatic calibration",
    ),
    (
        KEY_VARIABLE,
        "the key that clients of `countdown serve` must send",
    ),
    ("NO_COLOR", "no colours"),
];

#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    os: &'static str,
    arch: &'static str,
    cpu: String,
    isas: Vec<&'static str>,
    isa: Option<&'static str>,
    physical_cores: usize,
    logical_cores: usize,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    huge_pages: Option<String>,
    cuda_cards: Vec<CudaCard>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda_missing: Option<String>,
    cache_folder: Option<PathBuf>,
    cache_writable: bool,
    environment: Vec<Variable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bandwidth: Vec<Bandwidth>,
}

#[derive(Serialize)]
struct CudaCard {
    name: String,
    compute_capability: String,
    memory_bytes: usize,
    runs_models: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gb_s: Option<f64>,
}

impl CudaCard {
    /// What is said of cards that models cannot run on.
    fn too_old(&self) -> &'static str {
        match self.runs_models {
            true => "",
            false => " (too old to run models)",
        }
    }
}

impl From<Card> for CudaCard {
    fn from(card: Card) -> CudaCard {
        CudaCard {
            compute_capability: format!("{}.{}", card.capability.0, card.capability.1),
            memory_bytes: card.memory,
            runs_models: card.runs_kernels(),
            read_gb_s: None,
            name: card.name,
        }
    }
}

#[derive(Serialize)]
struct Variable {
    name: &'static str,
    meaning: &'static str,
    value: Option<String>,
}

#[derive(Serialize)]
struct Bandwidth {
    threads: usize,
    gb_s: f64,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    let forced = std::env::var(ISA_VARIABLE).ok();
    let kernels = Kernels::select(forced.as_deref());
    let memory = machine::memory();
    let cache = cache_folder();
    let (mut cuda_cards, cuda_missing) = match Card::all() {
        Ok(cards) => (cards.into_iter().map(CudaCard::from).collect(), None),
        Err(e) => (Vec::new(), Some(e.to_string())),
    };
    if args.bandwidth {
        measure(&mut cuda_cards)?;
    }
    let variable = |&(name, meaning): &(&'static str, &'static str)| Variable {
        name,
        meaning,
        // A key is nobody's business.
        value: std::env::var(name).ok().map(|value| match name {
            KEY_VARIABLE => "set".into(),
            _ => value,
        }),
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("COUNTDOWN_COMMIT"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        cpu: machine::cpu(),
        isas: Kernels::available()
            .iter()
            .map(|k| k.isa().name())
            .collect(),
        isa: kernels.as_ref().ok().map(|k| k.isa().name()),
        physical_cores: physical_cores(),
        logical_cores: thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: memory.map(|(all, _)| all),
        memory_available_bytes: memory.map(|(_, available)| available),
        huge_pages: machine::huge_pages(),
        cuda_cards,
        cuda_missing,
        cache_writable: cache.as_deref().is_some_and(is_writable),
        cache_folder: cache,
        environment: VARIABLES.iter().map(variable).collect(),
        bandwidth: if args.bandwidth {
            bandwidths()?
        } else {
            Vec::new()
        },
    };
    print(if args.json {
        console::json(&report)? + "\n"
    } else {
        report.text()
    })?;
    // Everything is shown before what is wrong with it.
    kernels.map_err(|e| Error::Machine {
        cause: format!("{ISA_VARIABLE}: {e}"),
        remedy: format!("unset {ISA_VARIABLE} or name an instruction set that the CPU has"),
    })?;
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        let size = |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| table::bytes(b as f64));
        let mut lines = vec![
            ("countdown", format!("{} ({})", self.version, self.commit)),
            ("system", format!("{} {}", self.os, self.arch)),
            ("CPU", self.cpu.clone()),
            ("instruction sets", self.isas.join(", ")),
            ("in use", self.isa.unwrap_or("none").to_owned()),
            (
                "cores",
                format!(
                    "{} physical, {} logical",
                    self.physical_cores, self.logical_cores
                ),
            ),
            (
                "memory",
                format!(
                    "{}, {} available",
                    size(self.memory_bytes),
                    size(self.memory_available_bytes)
                ),
            ),
            (
                "huge pages",
                self.huge_pages.clone().unwrap_or("unknown".into()),
            ),
            ("cache folder", self.cache()),
        ];
        for card in &self.cuda_cards {
            let memory = table::bytes(card.memory_bytes as f64);
            let what = format!("{}, {memory}{}", card.name, card.too_old());
            lines.push(("CUDA card", what));
            if let Some(gb_s) = card.read_gb_s {
                lines.push(("read bandwidth", format!("{gb_s:.0} GB/s, the card")));
            }
        }
        if let Some(why) = &self.cuda_missing {
            lines.push(("CUDA", why.clone()));
        }
        for b in &self.bandwidth {
            let threads = match b.threads {
                1 => "1 thread".to_owned(),
                n => format!("{n} threads"),
            };
            lines.push(("read bandwidth", format!("{:.1} GB/s, {threads}", b.gb_s)));
        }
        for v in &self.environment {
            let value = v.value.as_deref().unwrap_or("not set");
            lines.push((v.name, format!("{value} ({})", v.meaning)));
        }
        lines
            .iter()
            .map(|(name, value)| format!("{name:<18}{value}\n"))
            .collect()
    }

    fn cache(&self) -> String {
        match (&self.cache_folder, self.cache_writable) {
            (None, _) => "none: this user has no home".into(),
            (Some(f), true) => f.display().to_string(),
            (Some(f), false) => format!("{} (cannot be written: plans are not kept)", f.display()),
        }
    }
}

/// Whether files can be made in a folder, or in the nearest one above that exists.
fn is_writable(folder: &Path) -> bool {
    let Some(existing) = folder.ancestors().find(|f| f.exists()) else {
        return false;
    };
    let probe = existing.join(format!(".countdown-doctor-{}", std::process::id()));
    let made = File::create_new(&probe).is_ok();
    made && std::fs::remove_file(&probe).is_ok()
}

/// Reading the memory of cards that models can run on.
fn measure(cards: &mut [CudaCard]) -> Result<()> {
    let kernels = kernel_cache();
    let all = cards.iter_mut().enumerate();
    for (ordinal, card) in all.filter(|(_, c)| c.runs_models) {
        card.read_gb_s = card_bandwidth(ordinal, kernels.as_deref())?;
    }
    Ok(())
}

/// Reading memory with one thread, and with one on every core.
fn bandwidths() -> Result<Vec<Bandwidth>> {
    let probe = Probe::new();
    let mut counts = vec![1, physical_cores()];
    counts.dedup();
    let measure = |threads| {
        let gb_s = probe.gb_s(threads)?;
        Ok(Bandwidth { threads, gb_s })
    };
    counts.into_iter().map(measure).collect()
}
