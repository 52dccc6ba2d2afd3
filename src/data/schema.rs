//! JSON Schemas of the types of `[data]` that read themselves from a config.

use super::config::{Column, EvalSource};
use super::settings::{Delimiter, Encoding, Files, OneOrMany, Pattern};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

impl JsonSchema for Column {
    fn schema_name() -> Cow<'static, str> {
        "Column".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string", "minLength": 1, "description": "The column's name." },
            { "type": "integer", "minimum": 0, "description": "The column's 0-based index." },
        ]})
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "minItems": 1, "items": one }] })
    }
}

impl JsonSchema for EvalSource {
    fn schema_name() -> Cow<'static, str> {
        "EvalSource".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let files = generator.subschema_for::<Files>();
        json_schema!({ "anyOf": [
            files,
            {
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "description": "This share of the training rows (stratified and seeded).",
            },
            {
                "type": "object",
                "minProperties": 1,
                "propertyNames": { "minLength": 1, "not": { "enum": ["train", "eval", "test"] } },
                "additionalProperties": files,
                "description": "Several sets by their names.",
            },
        ]})
    }
}

impl JsonSchema for Encoding {
    fn schema_name() -> Cow<'static, str> {
        "Encoding".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = ["utf-8", "latin-1", "windows-1252", "utf-16", "gb18030", "big5", "shift_jis", "euc-kr"];
        json_schema!({ "type": "string", "minLength": 1, "examples": names })
    }
}

impl JsonSchema for Delimiter {
    fn schema_name() -> Cow<'static, str> {
        "Delimiter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // One ASCII character but quote, line break and NUL; or a backslash and "t".
        json_schema!({ "type": "string", "pattern": "^([\\x01-\\x09\\x0B\\x0C\\x0E-!#-\\x7F]|\\\\t)$", "examples": [";", "|", "\\t"] })
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "\\(\\?P?<",
            "examples": ["^(?P<label>\\w+) (?P<text>.*)$"],
        })
    }
}
