//! The commands: one file each, from arguments over the library to output.

pub mod check;
pub mod completions;
pub mod config;
pub mod eval;
mod handover;
pub mod info;
mod init;
pub mod man;
pub mod model;
pub mod models;
pub mod predict;
pub mod prepare;
pub mod scoring;
mod slices;
pub mod train;
pub mod ui;

use crate::data::config::{Column, Format};
use crate::data::settings::{Delimiter, Encoding, OnBadRow, Pattern};
use crate::data::tagging::scheme::Scheme;
use crate::device;
use crate::encoders::EncoderConfig;
use crate::encoders::on_cuda::without_kernels;
use crate::error::{Error, Result};
use crate::heads::tags::TagDecoding;
use crate::ops::cpu::{LEVEL_VARIABLE, Level, asked_level};
use crate::ops::make_ready;
use crate::train::config::Precision;
use crate::train::log::{Event, Reporter};
use candle_core::Device;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use ui::Ui;

/// Fine-tune BERT encoders: text classification, sentence pairs and regression, from one binary.
#[derive(Debug, Parser)]
#[command(name = "bertft", version, propagate_version = true)]
#[command(after_help = "Start:
  bertft config init --task classification --output cls.toml
  bertft train --config cls.toml
  bertft predict --model runs/cls reviews.csv

Exit codes: 0 done, 1 the run failed, 2 bad usage, config or input, 3 a quality gate was not met,
4 interrupted with a checkpoint to resume, 130 interrupted with nothing to resume.")]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command has.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Where to compute: auto (a GPU if one can be used), cpu, cuda or cuda:N
    #[arg(long, global = true, value_name = "DEVICE", env = "BERTFT_DEVICE", default_value = "auto")]
    pub device: String,
    /// CPU threads [default: RAYON_NUM_THREADS, else as many as the machine offers]
    #[arg(long, global = true, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    /// Write JSON objects, one a line, to standard output and nothing else
    #[arg(long, global = true)]
    pub json: bool,
    /// Download nothing; models of the hub come from the cache, as with HF_HUB_OFFLINE=1
    #[arg(long, global = true)]
    pub offline: bool,
    /// Show only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Globals {
    /// The device to compute on with a model, and a note if a GPU that `auto` found cannot be used.
    ///
    /// # Errors
    /// [`Error::Input`] when this build or machine does not have it, or it has no kernels for the model.
    pub fn device(&self, encoder: &EncoderConfig) -> Result<(Device, Option<String>)> {
        device::open(&self.device, &without_kernels(encoder), make_ready)
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        let from_env = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok().filter(|n| *n > 0);
        let offered = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.or_else(from_env).unwrap_or_else(offered)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(train::TrainArgs),
    Check(check::CheckArgs),
    Eval(eval::EvalArgs),
    Predict(predict::PredictArgs),
    Config(config::ConfigArgs),
    Models(models::ModelsArgs),
    Info(info::InfoArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    /// Whether the command runs a model.
    fn computes(&self) -> bool {
        matches!(self, Self::Train(_) | Self::Check(_) | Self::Eval(_) | Self::Predict(_))
    }
}

/// How `eval` and `predict` read rows. What is not given comes from the model's `bertft.json`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Input options")]
pub struct InputArgs {
    /// Rows of one forward pass [default: 32]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub batch_size: Option<usize>,
    /// Longest row in tokens; longer rows lose text [default: as in training, else 128]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(3..=1_000_000))]
    pub max_length: Option<usize>,
    /// Number format of activations and matrix products: f32 or bf16 [default: f32]
    #[arg(long, value_name = "FORMAT")]
    pub precision: Option<Precision>,
    /// Column of the text: name or 0-based index; repeat it to join several [default: as in training, else text]
    #[arg(long, value_name = "COLUMN")]
    pub text: Vec<Column>,
    /// What stands between joined columns [default: as in training, else a space]
    #[arg(long, value_name = "TEXT")]
    pub join: Option<String>,
    /// Column of the second text of a pair [default: as in training]
    #[arg(long, value_name = "COLUMN")]
    pub text_pair: Option<Column>,
    /// How the file is written: csv, tsv, jsonl or pattern [default: by its extension, else as in training]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Encoding of the characters, such as latin-1 or gb18030 [default: by the byte order mark, else UTF-8, else as in training]
    #[arg(long, value_name = "NAME")]
    pub encoding: Option<Encoding>,
    /// The character between fields of csv and tsv [default: as in training, else comma and tab]
    #[arg(long, value_name = "CHARACTER")]
    pub delimiter: Option<Delimiter>,
    /// Quotes enclose fields [default: as in training, else in csv]
    #[arg(long, overrides_with = "no_quoting")]
    quoting: bool,
    /// Quotes are text
    #[arg(long)]
    no_quoting: bool,
    /// Take lines apart by a regular expression, whose named groups are the columns [default: as in training]
    #[arg(long, value_name = "REGEX")]
    pub pattern: Option<Pattern>,
    /// What to do with rows that cannot be read: error or skip [default: error]
    #[arg(long, value_name = "ACTION")]
    pub on_bad_row: Option<OnBadRow>,
    /// The first row is data, and columns are given by index
    #[arg(long)]
    pub no_header: bool,
}

/// How `eval` and `predict` answer questions. What is not given comes from the model's `bertft.json`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of answers (span)")]
pub struct SpanArgs {
    /// Tokens that windows of a long context share [default: as in training, else 128]
    #[arg(long, value_name = "N")]
    pub doc_stride: Option<usize>,
    /// So many of the highest scores to begin and to end an answer are tried with each other [default: as in training, else 20]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub n_best_size: Option<usize>,
    /// Longest answer in tokens [default: as in training, else 30]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub max_answer_length: Option<usize>,
    /// A question has no answer where that scores by more than this above the best piece [default: as in training, else 0 where
    /// the data have questions without answers]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub null_score_diff_threshold: Option<f64>,
}

impl SpanArgs {
    /// A flag that is given, if any is.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--doc-stride", self.doc_stride.is_some()),
            ("--n-best-size", self.n_best_size.is_some()),
            ("--max-answer-length", self.max_answer_length.is_some()),
            ("--null-score-diff-threshold", self.null_score_diff_threshold.is_some()),
        ];
        flags.iter().find(|(_, given)| *given).map(|(flag, _)| *flag)
    }
}

