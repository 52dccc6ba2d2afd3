//! The `bertft` program: parses the command line, runs the command, shows the error, returns the exit code.

use bertft::cli::{self, ui::Ui};
use std::process::ExitCode;

// Batches come and go on several threads, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let mut ui = Ui::new(cli.globals.json, cli.globals.quiet);
    match cli::run(&cli, &mut ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
