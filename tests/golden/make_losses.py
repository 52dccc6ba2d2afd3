#!/usr/bin/env python3
"""Weighted and focal losses by PyTorch, and BCEWithLogitsLoss(pos_weight), for the tests: writes fixtures/<case>/losses.json beside the models and rows that
make_fixtures.py made.

Run by hand. Deterministic. Weighted losses are `torch.nn.CrossEntropyLoss` itself; focal ones are the formula of Lin et
al. 2017 (the class weight as alpha), whose mean divides by the sum of the weights, so that gamma 0 is CrossEntropyLoss.
"""
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from transformers import BertForSequenceClassification

from make_fixtures import ROOT, VERSIONS, collate, indicators, write_json

FULL = ["classifier.weight", "classifier.bias"]  # the other gradients are held by norm and sum


def loss(logits, labels, weight, smoothing, gamma):
    if gamma == 0:
        return torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits, labels)
    assert smoothing == 0
    log_p = F.log_softmax(logits, dim=-1).gather(1, labels[:, None]).squeeze(1)
    alpha = torch.ones(len(labels), dtype=logits.dtype) if weight is None else weight[labels]
    return -(alpha * (1 - log_p.exp()) ** gamma * log_p).sum() / alpha.sum()


def make(case):
    folder = ROOT / case
    model = BertForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float64).eval()
    rows = json.loads((folder / "batch.json").read_text())
    count = model.config.num_labels
    if case == "multilabel":
        labels = indicators([r["label"] for r in rows], torch.empty(1, count, dtype=torch.float64))
        balanced = ((len(rows) - labels.sum(0)) / labels.sum(0)).tolist()
        uneven = [0.25, 3.0, 1.0, 2.0]
        variants = [dict(class_weights=balanced), dict(class_weights=uneven)]
    else:
        labels, balanced, uneven, variants = classes(rows, count)
    out = []
    for v in variants:
        weight = torch.tensor(v["class_weights"], dtype=torch.float64) if "class_weights" in v else None
        model.zero_grad()
        logits = model(**collate(rows, model.config)).logits
        if case == "multilabel":
            value = torch.nn.BCEWithLogitsLoss(pos_weight=weight)(logits, labels)
        else:
            value = loss(logits, labels, weight, v.get("label_smoothing", 0.0), v.get("focal_gamma", 0.0))
        value.backward()
        grads = {n: p.grad for n, p in sorted(model.named_parameters())}
        out.append(v | dict(loss=value.item(), full={n: grads[n].flatten().tolist() for n in FULL},
                            norms={n: g.norm().item() for n, g in grads.items()}))
    write_json(folder / "losses.json", dict(versions=VERSIONS, balanced=balanced, variants=out))
    print(case, [round(v["loss"], 4) for v in out])


def classes(rows, count):
    labels = torch.tensor([r["label"] for r in rows])
    balanced = compute_class_weight("balanced", classes=np.arange(count), y=labels.numpy()).tolist()
    uneven = [0.25, 3.0, 1.0, 0.5, 2.0][:count]
    variants = [
        dict(class_weights=balanced), dict(class_weights=uneven), dict(class_weights=uneven, label_smoothing=0.1),
        dict(focal_gamma=2.0), dict(focal_gamma=0.5), dict(class_weights=uneven, focal_gamma=1.5),
    ]
    return labels, balanced, uneven, variants


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in ["classification", "pairs", "multilabel"]:
        make(case)
