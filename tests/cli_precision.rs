//! bf16, recomputed activations, frozen modules and the memory estimate as users see them.

use assert_cmd::Command;
use bertft::encoders::{Encoder, EncoderConfig};
use bertft::nn::params::{Init, Layout, Spec};
use bertft::ops::gemm::bf16_engine;
use bertft::rng::normal;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A config over the example model and 400 rows of Banking77.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let all = fs::read_to_string(Path::new(ROOT).join("examples/data/banking77/test.csv")).unwrap();
    let rows: Vec<&str> = all.lines().filter(|l| !l.starts_with('"') && l.matches('"').count() % 2 == 0).collect();
    let part = |rows: &[&str]| rows.iter().map(|r| format!("{r}\n")).collect::<String>();
    fs::write(dir.path().join("train.csv"), part(&rows[..400])).unwrap();
    fs::write(dir.path().join("dev.csv"), format!("{}\n{}", rows[0], part(&rows[1..40]))).unwrap();
    let config = format!(
        "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"classification\"\n[data]\n\
         train = \"train.csv\"\neval = \"dev.csv\"\nlabel = \"category\"\n[train]\nmax_steps = 8\nbatch_size = 32\n\
         learning_rate = 1e-3\nsave_steps = 4\nsave_total_limit = 0\n[output]\ndir = \"run\"\n"
    );
    fs::write(dir.path().join("c.toml"), config).unwrap();
    dir
}

/// Runs `bertft` in `dir`; `level` overrides the CPU's.
fn run(dir: &TempDir, args: &[&str], level: Option<&str>) -> (i32, Vec<Value>, String) {
    let mut command = Command::cargo_bin("bertft").unwrap();
    if let Some(level) = level {
        command.env("BERTFT_CPU", level);
    }
    let output = command.current_dir(dir.path()).args(args).args(["--json"]).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let events = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (output.status.code().unwrap(), events, out)
}

fn train(dir: &TempDir, out: &str, more: &[&str]) -> Vec<Value> {
    let args = [&["train", "--config", "c.toml", "--output", out], more].concat();
    let (code, events, text) = run(dir, &args, None);
    assert_eq!(code, 0, "{text}");
    events
}

fn metrics(dir: &TempDir, out: &str) -> String {
    fs::read_to_string(dir.path().join(out).join("metrics.json")).unwrap()
}

#[test]
fn bf16_trains_resumes_and_scores_where_the_cpu_has_it() {
    let dir = workplace();
    let bf16 = ["--set", "train.precision=bf16"];
    let events = train(&dir, "run", &bf16);
    let here = if bf16_engine().is_some() { "bf16" } else { "f32" };
    assert_eq!(events[0]["precision"], here);
    let warned = events.iter().any(|e| e["event"] == "warning" && e["message"].as_str().unwrap().contains("bf16"));
    assert_eq!(warned, here == "f32");

    // A run that was cut after its first checkpoint goes on to the same bits.
    let cut = dir.path().join("cut");
    train(&dir, "cut", &bf16);
    fs::remove_dir_all(cut.join("checkpoints/step-8")).unwrap();
    train(&dir, "cut", &[&bf16[..], &["--resume"]].concat());
    assert_eq!(metrics(&dir, "cut"), metrics(&dir, "run"));
    let weights = |run: &str| fs::read(dir.path().join(run).join("model/model.safetensors")).unwrap();
    assert!(weights("cut") == weights("run"));

    let score = |precision: &str| {
        let args = ["eval", "--model", "run", "--data", "dev.csv", "--precision", precision];
        let (code, events, text) = run(&dir, &args, None);
        assert_eq!(code, 0, "{text}");
        events.last().unwrap()["metrics"]["loss"].as_f64().unwrap()
    };
    let (exact, rounded) = (score("f32"), score("bf16"));
    assert!((exact / rounded - 1.0).abs() < 0.02, "{exact} {rounded}");
    assert_eq!(exact != rounded, here == "bf16");
}

