//! Answers to questions, as users see it, on an article of SQuAD 2.0 (`examples/`).

#[path = "common/workplace.rs"]
mod workplace;

use serde_json::{Value, json};
use std::fs;
use workplace::Workplace;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `c.toml` learns from `train` and evaluates on `eval`.
fn workplace(train: &str, eval: &str, more: &str) -> Workplace {
    Workplace::new(&format!(
        "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"span\"\n[data]\n\
             train = \"{train}\"\neval = \"{eval}\"\nmax_length = 128\ndoc_stride = 32\n[train]\nepochs = 2\n\
             batch_size = 8\nlearning_rate = 5e-4\nmetric_for_best_model = \"f1\"\n{more}\n[output]\ndir = \"run\"\n"
    ))
}

fn file(place: &Workplace, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).unwrap()).unwrap()
}

#[test]
fn train_evaluate_and_predict() {
    let data = format!("{ROOT}/examples/data/squad2");
    let (train, test) = (format!("{data}/train.json"), format!("{data}/test.json"));
    let place = workplace(&train, &test, "[eval]\ntune_threshold = \"f1\"");
    let events = place.json(&["train", "--config", "c.toml", "--json"], "");
    let scores = &events.last().unwrap()["metrics"]["eval"];
    // With the best threshold the score is the best there is, and at least that of answering nothing: 21 of 41 have no answer.
    let [f1, best] = ["f1", "best_f1"].map(|name| scores[name].as_f64().unwrap());
    assert!((f1 - best).abs() < 1e-12 && f1 >= 21.0 / 41.0, "{scores}");
    let losses: Vec<f64> =
        events.iter().filter(|e| e["event"] == "eval").filter_map(|e| e["metrics"]["loss"].as_f64()).collect();
    assert!(losses.iter().all(|loss| *loss < 4.5), "{losses:?}");

    let config = file(&place, "run/model/config.json");
    assert_eq!((&config["architectures"][0], config.get("id2label")), (&json!("BertForQuestionAnswering"), None));
    let bertft = file(&place, "run/model/bertft.json");
    assert_eq!((&bertft["doc_stride"], &bertft["n_best_size"]), (&json!(32), &json!(20)));

    // The same scores once more, and the files of the reference script.
    let args = ["eval", "--model", "run", "--data", &test, "--json", "--save-predictions", "out"];
    let again = &place.json(&args, "")[0];
    assert!((again["metrics"]["f1"].as_f64().unwrap() - f1).abs() < 1e-9 && again["samples"] == 41, "{again}");
    let [predictions, nbest, odds] =
        ["predictions", "nbest_predictions", "null_odds"].map(|name| file(&place, &format!("out/{name}.json")));
    assert_eq!([&predictions, &nbest, &odds].map(|map| map.as_object().unwrap().len()), [41; 3]);
    let (code, table, _) = place.run(&["eval", "--model", "run", "--data", &test, "--fail-under", "f1=0.99"], "");
    assert!(code == 3 && table.contains("has_ans_exact"), "{table}");

    // Predictions are those that were scored; without a question's answers nothing is missed.
    let rows = place.json(&["predict", "--model", "run", &test], "");
    for row in &rows {
        assert_eq!(row["answer"], predictions[row["id"].as_str().unwrap()], "{row}");
        assert_eq!(row["answer"] == "", row.get("start").is_none(), "{row}");
    }
    // Offsets count characters, whatever stands before.
    let context = "🙂 Ne\u{301}e in 911, the Normans settled in France. ".repeat(12);
    let asked = json!({"id": 7, "question": "Where did the Normans settle?", "context": context}).to_string();
    let never = ["predict", "--model", "run", "--null-score-diff-threshold", "1e9"];
    let row = &place.json(&never, &asked)[0];
    let at = |key: &str| row[key].as_u64().unwrap() as usize;
    let text: String = context.chars().skip(at("start")).take(at("end") - at("start")).collect();
    assert!(row["answer"] == json!(text) && !text.is_empty() && row["id"] == 7, "{row}");
    let one = ["predict", "--model", "run", "--null-score-diff-threshold", "-1e9"];
    assert_eq!(place.json(&one, &asked)[0]["answer"], "");
    place.refused(&["eval", "--model", "run", "--data", &test, "--slice-by", "x"], &["not for answers"]);
    place.refused(&["predict", "--model", "run", &test, "--doc-stride", "128"], &["--doc-stride is 128"]);
}

