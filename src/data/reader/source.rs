//! From a file or stream to plain UTF-8 bytes: decompression and decoding, told by the first bytes.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use encoding_rs::{DecoderResult, Encoding, UTF_8};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// How rows of bytes come in.
pub(super) type Input = Box<dyn Read + Send>;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const MARKS: [(&[u8], &Encoding); 3] =
    [(b"\xef\xbb\xbf", UTF_8), (b"\xff\xfe", encoding_rs::UTF_16LE), (b"\xfe\xff", encoding_rs::UTF_16BE)];

/// Bytes read from the file at once.
const CHUNK: usize = 1 << 16;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    /// By a file's extension.
    pub(super) fn of(extension: &str) -> Option<Self> {
        match extension {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "Zstandard",
        }
    }
}

/// Undoes the compression that the first bytes tell of; `named` is what the extension promises.
///
/// # Errors
/// When the input cannot be read, or is not what it is named.
pub(super) fn decompress(input: Input, named: Option<Compression>) -> io::Result<Input> {
    let (head, input) = peek(input, &[GZIP, ZSTD])?;
    let found = match head.as_slice() {
        GZIP => Some(Compression::Gzip),
        ZSTD => Some(Compression::Zstd),
        _ => None,
    };
    match (named, found) {
        (Some(named), found) if found != Some(named) => {
            let message = format!("is not {} data, which its extension promises", named.name());
            Err(io::Error::new(ErrorKind::InvalidData, message))
        }
        (_, Some(how)) => {
            let input = BufReader::with_capacity(CHUNK, input);
            let plain: Input = match how {
                Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
                Compression::Zstd => Box::new(ZstdFrames { input, decoder: FrameDecoder::new(), in_frame: false }),
            };
            Ok(Box::new(Archive { plain, how }))
        }
        (_, None) => Ok(Box::new(input)),
    }
}

/// Drops a byte order mark, and turns the encoding that it names, else `named`, else UTF-8, into UTF-8. Also says which
/// encoding the bytes had, `None` if nothing named one. UTF-8 passes through unchecked, and what cannot be decoded
/// becomes the bytes of [`bad_byte`], so that the reader of lines finds both at their line.
///
/// # Errors
/// When the input cannot be read.
pub(super) fn decode(input: Input, named: Option<&'static Encoding>) -> io::Result<(Input, Option<&'static Encoding>)> {
    let (head, input) = peek(input, &MARKS.map(|(mark, _)| mark))?;
    let mark = MARKS.iter().find(|(mark, _)| *mark == head);
    let encoding = mark.map(|(_, encoding)| *encoding).or(named);
    // The mark itself is not text.
    let input = if mark.is_some() { input.into_inner().1 } else { Box::new(input) as Input };
    Ok(match encoding {
        Some(other) if other != UTF_8 => (Box::new(Transcoder::new(input, other)), encoding),
        _ => (input, encoding),
    })
}

/// What was read ahead, then the rest.
type Peeked = io::Chain<io::Cursor<Vec<u8>>, Input>;

/// The first bytes as far as they agree with one of `wanted`, so that a terminal's or pipe's first short line is enough.
fn peek(mut input: Input, wanted: &[&[u8]]) -> io::Result<(Vec<u8>, Peeked)> {
    let mut head = vec![];
    while wanted.iter().any(|w| w.len() > head.len() && w.starts_with(&head)) {
        let mut byte = [0];
        match input.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => head.push(byte[0]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((head.clone(), io::Cursor::new(head).chain(input)))
}

/// Says of errors that the archive is damaged.
struct Archive {
    plain: Input,
    how: Compression,
}

impl Read for Archive {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.plain.read(out).map_err(|e| match e.kind() {
            ErrorKind::Interrupted => e,
            kind => {
                let message = format!(
                    "the {} data is damaged or cut short ({e}); get the file again or compress it anew",
                    self.how.name()
                );
                io::Error::new(kind, message)
            }
        })
    }
}

/// All frames of a Zstandard file one after the other, each checked against its checksum.
struct ZstdFrames<R> {
    input: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    /// Goes to the next frame; `false` at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.input.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(io::Error::new(ErrorKind::InvalidData, e.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() < out.len().min(CHUNK) && !self.decoder.is_finished() {
                let one = ruzstd::decoding::BlockDecodingStrategy::UptoBlocks(1);
                let decoded = self.decoder.decode_blocks(&mut self.input, one);
                decoded.map_err(|e| io::Error::new(ErrorKind::InvalidData, e.to_string()))?;
            }
            let n = self.decoder.read(out)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            self.in_frame = false;
            let (said, found) = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
            if said.is_some() && said != found {
                return Err(io::Error::new(ErrorKind::InvalidData, "the checksum does not fit"));
            }
        }
    }
}

/// Any encoding to UTF-8.
struct Transcoder {
    input: Input,
    decoder: encoding_rs::Decoder,
    raw: Box<[u8]>,
    raw_range: std::ops::Range<usize>,
    /// The byte before `raw`.
    last: u8,
    text: Box<[u8]>,
    text_range: std::ops::Range<usize>,
    ended: bool,
    finished: bool,
}

impl Transcoder {
    fn new(input: Input, encoding: &'static Encoding) -> Self {
        let buffer = || vec![0; CHUNK].into_boxed_slice();
        Self {
            input,
            decoder: encoding.new_decoder_without_bom_handling(),
            raw: buffer(),
            raw_range: 0..0,
            last: 0,
            text: buffer(),
            text_range: 0..0,
            ended: false,
            finished: false,
        }
    }

    /// Decodes the next piece into `text`.
    fn step(&mut self) -> io::Result<()> {
        if self.raw_range.is_empty() && !self.ended {
            self.last = self.raw[..self.raw_range.end].last().copied().unwrap_or(0);
            let n = self.input.read(&mut self.raw)?;
            self.raw_range = 0..n;
            self.ended = n == 0;
        }
        // Two bytes are kept free for what cannot be decoded.
        let room = self.text.len() - 2;
        let source = &self.raw[self.raw_range.clone()];
        let (result, read, mut written) =
            self.decoder.decode_to_utf8_without_replacement(source, &mut self.text[..room], self.ended);
        match result {
            DecoderResult::InputEmpty => self.finished = self.ended,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(length, after) => {
                // The sequence may have begun in the piece before; then that one's last byte stands for it.
                let back = usize::from(length) + usize::from(after);
                let at = (self.raw_range.start + read).checked_sub(back);
                let byte = at.map_or(self.last, |at| self.raw[at]);
                self.text[written..written + 2].copy_from_slice(&hidden(byte));
                written += 2;
            }
        }
        self.raw_range.start += read;
        self.text_range = 0..written;
        Ok(())
    }
}

impl Read for Transcoder {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.text_range.is_empty() && !self.finished {
            self.step()?;
        }
        let n = self.text_range.len().min(out.len());
        out[..n].copy_from_slice(&self.text[self.text_range.start..self.text_range.start + n]);
        self.text_range.start += n;
        Ok(n)
    }
}

/// A byte that could not be decoded, as two bytes that UTF-8 never has in this order.
fn hidden(byte: u8) -> [u8; 2] {
    [0xf8 | byte >> 6, 0x80 | byte & 0x3f]
}

/// The byte of the file behind two bytes that are not UTF-8.
pub(super) fn bad_byte(found: &[u8], transcoded: bool) -> u8 {
    match found {
        [a @ 0xf8..=0xfb, b, ..] if transcoded => (a & 3) << 6 | b & 0x3f,
        [a, ..] => *a,
        [] => 0,
    }
}
