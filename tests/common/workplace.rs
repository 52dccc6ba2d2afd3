//! A directory in which the program is run.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

pub struct Workplace(TempDir);

impl Workplace {
    /// With a config `c.toml`.
    pub fn new(toml: &str) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        fs::write(this.path("c.toml"), toml).unwrap();
        this
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Exit code, standard output and standard error.
    pub fn run(&self, args: &[&str], input: &str) -> (i32, String, String) {
        let mut command = Command::cargo_bin("bertft").unwrap();
        let output = command.current_dir(self.0.path()).args(args).write_stdin(input).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code().unwrap(), out, err)
    }

    /// The lines of standard output of a run that succeeds.
    #[track_caller]
    pub fn json(&self, args: &[&str], input: &str) -> Vec<Value> {
        let (code, out, err) = self.run(args, input);
        assert_eq!(code, 0, "{out}{err}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A run that is refused as wrong input with a message that has these parts.
    #[track_caller]
    pub fn refused(&self, args: &[&str], says: &[&str]) {
        let (code, out, err) = self.run(args, "");
        assert!(code == 2 && says.iter().all(|s| err.contains(s)), "{code}, no {says:?} in {out}{err}");
    }
}
