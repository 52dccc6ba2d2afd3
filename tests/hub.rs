//! Models of the hub against a mock of it: what is downloaded, how it is kept, and what goes wrong.

mod mock;

use bertft::error::{Error, Result};
use bertft::hub::{self, Found, ModelId, Settings, Watch, cached};
use mock::{Answer, COMMIT, Hub, Request, sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const WEIGHTS: &[u8] = &[7; 300_000];
const FILES: &[(&str, &[u8])] = &[
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"version\": \"1.0\"}"),
    ("README.md", b"a card"),
    ("model.safetensors", WEIGHTS),
    ("pytorch_model.bin", b"older"),
    ("tf_model.h5", b"other"),
    ("onnx/model.onnx", b"other"),
];

struct Place {
    hub: Hub,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::with(FILES)
    }

    fn with(files: &[(&str, &[u8])]) -> Self {
        Self { hub: Hub::new(files), dir: tempfile::tempdir().unwrap() }
    }

    fn settings(&self, token: Option<&str>) -> Settings {
        let (endpoint, home) = (self.hub.endpoint.clone(), self.dir.path().to_str().unwrap().to_owned());
        let get = |name: &str| match name {
            "HF_ENDPOINT" => Some(endpoint.clone()),
            "HF_HOME" => Some(home.clone()),
            "HF_TOKEN" => token.map(str::to_owned),
            _ => None,
        };
        let settings = Settings::new(false, get).unwrap();
        Settings { pause: Duration::from_millis(1), ..settings }
    }

    fn load(&self, revision: Option<&str>) -> Result<Found> {
        self.load_with(&self.settings(None), revision)
    }

    fn load_with(&self, settings: &Settings, revision: Option<&str>) -> Result<Found> {
        let model = ModelId::new("org/name", revision).unwrap();
        hub::model(&model, settings, &mut Watch::new(&mut |_, _| Ok(())))
    }

    fn message(&self) -> String {
        self.load(None).unwrap_err().to_string()
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--name")
    }

    /// All that is below the cache, relative to the model's folder, without locks.
    fn tree(&self) -> Vec<String> {
        fn walk(dir: &Path, root: &Path, out: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.path() {
                    path if entry.file_type().unwrap().is_dir() => walk(&path, root, out),
                    path => out.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
                }
            }
        }
        let mut out = vec![];
        walk(self.dir.path(), self.dir.path(), &mut out);
        out.retain(|path| !path.starts_with("hub/.locks/"));
        out.sort();
        out
    }
}

fn is_content(request: &Request) -> bool {
    request.to_storage
}

