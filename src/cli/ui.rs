//! What users see: results on standard output; progress, events and errors on standard error; with `--json` one JSON
//! object a line on standard output and nothing else.

use super::slices::{slices_of, slices_table};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::train::eval::SliceScores;
use crate::train::log::{Event, Phase, Progress, Reporter};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Signals to stop that have come so far. A static because a signal handler has no other way to tell.
static SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// The terminal, or the stream that a script reads.
pub struct Ui {
    json: bool,
    quiet: bool,
    /// Present when standard error is a terminal that shows progress.
    bars: Option<MultiProgress>,
    tracks: Vec<Track>,
    /// Whether the command has more to do than to be read.
    finish_unread: bool,
    /// Standard output's reader went away.
    unread: bool,
}

/// How far one phase was when it was last shown.
struct Track {
    phase: Phase,
    bar: Option<ProgressBar>,
    started: Instant,
    /// Work done before `started`, in a resumed run.
    first: u64,
    shown_at: Instant,
    shown: u64,
}

impl Ui {
    /// `json` sends events and errors to standard output; `quiet` hides all but results and errors (with `json` there
    /// is nothing else to hide).
    pub fn new(json: bool, quiet: bool) -> Self {
        let bars = (!json && !quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { json, quiet, bars, tracks: vec![], finish_unread: false, unread: false }
    }

    /// Whether standard output carries JSON lines.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes a result and a line end to standard output. When its reader went away the program ends with exit code 0,
    /// as a reader such as `head` wants.
    ///
    /// # Errors
    /// [`Error::Write`] for any other failure, such as a full disk.
    pub fn out(&mut self, text: &str) -> Result<()> {
        if self.unread {
            return Ok(());
        }
        let line = if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
        let write = || {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush())
        };
        match self.aside(write) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::BrokenPipe && self.finish_unread => {
                self.unread = true;
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            Err(e) => Err(Error::write("standard output", e)),
        }
    }

    /// From now on the command goes on when standard output's reader goes away: a training run has its files to write.
    pub fn finish_unread(&mut self) {
        self.finish_unread = true;
    }

    /// Writes one JSON object as a line to standard output; numbers that are not finite become null.
    ///
    /// # Errors
    /// As [`Self::out`].
    pub fn out_json(&mut self, object: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(object).map_err(|e| Error::Failed(format!("a result is not JSON: {e}")))?;
        self.out(&line)
    }

    /// Writes an aligned table of metrics to standard output: a row a metric, a column a split.
    ///
    /// # Errors
    /// As [`Self::out`].
    pub fn out_metrics(&mut self, splits: &[(&str, &Metrics)]) -> Result<()> {
        let table = metrics_table(splits);
        if table.is_empty() { Ok(()) } else { self.out(&table) }
    }

    /// Writes an aligned table of the main metrics of each slice to standard output.
    ///
    /// # Errors
    /// As [`Self::out`].
    pub fn out_slices(&mut self, split: &str, slices: &SliceScores) -> Result<()> {
        self.out(&slices_table(split, slices))
    }

    /// Writes a remark to standard error, unless it is to be quiet.
    pub fn note(&mut self, text: &str) {
        if !self.json && !self.quiet {
            self.err(text);
        }
    }

    /// Shows the error with its causes: `error: …` on standard error, or an `error` event.
    pub fn error(&mut self, error: &Error) {
        self.tracks.clear();
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(e) = cause {
            let text = e.to_string();
            // Many messages already end with their cause.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = e.source();
        }
        if !self.json {
            return self.err(&format!("error: {message}"));
        }
        let (file, line) = match error {
            Error::Input { file, line, .. } => (file.as_ref(), *line),
            Error::Io { path, .. } | Error::Write { path, .. } => (Some(path), None),
            _ => (None, None),
        };
        let file = file.map(|f| f.display().to_string());
        self.event(&Event::Error { code: error.exit_code(), message, file, line });
    }

