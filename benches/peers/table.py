#!/usr/bin/env python3
"""The table of bertft beside the Hugging Face Trainer: several workloads, f32 and bf16; prints Markdown.

    python benches/peers/table.py MODEL_DIR DATA_DIR [--compile] [--json runs.jsonl]
    python benches/peers/table.py MODEL_DIR DATA_DIR --only sst2,mrpc --precision f32 --json runs.jsonl
    python benches/peers/table.py --print runs.jsonl

MODEL_DIR holds all-MiniLM-L6-v2, DATA_DIR sst2/{train,test}.jsonl and mrpc/{train,test}.jsonl: README.md says where
they come from. With --json each run is kept, so that parts can be measured one by one and printed as one table.
"""
import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.dont_write_bytecode = True
import run
from run import HERE, rate, ratios, turns, unit


class Workload(NamedTuple):
    title: str
    model: str  # the names of models and rows are those of `prepare`
    train: str
    eval: str
    steps: int
    flags: list = []  # of run.py


WORKLOADS = {
    "sst2": Workload("MiniLM-L6, SST-2", "minilm", "sst2", "few", 40),
    # Both sides sort 50 batches at a time, longest first: 50 steps see all lengths.
    "grouped": Workload("MiniLM-L6, SST-2, both sides grouped by length", "minilm", "sst2", "few", 50,
                        ["--group-by-length"]),
    "mrpc": Workload("MiniLM-L6, MRPC (pairs)", "minilm", "mrpc", "few pairs", 40, ["--text-pair=text_pair"]),
    "full": Workload("MiniLM-L6, all rows 128 tokens", "minilm", "full", "few", 40),
    "base": Workload("BERT-base shape, SST-2", "base", "sst2", "few", 8),
    "eval": Workload("evaluation, MiniLM-L6, SST-2", "fine-tuned", "", "sst2 test", 0, ["--eval-only"]),
}
PRECISIONS = ["f32", "bf16"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?"), p.add_argument("data", nargs="?")
    p.add_argument("--only", default=",".join(WORKLOADS), help="workloads, separated by commas [%(default)s]")
    p.add_argument("--precision", default=",".join(PRECISIONS), help="formats, separated by commas [%(default)s]")
    p.add_argument("--steps", type=int, help="steps of training, instead of each workload's own (8 to 50)")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--print", metavar="FILE", help="measure nothing, print the table of the runs in FILE")
    run.add_measuring(p)
    a = p.parse_args()
    a.only, a.precision = a.only.split(","), a.precision.split(",")
    if unknown := set(a.only) - set(WORKLOADS):
        p.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if unknown := set(a.precision) - set(PRECISIONS):
        p.error(f"no precision {', '.join(unknown)}; there are {', '.join(PRECISIONS)}")
    if a.print is None and a.data is None:
        p.error("give MODEL_DIR and DATA_DIR, or --print FILE")
    return a


def settings(a, model, train, eval, max_steps, precision, flags=()):
    """What run.py makes of a command line."""
    paths = [model, *([train] if train else []), eval]
    return run.parser().parse_args([
        *map(str, paths), f"--max-steps={max_steps}", f"--precision={precision}", f"--threads={a.threads}",
        f"--runs={a.runs}", f"--bertft={a.bertft}", f"--python={a.python}", *(["--json", a.json] if a.json else []),
        *(["--compile"] if a.compile else []), *flags])


def prepare(a, scratch):
    """The paths of models and rows by name; what is generated is written to `scratch`, as far as --only needs it."""
    data = Path(a.data)
    files = {"minilm": Path(a.model), "": ""}
    for name in ("sst2", "mrpc"):
        files |= {name: data / name / "train.jsonl", f"{name} test": data / name / "test.jsonl"}
    # Training ends with an evaluation, which is not measured: keep it short.
    files |= {"few": head(files["sst2 test"], scratch / "few.jsonl")}
    if "mrpc" in a.only:
        files["few pairs"] = head(files["mrpc test"], scratch / "few_pairs.jsonl")
    if "full" in a.only:
        files["full"] = full_rows(files["sst2"], scratch / "full.jsonl")
    if "base" in a.only:
        files["base"] = scratch / "base"
        subprocess.run([a.python, HERE / "base_shape.py", a.model, files["base"]], check=True)
    if "eval" in a.only:
        once = settings(a, files["minilm"], files["sst2"], files["few"], 1, "f32")
        run.measure("bertft", run.bertft_command(once, scratch / "fine-tuned"))
        files["fine-tuned"] = scratch / "fine-tuned/run/model"
    return files


def head(source, target, rows=32):
    with open(source, encoding="utf-8") as f:
        target.write_text("".join(line for line, _ in zip(f, range(rows))), encoding="utf-8")
    return target


def full_rows(source, target, rows=2000, words=128):
    """Rows of texts joined to at least 128 words: cut to the greatest length, each has exactly 128 tokens."""
    sentences = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with open(target, "w", encoding="utf-8") as f:
        at = 0
        for row in range(rows):
            text = []
            while len(text) < words:
                text += sentences[at % len(sentences)]["text"].split()
                at += 1
            # The label of some sentence: what is learned does not matter here.
            f.write(json.dumps({"text": " ".join(text), "label": sentences[row]["label"]}) + "\n")
    return target


def setting(a):
    """What the figures depend on, in words: the machine and the versions, bertft's to the byte."""
    ask = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True).stdout
    info = json.loads(ask(a.bertft, "info", "--json"))
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    features = [name if there else f"no {name}" for name, there in info["cpu_features"].items()]
    build = hashlib.sha256(Path(a.bertft).read_bytes()).hexdigest()[:8]
    versions = ask(a.python, "-c", "from importlib.metadata import version as v\n"
                   "print(f'transformers {v(\"transformers\")}, PyTorch {v(\"torch\")}')").strip()
    return (f"{a.threads} threads on {os.cpu_count()} cores of {cpu} ({', '.join(features)}; bertft's kernels: "
            f"{info['kernels']}, bf16 by {info.get('bf16_products')}); bertft {info['version']} (sha256 {build}…), "
            f"{versions}")


