#!/usr/bin/env python3
"""The Hugging Face Trainer on the data, model and hyperparameters of a bertft run; prints one JSON line.

Its keys are those of bertft's `done` event, measured the same way: `train_seconds` from the first forward to the last
update, tokens without padding, `first_step_seconds` from the start of the process. With --eval-only they are those of
`bertft eval`: `seconds` of the scoring alone, rows tokenised before. Rows come from jsonl or from csv with a header.
Needs torch, transformers 4.57, accelerate, scikit-learn and scipy. Called by run.py; alone:

    hf_ref.py MODEL_DIR TRAIN EVAL --max-steps 50
"""
import time

STARTED = time.perf_counter()

import argparse
import csv
import json
import os
import resource
import sys
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
# With --compile the first steps compile, for a fixed and then for a variable length of rows. They are run in addition
# to --max-steps and left out of steps, seconds and rates.
COMPILE_STEPS = 5


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(p)
    p.add_argument("--pad-to-max", action="store_true", help="pad every row to max-length, not to its batch's longest")
    p.add_argument("--compile", action="store_true",
                   help=f"torch.compile the model; leaves out {COMPILE_STEPS} steps and the scores of training")
    return p.parse_args()


def add_settings(p):
    """Settings that run.py passes to both sides."""
    p.add_argument("model"), p.add_argument("train", nargs="?"), p.add_argument("eval")
    p.add_argument("--eval-only", action="store_true", help="score EVAL with a fine-tuned model; no TRAIN")
    p.add_argument("--kind", default="classification", choices=["classification", "regression"])
    p.add_argument("--text", default="text")
    p.add_argument("--text-pair", help="column of the second text")
    p.add_argument("--label", default="label")
    p.add_argument("--epochs", type=float, default=3)
    p.add_argument("--max-steps", type=int, default=-1)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--max-length", type=int, default=128)
    p.add_argument("--learning-rate", type=float, default=5e-5)
    p.add_argument("--weight-decay", type=float, default=0.0)
    p.add_argument("--warmup-ratio", type=float, default=0.0)
    p.add_argument("--group-by-length", action="store_true")
    p.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    p.add_argument("--tf32", action="store_true", help="let a GPU round the operands of f32 products to TF32")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--seed", type=int, default=42)


def read(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f)) if path.endswith(".csv") else [json.loads(line) for line in f if line.strip()]


def main():
    a = arguments()
    import numpy as np
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    torch.set_num_threads(a.threads)
    set_seed(a.seed)
    train, dev = [] if a.eval_only else read(a.train), read(a.eval)
    regression = a.kind == "regression"
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    if a.eval_only:
        head = {}  # the model has one, and knows its labels
    elif regression:
        head = dict(num_labels=1, problem_type="regression")
    else:
        labels = sorted({str(r[a.label]) for r in train + dev})
        head = dict(num_labels=len(labels), id2label=dict(enumerate(labels)),
                    label2id={name: i for i, name in enumerate(labels)})
    model = AutoModelForSequenceClassification.from_pretrained(a.model, attn_implementation="sdpa", **head)
    index = model.config.label2id

    def encode(rows):
        e = tokenizer([r[a.text] for r in rows], [r[a.text_pair] for r in rows] if a.text_pair else None,
                      truncation=True, max_length=a.max_length, padding="max_length" if a.pad_to_max else False)
        target = [float(r[a.label]) if regression else index[str(r[a.label])] for r in rows]
        return [{k: e[k][i] for k in e} | {"labels": y} for i, y in enumerate(target)]

    class Counting(Trainer):
        begin = None
        samples = tokens = 0

        def training_step(self, model, inputs, *rest):
            if self.state.global_step >= unmeasured:
                self.begin = self.begin or time.perf_counter()
                self.samples += len(inputs["labels"])
                # Stays on the device: to read it would wait for the step before.
                self.tokens = self.tokens + inputs["attention_mask"].sum()
            return super().training_step(model, inputs, *rest)

    class Clock(TrainerCallback):
        first = last = None

        def on_step_end(self, _, state, *__, **___):
            # A GPU works behind the program, which is not to wait for it in between.
            if a.device == "cuda" and (self.first is None or state.global_step >= state.max_steps):
                torch.cuda.synchronize()
            self.last = time.perf_counter()
            self.first = self.first or self.last

    clock = Clock()
    unmeasured = COMPILE_STEPS if a.compile else 0
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Counting(
            model,
            TrainingArguments(
                scratch, per_device_train_batch_size=a.batch_size, per_device_eval_batch_size=a.batch_size,
                num_train_epochs=a.epochs, max_steps=a.max_steps + unmeasured if a.max_steps > 0 else -1,
                learning_rate=a.learning_rate, weight_decay=a.weight_decay, warmup_ratio=a.warmup_ratio,
                group_by_length=a.group_by_length, seed=a.seed, use_cpu=a.device == "cpu",
                bf16=a.precision == "bf16", tf32=a.tf32 if a.device == "cuda" else None, torch_compile=a.compile,
                optim="adamw_torch_fused", save_strategy="no", report_to=[],
                logging_steps=50, disable_tqdm=True),
            train_dataset=encode(train) if train else None, data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock])
        sys.stdout, stdout = sys.stderr, sys.stdout  # the Trainer's own log lines
        if not a.eval_only:
            trainer.train()
        dev, metrics = encode(dev), {}
        if a.eval_only and a.compile:
            trainer.predict(dev)
        if a.eval_only or not a.compile:  # else it would compile once more, for scores that the uncompiled run has
            predicting = time.perf_counter()
            output = trainer.predict(dev)
            seconds = time.perf_counter() - predicting
            metrics = scores(np.asarray(output.predictions), np.asarray(output.label_ids), regression)
        sys.stdout = stdout
    if a.eval_only:
        done = dict(event="eval", samples=len(dev), seconds=seconds, samples_per_second=len(dev) / seconds,
                    metrics=metrics)
    else:
        seconds = clock.last - trainer.begin
        done = dict(
            event="done", steps=trainer.state.global_step - unmeasured, epochs=trainer.state.epoch,
            train_seconds=seconds, samples_per_second=trainer.samples / seconds,
            tokens_per_second=int(trainer.tokens) / seconds, first_step_seconds=clock.first - STARTED,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, metrics={"eval": metrics})
    print(json.dumps(done))


def scores(logits, truth, regression):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if regression:
        predicted = logits.squeeze(-1)
        return dict(pearson=float(pearsonr(predicted, truth)[0]), spearman=float(spearmanr(predicted, truth)[0]))
    predicted = logits.argmax(-1)
    found = dict(accuracy=float(accuracy_score(truth, predicted)),
                 macro_f1=float(f1_score(truth, predicted, average="macro", zero_division=0)),
                 mcc=float(matthews_corrcoef(truth, predicted)))
    if logits.shape[-1] == 2:
        found["f1"] = float(f1_score(truth, predicted, zero_division=0))
    return found


if __name__ == "__main__":
    main()
