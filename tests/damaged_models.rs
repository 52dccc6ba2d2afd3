//! Model directories that are damaged, contradict themselves or are of another kind: each a message that names the file
//! and says what is wrong, never a panic.

use bertft::data::config::TaskKind;
use bertft::error::{Error, Result};
use bertft::model::{LoadReport, Model, Pretrained, Task};
use bertft::nn::workspace::Space;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// A copy of the classification model of the golden fixtures.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in [WEIGHTS, CONFIG] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/classification/model");
        std::fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn load(dir: &Path) -> Result<LoadReport> {
    let pretrained = Pretrained::open(dir)?;
    let task = Task { kind: TaskKind::Classification, labels: vec!["x".into(), "y".into()] };
    Model::load(&pretrained, task, 1, Space::f32(&Device::Cpu)).map(|(_, report)| report)
}

/// Loading fails because of `file` with all of `says` in the message.
fn assert_refused(result: Result<impl std::fmt::Debug>, file: PathBuf, says: &[&str], what: &str) {
    let error = result.expect_err(what);
    let message = error.to_string();
    assert!(matches!(&error, Error::Input { file: Some(f), .. } if *f == file), "{what}: {error:?}");
    assert_eq!(error.exit_code(), 2, "{what}");
    for part in says.iter().copied().chain([file.to_str().unwrap()]) {
        assert!(message.contains(part), "{what}: {message:?} does not say {part:?}");
    }
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(CONFIG);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn edit_weights(dir: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = dir.join(WEIGHTS);
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    edit(&mut tensors);
    candle_core::safetensors::save(&tensors, path).unwrap();
}

#[test]
fn the_copy_itself_loads() {
    let folder = copy();
    assert_eq!(load(folder.path()).unwrap().initialised, ["classifier.weight", "classifier.bias"]);
}

#[test]
fn truncated_weights() {
    let folder = copy();
    let path = folder.path().join(WEIGHTS);
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for cut in [0, 5, 8, 9, header / 2, header - 1, header, header + 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let what = format!("{cut} of {} bytes", whole.len());
        assert_refused(load(folder.path()), path.clone(), &["not a whole safetensors file", "again"], &what);
    }
}

#[test]
fn weights_with_a_broken_header() {
    let folder = copy();
    let path = folder.path().join(WEIGHTS);
    let whole = std::fs::read(&path).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut broken = whole.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        broken
    };
    let mut longer = whole.clone();
    longer.push(0);
    let html = b"<!DOCTYPE html><html><body>Not found</body></html>".to_vec();
    let cases = [
        ("a header longer than the file", with(0, &u64::MAX.to_le_bytes())),
        ("a header of half its length", with(0, &((whole[0] / 2) as u64).to_le_bytes())),
        ("not UTF-8", with(12, &[0xff, 0xfe])),
        ("not JSON", with(8, b"]")),
        ("a byte too many", longer),
        ("a web page", html),
    ];
    for (what, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        assert_refused(load(folder.path()), path.clone(), &["not a whole safetensors file"], what);
    }
}

#[test]
fn no_weights() {
    let folder = copy();
    std::fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
    assert_refused(load(folder.path()), folder.path().into(), &["has no model.safetensors"], "no weights");
    for (file, framework) in [("flax_model.msgpack", "Flax"), ("tf_model.h5", "TensorFlow")] {
        std::fs::write(folder.path().join(file), "").unwrap();
        let says = ["has no model.safetensors", &format!("{file} is of {framework}: convert it")];
        assert_refused(load(folder.path()), folder.path().into(), &says, "weights of another framework");
    }
    let bin = folder.path().join("pytorch_model.bin");
    std::fs::write(&bin, "").unwrap();
    assert_refused(load(folder.path()), bin, &["not a whole file of torch.save"], "an empty file");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let weights = folder.path().join(WEIGHTS);
    std::fs::write(&weights, pointer).unwrap();
    assert_refused(load(folder.path()), weights, &["pointer of Git LFS", "git lfs pull"], "a pointer");
    let nowhere = folder.path().join("nowhere");
    assert_refused(load(&nowhere), nowhere.clone(), &["is not a directory"], "no directory");
    let error = load(tempfile::tempdir().unwrap().path()).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("has no config.json; expected"), "{error}");
    let run = tempfile::tempdir().unwrap();
    std::fs::write(run.path().join("run.json"), "{}").unwrap();
    assert_refused(
        load(run.path()),
        run.path().into(),
        &["a run that has saved no model yet"],
        "a run without a model",
    );
}

