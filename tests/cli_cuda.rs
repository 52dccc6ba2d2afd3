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

    /// The program with the kernels for CUDA 13.0: tells its arguments.
    fn with_program(self) -> Self {
        self.with_script(13000, "echo \"on CUDA: $*\"\nexit 7\n")
    }

    /// A program that says it has kernels for CUDA `version`, and names the libraries that it would load.
    fn with_script(self, version: i32, script: &str) -> Self {
        let path = self.path("bertft-cuda");
        // Each ends in a zero, as in a program; the shell never comes to them.
        let says = format!("bertft with kernels for CUDA {version}\0libcudart.so.13\0libcublas.so.13\0");
        fs::write(&path, format!("#!/bin/sh\n{script}\nexit\n{says}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// A driver for CUDA `version` that starts with `status` and finds GPUs of this compute capability (times ten).
    fn with_driver(self, status: i32, version: i32, gpus: &[i32]) -> Self {
        let (count, capabilities) = (gpus.len(), gpus.iter().map(|n| format!("{n}, ")).collect::<String>());
        let source = format!(
            "#include <string.h>\n\
             int cuInit(unsigned flags) {{ return {status}; }}\n\
             int cuDriverGetVersion(int *to) {{ *to = {version}; return 0; }}\n\
             int cuDeviceGetCount(int *to) {{ *to = {count}; return 0; }}\n\
             int cuDeviceGet(int *to, int i) {{ *to = i; return 0; }}\n\
             int cuDeviceGetName(char *to, int len, int i) {{ strcpy(to, \"Imaginary 100\"); return 0; }}\n\
             int cuDeviceGetAttribute(int *to, int which, int i) {{\n\
               int of[] = {{ {capabilities} 0 }};\n\
               if (which != 75 && which != 76) return 1;\n\
               *to = which == 75 ? of[i] / 10 : of[i] % 10;\n\
               return 0;\n\
             }}\n"
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

    /// That `cuda` is refused with these words, `auto` stays on the CPU, with a warning if a GPU is there, and `info` says why.
    fn lacks(&self, words: &[&str], has_gpu: bool) {
        // The model has no head yet: the CPU says so.
        let predict = ["predict", "--model", MODEL];
        let (code, out, err) = self.run("cuda", &predict);
        assert!(code == 2 && out.is_empty() && words.iter().all(|w| err.contains(w)), "{code} {err}");
        let (code, out, err) = self.run("auto", &predict);
        assert!(code == 2 && out.is_empty() && err.contains("no classifier"), "{code} {err}");
        let told = err.contains("warning: computing on the CPU") && words.iter().all(|w| err.contains(w));
        assert!(told == has_gpu && (has_gpu || !err.contains("CUDA")), "{err}");
        let (code, out, _) = self.run("auto", &["info"]);
        assert!(code == 0 && out.contains("devices       cpu;") && words.iter().all(|w| out.contains(w)), "{out}");
    }
}

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/bert-tiny-4l-128h");

fn whole() -> Machine {
    Machine::new()
        .with_program()
        .with_driver(0, 13000, &[90, 80])
        .with_library("libcudart.so.13")
        .with_library("libcublas.so.13")
}

#[test]
fn what_is_missing_is_named() {
    let no_build = Machine::new().with_driver(0, 13000, &[90]);
    no_build.lacks(&["bertft-cuda, is not beside", "--features cuda"], false);
    // Were the real driver of this machine found, the tests below would be of no use.
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    Machine::new().with_program().lacks(&["driver is missing", "libcuda.so.1"], false);
    Machine::new().with_program().with_driver(100, 13000, &[90]).lacks(&["finds no GPU"], false);
    Machine::new().with_program().with_driver(0, 13000, &[]).lacks(&["finds no GPU"], false);
    let driver = |machine: Machine, version| machine.with_driver(0, version, &[90]);
    Machine::new().with_program().with_driver(803, 13000, &[90]).lacks(&["does not start", "error 803"], true);
    driver(Machine::new().with_program(), 12040).lacks(&["too old", "CUDA 12.4", "needs 13.0"], true);
    let newer = driver(Machine::new().with_script(13010, "exit 7"), 13000);
    newer.lacks(&["too old", "CUDA 13.0", "needs 13.1"], true);
    let some = driver(Machine::new().with_program(), 13010).with_library("libcudart.so.13");
    some.lacks(&["library of CUDA is missing", "libcublas.so.13"], true);
    whole().with_driver(0, 13000, &[75]).lacks(&["compute capability is 7.5", "need 8.0"], true);
}

/// A program without CUDA under the name of the one with it must not start itself for ever.
#[test]
fn a_program_without_cuda_is_not_taken_for_one() {
    let copy = whole();
    fs::remove_file(copy.path("bertft-cuda")).unwrap();
    fs::copy(copy.path("bertft"), copy.path("bertft-cuda")).unwrap();
    copy.lacks(&["bertft-cuda has no CUDA in it", "--features cuda"], true);
    // Nor where it looks like one until it is started.
    let script = "exec \"$(dirname \"$0\")/bertft\" \"$@\"\n";
    let machine = whole().with_script(13000, script);
    let predict = ["predict", "--model", MODEL];
    let (code, out, err) = machine.run("cuda", &predict);
    assert!(code == 2 && out.is_empty() && err.contains("has no CUDA in it"), "{code} {err}");
    let (code, _, err) = machine.run("auto", &predict);
    assert!(
        code == 2 && err.contains("warning: computing on the CPU") && err.contains("no classifier"),
        "{code} {err}"
    );
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
    assert!(info.contains("cpu, cuda:0, cuda:1; chosen: auto"), "{info}");
    assert!(info.contains("Imaginary 100 (compute capability 9.0), Imaginary 100 (compute capability 8.0)"), "{info}");
    // Of two GPUs one may be too old.
    let machine = machine.with_driver(0, 13000, &[90, 70]);
    let (code, _, err) = machine.run("cuda:1", &["predict", "--model", "m"]);
    assert!(code == 2 && err.contains("cuda:1, Imaginary 100, is too old"), "{err}");
    assert_eq!(machine.run("auto", &["predict", "--model", "m"]).0, 7);
    assert!(machine.run("auto", &["info"]).1.contains("cpu, cuda:0; chosen"));
}

#[test]
fn libraries_may_lie_beside_the_program() {
    let machine = whole();
    for name in ["libcudart.so.13", "libcublas.so.13"] {
        fs::rename(machine.path("lib").join(name), machine.path(name)).unwrap();
    }
    assert_eq!(machine.run("cuda", &["predict", "--model", "m"]).0, 7);
}
