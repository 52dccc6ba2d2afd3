#!/usr/bin/env python3
"""Scores of the Hugging Face Trainer on tasks of words, of several labels, and of answers in a text; prints one JSON line.

As the example scripts of `transformers` do it (run_ner.py, run_classification.py, run_qa.py): their features, collators and
post-processing, AdamW with a linear schedule, no warm-up. Scores are fractions. Needs torch, transformers 4.57, accelerate,
scikit-learn and seqeval. Two things differ from run_qa.py: rows are padded to the longest of their batch, and an answer in a window's last
token ends there (its loop runs on behind it).

    hf_tasks.py tokens MODEL_DIR train.conll dev.conll test.conll
    hf_tasks.py multilabel MODEL_DIR train.tsv dev.tsv --labels labels.txt --rows 10000   # text, label indices "3,17"
    hf_tasks.py span MODEL_DIR train-v1.1.json dev-v1.1.json --batch-size 12 --learning-rate 3e-5 --epochs 2 --max-length 384
"""
import argparse
import collections
import json
import tempfile
import time

import numpy as np
import torch
import transformers as tf
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("task", choices=["tokens", "multilabel", "span"])
p.add_argument("model")
p.add_argument("train")
p.add_argument("scored", nargs="+")
p.add_argument("--labels", help="multilabel: the names of the labels, one a line")
p.add_argument("--rows", type=int, help="the first so many rows of train")
p.add_argument("--epochs", type=float, default=3)
p.add_argument("--batch-size", type=int, default=32)
p.add_argument("--learning-rate", type=float, default=5e-5)
p.add_argument("--max-length", type=int, default=128)
p.add_argument("--doc-stride", type=int, default=128)
p.add_argument("--seed", type=int, default=42)
a = p.parse_args()
set_seed(a.seed)
tok = AutoTokenizer.from_pretrained(a.model)


def trainer(model, train, collator):
    args = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=a.batch_size, per_device_eval_batch_size=a.batch_size,
        num_train_epochs=a.epochs, learning_rate=a.learning_rate, seed=a.seed, use_cpu=not torch.cuda.is_available(),
        save_strategy="no", report_to=[], disable_tqdm=True)
    return Trainer(model, args, train_dataset=train, data_collator=collator)