#[test]
fn weights_that_are_no_numbers() {
    let name = "bert.encoder.layer.1.output.dense.weight";
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let folder = copy();
        edit_weights(folder.path(), |tensors| {
            let mut values: Vec<f32> = tensors[name].flatten_all().unwrap().to_vec1().unwrap();
            values[17] = bad;
            tensors.insert(name.into(), Tensor::from_vec(values, tensors[name].shape(), &Device::Cpu).unwrap());
        });
        let says = [name, &format!("holds {shown} at element 17")[..], "damaged"];
        assert_refused(load(folder.path()), folder.path().join(WEIGHTS), &says, shown);
    }
    let folder = copy();
    edit_weights(folder.path(), |tensors| {
        let integers = tensors[name].to_dtype(candle_core::DType::I64).unwrap();
        tensors.insert(name.into(), integers);
    });
    let says = [name, "I64", "expected F32, F16 or BF16"];
    assert_refused(load(folder.path()), folder.path().join(WEIGHTS), &says, "integers");
}

/// Sizes that do not fit the weights; the last ones would not fit the memory either.
#[test]
fn a_config_that_does_not_fit_the_weights() {
    let missing = &["16 tensors are missing", "layer.3.", "config.json does not match"][..];
    let shape = &["has shape", "config.json says"][..];
    let cases = [
        (json!({"num_hidden_layers": 4}), missing),
        (json!({"num_hidden_layers": 900}), &["tensors are missing", "config.json does not match"][..]),
        (json!({"hidden_size": 28}), shape),
        (json!({"hidden_size": 12}), shape),
        (json!({"vocab_size": 61}), &["word_embeddings.weight has shape [60, 24], config.json says [61, 24]"][..]),
        (json!({"max_position_embeddings": 512}), shape),
        (json!({"type_vocab_size": 1}), shape),
        (json!({"intermediate_size": 96}), shape),
        (json!({"vocab_size": 1 << 24, "hidden_size": 1 << 24}), shape),
        (json!({"intermediate_size": 1 << 24}), shape),
    ];
    for (change, says) in cases {
        let folder = copy();
        edit_config(folder.path(), |c| c.as_object_mut().unwrap().extend(change.as_object().unwrap().clone()));
        assert_refused(load(folder.path()), folder.path().join(WEIGHTS), says, &change.to_string());
    }
    // Fewer layers are a model of their own; the report says what is left out.
    let folder = copy();
    edit_config(folder.path(), |c| c["num_hidden_layers"] = 2.into());
    let report = load(folder.path()).unwrap();
    assert_eq!(report.unused.len(), 16);
    assert!(report.unused.iter().all(|n| n.contains("layer.2.")), "{:?}", report.unused);
}

#[test]
fn a_config_that_no_model_has() {
    let cases = [
        (json!({"model_type": "t5"}), &["model_type \"t5\"", "supported: bert"][..]),
        (json!({"model_type": null}), &["no model_type", "supported: bert"][..]),
        (json!({"num_hidden_layers": 0}), &["num_hidden_layers is 0"][..]),
        (json!({"num_hidden_layers": 1 << 24}), &["num_hidden_layers is 16777216"][..]),
        (json!({"num_attention_heads": 5}), &["not a multiple of num_attention_heads 5"][..]),
        (json!({"hidden_size": "many"}), &["invalid type"][..]),
        (json!({"id2label": {"0": "cold", "2": "dull"}}), &["id2label entry \"2\"", "0 to 1"][..]),
        (json!({"id2label": {"0": "cold", "x": "dull"}}), &["id2label entry \"x\""][..]),
        (json!({"id2label": {"0": "cold", "1": 7}}), &["id2label entry \"1\""][..]),
        (json!({"architectures": ["BertForMultipleChoice"]}), &["BertForMultipleChoice is no classifier"][..]),
    ];
    for (change, says) in cases {
        let folder = copy();
        edit_config(folder.path(), |c| c.as_object_mut().unwrap().extend(change.as_object().unwrap().clone()));
        let result = Pretrained::open(folder.path()).and_then(|p| p.task());
        assert_refused(result, folder.path().join(CONFIG), says, &change.to_string());
    }
    let folder = copy();
    let text = std::fs::read_to_string(folder.path().join(CONFIG)).unwrap();
    std::fs::write(folder.path().join(CONFIG), text.replace("\"hidden_size\": 24,", "\"hidden_size\" 24,")).unwrap();
    let error = load(folder.path()).unwrap_err();
    let line = text.lines().position(|l| l.contains("\"hidden_size\"")).unwrap() as u64 + 1;
    assert!(matches!(&error, Error::Input { line: Some(l), .. } if *l == line), "{error:?}");
}

/// What only fine-tuned directories have.
#[test]
fn tasks_that_are_not_in_the_directory() {
    let task = |edit: &dyn Fn(&mut Value)| {
        let folder = copy();
        edit_config(folder.path(), edit);
        let result = Pretrained::open(folder.path()).and_then(|p| p.task());
        (result, folder.path().join(CONFIG))
    };
    let (result, file) = task(&|c| c["id2label"] = json!({"0": "cold", "1": "dull"}));
    assert_refused(result, file, &["id2label has 2 labels, but classifier.weight is for 5; write"], "two labels");
    for (kind, says) in [("ranking", "with 5 outputs is not in this version"), ("regression", "with 5")] {
        let (result, file) = task(&|c| c["problem_type"] = kind.into());
        assert_refused(result, file, &[says, kind], kind);
    }
}
