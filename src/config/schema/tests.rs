//! The schema against the loader, which decides: the same keys, ranges, names and defaults; and against the configs at hand.

use super::super::source::keys_of;
use super::super::*;
use super::*;
use boon::{Compiler, SchemaIndex, Schemas};
use std::fs;
use tempfile::TempDir;

struct Validator(Schemas, SchemaIndex);

impl Validator {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("mem:///bertft.schema.json", schema()).unwrap();
        let index = compiler.compile("mem:///bertft.schema.json", &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn check(&self, config: &str) -> Result<(), String> {
        let value: Value = toml::from_str(config).unwrap_or_else(|e| panic!("{config}: {e}"));
        self.0.validate(&value, self.1).map_err(|e| e.to_string())
    }
}

/// A directory with a config that has nothing but what must be there, and eval data.
struct Place(TempDir);

impl Place {
    const CONFIG: &str = "[model]\npath = \"model\"\n[task]\nkind = \"classification\"\n[data]\ntrain = \"a.csv\"\n\
                          eval = \"b.csv\"\n[output]\ndir = \"runs/x\"\n";

    /// Keys that another task does not have.
    const OF_SPAN: [&str; 4] =
        ["data.doc_stride", "eval.n_best_size", "eval.max_answer_length", "eval.null_score_diff_threshold"];

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("c.toml"), Self::CONFIG).unwrap();
        Self(dir)
    }

    fn load(&self, key: &str, value: &Value) -> Result<RunConfig, String> {
        let mut set = vec![format!("{key}={}", if value.is_string() { value.to_string() } else { toml(value) })];
        if Self::OF_SPAN.contains(&key) {
            set.extend(["task.kind=span".into(), "data.format=squad".into()]);
        }
        RunConfig::load(&self.0.path().join("c.toml"), &set).map_err(|e| e.to_string())
    }
}

fn toml(value: &Value) -> String {
    toml::Value::try_from(value).unwrap().to_string()
}

/// All keys with their paths and schemas.
fn keys() -> Vec<(String, Value)> {
    let schema = schema();
    let tables = schema["properties"].as_object().unwrap().iter();
    let keys = tables.flat_map(|(table, s)| {
        let keys = s["properties"].as_object().unwrap().iter();
        keys.map(move |(key, s)| (format!("{table}.{key}"), s.clone()))
    });
    keys.collect()
}

#[test]
fn every_table_has_the_keys_of_the_loader() {
    let schema = schema();
    let names = |s: &Value| s["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(names(&schema), keys_of::<RunConfig>());
    let tables = [
        ("model", keys_of::<ModelConfig>()),
        ("task", keys_of::<TaskConfig>()),
        ("data", keys_of::<DataConfig>()),
        ("train", keys_of::<TrainConfig>()),
        ("eval", keys_of::<EvalConfig>()),
        ("output", keys_of::<OutputConfig>()),
    ];
    assert_eq!(names(&schema), tables.each_ref().map(|(table, _)| table.to_string()));
    for (table, keys) in tables {
        assert!(!keys.is_empty(), "{table}");
        assert_eq!(names(&schema["properties"][table]), keys, "{table}");
        assert_eq!(schema["properties"][table]["additionalProperties"], false, "{table}");
    }
    assert_eq!(schema["additionalProperties"], false);
    for (key, s) in keys() {
        assert!(s["description"].as_str().is_some_and(|d| d.ends_with('.') && !d.contains("[`")), "{key}: {s}");
        let kinds = ["type", "anyOf", "oneOf", "enum"];
        assert!(kinds.iter().any(|kind| s.get(kind).is_some()), "{key}: {s}");
    }
    assert!(!schema.to_string().contains("\"null\"") && !schema.to_string().contains(":null"), "{schema:#}");
    assert!(!schema.to_string().contains("$ref"), "{schema:#}");
}

#[test]
fn the_loader_accepts_every_default_and_it_changes_nothing() {
    let place = Place::new();
    let plain = place.load("output.dir", &json!("runs/x")).unwrap();
    let defaults: Vec<_> = keys().into_iter().filter_map(|(key, s)| Some((key, s.get("default")?.clone()))).collect();
    assert!(defaults.len() > 20, "{defaults:?}");
    for (key, default) in defaults {
        assert_eq!(place.load(&key, &default).as_ref(), Ok(&plain), "{key} = {default}");
    }
}

#[test]
fn ranges_are_those_of_the_loader() {
    let place = Place::new();
    let mut numbers = 0;
    for (key, s) in keys() {
        // Of several forms the numeric one; a column's index is no range to speak of.
        let forms = s["anyOf"].as_array().cloned().unwrap_or(vec![s.clone()]);
        let Some(form) = forms.iter().find(|f| f["type"] == "integer" || f["type"] == "number") else { continue };
        numbers += 1;
        if key == "eval.null_score_diff_threshold" {
            continue; // a difference may be any number
        }
        let step = if form["type"] == "integer" { 1.0 } else { 0.001 };
        let number = |x: f64| if form["type"] == "integer" { json!(x as i64) } else { json!(x) };
        let limits = [
            ("minimum", -step, true),
            ("exclusiveMinimum", 0.0, true),
            ("maximum", step, false),
            ("exclusiveMaximum", 0.0, false),
        ];
        let mut low = false;
        for (limit, out, is_low) in limits {
            let Some(at) = form[limit].as_f64() else { continue };
            low |= is_low;
            let outside = number(at + out);
            assert!(place.load(&key, &outside).is_err(), "{key} = {outside}");
            let inside = number(if out == 0.0 { at + if is_low { 0.001 } else { -0.001 } } else { at });
            assert!(place.load(&key, &inside).is_ok(), "{key} = {inside}: {:?}", place.load(&key, &inside));
        }
        assert!(low, "{key} has no lower limit: {s}");
    }
    assert!(numbers > 20, "{numbers}");
}

#[test]
fn names_are_those_of_the_loader() {
    let place = Place::new();
    let mut found = 0;
    for (key, s) in keys() {
        let consts = s["oneOf"].as_array().into_iter().flatten().map(|form| form["const"].clone());
        let names: Vec<Value> = consts.chain(s["enum"].as_array().cloned().unwrap_or_default()).collect();
        for name in &names {
            found += 1;
            // A name may need another key beside it, which the message says.
            let result = place.load(&key, name);
            let known = result.as_ref().map_or_else(
                |e| {
                    e.contains("; add ")
                        || e.contains("feature")
                        || e.contains("set it to one")
                        || e.contains("or mcc for classification")
                        || e.contains("; remove the key")
                },
                |_| true,
            );
            assert!(known, "{key} = {name}: {result:?}");
        }
        if !names.is_empty() {
            let error = place.load(&key, &json!("xyz")).unwrap_err();
            let offered = error.split_once("expected one of ").map_or(vec![], |(_, names)| names.split(", ").collect());
            assert_eq!(names, offered, "{key}: {error}");
        }
    }
    assert!(found > 15, "{found}");
}

#[test]
fn every_config_at_hand_is_valid() {
    let validator = Validator::new();
    let mut files = 0;
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            files += 1;
            assert_eq!(validator.check(&fs::read_to_string(&path).unwrap()), Ok(()), "{}", path.display());
        }
    }
    assert!(files > 10, "{files}");
    assert_eq!(validator.check(Place::CONFIG), Ok(()));
}

