//! `bertft config`: templates, the resolved config, and checks without training.

use super::Globals;
use super::init;
use super::model::pretrained;
use super::prepare::Prepared;
use super::ui::Ui;
use crate::config::{RunConfig, schema};
use crate::data::config::TaskKind;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::workspace::Space;
use crate::train::log::{Event, Reporter};
use crate::train::plan::Plan;
use crate::train::step::tune;
use candle_core::Device;
use clap::{Args, Subcommand};
use serde_json::json;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Write, show and check config files
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Write a commented config: for a task, to fill in, or for a file
    #[command(after_long_help = "Examples:
  Start a text classifier:
    bertft config init --task classification --output cls.toml
  Write a config for a file:
    bertft config init --data train.csv --model models/bert --output cls.toml
  See what a config for sentence pairs looks like:
    bertft config init --task pair")]
    Init {
        /// classification, pair (classification of two texts) or regression [default: by the label of --data]
        #[arg(long, value_name = "TASK", required_unless_present = "data")]
        task: Option<Template>,
        /// The file to write; it must not exist [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        look: init::DataArgs,
    },
    /// Print the resolved config: defaults, file and --set together
    #[command(after_long_help = "Examples:
  See all values of a run:
    bertft config show --config cls.toml
  See what an override does:
    bertft config show --config cls.toml --set train.epochs=5")]
    Show(FileArgs),
    /// Check a config without training: keys, values, every row of the data, labels, lengths and the model's weights
    #[command(after_long_help = "Examples:
  Check before a long run:
    bertft config validate --config cls.toml
  Check in a script, which reads the error's file and line:
    bertft config validate --config cls.toml --json")]
    Validate(FileArgs),
    /// Print the JSON Schema of config files, for editors
    #[command(after_long_help = "Examples:
  Let an editor complete and check configs that begin with `#:schema bertft.schema.json`:
    bertft config schema > bertft.schema.json")]
    Schema,
}

#[derive(Debug, Args)]
struct FileArgs {
    /// The config file
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// Override a config value, such as train.epochs=5; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What `config init` writes.
#[derive(Debug, Clone, Copy)]
struct Template {
    task: TaskKind,
    pair: bool,
    text: &'static str,
}

impl Template {
    fn of(task: TaskKind) -> Self {
        let text = match task {
            TaskKind::Classification => include_str!("../../configs/classification.toml"),
            TaskKind::Multilabel => include_str!("../../configs/multilabel.toml"),
            TaskKind::Regression => include_str!("../../configs/regression.toml"),
            TaskKind::Tokens => include_str!("../../configs/tokens.toml"),
            TaskKind::Span => include_str!("../../configs/span.toml"),
        };
        Self { task, pair: false, text }
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(task: &str) -> Result<Self, String> {
        match task {
            "classification" => Ok(Self::of(TaskKind::Classification)),
            "pair" => {
                let text = include_str!("../../configs/pair.toml");
                Ok(Self { task: TaskKind::Classification, pair: true, text })
            }
            "multilabel" => Ok(Self::of(TaskKind::Multilabel)),
            "regression" => Ok(Self::of(TaskKind::Regression)),
            "tokens" => Ok(Self::of(TaskKind::Tokens)),
            "span" => Ok(Self::of(TaskKind::Span)),
            "mlm" | "choice" | "embedding" => Err(
                "this task is not in this version; it has classification, pair, multilabel, regression, tokens and span"
                    .into(),
            ),
            _ => Err("expected classification, pair, multilabel, regression, tokens or span".into()),
        }
    }
}

/// Runs the command.
pub fn run(args: &ConfigArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    match &args.command {
        ConfigCommand::Init { task, output, look } => match (&look.data, task) {
            (Some(file), task) => {
                let task = task.map(|t| (t.task, t.pair));
                let template = |task| Template::of(task).text;
                let text = init::config(look, file, task, template, output.as_deref(), (globals, ui))?;
                init(&text, output.as_deref(), "look it over", ui)
            }
            (None, Some(template)) => init(template.text, output.as_deref(), "fill in the paths", ui),
            (None, None) => Err(Error::input("give --task or --data")),
        },
        ConfigCommand::Show(file) => show(file, ui),
        ConfigCommand::Validate(file) => validate(file, globals, ui),
        ConfigCommand::Schema => print_schema(ui),
    }
}

fn init(template: &str, output: Option<&Path>, next: &str, ui: &mut Ui) -> Result<()> {
    let Some(path) = output else {
        return if ui.is_json() {
            ui.out_json(&json!({"event": "config_template", "toml": template}))
        } else {
            ui.out(template)
        };
    };
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => Error::in_file(path, "exists; remove it or give another --output"),
        _ => Error::io(path, e),
    })?;
    file.write_all(template.as_bytes()).map_err(|e| Error::io(path, e))?;
    if ui.is_json() {
        return ui.out_json(&json!({"event": "save", "path": path.display().to_string()}));
    }
    let path = path.display();
    ui.note(&format!("wrote {path}; {next}, then: bertft config validate --config {path}"));
    Ok(())
}

fn show(args: &FileArgs, ui: &mut Ui) -> Result<()> {
    let config = RunConfig::load(&args.config, &args.set)?;
    if ui.is_json() {
        ui.out_json(&json!({"event": "config", "config": config.with_absolute_inputs()?}))
    } else {
        ui.out(&config.to_toml()?)
    }
}

fn print_schema(ui: &mut Ui) -> Result<()> {
    if ui.is_json() {
        ui.out_json(&json!({"event": "config_schema", "schema": schema()}))
    } else {
        ui.out(&format!("{:#}", schema()))
    }
}

fn validate(args: &FileArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let config = RunConfig::load_for_run(&args.config, &args.set, None)?;
    let prepared = Prepared::new(&config, pretrained(&config.model, globals, ui)?, ui)?;
    let space = Space::f32(&Device::Cpu);
    let (mut model, mut report) = Model::load(&prepared.pretrained, prepared.task, config.train.seed, space)?;
    let plan = Plan::new(&config.train, &prepared.train);
    if let Some(message) = tune(&mut model, &config.train, &plan, &mut report)? {
        ui.event(&Event::Warning { message });
    }
    let file = args.config.display();
    if ui.is_json() {
        ui.out_json(&json!({"event": "valid", "file": file.to_string()}))
    } else {
        ui.out(&format!("{file}: valid"))
    }
}
