//! One install, two programs: where a GPU can be used, the plain program becomes the one with the CUDA kernels, which
//! lies beside it and takes the same arguments. A machine without CUDA never loads it.

use crate::device::driver::{Missing, Usable, check_ordinal, usable};
use crate::device::ordinal;
use crate::error::{Error, Result};

/// Ends in the program with the CUDA kernels if `device` asks for a GPU, or is `auto` and one can be used. Returns where
/// this program is the one to compute.
///
/// # Errors
/// [`Error::Input`] with what is missing, when a GPU is asked for.
pub fn to_cuda(device: &str) -> Result<()> {
    let asked = ordinal(device);
    if cfg!(feature = "cuda") || (asked.is_none() && device != "auto") {
        return Ok(());
    }
    let found = usable().and_then(|found| check_ordinal(&found.driver, asked.unwrap_or(0)).map(|()| found));
    match (found, asked) {
        (Ok(found), _) => match (run(&found), asked) {
            (why, Some(_)) => Err(Error::Failed(format!("{}: cannot be started: {why}", found.program.display()))),
            (_, None) => Ok(()),
        },
        (Err(why), Some(_)) => Err(refusal(device, &why)),
        (Err(_), None) => Ok(()),
    }
}

fn refusal(device: &str, why: &Missing) -> Error {
    Error::input(format!("the device \"{device}\" cannot be used: {why}; or compute with --device cpu"))
}

/// Replaces this process; comes back with the reason if that fails.
#[cfg(unix)]
fn run(found: &Usable) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    std::process::Command::new(&found.program).args(std::env::args_os().skip(1)).exec()
}

#[cfg(not(unix))]
fn run(_: &Usable) -> std::io::Error {
    std::io::ErrorKind::Unsupported.into()
}
