#!/usr/bin/env python3
"""Golden fixtures of answers in texts: tiny random `ForQuestionAnswering` models, as make_tokens.py makes those for tags, and what
run_qa.py and the official evaluation of SQuAD make of random scores.

Run by hand: python tests/golden/make_span.py utils_qa.py. Deterministic. `utils_qa.py` is that of
examples/pytorch/question-answering in the repository of transformers; it is run, not copied. A row of `batch.json` has its
question and context beside `input_ids`, `token_type_ids` and `answer`, the places of the first and last token. The reference pads
rows, and its softmax sees the padding; so each row is a batch of its own here. `logits` are [tokens of all rows, 2].
"""
import importlib.util
import json
import random
import shutil
import sys

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForQuestionAnswering
from transformers.data.metrics import squad_metrics
from transformers.data.processors.squad import SquadExample

import make_families
import make_fixtures as base
import make_tokens
from make_fixtures import MAX_POSITIONS, ROOT, VOCAB, write_json

QUESTIONS = [
    ("the film ?", "the film was unwatchable .", "was unwatchable"),
    ("good ?", "great !", "great"),
    ("who acted ?", "a long time the actor acted badly", "the actor"),
    ("the plot ?", " ".join(["the plot of shortest scenes"] * 4), "scenes the plot"),
    ("is it ?", "Café music", ""),
    ("when ?", "never ever zzz qqq the story", "never ever"),
]
FAMILIES = {
    "span": dict(seed=41, family="bert", clip=1.2, config=dict(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=MAX_POSITIONS)),
    # Its head is that for rows.
    "span_modernbert": dict(seed=42, family="modernbert", clip=1.6, config=make_families.MODERN | dict(num_hidden_layers=2)),
}


def loss_sum(model, rows):
    logits, total = [], 0.0
    for row in rows:
        start, end = (torch.tensor([place]) for place in row["answer"])
        out = model(**base.collate([row], model.config), start_positions=start, end_positions=end)
        loss = (F.cross_entropy(out.start_logits, start) + F.cross_entropy(out.end_logits, end)) / 2
        assert torch.allclose(out.loss, loss, rtol=1e-6), "our loss is not the model's own"
        logits.append(torch.stack([out.start_logits[0], out.end_logits[0]], 1))
        total = total + loss
    return torch.cat(logits), total


def make(name, case):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    tokenizer = base.make_tokenizer(folder / "model")
    config = AutoConfig.for_model(case["family"], vocab_size=len(VOCAB), **case["config"])
    model = base.fill(AutoModelForQuestionAnswering.from_config(config, attn_implementation="eager"), case["seed"])
    model.save_pretrained(folder / "model")
    rows = []
    for question, context, answer in QUESTIONS:
        e = tokenizer(question, context, truncation="only_second", max_length=MAX_POSITIONS, return_offsets_mapping=True)
        places = [0, 0]
        if answer:
            first = context.index(answer)
            inside = [i for i, part in enumerate(e.sequence_ids()) if part == 1]
            starts = [i for i in inside if e["offset_mapping"][i][0] <= first]
            ends = [i for i in inside if e["offset_mapping"][i][1] >= first + len(answer)]
            places = [starts[-1], ends[0]]
        rows.append(dict(question=question, context=context, input_ids=e["input_ids"], token_type_ids=e["token_type_ids"],
                         answer=places))
    make_tokens.write(folder, case, model, rows, loss_sum, len)


