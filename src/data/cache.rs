//! Tokenised files kept between runs: the second start on a large file maps what the first one made.
//!
//! An entry is a file named by what it was made from: the contents of a split's data files in their order (and their
//! names, which decide the format), how they were read, `tokenizer.json`, the maximum length and the version of this
//! program. It is written under another name and renamed, so runs beside each other and runs that were killed leave whole entries or none; its
//! SHA-256 is compared when it is opened, and one that is damaged is removed and made again. What can be kept ([`entry::Kept`]) are
//! rows, sentences with tags and questions. The SHA-256 of a data file
//! is remembered with the file's place, size, inode and times, and computed anew when one of them is another; a file
//! that was changed within the last two seconds is not remembered, as a second change might not move its times.

pub mod entry;

use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::entry::{Kept, Mapped, write_entry};
use super::tokens::Sha;
use crate::error::{Error, Result};

/// Smaller data files are read again in less time than it takes to notice.
pub const LEAST_BYTES: u64 = 4 << 20;
/// Entries that nobody used for so long are removed.
const MOST_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a killed run left unfinished.
const MOST_AGE_UNFINISHED: Duration = Duration::from_secs(24 * 3600);
/// Beyond, the entries used longest ago are removed.
const MOST_BYTES: u64 = 20 << 30;
/// How long ago a file must have been changed for its times to tell the next change.
const SETTLED: Duration = Duration::from_secs(2);

/// To be raised when entries of the same version of the program would be made otherwise.
const FORMAT: u32 = 3;

/// `$BERTFT_CACHE`, else `$XDG_CACHE_HOME/bertft`, else `~/.cache/bertft`; `None` where none of the variables is set.
pub fn directory() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    path("BERTFT_CACHE").or_else(|| Some(user()?.join("bertft")))
}

/// A directory of tokenised files.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// A file's content and the state of the file when that was known.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    pub sha256: Sha,
    stamp: Stamp,
}

/// Changes when the file does: device, inode, size, times of the content and of the inode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stamp(u64, u64, u64, i64, i64, i64, i64);

#[derive(Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
    stamp: Stamp,
    sha256: Sha,
}

impl Stamp {
    fn of(m: &Metadata) -> Self {
        Self(m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec())
    }

    /// Whether the last change was long enough before `now`.
    fn settled(&self, now: SystemTime) -> bool {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        self.3.max(self.5).saturating_add(SETTLED.as_secs() as i64) < seconds
    }
}

impl Content {
    /// Reads a file. `look` is called every few MiB; an error from it ends the work.
    pub fn read(path: &Path, look: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let mut file = File::open(path).map_err(failed)?;
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Self { sha256: hash.finalize().into(), stamp }),
                Ok(n) => hash.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
            look()?;
        }
    }

    /// Whether the file is still as it was.
    pub fn is_current(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|m| Stamp::of(&m) == self.stamp)
    }
}

