//! The library's one error type. Its variant decides the exit code, its fields the place named in the message.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// What every fallible function of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the place where it was found and, in its message, what was expected, what was found and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's config, data, model directory or arguments are wrong (exit 2).
    #[error("{}{message}", place(file, line))]
    Input {
        message: String,
        file: Option<PathBuf>,
        /// 1-based line in `file`.
        line: Option<u64>,
    },
    /// A file could not be read or written (exit 2 when it is the user's input, which is the usual case).
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Something could not be written once the run was under way, such as on a full disk (exit 1).
    #[error("{}: cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// The run itself failed: a loss that is not finite, a parameter that no gradient reached (exit 1).
    #[error("{0}")]
    Failed(String),
    /// A quality gate was not met (exit 3).
    #[error("{0}")]
    Gate(String),
    /// Interrupted by a signal; `resumable` when a checkpoint was saved (exit 4, else 130).
    #[error("interrupted{}", if *resumable { "; a checkpoint is saved, run again with --resume to go on" } else { " before the first step; nothing to resume" })]
    Interrupted { resumable: bool },
    /// Tensor arithmetic failed; a bug of ours unless memory ran out (exit 1).
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn place(file: &Option<PathBuf>, line: &Option<u64>) -> String {
    match (file, line) {
        (Some(f), Some(l)) => format!("{}:{l}: ", f.display()),
        (Some(f), None) => format!("{}: ", f.display()),
        _ => String::new(),
    }
}

impl Error {
    /// Wrong input without a place, such as a flag.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input { message: message.into(), file: None, line: None }
    }

    /// Wrong input in a file.
    pub fn in_file(file: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Input { message: message.into(), file: Some(file.as_ref().into()), line: None }
    }

    /// Wrong input at a 1-based line of a file.
    pub fn at_line(file: impl AsRef<Path>, line: u64, message: impl Into<String>) -> Self {
        Self::Input { message: message.into(), file: Some(file.as_ref().into()), line: Some(line) }
    }

    /// A read or write that failed.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }

    /// A write that failed.
    pub fn write(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Write { path: path.as_ref().into(), source }
    }

    /// The exit code that the contract gives this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Io { .. } => 2,
            Self::Failed(_) | Self::Candle(_) | Self::Write { .. } => 1,
            Self::Gate(_) => 3,
            Self::Interrupted { resumable: true } => 4,
            Self::Interrupted { resumable: false } => 130,
        }
    }
}

/// Runs a call of a crate that can panic on crafted input, and gives the reason if it fails.
pub(crate) fn guarded<T, E: ToString>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned())
        }
    }
}