/// One that leaves no room ends the predictions where it stands, or is skipped, like any other bad row.
fn bad_questions_in_predictions(place: &Workplace, row: &dyn Fn(&str, &str, i64) -> String) {
    let long = row("y", "cat", 2).replace("who?", &"who is it ".repeat(60));
    fs::write(place.path("b.jsonl"), [row("v", "cat", 2), row("w", "cat", 2)].join("\n")).unwrap();
    fs::write(place.path("c.jsonl"), [row("x", "cat", 2), long, "{\"id\"".into(), row("z", "cat", 2)].join("\n"))
        .unwrap();
    let ids = |out: &str| -> Vec<Value> {
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone()).collect()
    };
    let predict = ["predict", "--model", "run", "b.jsonl", "c.jsonl"];
    let (code, out, err) = place.run(&predict, "");
    assert!(code == 2 && err.contains("c.jsonl:2: question \"y\" has") && !err.contains("b.jsonl"), "{code} {err}");
    assert_eq!(ids(&out), ["v", "w", "x"]);
    let (code, out, err) = place.run(&[&predict[..], &["--on-bad-row", "skip"]].concat(), "");
    assert!(
        code == 0 && err.contains("2 rows were skipped") && err.contains("c.jsonl:2: question \"y\""),
        "{code} {err}"
    );
    assert!(err.contains("c.jsonl:3"), "{err}");
    assert_eq!(ids(&out), ["v", "w", "x", "z"]);
}

#[test]
fn bad_questions_are_named_repaired_or_skipped() {
    let place = workplace("a.jsonl", "a.jsonl", "");
    let row = |id: &str, answer: &str, start: i64| {
        let answers = json!([{"text": answer, "answer_start": start}]);
        json!({"id": id, "question": "who?", "context": "a cat sat, a dog sat", "answers": answers}).to_string()
    };
    let write = |rows: &[String]| fs::write(place.path("a.jsonl"), rows.join("\n")).unwrap();
    write(&[row("x", "cat", 2), row("y", "dog", 3), row("z", "sat", 0)]);
    let says = ["a.jsonl:3", "question \"z\"", "is not at character 0 and stands at 2 places"];
    place.refused(&["config", "validate", "--config", "c.toml"], &says);
    let args = ["train", "--config", "c.toml", "--json", "--dry-run", "--set", "data.on_bad_row=skip"];
    let events = place.json(&args, "");
    let data = events.iter().find(|e| e["event"] == "data").unwrap();
    assert_eq!((&data["rows"], &data["skipped"]), (&json!(2), &json!(1)), "{data}");
    let warned = |e: &Value| e["event"] == "warning" && e["message"].as_str().unwrap().contains("1 answer was not at");
    assert!(events.iter().any(warned), "{events:?}");
    write(&[row("x", "cat", 2), row("x", "cat", 2)]);
    place.refused(&["config", "validate", "--config", "c.toml"], &["a.jsonl:2", "row 2 has the id of row 1"]);
    // A question that leaves no room for its context is a bad row too.
    let long = row("y", "cat", 2).replace("who?", &"who is it ".repeat(60));
    write(&[row("x", "cat", 2), long]);
    place.refused(
        &["config", "validate", "--config", "c.toml"],
        &["a.jsonl:2", "question \"y\" has", "tokens, which leaves 0"],
    );
    let events = place.json(&args, "");
    let data = events.iter().find(|e| e["event"] == "data").unwrap();
    assert_eq!((&data["rows"], &data["skipped"]), (&json!(1), &json!(1)), "{data}");
    write(&[row("x", "cat", 2)]);
    let ran = ["train", "--config", "c.toml", "--set", "train.max_steps=1", "--set", "eval.n_best_size=5"];
    assert_eq!(place.run(&ran, "").0, 0);
    bad_questions_in_predictions(&place, &row);
    for (set, says) in [
        ("data.join=-", "data.join is set"),
        ("data.labels=[\"a\",\"b\"]", "data.labels is set"),
        ("data.doc_stride=500", "data.doc_stride is 500"),
        ("train.label_smoothing_factor=0.1", "span has no labels to smooth"),
        ("eval.tune_threshold=mcc", "expected f1 or exact_match"),
        ("eval.max_answer_length=0", "is 0, expected 1 to"),
        (
            "train.metric_for_best_model=no_ans_f1",
            "with questions that all have answers there is loss, exact_match, f1",
        ),
    ] {
        place.refused(&["config", "validate", "--config", "c.toml", "--set", set], &[says]);
    }
}

