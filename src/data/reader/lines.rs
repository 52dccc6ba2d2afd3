//! Lines of a text stream, counted and checked to be UTF-8. Every reader of text takes its input from here.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8};

use super::source::{Input, bad_byte, decode};
use super::{Fault, Naming};
use crate::error::{Error, Result};

/// A row longer than this is not text; the limit keeps a binary file from filling memory.
pub(super) const MAX_ROW_BYTES: usize = 64 << 20;

/// One line at a time, held in a reused buffer.
pub(super) struct Lines {
    input: BufReader<Input>,
    file: Arc<Path>,
    naming: Naming,
    /// What the bytes were before they were made UTF-8; `None` when nothing named it.
    encoding: Option<&'static Encoding>,
    line: Vec<u8>,
    number: u64,
    peeked: bool,
    /// Whether a line before was UTF-8 beyond ASCII.
    seen_utf8: bool,
    /// Whether the encoding was guessed before: once is enough, also where all rows are bad and skipped.
    guessed: bool,
}

impl Lines {
    /// # Errors
    /// When the input cannot be read.
    pub(super) fn new(
        input: Input,
        file: Arc<Path>,
        encoding: Option<&'static Encoding>,
        naming: Naming,
    ) -> Result<Self> {
        let (input, encoding) = decode(input, encoding).map_err(|e| Error::io(&file, e))?;
        let input = BufReader::with_capacity(1 << 16, input);
        Ok(Self {
            input,
            file,
            naming,
            encoding,
            line: vec![],
            number: 0,
            peeked: false,
            seen_utf8: false,
            guessed: false,
        })
    }

    /// Goes to the next line; `false` at the end of the input.
    ///
    /// # Errors
    /// When the input cannot be read, or a line exceeds 64 MiB.
    pub(super) fn advance(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.peeked) {
            return Ok(true);
        }
        self.line.clear();
        let read = self.input.by_ref().take(MAX_ROW_BYTES as u64).read_until(b'\n', &mut self.line);
        if read.map_err(|e| Error::io(&self.file, e))? == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.line.len() == MAX_ROW_BYTES && self.line.last() != Some(&b'\n') {
            return Err(self.error("the line is longer than 64 MiB; is this a text file?"));
        }
        if self.number == 1 && self.encoding.is_none() {
            let looks_like = match self.line.as_slice() {
                [0, 1..=255, 0, 1..=255, ..] => Some("utf-16be"),
                [1..=255, 0, 1..=255, 0, ..] => Some("utf-16le"),
                _ => None,
            };
            if let Some(encoding) = looks_like {
                return Err(self.error(format!("the line has zero bytes{}", self.looks_like(encoding))));
            }
        }
        Ok(true)
    }

    /// Like `advance`, and the next `advance` stays on this line.
    pub(super) fn peek(&mut self) -> Result<bool> {
        self.peeked = self.advance()?;
        Ok(self.peeked)
    }

    /// The current line with its line break, if it has one, unchecked.
    pub(super) fn raw(&self) -> &[u8] {
        &self.line
    }

    /// The current line without its LF or CRLF, unchecked.
    pub(super) fn bytes(&self) -> &[u8] {
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        line.strip_suffix(b"\r").unwrap_or(line)
    }

    /// The current line without its LF or CRLF.
    ///
    /// # Errors
    /// [`Fault::Row`] when the line is not text in its encoding.
    pub(super) fn text(&mut self) -> Result<&str, Fault> {
        self.check()?;
        std::str::from_utf8(self.bytes()).map_err(|_| Fault::Row(self.error("the line is not UTF-8")))
    }

    /// Whether the current line is text in its encoding.
    ///
    /// # Errors
    /// [`Fault::Row`] with the byte, its column and a guess at the encoding.
    pub(super) fn check(&mut self) -> Result<(), Fault> {
        if self.line.is_ascii() {
            return Ok(());
        }
        match std::str::from_utf8(&self.line) {
            Ok(_) => {
                self.seen_utf8 = true;
                Ok(())
            }
            Err(e) => Err(Fault::Row(self.not_text(e.valid_up_to()))),
        }
    }

    /// 1-based number of the current line.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn file(&self) -> &Arc<Path> {
        &self.file
    }

    /// What a byte order mark or the caller named.
    pub(super) fn encoding(&self) -> Option<&'static Encoding> {
        self.encoding
    }

    pub(super) fn naming(&self) -> Naming {
        self.naming
    }

    /// Wrong input on the current line.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::at_line(&self.file, self.number, message)
    }

    fn not_text(&mut self, at: usize) -> Error {
        let named = self.encoding.filter(|e| *e != UTF_8);
        let byte = bad_byte(&self.line[at..], named.is_some());
        let column = String::from_utf8_lossy(&self.line[..at]).chars().count() + 1;
        let place = format!("byte 0x{byte:02x} at column {column} is not");
        let message = match named {
            Some(encoding) => format!(
                "{place} {}; fix the row, or give its encoding with {}",
                encoding.name().to_ascii_lowercase(),
                self.naming.key("encoding")
            ),
            None if self.encoding.is_some() || self.seen_utf8 => {
                format!("{place} UTF-8, in which the rest of the file seems to be; fix the row")
            }
            None if std::mem::replace(&mut self.guessed, true) => format!("{place} UTF-8"),
            None => format!("{place} UTF-8{}", self.guess()),
        };
        self.error(message)
    }

    /// What the bytes look like, as the end of a message.
    fn guess(&self) -> String {
        self.looks_like(&self.guessed().name().to_ascii_lowercase())
    }

    /// The encoding that the current line and what follows it in memory look like, if it is not UTF-8.
    pub(super) fn guessed(&self) -> &'static Encoding {
        let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
        detector.feed(&self.line, false);
        // What is there already: waiting for more could take for ever.
        detector.feed(self.input.buffer(), true);
        detector.guess(None, Utf8Detection::Deny)
    }

    fn looks_like(&self, encoding: &str) -> String {
        format!("; the file looks like {encoding}: {}", self.naming.set("encoding", encoding))
    }
}
