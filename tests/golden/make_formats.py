#!/usr/bin/env python3
"""The weights of the fixture `roberta` as torch.save writes them, now and before PyTorch 1.6.

Run by hand: python tests/golden/make_formats.py.
"""
import pathlib

import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).parent / "fixtures"


def main():
    weights = load_file(ROOT / "roberta/model/model.safetensors")
    # As real ones have it: a parameter, a shared storage with an offset, a buffer of integers, other number formats.
    names = sorted(weights)
    weights[names[0]] = torch.nn.Parameter(weights[names[0]])
    both = torch.cat([torch.zeros(3), weights[names[1]].flatten()])
    weights[names[1]] = both[3:].view(weights[names[1]].shape)
    weights["roberta.embeddings.position_ids"] = torch.arange(14).expand(1, -1).contiguous()
    folder = ROOT / "formats"
    folder.mkdir(exist_ok=True)
    torch.save(weights, folder / "new.bin")
    torch.save(weights, folder / "old.bin", _use_new_zipfile_serialization=False)
    for file in sorted(folder.iterdir()):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
