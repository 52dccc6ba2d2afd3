//! The `bertft` program: all of it is [`bertft::cli`].

use std::process::ExitCode;

// Batches come and go on several threads, which the system's allocator is slow at.
// And mimalloc's larger blocks begin on cache lines, which the system's do not: a row of an AMX tile that lies across two lines
// costs two loads, and products then took up to twice the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bertft::cli::main()
}
