#!/usr/bin/env python3
"""Golden fixtures: logits, gradients and training curves of tiny random BERT models from `transformers`.

Run by hand, from anywhere, when a case is added (see README.md for what each file holds):

    pip install torch==2.* transformers==4.57.* safetensors
    python tests/golden/make_fixtures.py

Deterministic: every random number comes from a seed below, and torch runs on one thread. The versions that made the
committed files are in each `expected.json`. Weights are drawn with a large standard deviation (0.2), layer-norm gains in
1 ± 0.3, no bias zero, so that every gradient is far from zero, except the two that are exactly zero by construction:
`attention.self.key.bias` (softmax does not see a shift) and the rows of embeddings that no input touches.
"""
import copy
import json
import os
import platform
import shutil
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

ROOT = Path(__file__).resolve().parent / "fixtures"
MAX_POSITIONS = 40
VERSIONS = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}

# 60 pieces. Accents, case and unknown words in the texts below exercise the normaliser and [UNK].
VOCAB = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , ! ? ' - a b c e i o s t the of and is was not very film plot actor music scene"
    " good bad dull great warm cold un play act watch time long short never ever story cafe"
    " ##ed ##ing ##ly ##er ##est ##ful ##able ##a ##e ##i ##o ##t"
).split()
assert len(VOCAB) == len(set(VOCAB)) == 60

CLASSIFICATION_ROWS = [
    ("The film was good.", None, 0),
    ("", None, 3),  # [CLS] [SEP] alone
    ("great!", None, 1),
    ("The plot is unwatchable, the actors act badly and the music never ever plays; a DULL story.", None, 2),
    (" ".join(["the story was long and the scene was cold,"] * 8), None, 4),  # cut to the model's 40 positions
    ("Café music, warm and very good", None, 1),
    ("not a bad scene", None, 3),
    ("watching the actor is never dull - ever", None, 0),
    ("zzz the film qqq", None, 2),  # unknown words
    ("shortest plot of the time?", None, 4),
    ("unplayable", None, 2),
    ("a very very very long and cold film, and a great story", None, 1),
]
PAIR_ROWS = [
    ("The film was good.", "a great film", 1),
    ("dull", "The actor was very warm and the music played ever longer, never cold", 0),
    (" ".join(["the plot is long"] * 8), " ".join(["a short scene"] * 9), 1),  # both sides cut, longest first
    ("the music", " ".join(["never a good story"] * 14), 0),  # only the second side cut
    ("is the story good?", "The story is good!", 1),
    ("", "bad", 0),
    ("watch the scene", "", 1),
    ("not the actor", "the actor's time", 0),
    ("a cold film, a warm story", "a warm film, a cold story", 0),
    ("cafe", "Café", 1),
]
REGRESSION_ROWS = [(text, None, value) for (text, _, _), value in zip(
    CLASSIFICATION_ROWS[:10], [0.8, -1.25, 2.5, -2.0, 0.1, 1.4, 0.6, 0.0, -0.3, -0.7])]

MULTILABEL_ROWS = [(text, None, label) for (text, _, _), label in zip(
    CLASSIFICATION_ROWS, [[0], [], [1, 2], [2], [0, 1, 2, 3], [1], [3, 0], [], [2, 1], [3], [0, 2], [1, 3]])]

CASES = {
    "classification": dict(
        seed=11, rows=CLASSIFICATION_ROWS, labels=["cold", "good", "dull", "neutral", "long"],
        config=dict(hidden_size=24, num_attention_heads=4, num_hidden_layers=3, intermediate_size=40, hidden_act="gelu"),
        curves=["linear", "cosine"], final_weights=False),
    # head_dim 10, nothing a multiple of a vector register.
    "pairs": dict(
        seed=12, rows=PAIR_ROWS, labels=["different", "same"],
        config=dict(hidden_size=20, num_attention_heads=2, num_hidden_layers=2, intermediate_size=28, hidden_act="gelu"),
        curves=["linear"], final_weights=True),
    "regression": dict(
        seed=13, rows=REGRESSION_ROWS, labels=None,
        config=dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24,
                    hidden_act="gelu_new"),
        curves=["linear"], final_weights=True),
    "multilabel": dict(
        seed=14, rows=MULTILABEL_ROWS, labels=["film", "good", "cold", "story"], several=True,
        config=dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, hidden_act="gelu"),
        curves=["linear"], final_weights=True),
}

