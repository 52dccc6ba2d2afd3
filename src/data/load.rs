//! Data files to tokens and labels, on all threads, holding few texts at a time.
//!
//! Each thread takes the next rows from the reader, one thread at a time, and tokenises them by itself; the calling thread
//! puts the results in order. So no thread waits for another as long as reading takes less than a thread's share of the
//! work, and there are never more texts in memory than one chunk a thread.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::config::Format;
use super::labels::Labels;
use super::places::Places;
use super::settings::Files;
use super::slices::MOST;
use super::tokens::{Arrays, Piece, Seen};
use super::{Example, ReadOptions, Reader, Skipped, Tokenizer, Tokens};
use crate::error::{Error, Result};

/// A chunk ends at whichever comes first. Small enough that few rows are shared out well, large enough that handing over
/// costs nothing beside tokenising.
const CHUNK_ROWS: usize = 128;
const CHUNK_BYTES: usize = 64 << 10;
/// How long an interruption may wait when no rows come.
const PATIENCE: Duration = Duration::from_millis(100);

/// The files of a split, tokenised; labels are still as the files write them, but renamed.
pub struct Loaded {
    pub tokens: Tokens,
    pub labels: Labels,
    /// The values of [`ReadOptions::slice`]; `None` when it names no column.
    pub slices: Option<Labels>,
    pub places: Places,
    pub skipped: Skipped,
    /// The keys of [`ReadOptions::rename_labels`] that no row had as its label.
    pub unused_renames: Vec<String>,
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProgress {
    pub rows: u64,
    /// Of the files, 0 to 1; `None` where that is not known.
    pub share: Option<f64>,
}

/// What [`load`] asks of whom it works for.
pub struct Watch<'a> {
    /// Called often; an error from it (an interruption) ends the work.
    pub progress: &'a mut dyn FnMut(LoadProgress) -> Result<()>,
    /// Says what is wrong with a label, if anything; asked once a label, at its first row.
    pub check_label: &'a dyn Fn(&str) -> Result<(), String>,
}

/// Reads and tokenises all rows of some files with labels on as many threads as the current rayon pool has. The result
/// does not depend on their number.
///
/// # Errors
/// Of the first row that the reader, the label check or the tokenizer refuses; what `progress` returns; files that have
/// no row between them; more than 1000 values of the column that groups rows; a `max_length` that leaves no room for text.
pub fn load(
    files: &Files,
    options: &ReadOptions,
    tokenizer: &Tokenizer,
    max_length: usize,
    watch: &mut Watch<'_>,
) -> Result<Loaded> {
    tokenizer.check_max_length(max_length, options.text_pair.is_some())?;
    let source = Source::new(files, options)?;
    source.run(rayon::current_num_threads(), tokenizer, max_length, watch)
}

/// Bytes of all files; `None` when one is a stream, or Parquet, of which not all is read.
fn total_bytes(files: &Files, options: &ReadOptions) -> Option<u64> {
    let size = |file: &PathBuf| {
        let counted = !matches!(options.format_for(file), Ok(Some(Format::Parquet)));
        std::fs::metadata(file).ok().filter(|m| m.is_file() && counted).map(|m| m.len())
    };
    files.iter().map(size).sum::<Option<u64>>().filter(|&bytes| bytes > 0)
}

/// Where the threads take their rows from.
struct Source<'a> {
    files: &'a Files,
    options: &'a ReadOptions,
    next: Mutex<Next>,
    /// Of all files.
    size: Option<u64>,
    bytes_read: AtomicU64,
    stop: AtomicBool,
    /// Chunks of texts in memory now, and the most there were.
    live: AtomicUsize,
    most_live: AtomicUsize,
}

struct Next {
    reader: Reader,
    /// Of the next chunk.
    number: usize,
    ended: bool,
}

/// Some rows as they were read, and what ended them.
struct Chunk {
    number: usize,
    rows: Vec<Example>,
    /// Index of each row's file.
    files: Vec<u32>,
    error: Option<Error>,
}

/// A chunk without its texts.
#[derive(Default)]
struct Encoded {
    piece: Piece,
    lines: Vec<u64>,
    files: Vec<u32>,
    labels: Distinct,
    slices: Distinct,
    error: Option<Error>,
}

/// Strings, each once in the order of their first rows, and the index of each row's.
#[derive(Default)]
struct Distinct {
    labels: Labels,
    index: HashMap<String, u32>,
}

impl<'a> Source<'a> {
    fn new(files: &'a Files, options: &'a ReadOptions) -> Result<Self> {
        let reader = Reader::open_all(files.as_slice(), options)?;
        Ok(Self {
            files,
            options,
            next: Mutex::new(Next { reader, number: 0, ended: false }),
            size: total_bytes(files, options),
            bytes_read: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            most_live: AtomicUsize::new(0),
        })
    }

