//! The countdown command.

mod answer;
mod args;
mod argv;
mod bandwidth;
mod commands;
mod console;
mod device;
mod failure;
mod interrupt;
mod load;
mod machine;
mod plans;
mod progress;

use clap::{CommandFactory, Parser};
use commands::Command;
use console::{Color, Console};
use countdown_report::{chart, table};
use failure::Failure;
use std::{ffi::OsString, io::IsTerminal, process::ExitCode};

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("COUNTDOWN_COMMIT"),
    ")"
);

/// Runs large language models that read only the weights a token needs
#[derive(Parser, Debug)]
#[command(name = "countdown", bin_name = "countdown", version = VERSION, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    /// Say more on standard error
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say nothing on standard error but warnings and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// When to use colours (also: -co)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  countdown chat -m model.gguf --method m-countdown --sparsity 0.7
  countdown run -m model.gguf -p \"Once upon a time\" -n 100
  countdown bench -m model.gguf --method dense,m-countdown --sparsity 0.7
  countdown inspect model.gguf

Exit codes: 0 success, 1 failure, 2 wrong usage.";

fn main() -> ExitCode {
    let arguments = argv::spelled_out(std::env::args_os());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(e) => return of_usage(&e, &arguments),
    };
    let console = Console::new(cli.color, cli.quiet, cli.verbose);
    console.show_events();
    match commands::run(&console, cli.command, &mut Cli::command()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(failure) => {
            console.error(&failure.to_string(), &failure.remedy());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints help, or what is wrong with the command line.
fn of_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match failure::of_usage(error, arguments, &Cli::command()) {
        Some((cause, remedy)) => {
            Console::new(Color::Auto, false, 0).error(&cause, &remedy);
            ExitCode::from(2)
        }
        None => {
            let help = error.render();
            let printed = if std::io::stdout().is_terminal() {
                console::print(help.ansi())
            } else {
                console::print(help)
            };
            printed.map_or_else(|f| ExitCode::from(f.exit_code()), |()| ExitCode::SUCCESS)
        }
    }
}
