#!/usr/bin/env python3
"""Models with random weights and rows of made-up words, for measuring speed where no checkpoint and no data are.

    generated.py OUTPUT_DIR

writes the models `base` (BERT-base's shape) and `minilm` (MiniLM-L6's), each with a tokenizer whose every word is one
token, and rows as jsonl: `sst2` has the lengths of the sentences of SST-2, `full` rows of 128 tokens. Speed does not
depend on what weights and words are. Needs torch and transformers. Called by table.py.
"""
import json
import math
import random
import sys
from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 30522  # of BERT, uncased
SHAPES = {  # what differs from the defaults of BertConfig, which are BERT-base's
    "base": {},
    "minilm": dict(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
}
# Rows of training: with 256 to a batch as many as some steps of an epoch need, each once.
ROWS = {"sst2": 16384, "full": 8192}
FULL = 128


def length(draw):
    """Tokens of a sentence of SST-2, [CLS] and [SEP] counted: log-normal, 22 in the mean."""
    return min(max(round(math.exp(draw.normalvariate(2.94, 0.55))), 4), 64)


def text(draw, tokens):
    """Half of the words are one of 200, as in a language."""
    word = lambda: draw.randrange(200) if draw.random() < 0.5 else draw.randrange(VOCABULARY - len(SPECIAL))
    return " ".join(f"w{word()}" for _ in range(tokens - 2))


def write_rows(path, rows, lengths):
    draw = random.Random(path.name)
    with open(path, "w", encoding="utf-8") as f:
        for row in range(rows):
            f.write(json.dumps({"text": text(draw, lengths(draw)), "label": str(row % 2)}) + "\n")


def write_model(directory, shape):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    directory.mkdir(parents=True)
    words = SPECIAL + [f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(str(directory / "vocab.txt"), model_max_length=512).save_pretrained(directory)
    BertModel(BertConfig(vocab_size=VOCABULARY, **shape)).save_pretrained(directory)


def write(directory, models=SHAPES):
    """Writes these models, and all rows; gives the paths by name."""
    directory = Path(directory)
    paths = {name: directory / name for name in models}
    for name in models:
        write_model(paths[name], SHAPES[name])
    for name, lengths in (("sst2", length), ("full", lambda _: FULL)):
        paths[name] = directory / f"{name}.jsonl"
        write_rows(paths[name], ROWS[name], lengths)
    paths["few"] = directory / "few.jsonl"
    write_rows(paths["few"], 32, length)
    return paths


if __name__ == "__main__":
    write(sys.argv[1])
