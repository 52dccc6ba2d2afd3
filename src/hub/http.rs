//! Requests to the hub: the token goes to its own host alone, what may pass is tried again, and every answer that is no success
//! becomes a message that says what to do.

use super::settings::Settings;
use super::{ModelId, Watch};
use crate::error::{Error, Result};
use std::time::{Duration, Instant};
use ureq::http::header::{AUTHORIZATION, ETAG, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

/// Repetitions of a request that failed for a reason that may pass.
const REPETITIONS: u32 = 5;
/// Where there is no connection at all, waiting helps less often.
const REPETITIONS_WITHOUT_CONNECTION: u32 = 1;
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A server that wants more patience than this is given up on.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
const MOST_REDIRECTS: u32 = 5;
/// A listing of the largest repositories has a few megabytes.
const MOST_LISTING_BYTES: u64 = 64 << 20;

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer: there is no network, or no such host.
    Unreachable(String),
    /// May pass: the server is busy or broken, or the connection ended early. With the wait that it asks for.
    Passing(String, Option<Duration>),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// What was asked for, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    Model,
    File(&'a str),
}

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    /// SHA-256 of a large file, Git's hash of a small one. Names the blob, and is a plain name.
    pub hash: String,
    pub size: u64,
}

/// A connection to the hub for one model.
#[derive(Debug)]
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
    model: &'a ModelId,
}

impl<'a> Client<'a> {
    pub fn new(settings: &'a Settings, model: &'a ModelId) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("bertft/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build();
        Self { agent: config.into(), settings, model }
    }

    /// The commit of the revision, and the names of the repository's files.
    pub fn listing(&self, watch: &mut Watch<'_>) -> Result<(String, Vec<String>), Failure> {
        #[derive(serde::Deserialize)]
        struct Listing {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let (id, revision) = (&self.model.id, encoded(&self.model.revision));
        let url = format!("{}/api/models/{id}/revision/{revision}", self.settings.endpoint);
        let listing = self.repeat(watch, || {
            let mut response = self.follow("GET", &url, None, Wanted::Model)?;
            let bytes = response.body_mut().with_config().limit(MOST_LISTING_BYTES).read_to_vec().map_err(failure)?;
            let listing: Listing = serde_json::from_slice(&bytes).map_err(|e| self.odd(format!("no listing: {e}")))?;
            Ok(listing)
        })?;
        if !super::settings::is_commit(&listing.sha) {
            return Err(self.odd(format!("the commit {:?}", listing.sha)).into());
        }
        Ok((listing.sha, listing.siblings.into_iter().map(|s| s.rfilename).collect()))
    }

    /// Hash and size of a file. They are in the first answer that is not from a renamed repository's old name: the storage to
    /// which that leads knows other hashes.
    pub fn describe(&self, commit: &str, file: &str, watch: &mut Watch<'_>) -> Result<Described> {
        let url = self.url(commit, file);
        let described = self.repeat(watch, || {
            let headers = self.follow("HEAD", &url, None, Wanted::File(file))?.headers().clone();
            let hash = text(&headers, "x-linked-etag").or_else(|| text(&headers, ETAG.as_str())).unwrap_or("");
            let hash = hash.trim_start_matches("W/").trim_matches('"');
            let size = text(&headers, "x-linked-size").or_else(|| text(&headers, "content-length"));
            if !super::files::is_plain(hash) {
                return Err(self.odd(format!("the hash {hash:?} of {file}")).into());
            }
            let size = size.and_then(|s| s.parse().ok()).ok_or_else(|| self.odd(format!("no size of {file}")))?;
            Ok(Described { hash: hash.into(), size })
        });
        described.map_err(|failure| self.error(failure))
    }

    /// The content of a file from byte `start` on, and whether it begins there: a server may send all of it.
    pub fn content(&self, commit: &str, file: &str, start: u64) -> Result<(Body, bool), Failure> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.follow("GET", &self.url(commit, file), range.as_deref(), Wanted::File(file))?;
        let begins =
            text(response.headers(), "content-range").is_some_and(|r| r.starts_with(&format!("bytes {start}-")));
        let resumed = response.status() == 206 && begins;
        if response.status() == 206 && !begins {
            return Err(self.odd(format!("another part of {file} than was asked for")).into());
        }
        Ok((response.into_body(), resumed))
    }

    fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, self.model.id, encoded(file))
    }

    /// One request and its redirects. HEAD stops at the first that leaves the host.
    fn follow(
        &self,
        method: &str,
        url: &str,
        range: Option<&str>,
        wanted: Wanted<'_>,
    ) -> Result<Response<Body>, Failure> {
        let home: Uri = url.parse().map_err(|_| self.odd(format!("the address {url}")))?;
        let mut at = home.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = if method == "HEAD" { self.agent.head(&at) } else { self.agent.get(&at) };
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| same_host(&at, &home)) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.value));
            }
            let response = request.call().map_err(failure)?;
            if !response.status().is_redirection() {
                return self.check(response, wanted);
            }
            let location = text(response.headers(), LOCATION.as_str()).unwrap_or("");
            let next = resolve(&at, location).ok_or_else(|| self.odd(format!("a redirect to {location:?}")))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.odd("a redirect to a connection that is not encrypted".into()).into());
            }
            if method == "HEAD" && !same_host(&next, &home) {
                return Ok(response);
            }
            at = next;
        }
        Err(self.odd("redirects in a circle".into()).into())
    }

    /// Sorts answers into success, what may pass, and messages.
    fn check(&self, response: Response<Body>, wanted: Wanted<'_>) -> Result<Response<Body>, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let header = |name| text(response.headers(), name).unwrap_or("");
        let (code, said) = (header("x-error-code"), header("x-error-message"));
        let ModelId { id, revision } = self.model;
        let endpoint = &self.settings.endpoint;
        let token = match &self.settings.token {
            Some(token) => format!("the token of {} has no access to it", token.origin),
            None => "no token is set; set HF_TOKEN, or log in with `hf auth login`".into(),
        };
        let message = match (status.as_u16(), code) {
            (408 | 429 | 500..=599, _) => {
                let seconds = text(response.headers(), RETRY_AFTER.as_str()).and_then(|s| s.trim().parse().ok());
                let why = format!(
                    "{endpoint} answers {status}{}",
                    if said.is_empty() { String::new() } else { format!(": {said}") }
                );
                return Err(Failure::Passing(why, seconds.map(Duration::from_secs)));
            }
            (416, _) => return Err(Failure::Passing("the part that was asked for is not there".into(), None)),
            (_, "GatedRepo") => {
                format!(
                    "the model {id} is gated: ask for access at {endpoint}/{id} and use a token of that account; {token}"
                )
            }
            (_, "RevisionNotFound") => {
                format!("the model {id} has no revision {revision}; see {endpoint}/{id}/commits/main")
            }
            (_, "EntryNotFound") => self.no_file(wanted),
            (401, _)
                if said.contains("Invalid credentials")
                    || (self.settings.token.is_some() && code != "RepoNotFound") =>
            {
                let origin = self.settings.token.as_ref().map_or("the request", |t| t.origin.as_str());
                format!(
                    "{endpoint} does not accept the token of {origin}; make a new one at {endpoint}/settings/tokens, or remove it"
                )
            }
            (403, _) => format!(
                "{endpoint} gives no access to the model {id}: {said}{}{token}",
                if said.is_empty() { "" } else { "; " }
            ),
            (401, _) | (_, "RepoNotFound") => {
                format!("{endpoint} has no model {id}, or it is private: look for a slip in its name; {token}")
            }
            (404, "") if matches!(wanted, Wanted::File(_)) => self.no_file(wanted),
            (404, _) => {
                format!("{endpoint} has no model {id} with a revision {revision}; look for a slip in its name; {token}")
            }
            _ => format!("{endpoint} answers {status} for the model {id}: {said}"),
        };
        Err(Error::input(message).into())
    }

    fn no_file(&self, wanted: Wanted<'_>) -> String {
        let ModelId { id, revision } = self.model;
        match wanted {
            Wanted::File(file) => format!("the model {id} has no file {file} at revision {revision}"),
            Wanted::Model => format!("the model {id} has no files at revision {revision}"),
        }
    }

    /// An answer that no hub gives.
    fn odd(&self, what: String) -> Error {
        Error::Failed(format!("{} answers with {what}; is HF_ENDPOINT a hub?", self.settings.endpoint))
    }

    /// For the user.
    pub fn error(&self, failure: Failure) -> Error {
        let endpoint = &self.settings.endpoint;
        match failure {
            Failure::Final(error) => error,
            Failure::Unreachable(why) => Error::Failed(format!(
                "{endpoint} cannot be reached for the model {} ({why}); check the network, or HF_ENDPOINT, or give a directory",
                self.model.id
            )),
            Failure::Passing(why, _) => Error::Failed(format!(
                "{why}, tried {} times; try again later: what was downloaded is kept",
                REPETITIONS + 1
            )),
        }
    }

    /// Repeats a request while its failure may pass.
    fn repeat<T>(&self, watch: &mut Watch<'_>, mut request: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut patience = Patience::new(self.settings.pause);
        loop {
            match request() {
                Err(failure) => patience.wait(failure, watch)?,
                done => return done,
            }
        }
    }
}

/// How often and how long to wait before the next try.
#[derive(Debug)]
pub(super) struct Patience {
    first: Duration,
    failures: u32,
}

impl Patience {
    pub fn new(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// There was some progress: earlier failures are forgiven.
    pub fn renew(&mut self) {
        self.failures = 0;
    }

    /// Waits as long as the server asks for, else twice as long each time.
    ///
    /// # Errors
    /// The failure, when it is final or came too often; an interruption.
    pub fn wait(&mut self, failure: Failure, watch: &mut Watch<'_>) -> Result<(), Failure> {
        let (most, asked) = match &failure {
            Failure::Final(_) => return Err(failure),
            Failure::Unreachable(_) => (REPETITIONS_WITHOUT_CONNECTION, None),
            Failure::Passing(_, asked) => (REPETITIONS, *asked),
        };
        if self.failures >= most || asked.is_some_and(|wait| wait > LONGEST_RETRY_AFTER) {
            return Err(failure);
        }
        let pause = asked.unwrap_or((self.first * (1 << self.failures)).min(LONGEST_PAUSE));
        self.failures += 1;
        let until = Instant::now() + pause;
        loop {
            watch.look()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Failure::Unreachable(error.to_string()),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            Failure::Unreachable(error.to_string())
        }
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Failure::Unreachable(e.to_string()),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => Failure::Unreachable(error.to_string()),
        other => Failure::Passing(format!("the connection broke ({other})"), None),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn same_host(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| u.port_u16().unwrap_or(if u.scheme_str() == Some("https") { 443 } else { 80 });
    a.host() == b.host() && port(a) == port(b) && a.scheme_str() == b.scheme_str()
}

/// Where a redirect leads: a whole address, or a path on the same host.
fn resolve(at: &Uri, location: &str) -> Option<Uri> {
    let whole = match location {
        l if l.starts_with("http://") || l.starts_with("https://") => l.to_owned(),
        l if l.starts_with('/') && !l.starts_with("//") => format!("{}://{}{l}", at.scheme_str()?, at.authority()?),
        _ => return None,
    };
    whole.parse().ok()
}

/// A text as one part of a path.
fn encoded(text: &str) -> String {
    let part = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(part).collect()
}
