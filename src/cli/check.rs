//! `bertft check`: a config's data to figures, warnings with their fixes, and gates for scripts.

mod report;

use super::Globals;
use super::model::pretrained;
use super::prepare::{check_max_length, check_metric};
use super::ui::Ui;
use crate::check::findings::Options;
use crate::check::measures::Limits;
use crate::check::scan::Split;
use crate::check::{Finding, Measures, Name, Scan, Source, excerpts, find};
use crate::config::RunConfig;
use crate::data::config::TaskKind;
use crate::data::{Dataset, Targets, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{Model, Pretrained, Task};
use crate::nn::workspace::Space;
use crate::ops::gemm::allow_tf32;
use crate::train::log::{Event, Reporter, split_of};
use crate::train::memory::{available_bytes, estimate_memory};
use crate::train::plan::Plan;
use crate::train::step::start;
use crate::train::timing::{Scored, Timing, time_steps};
use clap::Args;
use report::Report;
use serde::Serialize;
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Look at the data of a config before training: figures, faults with file and line, memory and time
///
/// Reads and tokenises all data, shows what it is like, lists what is wrong with it and how to mend that, and times a few
/// training steps, which are not kept. Nothing is written.
#[derive(Debug, Args)]
#[command(after_long_help = "Findings:
  bad-rows         rows that cannot be read, or have no label
  bad-tags         sentences whose tags break data.tag_scheme, or, where it is not set, the scheme that most keep to
  bad-labels       rows whose label training refuses: no number, not in data.labels
  missing-labels   labels that only train has, or only eval or test
  leakage          rows of eval or test that are in train too, equal or nearly equal
  conflicts        equal texts with different labels, in all splits together; in regression with numbers further
                   apart than a tenth of the range of train
  duplicates       rows that equal an earlier row of their split
  near-duplicates  rows that nearly equal another row of their split
  empty            rows without text; columns with one text or one label only; sentences that all have no entity
  lost-words       tagged words of which the tokenizer makes no token
  moved-answers    answers that do not stand where the file says, but at one other place
  lost-answers     answers that no window of their context holds whole
  long-answers     answers of more tokens than eval.max_answer_length, which are never predicted
  inexact-answers  answers that begin or end within a token
  truncation       more than 1 % of the rows are longer than data.max_length; sentences are cut into windows then
  unknown-tokens   more than 1 % of the tokens are unknown to the model
  mojibake         text that was read in a wrong encoding at some time, such as Ã© for é
  html             entities (&amp;) or tags (<br />) in the text
  imbalance        the largest class has 10 times the rows of the smallest, or more; of tags: the entities of types
  tiny-classes     classes with fewer than 10 rows in train, or types of entities with fewer than 10

Equal means: after Unicode normalisation (NFC), without regard to case and to the amount of white space. Nearly equal
means: the sets of words and of neighbouring words, as the model's tokens and cut at data.max_length, have a Jaccard
similarity of --near or more. Candidates are found by MinHash, which misses less than 0.5 % of the pairs (more in a
template's hundreds of variants, which are not all compared with each other), and compared exactly. A text of a pair counts together with the other.
Of words with tags the rows are sentences, and entities are those that seqeval reads by default. Of questions, duplicates and
conflicts are equal questions about equal texts; leakage and near duplicates are of the texts that they are about.

Examples:
  Look before a long run:
    bertft check --config cls.toml
  Fail a CI job (exit code 3) when rows of the test data are in the training data or labels contradict:
    bertft check --config cls.toml --no-timing --fail-on leakage,conflicts
  All figures for a script:
    bertft check --config cls.toml --json | jq 'select(.event == \"check\") | .findings'")]
pub struct CheckArgs {
    /// The config file
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a config value, such as data.max_length=64; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Exit with 3 if any of these findings is there: their names, separated by commas, or all; may be repeated
    #[arg(long, value_name = "NAME,…")]
    pub fail_on: Vec<String>,
    /// Least similarity of near duplicates, above 0 to 1; none does not look for any
    #[arg(long, value_name = "X", default_value = "0.8")]
    pub near: String,
    /// Rows to list for each finding
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub examples: usize,
    /// Skip the timed steps, the estimates and the loading of the model's weights
    #[arg(long)]
    pub no_timing: bool,
}

/// What the run would need.
#[derive(Debug, Clone, Serialize)]
struct Memory {
    estimated_peak_rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
}

pub fn run(args: &CheckArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let gates = gates(&args.fail_on)?;
    let near = near(&args.near)?;
    let config = RunConfig::load_for_run(&args.config, &args.set, None)?;
    let pretrained = pretrained(&config.model, globals, ui)?;
    check_max_length(&pretrained, config.data.max_length, "data.max_length")?;
    let tokenizer = Tokenizer::load(pretrained.dir())?;
    let checkpoint = pretrained.labels()?;
    let scan = Scan::new(&config.data, config.task.kind, &tokenizer, checkpoint.as_deref(), config.train.seed)?;
    let task = Task { kind: config.task.kind, labels: scan.classes.clone() };
    let is_trainable = task.outputs() > 1 || task.kind == TaskKind::Regression;
    let lacks = |split: &Split| matches!(&split.data.targets, Targets::Spans(spans) if spans.lacks_answers());
    let decoding = config.eval.span_decoding(scan.splits.iter().filter(|s| s.name != "test").any(lacks));
    if is_trainable {
        check_metric(&task, config.train.deciding().1, decoding.null_threshold.is_some())?;
    }
    let encoder = pretrained.encoder_config();
    for split in &scan.splits {
        split.data.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    }
    if ui.is_json() {
        scan.splits.iter().for_each(|split| ui.event(&data_event(&scan, split)));
    }
    let needs = match args.no_timing || !is_trainable {
        true => None,
        false => Some(needs(&config, &pretrained, task, &scan, globals, ui)?),
    };
    let limits = Limits { max_length: config.data.max_length, max_answer_length: decoding.max_answer_length };
    let measures: Vec<Measures> = (0..scan.splits.len()).map(|split| Measures::new(&scan, split, limits)).collect();
    let mut findings =
        find(&scan, &measures, Options { near, examples: args.examples, positions: encoder.max_length() });
    let source = match config.task.kind {
        TaskKind::Tokens => Source::Sentences(config.data.sentence_options()),
        TaskKind::Span => Source::Questions(config.data.question_options()),
        kind => Source::Rows(config.data.read_options(kind)),
    };
    excerpts(&mut findings, &source, &tokenizer);
    if ui.is_json() {
        ui.out_json(&json!({
            "event": "check",
            "config": args.config.display().to_string(),
            "task": config.task.kind.name(),
            "model": config.model.path,
            "splits": measures,
            "memory": needs.as_ref().map(|n| &n.0),
            "timing": needs.as_ref().map(|n| &n.1),
            "findings": findings,
        }))?;
    } else {
        let terminal = std::io::stdout().is_terminal();
        let width = terminal_size::terminal_size().filter(|_| terminal).map_or(100, |(width, _)| usize::from(width.0));
        let report = Report { width: width.clamp(80, 160), terminal };
        ui.out(&report.text(&args.config, &config, &measures, needs.as_ref(), &findings))?;
    }
    held(&gates, &findings)
}

/// Memory and time of the run, from a few steps of it.
fn needs(
    config: &RunConfig,
    pretrained: &Pretrained,
    task: Task,
    scan: &Scan,
    globals: &Globals,
    ui: &mut Ui,
) -> Result<(Memory, Timing)> {
    let (device, device_note) = globals.device(pretrained.encoder_config())?;
    let (precision, note) = config.train.precision.on(&device);
    allow_tf32(config.train.tf32);
    for message in device_note.into_iter().chain(note).chain(config.train.tf32_note(&device)) {
        ui.event(&Event::Warning { message });
    }
    let space = Space { dtype: precision.dtype(), device: &device };
    let (mut model, mut report) = Model::load(pretrained, task, config.train.seed, space)?;
    let train = &scan.splits[0].data;
    let plan = Plan::new(&config.train, train);
    if let Some(message) = start(&mut model, &config.train, &plan, &mut report)? {
        ui.event(&Event::Warning { message });
    }
    let scored: Vec<&Dataset> = scan.splits[1..].iter().map(|split| &split.data).collect();
    let estimate = estimate_memory(&model, train, &scored, &config.train);
    let memory = Memory { estimated_peak_rss_bytes: estimate.peak_rss_bytes, available_bytes: available_bytes() };
    let evaluations = match config.train.eval_steps {
        Some(every) => plan.total.div_ceil(every),
        None => plan.by_epoch().count() as u64,
    };
    let times = |split: &Split| if split_of(&split.name).0 == "eval" { evaluations } else { 1 };
    let scored: Vec<Scored> =
        scan.splits[1..].iter().map(|split| Scored { data: &split.data, times: times(split) }).collect();
    ui.note("timing a few training steps");
    let timing = time_steps(&mut model, train, &scored, &config.train, Duration::from_secs(4), ui)?;
    Ok((memory, timing))
}

fn data_event(scan: &Scan, split: &Split) -> Event {
    let tokens = &split.data.tokens;
    let counts = scan.class_counts(split);
    Event::Data {
        split: split_of(&split.name).0.into(),
        set: split_of(&split.name).1.map(String::from),
        file: split.data.file.display().to_string(),
        rows: split.data.len(),
        tokens: tokens.total(),
        longest: tokens.lengths().into_iter().max().unwrap_or(0),
        truncated: tokens.truncated(),
        labels: scan.classes.iter().cloned().zip(counts).collect(),
        skipped: split.skipped.clone(),
        cached: false,
    }
}

/// The names given to `--fail-on`.
fn gates(lists: &[String]) -> Result<Vec<Name>> {
    let mut gates = vec![];
    for name in lists.iter().flat_map(|list| list.split(',')).map(str::trim) {
        match name {
            "all" => gates.extend(Name::ALL),
            _ => gates.push(name.parse().map_err(|e| Error::input(format!("--fail-on: {e}")))?),
        }
    }
    Ok(gates)
}

fn near(text: &str) -> Result<Option<f64>> {
    if text == "none" {
        return Ok(None);
    }
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(Some(x)),
        _ => Err(Error::input(format!("--near {text}: expected a number above 0, at most 1, such as 0.8, or none"))),
    }
}

/// [`Error::Gate`] with every finding that was not to be.
fn held(gates: &[Name], findings: &[Finding]) -> Result<()> {
    let missed: Vec<String> = (findings.iter())
        .filter(|finding| gates.contains(&finding.name))
        .map(|f| {
            let split = f.split.as_ref().map_or_else(String::new, |s| format!(" in {s}"));
            format!("{}{split} ({})", f.name, f.count)
        })
        .collect();
    if missed.is_empty() { Ok(()) } else { Err(Error::Gate(format!("quality gate not met: {}", missed.join("; ")))) }
}