    /// From now on SIGINT and SIGTERM ask to stop, as [`Reporter::interrupted`] tells; a second one ends the program
    /// with exit code 130. For commands that look at `interrupted`; the others a signal ends at once.
    ///
    /// # Errors
    /// [`Error::Failed`] when the handler cannot be set.
    pub fn watch_signals(&mut self) -> Result<()> {
        let silent = self.json || self.quiet;
        let ignored = signals::ignored();
        let handler = move || {
            if SIGNALS.fetch_add(1, Ordering::SeqCst) > 0 {
                std::process::exit(130);
            }
            if !silent {
                let text = "\nstopping after this step; once more to stop at once\n";
                // There is nowhere left to report a failure to.
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
        };
        ctrlc::set_handler(handler).map_err(|e| Error::Failed(format!("signals cannot be watched: {e}")))?;
        signals::ignore(&ignored);
        Ok(())
    }

    /// Writes to standard error. A failure is dropped: it would have to be told on standard error.
    fn err(&mut self, text: &str) {
        let _ = self.aside(|| writeln!(std::io::stderr(), "{text}"));
    }

    /// Runs `write` with the bars out of the way.
    fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// Events have no way to return an error, so a failed write ends the program here.
    fn or_exit(&mut self, written: Result<()>) {
        if let Err(e) = written {
            self.err(&format!("error: {e}"));
            std::process::exit(e.exit_code().into());
        }
    }

    fn track(&mut self, phase: Phase, p: &Progress) -> &mut Track {
        let at = self.tracks.iter().position(|t| t.phase == phase).unwrap_or_else(|| {
            let now = Instant::now();
            let bar = self.bars.as_ref().map(|bars| bars.add(new_bar(phase, p.total)));
            self.tracks.push(Track { phase, bar, started: now, first: p.done, shown_at: now, shown: p.done });
            self.tracks.len() - 1
        });
        &mut self.tracks[at]
    }
}

impl Reporter for Ui {
    fn event(&mut self, event: &Event) {
        if self.json {
            let written = self.out_json(event);
            return self.or_exit(written);
        }
        if !self.quiet
            && let Some(text) = describe(event)
        {
            self.err(&text);
        }
        if let Event::Done { model, metrics, .. } = event {
            let splits = splits_of(metrics);
            let splits: Vec<_> = splits.iter().map(|(name, m)| (name.as_str(), m)).collect();
            let slices = slices_of(metrics);
            let written = self
                .out_metrics(&splits)
                .and_then(|()| slices.iter().try_for_each(|(split, of_split)| self.out_slices(split, of_split)))
                .and_then(|()| self.out(&format!("model  {model}")));
            self.or_exit(written);
        }
    }

    fn progress(&mut self, p: Progress) {
        if self.json || self.quiet {
            return;
        }
        let over = p.done >= p.total;
        let track = self.track(p.phase, &p);
        let line = match &track.bar {
            Some(bar) => {
                track.shown_at = Instant::now();
                bar.set_length(p.total);
                bar.set_position(p.done);
                bar.set_message(figures(&p));
                None
            }
            None if track.is_due(&p, Instant::now()) => Some(track.line(&p)),
            None => None,
        };
        if over {
            if let Some(bar) = &track.bar {
                bar.finish_and_clear();
            }
            self.tracks.retain(|t| t.phase != p.phase);
        }
        if let Some(line) = line {
            self.err(&line);
        }
    }

    fn interrupted(&self) -> bool {
        SIGNALS.load(Ordering::SeqCst) > 0
    }
}

impl Track {
    /// Whether a log without bars wants a line: five seconds after the last and a tenth further, or after a minute.
    fn is_due(&self, p: &Progress, now: Instant) -> bool {
        let waited = now.duration_since(self.shown_at);
        let further = p.done.saturating_sub(self.shown) * 10 >= p.total;
        waited >= Duration::from_secs(60) || waited >= Duration::from_secs(5) && further
    }

    fn line(&mut self, p: &Progress) -> String {
        self.shown_at = Instant::now();
        self.shown = p.done;
        let percent = p.done * 100 / p.total.max(1);
        let scale = if p.phase == Phase::Download { 1_000_000 } else { 1 };
        let (count, total) = (p.done / scale, p.total.div_ceil(scale));
        let mut line = format!("{} {count}/{total} {} ({percent} %)", title(p.phase), unit(p.phase));
        let figures = figures(p);
        if !figures.is_empty() {
            line += &format!(", {figures}");
        }
        let done = p.done.saturating_sub(self.first);
        if done > 0 && p.done < p.total {
            let left = self.started.elapsed().as_secs_f64() * (p.total - p.done) as f64 / done as f64;
            line += &format!(", {} left", duration(left));
        }
        line
    }
}

fn new_bar(phase: Phase, total: u64) -> ProgressBar {
    let count = match phase {
        Phase::Download => "{decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}".to_owned(),
        _ => format!("{{pos}}/{{len}} {}", unit(phase)),
    };
    let template = format!("{:<8} {{bar:24}} {count}  {{msg}}  {{eta}} left", title(phase));
    let bar = ProgressBar::new(total);
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::Download => "download",
        Phase::Tokenise => "tokenise",
        Phase::Train => "train",
        Phase::Evaluate => "evaluate",
    }
}

fn unit(phase: Phase) -> &'static str {
    match phase {
        Phase::Download => "MB",
        Phase::Train => "steps",
        Phase::Tokenise | Phase::Evaluate => "rows",
    }
}

