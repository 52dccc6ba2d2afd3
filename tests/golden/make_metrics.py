#!/usr/bin/env python3
"""Scores by scikit-learn and scipy for the tests of `bertft::metrics`: writes fixtures/metrics.json.

Run by hand. Deterministic. The calls below are the ones that the
metrics are documented to equal: no `labels=`, `zero_division=0`.
"""
import json
import math
import platform
import warnings
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import accuracy_score as tag_accuracy
from seqeval.metrics import classification_report as tag_report
from seqeval.metrics import f1_score as tag_f1
from seqeval.metrics import precision_score as tag_precision
from seqeval.metrics import recall_score as tag_recall
from seqeval.scheme import IOB1, IOB2, IOBES
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    hamming_loss,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)

warnings.filterwarnings("ignore")
OUT = Path(__file__).resolve().parent / "fixtures" / "metrics.json"


def number(x):
    return None if math.isnan(x) else float(x)


def classification(name, truth, predicted, classes):
    scores = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    call = lambda f, average: number(f(truth, predicted, average=average, zero_division=0))
    metrics = {"accuracy": number(accuracy_score(truth, predicted))}
    if classes == 2:
        metrics |= {n: call(f, "binary") for n, f in scores.items()}
    metrics |= {f"macro_{n}": call(f, "macro") for n, f in scores.items()}
    metrics["micro_f1"] = call(f1_score, "micro")
    metrics |= {f"weighted_{n}": call(f, "weighted") for n, f in scores.items()}
    metrics["mcc"] = number(matthews_corrcoef(truth, predicted))
    per_class = zip(*precision_recall_fscore_support(truth, predicted, labels=range(classes), zero_division=0))
    return dict(name=name, classes=classes, truth=list(map(int, truth)), predicted=list(map(int, predicted)),
                metrics=metrics, confusion=confusion_matrix(truth, predicted, labels=range(classes)).ravel().tolist(),
                per_class=[dict(precision=float(p), recall=float(r), f1=float(f), support=int(s))
                           for p, r, f, s in per_class])


def regression(name, truth, predicted):
    # 1/64 steps (short in JSON), but for constants: 0.1 repeated is what a rounding mean gets wrong.
    short = lambda v: v if np.ptp(v) == 0 else np.round(np.asarray(v) * 64) / 64
    truth, predicted = np.asarray(short(truth), np.float32), np.asarray(short(predicted), np.float32)
    t, p = truth.astype(np.float64), predicted.astype(np.float64)
    metrics = dict(pearson=number(pearsonr(p, t)[0]), spearman=number(spearmanr(p, t)[0]),
                   mse=float(mean_squared_error(t, p)), mae=float(mean_absolute_error(t, p)), r2=float(r2_score(t, p)))
    return dict(name=name, truth=t.tolist(), predicted=p.tolist(), metrics=metrics)


def ranking(name, truth, scores):
    """Scores of class 1, or of every class, in steps that make ties; both short in JSON and exact in f32."""
    scores = np.asarray(scores, np.float32)
    kind = dict(multi_class="ovr") if scores.ndim == 2 else {}
    return dict(name=name, classes=scores.shape[1] if scores.ndim == 2 else 2, truth=list(map(int, truth)),
                scores=scores.astype(np.float64).ravel().tolist(), roc_auc=float(roc_auc_score(truth, scores, **kind)),
                average_precision=float(average_precision_score(truth, scores)))


def multilabel(name, truth, scores, threshold=0.5):
    """Indicators and probabilities, both `[rows, labels]`; the scores short in JSON and exact in f32."""
    truth, scores = np.asarray(truth, int), np.asarray(scores, np.float32)
    predicted = (scores >= threshold).astype(int)
    call = lambda f, average: number(f(truth, predicted, average=average, zero_division=0))
    metrics = {f"{a}_f1": call(f1_score, a) for a in ("micro", "macro", "weighted", "samples")}
    metrics |= {f"{a}_{n}": call(f, a) for a in ("micro", "macro")
                for n, f in (("precision", precision_score), ("recall", recall_score))}
    metrics |= dict(subset_accuracy=number(accuracy_score(truth, predicted)), hamming_loss=number(hamming_loss(truth, predicted)),
                    map=number(average_precision_score(truth, scores)), roc_auc=number(roc_auc_score(truth, scores)))
    per_class = zip(*precision_recall_fscore_support(truth, predicted, zero_division=0))
    return dict(name=name, labels=truth.shape[1], threshold=threshold, truth=truth.ravel().tolist(),
                scores=scores.astype(np.float64).ravel().tolist(), metrics=metrics,
                per_class=[dict(precision=float(p), recall=float(r), f1=float(f), support=int(s)) for p, r, f, s in per_class])


