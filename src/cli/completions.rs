//! `bertft completions`: what a shell needs to complete commands and flags.

use super::Cli;
use super::ui::Ui;
use crate::error::{Error, Result};
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};
use serde_json::json;

/// Print a script that makes a shell complete commands and flags
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  In bash, from the next shell on:
    bertft completions bash > ~/.local/share/bash-completion/completions/bertft
  In fish:
    bertft completions fish > ~/.config/fish/completions/bertft.fish
  In zsh, with that directory in fpath:
    bertft completions zsh > ~/.zfunc/_bertft")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &CompletionsArgs, ui: &mut Ui) -> Result<()> {
    let mut bytes = vec![];
    generate(args.shell, &mut Cli::command(), "bertft", &mut bytes);
    let script = String::from_utf8(bytes).map_err(|e| Error::Failed(format!("the script is not UTF-8: {e}")))?;
    if ui.is_json() {
        ui.out_json(&json!({"event": "completions", "shell": args.shell.to_string(), "script": script}))
    } else {
        ui.out(&script)
    }
}