def tokens():
    from seqeval.metrics import f1_score

    def read(path):
        sentences, words, tags = [], [], []
        for line in open(path, encoding="utf-8"):
            fields = line.split()
            if len(fields) >= 2 and fields[0] != "-DOCSTART-":
                words.append(fields[0]), tags.append(fields[-1])
            elif words:
                sentences.append((words, tags))
                words, tags = [], []
        return sentences + ([(words, tags)] if words else [])

    data = [read(path)[: a.rows if i == 0 else None] for i, path in enumerate([a.train, *a.scored])]
    names = sorted({t for _, tags in data[0] for t in tags})

    def features(sentences):
        rows = []
        for words, tags in sentences:
            e = tok(words, is_split_into_words=True, truncation=True, max_length=a.max_length)
            ids = e.word_ids()
            first = lambda i: ids[i] is not None and ids[i] != ids[i - 1]
            rows.append(dict(e) | {"labels": [names.index(tags[w]) if first(i) else -100 for i, w in enumerate(ids)]})
        return rows

    model = tf.AutoModelForTokenClassification.from_pretrained(
        a.model, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    rows = [features(sentences) for sentences in data]
    t = trainer(model, rows[0], tf.DataCollatorForTokenClassification(tok))
    out = t.train().metrics
    for path, scored in zip(a.scored, rows[1:]):
        logits = t.predict(scored)
        truth = [[names[l] for l in row if l != -100] for row in logits.label_ids]
        guess = [[names[k] for k, l in zip(g, row) if l != -100]
                 for g, row in zip(logits.predictions.argmax(-1), logits.label_ids)]
        yield path, dict(f1=f1_score(truth, guess)), out


def multilabel():
    from sklearn.metrics import accuracy_score, f1_score

    names = open(a.labels, encoding="utf-8").read().split()

    def read(path):
        rows = []
        for line in list(open(path, encoding="utf-8"))[: a.rows if path == a.train else None]:
            text, labels = line.rstrip("\n").split("\t")[:2]
            e = tok(text, truncation=True, max_length=a.max_length)
            wanted = {int(l) for l in labels.split(",")}
            rows.append(dict(e) | {"labels": [float(i in wanted) for i in range(len(names))]})
        return rows

    model = tf.AutoModelForSequenceClassification.from_pretrained(
        a.model, num_labels=len(names), problem_type="multi_label_classification")
    t = trainer(model, read(a.train), tf.DataCollatorWithPadding(tok))
    out = t.train().metrics
    for path in a.scored:
        result = t.predict(read(path))
        truth, guess = result.label_ids > 0.5, result.predictions > 0
        yield path, dict(micro_f1=f1_score(truth, guess, average="micro", zero_division=0),
                         macro_f1=f1_score(truth, guess, average="macro", zero_division=0),
                         accuracy=accuracy_score(truth, guess), loss=result.metrics["test_loss"]), out


def span():
    from transformers.data.metrics.squad_metrics import get_raw_scores
    from transformers.data.processors.squad import SquadExample

    def read(path):
        found = []
        for article in json.load(open(path, encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                found += [dict(qa, context=paragraph["context"]) for qa in paragraph["qas"]]
        return found

    def features(questions, training):
        rows, owners = [], []
        for q in questions:
            e = tok(q["question"].lstrip(), q["context"], truncation="only_second", max_length=a.max_length,
                    stride=a.doc_stride, return_overflowing_tokens=True, return_offsets_mapping=True)
            for i in range(len(e["input_ids"])):
                ids, offsets, parts = e["input_ids"][i], e["offset_mapping"][i], e.sequence_ids(i)
                row = {k: e[k][i] for k in tok.model_input_names if k in e}
                if training:
                    cls = ids.index(tok.cls_token_id)
                    start = end = cls
                    if q["answers"]:
                        answer = q["answers"][0]
                        first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
                        context = [k for k, part in enumerate(parts) if part == 1]
                        if offsets[context[0]][0] <= first and offsets[context[-1]][1] >= last:
                            start = max(k for k in context if offsets[k][0] <= first)
                            end = min(k for k in context if offsets[k][1] >= last)
                    row |= dict(start_positions=start, end_positions=end)
                rows.append(row)
                owners.append((q["id"], [o if part == 1 else None for o, part in zip(offsets, parts)]))
        return rows, owners

    train = read(a.train)[: a.rows]
    v2 = any(not q["answers"] for q in train)
    model = tf.AutoModelForQuestionAnswering.from_pretrained(a.model)
    t = trainer(model, features(train, True)[0], tf.DataCollatorWithPadding(tok))
    out = t.train().metrics
    for path in a.scored:
        questions = read(path)
        rows, owners = features(questions, False)
        starts, ends = t.predict(rows).predictions
        of = collections.defaultdict(list)
        for (qid, offsets), s, e in zip(owners, starts, ends):
            of[qid].append((offsets, s, e))
        answers, null_odds = {}, {}
        for q in questions:
            best, null = (-1e30, ""), 1e30
            for offsets, s, e in of[q["id"]]:
                null = min(null, s[0] + e[0])
                for i in np.argsort(s)[: -21: -1]:
                    for j in np.argsort(e)[: -21: -1]:
                        fits = i <= j < i + 30 and j < len(offsets) and offsets[i] and offsets[j]
                        if fits and s[i] + e[j] > best[0]:
                            best = (s[i] + e[j], q["context"][offsets[i][0]:offsets[j][1]])
            null_odds[q["id"]] = null - best[0]
            answers[q["id"]] = "" if v2 and null > best[0] else best[1]
        examples = [SquadExample(q["id"], q["question"], q["context"], None, None, None, answers=q["answers"],
                                 is_impossible=not q["answers"]) for q in questions]
        exact, f1 = get_raw_scores(examples, answers)
        mean = lambda scores: sum(scores.values()) / len(scores)
        yield path, dict(exact_match=mean(exact), f1=mean(f1), questions=len(questions), features=len(rows)), out


started = time.perf_counter()
results, out = {}, None
for path, scores, out in dict(tokens=tokens, multilabel=multilabel, span=span)[a.task]():
    results[path.rsplit("/", 1)[-1]] = {k: round(float(v), 4) for k, v in scores.items()}
print(json.dumps(dict(task=a.task, seed=a.seed, epochs=a.epochs, batch_size=a.batch_size, learning_rate=a.learning_rate,
                      train_seconds=round(out["train_runtime"], 1), train_loss=round(out["train_loss"], 4), scores=results)))