# The families whose tokenizers give token types to their models.
READS_TYPES = ["bert", "electra", "albert"]
# Softmax does not see a shift: no gradient.
KEY_BIAS = ("key.bias", "k_lin.bias", "attn.k.bias", "pos_key_proj.bias")

# Clipping thresholds between the smallest and the largest gradient norm of the curve: it acts at some steps only.
CURVES = {
    "linear": dict(lr_scheduler_type="linear", label_smoothing_factor=0.0),
    "cosine": dict(lr_scheduler_type="cosine", label_smoothing_factor=0.1),
}
STEPS, WARMUP, LEARNING_RATE, WEIGHT_DECAY = 20, 5, 2e-3, 0.1
MAX_GRAD_NORM = {"classification": 4.0, "pairs": 1.7, "regression": 3.0, "multilabel": 0.6}


def write_json(path, value):
    """JSON with one member of the outermost lists and objects a line, for readable diffs of small files."""
    one = lambda v: json.dumps(v, ensure_ascii=False)

    def members(v):
        if not v or not isinstance(v, (list, dict)):
            return one(v)
        if isinstance(v, list):
            return "[\n" + ",\n".join(map(one, v)) + "\n]"
        return "{\n" + ",\n".join(f"{one(k)}: {one(x)}" for k, x in v.items()) + "\n}"

    if isinstance(value, dict):
        big = lambda v: members(v) if len(one(v)) > 110 else one(v)
        text = "{\n" + ",\n".join(f"{one(k)}: {big(v)}" for k, v in value.items()) + "\n}"
    else:
        text = members(value)
    path.write_text(text + "\n", encoding="utf-8")


def save_tensors(path, tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in sorted(tensors.items())}, path, metadata={"format": "pt"})


def make_tokenizer(folder, pieces=VOCAB):
    """The tokenizer, written to `folder` before any call sets truncation in it."""
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab_file=str(vocab), do_lower_case=True, model_max_length=MAX_POSITIONS)
    tokenizer.save_pretrained(folder)
    (folder / "special_tokens_map.json").unlink()
    return tokenizer


def kind_of(labels, several=False):
    """The keys of a config that say what is predicted."""
    return dict(num_labels=1, problem_type="regression") if labels is None else dict(
        problem_type="multi_label_classification" if several else "single_label_classification", id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)})


def make_model(case):
    config = BertConfig(
        vocab_size=len(VOCAB), max_position_embeddings=MAX_POSITIONS, type_vocab_size=2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, **case["config"],
        **kind_of(case["labels"], case.get("several")))
    config._attn_implementation = "eager"
    return fill(BertForSequenceClassification(config), case["seed"])


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if name.lower().endswith("norm.weight"):
                p.copy_(1 + 0.3 * (2 * torch.rand(p.shape, generator=generator) - 1))
            else:  # the padding row too: padding must not leak, whatever it holds
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()  # no dropout either way; eval says so


def collate(rows, config):
    """Ragged rows to one padded batch with its attention mask, as the config's model wants it."""
    longest = max(len(r["input_ids"]) for r in rows)
    pad = lambda key, fill: torch.tensor([r[key] + [fill] * (longest - len(r[key])) for r in rows])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    batch = dict(input_ids=pad("input_ids", config.pad_token_id), attention_mask=mask)
    if config.model_type in READS_TYPES or (config.model_type == "deberta-v2" and config.type_vocab_size > 0):
        batch["token_type_ids"] = pad("token_type_ids", 0)
    return batch


def indicators(labels, logits):
    """Lists of labels as rows of 0 and 1."""
    return torch.tensor([[float(i in row) for i in range(logits.shape[1])] for row in labels], dtype=logits.dtype)


def loss_sum(logits, labels, smoothing=0.0):
    """Sum of the rows' losses: squared error, the mean of the labels' binary cross-entropies, or cross-entropy smoothed as
    transformers' LabelSmoother does it."""
    if isinstance(labels[0], list):
        return F.binary_cross_entropy_with_logits(logits, indicators(labels, logits), reduction="none").mean(-1).sum()
    if logits.shape[1] == 1:
        return ((logits.squeeze(1) - torch.tensor(labels, dtype=logits.dtype)) ** 2).sum()
    log_p = F.log_softmax(logits, dim=-1)
    nll = -log_p.gather(1, torch.tensor(labels)[:, None]).squeeze(1)
    return ((1 - smoothing) * nll + smoothing * -log_p.mean(-1)).sum()


