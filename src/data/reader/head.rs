//! The beginning of a file as text, and how the file is encoded.

use std::path::Path;

use super::lines::Lines;
use super::source::decompress;
use super::{Fault, Naming, extensions, open_file};
use crate::data::settings::Encoding;
use crate::error::{Error, Result};

/// More than this is not looked at, however few lines it is.
const MAX_BYTES: usize = 32 << 20;

/// The beginning of a file.
#[derive(Debug)]
pub struct Head {
    /// Whole lines.
    pub text: String,
    /// Whether that is the whole file.
    pub whole: bool,
    /// What the file's name says of its compression.
    pub compression: Option<&'static str>,
    /// What the bytes look like where they are not UTF-8 and no byte order mark names it.
    pub encoding: Option<Encoding>,
    /// The encoding that a byte order mark names.
    pub mark: Option<Encoding>,
}

/// The first `lines` lines of a file. Its encoding is checked on all of it: one byte at the end would stop a run.
///
/// # Errors
/// When the file cannot be read, or is not text in one encoding.
pub fn head(path: &Path, lines: usize) -> Result<Head> {
    match read(path, lines, None) {
        Ok(head) => Ok(head),
        Err(Failed { guess: Some(guess), .. }) => read(path, lines, Some(guess)).map_err(|failed| failed.error),
        Err(failed) => Err(failed.error),
    }
}

struct Failed {
    error: Error,
    /// The encoding that the bytes look like.
    guess: Option<Encoding>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, guess: None }
    }
}

fn read(path: &Path, wanted: usize, encoding: Option<Encoding>) -> Result<Head, Failed> {
    let compression = extensions(path).0;
    let input = decompress(Box::new(open_file(path)?), compression).map_err(|e| Error::io(path, e))?;
    let mut lines = Lines::new(input, path.into(), encoding.map(|e| e.0), Naming::Config)?;
    let mark = if encoding.is_none() { lines.encoding() } else { None };
    let mut head = Head {
        text: String::new(),
        whole: true,
        compression: compression.map(|c| c.name()),
        encoding,
        mark: mark.map(Encoding),
    };
    let mut all_ascii = true;
    while lines.advance()? {
        if let Err(Fault::Row(error) | Fault::Stop(error)) = lines.check() {
            let guess = (all_ascii && lines.encoding().is_none()).then(|| Encoding(lines.guessed()));
            return Err(Failed { error, guess });
        }
        all_ascii &= lines.raw().is_ascii();
        if lines.number() as usize > wanted || head.text.len() > MAX_BYTES {
            head.whole = false;
        } else {
            head.text.push_str(&String::from_utf8_lossy(lines.raw()));
        }
    }
    Ok(head)
}