#[test]
fn the_needed_files_come_into_pythons_layout() {
    let place = Place::new();
    let mut last = (0, 0);
    let mut report = |done, total| {
        last = (done, total);
        Ok(())
    };
    let model = ModelId::new("org/name", None).unwrap();
    let found = hub::model(&model, &place.settings(None), &mut Watch::new(&mut report)).unwrap();
    assert_eq!(last, (WEIGHTS.len() as u64, WEIGHTS.len() as u64));
    assert_eq!((found.commit.as_str(), &found.warning), (COMMIT, &None));
    assert_eq!(found.dir, place.repo().join("snapshots").join(COMMIT));
    let resolve = |file: &str| format!("/org/name/resolve/{COMMIT}/{file}");
    assert_eq!(
        place.hub.take(),
        [
            "GET /api/models/org/name/revision/main".to_owned(),
            format!("HEAD {}", resolve("config.json")),
            format!("HEAD {}", resolve("tokenizer.json")),
            format!("GET {}", resolve("config.json")),
            format!("GET {}", resolve("tokenizer.json")),
            format!("HEAD {}", resolve("model.safetensors")),
            format!("GET {}", resolve("model.safetensors")),
            format!("GET /{}", sha256(WEIGHTS)),
        ]
    );
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(std::fs::read_to_string(place.repo().join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(found.dir.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256(WEIGHTS)));
    assert_eq!(place.tree().len(), 3 + 3 + 1, "{:?}", place.tree());
    let listed = cached(&place.dir.path().join("hub"));
    assert_eq!((listed.len(), listed[0].id.as_str(), listed[0].whole), (1, "org/name", true));
    assert_eq!((listed[0].revisions.clone(), listed[0].bytes), (vec!["main".to_owned()], 300_020));
}

#[test]
fn a_second_start_asks_for_no_more_than_it_must() {
    let place = Place::new();
    let first = place.load(None).unwrap();
    place.hub.take();
    assert_eq!(place.load(None).unwrap(), first);
    assert_eq!(place.hub.take(), ["GET /api/models/org/name/revision/main"], "whether the branch moved");
    assert_eq!(place.load(Some(COMMIT)).unwrap().dir, first.dir);
    assert_eq!(place.hub.take(), [""; 0], "a commit never moves");
    let offline = Settings { offline: true, ..place.settings(None) };
    assert_eq!(place.load_with(&offline, None).unwrap(), first);
    let message = place.load_with(&offline, Some("v2")).unwrap_err().to_string();
    assert!(message.contains("org/name at revision v2 is not wholly in") && message.contains("--offline"), "{message}");
    assert_eq!(place.hub.take(), [""; 0], "offline");
    // The branch moves; of the new commit only what changed is downloaded.
    let next = COMMIT.replace('0', "f");
    place.hub.edit(|s| {
        s.commit = next.clone();
        s.files.insert("config.json".into(), (b"{ }".to_vec(), false));
    });
    let moved = place.load(None).unwrap();
    assert!(moved.dir.ends_with(&next) && std::fs::read(moved.dir.join("config.json")).unwrap() == b"{ }");
    let gets: Vec<_> = place.hub.take().into_iter().filter(|r| r.starts_with("GET /org")).collect();
    assert_eq!(gets, [format!("GET /org/name/resolve/{next}/config.json")]);
    assert_eq!(cached(&place.dir.path().join("hub"))[0].revisions, [""; 0], "the old commit has no name any more");
}

#[test]
fn the_token_stays_with_its_host() {
    let place = Place::new();
    place.hub.hook(|r| {
        // The repository was renamed: a redirect on the same host.
        let renamed = r.path.strip_prefix("/org/name/resolve/");
        renamed.map(|rest| Answer::new(307).with("Location", format!("/new/name/resolve/{rest}")))
    });
    place.load_with(&place.settings(Some("hf_secret")), None).unwrap();
    let requests = place.hub.take_requests();
    assert!(requests.iter().any(is_content) && requests.iter().any(|r| r.path.starts_with("/new/")));
    for request in requests {
        let sent = request.headers.get("authorization").map(String::as_str);
        assert_eq!(sent, (!request.to_storage).then_some("Bearer hf_secret"), "{request:?}");
    }
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let place = Place::new();
    let mut cuts = [100_000, 50_000].into_iter();
    place.hub.hook(move |r| {
        let start = r.headers.get("range").map_or(0, |r| r[6..r.len() - 1].parse().unwrap());
        let cut = is_content(r).then(|| cuts.next()).flatten()?;
        let answer = match start {
            0 => Answer::new(200),
            _ => Answer::new(206).with("Content-Range", format!("bytes {start}-299999/300000")),
        };
        Some(Answer { cut: Some(cut), ..answer.body(&WEIGHTS[start..]) })
    });
    let found = place.load(None).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), WEIGHTS);
    let ranges: Vec<_> =
        place.hub.take_requests().into_iter().filter(is_content).map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".into()), Some("bytes=150000-".into())]);
}

#[test]
fn what_an_earlier_run_left_is_used_or_replaced() {
    let left = |bytes: &[u8], says: &[Option<&str>]| {
        let place = Place::new();
        let blobs = place.repo().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", sha256(WEIGHTS))), bytes).unwrap();
        let found = place.load(None).unwrap();
        assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), WEIGHTS);
        let requests = place.hub.take_requests();
        let ranges: Vec<_> =
            requests.iter().filter(|r| is_content(r)).map(|r| r.headers.get("range").map(String::as_str)).collect();
        assert_eq!(ranges, says);
        assert!(!place.tree().iter().any(|p| p.ends_with(".incomplete")));
    };
    left(&WEIGHTS[..1000], &[Some("bytes=1000-")]);
    left(WEIGHTS, &[]);
    left(&[0; 1000], &[Some("bytes=1000-"), None]);
    left(&[0; 400_000], &[None]);
}

#[test]
fn a_server_that_knows_no_ranges_sends_all() {
    let place = Place::new();
    place.hub.hook(|r| is_content(r).then(|| Answer::new(200).body(WEIGHTS)));
    let blobs = place.repo().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(WEIGHTS))), &WEIGHTS[..1000]).unwrap();
    let found = place.load(None).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), WEIGHTS);
}

#[test]
fn damaged_content_is_no_model() {
    let place = Place::new();
    place.hub.hook(|r| is_content(r).then(|| Answer::new(200).body(vec![8; WEIGHTS.len()])));
    let error = place.load(None).unwrap_err();
    assert!(error.exit_code() == 1 && error.to_string().contains("does not have the hash"), "{error}");
    assert!(!place.tree().iter().any(|p| p.contains(&sha256(WEIGHTS))), "{:?}", place.tree());
    // A small file is known by Git's hash.
    place.hub.hook(|r| {
        let config = r.path.ends_with("/tokenizer.json") && r.method == "GET";
        config.then(|| Answer::new(200).body(b"{\"version\": \"2.0\"}"))
    });
    std::fs::remove_dir_all(place.repo()).unwrap();
    assert!(place.message().contains("tokenizer.json does not have the hash"), "{}", place.message());
}

