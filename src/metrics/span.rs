//! Scores of answers that are pieces of a text: those of the official evaluations of SQuAD 1.1 (Rajpurkar et al. 2016) and 2.0
//! (Rajpurkar et al. 2018), as fractions.

use super::Metrics;
use regex::Regex;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Names of the scores, without `loss`, where every question has an answer.
pub const NAMES: [&str; 2] = ["exact_match", "f1"];

/// The same where some have none; the official names are `exact`, `HasAns_exact`, `NoAns_exact`, `best_exact_thresh` and so on.
pub const NAMES_WITH_NONE: [&str; 10] = [
    "exact_match",
    "f1",
    "has_ans_exact",
    "has_ans_f1",
    "no_ans_exact",
    "no_ans_f1",
    "best_exact",
    "best_exact_thresh",
    "best_f1",
    "best_f1_thresh",
];

/// How right the best piece of a text is as the answer to a question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    pub has_answer: bool,
    /// 1 or 0.
    pub exact: f64,
    pub f1: f64,
    /// Whether there is a piece at all.
    pub is_text: bool,
    /// By how much the score of no answer is above the piece's.
    pub null_odds: f64,
}

impl Judged {
    /// Compares a text with the right answers, of which the best match counts. `with_none`: as SQuAD 2.0, where some questions
    /// have no answer.
    pub fn new(text: &str, answers: &[String], null_odds: f64, with_none: bool) -> Self {
        let found = normalised(text);
        let mut right: Vec<String> = answers.iter().map(|answer| normalised(answer)).collect();
        if with_none {
            right.retain(|answer| !answer.is_empty());
            if right.is_empty() {
                right.push(String::new());
            }
        }
        let best = |of: &dyn Fn(&str) -> f64| right.iter().map(|answer| of(answer)).fold(0.0, f64::max);
        Self {
            has_answer: !answers.is_empty(),
            exact: best(&|answer| f64::from(u8::from(answer == found))),
            f1: best(&|answer| f1(&found, answer, with_none)),
            is_text: !text.is_empty(),
            null_odds,
        }
    }

    /// Scores where nothing is answered if the odds are above the threshold: exact match and F1.
    fn decided(&self, threshold: Option<f64>) -> [f64; 2] {
        match threshold {
            Some(threshold) if self.null_odds > threshold => [f64::from(u8::from(!self.has_answer)); 2],
            _ => [self.exact, self.f1],
        }
    }
}

/// The scores of answers; with a `threshold` those of SQuAD 2.0, where a question has no answer if its odds are above it. The
/// `best_` ones are those at the threshold that would have been best. Means of nothing are NaN.
pub fn score(judged: &[Judged], threshold: Option<f64>) -> Metrics {
    let mean = |which: usize, of: &dyn Fn(&Judged) -> bool| {
        let scores: Vec<f64> = judged.iter().filter(|j| of(j)).map(|j| j.decided(threshold)[which]).collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    let mut values = vec![mean(0, &|_| true), mean(1, &|_| true)];
    if threshold.is_none() {
        return Metrics(NAMES.map(String::from).into_iter().zip(values).collect());
    }
    for has_answer in [true, false] {
        values.extend([0, 1].map(|which| mean(which, &|j| j.has_answer == has_answer)));
    }
    for of in [Of::Exact, Of::F1] {
        let (best, threshold) = best(judged, of);
        // The official evaluation says 0 where it is best to answer nothing.
        values.extend([best, threshold.unwrap_or(0.0)]);
    }
    Metrics(NAMES_WITH_NONE.map(String::from).into_iter().zip(values).collect())
}

/// Which score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Exact,
    F1,
}

/// The highest mean score that a threshold gives, and the threshold: `None` where it is best to answer nothing.
fn best(judged: &[Judged], of: Of) -> (f64, Option<f64>) {
    let mut sorted: Vec<&Judged> = judged.iter().collect();
    sorted.sort_by(|a, b| a.null_odds.total_cmp(&b.null_odds));
    let mut sum = judged.iter().filter(|j| !j.has_answer).count() as f64;
    let (mut most, mut at) = (sum, None);
    for j in sorted {
        sum += match of {
            _ if !j.has_answer => -f64::from(u8::from(j.is_text)),
            Of::Exact => j.exact,
            Of::F1 => j.f1,
        };
        if sum > most {
            (most, at) = (sum, Some(j.null_odds));
        }
    }
    (most / judged.len() as f64, at)
}