impl Cache {
    /// Opens a directory, which need not be there yet, and removes what nobody used for thirty days.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        let cache = Self { dir: dir.into() };
        cache.clean(SystemTime::now(), MOST_BYTES);
        cache
    }

    /// The name of the entry for files with these contents, read in this order; `options` are all that what is made of them depends
    /// on beside the tokenizer.
    pub fn key(files: &[(PathBuf, Content)], options: &dyn Debug, tokenizer: &Sha) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(format!("{FORMAT} {}", env!("CARGO_PKG_VERSION")).as_bytes());
        // All options, those that are added later too.
        add(format!("{options:?}").as_bytes());
        add(tokenizer);
        for (file, content) in files {
            add(file.file_name().unwrap_or_default().as_bytes());
            add(&content.sha256);
        }
        hex(&hash.finalize())
    }

    /// The content of a file: as remembered, else read. As [`Content::read`].
    pub fn content(&self, path: &Path, look: &mut dyn FnMut() -> Result<()>) -> Result<Content> {
        let absolute = path.canonicalize().map_err(|e| Error::io(path, e))?;
        let note = self.dir.join("files").join(hex(&Sha256::digest(absolute.as_os_str().as_bytes())));
        let stamp = Stamp::of(&std::fs::metadata(path).map_err(|e| Error::io(path, e))?);
        let remembered = std::fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
        if let Some(known) = remembered.filter(|known| known.path == absolute && known.stamp == stamp) {
            touch(&note);
            return Ok(Content { sha256: known.sha256, stamp });
        }
        let now = SystemTime::now();
        let content = Content::read(path, look)?;
        if content.stamp.settled(now) && content.is_current(path) {
            let remembered = Remembered { path: absolute, stamp: content.stamp.clone(), sha256: content.sha256 };
            // The cache speeds things up; that it cannot is told where the tokens are written.
            let _ = serde_json::to_vec(&remembered)
                .map_err(io::Error::from)
                .and_then(|json| write_whole(&note, |to| to.write_all(&json)));
        }
        Ok(content)
    }

    /// The entry of that name, mapped, for files that are now these; `None` if there is none or it is damaged, which
    /// removes it.
    pub fn get<T: Kept>(&self, key: &str, files: &[PathBuf]) -> Option<T> {
        let path = self.entry(key);
        let file = File::open(&path).ok()?;
        // SAFETY: the map is read-only, and an entry is never written again under its name: it is replaced or removed as
        // a whole, which leaves this map as it is.
        let loaded =
            unsafe { Mmap::map(&file) }.ok().and_then(|map| T::restore(&Mapped::parse(Arc::new(map), key)?, files));
        match loaded {
            Some(_) => touch(&path),
            None => drop(std::fs::remove_file(&path)),
        }
        loaded
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// Where that cannot be done, as on a full disk.
    pub fn put<T: Kept>(&self, key: &str, made: &T) -> io::Result<()> {
        let groups = made.groups()?;
        write_whole(&self.entry(key), |to| write_entry(to, key, &groups))?;
        self.clean(SystemTime::now(), MOST_BYTES);
        Ok(())
    }

    fn entry(&self, key: &str) -> PathBuf {
        self.dir.join("tokens").join(key)
    }

    /// Removes what is too old, and of the entries those used longest ago until the rest fits. Failures are nobody's
    /// concern: the next run tries again.
    fn clean(&self, now: SystemTime, most_bytes: u64) {
        let mut entries = vec![];
        for folder in ["tokens", "files"] {
            for file in std::fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten() {
                let Ok(metadata) = file.metadata() else { continue };
                let Ok(used) = metadata.modified() else { continue };
                let unfinished = file.path().extension().is_some_and(|e| e == UNFINISHED);
                let most = if unfinished { MOST_AGE_UNFINISHED } else { MOST_AGE };
                if now.duration_since(used).is_ok_and(|age| age > most) {
                    let _ = std::fs::remove_file(file.path());
                } else if folder == "tokens" && !unfinished {
                    entries.push((used, metadata.len(), file.path()));
                }
            }
        }
        entries.sort();
        let mut bytes: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in &entries {
            if bytes > most_bytes && std::fs::remove_file(path).is_ok() {
                bytes -= size;
            }
        }
    }
}

const UNFINISHED: &str = "part";

/// The SHA-256 of what is in memory.
pub fn sha256(bytes: &[u8]) -> Sha {
    Sha256::digest(bytes).into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a file under another name beside it and renames it.
fn write_whole(path: &Path, write: impl FnOnce(&mut io::BufWriter<File>) -> io::Result<()>) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let part = dir.join(format!("{name}.{}-{number}.{UNFINISHED}", std::process::id()));
    let written = File::create(&part).and_then(|file| {
        let mut to = io::BufWriter::new(file);
        write(&mut to)?;
        to.flush()
    });
    let renamed = written.and_then(|()| std::fs::rename(&part, path));
    if renamed.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    renamed
}

/// Marks a file as used now. Where that is refused it only ages.
fn touch(path: &Path) {
    let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests;
