#!/usr/bin/env python3
"""bertft beside the Hugging Face Trainer: same model, rows, hyperparameters, device and threads; prints a table.

    python benches/peers/run.py MODEL_DIR TRAIN EVAL --max-steps 50 [--runs 5] [--compile]
    python benches/peers/run.py FINE_TUNED_MODEL_DIR EVAL --eval-only

The two take turns, so that a machine that slows down slows both. Each figure is the median over the runs; the ratio is
the median of the ratios of neighbouring runs, with their range. See README.md for what is measured how, and table.py
for the table of several workloads.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
from hf_ref import add_settings

HERE = Path(__file__).resolve().parent


def parser(about=__doc__):
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(p)
    add_measuring(p)
    return p


def add_measuring(p):
    """How to measure; table.py has the same."""
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--compile", action="store_true", help="also the reference with torch.compile, in the same turns")
    p.add_argument("--bertft", default=str(HERE.parents[1] / "target/release/bertft"), help="the binary")
    p.add_argument("--python", default=sys.executable, help="a Python with torch and transformers")
    p.add_argument("--json", metavar="FILE", help="also append one JSON line a run to FILE")


def reference_command(a, compiled=False):
    command = [a.python, str(HERE / "hf_ref.py"), a.model, *([] if a.eval_only else [a.train]), a.eval]
    keys = ["kind", "text", "text_pair", "label", "epochs", "max_steps", "batch_size", "max_length", "learning_rate",
            "weight_decay", "warmup_ratio", "precision", "device", "threads", "seed"]
    command += [f"--{key.replace('_', '-')}={getattr(a, key)}" for key in keys if getattr(a, key) is not None]
    flags = {"--group-by-length": a.group_by_length, "--eval-only": a.eval_only, "--compile": compiled,
             "--tf32": a.tf32}
    return command + [flag for flag, given in flags.items() if given]


def bertft_command(a, output):
    """`bertft eval`, or `bertft train` with its config and its run directory in the directory `output`."""
    absolute = lambda path: str(Path(path).resolve())
    common = ["--json", "--device", a.device, "--threads", str(a.threads)]
    if a.eval_only:
        columns = ["--text", a.text, "--label", a.label] + (["--text-pair", a.text_pair] if a.text_pair else [])
        return [a.bertft, "eval", "--model", a.model, "--data", a.eval, "--batch-size", str(a.batch_size),
                "--max-length", str(a.max_length), "--precision", a.precision, *columns, *common]
    data = dict(train=absolute(a.train), eval=absolute(a.eval), text=a.text, label=a.label, max_length=a.max_length)
    if a.text_pair:
        data["text_pair"] = a.text_pair
    train = dict(epochs=a.epochs, batch_size=a.batch_size, learning_rate=a.learning_rate, weight_decay=a.weight_decay,
                 warmup_ratio=a.warmup_ratio, precision=a.precision, seed=a.seed)
    if a.max_steps > 0:
        train["max_steps"] = a.max_steps
    if a.group_by_length:
        train["group_by_length"] = True
    if a.tf32:
        train["tf32"] = True
    tables = dict(model=dict(path=absolute(a.model)), task=dict(kind=a.kind), data=data, train=train)
    # JSON strings, numbers and booleans are TOML's too.
    text = "\n".join(f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())
                     for name, table in tables.items())
    config = Path(output) / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(text, encoding="utf-8")
    return [a.bertft, "train", "--config", str(config), "--output", str(config.parent / "run"), *common]


def measure(name, command):
    """The last JSON line that the command prints, with the peak memory that the system saw."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        lines = out.read().splitlines()
        if child.returncode != 0 or not lines:
            sys.exit(f"{name} failed with {child.returncode}: {' '.join(command)}\n" + "\n".join(lines[-3:]) +
                     err.read())
    *events, done = map(json.loads, lines)
    for event in events:
        if event["event"] == "warning":  # such as: no bf16 on this machine
            print(f"{name}: {event['message']}", file=sys.stderr)
    if done.get("event") not in ("done", "eval"):
        sys.exit(f"{name}: the last line is no `done` or `eval` event: {lines[-1]}")
    if done["event"] == "eval":
        done["startup_seconds"] = wall - done["seconds"]
    in_bytes = 1 if sys.platform == "darwin" else 1024
    return done | {"peer": name, "peak_rss_bytes": usage.ru_maxrss * in_bytes}


