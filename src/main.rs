//! The `bertft` program: all of it is [`bertft::cli`].

use std::process::ExitCode;

// Batches come and go on several threads, which the system's allocator is slow at.
// Its blocks begin on cache lines, the system's do not: rows of AMX tiles and vector registers that lie across two lines cost two
// loads, and products up to twice the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bertft::cli::main()
}
