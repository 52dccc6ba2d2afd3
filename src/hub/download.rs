//! One content into the cache: resumed where it stopped, and verified before it counts.

use super::cache::{Repo, create_parent};
use super::http::{Client, Described, Failure, Patience};
use super::{Watch, settings::is_commit};
use crate::error::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CHUNK_BYTES: usize = 1 << 16;

/// One file of a repository on its way into the cache.
pub(super) struct Download<'a> {
    pub client: &'a Client<'a>,
    pub repo: &'a Repo,
    pub commit: &'a str,
    pub file: &'a str,
    pub described: &'a Described,
    pub pause: Duration,
}

impl Download<'_> {
    /// Downloads the content unless it is there, and links it into the snapshot.
    pub fn run(&self, watch: &mut Watch<'_>) -> Result<()> {
        let Described { hash, size } = self.described;
        let blob = self.repo.blob(hash);
        let lock = self.repo.lock(hash, &mut || watch.look())?;
        // Another process may have brought it while this one waited.
        if std::fs::metadata(&blob).is_ok_and(|m| m.len() == *size) {
            watch.skip(*size);
        } else {
            self.fetch(&blob, watch)?;
        }
        self.repo.link(self.commit, self.file, hash)?;
        drop(lock);
        Ok(())
    }

    fn fetch(&self, blob: &Path, watch: &mut Watch<'_>) -> Result<()> {
        create_parent(blob)?;
        let mut name = blob.as_os_str().to_owned();
        name.push(".incomplete");
        let path = PathBuf::from(name);
        let start = watch.done;
        for attempt in 0..2 {
            watch.done = start;
            let mut part = open(&path)?;
            let resumed = self.transfer(&mut part, &path, watch)?;
            part.sync_all().map_err(|e| self.write_error(&path, e))?;
            if self.is_right(&path)? {
                return std::fs::rename(&path, blob).map_err(|e| Error::write(blob, e));
            }
            std::fs::remove_file(&path).map_err(|e| Error::write(&path, e))?;
            // What an earlier run left may have been the damaged part.
            if !resumed || attempt == 1 {
                break;
            }
        }
        Err(Error::Failed(format!(
            "the content of {} does not have the hash {} that the hub tells; what was downloaded is removed, try again",
            self.file, self.described.hash
        )))
    }

    /// Fills `part` to the full size; tells whether some of it was there before.
    fn transfer(&self, part: &mut File, path: &Path, watch: &mut Watch<'_>) -> Result<bool> {
        let size = self.described.size;
        let mut have = part.metadata().map_err(|e| Error::io(path, e))?.len();
        if have > size {
            part.set_len(0).map_err(|e| self.write_error(path, e))?;
            have = 0;
        }
        let resumed = have > 0;
        space(path, size - have)?;
        watch.skip(have);
        let mut patience = Patience::new(self.pause);
        while have < size {
            let before = have;
            match self.append(part, path, &mut have, watch) {
                Ok(()) => {}
                Err(failure) => {
                    if have > before {
                        patience.renew();
                    }
                    patience.wait(failure, watch).map_err(|f| self.client.error(f))?;
                }
            }
        }
        Ok(resumed)
    }

    /// One request; `have` counts what the file holds.
    fn append(&self, part: &mut File, path: &Path, have: &mut u64, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let size = self.described.size;
        let (body, resumed) = self.client.content(self.commit, self.file, *have)?;
        if !resumed {
            watch.done -= *have;
            *have = 0;
            part.set_len(0).map_err(|e| self.write_error(path, e))?;
        }
        part.seek(std::io::SeekFrom::Start(*have)).map_err(|e| self.write_error(path, e))?;
        let mut body = body.into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        while *have < size {
            let n = match body.read(&mut chunk) {
                Ok(0) => return Err(Failure::Passing(format!("the connection ended within {}", self.file), None)),
                Ok(n) => n,
                Err(e) => {
                    return Err(Failure::Passing(format!("the connection broke within {} ({e})", self.file), None));
                }
            };
            // A server that sends more than it told is found out by the hash.
            let n = n.min(usize::try_from(size - *have).unwrap_or(n));
            part.write_all(&chunk[..n]).map_err(|e| self.write_error(path, e))?;
            *have += n as u64;
            watch.add(n as u64)?;
        }
        Ok(())
    }

    fn write_error(&self, path: &Path, error: std::io::Error) -> Error {
        if error.kind() == ErrorKind::StorageFull { full(path, self.described.size) } else { Error::write(path, error) }
    }

    /// Whether the content has the hash by which it is known. A hash of another kind, which only other servers have,
    /// verifies nothing but the size.
    fn is_right(&self, path: &Path) -> Result<bool> {
        let Described { hash, size } = self.described;
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let found = match hash.len() {
            64 => digest(file, Sha256::new()),
            40 if is_commit(hash) => digest(file, Sha1::new_with_prefix(format!("blob {size}\0"))),
            _ => return Ok(true),
        };
        Ok(found.map_err(|e| Error::io(path, e))? == *hash)
    }
}

fn digest(mut file: File, mut hash: impl Digest) -> std::io::Result<String> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            n => hash.update(&chunk[..n]),
        }
    }
}

/// The file to append to. A link in its place is not followed.
fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
    options.open(path).map_err(|e| Error::write(path, e))
}

fn full(path: &Path, bytes: u64) -> Error {
    let message = format!(
        "the disk is full ({:.1} MB are needed); free some space, or set HF_HOME to a directory on another disk; the download \
         goes on where it stopped",
        bytes as f64 / 1e6
    );
    Error::write(path, std::io::Error::new(ErrorKind::StorageFull, message))
}

/// # Errors
/// When the disk has no room for so many bytes, before any of them is downloaded.
fn space(path: &Path, bytes: u64) -> Result<()> {
    match path.parent().and_then(free) {
        Some(free) if free < bytes => Err(full(path, bytes)),
        _ => Ok(()),
    }
}

/// Bytes that this process may still write; `None` when the system does not tell.
#[cfg(unix)]
fn free(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: all-zero bytes are a valid `statvfs`, which is plain numbers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with a zero byte and `stat` is valid for writes.
    let done = unsafe { libc::statvfs(name.as_ptr(), &raw mut stat) };
    #[allow(clippy::useless_conversion, reason = "the fields are narrower on other systems")]
    (done == 0).then(|| u64::from(stat.f_bavail).saturating_mul(u64::from(stat.f_frsize)))
}

#[cfg(not(unix))]
fn free(_dir: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_told_before_the_download() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(space(&path, 1).is_ok());
        if cfg!(unix) {
            let error = space(&path, u64::MAX).unwrap_err();
            assert!(matches!(error, Error::Write { .. }), "{error:?}");
            assert!(error.to_string().contains("the disk is full") && error.exit_code() == 1, "{error}");
        }
    }

    #[test]
    fn hashes_are_those_of_git_and_lfs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        let git = digest(File::open(&path).unwrap(), Sha1::new_with_prefix("blob 6\0")).unwrap();
        assert_eq!(git, "ce013625030ba8dba906f756967f9e9ca394464a", "git hash-object");
        let lfs = digest(File::open(&path).unwrap(), Sha256::new()).unwrap();
        assert!(lfs.starts_with("5891b5b522d5df08"), "sha256sum: {lfs}");
    }
}
