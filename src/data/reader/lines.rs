//! Lines of a text stream: UTF-8 checked, byte order mark dropped, counted. Every reader takes its input from here.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A line longer than this is not text; the limit keeps a binary file from filling memory.
const MAX_LINE_BYTES: u64 = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line at a time, held in a reused buffer.
pub(super) struct Lines {
    input: BufReader<Box<dyn Read + Send>>,
    file: PathBuf,
    line: String,
    number: u64,
    /// Bytes of the file before the current line.
    offset: u64,
    /// Bytes of the file up to the end of the current line.
    consumed: u64,
    peeked: bool,
}

impl Lines {
    pub(super) fn new(input: Box<dyn Read + Send>, file: PathBuf) -> Self {
        let input = BufReader::with_capacity(1 << 16, input);
        Self { input, file, line: String::new(), number: 0, offset: 0, consumed: 0, peeked: false }
    }

    /// Goes to the next line; `false` at the end of the input.
    ///
    /// # Errors
    /// When the input cannot be read, is not UTF-8 or a line exceeds 64 MiB.
    pub(super) fn advance(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.peeked) {
            return Ok(true);
        }
        let mut bytes = std::mem::take(&mut self.line).into_bytes();
        bytes.clear();
        let read = self.input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes);
        let read = read.map_err(|e| Error::io(&self.file, e))? as u64;
        if read == 0 {
            return Ok(false);
        }
        self.number += 1;
        self.offset = self.consumed;
        self.consumed += read;
        if read == MAX_LINE_BYTES && bytes.last() != Some(&b'\n') {
            return Err(self.error("the line is longer than 64 MiB; is this a text file?"));
        }
        if self.offset == 0 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
            self.offset = BYTE_ORDER_MARK.len() as u64;
        }
        self.line = String::from_utf8(bytes).map_err(|e| self.not_utf8(&e))?;
        Ok(true)
    }

    /// Like `advance`, and the next `advance` stays on this line.
    pub(super) fn peek(&mut self) -> Result<bool> {
        self.peeked = self.advance()?;
        Ok(self.peeked)
    }

    /// The current line with its line break, if it has one.
    pub(super) fn raw(&self) -> &str {
        &self.line
    }

    /// The current line without its LF or CRLF.
    pub(super) fn text(&self) -> &str {
        let line = self.line.strip_suffix('\n').unwrap_or(&self.line);
        line.strip_suffix('\r').unwrap_or(line)
    }

    /// 1-based number of the current line.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Wrong input on the current line.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::at_line(&self.file, self.number, message)
    }

    fn not_utf8(&self, error: &std::string::FromUtf8Error) -> Error {
        let (bytes, at) = (error.as_bytes(), error.utf8_error().valid_up_to());
        if self.number == 1 && (bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")) {
            return self.error("the file is UTF-16; only UTF-8 is read so far: convert it to UTF-8");
        }
        self.error(format!(
            "byte 0x{:02x} at offset {} of the file is not UTF-8; other encodings are not read so far: convert the file to UTF-8",
            bytes[at],
            self.offset + at as u64
        ))
    }
}
