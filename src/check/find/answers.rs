//! Questions: answers that were moved, and those that a model cannot give.

use super::View;
use crate::check::findings::{Finding, Listed, Name};
use crate::check::measures::{Answers, Measures};
use crate::check::scan::questions::{Answered, Questions};

impl View<'_> {
    /// What only questions have.
    pub(super) fn answers(&self, split: usize, measures: &Measures) -> Vec<Finding> {
        let this = &self.splits[split];
        let (Some(questions), Some(answers)) = (this.questions.as_deref(), &measures.answers) else { return vec![] };
        let found = [
            self.moved(split, questions),
            self.lost(split, questions),
            self.too_long(split, questions, answers),
            self.inexact(split, questions),
        ];
        found.into_iter().flatten().collect()
    }

    fn moved(&self, split: usize, questions: &Questions) -> Option<Finding> {
        let count = questions.moved.answers;
        let message = questions.moved.describe()?;
        let fix = "look at them, and write the right answer_start";
        let mut finding = self.finding(Name::MovedAnswers, Some(split), count as usize, message, fix);
        let rows = questions.moved_rows.iter().take(self.options.examples);
        finding.examples = rows.map(|&row| self.listed(split, row)).collect();
        (count > 0).then_some(finding)
    }

    /// Rows with an answer that is as `is` says.
    fn answered(&self, split: usize, questions: &Questions, is: impl Fn(&Answered) -> bool) -> Vec<usize> {
        self.rows_where(split, |row| questions.notes[row].answer.as_ref().is_some_and(&is))
    }

    /// Lists the first rows of a finding with a word about the answer of each.
    fn detailed(
        &self,
        finding: Option<Finding>,
        split: usize,
        rows: &[usize],
        questions: &Questions,
        detail: impl Fn(&Answered) -> String,
    ) -> Option<Finding> {
        let listed = |&row: &usize| {
            let detail = questions.notes[row].answer.as_ref().map(&detail);
            Listed { detail, ..self.listed(split, row) }
        };
        let examples = rows.iter().take(self.options.examples).map(listed).collect();
        finding.map(|finding| Finding { examples, ..finding })
    }

    fn lost(&self, split: usize, questions: &Questions) -> Option<Finding> {
        let rows = self.answered(split, questions, |answer| !answer.in_window);
        let what = "with an answer that no window of the context holds whole: they are learnt as if they had none";
        let fix = "raise data.max_length or data.doc_stride, or shorten the answers";
        let finding = self.about(Name::LostAnswers, split, &rows, what, fix);
        self.detailed(finding, split, &rows, questions, |answer| format!("{} tokens", answer.tokens))
    }

    fn too_long(&self, split: usize, questions: &Questions, answers: &Answers) -> Option<Finding> {
        let most = answers.max_answer_length;
        let rows = self.answered(split, questions, |answer| answer.shortest as usize > most);
        let what = format!("with answers of more than {most} tokens alone, which are never predicted");
        let fix = format!("set eval.max_answer_length = {} or more to reach all of them", {
            let shortest = |&row: &usize| questions.notes[row].answer.as_ref().map_or(0, |answer| answer.shortest);
            rows.iter().map(shortest).max().unwrap_or(0)
        });
        let finding = self.about(Name::LongAnswers, split, &rows, &what, &fix);
        self.detailed(finding, split, &rows, questions, |answer| format!("{} tokens", answer.shortest))
    }

    fn inexact(&self, split: usize, questions: &Questions) -> Option<Finding> {
        let rows = self.answered(split, questions, |answer| answer.instead.is_some());
        let what = "whose answer begins or ends within a token, so that no prediction matches it exactly";
        let fix = "move the answers to whole words where they were cut by mistake";
        let finding = self.about(Name::InexactAnswers, split, &rows, what, fix);
        self.detailed(finding, split, &rows, questions, |answer| {
            format!("read as {:?}", answer.instead.as_deref().unwrap_or_default())
        })
    }
}
