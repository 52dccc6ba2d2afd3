//! `bertft man`: manual pages, made from the same texts as `--help`.

use super::Cli;
use super::ui::Ui;
use crate::error::{Error, Result};
use clap::{Args, CommandFactory};
use clap_mangen::{Man, generate_to};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Print the manual page, or write the pages of all commands
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  Read it:
    bertft man | man -l -
  Install all pages, then `man bertft-train`:
    bertft man --output ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The directory to write a page per command to, over pages of that name [default: the main page to standard output]
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ManArgs, ui: &mut Ui) -> Result<()> {
    match &args.output {
        Some(dir) => write_all(dir, ui),
        None => print(ui),
    }
}

fn print(ui: &mut Ui) -> Result<()> {
    let mut bytes = vec![];
    let failed = |why: String| Error::Failed(format!("the manual page cannot be made: {why}"));
    let command = Cli::command().disable_help_subcommand(true);
    Man::new(command).render(&mut bytes).map_err(|e| failed(e.to_string()))?;
    let page = String::from_utf8(bytes).map_err(|e| failed(e.to_string()))?;
    if ui.is_json() { ui.out_json(&json!({"event": "man", "page": page})) } else { ui.out(&page) }
}

fn write_all(dir: &Path, ui: &mut Ui) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    generate_to(Cli::command(), dir).map_err(|e| Error::write(dir, e))?;
    if ui.is_json() {
        return ui.out_json(&json!({"event": "save", "path": dir.display().to_string()}));
    }
    ui.note(&format!("wrote the manual pages to {}", dir.display()));
    Ok(())
}
