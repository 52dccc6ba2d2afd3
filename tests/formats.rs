//! One model in every format of weights: the same tensors (`golden/make_formats.py`).

#[allow(dead_code)] // not every test file uses all of it
mod common;

use bertft::error::Result;
use bertft::model::{Model, Pretrained};
use bertft::nn::workspace::Space;
use candle_core::{DType, Device, Tensor};
use common::{dataset, fixture, floats};
use half::{bf16, f16};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

/// The config of the fixture `roberta` with other weights.
fn directory(weights: &[(&str, &Path)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str, from: &Path| std::fs::copy(from, dir.path().join(name)).unwrap();
    copy("config.json", &fixture("roberta", "model/config.json"));
    for (name, from) in weights {
        copy(name, from);
    }
    dir
}

/// All weights, and the logits of the fixture's rows.
fn load(dir: &Path) -> Result<(Vec<f32>, Vec<f32>)> {
    let pretrained = Pretrained::open(dir)?;
    let (mut model, report) = Model::load(&pretrained, pretrained.task()?, 1, Space::f32(&Device::Cpu))?;
    assert_eq!((report.initialised, report.unused), (vec![], vec![]));
    let data = dataset("roberta");
    let rows: Vec<usize> = (0..data.len()).collect();
    let logits = floats(&model.logits(&data.batch(&rows)).unwrap());
    Ok((floats(model.params.weights()), logits))
}

fn message(dir: &Path) -> String {
    load(dir).unwrap_err().to_string()
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture("roberta", "model/model.safetensors"), &Device::Cpu).unwrap()
}

#[test]
fn all_formats_give_the_same_model() {
    let whole = load(&fixture("roberta", "model")).unwrap();
    for name in ["new.bin", "old.bin"] {
        let file = fixture("formats", name);
        let dir = directory(&[("pytorch_model.bin", &file)]);
        assert_eq!(load(dir.path()).unwrap(), whole, "{name}");
    }
    // Safetensors are preferred to what torch.save wrote.
    let good = fixture("roberta", "model/model.safetensors");
    let dir = directory(&[("model.safetensors", &good), ("pytorch_model.bin", &fixture("roberta", "batch.json"))]);
    assert_eq!(load(dir.path()).unwrap(), whole);
}

#[test]
fn shards_are_one_model() {
    let whole = load(&fixture("roberta", "model")).unwrap();
    let mut names: Vec<String> = tensors().into_keys().collect();
    names.sort();
    let dir = directory(&[]);
    let shard = |name: &String| format!("model-0000{}-of-00003.safetensors", 1 + name.len() % 3);
    for at in 0..3 {
        let part: HashMap<_, _> = tensors().into_iter().filter(|(name, _)| name.len() % 3 == at).collect();
        assert!(!part.is_empty());
        candle_core::safetensors::save(&part, dir.path().join(format!("model-0000{}-of-00003.safetensors", 1 + at)))
            .unwrap();
    }
    let index = |file: &dyn Fn(&String) -> String| {
        let map: serde_json::Map<_, _> = names.iter().map(|n| (n.clone(), file(n).into())).collect();
        json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
    };
    let path = dir.path().join("model.safetensors.index.json");
    std::fs::write(&path, index(&shard)).unwrap();
    assert_eq!(load(dir.path()).unwrap(), whole);

    std::fs::write(&path, index(&|_| shard(&names[0]))).unwrap();
    assert!(message(dir.path()).contains("lacks tensor"), "{}", message(dir.path()));
    std::fs::write(&path, index(&|_| "../../etc/passwd".into())).unwrap();
    assert!(message(dir.path()).contains("not a plain file name"), "{}", message(dir.path()));
    std::fs::write(&path, "{").unwrap();
    assert!(message(dir.path()).contains("index.json: is not an index of shards"), "{}", message(dir.path()));
    std::fs::write(&path, index(&shard)).unwrap();
    std::fs::remove_file(dir.path().join(shard(&names[0]))).unwrap();
    assert!(
        message(dir.path()).contains("is missing, but model.safetensors.index.json names it"),
        "{}",
        message(dir.path())
    );

    // Both containers of torch.save as shards of one model.
    let (new, old) = (fixture("formats", "new.bin"), fixture("formats", "old.bin"));
    let dir = directory(&[("pytorch_model-1.bin", &new), ("pytorch_model-2.bin", &old)]);
    let text = index(&|name| format!("pytorch_model-{}.bin", 1 + name.len() % 2));
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), text).unwrap();
    assert_eq!(load(dir.path()).unwrap(), whole);
}

#[test]
fn half_precision_is_widened_value_by_value() {
    for dtype in [DType::F16, DType::BF16] {
        let round = |v: f32| if dtype == DType::F16 { f16::from_f32(v).to_f32() } else { bf16::from_f32(v).to_f32() };
        let [narrow, widened] = [dtype, DType::F32].map(|to| {
            let values = |t: Tensor| floats(&t).into_iter().map(round).collect::<Vec<_>>();
            let cast =
                |t: Tensor| Tensor::from_vec(values(t.clone()), t.shape(), &Device::Cpu).unwrap().to_dtype(to).unwrap();
            let all: HashMap<_, _> = tensors().into_iter().map(|(name, t)| (name, cast(t))).collect();
            let dir = directory(&[]);
            candle_core::safetensors::save(&all, dir.path().join("model.safetensors")).unwrap();
            load(dir.path()).unwrap()
        });
        assert_eq!(narrow, widened, "{dtype:?}");
    }
}
