//! The report of `bertft check` for readers.

use super::super::ui::{count, duration};
use super::Memory;
use crate::check::findings::{Finding, Listed, percent};
use crate::check::measures::{Answers, Bin, Entities, Lengths, Measures, Tags, Truncation, Windows};
use crate::config::RunConfig;
use crate::train::timing::Timing;
use std::path::Path;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Classes that the table shows; of more, the largest and the smallest.
const MOST_CLASSES: usize = 12;

/// How to write it.
pub struct Report {
    /// Columns.
    pub width: usize,
    /// Whether a terminal shows it, which has block characters.
    pub terminal: bool,
}

impl Report {
    /// The whole report.
    pub fn text(
        &self,
        file: &Path,
        config: &RunConfig,
        measures: &[Measures],
        needs: Option<&(Memory, Timing)>,
        findings: &[Finding],
    ) -> String {
        let mut out = format!("{}: {} with {}\n", file.display(), config.task.kind, config.model.path);
        for m in measures {
            out += &format!("  {:<6} {}\n", m.split, m.file);
        }
        out += "\n";
        out += &figures(measures);
        out += &self.classes(measures);
        out += &self.histogram(&measures[0]);
        if let Some((memory, timing)) = needs {
            out += &estimates(memory, timing, measures);
        }
        out += &self.findings(findings);
        out
    }

    /// Rows a class, as a table.
    fn classes(&self, measures: &[Measures]) -> String {
        let Some(Table { heading, names, counts, totals }) = table(measures) else { return String::new() };
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by_key(|&c| std::cmp::Reverse(counts[0][c]));
        let skipped = order.len().saturating_sub(MOST_CLASSES);
        let room = self.width.min(120).saturating_sub(16 + 18 * measures.len()).max(22);
        let widest = names.iter().map(|name| name.width()).max().unwrap_or(0).clamp(22, room);
        let mut out = format!("\n{}", pad(heading, widest));
        measures.iter().for_each(|m| out += &format!("{:>18}", m.split));
        out += "\n";
        for (i, &class) in order.iter().enumerate() {
            if skipped > 0 && i == MOST_CLASSES / 2 {
                out += &format!("… {skipped} more\n");
            }
            if skipped > 0 && (MOST_CLASSES / 2..MOST_CLASSES / 2 + skipped).contains(&i) {
                continue;
            }
            out += &pad(&cut(&names[class], widest), widest);
            for (counts, total) in counts.iter().zip(&totals) {
                let rows = counts[class];
                out += &format!("{rows:>9} {:>8}", percent(rows as f64 / (*total).max(1) as f64));
            }
            out += "\n";
        }
        out
    }

    fn histogram(&self, train: &Measures) -> String {
        let bins = &train.length.histogram;
        let most = bins.iter().map(|b| b.rows).max().unwrap_or(1).max(1);
        let room = self.width.min(100) - 40;
        let max_length = train.max_length();
        let cut = if train.windows.is_some() { " in windows" } else { " cut" };
        let mut out = format!("\nlengths of {} in tokens (data.max_length = {max_length})\n", train.split);
        let numbers = bins.last().map_or(1, |b| b.to.to_string().len());
        for &Bin { from, to, rows } in bins {
            let filled = (rows * room).div_ceil(most);
            let bar = if self.terminal { "█" } else { "#" }.repeat(filled);
            let share = percent(rows as f64 / train.rows as f64);
            let cut = if from as usize > max_length { cut } else { "" };
            out += &format!("  {from:>numbers$}–{to:<numbers$} {rows:>9} {share:>8}  {bar}{cut}\n");
        }
        out
    }

    fn findings(&self, findings: &[Finding]) -> String {
        if findings.is_empty() {
            return "\nno findings\n".into();
        }
        let mut out = format!("\n{} finding{}\n", findings.len(), if findings.len() == 1 { "" } else { "s" });
        for finding in findings {
            let split = finding.split.as_ref().map_or_else(String::new, |s| format!(" in {s}"));
            out += "\n";
            out += &self.wrapped(&format!("{}{split}: {}", finding.name, finding.message), 0);
            for listed in &finding.examples {
                out += &self.example(listed);
            }
            out += &self.wrapped(&format!("fix: {}", finding.fix), 2);
        }
        out
    }

