//! One install, two programs: where a GPU can be used, the plain program becomes the one with the CUDA kernels, which
//! lies beside it and takes the same arguments. A machine without CUDA never loads it.

use crate::device::driver::{Missing, Usable, check_gpu, usable};
use crate::device::{on_the_cpu, ordinal, refusal};
use crate::error::{Error, Result};

/// Set for the program that a command was handed to.
const HANDED_OVER: &str = "BERTFT_HANDED_OVER";

/// Ends in the program with the CUDA kernels if `device` asks for a GPU, or is `auto` and one can be used. Returns where
/// this program is the one to compute, with a note if a GPU is there that `auto` cannot use.
///
/// # Errors
/// [`Error::Input`] with what is missing, when a GPU is asked for.
pub fn to_cuda(device: &str) -> Result<Option<String>> {
    let asked = ordinal(device);
    if cfg!(feature = "cuda") || (asked.is_none() && device != "auto") {
        return Ok(None);
    }
    let found = if std::env::var_os(HANDED_OVER).is_some() {
        // This program took the other's place: to go on would be to start itself for ever.
        Err(Missing::Plain(std::env::current_exe().unwrap_or_default()))
    } else {
        usable().and_then(|found| check_gpu(&found.driver, asked.unwrap_or(0)).map(|()| found))
    };
    match (found, asked) {
        (Ok(found), _) => {
            let why = format!("{}: cannot be started: {}", found.program.display(), run(&found));
            if asked.is_some() { Err(Error::Failed(why)) } else { Ok(Some(on_the_cpu(&why))) }
        }
        (Err(why), Some(_)) => Err(refusal(device, &why.to_string())),
        (Err(why), None) => Ok(why.is_told().then(|| on_the_cpu(&why.to_string()))),
    }
}

/// Replaces this process; comes back with the reason if that fails.
#[cfg(unix)]
fn run(found: &Usable) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let mut program = std::process::Command::new(&found.program);
    program.args(std::env::args_os().skip(1)).env(HANDED_OVER, "1").exec()
}

#[cfg(not(unix))]
fn run(_: &Usable) -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}