#[test]
fn without_bf16_products_a_note_says_that_f32_is_used() {
    let dir = workplace();
    let train = ["train", "--config", "c.toml", "--set", "train.precision=bf16"];
    let (code, events, text) = run(&dir, &train, Some("avx2"));
    assert_eq!((code, &events[0]["precision"]), (0, &Value::from("f32")), "{text}");
    assert!(events.iter().any(|e| e["event"] == "warning" && e["message"].as_str().unwrap().contains("f32")), "{text}");
    let (code, _, text) =
        run(&dir, &["eval", "--model", "run", "--data", "dev.csv", "--precision", "bf16"], Some("avx2"));
    assert!(code == 0 && text.contains("warning"), "{text}");
    // To go on in the other format would not be the same run.
    if bf16_engine().is_some() {
        let (code, _, text) = run(&dir, &[&train[..], &["--resume"]].concat(), None);
        assert!(code == 2 && text.contains("train.precision"), "{text}");
    }
}

#[test]
fn recomputed_activations_change_memory_and_nothing_else() {
    let dir = workplace();
    let set = |value: &str| train(&dir, value, &["--set", &format!("train.gradient_checkpointing={value}")]);
    let (kept, recomputed) = (set("false"), set("true"));
    assert_eq!(metrics(&dir, "true"), metrics(&dir, "false"));
    let estimate = |events: &[Value]| events[0]["estimated_growth_bytes"].as_f64().unwrap();
    assert!(estimate(&recomputed) < estimate(&kept));
}

/// `modern` in the workplace: random weights in the shape of ModernBERT, with the example's tokenizer.
fn modern(dir: &TempDir) {
    let model = dir.path().join("modern");
    fs::create_dir(&model).unwrap();
    let config = json!({"model_type": "modernbert", "vocab_size": 30522, "hidden_size": 128, "num_attention_heads": 4,
        "num_hidden_layers": 8, "intermediate_size": 192, "max_position_embeddings": 512, "mlp_dropout": 0.1});
    let parsed = EncoderConfig::from_json(&config, Path::new("config.json")).unwrap();
    let mut layout = Layout::default();
    Encoder::new(&mut layout, parsed);
    let weights = |spec: &Spec| match spec.init {
        Init::Normal => normal(1, &spec.name, spec.len(), 0.05, f64::INFINITY),
        _ => vec![1.0; spec.len()],
    };
    let tensor = |spec: &Spec| Tensor::from_vec(weights(spec), spec.shape.as_slice(), &Device::Cpu).unwrap();
    let tensors: HashMap<_, _> = layout.specs().iter().map(|spec| (spec.name.clone(), tensor(spec))).collect();
    candle_core::safetensors::save(&tensors, model.join("model.safetensors")).unwrap();
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(format!("{ROOT}/examples/models/bert-tiny-4l-128h/{file}"), model.join(file)).unwrap();
    }
}

#[test]
fn the_estimate_of_memory_is_within_15_percent() {
    let dir = workplace();
    modern(&dir);
    for more in [
        &["--set", "train.batch_size=256", "--set", "model.path=modern"][..],
        &["--set", "train.batch_size=64", "--set", "train.r_drop=1", "--set", "train.ema_decay=0.9"],
        &["--set", "train.batch_size=64", "--set", "train.fgm_epsilon=1", "--set", "model.path=modern"],
        &["--set", "train.batch_size=64"],
        &["--set", "train.batch_size=64", "--set", "train.precision=bf16"],
        &["--set", "train.batch_size=256", "--set", "train.gradient_checkpointing=true"],
        &["--set", "train.batch_size=4", "--set", "train.weight_decay=0.1"],
    ] {
        let events = train(&dir, "run", &[more, &["--overwrite", "--threads", "2"]].concat());
        let estimate = events[0]["estimated_peak_rss_bytes"].as_f64().unwrap();
        let peak = events.last().unwrap()["peak_rss_bytes"].as_f64().unwrap();
        assert!((estimate / peak - 1.0).abs() < 0.15, "{more:?}: estimated {estimate:e}, was {peak:e}");
    }
}

#[test]
fn frozen_modules_are_counted_and_wrong_ones_refused() {
    let dir = workplace();
    let events = train(&dir, "run", &["--set", "train.freeze=[\"embeddings\", \"encoder.layer.0\"]"]);
    let (all, trained) = (&events[0]["parameters"], &events[0]["trainable_parameters"]);
    assert!(trained.as_u64().unwrap() * 2 < all.as_u64().unwrap(), "{trained} of {all}");
    for args in [vec!["train", "--config", "c.toml", "--overwrite"], vec!["config", "validate", "--config", "c.toml"]] {
        let (code, _, text) = run(&dir, &[&args[..], &["--set", "train.freeze=[\"encoder.layer.9\"]"]].concat(), None);
        assert!(code == 2 && text.contains("encoder.layer.9"), "{text}");
    }
}