def decoding(path):
    """Scores of random logits: the n-best answers of each question and what the official evaluation makes of them."""
    spec = importlib.util.spec_from_file_location("utils_qa", path)
    utils_qa = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils_qa)
    rng, words = random.Random(7), "the a an Cat cat, sat ran 🙂 e\u0301t\u00e9 U.S. dog's on-off mat".split()
    questions, features, logits = [], [], []
    for q in range(12):
        tokens = [rng.choice(words) for _ in range(rng.randint(3, 30))]
        context, offsets = "", []
        for token in tokens:
            context += " " if context and rng.random() < 0.8 else ""
            offsets.append((len(context), len(context) + len(token)))
            context += token
        answers = []
        for _ in range(rng.randint(1, 3) if q % 3 else 0):
            start = rng.randrange(len(tokens))
            end = min(len(tokens) - 1, start + rng.randint(0, 4))
            first, last = offsets[start][0], offsets[end][1]
            answers.append(dict(text=context[first:last], answer_start=first))
        questions.append(dict(id=f"q{q}", context=context, answers=answers, offsets=offsets, windows=[]))
        start, asked = 0, rng.randint(1, 4)
        while True:
            end = min(start + 12, len(tokens))
            length = asked + 3 + end - start
            scores = [[round(rng.gauss(0, 2), 3) for _ in range(2)] for _ in range(length)]
            if answers and rng.random() < 0.7:
                scores[asked + 2][0] += 4
                scores[min(length - 2, asked + 4)][1] += 4
            questions[-1]["windows"].append(dict(context=[asked + 2, asked + 2 + end - start], logits=scores, start=start))
            features.append(dict(example_id=f"q{q}", offset_mapping=[None] * (asked + 2) + offsets[start:end] + [None]))
            logits.append(np.array(scores, dtype=np.float32))
            if end == len(tokens):
                break
            start += 8
    longest = max(len(l) for l in logits)
    padded = np.full((len(logits), longest, 2), -1e9, dtype=np.float32)
    for i, l in enumerate(logits):
        padded[i, : len(l)] = l
    examples = type("Examples", (list,), {"__getitem__": lambda self, key: [q["id"] for q in questions] if key == "id" else list.__getitem__(self, key)})(questions)
    cases = []
    for with_none, n_best, longest_answer, threshold in [(False, 20, 30, 0.0), (True, 20, 30, 0.0), (True, 5, 3, 1.25)]:
        saved = {}
        utils_qa.open, utils_qa.os.path.isdir = lambda name, mode: Saved(saved, name), lambda _: True
        predictions = utils_qa.postprocess_qa_predictions(
            examples, features, (padded[..., 0], padded[..., 1]), with_none, n_best, longest_answer, threshold, "out")
        null_odds = json.loads(saved["out/null_odds.json"]) if with_none else {}
        nbest = json.loads(saved["out/nbest_predictions.json"])
        best = {qid: next(p["text"] for p in found if p["text"]) for qid, found in nbest.items()}
        cases.append(dict(with_none=with_none, n_best_size=n_best, max_answer_length=longest_answer, threshold=threshold,
                          predictions=predictions, null_odds=null_odds, nbest=nbest,
                          metrics=official(questions, predictions, best, null_odds, with_none)))
    write_json(ROOT / "span_decoding.json", dict(versions=base.VERSIONS, questions=questions, cases=cases))


class Saved:
    """A file in memory."""

    def __init__(self, files, name):
        self.files, self.name = files, name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, text):
        self.files[self.name] = text


def official(questions, predictions, best, null_odds, with_none):
    """As fractions: the scores of the predictions, and the best ones of the best texts over all thresholds."""
    def scores_of(answers, questions):
        examples = [SquadExample(q["id"], "", q["context"], None, None, None, answers=q["answers"], is_impossible=not q["answers"])
                    for q in questions]
        return squad_metrics.get_raw_scores(examples, answers)

    mean = lambda scores: sum(scores.values()) / len(scores) if scores else None
    answered = [q for q in questions if q["answers"]]
    if not with_none:
        exact, f1 = scores_of(predictions, answered)
        return dict(exact_match=mean(exact), f1=mean(f1))
    exact, f1 = scores_of(predictions, questions)
    found = dict(exact_match=mean(exact), f1=mean(f1))
    for name, of in (("has_ans", answered), ("no_ans", [q for q in questions if not q["answers"]])):
        exact, f1 = scores_of(predictions, of)
        found |= {f"{name}_exact": mean(exact), f"{name}_f1": mean(f1)}
    has_answer = {q["id"]: bool(q["answers"]) for q in questions}
    for name, scores in zip(("exact", "f1"), scores_of(best, questions)):
        most, threshold = squad_metrics.find_best_thresh(best, scores, null_odds, has_answer)
        found |= {f"best_{name}": most / 100, f"best_{name}_thresh": threshold}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, case in FAMILIES.items():
        make(name, case)
    decoding(sys.argv[1])