/// The threshold that is best by a score; below all odds where it is best to answer nothing. `None` without questions.
pub fn best_threshold(judged: &[Judged], of: Of) -> Option<f64> {
    let least = judged.iter().map(|j| j.null_odds).min_by(f64::total_cmp)?;
    Some(best(judged, of).1.unwrap_or(least - 1.0))
}

/// Lower case, without punctuation (of ASCII), articles and superfluous white space.
pub fn normalised(text: &str) -> String {
    // Python's `\w`, without the marks that the crate's has.
    static WORD: LazyLock<Regex> = LazyLock::new(|| {
        #[allow(clippy::unwrap_used)] // a constant, compiled by the tests
        Regex::new(r"[\p{L}\p{N}_]+").unwrap()
    });
    let kept: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let without = WORD.replace_all(&kept, |word: &regex::Captures<'_>| match &word[0] {
        "a" | "an" | "the" => " ".to_owned(),
        other => other.to_owned(),
    });
    words(&without).collect::<Vec<_>>().join(" ")
}

/// As Python's `split` parts them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Of the words of two normalised texts, counted.
fn f1(found: &str, answer: &str, with_none: bool) -> f64 {
    let count = |text: &str| words(text).count() as f64;
    if with_none && (found.is_empty() || answer.is_empty()) {
        return f64::from(u8::from(found == answer));
    }
    let mut left: HashMap<&str, u32> = HashMap::new();
    words(answer).for_each(|word| *left.entry(word).or_default() += 1);
    let mut same = 0.0;
    for word in words(found) {
        if let Some(n) = left.get_mut(word).filter(|n| **n > 0) {
            *n -= 1;
            same += 1.0;
        }
    }
    if same == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (same / count(found), same / count(answer));
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str, answers: &[&str], with_none: bool) -> [f64; 2] {
        let answers: Vec<String> = answers.iter().map(|a| a.to_string()).collect();
        Judged::new(text, &answers, 0.0, with_none).decided(None)
    }

    #[test]
    fn texts_are_compared_as_the_official_scripts_do() {
        assert_eq!(normalised("The  Cat's\u{a0}hat, an A."), "cats hat");
        assert_eq!(normalised("thea-a ΣΑΣ"), "theaa σας");
        assert_eq!(normalised("a\u{301}b"), "\u{301}b");
        assert_eq!(judged("The Cat!", &["dog", "cat"], false), [1.0, 1.0]);
        assert_eq!(judged("cat sat", &["cat ran", "x"], false), [0.0, 0.5]);
        // One "b" is only one "b".
        assert_eq!(judged("b b", &["b c"], false), [0.0, 0.5]);
        // Nothing but an article: no word to share in 1.1, no answer in 2.0.
        assert_eq!(judged("the", &["an"], false), [1.0, 0.0]);
        assert_eq!(judged("the", &[], true), [1.0, 1.0]);
        assert_eq!(judged("cat", &[], true), [0.0, 0.0]);
        assert_eq!(judged("cat", &["the", "cat"], true), [1.0, 1.0]);
    }

    #[test]
    fn names_match_the_scores() {
        let one = [Judged { has_answer: true, exact: 1.0, f1: 1.0, is_text: true, null_odds: -2.0 }];
        let names = |of: Metrics| of.0.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(score(&one, None)), NAMES);
        assert_eq!(names(score(&one, Some(0.0))), NAMES_WITH_NONE);
        assert!(score(&one, Some(0.0)).get("no_ans_f1").unwrap().is_nan());
    }

    #[test]
    fn the_best_threshold_is_where_most_is_right() {
        let j = |has_answer, f1, null_odds| Judged { has_answer, exact: 0.0, f1, is_text: true, null_odds };
        let rows = [j(true, 1.0, -3.0), j(false, 0.0, 2.0), j(true, 0.5, 1.0), j(true, 0.25, 4.0)];
        let scores = score(&rows, Some(0.0));
        let [best, at] = ["best_f1", "best_f1_thresh"].map(|name| scores.get(name).unwrap());
        assert_eq!((best, at), (2.5 / 4.0, 1.0));
        assert_eq!(score(&rows, Some(at)).get("f1"), Some(best));
        assert_eq!(best_threshold(&rows, Of::F1), Some(1.0));
        // Nothing is right: answer nothing.
        let never = [j(false, 0.0, -3.0), j(true, 0.0, 2.0)];
        assert_eq!(best_threshold(&never, Of::F1), Some(-4.0));
        assert_eq!(score(&never, Some(-4.0)).get("f1"), Some(0.5));
        assert_eq!(best_threshold(&[], Of::F1), None);
    }
}
