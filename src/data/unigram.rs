//! The scores of a Unigram vocabulary in a `tokenizer.json`, to the bit as Python's `tokenizers` has them.
//!
//! Texts such as `!!!!!!!` can be cut in several ways whose scores differ only in the order of their sums, so the last bits of
//! the scores decide. `tokenizers` has them from serde_json's fast parser, which may miss the nearest number by one bit. Here
//! the same code would read the nearest ones: exact parsing (`float_roundtrip`) is on for the whole program.

use serde_json::Value;

/// A `tokenizer.json` with the scores that the fast parser finds in it, if it is one of a Unigram model.
pub(super) fn with_fast_scores(json: &[u8]) -> Option<Vec<u8>> {
    const MODEL: &[u8] = b"\"Unigram\"";
    if !json.windows(MODEL.len()).any(|w| w == MODEL) {
        return None;
    }
    let mut file: Value = serde_json::from_slice(json).ok()?;
    let model = file.get_mut("model").filter(|model| model["type"] == "Unigram")?;
    for piece in model.get_mut("vocab")?.as_array_mut()? {
        if let Some(score) = piece.get_mut(1)
            && let Some(nearest) = score.as_f64()
        {
            *score = fast(nearest).into();
        }
    }
    serde_json::to_vec(&file).ok()
}

/// What serde_json's fast parser makes of a number's shortest text, by the number nearest to it: its digits as an integer,
/// times or by a power of ten, each of which is rounded.
fn fast(nearest: f64) -> f64 {
    let text = format!("{:e}", nearest.abs());
    let parts = || {
        let (digits, exponent) = text.split_once('e')?;
        let fraction = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i32);
        let significand: u64 = digits.replace('.', "").parse().ok()?;
        let exponent = exponent.parse::<i32>().ok()? - fraction;
        let power: f64 = format!("1e{}", exponent.abs()).parse().ok().filter(|power: &f64| power.is_finite())?;
        let value = if exponent < 0 { significand as f64 / power } else { significand as f64 * power };
        Some(value.copysign(nearest)).filter(|value| value.is_finite())
    };
    parts().unwrap_or(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn short_numbers_are_exact_and_long_ones_rounded_twice() {
        for exact in [0.0, -0.0, 1.0, -5.25, 1e22, -0.000_123, 123_456_789.5, 5e-324, f64::MAX] {
            assert_eq!(fast(exact).to_bits(), exact.to_bits(), "{exact}");
        }
        // As integers, 17 digits are beyond 2⁵³: a neighbour is divided instead.
        assert_eq!(fast(-10.537178665947101), -10.5371786659471);
        assert_eq!(fast(-9.116194823035073), -9.116194823035071);
    }

    #[test]
    fn only_scores_of_unigram_change() {
        assert_eq!(with_fast_scores(br#"{"model": {"type": "BPE", "vocab": {"Unigram": 1}}}"#), None);
        assert_eq!(with_fast_scores(br#"{"added": ["Unigram"], "model": {"type": "BPE", "vocab": {}}}"#), None);
        assert_eq!(with_fast_scores(b"\"Unigram\" is no JSON"), None);
        let score = -12.345_678_901_234_567;
        let file = |score: f64| {
            let vocab = json!([["<unk>", 0], ["a", score], ["b", -2.5]]);
            json!({"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false}})
        };
        let got = with_fast_scores(file(score).to_string().as_bytes()).unwrap();
        let mut expected = file(fast(score));
        expected["model"]["vocab"][0][1] = json!(0.0);
        assert_eq!(serde_json::from_slice::<Value>(&got).unwrap(), expected);
    }
}