    fn example(&self, listed: &Listed) -> String {
        let mut place = listed.at.to_string();
        if let Some(other) = &listed.other {
            let name = other.file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            let other = match &listed.at.file {
                file if *file == other.file => match &other.id {
                    Some(id) => id.clone(),
                    None => format!("line {}", other.line),
                },
                file if file.parent() == other.file.parent() => format!("{name}:{}", other.line),
                _ => other.to_string(),
            };
            place += &match listed.similarity {
                Some(similarity) => format!(" ~ {other} ({similarity:.2})"),
                None => format!(" = {other}"),
            };
        }
        if let Some(detail) = &listed.detail {
            place += &format!("  [{detail}]");
        }
        let mut out = format!("  {}\n", cut(&place, self.width - 2));
        for texts in [&listed.texts, &listed.other_texts] {
            if !texts.is_empty() {
                out += &format!("      {}\n", beside(texts, self.width - 6));
            }
        }
        out
    }

    /// Text broken between words, each further line indented.
    fn wrapped(&self, text: &str, indent: usize) -> String {
        let mut out = " ".repeat(indent);
        let mut column = indent;
        for word in text.split(' ') {
            if column > indent && column + 1 + word.width() > self.width {
                out += &format!("\n{}", " ".repeat(indent + 4));
                column = indent + 4;
            } else if column > indent {
                out.push(' ');
                column += 1;
            }
            out += word;
            column += word.width();
        }
        out + "\n"
    }
}

/// Names, and how many there are of each.
type Counts = Vec<(String, usize)>;

/// Counts by name: of labels, or of types of entities.
struct Table {
    heading: &'static str,
    names: Vec<String>,
    /// By split and name.
    counts: Vec<Vec<usize>>,
    /// By split: of which the counts are shares.
    totals: Vec<usize>,
}

