//! The environment variables of Python's `huggingface_hub`, and ids of models.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";

/// Where models come from and where they are kept.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `None` when there is neither a variable nor a home directory.
    pub cache: Option<PathBuf>,
    /// Without a slash at its end.
    pub endpoint: String,
    pub token: Option<Token>,
    /// No request is made.
    pub offline: bool,
    /// The first wait before a request is repeated; it doubles each time.
    pub pause: Duration,
}

/// An access token. It is shown nowhere.
#[derive(Clone)]
pub struct Token {
    pub(super) value: String,
    /// The variable or file that it comes from.
    pub origin: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "token of {}", self.origin)
    }
}

impl Settings {
    /// By the process's environment; `offline` is the flag's.
    ///
    /// # Errors
    /// [`Error::Input`] for a variable that cannot be used.
    pub fn from_env(offline: bool) -> Result<Self> {
        Self::new(offline, |name| std::env::var_os(name).and_then(|v| v.into_string().ok()))
    }

    /// By the variables that `get` gives. An empty one counts as none.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn new(offline: bool, get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let get = |name: &str| get(name).filter(|v| !v.trim().is_empty());
        let path = |name: &str| get(name).map(|v| expand(&v, get("HOME").as_deref()));
        let below = |name: &str, rest: &str| path(name).map(|dir| dir.join(rest));
        let home = path("HF_HOME")
            .or_else(|| below("XDG_CACHE_HOME", "huggingface"))
            .or_else(|| below("HOME", ".cache/huggingface"));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if host.is_none_or(str::is_empty) || !endpoint.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::input(format!("HF_ENDPOINT is {endpoint:?}; expected a URL such as {ENDPOINT}")));
        }
        let is_true = |name: &str| {
            get(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.trim().to_uppercase().as_str()))
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")));
        Ok(Self {
            cache,
            endpoint,
            token: token(&get, token_file.as_deref())?,
            offline: offline || is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            pause: Duration::from_secs(1),
        })
    }
}

fn expand(path: &str, home: Option<&str>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(home).join(rest),
        _ => path.into(),
    }
}

fn token(get: &dyn Fn(&str) -> Option<String>, file: Option<&Path>) -> Result<Option<Token>> {
    let variable =
        ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((get(name)?, name.to_owned())));
    let found = variable.or_else(|| {
        let file = file?;
        Some((std::fs::read_to_string(file).ok()?, file.display().to_string()))
    });
    let Some((value, origin)) = found else { return Ok(None) };
    let value = value.trim().to_owned();
    if value.is_empty() {
        return Ok(None);
    }
    // It becomes part of a header.
    if !value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::input(format!("{origin} holds no token: there are spaces or other odd characters in it")));
    }
    Ok(Some(Token { value, origin }))
}

/// A model of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl ModelId {
    /// Without a revision, the branch `main`.
    ///
    /// # Errors
    /// What an id or a revision looks like, as the end of a message.
    pub fn new(id: &str, revision: Option<&str>) -> Result<Self, String> {
        if !is_id(id) {
            return Err(format!("{id:?} is neither a directory nor an id of the hub such as org/name"));
        }
        let revision = revision.unwrap_or("main");
        if !is_revision(revision) {
            return Err(format!("{revision:?} is no revision; expected a branch, tag or commit such as main"));
        }
        Ok(Self { id: id.into(), revision: revision.into() })
    }

    /// The commit, if the revision is one and can never mean anything else.
    pub fn commit(&self) -> Option<&str> {
        Some(self.revision.as_str()).filter(|r| is_commit(r))
    }
}

/// Whether a text is a directory and no model of the hub: there is one of this name, seen from `base`, or it begins as only
/// paths do.
pub fn means_directory(text: &str, base: &Path) -> bool {
    text.starts_with(['/', '.']) || Path::new(text).is_absolute() || base.join(text).is_dir()
}