#[test]
fn a_busy_server_is_asked_again() {
    let place = Place::new();
    let mut answers = [503, 429, 500].into_iter();
    place.hub.hook(move |_| Some(Answer::new(answers.next()?).with("Retry-After", 0)));
    place.load(None).unwrap();
    assert_eq!(place.hub.take().iter().filter(|r| r.contains("/api/")).count(), 4);

    let place = Place::new();
    place.hub.hook(|_| Some(Answer::new(503).with("X-Error-Message", "maintenance")));
    let error = place.load(None).unwrap_err();
    assert!(error.exit_code() == 1 && error.to_string().contains("answers 503"), "{error}");
    assert!(error.to_string().contains("maintenance, tried 6 times"), "{error}");
    assert_eq!(place.hub.take().len(), 6);
    // As long as it asks for, but not for hours.
    let (mut first, started) = (true, std::time::Instant::now());
    place.hub.hook(move |_| std::mem::take(&mut first).then(|| Answer::new(429).with("Retry-After", 1)));
    place.load(None).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    place.hub.hook(|_| Some(Answer::new(429).with("Retry-After", 36_000)));
    place.hub.take();
    assert!(place.load(None).is_err());
    assert_eq!(place.hub.take().len(), 1);
}

#[test]
fn every_refusal_says_what_to_do() {
    let refused = |token: Option<&str>,
                   file: &'static str,
                   status: u16,
                   code: &'static str,
                   said: &'static str,
                   says: &[&str]| {
        let place = Place::new();
        place.hub.hook(move |r| {
            let answer = Answer::new(status).with("X-Error-Code", code).with("X-Error-Message", said);
            r.path.contains(file).then_some(answer)
        });
        let error = place.load_with(&place.settings(token), None).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 2, "{message}");
        for part in says {
            assert!(message.contains(part), "{status} {code}: {message:?} does not say {part:?}");
        }
        assert!(!message.contains("hf_secret"), "{message}");
        assert_eq!(place.hub.take().iter().filter(|r| r.contains(file)).count(), 1, "asked once");
    };
    let token = Some("hf_secret");
    refused(None, "/api/", 401, "RepoNotFound", "Repository not found", &["no model org/name", "HF_TOKEN"]);
    refused(None, "/api/", 404, "", "", &["no model org/name", "look for a slip"]);
    refused(
        token,
        "/api/",
        401,
        "",
        "Invalid credentials in Authorization header",
        &["not accept the token of HF_TOKEN"],
    );
    refused(token, "/api/", 404, "RepoNotFound", "", &["no model org/name", "the token of HF_TOKEN has no access"]);
    refused(None, "/api/", 404, "RevisionNotFound", "", &["org/name has no revision main"]);
    refused(None, "/config.json", 401, "GatedRepo", "", &["gated", "ask for access at http", "no token is set"]);
    refused(token, "/config.json", 403, "GatedRepo", "", &["gated", "the token of HF_TOKEN has no access"]);
    refused(token, "/config.json", 403, "", "Forbidden here", &["gives no access", "Forbidden here"]);
    refused(None, "/model.safetensors", 404, "EntryNotFound", "", &["has no file model.safetensors at revision main"]);
}

