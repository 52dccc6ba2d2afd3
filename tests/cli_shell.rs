//! What `bertft completions` and `bertft man` make for a shell and a reader: every command is in it.

use assert_cmd::Command;
use std::fs;

const COMMANDS: [&str; 9] = ["train", "check", "eval", "predict", "config", "models", "info", "completions", "man"];
const CONFIG_COMMANDS: [&str; 4] = ["init", "show", "validate", "schema"];

fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("bertft").unwrap().args(args).env_remove("BERTFT_DEVICE").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The commands that `--help` lists, which are all.
#[test]
fn the_commands_are_those_of_help() {
    let listed = |help: &str| -> Vec<String> {
        let lines = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
        lines.filter(|l| !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next().map(String::from)).collect()
    };
    assert_eq!(listed(&run(&["--help"]).1), [&COMMANDS[..], &["help"]].concat());
    assert_eq!(listed(&run(&["config", "--help"]).1), [&CONFIG_COMMANDS[..], &["help"]].concat());
}

#[test]
fn every_shell_gets_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, stderr) = run(&["completions", shell]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{shell}");
        for word in COMMANDS.iter().chain(&CONFIG_COMMANDS).chain(&["overwrite", "threads"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let (_, json, _) = run(&["completions", shell, "--json"]);
        let event: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((event["shell"].as_str(), event["script"].as_str()), (Some(shell), Some(script.as_str())));
    }
    let (code, _, stderr) = run(&["completions", "csh"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("bash, elvish, fish, powershell, zsh"), "{stderr}");
}

#[test]
fn every_command_gets_a_page() {
    let (code, page, stderr) = run(&["man"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(page.contains(".TH bertft 1") && !page.contains("help(1)"), "{page}");
    for command in COMMANDS {
        assert!(page.contains(&format!("bertft\\-{command}(1)")), "{command}: {page}");
    }

    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("share/man1");
    let (code, stdout, stderr) = run(&["man", "--output", dir.to_str().unwrap()]);
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    let commands = COMMANDS.map(|c| format!("bertft-{c}"));
    let pages =
        commands.into_iter().chain(CONFIG_COMMANDS.map(|c| format!("bertft-config-{c}"))).chain(["bertft".into()]);
    let mut expected: Vec<String> = pages.map(|name| format!("{name}.1")).collect();
    expected.sort();
    let mut found: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, expected);
    let train = fs::read_to_string(dir.join("bertft-train.1")).unwrap();
    assert!(train.contains("\\-\\-config") && train.contains("\\-\\-device"), "{train}");

    fs::write(place.path().join("file"), "").unwrap();
    let (code, _, stderr) = run(&["man", "--output", place.path().join("file").to_str().unwrap()]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("file"), "{stderr}");
}