def gradients(model, rows):
    """Logits, mean loss, gradients by name and their global norm for all rows as one batch."""
    model.zero_grad()
    batch = collate(rows, model.config)
    logits = model(**batch).logits
    labels = [r["label"] for r in rows]
    loss = loss_sum(logits, labels) / len(rows)
    if isinstance(labels[0], list):
        target = indicators(labels, logits)
    else:
        target = torch.tensor(labels, dtype=logits.dtype if logits.shape[1] == 1 else torch.long)
    own = model(**batch, labels=target).loss
    assert torch.allclose(own, loss, rtol=1e-5), "our loss is not the model's own"
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in grads.values()))
    return logits.detach(), loss.item(), grads, norm.item()


def window(step, count):
    """The rows of a step: two micro-batches of 4 and 2 rows (3 and 1 at every third step), in a fixed walk."""
    first, second = (3, 1) if step % 3 == 2 else (4, 2)
    at = lambda k: (5 * step + 7 * k + step // 4) % count
    return [[at(k) for k in range(first)], [at(k) for k in range(first, first + second)]]


def train(model, rows, curve, max_grad_norm):
    """The plain loop: sums over the window, divided by the window's rows; clip; step; schedule."""
    plain = lambda n: "bias" in n or "norm" in n.lower()
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [dict(params=[p for n, p in named if not plain(n)], weight_decay=WEIGHT_DECAY),
         dict(params=[p for n, p in named if plain(n)], weight_decay=0.0)],
        lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
    make = dict(linear=get_linear_schedule_with_warmup, cosine=get_cosine_schedule_with_warmup)
    schedule = make[curve["lr_scheduler_type"]](optimizer, WARMUP, STEPS)
    history = []
    for step in range(STEPS):
        micro_batches = window(step, len(rows))
        count, total = sum(map(len, micro_batches)), 0.0
        optimizer.zero_grad()
        for indices in micro_batches:
            batch = [rows[i] for i in indices]
            loss = loss_sum(model(**collate(batch, model.config)).logits, [r["label"] for r in batch],
                            curve["label_smoothing_factor"])
            (loss / count).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item()
        history.append(dict(rows=micro_batches, loss=total / count, learning_rate=schedule.get_last_lr()[0],
                            grad_norm=norm, clipped=norm > max_grad_norm))
        optimizer.step()
        schedule.step()
    return history


def distance(a, b):
    """‖a − b‖ / ‖b‖, and plain ‖a − b‖ where b is zero."""
    a, b = a.double(), b.double()
    scale = b.norm().item()
    return (a - b).norm().item() / (scale or 1.0)


def make_curve(name, kind, model, rows, folder, keep_weights):
    curve, clip = CURVES[kind], MAX_GRAD_NORM[name]
    trained, trained64 = copy.deepcopy(model), copy.deepcopy(model).double()
    history, history64 = train(trained, rows, curve, clip), train(trained64, rows, curve, clip)
    clipped = sum(h["clipped"] for h in history)
    assert 3 <= clipped <= STEPS - 3, f"{name} {kind}: clips at {clipped} steps: {[h['grad_norm'] for h in history]}"
    start, end, end64 = (dict(m.named_parameters()) for m in (model, trained, trained64))
    updates = {n: dict(update_norm=(end[n] - start[n]).norm().item(), update_sum=(end[n] - start[n]).double().sum().item(),
                       f32_error=distance(end[n] - start[n], end64[n] - start[n])) for n in sorted(end)}
    result = dict(
        optimizer=dict(name="adamw", betas=[0.9, 0.999], eps=1e-8, weight_decay=WEIGHT_DECAY, learning_rate=LEARNING_RATE,
                       warmup_steps=WARMUP, max_steps=STEPS, max_grad_norm=clip, **curve),
        f32_error=dict(loss=max(abs(a["loss"] - b["loss"]) for a, b in zip(history, history64)),
                       grad_norm=max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(history, history64))),
        steps=history)
    if keep_weights:
        save_tensors(folder / f"curve_{kind}.safetensors", end)
    else:
        result["updates"] = updates
    write_json(folder / f"curve_{kind}.json", result)
    print(f"{name} {kind}: loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}, clipped {clipped}/{STEPS}")


