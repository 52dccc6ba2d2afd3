#!/usr/bin/env python3
"""Training options by PyTorch and transformers for the tests: fixtures/schedules.json, and beside the model and rows that
make_fixtures.py made fixtures/classification/options.json.

Run by hand. Deterministic, in f64. Each curve is the plain loop of make_fixtures.py with one option: groups of parameters
with learning rates of their own, parameters that begin to learn later (their `grad` is None before, so AdamW counts their
steps from there), an exponential moving average (`torch.optim.swa_utils`), FGM (the gradients at perturbed word embeddings
added, over the whole window).
"""
import copy
import json

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertForSequenceClassification, get_inverse_sqrt_schedule, get_scheduler

from make_fixtures import ROOT, VERSIONS, collate, loss_sum, window, write_json

STEPS, LEARNING_RATE, WEIGHT_DECAY, CLIP = 12, 2e-3, 0.1, 4.0
LAYERS = 3


def rates(total, peak, make):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make(optimizer)
    out = []
    for _ in range(total):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def schedules():
    out = []
    for total, warmup, peak in [(40, 6, 5e-5), (23, 0, 1e-3), (7, 3, 2e-5)]:
        for name, kwargs in [
            ("linear", {}), ("cosine", {}), ("cosine", dict(num_cycles=1.25)), ("cosine_with_restarts", {}),
            ("cosine_with_restarts", dict(num_cycles=3)), ("polynomial", {}),
            ("polynomial", dict(lr_end=1e-6, power=2.5)), ("constant_with_warmup", {}), ("inverse_sqrt", {}),
            ("inverse_sqrt", dict(timescale=50)),
        ]:
            if name == "inverse_sqrt":
                make = lambda o: get_inverse_sqrt_schedule(o, warmup, **kwargs)
            else:
                make = lambda o: get_scheduler(name, o, warmup, total, scheduler_specific_kwargs=kwargs)
            out.append(dict(name=name, kwargs=kwargs, total=total, warmup=warmup, peak=peak, rates=rates(total, peak, make)))
        out.append(dict(name="constant", kwargs={}, total=total, warmup=0, peak=peak,
                        rates=rates(total, peak, lambda o: get_scheduler("constant", o))))
        for kwargs in [{}, dict(pct_start=0.4, div_factor=10.0, final_div_factor=100.0, anneal_strategy="linear"),
                       dict(three_phase=True), dict(pct_start=0.2, anneal_strategy="linear", three_phase=True)]:
            make = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, peak, total_steps=total + 1, cycle_momentum=False, **kwargs)
            # One step more, as PyTorch's last call would be past the end: the schedule is that of total + 1 steps.
            out.append(dict(name="one_cycle", kwargs=kwargs, total=total + 1, warmup=0, peak=peak, rates=rates(total, peak, make)))
    write_json(ROOT / "schedules.json", dict(versions=VERSIONS, schedules=out))
    print(len(out), "schedules")


def part(name):
    """0 for the embeddings, i + 1 for layer i, one more for the head."""
    if ".layer." in name:
        return int(name.split(".layer.")[1].split(".")[0]) + 1
    return 0 if "embeddings" in name else LAYERS + 1


def train(model, rows, rate=lambda part: 1.0, since=lambda part: 0, ema=0.0, fgm=0.0):
    plain = lambda n: "bias" in n or "layernorm" in n.lower()
    groups = [dict(params=[p], weight_decay=0.0 if plain(n) else WEIGHT_DECAY, lr=LEARNING_RATE * rate(part(n)))
              for n, p in model.named_parameters()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_scheduler("linear", optimizer, 2, STEPS)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    words = model.bert.embeddings.word_embeddings.weight
    history = []
    for step in range(STEPS):
        for n, p in model.named_parameters():
            p.requires_grad_(step >= since(part(n)))
        micro_batches = window(step, len(rows))
        count = sum(map(len, micro_batches))

        def passes():
            total = 0.0
            for indices in micro_batches:
                batch = [rows[i] for i in indices]
                loss = loss_sum(model(**collate(batch, model.config)).logits, [r["label"] for r in batch], 0.0)
                (loss / count).backward()
                total += loss.item()
            return total

        optimizer.zero_grad()
        total = passes()
        if fgm:
            kept = words.data.clone()
            words.data.add_(fgm * words.grad / words.grad.norm())
            passes()
            words.data.copy_(kept)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
        history.append(dict(rows=micro_batches, loss=total / count, grad_norm=norm))
        optimizer.step()
        schedule.step()
        if average:
            average.update_parameters(model)
    return history, average.module if average else model


def curves(case="classification"):
    folder = ROOT / case
    start = BertForSequenceClassification.from_pretrained(folder / "model", dtype=torch.float64).eval()
    rows = json.loads((folder / "batch.json").read_text())
    decay, head = 0.6, 3.0
    thaw = lambda part: 0 if part > LAYERS else 2 * (LAYERS - part + 1)  # a part more every two steps
    options = dict(
        groups=dict(rate=lambda part: head if part > LAYERS else decay ** (LAYERS + 1 - part)),
        thaw=dict(since=thaw), ema=dict(ema=0.8), fgm=dict(fgm=0.7))
    out = {}
    for name, option in options.items():
        model = copy.deepcopy(start)
        history, result = train(model, rows, **option)
        updates = {n: dict(update_norm=(p - q).norm().item(), update_sum=(p - q).sum().item())
                   for (n, p), (_, q) in zip(result.named_parameters(), start.named_parameters())}
        out[name] = dict(steps=history, updates=updates)
        print(name, [round(h["loss"], 4) for h in history])
    return dict(settings=dict(
        steps=STEPS, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP, warmup=2,
        layer_wise_lr_decay=decay, head_rate=head, thaw_every=2, ema_decay=0.8, fgm_epsilon=0.7), curves=out)


def r_drop():
    """The loss of R-Drop's published code: half of both cross-entropies and alpha times the symmetric KL."""
    torch.manual_seed(5)
    rows, labels, alpha = 5, 4, 3.0
    logits = (2 * torch.randn(2 * rows, labels, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([0, 3, 1, 1, 2])
    first, second = logits[:rows], logits[rows:]
    entropies = (F.cross_entropy(first, targets, reduction="sum") + F.cross_entropy(second, targets, reduction="sum")) / 2
    p, q = F.log_softmax(first, -1), F.log_softmax(second, -1)
    kl = (F.kl_div(p, q.exp(), reduction="sum") + F.kl_div(q, p.exp(), reduction="sum")) / 2
    loss = entropies + alpha * kl
    loss.backward()
    return dict(alpha=alpha, logits=logits.tolist(), targets=targets.tolist(), loss=loss.item(), grad=logits.grad.tolist())


if __name__ == "__main__":
    torch.set_num_threads(1)
    schedules()
    write_json(ROOT / "classification" / "options.json", dict(versions=VERSIONS, **curves(), r_drop=r_drop()))
