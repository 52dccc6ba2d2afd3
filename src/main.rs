//! The `bertft` program: all of it is [`bertft::cli`].

use std::process::ExitCode;

// Batches come and go on several threads, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bertft::cli::main()
}
