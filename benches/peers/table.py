#!/usr/bin/env python3
"""The table of bertft beside the Hugging Face Trainer: several workloads, f32 and bf16; prints Markdown.

    python benches/peers/table.py MODEL_DIR DATA_DIR [--compile] [--json runs.jsonl]
    python benches/peers/table.py MODEL_DIR DATA_DIR --only sst2,mrpc --precision f32 --json runs.jsonl
    python benches/peers/table.py --print runs.jsonl
    python benches/peers/table.py --generated --device cuda --precision bf16 --compile --json runs.jsonl

MODEL_DIR holds all-MiniLM-L6-v2, DATA_DIR sst2/{train,test}.jsonl and mrpc/{train,test}.jsonl: README.md says where
they come from. --generated needs neither: its workloads have random weights and made-up words. With --json each run is kept, so that parts can be measured one by one and printed as one table.
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
import generated
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
GENERATED = {  # with --generated; the names are those of generated.py
    "base-32": Workload("BERT-base shape, SST-2 lengths, batch 32", "base", "sst2", "few", 200),
    "base-256": Workload("BERT-base shape, SST-2 lengths, batch 256", "base", "sst2", "few", 60, ["--batch-size=256"]),
    "base-full": Workload("BERT-base shape, all rows 128 tokens, batch 256", "base", "full", "few", 30,
                          ["--batch-size=256"]),
    "minilm-32": Workload("MiniLM-L6 shape, SST-2 lengths, batch 32", "minilm", "sst2", "few", 400),
}
ALL = WORKLOADS | GENERATED
PRECISIONS = ["f32", "bf16"]
# Dense bf16 products, TFLOP/s, by a part of the name that the driver gives a GPU (NVIDIA's data sheets).
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "B200": 2250, "A100": 312, "A10G": 70, "A10": 125,
         "L40S": 362, "L40": 181, "L4": 121, "RTX 4090": 165, "RTX 3090": 71}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", nargs="?"), p.add_argument("data", nargs="?")
    p.add_argument("--only", help="workloads, separated by commas [all]")
    p.add_argument("--generated", action="store_true", help="models and rows that are made up here, no MODEL_DIR and DATA_DIR")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--batch-size", type=int, help="instead of each workload's own")
    p.add_argument("--tf32", action="store_true", help="both sides round the operands of f32 products to TF32 on a GPU")
    p.add_argument("--precision", default=",".join(PRECISIONS), help="formats, separated by commas [%(default)s]")
    p.add_argument("--steps", type=int, help="steps of training, instead of each workload's own (8 to 50)")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--print", metavar="FILE", help="measure nothing, print the table of the runs in FILE")
    run.add_measuring(p)
    a = p.parse_args()
    there_are = GENERATED if a.generated else WORKLOADS
    a.only, a.precision = a.only.split(",") if a.only else list(there_are), a.precision.split(",")
    if unknown := set(a.only) - set(there_are):
        p.error(f"no workload {', '.join(unknown)}; there are {', '.join(there_are)}")
    if unknown := set(a.precision) - set(PRECISIONS):
        p.error(f"no precision {', '.join(unknown)}; there are {', '.join(PRECISIONS)}")
    if a.print is None and (a.data is None) != a.generated:
        p.error("give MODEL_DIR and DATA_DIR, or --generated, or --print FILE")
    return a


def settings(a, model, train, eval, max_steps, precision, flags=()):
    """What run.py makes of a command line."""
    paths = [model, *([train] if train else []), eval]
    return run.parser().parse_args([
        *map(str, paths), f"--max-steps={max_steps}", f"--precision={precision}", f"--threads={a.threads}",
        f"--runs={a.runs}", f"--bertft={a.bertft}", f"--python={a.python}", *(["--json", a.json] if a.json else []),
        f"--device={a.device}", *(["--compile"] if a.compile else []), *(["--tf32"] if a.tf32 else []), *flags,
        *([f"--batch-size={a.batch_size}"] if a.batch_size else [])])


def prepare(a, scratch):
    """The paths of models and rows by name; what is generated is written to `scratch`, as far as --only needs it."""
    if a.generated:
        return generated.write(scratch, sorted({GENERATED[name].model for name in a.only})) | {"": ""}
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
    gpus = info["cuda"]["gpus"]
    on = f"{gpus[0]}{', TF32' if a.tf32 else ''}; " if a.device == "cuda" and gpus else ""
    return (f"{on}{a.threads} threads on {os.cpu_count()} cores of {cpu} ({', '.join(features)}; bertft's kernels: "
            f"{info['kernels']}, bf16 by {info.get('bf16_products')}); bertft {info['version']} (sha256 {build}…), "
            f"{versions}")


def measure(a):
    lines = []
    about = {"setting": setting(a)}
    with tempfile.TemporaryDirectory() as scratch:
        files = prepare(a, Path(scratch))
        for precision in a.precision:
            for name in a.only:
                w = ALL[name]
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
        peak = next((peak for gpu, peak in PEAKS.items() if gpu in where.partition(";")[0]), None)
        titles = ["workload", "precision", "runs × steps", "bertft", "transformers", "ratio (range)",
                  *(["with torch.compile", "ratio (range)"] if compiled else []),
                  *(["share of the peak: bertft, transformers" + (", compiled" if compiled else "")] if peak else []),
                  "first step, s: both (ratio)", "peak memory, MB: both (ratio)"]
        print("|", " | ".join(titles), "|")
        print("|", " | ".join("---" for _ in titles), "|")
        order = lambda cell: (PRECISIONS.index(cell[0]), list(ALL).index(cell[1]), cell[2] or 0)
        for cell in sorted(cells, key=order):
            print("|", " | ".join(row(*cell, cells[cell], compiled, peak)), "|")
        print()


def row(precision, name, steps, turns, compiled, peak):
    def both(turns, get, peer="transformers"):
        """Medians of both sides, and the ratio with its range."""
        sides = [[get(t[name]) for t in turns] for name in ("bertft", peer)]
        return *map(statistics.median, sides), *ratios(*sides)

    def rates(peer, turns):
        ours, theirs, middle, low, high = both(turns, rate, peer)
        return f"{ours:.0f} {unit(turns[0]['bertft'])}", f"{theirs:.0f}", f"**{middle:.2f}** ({low:.2f}–{high:.2f})"

    times = f"{len(turns)} × {steps}" if steps else f"{len(turns)}"
    cells = [ALL[name].title, precision, times, *rates("transformers", turns)]
    if compiled:
        with_compiled = [t for t in turns if "compiled" in t]
        cells += rates("compiled", with_compiled)[1:] if with_compiled else ["–", "–"]
    if peak:
        peers = ["bertft", "transformers"] + ["compiled"] * compiled
        medians = [statistics.median([t[peer]["tokens_per_second"] for t in turns if peer in t] or [0]) for peer in peers]
        flops = flops_per_token(name)
        shown = precision == "bf16" and flops  # the peak is that of bf16
        cells.append(", ".join(f"{m * flops / (peak * 1e12):.1%}" if m else "–" for m in medians) if shown else "–")
    first = lambda d: d["startup_seconds" if d["event"] == "eval" else "first_step_seconds"]
    for get, digits in ((first, 2), (lambda d: d["peak_rss_bytes"] / 1e6, 0)):
        ours, theirs, middle, *_ = both(turns, get)
        cells.append(f"{ours:.{digits}f} / {theirs:.{digits}f} ({middle:.2f})")
    return cells


def flops_per_token(name):
    """Of a training step of a workload whose rows all have one length: 6 for each weight of the layers, and the
    products of attention."""
    if name not in GENERATED or GENERATED[name].train != "full":
        return None
    shape = dict(hidden_size=768, num_hidden_layers=12) | generated.SHAPES[GENERATED[name].model]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    return 6 * layers * 12 * hidden**2 + 12 * layers * hidden * generated.FULL


def main():
    a = arguments()
    if a.print:
        show([json.loads(line) for line in Path(a.print).read_text(encoding="utf-8").splitlines()])
    else:
        show(measure(a))


if __name__ == "__main__":
    main()