    fn run(&self, threads: usize, tokenizer: &Tokenizer, max_length: usize, watch: &mut Watch<'_>) -> Result<Loaded> {
        let seen = Mutex::new(Seen::default());
        let mut gathering = Gathering::new(self.files.as_slice(), self.options);
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
            let result = self.collect(receive, &mut gathering, watch);
            self.stop.store(true, Ordering::Relaxed);
            result
        })?;
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.reader.check_not_empty(gathering.rows())?;
        Ok(gathering.finish(seen, &next.reader))
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
        if self.stop.load(Ordering::Relaxed) || next.ended {
            return None;
        }
        let (rows, files) = (Vec::with_capacity(CHUNK_ROWS), Vec::with_capacity(CHUNK_ROWS));
        let mut chunk = Chunk { number: next.number, rows, files, error: None };
        let mut bytes = 0;
        while chunk.rows.len() < CHUNK_ROWS && bytes < CHUNK_BYTES && !next.ended {
            match next.reader.next() {
                Some(Ok(row)) => {
                    bytes += row.text.len() + row.text_pair.as_ref().map_or(0, String::len);
                    chunk.rows.push(row);
                    // There are never as many files as 2^32.
                    chunk.files.push(next.reader.file_index() as u32);
                }
                Some(Err(e)) => (chunk.error, next.ended) = (Some(e), true),
                None => next.ended = true,
            }
        }
        self.bytes_read.store(next.reader.bytes_read(), Ordering::Relaxed);
        next.number += 1;
        let live = self.live.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_live.fetch_max(live, Ordering::Relaxed);
        Some(chunk)
    }

    /// Puts the chunks in order until all are there.
    fn collect(
        &self,
        receive: Receiver<(usize, Encoded)>,
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
            let share = self.size.map(|size| (self.bytes_read.load(Ordering::Relaxed) as f64 / size as f64).min(1.0));
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
        let mut encoded = Self { error: failed.or(chunk.error), files: chunk.files, ..Self::default() };
        for row in chunk.rows.into_iter().take(piece.len()) {
            let Some(label) = row.label else {
                let message = "the row has no label; set data.label to the label column";
                encoded.error = Some(Error::at_line(&row.file, row.line, message));
                break;
            };
            encoded.labels.push(label);
            row.slice.into_iter().for_each(|value| encoded.slices.push(value));
            encoded.lines.push(row.line);
        }
        encoded.piece = piece;
        encoded
    }
}

impl Distinct {
    /// The number of a string, which is new or not.
    fn code(&mut self, name: String) -> u32 {
        if let Some(&code) = self.index.get(&name) {
            return code;
        }
        // There is no room for 2^32 strings in memory.
        let code = self.labels.names.len() as u32;
        self.labels.names.push(name.clone());
        *self.index.entry(name).or_insert(code)
    }

    fn push(&mut self, name: String) {
        let code = self.code(name);
        self.labels.codes.owned().push(code);
    }

    /// Adds the rows of a chunk. `check` sees each new string and the chunk's first row with it.
    fn append(&mut self, other: Labels, check: impl Fn(&str, usize) -> Result<()>) -> Result<()> {
        let mut codes = Vec::with_capacity(other.names.len());
        for (local, name) in (0u32..).zip(other.names) {
            if !self.index.contains_key(&name) {
                check(&name, other.codes.iter().position(|&c| c == local).unwrap_or(0))?;
            }
            codes.push(self.code(name));
        }
        self.labels.codes.owned().extend(other.codes.iter().map(|&c| codes[c as usize]));
        Ok(())
    }
}

/// The rows so far.
struct Gathering<'o> {
    options: &'o ReadOptions,
    arrays: Arrays,
    labels: Distinct,
    slices: Distinct,
    places: Places,
    reserved: bool,
}

impl<'o> Gathering<'o> {
    fn new(files: &[PathBuf], options: &'o ReadOptions) -> Self {
        let (labels, slices) = (Distinct::default(), Distinct::default());
        Self { options, arrays: Arrays::default(), labels, slices, places: Places::new(files), reserved: false }
    }

    fn rows(&self) -> usize {
        self.places.len()
    }

    fn add(
        &mut self,
        encoded: Encoded,
        share: Option<f64>,
        check_label: &dyn Fn(&str) -> Result<(), String>,
    ) -> Result<()> {
        let before = self.rows();
        for (&file, &line) in encoded.files.iter().zip(&encoded.lines) {
            self.places.push(file, line);
        }
        let places = &self.places;
        let check = |name: &str, row| check_label(name).map_err(|message| places.error(before + row, message));
        self.labels.append(encoded.labels.labels, check)?;
        encoded.error.map_or(Ok(()), Err)?;
        self.slices.append(encoded.slices.labels, |_, _| Ok(()))?;
        if self.slices.labels.names.len() > MOST {
            let key = self.options.naming.key("slice_by");
            let message = format!("{key} has more than {MOST} values, which are too many groups; give another column");
            return Err(Error::in_file(self.places.file(before), message));
        }
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
        self.places.lines.reserve(rows);
        self.labels.labels.codes.reserve(rows);
        if self.options.slice.is_some() {
            self.slices.labels.codes.reserve(rows);
        }
    }

    fn finish(self, seen: Seen, reader: &Reader) -> Loaded {
        Loaded {
            tokens: self.arrays.finish(seen),
            labels: self.labels.labels,
            slices: self.options.slice.is_some().then_some(self.slices.labels),
            places: self.places,
            skipped: reader.skipped().clone(),
            unused_renames: reader.unused_renames().into_iter().map(str::to_owned).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
