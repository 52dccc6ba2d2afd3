//! Models of the Hugging Face hub: an id and a revision to a directory in the cache that Python's `huggingface_hub` shares.
//!
//! A request tells the commit of a branch and its files; those that a model needs are downloaded, each verified. A commit that
//! is in the cache needs no request at all, a branch that has not moved needs one.
//!
//! Why `ureq` and not `hf-hub`: `hf-hub` 1.0 brings tokio and hf-xet; 0.5 with `ureq` is light but reads
//! neither `HF_TOKEN` nor `HF_HUB_CACHE` nor `HF_HUB_OFFLINE`, verifies no hash, trusts the server's file names, and has no way
//! to hear of an interruption.
//!
//! Sources: `file_download.py`, `constants.py` and `utils/_http.py` of `huggingface_hub` 0.36.

mod cache;
mod download;
pub mod files;
mod http;
pub mod settings;

pub use cache::{Cached, cached};
pub use settings::{ModelId, Settings, means_directory};

use crate::error::{Error, Result};
use cache::Repo;
use download::Download;
use files::{BERTFT_JSON, TOKENIZER_FILES, is_plain, shards, weights};
use http::{Client, Failure};
use std::path::{Path, PathBuf};

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub dir: PathBuf,
    pub commit: String,
    /// What the user should know about it.
    pub warning: Option<String>,
}

/// Who watches a download: told of its bytes, and asked whether to go on.
pub struct Watch<'a> {
    /// Bytes there are, and bytes there will be.
    done: u64,
    total: u64,
    report: &'a mut dyn FnMut(u64, u64) -> Result<()>,
}

impl<'a> Watch<'a> {
    /// `report(done, total)` is called often, also while nothing comes in; an error from it ends the work.
    pub fn new(report: &'a mut dyn FnMut(u64, u64) -> Result<()>) -> Self {
        Self { done: 0, total: 0, report }
    }

    fn look(&mut self) -> Result<()> {
        // The end is told once all is done.
        (self.report)(self.done.min(self.total.saturating_sub(1)), self.total)
    }

    fn skip(&mut self, bytes: u64) {
        self.done += bytes;
    }

    fn add(&mut self, bytes: u64) -> Result<()> {
        self.done += bytes;
        self.look()
    }
}

/// The directory of a model, downloaded as far as it is not in the cache.
///
/// # Errors
/// [`Error::Input`] for a model, revision or file that is not there, or not for this user; [`Error::Write`] for a full disk;
/// [`Error::Failed`] when there is no network or the content is damaged; whatever `watch` returns.
pub fn model(model: &ModelId, settings: &Settings, watch: &mut Watch<'_>) -> Result<Found> {
    let Some(cache) = &settings.cache else {
        return Err(Error::input("there is no place for models of the hub; set HF_HOME to a directory"));
    };
    let repo = Repo::new(cache, &model.id);
    let at = |commit: &str, warning| {
        let found = |dir| Found { dir, commit: commit.into(), warning };
        repo.whole(commit).map(found)
    };
    if let Some(found) = model.commit().and_then(|commit| at(commit, None)) {
        return Ok(found);
    }
    let known = model.commit().map(str::to_owned).or_else(|| repo.reference(&model.revision));
    let ModelId { id, revision } = model;
    if settings.offline {
        let found = known.and_then(|commit| at(&commit, None));
        return found.ok_or_else(|| {
            Error::input(format!(
                "the model {id} at revision {revision} is not wholly in {}, and nothing is downloaded with --offline or \
                 HF_HUB_OFFLINE",
                cache.display()
            ))
        });
    }
    let client = Client::new(settings, model);
    let (commit, listed) = match client.listing(watch) {
        Ok(listing) => listing,
        Err(failure @ Failure::Unreachable(_)) => {
            let why = client.error(failure);
            let warning = format!("{why}; the copy in the cache is used, which may not be the newest");
            return known.and_then(|commit| at(&commit, Some(warning))).ok_or(why);
        }
        Err(failure) => return Err(client.error(failure)),
    };
    fetch(&client, &repo, (&commit, &listed), settings, watch).map_err(|e| in_model(e, id))?;
    if *revision != commit {
        repo.set_reference(revision, &commit)?;
    }
    Ok(Found { dir: repo.snapshot(&commit), commit, warning: None })
}

/// A message that begins with what a repository lacks.
fn in_model(error: Error, id: &str) -> Error {
    match error {
        Error::Input { message, file: None, line } if message.starts_with("has ") => {
            Error::Input { message: format!("the model {id} of the hub {message}"), file: None, line }
        }
        other => other,
    }
}

/// Downloads what a model needs of the files of a commit and is not there. Weights come last, so that a snapshot with weights
/// has all else.
fn fetch(
    client: &Client<'_>,
    repo: &Repo,
    (commit, listed): (&str, &[String]),
    settings: &Settings,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let has = |name: &str| listed.iter().any(|l| l == name);
    if !has("config.json") {
        return Err(Error::input("has no config.json, so it is none of transformers"));
    }
    let chosen = weights(has).map_err(Error::input)?;
    let beside = ["config.json", BERTFT_JSON].iter().chain(TOKENIZER_FILES).copied().filter(|name| has(name));
    let small: Vec<&str> = beside.chain(chosen.is_index.then_some(chosen.name)).collect();
    get(client, repo, commit, &small, settings, watch)?;
    if !chosen.is_index {
        return get(client, repo, commit, &[chosen.name], settings, watch);
    }
    let path = repo.snapshot(commit).join(chosen.name);
    let index = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let map = shards(&index).map_err(|what| Error::input(format!("has an index {} that {what}", chosen.name)))?;
    let mut names: Vec<&str> = map.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    match names.iter().find(|name| !has(name)) {
        Some(name) => Err(Error::input(format!("has no {name}, which {} names", chosen.name))),
        None => get(client, repo, commit, &names, settings, watch),
    }
}

fn get(
    client: &Client<'_>,
    repo: &Repo,
    commit: &str,
    names: &[&str],
    settings: &Settings,
    watch: &mut Watch<'_>,
) -> Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_there(&repo.snapshot(commit), name)).collect();
    // All sizes first, so that it is known how much there is to come.
    let mut described = vec![];
    for file in &missing {
        described.push(client.describe(commit, file, watch)?);
    }
    (watch.done, watch.total) = (0, described.iter().map(|d| d.size).sum());
    for (file, described) in missing.iter().zip(&described) {
        Download { client, repo, commit, file, described, pause: settings.pause }.run(watch)?;
    }
    if watch.total > 0 { (watch.report)(watch.total, watch.total) } else { Ok(()) }
}

fn is_there(snapshot: &Path, name: &str) -> bool {
    debug_assert!(is_plain(name), "names are from a list of our own, or checked with the index");
    snapshot.join(name).is_file()
}
