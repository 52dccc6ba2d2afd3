//! Tags of words, as users see it, on sentences of WNUT-17 (`examples/`).

#[path = "common/workplace.rs"]
mod workplace;

use bertft::data::tagging::scheme::{Scheme, Tag, first_wrong};
use serde_json::{Value, json};
use std::fs;
use workplace::Workplace;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// `c.toml` learns from `train` and evaluates on `eval`.
fn workplace(train: &str, eval: &str, more: &str) -> Workplace {
    Workplace::new(&format!(
        "[model]\npath = \"{ROOT}/examples/models/bert-tiny-4l-128h\"\n[task]\nkind = \"tokens\"\n[data]\n\
             train = \"{train}\"\neval = \"{eval}\"\nmax_length = 64\n{more}\n[train]\nepochs = 6\nbatch_size = 16\n\
             learning_rate = 5e-4\nmetric_for_best_model = \"f1\"\n[output]\ndir = \"run\"\n"
    ))
}

/// The tags of a predicted row.
fn tags(row: &Value) -> Vec<&str> {
    row["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect()
}

/// Whether a predicted row keeps to the scheme.
fn keeps_to(scheme: Scheme, row: &Value) -> bool {
    let tags: Vec<Tag> = tags(row).into_iter().map(|tag| Tag::parse(tag).unwrap()).collect();
    first_wrong(&tags, scheme).is_none()
}

/// How many of each label a `data` event counts.
fn count(event: &Value, label: &str) -> u64 {
    let pairs = event["labels"].as_array().unwrap();
    pairs.iter().find(|pair| pair[0] == label).map_or(0, |pair| pair[1].as_u64().unwrap())
}

#[test]
fn train_evaluate_and_predict() {
    let data = format!("{ROOT}/examples/data/wnut17");
    let (train, test) = (format!("{data}/train.conll"), format!("{data}/test.conll"));
    let place = workplace(&train, &test, "tag_scheme = \"iob2\"");
    let events = place.json(&["train", "--config", "c.toml", "--json"], "");
    let scores = &events.last().unwrap()["metrics"]["eval"];
    let [f1, accuracy] = ["f1", "accuracy"].map(|name| scores[name].as_f64().unwrap());
    // Nothing is an entity when nothing is learnt.
    assert!(f1 > 0.1 && accuracy > 0.85, "{scores}");
    let rows = events.iter().find(|e| e["event"] == "data" && e["split"] == "train").unwrap();
    // One of 700 sentences is two windows.
    assert!(rows["rows"] == 701 && count(rows, "B-person") > 50, "{rows}");

    let config: Value = serde_json::from_slice(&fs::read(place.path("run/model/config.json")).unwrap()).unwrap();
    assert_eq!((&config["architectures"][0], config.get("problem_type")), (&json!("BertForTokenClassification"), None));

    // The same scores once more, and types have theirs.
    let again = &place.json(&["eval", "--model", "run", "--data", &test, "--json"], "")[0];
    assert!((again["metrics"]["f1"].as_f64().unwrap() - f1).abs() < 1e-9, "{again}");
    assert!(again["per_class"]["person"]["support"].as_u64().unwrap() > 5 && again["samples"] == 150, "{again}");
    let strict = &place.json(&["eval", "--model", "run", "--data", &test, "--json", "--strict-tags"], "")[0];
    // Predictions break the scheme, which only the lenient reading takes for entities.
    assert!(strict["metrics"]["precision"] != again["metrics"]["precision"], "{strict} {again}");
    // Those that are decoded by the scheme never do.
    let viterbi = ["eval", "--model", "run", "--data", &test, "--json", "--tag-decoding", "viterbi"];
    let decoded = &place.json(&viterbi, "")[0];
    let strict = &place.json(&[&viterbi[..], &["--strict-tags"]].concat(), "")[0];
    assert!(decoded["metrics"]["f1"].as_f64().unwrap() > 0.1 && decoded["metrics"] == strict["metrics"], "{decoded}");
    let (code, table, _) = place.run(&["eval", "--model", "run", "--data", &test, "--fail-under", "f1=0.99"], "");
    assert!(code == 3 && table.contains("person") && table.contains("weighted_f1"), "{table}");

    // A text, and words; offsets count characters.
    let text = "🙂 Obama's in New York, again";
    let answer = &place.json(&["predict", "--model", "run"], &format!("{text}\n"))[0];
    assert_eq!(answer["words"], json!(["🙂", "Obama's", "in", "New", "York", ",", "again"]));
    assert_eq!(answer["tags"].as_array().unwrap().len(), 7);
    let chars: Vec<char> = text.chars().collect();
    for entity in answer["entities"].as_array().unwrap() {
        let at = |key: &str| entity[key].as_u64().unwrap() as usize;
        assert_eq!(entity["text"], json!(chars[at("start")..at("end")].iter().collect::<String>()), "{entity}");
    }
    let given = json!({"id": "a", "words": ["Obama", "is", "here"]}).to_string();
    let answer = &place.json(&["predict", "--model", "run"], &given)[0];
    assert_eq!((&answer["id"], answer["words"].as_array().unwrap().len()), (&json!("a"), 3));
    // Empty lines are sentences too: line N is row N.
    let rows = place.json(&["predict", "--model", "run"], "a\n\nb\n");
    assert_eq!(rows.iter().map(|r| r["tags"].as_array().unwrap().len()).collect::<Vec<_>>(), [1, 0, 1]);
    // The predicted tags of a file are those that were scored.
    let rows = place.json(&["predict", "--model", "run", &test], "");
    assert_eq!(rows.len(), 150);
    let wanted = fs::read_to_string(&test).unwrap();
    let wanted: Vec<&str> = wanted.lines().filter_map(|line| line.split_once('\t').map(|(_, tag)| tag)).collect();
    let right = |rows: &[Value]| {
        let tags: Vec<&str> = rows.iter().flat_map(tags).collect();
        assert_eq!(tags.len(), wanted.len());
        tags.iter().zip(&wanted).filter(|(a, b)| a == b).count() as f64 / wanted.len() as f64
    };
    assert!((right(&rows) - accuracy).abs() < 1e-9, "{} {accuracy}", right(&rows));
    let decoded_rows = place.json(&["predict", "--model", "run", &test, "--tag-decoding", "viterbi"], "");
    assert!((right(&decoded_rows) - decoded["metrics"]["accuracy"].as_f64().unwrap()).abs() < 1e-9);
    assert!(decoded_rows.iter().all(|row| keeps_to(Scheme::Iob2, row)));
    // What keeps to the scheme by itself stays as it is.
    let (kept, broken): (Vec<_>, Vec<_>) = rows.iter().zip(&decoded_rows).partition(|(r, _)| keeps_to(Scheme::Iob2, r));
    assert!(!broken.is_empty() && kept.len() > 50 && kept.iter().all(|(a, b)| a["tags"] == b["tags"]), "{broken:?}");
    assert!(rows.iter().any(|r| !r["entities"].as_array().unwrap().is_empty()));
    assert!(rows.iter().all(|r| r["words"].as_array().unwrap().len() == r["tags"].as_array().unwrap().len()));
}

/// The same sentences as columns, as lists and as spans of a text; long ones are cut into windows that predict every word.
#[test]
fn sentences_are_written_in_three_ways() {
    let place = workplace("a.conll", "a.conll", "");
    let (mut conll, mut lists, mut spans) = ("-DOCSTART- O\n \n".to_owned(), String::new(), String::new());
    let sentence = |i: usize| {
        let mut words = vec![("Ada", "B-PER"), ("Lovelace", "I-PER"), ("met", "O"), ("Charles", "B-PER")];
        if i.is_multiple_of(2) {
            words.extend([("in", "O"), ("London", "B-LOC")]);
        }
        words.repeat(if i == 3 { 30 } else { 1 })
    };
    for i in 0..12 {
        let words = sentence(i);
        for (word, tag) in &words {
            conll += &format!("{word} x {tag}\n");
        }
        conll += if i.is_multiple_of(2) { "\n" } else { "\t\n" };
        let (texts, tags): (Vec<_>, Vec<_>) = words.iter().copied().unzip();
        lists += &format!("{}\n", json!({"words": texts, "tags": tags}));
        let (mut at, mut found) = (0, vec![]);
        for (word, tag) in &words {
            match tag.split_once('-') {
                Some(("B", kind)) => found.push(json!({"start": at, "end": at + word.len(), "label": kind})),
                Some(_) => found.last_mut().unwrap()["end"] = json!(at + word.len()),
                None => {}
            }
            at += word.len() + 1;
        }
        spans += &format!("{}\n", json!({"text": texts.join(" "), "spans": found}));
    }
    let mut results = vec![];
    for (name, text) in [("a.conll", &conll), ("a.jsonl", &lists), ("b.jsonl", &spans)] {
        fs::write(place.path(name), text).unwrap();
        let set = [format!("data.train={name}"), format!("data.eval={name}"), format!("output.dir={name}-run")];
        let sets: Vec<&str> = set.iter().flat_map(|s| ["--set", s.as_str()]).collect();
        let more = ["--set", "data.max_length=16", "--set", "train.epochs=1"];
        let events = place.json(&[&["train", "--config", "c.toml", "--json"], &sets[..], &more].concat(), "");
        let data = events.iter().find(|e| e["event"] == "data").unwrap();
        // The long sentence is several rows, none over the length, and no word is lost or counted twice.
        let labels: u64 = data["labels"].as_array().unwrap().iter().map(|pair| pair[1].as_u64().unwrap()).sum();
        assert_eq!(labels, (0..12).map(|i| sentence(i).len() as u64).sum::<u64>(), "{data}");
        assert!(data["rows"].as_u64().unwrap() > 20 && data["longest"] == 16 && data["truncated"] == 0, "{data}");
        results.push(events.last().unwrap()["metrics"]["eval"].clone());
        let predicted = place.json(&["predict", "--model", &format!("{name}-run"), name], "");
        assert_eq!(predicted[3]["tags"].as_array().unwrap().len(), 120);
    }
    assert!(results[0] == results[1] && results[1] == results[2], "{results:?}");

    // Other schemes are other labels for the same entities.
    // A run that decodes by the scheme does so over windows, and leaves a model that does.
    let more = ["--set", "data.tag_scheme=iob2", "--set", "data.convert_tags=iobes", "--output", "iobes"];
    let short = ["--set", "data.max_length=16", "--set", "train.epochs=1", "--set", "eval.tag_decoding=viterbi"];
    let events = place.json(&[&["train", "--config", "c.toml", "--json"], &more[..], &short[..]].concat(), "");
    let data = events.iter().find(|e| e["event"] == "data").unwrap();
    assert!(count(data, "S-LOC") == 6 && count(data, "E-PER") > 0 && count(data, "I-PER") == 0, "{data}");
    let again = &place.json(&["eval", "--model", "iobes", "--data", "a.conll", "--json"], "")[0];
    assert_eq!(again["metrics"]["f1"], events.last().unwrap()["metrics"]["eval"]["f1"]);
    let predicted = place.json(&["predict", "--model", "iobes", "a.conll"], "");
    assert!(predicted.len() == 12 && predicted.iter().all(|row| keeps_to(Scheme::Iobes, row)), "{predicted:?}");
    let free = place.json(&["predict", "--model", "iobes", "a.conll", "--tag-decoding", "argmax"], "");
    assert!(!free.iter().all(|row| keeps_to(Scheme::Iobes, row)), "{free:?}");
    for (more, says) in [
        (["--tag-scheme", "iob2"], ["\"E-PER\" is none of iob2", "give the right --tag-scheme"]),
        (["--tag-decoding", "best"], ["--tag-decoding", "expected argmax or viterbi"]),
    ] {
        place.refused(&[&["predict", "--model", "iobes"], &more[..]].concat(), &says);
    }
    // Parts of speech have no scheme to keep to.
    fs::write(place.path("pos.conll"), "Ada NOUN\nmet VERB\n").unwrap();
    let parts = ["--set", "data.train=pos.conll", "--set", "data.eval=pos.conll", "--set", "eval.tag_decoding=viterbi"];
    let train = ["train", "--config", "c.toml", "--output", "x", "--dry-run"];
    place.refused(&[&train[..], &parts].concat(), &["eval.tag_decoding", "tag \"NOUN\" is not O", "remove the key"]);
}

#[test]
fn mistakes_are_told() {
    let place = workplace("a.conll", "a.conll", "tag_scheme = \"iob2\"");
    let train = |set: &[&'static str]| {
        let mut args = vec!["train", "--config", "c.toml", "--output", "x", "--dry-run"];
        set.iter().for_each(|s| args.extend(["--set", s]));
        args
    };
    fs::write(place.path("a.conll"), "Ada B-PER\nmet O\n\nin O\nLondon I-LOC\n\nParis B-LOC\n").unwrap();
    place.refused(&train(&[]), &["a.conll:5", "tag \"I-LOC\" of \"London\"", "data.tag_scheme = \"iob2\""]);
    let (code, _, err) = place.run(&train(&["data.on_bad_row=skip"]), "");
    assert!(code == 0 && err.contains("skipped") && err.contains("a.conll:5"), "{code} {err}");
    fs::write(place.path("b.conll"), "Ada B-PER\nmet\n\nParis O\n").unwrap();
    place.refused(&train(&["data.train=b.conll"]), &["b.conll:2", "the word \"met\" and no tag"]);
    fs::write(place.path("c.conll"), "\n\n").unwrap();
    place.refused(&train(&["data.train=c.conll"]), &["c.conll", "no sentences"]);
    fs::write(place.path("d.jsonl"), "{\"words\":[\"a\",\"b\"],\"tags\":[\"O\"]}\n").unwrap();
    place.refused(&train(&["data.train=d.jsonl"]), &["d.jsonl:1", "2 words and 1 tags"]);
    fs::write(place.path("e.jsonl"), "{\"text\":\"ab\",\"spans\":[{\"start\":0,\"end\":9,\"label\":\"X\"}]}\n")
        .unwrap();
    place.refused(&train(&["data.train=e.jsonl"]), &["e.jsonl:1", "span 0 to 9, but the text has 2 characters"]);
    // A column that the config names is that column, also where it has the name that others have by default.
    let both = json!({"words": ["a"], "text": ["Ada", "met"], "tags": ["O"], "label": ["B-PER", "O"]});
    fs::write(place.path("both.jsonl"), format!("{both}\n")).unwrap();
    let of_both = ["data.train=both.jsonl", "data.eval=both.jsonl"];
    place.refused(&train(&of_both), &["both.jsonl", "the rows have no label but [O]"]);
    place.refused(&train(&[&of_both[..], &["data.text=text"]].concat()), &["both.jsonl:1", "2 words and 1 tags"]);
    let (code, _, err) = place.run(&train(&[&of_both[..], &["data.text=text", "data.label=label"]].concat()), "");
    assert_eq!(code, 0, "{err}");
    fs::write(place.path("f.csv"), "text,label\na,b\n").unwrap();
    place.refused(&train(&["data.train=f.csv"]), &["data.format", "f.csv is csv", "conll"]);
    for (set, says) in [
        ("train.r_drop=1", "train.r_drop is set, but tokens has no"),
        ("eval.slice_by=x", "eval.slice_by"),
        ("data.text_pair=x", "single sentences"),
        ("data.label=tag", "0-based index"),
        ("data.labels=[\"O\",\"B-PER\"]", "is not one of [O, B-PER]"),
    ] {
        place.refused(&train(&[set, "data.on_bad_row=skip"]), &[says]);
    }
    place.refused(&train(&["task.kind=classification"]), &["data.tag_scheme"]);
}

#[test]
fn check_shows_entities_and_what_is_wrong() {
    let data = format!("{ROOT}/examples/data/wnut17");
    let place = workplace(&format!("{data}/train.conll"), "dev.conll", "tag_scheme = \"iob2\"");
    let first = fs::read_to_string(format!("{data}/train.conll")).unwrap();
    let leak: String = first.split_inclusive('\n').take_while(|line| !line.trim().is_empty()).collect();
    fs::write(place.path("dev.conll"), format!("{leak}\nA O\nDay I-date\n\nmet O\nAda B-person\n")).unwrap();
    let check = ["check", "--config", "c.toml", "--no-timing"];
    let (code, out, err) = place.run(&check, "");
    assert!(code == 0 && err.is_empty(), "{code} {err}");
    for part in [
        "tokens with",
        "\nsentences ",
        "\nwords outside (O) ",
        "\nentities known from train ",
        "\nscheme, as it looks ",
        "\nsentences in iob2 ",
        "\nwindows of all ",
        "\nentities ",
        "\nperson ",
        "bad-tags in eval: 1 sentence (33.3 %) whose tags break data.tag_scheme = \"iob2\"",
        "[\"I-date\" may not stand after \"O\"]\n      A Day\n",
        "missing-labels in eval: eval has 1 tag that train has not: I-date",
        "leakage in eval: 1 sentence (33.3 %) also in train",
    ] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
    let json = place.run(&[&check[..], &["--json", "--fail-on", "bad-tags"]].concat(), "");
    assert_eq!(json.0, 3, "{json:?}");
    let events: Vec<Value> = json.1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&events[0]["event"], &events[0]["rows"]), (&json!("data"), &json!(701)));
    let train = &events[2]["splits"][0];
    assert_eq!(
        (&train["rows"], &train["windows"]["windows"], &train["windows"]["rows"]),
        (&json!(700), &json!(701), &json!(1))
    );
    assert_eq!(train["tags"]["entities"]["types"].as_array().unwrap().len(), 6);
    assert_eq!(train["tags"]["entities"]["scheme"]["sentences"]["iob2"], 700);
    // And with the time that a run takes.
    let (code, out, _) = place.run(&check[..3], "");
    assert!(code == 0 && out.contains("\ntime    about "), "{out}");
}
