//! Tags and entities of sentences, in input order.

use crate::data::sampler::length_sorted;
use crate::data::tagging::scheme::{Reading, Span, Tag, spans};
use crate::data::tagging::{Sentence, unlabelled};
use crate::data::{Targets, Tokenizer};
use crate::error::{Error, Result};
use crate::heads::sequence::probabilities;
use crate::heads::tags::{TagDecoder, WordScores};
use crate::model::Model;
use serde::Serialize;

/// One sentence's answer, as `predict` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TagPrediction {
    /// 1-based row of the input.
    pub row: u64,
    /// Copied when the input has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    pub words: Vec<String>,
    /// As many as words.
    pub tags: Vec<String>,
    /// What the tags say; absent where they are none of entities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entities: Option<Vec<Entity>>,
}

/// A piece of the text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entity {
    #[serde(rename = "type")]
    pub kind: String,
    /// In characters of the text, or of the words with a space between them where the input was words.
    pub start: usize,
    /// Past the last.
    pub end: usize,
    pub text: String,
    /// Mean probability of its words' tags.
    pub score: f32,
}

/// Tags sentences; rows of like length are computed together.
pub fn predict(
    model: &mut Model,
    tokenizer: &Tokenizer,
    sentences: &[Sentence],
    batch_size: usize,
    max_length: usize,
    decoder: &TagDecoder,
) -> Result<Vec<TagPrediction>> {
    let data = unlabelled(sentences, tokenizer, max_length)?;
    let encoder = model.encoder().0.config();
    data.tokens.check_ids(encoder.embedding.vocab, encoder.type_ids())?;
    let Targets::Tags(rows) = &data.targets else { return Err(Error::Failed("the rows have no words".into())) };
    let (outputs, names) = (model.task().outputs(), model.task().labels.clone());
    let mut scores: Vec<WordScores> = sentences.iter().map(|s| WordScores::new(s.words.len(), outputs)).collect();
    for of_rows in length_sorted(&data.tokens.lengths(), batch_size) {
        let logits: Vec<f32> = model.logits(&data.batch(&of_rows))?.flatten_all()?.to_vec1()?;
        let mut words = logits.chunks_exact(outputs);
        for row in of_rows.iter().map(|&row| rows.row(row)) {
            for (&(word, _), logits) in row.words.iter().zip(words.by_ref()) {
                scores[row.sentence as usize].set(word as usize, logits);
            }
        }
    }
    let labelled = |scores: &WordScores| -> Vec<Option<(u32, f32)>> {
        let probability =
            |word, label: u32| probabilities(scores.of(word).unwrap_or_default(), outputs)[label as usize];
        let labels = decoder.decode(scores).into_iter().enumerate();
        labels.map(|(word, label)| label.map(|label| (label, probability(word, label)))).collect()
    };
    Ok(sentences.iter().zip(&scores).map(|(sentence, of)| answer(sentence, &labelled(of), &names)).collect())
}

/// `found`: the label of each word and its probability; what the tokenizer makes nothing of is outside.
fn answer(sentence: &Sentence, found: &[Option<(u32, f32)>], names: &[String]) -> TagPrediction {
    let tags: Vec<&str> = found.iter().map(|f| f.map_or("O", |(label, _)| names[label as usize].as_str())).collect();
    let parsed: Option<Vec<Tag>> = names
        .iter()
        .all(|n| Tag::parse(n).is_ok())
        .then(|| tags.iter().map(|tag| Tag::parse(tag).unwrap_or(Tag::OUTSIDE)).collect());
    let entity = |span: Span| {
        let (start, end) = characters(sentence, &span);
        let scores = &found[span.start..span.end];
        Entity {
            kind: span.kind.to_owned(),
            start,
            end,
            text: excerpt(sentence, &span, start, end),
            score: scores.iter().flatten().map(|(_, p)| p).sum::<f32>() / scores.len() as f32,
        }
    };
    TagPrediction {
        row: sentence.row,
        id: sentence.id.clone(),
        words: sentence.words.clone(),
        tags: tags.iter().map(|tag| tag.to_string()).collect(),
        entities: parsed.map(|tags| spans(&tags, Reading::Lenient).into_iter().map(entity).collect()),
    }
}

fn characters(sentence: &Sentence, span: &Span) -> (usize, usize) {
    if let Some(text) = &sentence.text {
        return (text.offsets[span.start].0, text.offsets[span.end - 1].1);
    }
    let length = |words: &[String]| words.iter().map(|w| w.chars().count() + 1).sum::<usize>();
    let start = length(&sentence.words[..span.start]);
    (start, start + length(&sentence.words[span.start..span.end]) - 1)
}

fn excerpt(sentence: &Sentence, span: &Span, start: usize, end: usize) -> String {
    match &sentence.text {
        Some(text) => text.text.chars().skip(start).take(end - start).collect(),
        None => sentence.words[span.start..span.end].join(" "),
    }
}
