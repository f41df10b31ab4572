//! `countdown completions`: the shell's own completion script.

use crate::{console::print, failure::Result};
use clap::Args;
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown completions bash > ~/.local/share/bash-completion/completions/countdown
  countdown completions zsh > ~/.zfunc/_countdown
  countdown completions fish > ~/.config/fish/completions/countdown.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, cli: &mut clap::Command) -> Result<()> {
    // The generator panics where it cannot write: it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, cli, "countdown", &mut script);
    print(String::from_utf8_lossy(&script))
}
