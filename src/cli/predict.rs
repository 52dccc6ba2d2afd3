//! `bertft predict`: a model and rows to one JSON object a row.

use super::model::ModelArgs;
use super::scoring::{Scoring, input_files};
use super::ui::Ui;
use super::{Globals, InputArgs, SpanArgs, TagArgs};
use crate::data::config::TaskKind;
use crate::data::reader::questions::QuestionReader;
use crate::data::reader::sentences::SentenceReader;
use crate::data::settings::STANDARD_INPUT;
use crate::data::{Reader, Skipped};
use crate::error::{Error, Result, guarded};
use crate::predict::{Predictor, span, tags};
use crate::train::log::{Event, Reporter};
use clap::Args;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Predict the rows of a file or of standard input
///
/// Writes one JSON object per row, in input order, while it reads. Standard input is JSONL if its first byte is {, else
/// one text a line; a file's format is told by its extension (.txt is one text a line).
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  Predict a file:
    bertft predict --model runs/cls reviews.csv --output predictions.jsonl
  Classify one text:
    echo 'My card has not arrived' | bertft predict --model runs/cls
  Classify with a model of the hub:
    bertft predict --model org/name --revision v1.0 reviews.csv
  Answer questions in SQuAD's JSON, or in JSONL with a question and its context a line:
    bertft predict --model runs/span questions.json
  Pairs in JSONL with keys of their own:
    bertft predict --model runs/pairs --text question --text-pair answer pairs.jsonl")]
pub struct PredictArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The rows: one or several files or glob patterns; - or nothing is standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where to write the predictions [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub input: InputArgs,
    #[command(flatten)]
    pub tags: TagArgs,
    #[command(flatten)]
    pub span: SpanArgs,
}

pub fn run(args: &PredictArgs, globals: &Globals, ui: &mut Ui) -> Result<()> {
    let mut scoring = Scoring::open(&args.model, &args.input, &[], globals, ui)?;
    let files = input_files("FILE", &args.files)?;
    let skipped = Arc::new(Mutex::new(Skipped::default()));
    let mut output = args.output.as_deref().map(Output::create).transpose()?;
    let (batch_size, max_length, threshold) = (scoring.batch_size, scoring.max_length, scoring.threshold());
    // Regular files have all their rows at once.
    let waits = files.iter().all(|f| f.is_file());
    let kind = scoring.model.task().kind;
    if let Some(flag) = args.span.given().filter(|_| kind != TaskKind::Span) {
        return Err(Error::input(format!("{flag} is for span, and this model's task is {kind}; leave it out")));
    }
    if let Some(flag) = args.tags.given().filter(|_| kind != TaskKind::Tokens) {
        return Err(Error::input(format!("{flag} is for tokens, and this model's task is {kind}; leave it out")));
    }
    if kind == TaskKind::Span {
        let (windows, decoding) = scoring.answers(&args.span)?;
        let reader = QuestionReader::open(files.as_slice(), &scoring.question_options(&files, false)?)?;
        let reading = Reading { reader, skipped_of: QuestionReader::skipped, skipped: Arc::clone(&skipped) };
        let (model, tokenizer) = (&mut scoring.model, &scoring.tokenizer);
        let mut without_room = Skipped::default();
        for chunk in chunks(reading, CHUNK, waits) {
            let found = span::predict(model, tokenizer, chunk?, batch_size, windows, &decoding)?;
            write(&found.predictions, &mut output, ui)?;
            without_room.append(found.skipped);
            found.failed.map_or(Ok(()), Err)?;
        }
        skipped.lock().unwrap_or_else(PoisonError::into_inner).append(without_room);
    } else if kind == TaskKind::Tokens {
        let (_, decoder) = scoring.tag_reading(&args.tags, false)?;
        let reader = SentenceReader::open(files.as_slice(), &scoring.sentence_options(&files, false)?)?;
        let reading = Reading { reader, skipped_of: SentenceReader::skipped, skipped: Arc::clone(&skipped) };
        let (model, tokenizer) = (&mut scoring.model, &scoring.tokenizer);
        for chunk in chunks(reading, CHUNK, waits) {
            let found = tags::predict(model, tokenizer, &chunk?, batch_size, max_length, &decoder)?;
            write(&found, &mut output, ui)?;
        }
    } else {
        let first = Some(files.first().as_path()).filter(|f| *f != Path::new(STANDARD_INPUT));
        let reader = Reader::open_all(files.as_slice(), &scoring.read_options(first, false)?)?;
        let reading = Reading { reader, skipped_of: Reader::skipped, skipped: Arc::clone(&skipped) };
        let mut predictor =
            Predictor::new(&mut scoring.model, &scoring.tokenizer, batch_size, max_length).with_threshold(threshold);
        for chunk in chunks(reading, CHUNK, waits) {
            write(&predictor.predict(&chunk?)?, &mut output, ui)?;
        }
    }
    if let Some(message) = skipped.lock().unwrap_or_else(PoisonError::into_inner).describe() {
        ui.event(&Event::Warning { message });
    }
    output.map_or(Ok(()), Output::finish)
}

