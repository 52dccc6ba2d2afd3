#!/usr/bin/env python3
"""What bertft leaves after training, against transformers: of each family a small model of random weights learns TREC's
question types, AutoModelForSequenceClassification loads the exported directory, and both score the same questions.

    python tests/golden/check_exports.py target/release/bertft TREC [family …] [--rows 200] [--keep DIR]

TREC is the folder of TREC.train and TREC.test. Models come with the vocabulary files that their family has before there is a
tokenizer.json. Ends with 1 where the logits of a row differ by more than 1e-5, but for the shift that softmax does not see,
or where a model does no better than the most frequent class.
"""
import argparse
import collections
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import make_tokenizers as vocabularies

BOUND = 1e-5
SIZES = dict(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=128, max_position_embeddings=64)
BEHIND_PADDING = dict(SIZES, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1)
MODERN = dict(SIZES, num_hidden_layers=3, local_attention=8, pad_token_id=0, bos_token_id=2, cls_token_id=2,
              eos_token_id=3, sep_token_id=3, reference_compile=False)
DEBERTA = dict(SIZES, relative_attention=True, pos_att_type="p2c|c2p", position_biased_input=False, type_vocab_size=0)
DEBERTA_V3 = dict(DEBERTA, share_att_key=True, position_buckets=16, norm_rel_ebd="layer_norm")

# Tokenizer, family and config.
FAMILIES = {
    "bert": ("wordpiece", "bert", SIZES),
    "roberta": ("bpe", "roberta", BEHIND_PADDING),
    "xlm-roberta": ("sentencepiece.bpe.model", "xlm-roberta", BEHIND_PADDING),
    "camembert": ("sentencepiece.bpe.model", "camembert", BEHIND_PADDING),
    "distilbert": ("wordpiece", "distilbert", dict(
        dim=64, n_heads=4, n_layers=2, hidden_dim=128, max_position_embeddings=64)),
    "electra": ("wordpiece", "electra", dict(SIZES, embedding_size=32)),
    "albert": ("spiece.model", "albert", dict(SIZES, embedding_size=32)),
    "mpnet": ("mpnet", "mpnet", dict(SIZES, max_position_embeddings=66, pad_token_id=1)),
    "modernbert": ("wordpiece", "modernbert", MODERN),
    "deberta-v2": ("spm.model", "deberta-v2", dict(DEBERTA, max_relative_positions=32, share_att_key=False)),
    "deberta-v3": ("spm.model", "deberta-v2", DEBERTA_V3),
    "deberta-conv": ("spm.model", "deberta-v2", dict(DEBERTA_V3, conv_kernel_size=3, conv_act="gelu")),
}
# The training that such small models need to learn.
TRAIN = dict(epochs=1, batch_size=16, learning_rate=2e-3)


def questions(file):
    """The labels and questions of a file of TREC."""
    rows = [line.split(" ", 1) for line in file.read_text("latin-1").splitlines()]
    return [label.split(":")[0] for label, _ in rows], [text for _, text in rows]


def words(special, texts):
    """A vocabulary of whole words, and of letters for the others."""
    counts = collections.Counter(word for text in texts for word in text.lower().split())
    letters = sorted({letter for word in counts for letter in word})
    frequent = [word for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n > 1 and len(word) > 1]
    return special + letters + ["##" + letter for letter in letters] + frequent[:3000]


def vocabulary(kind, folder, texts):
    """Writes the files of a tokenizer."""
    if kind == "bpe":
        vocabularies.byte_level(texts, 2000).model.save(str(folder))
    elif kind.endswith(".model"):
        special = {
            "sentencepiece.bpe.model": dict(unk_id=0, bos_id=1, eos_id=2),
            "spiece.model": dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"]),
            "spm.model": dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]",
                              eos_piece="[SEP]", unk_piece="[UNK]"),
        }[kind]
        (folder / kind).write_bytes(vocabularies.piece_model(texts, 2000, **special))
    else:
        special = vocabularies.MPNET if kind == "mpnet" else vocabularies.BERT
        (folder / "vocab.txt").write_text("".join(word + "\n" for word in words(special, texts)), encoding="utf-8")


def begin(name, folder, texts):
    """A model directory of random weights, without a head."""
    kind, family, config = FAMILIES[name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(model_type=family)))
    vocabulary(kind, folder, texts)
    if family == "modernbert":
        # It has no class of its own, and reads no token types.
        own = dict(tokenizer_class="BertTokenizer", model_input_names=["input_ids", "attention_mask"])
        (folder / "tokenizer_config.json").write_text(json.dumps(own))
    size = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(family, vocab_size=size, **config)).save_pretrained(folder)


def train(binary, name, folder, trec):
    """Trains, and gives the metrics on the test file."""
    config = f"""
[model]
path = "./{name}"
[task]
kind = "classification"
[data]
train = "{(trec / 'TREC.train').absolute()}"
test = "{(trec / 'TREC.test').absolute()}"
eval = 0.1
pattern = '^(?P<label>[A-Z]+):\\w+ (?P<text>.*)$'
encoding = "latin-1"
max_length = 64
[train]
{"".join(f"{key} = {value}{chr(10)}" for key, value in TRAIN.items())}
warmup_ratio = 0.1
[output]
dir = "{folder / ('run-' + name)}"
"""
    file = folder / f"{name}.toml"
    file.write_text(config)
    ran = subprocess.run([binary, "train", "--config", file, "--json"], capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(f"{name}: bertft train ended with {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])["metrics"]["test"]


def difference(binary, model, texts):
    """The largest difference of a row's log-probabilities."""
    rows = model.parent / "rows.txt"
    rows.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    ran = subprocess.run([binary, "predict", "--model", model, rows], capture_output=True, text=True, check=True)
    tokenizer = AutoTokenizer.from_pretrained(model)
    reference = AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="eager").eval()
    labels = [reference.config.id2label[i] for i in range(reference.config.num_labels)]
    worst = 0.0
    with torch.no_grad():
        for text, line in zip(texts, ran.stdout.splitlines(), strict=True):
            scores = json.loads(line)["scores"]
            got = torch.tensor([scores[label] for label in labels], dtype=torch.float64).log()
            logits = reference(**tokenizer(text, return_tensors="pt")).logits[0].double()
            worst = max(worst, (got - logits.log_softmax(0)).abs().max().item())
    return worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("trec", type=pathlib.Path)
    parser.add_argument("families", nargs="*", metavar="family", help=", ".join(FAMILIES))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--keep", type=pathlib.Path, help="leave models and runs in this new folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    binary, folder = args.binary.absolute(), args.keep.absolute() if args.keep else pathlib.Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    (_, texts), (labels, test) = questions(args.trec / "TREC.train"), questions(args.trec / "TREC.test")
    majority = collections.Counter(labels).most_common(1)[0][1] / len(labels)
    print(f"{len(labels)} test rows, of which the most frequent class has {majority:.3f}")
    wrong = []
    for name in args.families or FAMILIES:
        begin(name, folder / name, texts)
        start = time.time()
        metrics = train(binary, name, folder, args.trec)
        seconds = time.time() - start
        off = difference(binary, folder / f"run-{name}" / "model", test[: args.rows])
        if off > BOUND or not metrics["accuracy"] > majority:
            wrong.append(name)
        print(f"{name:13} accuracy {metrics['accuracy']:.3f}, loss {metrics['loss']:.3f}, {seconds:.0f} s; logits off by "
              f"{off:.1e}{', WRONG' if name in wrong else ''}", flush=True)
    if not args.keep:
        shutil.rmtree(folder)
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
