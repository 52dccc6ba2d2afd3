//! `bertft models`: the models of the hub that are in the cache.

use super::Globals;
use super::ui::Ui;
use crate::error::Result;
use crate::hub::{Cached, Settings, cached};
use clap::Args;
use serde_json::json;
use unicode_width::UnicodeWidthStr;

/// List the models of the hub that are in the cache
///
/// The cache is the one of Python's huggingface_hub: $HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  What is there, with revision, commit and size:
    bertft models
  The directories of the models that can be used without a network:
    bertft models --json | jq -r 'select(.whole) | .path'")]
pub struct ModelsArgs {}

/// Runs the command.
pub fn run(_args: &ModelsArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let cache = Settings::from_env(globals.offline)?.cache;
    let found = cache.as_deref().map(cached).unwrap_or_default();
    if ui.is_json() {
        for model in &found {
            let mut object = json!({"event": "model"});
            if let (Some(object), Ok(serde_json::Value::Object(fields))) =
                (object.as_object_mut(), serde_json::to_value(model))
            {
                object.extend(fields);
            }
            ui.out_json(&object)?;
        }
        return Ok(());
    }
    let place = cache.map_or_else(|| "nowhere: set HF_HOME".into(), |cache| cache.display().to_string());
    if found.is_empty() {
        ui.note(&format!("no models of the hub in {place}"));
        return Ok(());
    }
    ui.out(&table(&found))?;
    ui.note(&format!("in {place}"));
    Ok(())
}

fn table(models: &[Cached]) -> String {
    let row = |m: &Cached| {
        let size = format!("{:.1} MB", m.bytes as f64 / 1e6);
        let note = if m.whole { "" } else { "not all of it" };
        [m.id.clone(), m.revisions.join(", "), m.commit.chars().take(12).collect(), size, note.into()]
    };
    let head = ["model", "revision", "commit", "size", ""].map(String::from);
    let rows: Vec<_> = std::iter::once(head).chain(models.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].width()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let line = |row: &[String; 5]| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[column] - cell.width());
            // Sizes stand below each other by their ends.
            line += &if column == 3 { format!("{space}{cell}  ") } else { format!("{cell}{space}  ") };
        }
        line.trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