fn table(measures: &[Measures]) -> Option<Table> {
    let of_pairs = |heading, pairs: &dyn Fn(&Measures) -> Option<Counts>, totals: Vec<usize>| {
        let pairs: Vec<Vec<(String, usize)>> = measures.iter().map(pairs).collect::<Option<_>>()?;
        let mut names: Vec<String> = vec![];
        for (name, _) in pairs.iter().flatten() {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let count =
            |pairs: &Vec<(String, usize)>, name: &String| pairs.iter().find(|p| p.0 == *name).map_or(0, |p| p.1);
        let counts = pairs.iter().map(|pairs| names.iter().map(|name| count(pairs, name)).collect()).collect();
        Some(Table { heading, names, counts, totals })
    };
    let tags = |m: &Measures| m.tags.clone();
    let entities = |m: &Measures| tags(m).and_then(|t| t.entities);
    match &measures[0].tags {
        Some(Tags { entities: Some(_), .. }) => {
            let pairs = |m: &Measures| Some(entities(m)?.types.into_iter().map(|t| (t.name, t.entities)).collect());
            of_pairs("entities", &pairs, measures.iter().map(|m| entities(m).map_or(0, |e| e.count)).collect())
        }
        Some(_) => {
            let words = measures.iter().map(|m| tags(m).map_or(0, |t| t.words)).collect();
            of_pairs("words", &|m| Some(tags(m)?.counts), words)
        }
        None => {
            let rows = measures.iter().map(|m| m.rows).collect();
            of_pairs("label", &|m| Some(m.labels.clone()?.counts), rows)
        }
    }
}

/// Of words with tags.
fn tag_figures(tags: &Tags, measures: &[Measures]) -> String {
    let row = |name: &str, cell: &dyn Fn(&Measures) -> String| row(measures, name, cell);
    let of = |m: &Measures, f: &dyn Fn(&Tags) -> String| m.tags.as_ref().map_or_else(String::new, f);
    let mut out = row("words", &|m| of(m, &|t| t.words.to_string()));
    out += &row("words a sentence", &|m| of(m, &|t| format!("{:.1}", t.words_per_sentence.mean)));
    out += &row("        longest", &|m| of(m, &|t| t.words_per_sentence.max.to_string()));
    out += &row("accuracy of a constant", &|m| of(m, &|t| format!("{:.4}", t.majority_accuracy)));
    out += &format!("  (always \"{}\")\n", cut(&tags.majority, 40));
    out += &row("words without tokens", &|m| of(m, &|t| t.words_without_tokens.to_string()));
    out += &row("unknown words", &|m| {
        of(m, &|t| with_share(t.unknown_words as u64, t.unknown_words as f64 / t.words.max(1) as f64))
    });
    if tags.entities.is_none() {
        return out;
    }
    let of =
        |m: &Measures, f: &dyn Fn(&Entities) -> String| of(m, &|t| t.entities.as_ref().map_or_else(String::new, f));
    out += &row("entities", &|m| of(m, &|e| e.count.to_string()));
    out += &row("words outside (O)", &|m| of(m, &|e| percent(e.outside_share)));
    out += &row("sentences without any", &|m| {
        of(m, &|e| with_share(e.sentences_without as u64, e.sentences_without as f64 / m.rows.max(1) as f64))
    });
    if measures.len() > 1 {
        out += &row("entities known from train", &|m| {
            of(m, &|e| {
                e.seen_in_train.map_or_else(String::new, |n| with_share(n as u64, n as f64 / e.count.max(1) as f64))
            })
        });
    }
    out += &row("scheme, as it looks", &|m| of(m, &|e| e.scheme.guessed.unwrap_or("none").to_owned()));
    if let Some(name) = tags.entities.as_ref().and_then(|e| e.scheme.configured) {
        out += &row(&format!("sentences in {name}"), &|m| {
            of(m, &|e| e.scheme.sentences.get(name).map_or_else(String::new, usize::to_string))
        });
    }
    out
}

/// Of questions with answers.
fn answer_figures(measures: &[Measures]) -> String {
    let row = |name: &str, cell: &dyn Fn(&Measures) -> String| row(measures, name, cell);
    let of = |m: &Measures, f: &dyn Fn(&Answers) -> String| m.answers.as_ref().map_or_else(String::new, f);
    let share = |m: &Measures, f: fn(&Answers) -> usize| {
        of(m, &|a| with_share(f(a) as u64, f(a) as f64 / m.rows.max(1) as f64))
    };
    let lengths = |m: &Measures, f: fn(&Answers) -> &Lengths| {
        of(m, &|a| format!("{:.0} / {} / {}", f(a).mean, f(a).p99, f(a).max))
    };
    let mut out = row("contexts", &|m| of(m, &|a| a.contexts.to_string()));
    out += &row("without answer", &|m| share(m, |a| a.without_answer));
    out += &row("answers found elsewhere", &|m| of(m, &|a| a.moved.to_string()));
    out += &row("answers in no window", &|m| share(m, |a| a.lost));
    out += &row("answers within tokens", &|m| share(m, |a| a.inexact));
    let most = measures[0].answers.as_ref().map_or(0, |a| a.max_answer_length);
    out += &row(&format!("answers over {most} tokens"), &|m| share(m, |a| a.too_long));
    out += "tokens: mean / 99 % / longest\n";
    out += &row("        of questions", &|m| lengths(m, |a| &a.question_length));
    out += &row("        of contexts", &|m| lengths(m, |a| &a.context_length));
    out + &row("        of answers", &|m| lengths(m, |a| &a.answer_length))
}

/// The table of figures: a column a split.
fn figures(measures: &[Measures]) -> String {
    let row = |name: &str, cell: &dyn Fn(&Measures) -> String| row(measures, name, cell);
    let mut out = row("", &|m| m.split.clone());
    let rows = match &measures[0] {
        Measures { tags: Some(_), .. } => "sentences",
        Measures { answers: Some(_), .. } => "questions",
        _ => "rows",
    };
    out += &row(rows, &|m| m.rows.to_string());
    if let Some(tags) = &measures[0].tags {
        out += &tag_figures(tags, measures);
    } else if measures[0].answers.is_some() {
        out += &answer_figures(measures);
    } else if measures[0].labels.is_some() {
        let labels = |m: &Measures| m.labels.clone().map(|l| (l.counts, l.imbalance, l.majority_accuracy));
        out += &row("labels", &|m| {
            labels(m).map_or_else(String::new, |(counts, ..)| counts.iter().filter(|c| c.1 > 0).count().to_string())
        });
        out += &row("largest / smallest label", &|m| labels(m).map_or_else(String::new, |l| format!("{:.1}", l.1)));
        let majority = measures[0].labels.as_ref().map_or("", |l| &l.majority);
        out += &row("accuracy of a constant", &|m| labels(m).map_or_else(String::new, |l| format!("{:.4}", l.2)));
        out += &format!("  (always \"{}\")\n", cut(majority, 40));
    } else {
        let value = |m: &Measures, of: fn(&crate::check::measures::Values) -> f64| {
            m.values.as_ref().map_or_else(String::new, |v| format!("{:.4}", of(v)))
        };
        out += &row("label mean", &|m| value(m, |v| v.mean));
        out += &row("label std", &|m| value(m, |v| v.std));
        out += &row("label min", &|m| value(m, |v| v.min));
        out += &row("label max", &|m| value(m, |v| v.max));
        out += &row("mse of train's mean", &|m| value(m, |v| v.mean_predictor_mse));
    }
    out += &row("tokens: 50 % up to", &|m| m.length.p50.to_string());
    out += &row("        90 %", &|m| m.length.p90.to_string());
    out += &row("        95 %", &|m| m.length.p95.to_string());
    out += &row("        99 %", &|m| m.length.p99.to_string());
    out += &row("        longest", &|m| m.length.max.to_string());
    let truncation =
        |m: &Measures, of: &dyn Fn(&Truncation) -> String| m.truncation.as_ref().map_or_else(String::new, of);
    let windows = |m: &Measures, of: &dyn Fn(&Windows) -> String| m.windows.as_ref().map_or_else(String::new, of);
    if measures[0].truncation.is_some() {
        out += &row("rows cut at max_length", &|m| {
            truncation(m, &|cut| with_share(cut.rows as u64, cut.rows as f64 / m.rows as f64))
        });
        out += &row("tokens lost by that", &|m| truncation(m, &|cut| with_share(cut.tokens, cut.token_share)));
        out += &row("max_length for 99 % whole", &|m| truncation(m, &|cut| cut.max_length_for_99_percent.to_string()));
    } else {
        out += &row("longer than max_length", &|m| {
            windows(m, &|cut| with_share(cut.rows as u64, cut.rows as f64 / m.rows as f64))
        });
        out += &row("windows of all", &|m| windows(m, &|cut| cut.windows.to_string()));
        out += &row("max_length for 99 % whole", &|m| windows(m, &|cut| cut.max_length_for_99_percent.to_string()));
    }
    out += &row("unknown tokens", &|m| with_share(m.unknown.tokens, m.unknown.share));
    out
}

/// A line of that table.
fn row(measures: &[Measures], name: &str, cell: &dyn Fn(&Measures) -> String) -> String {
    let cells: String = measures.iter().map(|m| format!("{:>18}", cell(m))).collect();
    format!("{name:<26}{cells}\n")
}

fn with_share(n: u64, share: f64) -> String {
    if n == 0 { "0".into() } else { format!("{n} ({})", percent(share)) }
}

fn estimates(memory: &Memory, timing: &Timing, measures: &[Measures]) -> String {
    let free = memory.available_bytes.map_or_else(String::new, |b| format!("; {:.1} GB are free", b as f64 / 1e9));
    let mut out =
        format!("\nmemory  about {} MB at the peak of training{free}\n", memory.estimated_peak_rss_bytes >> 20);
    let total = timing.train_seconds + timing.eval_seconds;
    let evaluation = if measures.len() > 1 {
        format!(", {} of it evaluation", duration(timing.eval_seconds))
    } else {
        String::new()
    };
    out += &format!(
        "time    about {} ± {} for {} steps{evaluation}\n",
        duration(total),
        duration(timing.plus_minus_seconds),
        timing.total_steps
    );
    let ms = |seconds: f64| if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") };
    out += &format!(
        "        {} a step, {} on the longest rows, {} tokens/s (from {} steps)\n",
        ms(timing.step_seconds),
        ms(timing.longest_step_seconds),
        count(timing.tokens_per_second as usize),
        timing.timed_steps
    );
    out
}

/// One text, or two with a bar between, in so many columns; of two that are too long each gets half, or what the other leaves.
fn beside(texts: &[String], columns: usize) -> String {
    let [first, second] = texts else { return cut(&texts.concat(), columns) };
    let room = columns - 3;
    let half = room / 2;
    let left = first.width().min(half.max(room.saturating_sub(second.width())));
    format!("{} | {}", cut(first, left), cut(second, room - left))
}

/// The text in so many columns, cut if it must be.
fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut used = 1; // of the ellipsis
    let fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used <= columns
    };
    text.chars().take_while(fits).collect::<String>() + "…"
}

fn pad(text: &str, columns: usize) -> String {
    text.to_owned() + &" ".repeat(columns.saturating_sub(text.width()))
}
