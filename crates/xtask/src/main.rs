//! Chores of this repository.

mod bench;
mod peers;
mod scaling;
mod support;

use clap::Parser;
use std::process::ExitCode;

/// Chores of this repository
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    Peers(peers::PeersArgs),
    Scaling(scaling::ScalingArgs),
    Support(support::SupportArgs),
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Peers(args) => peers::run(&args),
        Chore::Scaling(args) => scaling::run(&args),
        Chore::Support(args) => support::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