def measure(a):
    lines = []
    about = {"setting": setting(a)}
    with tempfile.TemporaryDirectory() as scratch:
        files = prepare(a, Path(scratch))
        for precision in a.precision:
            for name in a.only:
                w = WORKLOADS[name]
                print(f"{w.title}, {precision}", file=sys.stderr)
                one = settings(a, files[w.model], files[w.train], files[w.eval], a.steps or w.steps, precision, w.flags)
                for turn in turns(one, scratch, about | {"workload": name, "precision": precision}):
                    lines += turn.values()
    return lines


def show(lines):
    """One table for each setting: figures of different machines or builds do not mix."""
    for where in dict.fromkeys(line["setting"] for line in lines):
        by_turn = {}
        for line in (line for line in lines if line["setting"] == where):
            by_turn.setdefault(line["turn"], {})[line["peer"]] = line
        cells = {}  # an interrupted turn lacks a side; other steps give another row
        for turn in (t for t in by_turn.values() if {"bertft", "transformers"} <= set(t)):
            one = turn["bertft"]
            cells.setdefault((one["precision"], one["workload"], one.get("steps")), []).append(turn)
        compiled = any("compiled" in turn for turns in cells.values() for turn in turns)
        print(f"{where}.\n")
        titles = ["workload", "precision", "runs × steps", "bertft", "transformers", "ratio (range)",
                  *(["with torch.compile", "ratio (range)"] if compiled else []),
                  "first step, s: both (ratio)", "peak memory, MB: both (ratio)"]
        print("|", " | ".join(titles), "|")
        print("|", " | ".join("---" for _ in titles), "|")
        order = lambda cell: (PRECISIONS.index(cell[0]), list(WORKLOADS).index(cell[1]), cell[2] or 0)
        for cell in sorted(cells, key=order):
            print("|", " | ".join(row(*cell, cells[cell], compiled)), "|")
        print()


def row(precision, name, steps, turns, compiled):
    def both(turns, get, peer="transformers"):
        """Medians of both sides, and the ratio with its range."""
        sides = [[get(t[name]) for t in turns] for name in ("bertft", peer)]
        return *map(statistics.median, sides), *ratios(*sides)

    def rates(peer, turns):
        ours, theirs, middle, low, high = both(turns, rate, peer)
        return f"{ours:.0f} {unit(turns[0]['bertft'])}", f"{theirs:.0f}", f"**{middle:.2f}** ({low:.2f}–{high:.2f})"

    times = f"{len(turns)} × {steps}" if steps else f"{len(turns)}"
    cells = [WORKLOADS[name].title, precision, times, *rates("transformers", turns)]
    if compiled:
        with_compiled = [t for t in turns if "compiled" in t]
        cells += rates("compiled", with_compiled)[1:] if with_compiled else ["–", "–"]
    first = lambda d: d["startup_seconds" if d["event"] == "eval" else "first_step_seconds"]
    for get, digits in ((first, 2), (lambda d: d["peak_rss_bytes"] / 1e6, 0)):
        ours, theirs, middle, *_ = both(turns, get)
        cells.append(f"{ours:.{digits}f} / {theirs:.{digits}f} ({middle:.2f})")
    return cells


def main():
    a = arguments()
    if a.print:
        show([json.loads(line) for line in Path(a.print).read_text(encoding="utf-8").splitlines()])
    else:
        show(measure(a))


if __name__ == "__main__":
    main()