def tags(name, truth, predicted, scheme=None):
    """Sentences of tags; with a scheme, its strict reading."""
    strict = dict(mode="strict", scheme=scheme) if scheme else {}
    call = lambda f, average: number(f(truth, predicted, average=average, zero_division=0, **strict))
    scores = {"precision": tag_precision, "recall": tag_recall, "f1": tag_f1}
    metrics = {n: call(f, "micro") for n, f in scores.items()} | {f"macro_{n}": call(f, "macro") for n, f in scores.items()}
    metrics |= dict(weighted_f1=call(tag_f1, "weighted"), accuracy=number(tag_accuracy(truth, predicted)))
    report = tag_report(truth, predicted, output_dict=True, zero_division=0, **strict)
    kinds = {k: {m.removesuffix("-score"): float(v) for m, v in r.items()} for k, r in report.items() if not k.endswith(" avg")}
    join = lambda sentences: [" ".join(s) for s in sentences]
    return dict(name=name, scheme=scheme and scheme.__name__, truth=join(truth), predicted=join(predicted), metrics=metrics,
                kinds=kinds)


def random_tags(rng, prefixes, kinds, sentences):
    """Any tag anywhere: most of it is allowed by no scheme."""
    every = ["O"] * 2 + [f"{p}-{k}" for p in prefixes for k in kinds]
    return [list(rng.choice(every, n)) for n in rng.integers(1, 12, sentences)]


def changed(rng, sentences, prefixes, kinds, share):
    every = ["O"] + [f"{p}-{k}" for p in prefixes for k in kinds]
    return [[str(rng.choice(every)) if rng.random() < share else t for t in s] for s in sentences]


def noisy(rng, truth, classes, wrong):
    return np.where(rng.random(len(truth)) < wrong, rng.integers(0, classes, len(truth)), truth)


