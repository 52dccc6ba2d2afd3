//! The training loop, in reading order.

use super::config::TrainConfig;
use super::eval::{EvalSet, SetScores, evaluate};
use super::log::{Event, Phase, Progress, Reporter};
use super::plan::{Epoch, Plan};
use super::run_dir::{Best, EventLog, Identity, RunDir, State};
use super::step::{Fetched, StepConfig, gradients, update};
use crate::data::{Batch, Dataset};
use crate::device::is_out_of_memory;
use crate::error::{Error, Result};
use crate::model::{BertftJson, Model, Pretrained};
use std::collections::HashSet;
use std::time::Instant;

/// Everything a run is made of.
pub struct Trainer<'a> {
    pub model: &'a mut Model,
    pub train: &'a Dataset,
    pub eval: &'a [EvalSet],
    pub config: TrainConfig,
    /// `train.class_weights` in label order.
    pub class_weights: Option<&'a [f32]>,
    pub run: &'a RunDir,
    /// Where the tokenizer and `config.json` of the saved model come from.
    pub source: &'a Pretrained,
    pub extra: &'a BertftJson,
    /// What a resumed run must have in common with this one.
    pub identity: &'a Identity,
    pub log: &'a mut EventLog,
    pub reporter: &'a mut dyn Reporter,
    /// When the program began; the first step is measured from it.
    pub started: Instant,
}

/// What this session did; a resumed run has several.
#[derive(Debug, Default)]
struct Session {
    seconds: f64,
    tokens: u64,
    first_step_seconds: f64,
    /// Of the last step that is settled.
    learning_rate: f64,
    grad_norm: f64,
    /// The last step, where the host has not waited for its numbers.
    unsettled: Option<Step>,
}

/// A step that a device was given.
#[derive(Debug)]
struct Step {
    /// From 0.
    number: u64,
    fetched: Fetched,
    learning_rate: f64,
    /// Of the training data.
    rows: Vec<usize>,
}

impl Session {
    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// Counts what has passed since `before`.
    fn add_seconds(&mut self, before: Instant, state: &mut State) {
        let seconds = before.elapsed().as_secs_f64();
        self.seconds += seconds;
        state.train_seconds += seconds;
    }
}

/// What a finished run leaves behind, with the best model loaded.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub state: State,
    pub epochs: f64,
    /// From the start of the program to the end of this session's first update.
    pub first_step_seconds: f64,
}