/// How `eval` and `predict` find tags of words. What is not given comes from the model's `bertft.json`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of tags (tokens)")]
pub struct TagArgs {
    /// How tags are found: argmax, or viterbi for the best sequence that the scheme allows [default: as in training, else argmax]
    #[arg(long, value_name = "HOW")]
    pub tag_decoding: Option<TagDecoding>,
    /// The scheme of the model's tags: iob1, iob2 or iobes [default: as in training, else by the labels]
    #[arg(long, value_name = "SCHEME")]
    pub tag_scheme: Option<Scheme>,
}

impl TagArgs {
    /// A flag that is given, if any is.
    pub fn given(&self) -> Option<&'static str> {
        let decoding = self.tag_decoding.map(|_| "--tag-decoding");
        decoding.or(self.tag_scheme.map(|_| "--tag-scheme"))
    }
}

impl InputArgs {
    /// Whether quotes enclose fields, if a flag says so.
    pub fn quoting(&self) -> Option<bool> {
        match (self.quoting, self.no_quoting) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}

/// The whole program: parses the command line, runs the command, shows the error; gives the exit code.
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let mut ui = Ui::new(cli.globals.json, cli.globals.quiet);
    match run(&cli, &mut ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The command line; `Err` holds the exit code when there is nothing to run: help was shown, or the usage is wrong.
pub fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|e| {
        // The arguments could not be parsed, so the flag is looked for by hand.
        if e.use_stderr() && std::env::args_os().any(|a| a == "--json") {
            let text = e.render().to_string();
            // What follows an empty line is usage and hints, or further lines of a terminal's help.
            let message = text.split("\n\n").next().unwrap_or(&text);
            let message = message.trim().trim_start_matches("error: ").to_owned();
            Ui::new(true, false).event(&Event::Error { code: 2, message, file: None, line: None });
        } else if let Err(e) = e.print() {
            // The reader went away.
            drop(e);
        }
        ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
    })
}

/// Runs the command.
pub fn run(cli: &Cli, ui: &mut Ui) -> Result<()> {
    // A misspelt device is wrong for every command; one that this build lacks only where something computes.
    device::check_name(&cli.globals.device)?;
    if let Err(other) = asked_level() {
        let names: Vec<_> = Level::NAMES.iter().map(|(name, _)| *name).collect();
        return Err(Error::input(format!("{LEVEL_VARIABLE} is {other:?}; expected one of {}", names.join(", "))));
    }
    announce_threads(cli.globals.threads());
    if cli.command.computes()
        && let Some(message) = handover::to_cuda(&cli.globals.device)?
    {
        ui.event(&Event::Warning { message });
    }
    start_threads(cli.globals.threads())?;
    match &cli.command {
        Command::Train(args) => train::run(args, &cli.globals, ui),
        Command::Check(args) => check::run(args, &cli.globals, ui),
        Command::Eval(args) => eval::run(args, &cli.globals, ui),
        Command::Predict(args) => predict::run(args, &cli.globals, ui),
        Command::Config(args) => config::run(args, &cli.globals, ui),
        Command::Models(args) => models::run(args, &cli.globals, ui),
        Command::Info(args) => info::run(args, &cli.globals, ui),
        Command::Completions(args) => completions::run(args, ui),
        Command::Man(args) => man::run(args, ui),
    }
}

/// `gemm`, called by candle, runs in rayon's global pool but splits its work by candle's own count, which is read from these
/// variables at each product (default: physical cores).
fn announce_threads(threads: usize) {
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: the program has a single thread: neither its pool nor the NVIDIA driver, which has some, is started.
        unsafe { std::env::set_var(name, threads.to_string()) };
    }
}

/// Makes one pool of `threads` for everything.
fn start_threads(threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|e| Error::Failed(format!("{threads} threads cannot be started: {e}")))
}