def make_case(name, case):
    folder = ROOT / name
    (folder / "model").mkdir(parents=True)
    tokenizer = make_tokenizer(folder / "model", case.get("pieces", VOCAB))
    model = case.get("make", make_model)(case)
    model.save_pretrained(folder / "model")

    rows = []
    for text, pair, label in case["rows"]:
        # A list of one: called with a bare string, the tokenizer takes an empty second text for none.
        e = tokenizer([text], None if pair is None else [pair], truncation="longest_first", max_length=MAX_POSITIONS)
        e = {key: value[0] for key, value in e.items()}
        row = dict(text=text) if pair is None else dict(text=text, text_pair=pair)
        rows.append(row | dict(label=label, input_ids=e["input_ids"], token_type_ids=e["token_type_ids"]))
    for ids in case.get("bare", []):
        rows.append(dict(text="", label=0, input_ids=ids, token_type_ids=[0] * len(ids)))
    write_json(folder / "batch.json", rows)
    lengths = [len(r["input_ids"]) for r in rows]
    assert max(lengths) == MAX_POSITIONS and min(lengths) < 6, lengths

    logits, loss, grads, norm = gradients(model, rows)
    logits64, loss64, grads64, norm64 = gradients(copy.deepcopy(model).double(), rows)
    model.zero_grad()
    save_tensors(folder / "expected.safetensors",
                 {"logits": logits, "logits64": logits64.float()} | {f"grad.{n}": g for n, g in grads.items()})
    errors = {n: dict(norm=g.norm().item(), f32_error=distance(g, grads64[n])) for n, g in sorted(grads.items())}
    smallest = min((g.norm() for n, g in grads64.items() if not n.endswith(KEY_BIAS)), default=0)
    assert smallest > 1e-4 * norm64, f"{name}: a gradient is close to zero"
    write_json(folder / "expected.json", dict(
        versions=VERSIONS, seed=case["seed"], loss=loss, loss64=loss64, grad_norm=norm, grad_norm64=norm64,
        logits_f32_error=(logits.double() - logits64).abs().max().item(), gradients=errors))
    for kind in case["curves"]:
        make_curve(name, kind, model, rows, folder, case["final_weights"])
    return model, rows


def make_old_names(model, rows):
    """The classification encoder as early checkpoints hold it: no `bert.` prefix, LayerNorm gamma and beta, f16,
    neither pooler nor classifier."""
    folder = ROOT / "old_names"
    (folder / "model").mkdir(parents=True)
    make_tokenizer(folder / "model")
    old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    halves = {n: p.half() for n, p in model.bert.named_parameters() if not n.startswith("pooler.")}
    save_tensors(folder / "model" / "model.safetensors", {old(n): p for n, p in halves.items()})
    config = json.loads((ROOT / "classification/model/config.json").read_text())
    for key in ("id2label", "label2id", "problem_type"):
        config.pop(key)
    config["architectures"], config["dtype"] = ["BertModel"], "float16"
    write_json(folder / "model" / "config.json", config)

    encoder = BertModel(model.config, add_pooling_layer=False).eval()
    encoder.load_state_dict({n: p.float() for n, p in halves.items()})
    loaded = BertModel.from_pretrained(folder / "model", add_pooling_layer=False, dtype=torch.float32)
    for n, p in loaded.named_parameters():
        assert torch.equal(p, halves[n].float()), f"transformers reads {n} otherwise"
    batch = collate(rows, model.config)
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    # [tokens, hidden]: the real tokens of all rows, end to end
    save_tensors(folder / "expected.safetensors", {"last_hidden_state": hidden[batch["attention_mask"].bool()]})


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in [*CASES, "old_names"]:
        shutil.rmtree(ROOT / name, ignore_errors=True)
    models = {name: make_case(name, case) for name, case in CASES.items()}
    make_old_names(*models["classification"])
    size = sum(f.stat().st_size for f in ROOT.rglob("*") if f.is_file())
    print(f"{size / 1000:.0f} kB in {ROOT.name}/")
    assert size < 500_000


if __name__ == "__main__":
    main()
