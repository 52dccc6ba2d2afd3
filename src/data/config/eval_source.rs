//! The value of `data.eval`.

use crate::data::settings::Files;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;

/// Where the rows for evaluation come from.
#[derive(Debug, Clone, PartialEq)]
pub enum EvalSource {
    /// Files of their own.
    Files(Files),
    /// This share of the training rows, strictly between 0 and 1 (stratified and seeded).
    Fraction(f64),
    /// Several sets, each by its name, in the order of the file.
    Named(Vec<(String, Files)>),
}

impl Serialize for EvalSource {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Files(files) => files.serialize(s),
            Self::Fraction(share) => s.serialize_f64(*share),
            Self::Named(sets) => {
                let mut map = s.serialize_map(Some(sets.len()))?;
                sets.iter().try_for_each(|(name, files)| map.serialize_entry(name, files))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for EvalSource {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AnySource;
        impl<'de> Visitor<'de> for AnySource {
            type Value = EvalSource;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(
                    "a file name (string) or a list of them, a fraction of the training rows between 0 and 1, such as \
                     0.1, or a table of named sets",
                )
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<EvalSource, E> {
                Ok(EvalSource::Files(Files::from(PathBuf::from(v))))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<EvalSource, E> {
                if v > 0.0 && v < 1.0 {
                    Ok(EvalSource::Fraction(v))
                } else {
                    Err(E::invalid_value(de::Unexpected::Float(v), &self))
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<EvalSource, A::Error> {
                Files::deserialize(SeqAccessDeserializer::new(seq)).map(EvalSource::Files)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EvalSource, A::Error> {
                let mut sets = vec![];
                while let Some(set) = map.next_entry()? {
                    sets.push(set);
                }
                Ok(EvalSource::Named(sets))
            }
        }
        d.deserialize_any(AnySource)
    }
}