/// `name` or `org/name`.
fn is_id(id: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part =
        |p: &str| !p.is_empty() && p.chars().all(known) && !p.starts_with(['-', '.']) && !p.ends_with(['-', '.']);
    id.len() <= 96 && id.split('/').count() <= 2 && id.split('/').all(part) && !id.contains("--") && !id.contains("..")
}

/// Becomes a path in the cache, so it must not lead out of it.
fn is_revision(revision: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '@');
    let part = |p: &str| !p.is_empty() && p.chars().all(known) && !p.starts_with('.') && !p.contains("..");
    revision.len() <= 200 && revision.split('/').all(part)
}

/// 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::new(false, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn directories_as_python_finds_them() {
        let cache = |variables: &[_]| settings(variables).unwrap().cache.map(|p| p.display().to_string());
        assert_eq!(cache(&[]), None);
        assert_eq!(cache(&[("HOME", "/h")]).unwrap(), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]).unwrap(), "/h/hf/hub");
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")]).unwrap(), "/c");
        assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")]).unwrap(), "/hf/hub");
    }

    #[test]
    fn tokens_of_variable_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        assert!(settings(&[("HF_HOME", home)]).unwrap().token.is_none());
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let token = settings(&[("HF_HOME", home)]).unwrap().token.unwrap();
        assert_eq!((token.value.as_str(), token.origin.ends_with("/token")), ("hf_file", true));
        assert!(!format!("{token:?}").contains("hf_file"));
        let token = settings(&[("HF_HOME", home), ("HF_TOKEN", " hf_variable ")]).unwrap().token.unwrap();
        assert_eq!((token.value.as_str(), token.origin.as_str()), ("hf_variable", "HF_TOKEN"));
        std::fs::write(dir.path().join("other"), "hf_other").unwrap();
        let path = dir.path().join("other");
        let token = settings(&[("HF_HOME", home), ("HF_TOKEN_PATH", path.to_str().unwrap())]).unwrap().token.unwrap();
        assert_eq!(token.value, "hf_other");
        let message = settings(&[("HF_TOKEN", "hf_a\nInjected: header")]).unwrap_err().to_string();
        assert!(message.starts_with("HF_TOKEN holds no token") && !message.contains("hf_a"), "{message}");
    }

    #[test]
    fn endpoint_and_offline() {
        assert_eq!(settings(&[]).unwrap().endpoint, ENDPOINT);
        assert_eq!(settings(&[("HF_ENDPOINT", "http://localhost:1/")]).unwrap().endpoint, "http://localhost:1");
        for wrong in ["localhost", "ftp://x", "https://", "https://a b"] {
            assert!(settings(&[("HF_ENDPOINT", wrong)]).unwrap_err().to_string().contains("HF_ENDPOINT"), "{wrong}");
        }
        let offline = |value| settings(&[("HF_HUB_OFFLINE", value)]).unwrap().offline;
        assert!(offline("1") && offline("true") && offline("Yes") && !offline("0") && !offline(""));
    }

    #[test]
    fn ids_and_revisions() {
        for id in ["bert-base-uncased", "org/name", "a/b_c.d-e", "0x/1"] {
            assert!(ModelId::new(id, None).is_ok(), "{id}");
        }
        for id in ["", "/a", "a/", "a/b/c", "../a", "a/..", ".", "a\\b", "a--b", "a b", "a/b?x", "-a/b", "é/b", "a/b."]
        {
            assert!(ModelId::new(id, None).is_err(), "{id}");
        }
        for revision in ["main", "v1.0", "refs/pr/1", "feature/x+y"] {
            assert!(ModelId::new("a/b", Some(revision)).is_ok(), "{revision}");
        }
        for revision in ["", "..", "../main", "a/../b", "/main", "a\\b", "a b", "a//b", ".git", "a..b"] {
            assert!(ModelId::new("a/b", Some(revision)).is_err(), "{revision}");
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(ModelId::new("a/b", Some(commit)).unwrap().commit(), Some(commit));
        assert_eq!(ModelId::new("a/b", None).unwrap().commit(), None);
    }
}
