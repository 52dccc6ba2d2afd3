#!/usr/bin/env python3
"""bertft beside the Hugging Face Trainer: same model, rows, hyperparameters, device and threads; prints a table.

    python benches/peers/run.py MODEL_DIR TRAIN EVAL --max-steps 50 [--runs 5]

The two take turns, so that a machine that slows down slows both. Each figure is the median over the runs; the ratio is
the median of the ratios of neighbouring runs, with their range. See README.md for what is measured how.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
from hf_ref import add_settings

HERE = Path(__file__).resolve().parent


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model"), p.add_argument("train"), p.add_argument("eval")
    add_settings(p)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--bertft", default=str(HERE.parents[1] / "target/release/bertft"), help="the binary")
    p.add_argument("--python", default=sys.executable, help="a Python with torch and transformers")
    p.add_argument("--json", metavar="FILE", help="also append one JSON line a run to FILE")
    return p.parse_args()


def reference_command(a):
    command = [a.python, str(HERE / "hf_ref.py"), a.model, a.train, a.eval]
    for key in ("kind", "text", "text_pair", "label", "epochs", "max_steps", "batch_size", "max_length",
                "learning_rate", "weight_decay", "warmup_ratio", "precision", "device", "threads", "seed"):
        if getattr(a, key) is not None:
            command.append(f"--{key.replace('_', '-')}={getattr(a, key)}")
    return command + ["--group-by-length"] * a.group_by_length


def bertft_command(a, scratch, run):
    absolute = lambda path: str(Path(path).resolve())
    data = dict(train=absolute(a.train), eval=absolute(a.eval), text=a.text, label=a.label, max_length=a.max_length)
    if a.text_pair:
        data["text_pair"] = a.text_pair
    train = dict(epochs=a.epochs, batch_size=a.batch_size, learning_rate=a.learning_rate, weight_decay=a.weight_decay,
                 warmup_ratio=a.warmup_ratio, precision=a.precision, seed=a.seed)
    if a.max_steps > 0:
        train["max_steps"] = a.max_steps
    if a.group_by_length:
        train["group_by_length"] = True
    tables = dict(model=dict(path=absolute(a.model)), task=dict(kind=a.kind), data=data, train=train)
    # JSON strings, numbers and booleans are TOML's too.
    text = "\n".join(f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())
                     for name, table in tables.items())
    config = Path(scratch) / "config.toml"
    config.write_text(text, encoding="utf-8")
    return [a.bertft, "train", "--config", str(config), "--output", str(Path(scratch) / f"run{run}"), "--json",
            "--device", a.device, "--threads", str(a.threads)]


def measure(name, command):
    """The last JSON line that the command prints, with the peak memory that the system saw."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        lines = out.read().splitlines()
        if child.returncode != 0 or not lines:
            sys.exit(f"{name} failed with {child.returncode}: {' '.join(command)}\n" + "\n".join(lines[-3:]) + err.read())
    done = json.loads(lines[-1])
    if done.get("event") != "done":
        sys.exit(f"{name}: the last line is no `done` event: {lines[-1]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return done | {"peer": name, "peak_rss_bytes": usage.ru_maxrss * unit}


def table(rows):
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for r in rows:
        print(r[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(r[1:], widths[1:])), sep="  ")


def report(ours, reference):
    middle = lambda runs, get: statistics.median(map(get, runs))

    def row(title, get, form):
        ratios = sorted(get(o) / get(r) for o, r in zip(ours, reference))
        return [title, form(middle(ours, get)), form(middle(reference, get)), f"{statistics.median(ratios):.2f}",
                f"{ratios[0]:.2f}-{ratios[-1]:.2f}"]

    rows = [["median of %d" % len(ours), "bertft", "transformers", "ratio", "range"],
            row("real tokens/s", lambda d: d["tokens_per_second"], "{:.0f}".format),
            row("samples/s", lambda d: d["samples_per_second"], "{:.1f}".format),
            row("training seconds", lambda d: d["train_seconds"], "{:.1f}".format),
            row("first step after, s", lambda d: d["first_step_seconds"], "{:.2f}".format),
            row("peak memory, MB", lambda d: d["peak_rss_bytes"] / 1e6, "{:.0f}".format)]
    score = lambda name: lambda d: d["metrics"]["eval"][name]
    for name in reference[0]["metrics"]["eval"]:
        if name in ours[0]["metrics"]["eval"]:
            rows.append([name, *(f"{middle(runs, score(name)):.4f}" for runs in (ours, reference)), "", ""])
    table(rows)
    steps = {d["steps"] for d in ours + reference}
    if len(steps) > 1:
        sys.exit(f"the two did not train for the same number of steps: {sorted(steps)}")


def main():
    a = arguments()
    ours, reference = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for run in range(a.runs):
            for runs, name, command in ((ours, "bertft", bertft_command(a, scratch, run)),
                                        (reference, "transformers", reference_command(a))):
                runs.append(measure(name, command))
                print(f"{run + 1}/{a.runs} {name}: {runs[-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
                if a.json:
                    with open(a.json, "a", encoding="utf-8") as f:
                        f.write(json.dumps(runs[-1]) + "\n")
    report(ours, reference)


if __name__ == "__main__":
    main()