/// What a phase shows besides how far it is.
fn figures(p: &Progress) -> String {
    if p.phase != Phase::Train {
        return String::new();
    }
    let mut text = format!("loss {:.4}  lr {:.2e}", p.loss, p.learning_rate);
    if p.tokens_per_second > 0.0 {
        text += &format!("  {:.0} tokens/s", p.tokens_per_second);
    }
    text
}

/// The event for a reader; `None` for what is shown otherwise.
fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::Start { version, task, model, device, threads, precision, seed, output, .. } => {
            let Event::Start { parameters, trainable_parameters, total_steps, epochs, resumed_from, .. } = event else {
                return None;
            };
            let Event::Start { loaded, initialised, unused, estimated_peak_rss_bytes, .. } = event else { return None };
            let trained = if parameters == trainable_parameters {
                "all trained".into()
            } else {
                format!("{} trained", count(*trainable_parameters))
            };
            let resumed = resumed_from.map(|step| format!(", resumed from step {step}")).unwrap_or_default();
            let plural = if *threads == 1 { "" } else { "s" };
            format!(
                "bertft {version}: {task} on {device}, {threads} thread{plural}, {precision}, seed {seed}\n\
                 model   {model}: {} parameters, {trained}\n\
                 weights {}\n\
                 run     {output}: {total_steps} steps, {epochs} epochs{resumed}; about {} MB of memory",
                count(*parameters),
                crate::model::describe_load(*loaded, initialised, unused),
                estimated_peak_rss_bytes >> 20
            )
        }
        Event::Data { split, set, file, rows, tokens, longest, truncated, labels, skipped, cached } => {
            let split = full_name(split, set.as_deref());
            let cut = if *truncated > 0 { format!(", {truncated} truncated") } else { String::new() };
            let labels = if labels.is_empty() { String::new() } else { format!(", {} labels", labels.len()) };
            let cached = if *cached { "; tokens from the cache" } else { "" };
            let skipped = skipped.describe().map_or_else(String::new, |s| format!("\nwarning: {split}: {s}"));
            format!(
                "{split:<7} {file}: {rows} rows, {} tokens, longest {longest}{cut}{labels}{cached}{skipped}",
                count(*tokens)
            )
        }
        Event::Step { step, total_steps, epoch, loss, learning_rate, grad_norm, tokens_per_second } => format!(
            "step {step}/{total_steps}  epoch {epoch:.2}  loss {loss:.4}  lr {learning_rate:.2e}  \
             grad norm {grad_norm:.3}  {tokens_per_second:.0} tokens/s"
        ),
        Event::Eval { split, set, step, epoch, samples, seconds, samples_per_second, metrics, best, .. } => {
            let split = full_name(split, set.as_deref());
            let best = if *best { "  (best so far)" } else { "" };
            format!(
                "{split} at step {step}, epoch {epoch:.2}: {}{best}; {samples} rows in {}, {samples_per_second:.0}/s",
                headline(metrics),
                duration(*seconds)
            )
        }
        Event::Save { path, .. } => format!("saved   {path}"),
        Event::Warning { message } => format!("warning: {message}"),
        Event::Done { steps, epochs, train_seconds, samples_per_second, tokens_per_second, peak_rss_bytes, .. } => {
            format!(
                "done    {steps} steps, {epochs:.2} epochs in {}: {samples_per_second:.0} samples/s, \
                 {tokens_per_second:.0} tokens/s, peak memory {} MiB",
                duration(*train_seconds),
                peak_rss_bytes >> 20
            )
        }
        Event::Error { message, .. } => format!("error: {message}"),
    })
}

/// A split with the name of one of its sets.
fn full_name(split: &str, set: Option<&str>) -> String {
    set.map_or(split.to_owned(), |set| format!("{split} {set}"))
}

/// The scores that fit a line; the closing table has all.
fn headline(metrics: &Metrics) -> String {
    let scores = headline_names(metrics).filter_map(|name| Some(format!("{name} {}", score(metrics.get(name)?))));
    scores.collect::<Vec<_>>().join("  ")
}

/// The metrics that fit a line, as far as there are such.
pub(super) fn headline_names(metrics: &Metrics) -> impl Iterator<Item = &'static str> {
    let f1 = if metrics.get("f1").is_some() { "f1" } else { "macro_f1" };
    ["loss", "accuracy", f1, "mcc", "pearson", "spearman"].into_iter()
}