#[test]
fn every_form_of_a_value_is_valid() {
    let validator = Validator::new();
    let data = "text = [\"title\", 1]\ntext_pair = 2\nlabel = \"l\"\ndelimiter = \"\\t\"\nencoding = \"latin-1\"\n\
                format = \"csv\"\non_bad_row = \"skip\"\nlabels = [\"a\", \"b\"]\nrename_labels = { a = \"b\" }\n\
                pattern = '^(?P<text>.*)$'\n";
    for (files, eval) in [
        ("\"a.csv\"", "0.1"),
        ("[\"a.csv\", \"b-*.csv\"]", "[\"c.csv\"]"),
        ("\"-\"", "{ dev = \"d.csv\", web = [\"e.csv\", \"f.csv\"] }"),
    ] {
        for weights in ["\"balanced\"", "{ a = 2, b = 0.5 }"] {
            let config = format!(
                "[model]\npath = \"m\"\n[task]\nkind = \"regression\"\n[data]\ntrain = {files}\neval = {eval}\n{data}\
                 [train]\nclass_weights = {weights}\nepochs = 0.5\nsave_total_limit = 0\nfreeze = [\"embeddings\"]\n\
                 [eval]\nslice_by = 3\ntune_threshold = \"f1\"\n[output]\ndir = \"x\"\n"
            );
            assert_eq!(validator.check(&config), Ok(()), "{config}");
        }
    }
}

#[test]
fn wrong_configs_are_not_valid() {
    let validator = Validator::new();
    for (table, wrong) in [
        ("train", "learning_rat = 1e-5"),
        ("train", "epochs = \"three\""),
        ("train", "epochs = 0"),
        ("train", "batch_size = 8.5"),
        ("train", "batch_size = 0"),
        ("train", "lr_scheduler_type = \"cosin\""),
        ("train", "precision = \"fp16\""),
        ("train", "group_by_length = 1"),
        ("train", "label_smoothing_factor = 1.0"),
        ("train", "class_weights = \"balance\""),
        ("train", "class_weights = { a = 0 }"),
        ("eval", "tune_threshold = \"recall\""),
        ("eval", "slice_by = true"),
        ("model", "path = \"\""),
        ("data", "text = []"),
        ("data", "text_pair = \"\""),
        ("data", "label = -1"),
        ("data", "test = 3"),
        ("data", "header = \"no\""),
        ("data", "delimiter = \";;\""),
        ("data", "delimiter = '\"'"),
        ("data", "delimiter = \"é\""),
        ("data", "pattern = \"(.*)\""),
        ("data", "format = \"xml\""),
        ("data", "on_bad_row = \"ignore\""),
        ("data", "labels = [\"one\"]"),
        ("data", "max_length = 2"),
        ("task", "kinds = \"regression\""),
        ("xyz", "a = 1"),
    ] {
        let mut config: toml::Table = toml::from_str(Place::CONFIG).unwrap();
        let value: toml::Table = toml::from_str(wrong).unwrap();
        config.entry(table).or_insert(toml::Table::new().into()).as_table_mut().unwrap().extend(value);
        assert!(validator.check(&config.to_string()).is_err(), "[{table}] {wrong}");
    }
    for eval in ["0.0", "1.0", "true", "{}", "{ train = \"a.csv\" }", "{ dev = 1 }"] {
        let config = Place::CONFIG.replace("\"b.csv\"", eval);
        assert!(validator.check(&config).is_err(), "{config}");
    }
    for missing in ["path = \"model\"\n", "kind = \"classification\"\n", "train = \"a.csv\"\n", "dir = \"runs/x\"\n"] {
        assert!(validator.check(&Place::CONFIG.replace(missing, "")).is_err(), "{missing}");
    }
}
