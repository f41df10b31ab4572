//! The commands, one file each.

mod bench;
mod calibrate;
mod chat;
mod compare;
mod completions;
mod convert;
mod doctor;
mod eval;
mod inspect;
mod run;
mod serve;
mod synth;
mod train;

use crate::{console::Console, failure::Result};
use clap::Subcommand;

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Run(run::RunArgs),
    Chat(chat::ChatArgs),
    Serve(serve::ServeArgs),
    Calibrate(calibrate::CalibrateArgs),
    Train(train::TrainArgs),
    Inspect(inspect::InspectArgs),
    Eval(eval::EvalArgs),
    Bench(bench::BenchArgs),
    Compare(compare::CompareArgs),
    Convert(convert::ConvertArgs),
    Synth(synth::SynthArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
}

/// Does it.
pub(crate) fn run(console: &Console, command: Command, cli: &mut clap::Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(console, &args),
        Command::Chat(args) => chat::run(console, &args),
        Command::Serve(args) => serve::run(console, &args),
        Command::Calibrate(args) => calibrate::run(console, &args),
        Command::Train(args) => train::run(console, &args),
        Command::Inspect(args) => inspect::run(console, &args),
        Command::Eval(args) => eval::run(console, &args),
        Command::Bench(args) => bench::run(console, &args),
        Command::Compare(args) => compare::run(console, &args),
        Command::Convert(args) => convert::run(console, &args),
        Command::Synth(args) => synth::run(console, &args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args, cli),
    }
}