/// A line of JSON a prediction.
fn write(predictions: &[impl Serialize], output: &mut Option<Output>, ui: &mut Ui) -> Result<()> {
    let mut lines = String::new();
    for prediction in predictions {
        let json = serde_json::to_string(prediction).map_err(|e| Error::Failed(e.to_string()))?;
        lines.push_str(&json);
        lines.push('\n');
    }
    match output {
        Some(output) => output.write(&lines),
        None => ui.out(&lines),
    }
}

/// A file that is there whole or not at all: written beside its name and renamed at the end, so that it may even be the
/// input. What is not a plain file (a pipe, a terminal) is written directly.
struct Output {
    file: BufWriter<File>,
    path: PathBuf,
    part: Option<PathBuf>,
}

impl Output {
    fn create(path: &Path) -> Result<Self> {
        let direct = path.exists() && !path.is_file();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = (!direct).then(|| path.with_file_name(name));
        let target = part.as_deref().unwrap_or(path);
        let file = File::options().write(true).create(!direct).truncate(!direct).open(target);
        let file = file.map_err(|e| Error::io(target, e))?;
        Ok(Self { file: BufWriter::new(file), path: path.into(), part })
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).map_err(|e| Error::write(&self.path, e))
    }

    fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::write(&self.path, e))?;
        match &self.part {
            Some(part) => std::fs::rename(part, &self.path).map_err(|e| Error::write(&self.path, e)),
            None => Ok(()),
        }
    }
}

/// A reader, and where to tell at its end what it skipped.
struct Reading<R> {
    reader: R,
    skipped_of: fn(&R) -> &Skipped,
    skipped: Arc<Mutex<Skipped>>,
}

/// Rows predicted together at most; enough for batches of like length.
const CHUNK: usize = 1024;

/// The reader's rows in pieces: full ones if it `waits` for them, so that the same file gives the same batches and thereby the
/// same last digits; else as many as have arrived, so that a slow source is answered at once. Rows before a bad one still
/// come.
fn chunks<T: Send + 'static, R: Iterator<Item = Result<T>> + Send + 'static>(
    reading: Reading<R>,
    most: usize,
    waits: bool,
) -> impl Iterator<Item = Result<Vec<T>>> {
    let (send, receive) = std::sync::mpsc::sync_channel(2 * most);
    std::thread::spawn(move || {
        let Reading { mut reader, skipped_of, skipped } = reading;
        loop {
            // A reader that breaks down must not look like the end of the input.
            let row = guarded(|| Ok::<_, Error>(reader.next()));
            let Some(row) = row.unwrap_or_else(|e| Some(Err(Error::Failed(format!("the input cannot be read: {e}")))))
            else {
                break;
            };
            // The receiver goes away when a prediction fails; then there is nothing left to do.
            let failed = row.is_err();
            if send.send(row).is_err() || failed {
                break;
            }
        }
        // Before `send` is dropped, so that who waits for the end finds it.
        *skipped.lock().unwrap_or_else(PoisonError::into_inner) = skipped_of(&reader).clone();
        drop(send);
    });
    let mut failed = None;
    std::iter::from_fn(move || {
        if let Some(e) = failed.take() {
            return Some(Err(e));
        }
        let mut chunk = vec![];
        let mut next = receive.recv().ok();
        while let Some(row) = next {
            match row {
                Ok(example) => chunk.push(example),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
            next = match chunk.len() < most {
                true if waits => receive.recv().ok(),
                true => receive.try_recv().ok(),
                false => None,
            };
        }
        if chunk.is_empty() { failed.take().map(Err) } else { Some(Ok(chunk)) }
    })
}
