//! A data file to tokens and labels, on all threads, holding few texts at a time.
//!
//! Each thread takes the next rows from the reader, one thread at a time, and tokenises them by itself; the calling thread
//! puts the results in order. So no thread waits for another as long as reading takes less than a thread's share of the
//! work, and there are never more texts in memory than one chunk a thread.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::labels::Labels;
use super::tokens::{Array, Arrays, Piece, Seen};
use super::{Example, ReadOptions, Reader, Tokenizer, Tokens};
use crate::error::{Error, Result};

/// A chunk ends at whichever comes first. Small enough that few rows are shared out well, large enough that handing over
/// costs nothing beside tokenising.
const CHUNK_ROWS: usize = 128;
const CHUNK_BYTES: usize = 64 << 10;
/// How long an interruption may wait when no rows come.
const PATIENCE: Duration = Duration::from_millis(100);

/// A file, tokenised; labels are still as the file writes them.
pub struct Loaded {
    pub tokens: Tokens,
    pub labels: Labels,
    /// 1-based line of each row.
    pub(super) lines: Array<u64>,
}

impl Loaded {
    /// 1-based line of each row.
    pub fn lines(&self) -> &[u64] {
        &self.lines
    }

    pub fn into_lines(mut self) -> Vec<u64> {
        std::mem::take(self.lines.owned())
    }
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProgress {
    pub rows: u64,
    /// Of the file, 0 to 1; `None` where that is not known.
    pub share: Option<f64>,
}

/// What [`load`] asks of whom it works for.
pub struct Watch<'a> {
    /// Called often; an error from it (an interruption) ends the work.
    pub progress: &'a mut dyn FnMut(LoadProgress) -> Result<()>,
    /// Says what is wrong with a label, if anything; asked once a label, at its first row.
    pub check_label: &'a dyn Fn(&str) -> Result<(), String>,
}

/// Reads and tokenises all rows of a file with labels on as many threads as the current rayon pool has. The result does
/// not depend on their number.
///
/// # Errors
/// Of the first row in the file that the reader, the label check or the tokenizer refuses; what `progress` returns; a file
/// without rows; a `max_length` that leaves no room for text.
pub fn load(
    file: &Path,
    options: &ReadOptions,
    tokenizer: &Tokenizer,
    max_length: usize,
    watch: &mut Watch<'_>,
) -> Result<Loaded> {
    tokenizer.check_max_length(max_length, options.text_pair.is_some())?;
    let reader = Reader::open(file, options)?;
    let size = std::fs::metadata(file).map(|m| m.len()).ok().filter(|&bytes| bytes > 0);
    let source = Source::new(reader);
    let loaded = source.run(rayon::current_num_threads(), tokenizer, max_length, file, size, watch)?;
    if loaded.tokens.is_empty() {
        return Err(Error::in_file(file, "the file has no rows of data"));
    }
    Ok(loaded)
}

/// Where the threads take their rows from.
struct Source {
    next: Mutex<(Option<Reader>, usize)>,
    bytes_read: AtomicUsize,
    stop: AtomicBool,
    /// Chunks of texts in memory now, and the most there were.
    live: AtomicUsize,
    most_live: AtomicUsize,
}

/// Some rows as they were read, and what ended them.
struct Chunk {
    number: usize,
    rows: Vec<Example>,
    error: Option<Error>,
}

/// A chunk without its texts.
#[derive(Default)]
struct Encoded {
    piece: Piece,
    lines: Vec<u64>,
    /// The chunk's labels, each once in the order of their first rows, and the index of each row's.
    names: Vec<String>,
    codes: Vec<u32>,
    error: Option<Error>,
}

impl Source {
    fn new(reader: Reader) -> Self {
        Self {
            next: Mutex::new((Some(reader), 0)),
            bytes_read: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            most_live: AtomicUsize::new(0),
        }
    }

    fn run(
        &self,
        threads: usize,
        tokenizer: &Tokenizer,
        max_length: usize,
        file: &Path,
        size: Option<u64>,
        watch: &mut Watch<'_>,
    ) -> Result<Loaded> {
        let seen = Mutex::new(Seen::default());
        let mut gathering = Gathering::new(file);
        std::thread::scope(|scope| {
            // Dropped when this closure ends, upon which the threads find nobody to send to.
            let (send, receive) = sync_channel(2 * threads);
            for _ in 0..threads {
                let (send, seen) = (send.clone(), &seen);
                let work = move || self.work(tokenizer, max_length, send, seen);
                std::thread::Builder::new()
                    .spawn_scoped(scope, work)
                    .map_err(|e| Error::Failed(format!("{threads} threads cannot be started: {e}")))?;
            }
            drop(send);
            let result = self.collect(receive, size, &mut gathering, watch);
            self.stop.store(true, Ordering::Relaxed);
            result
        })?;
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(gathering.finish(seen))
    }

    /// One thread's work.
    fn work(&self, tokenizer: &Tokenizer, max_length: usize, send: SyncSender<(usize, Encoded)>, all: &Mutex<Seen>) {
        let (mut encoder, mut seen) = (tokenizer.encoder(max_length), Seen::default());
        while let Some(chunk) = self.take() {
            let (piece, failed) = encoder.encode(&chunk.rows);
            seen.add(&piece.ids);
            let number = chunk.number;
            let encoded = Encoded::new(chunk, piece, failed);
            self.live.fetch_sub(1, Ordering::Relaxed);
            // The receiver goes away when the work is to end.
            if send.send((number, encoded)).is_err() {
                break;
            }
        }
        all.lock().unwrap_or_else(PoisonError::into_inner).merge(&seen);
    }

