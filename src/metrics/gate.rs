//! Quality gates: `--fail-under accuracy=0.9` and `--fail-over loss=0.5` on the scores of an evaluation.

use super::Metrics;
use crate::error::{Error, Result};
use crate::suggest::did_you_mean;

/// One bound on one score.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    metric: String,
    side: Side,
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Under,
    Over,
}

impl Gate {
    /// `metric=x` of `--fail-under`: a score below `x` fails.
    pub fn fail_under(text: &str) -> Result<Self> {
        Self::parse(text, Side::Under)
    }

    /// `metric=x` of `--fail-over`: a score above `x` fails.
    pub fn fail_over(text: &str) -> Result<Self> {
        Self::parse(text, Side::Over)
    }

    fn parse(text: &str, side: Side) -> Result<Self> {
        let wrong = |found: String| {
            let flag = if side == Side::Under { "--fail-under" } else { "--fail-over" };
            Error::input(format!("{flag} {text:?}: {found}; write metric=number, such as {flag} accuracy=0.9"))
        };
        let (metric, limit) = text.split_once('=').ok_or_else(|| wrong("there is no `=`".into()))?;
        let (metric, limit) = (metric.trim(), limit.trim());
        if metric.is_empty() {
            return Err(wrong("there is no metric before `=`".into()));
        }
        match limit.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Self { metric: metric.into(), side, limit: value }),
            _ => Err(wrong(format!("{limit:?} is not a finite number"))),
        }
    }

    /// Fails with the list of metrics unless the gate's is among `names`: call it before a long evaluation.
    pub fn known<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let names: Vec<&str> = names.into_iter().collect();
        if names.contains(&self.metric.as_str()) {
            return Ok(());
        }
        let hint = did_you_mean(&self.metric, names.iter().copied());
        Err(Error::input(format!("there is no metric {:?} here, only {}{hint}", self.metric, names.join(", "))))
    }

    /// What is wrong, if the score is not within the bound. A NaN never is.
    fn missed(&self, value: f64) -> Option<String> {
        let (met, word) = match self.side {
            Side::Under => (value >= self.limit, "under"),
            Side::Over => (value <= self.limit, "over"),
        };
        match met {
            true => None,
            false if value.is_nan() => Some(format!("{} is not defined (NaN)", self.metric)),
            false => Some(format!("{} {value} is {word} {}", self.metric, self.limit)),
        }
    }
}

/// Holds the scores against all gates: [`Error::Input`] for a gate on an unknown metric, else [`Error::Gate`] naming
/// every gate that is not met.
pub fn check(gates: &[Gate], metrics: &Metrics) -> Result<()> {
    let mut missed = Vec::new();
    for gate in gates {
        gate.known(metrics.0.iter().map(|(n, _)| n.as_str()))?;
        missed.extend(metrics.get(&gate.metric).and_then(|value| gate.missed(value)));
    }
    if missed.is_empty() { Ok(()) } else { Err(Error::Gate(format!("quality gate not met: {}", missed.join("; ")))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics(vec![("loss".into(), 0.5), ("accuracy".into(), 0.9), ("pearson".into(), f64::NAN)])
    }

    fn message(gates: &[Result<Gate>]) -> (u8, String) {
        let gates: Vec<Gate> = gates.iter().map(|g| g.as_ref().unwrap().clone()).collect();
        check(&gates, &metrics()).map_or_else(|e| (e.exit_code(), e.to_string()), |()| (0, String::new()))
    }

    #[test]
    fn the_bound_itself_passes() {
        let ok = [Gate::fail_under("accuracy=0.9"), Gate::fail_over("loss = 5e-1"), Gate::fail_under("loss=-1")];
        assert_eq!(message(&ok).0, 0);
        assert_eq!(check(&[], &metrics()).ok(), Some(()));
    }

    #[test]
    fn every_missed_gate_is_named() {
        let (code, text) = message(&[
            Gate::fail_under("accuracy=0.91"),
            Gate::fail_over("accuracy=1"),
            Gate::fail_over("loss=0.4"),
            Gate::fail_under("pearson=-1"),
            Gate::fail_over("pearson=1"),
        ]);
        assert_eq!(code, 3);
        let nan = "pearson is not defined (NaN)";
        assert_eq!(
            text,
            format!("quality gate not met: accuracy 0.9 is under 0.91; loss 0.5 is over 0.4; {nan}; {nan}")
        );
    }

    #[test]
    fn an_unknown_metric_is_a_wrong_input_even_beside_a_missed_gate() {
        let (code, text) = message(&[Gate::fail_under("accuracy=1"), Gate::fail_under("acuracy=0.5")]);
        assert_eq!(code, 2);
        assert_eq!(text, "there is no metric \"acuracy\" here, only loss, accuracy, pearson; did you mean accuracy?");
        assert!(!message(&[Gate::fail_under("bleu=0.5")]).1.contains("did you mean"));
    }

    #[test]
    fn wrong_text_is_explained() {
        for (text, part) in
            [("f1", "no `=`"), ("=1", "no metric"), ("f1=", "\"\" is not"), ("f1=NaN", "finite"), ("f1=9,5", "\"9,5\"")]
        {
            let e = Gate::fail_over(text).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains(part) && e.to_string().contains("--fail-over"), "{e}");
        }
    }
}
