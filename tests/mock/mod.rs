//! A hub for tests on this machine: one server for the hub and one for the storage of large files, as two hosts.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// Whether it came to the storage.
    pub to_storage: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Only so much of the body is sent before the connection ends.
    pub cut: Option<usize>,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// Answers instead of the hub where it gives something.
type Hook = Box<dyn FnMut(&Request) -> Option<Answer> + Send>;

pub struct State {
    pub commit: String,
    /// Name to content, and whether it is kept as a large file.
    pub files: BTreeMap<String, (Vec<u8>, bool)>,
    pub requests: Vec<Request>,
    pub hook: Option<Hook>,
    pub storage: String,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_hash(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Hub {
    /// With files of these names and contents; `.safetensors` and `.bin` are large ones.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let is_large = |name: &str| name.ends_with(".safetensors") || name.ends_with(".bin");
        let files = files.iter().map(|(name, bytes)| (name.to_string(), (bytes.to_vec(), is_large(name)))).collect();
        let [hub, storage] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [endpoint, storage_url] = [&hub, &storage].map(|l| format!("http://{}", l.local_addr().unwrap()));
        let state = State { commit: COMMIT.into(), files, requests: vec![], hook: None, storage: storage_url };
        let state = Arc::new(Mutex::new(state));
        for (listener, to_storage) in [(hub, false), (storage, true)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    std::thread::spawn(move || serve(stream, &state, to_storage));
                }
            });
        }
        Self { endpoint, state }
    }

    pub fn edit<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        edit(&mut self.state.lock().unwrap())
    }

    pub fn hook(&self, hook: impl FnMut(&Request) -> Option<Answer> + Send + 'static) {
        self.edit(|s| s.hook = Some(Box::new(hook)));
    }

    /// Requests since the last call, as `METHOD path`.
    pub fn take(&self) -> Vec<String> {
        self.take_requests().iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }

    pub fn take_requests(&self) -> Vec<Request> {
        self.edit(|s| std::mem::take(&mut s.requests))
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, to_storage: bool) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    let request = Request { method, path, headers, to_storage };
    let answer = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let hooked = state.hook.as_mut().and_then(|hook| hook(&request));
        hooked.unwrap_or_else(|| default(&request, &state))
    };
    let mut head = format!("HTTP/1.1 {} Mock\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    answer.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let body = if request.method == "HEAD" { &[][..] } else { &answer.body[..answer.cut.unwrap_or(answer.body.len())] };
    let stream = reader.get_mut();
    // The client may have gone away.
    let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}

/// As the hub answers.
pub fn default(request: &Request, state: &State) -> Answer {
    if request.to_storage {
        let content = state.files.values().find(|(bytes, _)| request.path == format!("/{}", sha256(bytes)));
        return content.map_or(Answer::new(404), |(bytes, _)| ranged(request, bytes));
    }
    if request.path.starts_with("/api/models/") {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        return Answer::new(200).body(serde_json::json!({"sha": state.commit, "siblings": siblings}).to_string());
    }
    let name = request.path.rsplit('/').next().unwrap();
    match state.files.get(name) {
        Some((bytes, true)) => Answer::new(302)
            .with("Location", format!("{}/{}", state.storage, sha256(bytes)))
            .with("X-Linked-Etag", format!("\"{}\"", sha256(bytes)))
            .with("X-Linked-Size", bytes.len())
            .with("ETag", "\"another\""),
        Some((bytes, false)) => ranged(request, bytes).with("ETag", format!("W/\"{}\"", git_hash(bytes))),
        None => Answer::new(404).with("X-Error-Code", "EntryNotFound"),
    }
}

fn ranged(request: &Request, bytes: &[u8]) -> Answer {
    let start = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206).with("Content-Range", range).body(&bytes[start..])
        }
        Some(_) => Answer::new(416),
        None => Answer::new(200).body(bytes).with("Content-Length", bytes.len()),
    }
}