impl Trainer<'_> {
    /// Trains from `state` (a new run's default, or a checkpoint's) to the end.
    ///
    /// # Errors
    /// [`Error::Failed`] when the loss or a gradient is not finite, or a parameter is not reached by the loss;
    /// [`Error::Interrupted`] after a checkpoint when the reporter asks to stop.
    pub fn run(mut self, mut state: State) -> Result<Outcome> {
        let plan = Plan::new(&self.config, self.train);
        let total = plan.total;
        let mut step_config = StepConfig::new(&self.config, total);
        step_config.objective.class_weights = self.class_weights.map(<[f32]>::to_vec);
        let mut session = Session::default();
        let mut current: Option<(u64, Epoch)> = None;
        self.model.recompute_activations(self.config.gradient_checkpointing);
        while state.step < total && !self.is_out_of_patience(&state) {
            let before = Instant::now();
            let (epoch, within) = plan.place(state.step);
            let (_, batches) = match current.take() {
                Some(drawn) if drawn.0 == epoch => current.insert(drawn),
                _ => current.insert((epoch, Epoch::new(&self.config, self.train, epoch))),
            };
            let window: Vec<Batch> = batches.window(within).map(|rows| self.train.batch(rows)).collect();
            let number = state.step;
            match self.step(&window, &step_config, &mut state, &mut session, before) {
                // The step was not done: once more, in smaller batches of the same rows.
                Err(e) if state.step == number => {
                    // What is wrong with the step before comes first.
                    self.settle(&mut state, &mut session, total)?;
                    if !self.shrinks_batches(&e, &mut state)? {
                        return Err(e);
                    }
                    step_config.accumulation = self.config.gradient_accumulation_steps as u64;
                    current = None;
                    continue;
                }
                done => done?,
            }
            let at = |steps: Option<u64>| match steps {
                Some(steps) => state.step.is_multiple_of(steps),
                None => plan.ends_epoch(state.step),
            };
            let (eval_due, save_due) = (at(self.config.eval_steps), at(self.config.save_steps));
            let log_due = state.step.is_multiple_of(self.config.logging_steps);
            let last = state.step == total;
            if eval_due || save_due || log_due || last {
                self.settle(&mut state, &mut session, total)?;
            }
            if log_due {
                self.log_step(&mut state, &session, &plan)?;
            }
            let gained = (eval_due || last) && self.evaluate_average(&mut state, &plan)?;
            let over = last || self.is_out_of_patience(&state);
            let interrupted = self.reporter.interrupted() && !over;
            if interrupted {
                self.settle(&mut state, &mut session, total)?;
            }
            // With a new best model the checkpoint must know of it: else a run that is killed later resumes to another best.
            if save_due || over || interrupted || gained {
                self.checkpoint(&mut state)?;
            }
            if interrupted {
                return Err(Error::Interrupted { resumable: true });
            }
        }
        self.finish(&state)?;
        let epochs = plan.epochs(state.step);
        Ok(Outcome { state, epochs, first_step_seconds: session.first_step_seconds })
    }

    /// One optimizer step over a window of batches; `before` is when its work began. A GPU works on it while the host goes on to
    /// the next one, in which it waits for the numbers of this one.
    fn step(
        &mut self,
        window: &[Batch],
        config: &StepConfig,
        state: &mut State,
        session: &mut Session,
        before: Instant,
    ) -> Result<()> {
        let number = state.step;
        let passed = gradients(self.model, window, config, number)?;
        // Before the update, which the numbers need not wait for.
        let fetched = passed.fetch()?;
        let learning_rate = update(self.model, &passed, config, number)?;
        let rows = window.iter().flat_map(|b| &b.rows).copied().collect();
        let step = Step { number, fetched, learning_rate, rows };
        let is_here = step.fetched.is_here();
        let earlier = session.unsettled.replace(step);
        state.step += 1;
        state.samples += passed.rows as u64;
        let tokens = window.iter().map(|b| b.ids.len() as u64).sum::<u64>();
        let is_first = session.tokens == 0;
        session.tokens += tokens;
        state.tokens += tokens;
        session.add_seconds(before, state);
        if let Some(earlier) = earlier {
            self.settle_one(earlier, state, session, config.schedule.total)?;
        }
        let begins = self.model.params.learners().any(|(_, learning)| learning.since == Some(number));
        if is_here || is_first || begins {
            self.settle(state, session, config.schedule.total)?;
        }
        if begins {
            self.must_reach_all(number)?;
        }
        if is_first {
            session.first_step_seconds = self.started.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Waits for the last step, where that was not done.
    fn settle(&mut self, state: &mut State, session: &mut Session, total: u64) -> Result<()> {
        session.unsettled.take().map_or(Ok(()), |step| self.settle_one(step, state, session, total))
    }

    /// Waits for a step's numbers and counts them.
    fn settle_one(&mut self, step: Step, state: &mut State, session: &mut Session, total: u64) -> Result<()> {
        let before = Instant::now();
        let passed = step.fetched.wait()?;
        session.add_seconds(before, state);
        self.must_be_finite(&step.rows, step.number, passed.loss_sum, passed.grad_norm)?;
        session.learning_rate = step.learning_rate;
        session.grad_norm = passed.grad_norm;
        state.logged_loss += passed.loss_sum;
        state.logged_divisor += passed.divisor;
        self.reporter.progress(Progress {
            phase: Phase::Train,
            done: step.number + 1,
            total,
            loss: passed.loss_sum / passed.divisor,
            learning_rate: session.learning_rate,
            tokens_per_second: session.tokens_per_second(),
        });
        Ok(())
    }

    /// Whether the error is that a device's memory was full, and batches are smaller from now on.
    fn shrinks_batches(&mut self, error: &Error, state: &mut State) -> Result<bool> {
        let is_full = matches!(error, Error::Candle(e) if is_out_of_memory(e));
        if !is_full || !self.config.auto_find_batch_size {
            return Ok(false);
        }
        let Some(smaller) = self.config.with_smaller_batches() else { return Ok(false) };
        self.model.release_buffers()?;
        let message = format!("step {}: the device's memory is full; {}", state.step + 1, smaller.describe_batches());
        self.emit(&Event::Warning { message })?;
        state.batch_size = smaller.batch_size;
        self.config = smaller;
        Ok(true)
    }

    fn log_step(&mut self, state: &mut State, session: &Session, plan: &Plan) -> Result<()> {
        let event = Event::Step {
            step: state.step,
            total_steps: plan.total,
            epoch: plan.epochs(state.step),
            loss: state.logged_loss / state.logged_divisor,
            learning_rate: session.learning_rate,
            grad_norm: session.grad_norm,
            tokens_per_second: session.tokens_per_second(),
        };
        (state.logged_loss, state.logged_divisor) = (0.0, 0.0);
        self.emit(&event)
    }

    fn is_out_of_patience(&self, state: &State) -> bool {
        self.config.early_stopping_patience.is_some_and(|p| state.evals_without_gain >= p)
    }

    fn must_be_finite(&self, rows: &[usize], step: u64, loss_sum: f64, grad_norm: f64) -> Result<()> {
        if loss_sum.is_finite() && grad_norm.is_finite() {
            return Ok(());
        }
        let (what, value) = if loss_sum.is_finite() { ("gradient", grad_norm) } else { ("loss", loss_sum) };
        let lines: Vec<u64> = rows.iter().map(|&r| self.train.lines[r]).collect();
        let shown = lines.iter().take(8).map(u64::to_string).collect::<Vec<_>>().join(", ");
        let more = if lines.len() > 8 { format!(" and {} more", lines.len() - 8) } else { String::new() };
        Err(Error::Failed(format!(
            "step {}: the {what} is {value} on the rows at {} lines {shown}{more}; lower train.learning_rate, raise \
             train.warmup_ratio, or look at these rows",
            step + 1,
            self.train.file.display()
        )))
    }

    fn must_reach_all(&self, step: u64) -> Result<()> {
        // Those that begin to learn; an older one's gradient may vanish in one window of a well-trained model.
        let begins: HashSet<&str> = self
            .model
            .params
            .learners()
            .filter(|(_, learning)| learning.since == Some(step))
            .map(|(spec, _)| spec.name.as_str())
            .collect();
        let mut names = self.model.unreached()?;
        names.retain(|name| begins.contains(name.as_str()));
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::Failed(format!(
            "step {}: no finite gradient reached {}; the model would not learn there",
            step + 1,
            names.join(", ")
        )))
    }

    /// [`Self::evaluate`] with the moving average of the weights, where one is kept.
    fn evaluate_average(&mut self, state: &mut State, plan: &Plan) -> Result<bool> {
        self.model.params.swap_average();
        let gained = self.evaluate(state, plan);
        self.model.params.swap_average();
        gained
    }

    /// Scores the eval sets, if there are any; keeps the model if it is the best so far and says whether it is.
    fn evaluate(&mut self, state: &mut State, plan: &Plan) -> Result<bool> {
        // The set that decides: the first, unless the metric names one.
        let named = self.config.deciding().0.map(|set| format!("eval_{set}"));
        let is_named = |set: &&EvalSet| named.as_ref().is_none_or(|name| set.name == *name);
        let Some(decides) = self.eval.iter().find(is_named) else { return Ok(false) };
        let epoch = plan.epochs(state.step);
        let (mut scores, mut events) = (vec![], vec![]);
        for set in self.eval {
            let result = evaluate(self.model, set, self.config.eval_batch_size, None, self.reporter)?;
            events.push(Event::eval(set, &result, state.step, epoch));
            scores.push(SetScores { set: set.name.clone(), metrics: result.metrics, slices: result.slices });
        }
        let value = self.deciding_score(&scores, &decides.name)?;
        let so_far = state.best.as_ref().map(|b| self.deciding_score(&b.sets, &decides.name)).transpose()?;
        let gains = |b: f64| if self.config.greater_is_better() { value > b } else { value < b };
        let is_best = value.is_finite() && so_far.is_none_or(gains);
        for (mut event, set) in events.into_iter().zip(self.eval) {
            if let Event::Eval { best, .. } = &mut event {
                *best = is_best && set.name == decides.name;
            }
            self.emit(&event)?;
        }
        if is_best {
            self.save_model(state.step)?;
            state.best = Some(Best { step: state.step, sets: scores.clone() });
            state.evals_without_gain = 0;
        } else {
            state.evals_without_gain += 1;
        }
        state.last_eval = scores;
        Ok(is_best)
    }

    /// The score that decides which model is the best.
    fn deciding_score(&self, scores: &[SetScores], set: &str) -> Result<f64> {
        let name = self.config.deciding().1;
        let Some(scores) = scores.iter().find(|s| s.set == set) else {
            return Err(Error::input(format!("the checkpoint has no scores of the set {set:?}; use --overwrite")));
        };
        scores.metrics.get(name).ok_or_else(|| {
            let names: Vec<_> = scores.metrics.0.iter().map(|(n, _)| n.as_str()).collect();
            let names = names.join(", ");
            Error::input(format!("train.metric_for_best_model is {name:?}, but this task yields {names}"))
        })
    }

    fn save_model(&mut self, step: u64) -> Result<()> {
        let dir = self.run.model();
        self.model.save(&dir, self.source, self.extra)?;
        self.emit(&Event::Save { step, path: dir.display().to_string() })
    }

    fn checkpoint(&mut self, state: &mut State) -> Result<()> {
        let path = self.run.checkpoint(state.step);
        let event = Event::Save { step: state.step, path: path.display().to_string() };
        // The log first, as the checkpoint notes its length; listeners only once the checkpoint is there.
        self.log.write(&event)?;
        state.events_bytes = self.log.len()?;
        self.run.save_checkpoint(self.model, state, self.identity, self.config.save_total_limit)?;
        self.reporter.event(&event);
        Ok(())
    }

    /// Leaves the best model in `model/` and loaded.
    fn finish(&mut self, state: &State) -> Result<()> {
        self.model.params.swap_average();
        match &state.best {
            Some(best) if best.step < state.step => self.model.reload(&Pretrained::open(&self.run.model())?),
            Some(_) => Ok(()),
            None => {
                if !self.eval.is_empty() {
                    let message = "no evaluation gave a finite score; the last model is kept";
                    self.emit(&Event::Warning { message: message.into() })?;
                }
                self.save_model(state.step)
            }
        }
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        self.log.write(event)?;
        self.reporter.event(event);
        Ok(())
    }
}

/// The eval scores of the best model, or of the last one when none had a finite score.
pub fn final_eval(state: &State) -> &[SetScores] {
    state.best.as_ref().map_or(&state.last_eval, |best| &best.sets)
}

/// The metrics of `metrics.json` and the `done` event: an object a set, and behind them, under `slices`, those of the sets
/// that have some.
pub fn collect_metrics(scores: &[SetScores]) -> Result<serde_json::Value> {
    let failed = |e: serde_json::Error| Error::Failed(e.to_string());
    let (mut out, mut slices) = (serde_json::Map::new(), serde_json::Map::new());
    for scores in scores {
        out.insert(scores.set.clone(), serde_json::to_value(&scores.metrics).map_err(failed)?);
        if let Some(of_set) = &scores.slices {
            slices.insert(scores.set.clone(), serde_json::to_value(of_set).map_err(failed)?);
        }
    }
    if !slices.is_empty() {
        out.insert("slices".into(), slices.into());
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests;
