//! `bertft` with the CUDA kernels, to which the plain program hands over. It needs CUDA's libraries to start.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bertft::cli::main()
}
