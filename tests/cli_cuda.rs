//! The choice of the device as users see it, on machines of all kinds: the driver, CUDA's libraries and the program with
//! the kernels are played by small ones made here with the C compiler.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// An install directory with a copy of the program, and a directory for libraries.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        fs::create_dir(this.path("lib")).unwrap();
        let program = assert_cmd::cargo::cargo_bin("bertft");
        if fs::hard_link(&program, this.path("bertft")).is_err() {
            fs::copy(&program, this.path("bertft")).unwrap();
        }
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program with the kernels: tells its arguments, and names the libraries that it would load.
    fn with_program(self) -> Self {
        let path = self.path("bertft-cuda");
        fs::write(&path, "#!/bin/sh\n# libcudart.so.13 libcublas.so.13\necho \"on CUDA: $*\"\nexit 7\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// A driver for CUDA `version` that starts with `status` and finds `gpus`.
    fn with_driver(self, status: i32, version: i32, gpus: i32) -> Self {
        let source = format!(
            "#include <string.h>\n\
             int cuInit(unsigned flags) {{ return {status}; }}\n\
             int cuDriverGetVersion(int *to) {{ *to = {version}; return 0; }}\n\
             int cuDeviceGetCount(int *to) {{ *to = {gpus}; return 0; }}\n\
             int cuDeviceGet(int *to, int i) {{ *to = i; return 0; }}\n\
             int cuDeviceGetName(char *to, int len, int i) {{ strcpy(to, \"Imaginary 100\"); return 0; }}\n"
        );
        self.compile("libcuda.so.1", &source)
    }

    fn with_library(self, name: &str) -> Self {
        self.compile(name, "int nothing;\n")
    }

    fn compile(self, name: &str, source: &str) -> Self {
        let file = self.path("lib").join(format!("{name}.c"));
        fs::write(&file, source).unwrap();
        let compiler = std::env::var("CC").unwrap_or("cc".into());
        let mut made = Command::new(compiler);
        made.args(["-shared", "-fPIC", "-o"]).arg(self.path("lib").join(name)).arg(&file);
        assert!(made.status().unwrap().success());
        self
    }

    /// Exit code, standard output and error of the program there.
    fn run(&self, device: &str, args: &[&str]) -> (i32, String, String) {
        let output = Command::new(self.path("bertft"))
            .args(args)
            .current_dir(self.0.path())
            .env("LD_LIBRARY_PATH", self.path("lib"))
            .env("BERTFT_DEVICE", device)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// That `cuda` is refused with these words, `auto` stays on the CPU, and `info` says why.
    fn lacks(&self, words: &[&str]) {
        // The model has no head yet: the CPU says so.
        let predict = ["predict", "--model", MODEL];
        let (code, out, err) = self.run("cuda", &predict);
        assert!(code == 2 && out.is_empty() && words.iter().all(|w| err.contains(w)), "{code} {err}");
        let (code, out, err) = self.run("auto", &predict);
        assert!(code == 2 && out.is_empty() && err.contains("no classifier") && !err.contains("CUDA"), "{code} {err}");
        let (code, out, _) = self.run("auto", &["info"]);
        assert!(code == 0 && out.contains("devices       cpu;") && words.iter().all(|w| out.contains(w)), "{out}");
    }
}

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn whole() -> Machine {
    Machine::new()
        .with_program()
        .with_driver(0, 13000, 2)
        .with_library("libcudart.so.13")
        .with_library("libcublas.so.13")
}

#[test]
fn what_is_missing_is_named() {
    let no_build = Machine::new().with_driver(0, 13000, 1);
    no_build.lacks(&["bertft-cuda, is not beside", "--features cuda"]);
    // Were the real driver of this machine found, the tests below would be of no use.
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    Machine::new().with_program().lacks(&["driver is missing", "libcuda.so.1"]);
    Machine::new().with_program().with_driver(100, 13000, 1).lacks(&["finds no GPU"]);
    Machine::new().with_program().with_driver(0, 13000, 0).lacks(&["finds no GPU"]);
    Machine::new().with_program().with_driver(803, 13000, 1).lacks(&["does not start", "error 803"]);
    Machine::new().with_program().with_driver(0, 12040, 1).lacks(&["too old", "CUDA 12.4", "needs 13.0"]);
    let some = Machine::new().with_program().with_driver(0, 13010, 1).with_library("libcudart.so.13");
    some.lacks(&["library of CUDA is missing", "libcublas.so.13"]);
}

#[test]
fn a_usable_gpu_gets_the_command() {
    let machine = whole();
    for (device, args) in
        [("auto", "predict --model m"), ("cuda", "eval --model m --data d"), ("cuda:1", "train --config c")]
    {
        let words: Vec<&str> = args.split(' ').collect();
        let (code, out, err) = machine.run(device, &words);
        assert_eq!((code, out, err), (7, format!("on CUDA: {args}\n"), String::new()), "{device}");
    }
    let (code, out, _) = machine.run("cpu", &["predict", "--model", "./nowhere", "x.txt"]);
    assert!(code == 2 && out.is_empty());
    let (code, out, err) = machine.run("cuda:2", &["predict", "--model", "m"]);
    assert!(code == 2 && out.is_empty() && err.contains("this machine has 2 GPUs (cuda:0 to cuda:1)"), "{err}");
    let (_, info, _) = machine.run("auto", &["info", "--json"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["devices"], serde_json::json!(["cpu", "cuda:0", "cuda:1"]));
    assert_eq!(info["cuda"], serde_json::json!({"gpus": ["Imaginary 100", "Imaginary 100"], "missing": null}));
    let (_, info, _) = machine.run("auto", &["info"]);
    assert!(info.contains("cpu, cuda:0, cuda:1; chosen: auto") && info.contains("Imaginary 100"), "{info}");
}

#[test]
fn libraries_may_lie_beside_the_program() {
    let machine = whole();
    for name in ["libcudart.so.13", "libcublas.so.13"] {
        fs::rename(machine.path("lib").join(name), machine.path(name)).unwrap();
    }
    assert_eq!(machine.run("cuda", &["predict", "--model", "m"]).0, 7);
}