#[test]
fn names_from_the_server_never_leave_the_cache() {
    let evil: &[&str] = &["../../../evil", "/tmp/bertft-evil", "..\\..\\evil", "a/../../evil", ".."];
    for name in evil {
        // As a file of the repository: nobody asks for it.
        let place = Place::new();
        place.hub.edit(|s| s.files.insert(name.to_string(), (b"x".to_vec(), false)));
        place.load(None).unwrap();
        assert_eq!(place.tree().len(), 7, "{name}: {:?}", place.tree());
        // As a shard.
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        let place =
            Place::with(&[FILES[0], FILES[1], ("model.safetensors.index.json", index.as_bytes()), (name, b"x")]);
        assert!(place.message().contains("not a plain file name"), "{}", place.message());
        // As the hash, which names the blob.
        let place = Place::new();
        place.hub.hook(|r| {
            let answer = Answer::new(302).with("Location", "http://127.0.0.1:1/x").with("X-Linked-Size", 1);
            (r.method == "HEAD").then(|| answer.with("X-Linked-Etag", "\"../../../evil\""))
        });
        assert!(place.message().contains("answers with the hash"), "{}", place.message());
        // As the commit, which names the snapshot.
        let place = Place::new();
        place.hub.edit(|s| s.commit = name.to_string());
        assert!(place.message().contains("answers with the commit"), "{}", place.message());
        assert_eq!(place.tree(), [""; 0]);
    }
    // A link where the download would go.
    let place = Place::new();
    let (blobs, outside) = (place.repo().join("blobs"), place.dir.path().join("outside"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink(&outside, blobs.join(format!("{}.incomplete", sha256(WEIGHTS)))).unwrap();
    assert!(matches!(place.load(None).unwrap_err(), Error::Write { .. }));
    assert!(!outside.exists());
}

#[test]
fn shards_come_with_their_index() {
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}});
    let index = index.to_string();
    let shards: &[(&str, &[u8])] = &[("model-1.safetensors", b"one"), ("model-2.safetensors", b"two")];
    let index_file = ("model.safetensors.index.json", index.as_bytes());
    let place = Place::with(&[FILES[0], FILES[1], index_file, shards[0], shards[1], ("model-3.safetensors", b"three")]);
    let found = place.load(None).unwrap();
    assert_eq!(std::fs::read(found.dir.join("model-2.safetensors")).unwrap(), b"two");
    assert!(!found.dir.join("model-3.safetensors").exists());
    std::fs::remove_file(found.dir.join("model-2.safetensors")).unwrap();
    let offline = Settings { offline: true, ..place.settings(None) };
    assert!(place.load_with(&offline, None).is_err(), "a snapshot without all shards is no model");
    let place = Place::with(&[FILES[0], FILES[1], index_file, shards[0]]);
    assert!(place.message().contains("org/name of the hub has no model-2.safetensors"), "{}", place.message());
}

#[test]
fn repositories_that_are_no_models_say_so() {
    let says = |files: &[(&str, &[u8])], says: &str| {
        let message = Place::with(files).message();
        assert!(message.contains("org/name of the hub has no") && message.contains(says), "{message}");
    };
    says(&[FILES[2]], "config.json, so it is none of transformers");
    says(&[FILES[0], FILES[1], FILES[5]], "its tf_model.h5 is of TensorFlow: convert it");
    says(&[FILES[0], FILES[1], ("flax_model.msgpack", b"x")], "of Flax");
    let odd = Place::new();
    odd.hub.hook(|_| Some(Answer::new(200).body("<html>a login page</html>")));
    assert!(odd.message().contains("is HF_ENDPOINT a hub?"), "{}", odd.message());
    odd.hub.hook(|r| Some(Answer::new(302).with("Location", r.path.clone())));
    assert!(odd.message().contains("redirects in a circle"), "{}", odd.message());
}

#[test]
fn without_a_network_the_cache_helps() {
    let place = Place::new();
    let first = place.load(None).unwrap();
    // Nobody listens at port 1.
    let dead = Settings { endpoint: "http://127.0.0.1:1".into(), ..place.settings(None) };
    let found = place.load_with(&dead, None).unwrap();
    assert_eq!(found.dir, first.dir);
    let warning = found.warning.unwrap();
    assert!(warning.contains("cannot be reached") && warning.contains("may not be the newest"), "{warning}");
    let error = place.load_with(&dead, Some("v2")).unwrap_err();
    assert!(error.exit_code() == 1 && error.to_string().contains("check the network"), "{error}");
}

#[test]
fn two_at_once_download_once() {
    let place = Place::new();
    place.hub.hook(|r| {
        // Long enough for the other to arrive.
        if is_content(r) {
            std::thread::sleep(Duration::from_millis(200));
        }
        None
    });
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3).map(|_| scope.spawn(|| place.load(None).unwrap())).collect();
        let found: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(found.iter().all(|f| f == &found[0]));
    });
    assert_eq!(place.hub.take_requests().into_iter().filter(is_content).count(), 1);
}

#[test]
fn an_interruption_ends_a_download() {
    let place = Place::new();
    let model = ModelId::new("org/name", None).unwrap();
    let mut report = |done, _| if done > 100_000 { Err(Error::Interrupted { resumable: false }) } else { Ok(()) };
    let error = hub::model(&model, &place.settings(None), &mut Watch::new(&mut report)).unwrap_err();
    assert!(matches!(error, Error::Interrupted { .. }), "{error:?}");
    let part = place.repo().join("blobs").join(format!("{}.incomplete", sha256(WEIGHTS)));
    assert!(std::fs::metadata(part).unwrap().len() > 100_000, "it is kept for the next run");
}
