//! The weights of a model directory as they lie on the disk: safetensors or what `torch.save` writes, whole or in shards.
//! All files are mapped, and every tensor is a place in one of them.

use super::pickle;
use crate::error::{Error, Result, guarded};
use crate::hub::files::{self, Format};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The opened files.
#[derive(Debug)]
pub(super) struct WeightFiles {
    /// The only file, or the index.
    path: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// A tensor in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub data: &'a [u8],
    pub file: &'a Path,
}

impl WeightFiles {
    /// Opens the weights of a model directory and checks that the files are whole.
    ///
    /// # Errors
    /// [`Error::Input`] when there are none of a known kind, and for damaged ones.
    pub fn open(dir: &Path) -> Result<Self> {
        let found = files::weights(|name| dir.join(name).is_file()).map_err(|what| Error::in_file(dir, what))?;
        let path = dir.join(found.name);
        let mut this = Self { path: path.clone(), files: vec![], tensors: BTreeMap::new() };
        if !found.is_index {
            this.add(path, found.format)?;
            return Ok(this);
        }
        let index = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let map = files::shards(&index).map_err(|what| Error::in_file(&path, what))?;
        for shard in map.values().collect::<BTreeSet<_>>() {
            if !dir.join(shard).is_file() {
                return Err(Error::in_file(
                    dir.join(shard),
                    format!("is missing, but {} names it; copy it here too", found.name),
                ));
            }
            this.add(dir.join(shard), found.format)?;
        }
        match map.iter().find(|(tensor, _)| !this.tensors.contains_key(*tensor)) {
            Some((tensor, shard)) => {
                Err(Error::in_file(dir.join(shard), format!("lacks tensor {tensor}, which {} says it has", found.name)))
            }
            None => Ok(this),
        }
    }

    fn add(&mut self, path: PathBuf, format: Format) -> Result<()> {
        let opened = File::open(&path).map_err(|e| Error::io(&path, e))?;
        // SAFETY: the map is read-only; that nobody rewrites a model file in place while it is open is the same assumption that
        // every safetensors reader makes.
        let map = unsafe { Mmap::map(&opened) }.map_err(|e| Error::io(&path, e))?;
        if map.starts_with(b"version https://git-lfs.github.com/") {
            let message = "is a pointer of Git LFS, not the file itself; run git lfs pull in its repository";
            return Err(Error::in_file(&path, message));
        }
        let found = match format {
            Format::Safetensors => safetensors(&map),
            // The zip reader is another's code.
            Format::Pytorch => guarded(|| pickle::tensors(&map)),
        };
        let file = self.files.len();
        for (name, place) in found.map_err(|what| Error::in_file(&path, what))? {
            let pickle::Place { dtype, shape, bytes } = place;
            self.tensors.insert(name, Entry { file, dtype, shape, bytes });
        }
        self.files.push((path, map));
        Ok(())
    }

    /// What messages about the weights as a whole name: the file, or the index of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// In alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<Stored<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let (file, map) = &self.files[entry.file];
        Some(Stored { name, dtype: entry.dtype, shape: &entry.shape, data: &map[entry.bytes.clone()], file })
    }

    /// Gives back the memory of the files' pages; they are read again should anybody ask.
    pub fn forget_pages(&self) {
        #[cfg(unix)]
        for (_, map) in &self.files {
            // SAFETY: dropping pages of a read-only map of a file loses nothing.
            let advised = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            drop(advised); // a refusal costs memory only
        }
    }
}

fn safetensors(file: &[u8]) -> Result<Vec<(String, pickle::Place)>, String> {
    let tensors = SafeTensors::deserialize(file)
        .map_err(|e| format!("is not a whole safetensors file ({e}); copy or download it again"))?;
    let place = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let start = view.data().as_ptr() as usize - file.as_ptr() as usize; // a view's data lie in the file
        let bytes = start..start + view.data().len();
        (name, pickle::Place { dtype: view.dtype(), shape: view.shape().to_vec(), bytes })
    };
    Ok(tensors.tensors().into_iter().map(place).collect())
}