def main():
    rng = np.random.default_rng(5)
    binary = (rng.random(40) < 0.3).astype(int)
    seven = rng.choice(7, 100, p=[0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    unpredicted = noisy(rng, seven, 7, 0.3)
    unpredicted[unpredicted == 2] = 0
    untrue = np.where(seven == 3, 1, seven)
    absent = np.where(seven == 5, 6, seven)  # class 5 in neither
    x = rng.normal(size=40)
    ties = rng.integers(0, 6, 40) / 2
    extra = np.random.default_rng(6)
    several = np.random.default_rng(7)
    sets = (several.random((60, 5)) < [0.5, 0.3, 0.1, 0.05, 0.2]).astype(int)
    sixteenths = lambda truth: np.clip(np.round(truth * 5 + several.normal(size=truth.shape) * 4 + 6), 0, 16) / 16
    words = np.random.default_rng(8)
    sentences = {s: random_tags(words, s, ["a", "b", "c"], 40) for s in ("BI", "BIES")}
    guesses = {s: changed(words, sentences[s], s, ["a", "b", "c", "d"], 0.3) for s in sentences}
    well = [["B-a", "I-a", "O", "B-b"], ["O"], ["B-a", "B-a", "I-a"], ["O", "B-c"]]
    never = sets * [1, 1, 0, 1, 1]
    cases = dict(
        versions=dict(python=platform.python_version(), sklearn=sklearn.__version__, scipy=scipy.__version__),
        classification=[
            classification("binary", binary, noisy(rng, binary, 2, 0.4), 2),
            classification("binary, perfect", binary, binary, 2),
            classification("binary, all wrong", binary, 1 - binary, 2),
            classification("binary, never predicted positive", binary, np.zeros(40, int), 2),
            classification("binary, no positive row", np.zeros(9, int), [0, 1, 0, 0, 1, 0, 0, 0, 0], 2),
            classification("binary, positive class absent", np.zeros(9, int), np.zeros(9, int), 2),
            classification("binary, negative class absent", np.ones(9, int), np.ones(9, int), 2),
            classification("seven classes", seven, noisy(rng, seven, 7, 0.4), 7),
            classification("class never predicted", seven, unpredicted, 7),
            classification("class never true", untrue, noisy(rng, seven, 7, 0.3), 7),
            classification("class in neither", absent, np.where(noisy(rng, absent, 7, 0.3) == 5, 0, absent), 7),
            classification("three classes, one predicted", rng.integers(0, 3, 40), np.ones(40, int), 3),
            classification("single class", np.zeros(5, int), np.zeros(5, int), 1),
            classification("one row, wrong", [2], [0], 3),
        ],
        ranking=[
            ranking("binary, ties", binary, np.clip(np.round(binary * 6 + extra.normal(size=40) * 5 + 8), 0, 16) / 16),
            ranking("binary, few ties", binary, extra.integers(0, 4097, 40) / 4096),
            ranking("binary, perfect", binary, binary),
            ranking("binary, inverse", binary, 1 - binary),
            ranking("binary, constant", binary, np.full(40, 0.5)),
            ranking("two rows", [0, 1], [0.25, 0.125]),
            ranking("seven classes", seven, np.stack([extra.multinomial(16, p) for p in
                                                      np.eye(7)[seven] * 0.3 + 0.1]) / 16),
            ranking("three classes, constant", [0, 1, 2, 1], np.full((4, 3), 1 / 3, np.float32)),
        ],
        multilabel=[
            multilabel("five labels", sets, sixteenths(sets)),
            multilabel("another threshold", sets, sixteenths(sets), 0.3),
            multilabel("perfect", sets, sets),
            multilabel("nothing predicted", sets, np.full((60, 5), 0.25)),
            multilabel("all predicted", sets, np.full((60, 5), 0.75)),
            multilabel("a label that no row has", never, sixteenths(never)),
            multilabel("a label that every row has", np.maximum(sets, [0, 0, 0, 0, 1]), sixteenths(sets)),
            multilabel("rows without labels", [[0, 0], [1, 0], [0, 0], [0, 1]], [[0, 0.25], [0.5, 0], [0, 1], [0, 0.75]]),
        ],
        tags=[
            tags("lenient, B and I", sentences["BI"], guesses["BI"]),
            tags("lenient, B, I, E and S", sentences["BIES"], guesses["BIES"]),
            tags("strict IOB1", sentences["BI"], guesses["BI"], IOB1),
            tags("strict IOB2", sentences["BI"], guesses["BI"], IOB2),
            tags("strict IOBES", sentences["BIES"], guesses["BIES"], IOBES),
            tags("well formed", well, [["B-a", "I-a", "O", "B-b"], ["B-b"], ["B-a", "I-a", "I-a"], ["O", "O"]], IOB2),
            tags("perfect", well, well),
            tags("nothing predicted", well, [["O"] * len(s) for s in well]),
        ],
        regression=[            regression("plain", x, 0.7 * x + rng.normal(size=40) * 0.5 + 0.1),
            regression("ties", ties, np.round(ties + rng.normal(size=40))),
            regression("far from zero", 1000 + x, 1000 + x * 0.9 + rng.normal(size=40) * 0.1),
            regression("inverse", x, -x),
            regression("exact", x, x),
            regression("two rows", [1, 2], [3, 5]),
            regression("constant prediction", x, np.full(40, 0.1)),
            regression("constant truth", np.full(7, 0.1), x[:7]),
            regression("constant and exact", np.full(7, 0.1), np.full(7, 0.1)),
        ],
    )
    line = lambda cases: "[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]"
    text = ",\n".join(f'"{k}": ' + (line(v) if isinstance(v, list) else json.dumps(v)) for k, v in cases.items())
    OUT.write_text("{\n" + text + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
