//! The cache on the disk, in the layout of Python's `huggingface_hub`, so that both use each other's files:
//!
//! ```text
//! models--org--name/blobs/<hash>                 contents, <hash>.incomplete while they are downloaded
//!                   refs/<revision>              the commit that a branch or tag had
//!                   snapshots/<commit>/<file>    links to ../../blobs/<hash>
//! .locks/models--org--name/<hash>.lock           held while a content is downloaded
//! ```

use super::files::{has_tokenizer, shards, weights};
use super::settings::is_commit;
use crate::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The folder of one model.
#[derive(Debug)]
pub(super) struct Repo {
    dir: PathBuf,
    locks: PathBuf,
}

impl Repo {
    /// `id` is one that [`super::ModelId`] let pass, so its folder lies in `cache`.
    pub fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self { dir: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    pub fn blob(&self, hash: &str) -> PathBuf {
        self.dir.join("blobs").join(hash)
    }

    /// The commit that a branch or tag had when it was last looked up.
    pub fn reference(&self, revision: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub fn set_reference(&self, revision: &str, commit: &str) -> Result<()> {
        if self.reference(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        let part = self.dir.join("refs").join(part_name());
        create_parent(&path)?;
        std::fs::write(&part, commit).map_err(|e| Error::write(&part, e))?;
        std::fs::rename(&part, &path).map_err(|e| Error::write(&path, e))
    }

    /// The snapshot of a commit if it has all that a model needs.
    pub fn whole(&self, commit: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit)).filter(|dir| is_whole(dir))
    }

    /// Makes `file` of a commit's snapshot a link to a blob. Both names are plain.
    pub fn link(&self, commit: &str, file: &str, hash: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        let part = path.with_file_name(part_name());
        let _ = std::fs::remove_file(&part); // left over from a process of the same number, or not there
        link_or_copy(Path::new("../../blobs").join(hash).as_path(), &self.blob(hash), &part)
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|e| Error::write(path, e))
    }

    /// Waits for the right to download a content, calling `wait` meanwhile. The lock is the same as Python's (`flock`), and
    /// ends with the file.
    pub fn lock(&self, hash: &str, wait: &mut dyn FnMut() -> Result<()>) -> Result<File> {
        let path = self.locks.join(format!("{hash}.lock"));
        create_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::write(&path, e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    wait()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                // File systems without locks: as Python does, go on without.
                Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(Error::write(&path, e)),
            }
        }
    }
}

#[cfg(unix)]
fn link_or_copy(relative: &Path, _absolute: &Path, to: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, to)
}

/// Links need a right of their own elsewhere.
#[cfg(not(unix))]
fn link_or_copy(_relative: &Path, absolute: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::copy(absolute, to).map(drop)
}

/// The name of a file on its way to another name, for this call alone.
fn part_name() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    format!(".{}-{}.part", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn create_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir).map_err(|e| Error::write(dir, e))
}

/// Whether a directory has config, weights with all shards, and a tokenizer.
fn is_whole(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    let Ok(weights) = weights(has) else { return false };
    let shards_there = || {
        let index = std::fs::read(dir.join(weights.name)).ok()?;
        Some(shards(&index).ok()?.values().all(|shard| has(shard)))
    };
    has("config.json") && has_tokenizer(has) && (!weights.is_index || shards_there() == Some(true))
}

/// A snapshot in the cache.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Cached {
    pub id: String,
    /// Branches and tags that had this commit when they were last looked up.
    pub revisions: Vec<String>,
    pub commit: String,
    /// Of its files; those of two commits may be the same.
    pub bytes: u64,
    /// Whether a model can be loaded from it.
    pub whole: bool,
    pub path: PathBuf,
}

/// What the cache holds, by id and commit. What is no model's is passed over.
pub fn cached(cache: &Path) -> Vec<Cached> {
    let mut out = vec![];
    for name in names(cache) {
        let Some(id) = name.strip_prefix("models--").map(|id| id.replace("--", "/")) else { continue };
        let dir = cache.join(&name);
        let mut references = vec![];
        find_references(&dir.join("refs"), "", 0, &mut references);
        for commit in names(&dir.join("snapshots")) {
            let path = dir.join("snapshots").join(&commit);
            let revisions = references.iter().filter(|(_, c)| *c == commit).map(|(name, _)| name.clone()).collect();
            let bytes = bytes_below(&path, 0);
            out.push(Cached { id: id.clone(), revisions, bytes, whole: is_whole(&path), commit, path });
        }
    }
    out
}

/// Of the entries of a directory, sorted; none of one that cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// How deep folders are followed: revisions and files have names with slashes.
const DEEPEST: usize = 8;

fn find_references(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, String)>) {
    for name in names(dir).into_iter().filter(|name| !name.starts_with('.')) {
        let path = dir.join(&name);
        if path.is_dir() && depth < DEEPEST {
            find_references(&path, &format!("{prefix}{name}/"), depth + 1, found);
        } else if let Ok(commit) = std::fs::read_to_string(&path) {
            found.push((format!("{prefix}{name}"), commit.trim().to_owned()));
        }
    }
}

fn bytes_below(dir: &Path, depth: usize) -> u64 {
    let bytes = |name: String| match std::fs::metadata(dir.join(&name)) {
        Ok(entry) if entry.is_dir() && depth < DEEPEST => bytes_below(&dir.join(name), depth + 1),
        Ok(entry) if entry.is_file() => entry.len(),
        _ => 0,
    };
    names(dir).into_iter().map(bytes).sum()
}
