//! The JSON Schema of config files, for editors: derived from the structs that read them.

use super::RunConfig;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::{Value, json};

/// The JSON Schema (draft 2020-12) of a config file. It holds types, names, defaults and ranges; keys that must fit each
/// other, files and labels are for `config validate`.
pub fn schema() -> Value {
    // Editors differ in the references that they follow, so there are none.
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<RunConfig>();
    RecursiveTransform(as_toml).transform(&mut schema);
    schema.insert("title".into(), "bertft config".into());
    schema.into()
}

/// Takes out what TOML or a reader has no use for: nulls, names of Rust's number types, tables as defaults, and the line
/// breaks of the source.
fn as_toml(schema: &mut Schema) {
    without_null(schema);
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("format");
    object.remove("title");
    if object.get("default").is_some_and(|d| d.is_null() || d.is_object()) {
        object.remove("default");
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
}

/// What an optional key is when it is there.
fn without_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|t| t != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            object.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|v| !v.is_null());
    }
    let Some(Value::Array(any)) = object.get_mut("anyOf") else { return };
    any.retain(|s| *s != json!({"type": "null"}));
    if let [Value::Object(one)] = any.as_slice() {
        let one = one.clone();
        object.remove("anyOf");
        for (key, value) in one {
            // The key's own description says more than its type's.
            object.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests;