#[test]
fn check_shows_answers_and_what_is_wrong() {
    let data = format!("{ROOT}/examples/data/squad2");
    let place = workplace(&format!("{data}/train.json"), &format!("{data}/test.json"), "");
    let check = ["check", "--config", "c.toml", "--no-timing"];
    let (code, out, err) = place.run(&check, "");
    assert!(code == 0 && err.is_empty(), "{code} {err}");
    for part in [
        "span with",
        "\nquestions ",
        "\ncontexts ",
        "\nwithout answer ",
        "\nanswers in no window ",
        "\nwindows of all ",
    ] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    // A question of train is asked again of the same text, with another answer.
    let train: Value = serde_json::from_slice(&fs::read(format!("{data}/train.json")).unwrap()).unwrap();
    let paragraph = &train["data"][0]["paragraphs"][0];
    let context = paragraph["context"].as_str().unwrap();
    let answered = paragraph["qas"].as_array().unwrap().iter().find(|qa| qa["answers"] != json!([])).unwrap();
    let answers = json!([{"text": context.chars().take(4).collect::<String>(), "answer_start": 0}]);
    let asked = json!({"id": "again", "question": answered["question"], "context": context, "answers": answers});
    fs::write(place.path("e.jsonl"), asked.to_string()).unwrap();
    let args = [&check[..], &["--set", "data.eval=e.jsonl", "--json", "--fail-on", "leakage"]].concat();
    let (code, out, _) = place.run(&args, "");
    assert_eq!(code, 3, "{out}");
    let check: Value = out
        .lines()
        .find_map(|line| Some(line).filter(|l| l.contains("\"check\"")))
        .map(|line| serde_json::from_str(line).unwrap())
        .unwrap();
    let finding = |name: &str| check["findings"].as_array().unwrap().iter().find(|f| f["name"] == name).cloned();
    let leak = finding("leakage").unwrap();
    assert_eq!(
        (&leak["split"], &leak["count"], &leak["examples"][0]["id"]),
        (&json!("eval"), &json!(1), &json!("again"))
    );
    let conflict = &finding("conflicts").unwrap()["examples"][0];
    assert_eq!((&conflict["id"], &conflict["other"]["id"]), (&answered["id"], &json!("again")));
    assert!(conflict["texts"][0] == answered["question"], "{conflict}");
    let of_train = &check["splits"][0]["answers"];
    let none = train["data"][0]["paragraphs"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|p| p["qas"].as_array().unwrap())
        .filter(|qa| qa["answers"] == json!([]))
        .count();
    assert_eq!((of_train["without_answer"].as_u64(), train["data"].as_array().unwrap().len()), (Some(none as u64), 1));
}
