//! Looks at the data before the hours are spent: `scan` (one pass over the files; texts are dropped at once) → `measures`
//! (figures of each split) and `find` (what is wrong, where, and the fix), by way of `exact` (equal rows), `minhash` (rows
//! nearly equal) and `text` (keys and damage of a text). `brief` is the shorter form that training prints, from what it holds in
//! memory anyway.

pub mod brief;
mod exact;
mod excerpts;
mod find;
pub mod findings;
pub mod measures;
pub mod minhash;
pub mod scan;
#[cfg(test)]
mod tests;
mod text;

pub use brief::brief;
pub use excerpts::{Source, excerpts};
pub use find::find;
pub use findings::{Finding, Name};
pub use measures::Measures;
pub use scan::Scan;