    /// The next rows; after an error or the end there are none.
    fn take(&self) -> Option<Chunk> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (reader, number) = &mut *next;
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let mut chunk = Chunk { number: *number, rows: Vec::with_capacity(CHUNK_ROWS), error: None };
        let mut bytes = 0;
        let mut ended = false;
        let rows = reader.as_mut()?;
        while chunk.rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES && !ended {
            match rows.next() {
                Some(Ok(row)) => {
                    bytes += row.text.len() + row.text_pair.as_ref().map_or(0, String::len);
                    chunk.rows.push(row);
                }
                Some(Err(e)) => (chunk.error, ended) = (Some(e), true),
                None => ended = true,
            }
        }
        self.bytes_read.store(rows.bytes_read() as usize, Ordering::Relaxed);
        if ended {
            *reader = None;
        }
        *number += 1;
        let live = self.live.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_live.fetch_max(live, Ordering::Relaxed);
        Some(chunk)
    }

    /// Puts the chunks in order until all are there.
    fn collect(
        &self,
        receive: Receiver<(usize, Encoded)>,
        size: Option<u64>,
        gathering: &mut Gathering<'_>,
        watch: &mut Watch<'_>,
    ) -> Result<()> {
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        loop {
            match receive.recv_timeout(PATIENCE) {
                Ok((number, encoded)) => drop(waiting.insert(number, encoded)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let share = size.map(|size| (self.bytes_read.load(Ordering::Relaxed) as f64 / size as f64).min(1.0));
            while let Some(encoded) = waiting.remove(&next) {
                gathering.add(encoded, share, watch.check_label)?;
                next += 1;
            }
            (watch.progress)(LoadProgress { rows: gathering.rows() as u64, share })?;
        }
    }
}

impl Encoded {
    fn new(chunk: Chunk, piece: Piece, failed: Option<Error>) -> Self {
        let mut encoded = Self { error: failed.or(chunk.error), ..Self::default() };
        let mut codes: HashMap<String, u32> = HashMap::new();
        for row in chunk.rows.into_iter().take(piece.len()) {
            let Some(label) = row.label else {
                let message = "the row has no label; set data.label to the label column";
                encoded.error = Some(Error::Input { message: message.into(), file: None, line: Some(row.line) });
                break;
            };
            let code = match codes.get(&label) {
                Some(&code) => code,
                None => {
                    encoded.names.push(label.clone());
                    *codes.entry(label).or_insert(encoded.names.len() as u32 - 1)
                }
            };
            encoded.codes.push(code);
            encoded.lines.push(row.line);
        }
        encoded.piece = piece;
        encoded
    }
}

/// The rows so far.
struct Gathering<'f> {
    file: &'f Path,
    arrays: Arrays,
    labels: Labels,
    codes: HashMap<String, u32>,
    lines: Array<u64>,
    reserved: bool,
}

impl<'f> Gathering<'f> {
    fn new(file: &'f Path) -> Self {
        let (arrays, labels, codes) = (Arrays::default(), Labels::default(), HashMap::new());
        Self { file, arrays, labels, codes, lines: Array::default(), reserved: false }
    }

    fn rows(&self) -> usize {
        self.lines.len()
    }

    fn add(
        &mut self,
        encoded: Encoded,
        share: Option<f64>,
        check_label: &dyn Fn(&str) -> Result<(), String>,
    ) -> Result<()> {
        let mut codes = Vec::with_capacity(encoded.names.len());
        for (local, name) in (0u32..).zip(encoded.names) {
            codes.push(match self.codes.get(&name) {
                Some(&code) => code,
                None => {
                    check_label(&name).map_err(|message| {
                        let row = encoded.codes.iter().position(|&c| c == local).unwrap_or(0);
                        Error::at_line(self.file, encoded.lines[row], message)
                    })?;
                    let code = u32::try_from(self.labels.names.len());
                    let code = code.map_err(|_| Error::in_file(self.file, "there are more than 2^32 labels"))?;
                    self.labels.names.push(name.clone());
                    *self.codes.entry(name).or_insert(code)
                }
            });
        }
        if let Some(error) = encoded.error {
            return Err(match error {
                Error::Input { message, file: None, line } => {
                    Error::Input { message, file: Some(self.file.into()), line }
                }
                other => other,
            });
        }
        self.labels.codes.owned().extend(encoded.codes.iter().map(|&c| codes[c as usize]));
        self.lines.owned().extend(encoded.lines);
        self.arrays.append(&encoded.piece);
        if let Some(share) = share
            && !self.reserved
            && share > 0.02
        {
            self.reserved = true;
            self.reserve(1.05 / share);
        }
        Ok(())
    }

    /// Makes room for `times` as many rows as there are.
    fn reserve(&mut self, times: f64) {
        let more = |n: usize| (n as f64 * times) as usize;
        let rows = more(self.rows());
        self.arrays.reserve(rows, more(self.arrays.ids.len()));
        self.lines.reserve(rows);
        self.labels.codes.reserve(rows);
    }

    fn finish(self, seen: Seen) -> Loaded {
        Loaded { tokens: self.arrays.finish(seen), labels: self.labels, lines: self.lines }
    }
}

#[cfg(test)]
mod tests;