/// The splits of a `done` event's metrics; those that were not evaluated have none.
fn splits_of(metrics: &serde_json::Value) -> Vec<(String, Metrics)> {
    let Some(splits) = metrics.as_object() else { return vec![] };
    let scores = |split: &serde_json::Map<String, serde_json::Value>| {
        Metrics(split.iter().map(|(name, x)| (name.clone(), x.as_f64().unwrap_or(f64::NAN))).collect())
    };
    let splits = splits.iter().filter(|(name, _)| *name != "slices");
    splits.filter_map(|(name, split)| Some((name.clone(), scores(split.as_object()?)))).collect()
}

fn metrics_table(splits: &[(&str, &Metrics)]) -> String {
    let mut names: Vec<&str> = vec![];
    for (name, _) in splits.iter().flat_map(|(_, m)| &m.0) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return String::new();
    }
    let width = names.iter().map(|n| n.len()).max().unwrap_or(0).max("metric".len());
    let row = |name: &str, cells: Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|c| format!("  {c:>10}")).collect();
        format!("{}\n", format!("{name:<width$}{}", cells.concat()).trim_end())
    };
    let mut table = row("metric", splits.iter().map(|(split, _)| split.to_string()).collect());
    for name in names {
        let cell = |(_, m): &(&str, &Metrics)| m.get(name).map(score).unwrap_or_default();
        table += &row(name, splits.iter().map(cell).collect());
    }
    table
}

pub(super) fn score(x: f64) -> String {
    if x.is_finite() { format!("{x:.4}") } else { "undefined".into() }
}

/// 4700000 as 4.7 M.
pub(super) fn count(n: usize) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        _ => format!("{:.1} M", n as f64 / 1e6),
    }
}

pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Signals that the parent set to be ignored (`nohup`, a shell's background job) stay so.
#[cfg(unix)]
mod signals {
    const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

    pub fn ignored() -> Vec<libc::c_int> {
        let is_ignored = |signal: &libc::c_int| {
            // SAFETY: an all-zero `sigaction` is a valid value to be overwritten, and a null action only asks.
            unsafe {
                let mut now: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
            }
        };
        SIGNALS.into_iter().filter(is_ignored).collect()
    }

    pub fn ignore(signals: &[libc::c_int]) {
        for signal in signals {
            // SAFETY: setting a signal to be ignored installs no code.
            unsafe { libc::signal(*signal, libc::SIG_IGN) };
        }
    }
}

#[cfg(not(unix))]
mod signals {
    pub fn ignored() -> Vec<i32> {
        vec![]
    }

    pub fn ignore(_: &[i32]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_leave_gaps() {
        let eval = Metrics(vec![("loss".into(), 0.41234), ("accuracy".into(), 0.9)]);
        let test = Metrics(vec![("loss".into(), f64::NAN)]);
        assert_eq!(
            metrics_table(&[("eval", &eval), ("test", &test)]),
            "metric          eval        test\n\
             loss          0.4123   undefined\n\
             accuracy      0.9000\n"
        );
        assert_eq!(metrics_table(&[]), "");
    }

    #[test]
    fn done_metrics_become_columns() {
        let metrics = serde_json::json!({"eval": {"loss": 0.5, "f1": null}, "test": null});
        let splits = splits_of(&metrics);
        assert_eq!(splits.len(), 1);
        assert_eq!(splits[0].0, "eval");
        assert_eq!(splits[0].1.get("loss"), Some(0.5));
        assert!(splits[0].1.get("f1").is_some_and(f64::is_nan));
    }

    #[test]
    fn a_log_gets_few_lines() {
        let start = Instant::now();
        let track = Track { phase: Phase::Train, bar: None, started: start, first: 0, shown_at: start, shown: 0 };
        let p = |done| Progress {
            phase: Phase::Train,
            done,
            total: 100,
            loss: 1.0,
            learning_rate: 1e-3,
            tokens_per_second: 0.0,
        };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!track.is_due(&p(50), after(4)));
        assert!(!track.is_due(&p(9), after(5)));
        assert!(track.is_due(&p(10), after(5)));
        assert!(track.is_due(&p(1), after(60)));
    }

    #[test]
    fn json_events_have_null_for_nan() {
        let event = Event::Eval {
            split: "eval".into(),
            set: None,
            step: 1,
            epoch: 1.0,
            samples: 2,
            seconds: 0.5,
            samples_per_second: 4.0,
            metrics: Metrics(vec![("mcc".into(), f64::NAN)]),
            slices: None,
            best: false,
        };
        let json = serde_json::to_string(&event).unwrap();
        assert!(json.starts_with("{\"event\":\"eval\""), "{json}");
        assert!(json.contains("{\"mcc\":null}"), "{json}");
    }

    #[test]
    fn durations() {
        let shown: Vec<_> = [0.25, 12.9, 75.0, 3725.0].into_iter().map(duration).collect();
        assert_eq!(shown, ["0.2 s", "12 s", "1 min 15 s", "1 h 2 min"]);
    }
}
