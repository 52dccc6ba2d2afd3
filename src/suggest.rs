//! What a mistyped name was most likely meant to be: one measure for config keys, columns, labels and metrics.

/// Names less alike than this share too little to be a slip of the keyboard.
const ALIKE: f64 = 0.65;

/// The candidate most like `name`, whatever the case, if one is near; of equals the first.
///
/// The measure counts insertions, deletions, substitutions and swaps against the length of the longer name. One that
/// favours common beginnings (Jaro-Winkler) would offer `max_steps` for `max_length`.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let mut best = (ALIKE, None);
    for candidate in candidates {
        let score = strsim::normalized_damerau_levenshtein(&name, &candidate.to_lowercase());
        if score > best.0 {
            best = (score, Some(candidate));
        }
    }
    best.1
}

/// The end of a message: `; did you mean …?` with the nearest candidate, or nothing when none is near.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |meant| format!("; did you mean {meant}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let names = ["loss", "accuracy", "macro_f1", "macro_f2"];
        assert_eq!(nearest("Acuracy", names), Some("accuracy"));
        assert_eq!(nearest("macrof1", names), Some("macro_f1"));
        assert_eq!(nearest("macro_f3", names), Some("macro_f1"), "the first of equals");
        assert_eq!(nearest("bleu", names), None);
        assert_eq!(nearest("POSTIVE", ["Negative", "Positive"]), Some("Positive"));
        assert_eq!(nearest("lable", ["text", "label"]), Some("label"));
        assert_eq!(nearest("max_length", ["max_steps", "epochs"]), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn the_end_of_a_message() {
        assert_eq!(did_you_mean("modle", ["data", "model"]), "; did you mean model?");
        assert_eq!(did_you_mean("xyz", ["data", "model"]), "");
    }
}