def turns(a, scratch, about=None):
    """Measures bertft, the reference and, with --compile, the compiled reference `a.runs` times; yields a dict of them
    for each time. `about` joins what each run printed."""
    for run in range(a.runs):
        output = Path(scratch) / "turn"
        commands = {"bertft": bertft_command(a, output), "transformers": reference_command(a)}
        if a.compile:
            commands["compiled"] = reference_command(a, compiled=True)
        turn, about = {}, (about or {}) | {"turn": time.time()}
        for name, command in commands.items():
            turn[name] = done = measure(name, command) | about
            shutil.rmtree(output, ignore_errors=True)  # a run leaves the model and its optimizer: gigabytes
            print(f"{run + 1}/{a.runs} {name}: {rate(done):.0f} {unit(done)}", file=sys.stderr)
            if a.json:
                with open(a.json, "a", encoding="utf-8") as f:
                    f.write(json.dumps(done) + "\n")
        steps = [turn[name].get("steps") for name in ("bertft", "transformers")]
        if steps[0] != steps[1]:
            sys.exit(f"the two did not train for the same number of steps: {steps}")
        yield turn


def rate(done):
    return done["samples_per_second" if done["event"] == "eval" else "tokens_per_second"]


def unit(done):
    return "samples/s" if done["event"] == "eval" else "tokens/s"


def ratios(ours, theirs):
    """Median, lowest and highest of the ratios of neighbouring runs."""
    each = sorted(o / t for o, t in zip(ours, theirs))
    return statistics.median(each), each[0], each[-1]


FIGURES = [  # title, key, divisor, digits
    ("real tokens/s", "tokens_per_second", 1, 0),
    ("samples/s", "samples_per_second", 1, 1),
    ("training seconds", "train_seconds", 1, 1),
    ("first step after, s", "first_step_seconds", 1, 2),
    ("scoring seconds", "seconds", 1, 2),
    ("all but scoring, s", "startup_seconds", 1, 2),
    ("peak memory, MB", "peak_rss_bytes", 1e6, 0),
]


def report(ours, theirs, name):
    rows = [[f"median of {len(ours)}", "bertft", name, "ratio", "range"]]
    for title, key, divisor, digits in FIGURES:
        if key in ours[0] and key in theirs[0]:
            sides = [[d[key] / divisor for d in runs] for runs in (ours, theirs)]
            middle, low, high = ratios(*sides)
            rows.append([title, *(f"{statistics.median(s):.{digits}f}" for s in sides), f"{middle:.2f}",
                         f"{low:.2f}-{high:.2f}"])
    scores = [[d["metrics"].get("eval", d["metrics"]) for d in runs] for runs in (ours, theirs)]
    for score in scores[1][0]:
        if score in scores[0][0]:
            rows.append([score, *(f"{statistics.median(s[score] for s in side):.4f}" for side in scores), "", ""])
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for r in rows:
        print(r[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(r[1:], widths[1:])), sep="  ")


def main():
    p = parser()
    a = p.parse_args()
    if a.eval_only == (a.train is not None):
        p.error("TRAIN is for training: give it, or --eval-only")
    with tempfile.TemporaryDirectory() as scratch:
        measured = list(turns(a, scratch))
    for name in list(measured[0])[1:]:
        report([turn["bertft"] for turn in measured], [turn[name] for turn in measured], name)


if __name__ == "__main__":
    main()
