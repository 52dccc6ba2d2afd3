#!/usr/bin/env python3
"""Golden fixtures of tags of words: tiny random `ForTokenClassification` models, as make_fixtures.py makes those for rows.

Run by hand: python tests/golden/make_tokens.py. Deterministic. A row of `batch.json` has its words and tags beside
`input_ids`, `token_type_ids` and `labels`, which hold the tag where a word begins and -100 elsewhere. `logits` are those of
the labelled tokens, row after row; losses are means over them.
"""
import copy
import shutil

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForTokenClassification

import make_families  # for its softmax
import make_fixtures as base
from make_fixtures import MAX_POSITIONS, ROOT, VERSIONS, VOCAB, collate, distance, save_tensors, window, write_json

TAGS = ["O", "B-art", "I-art", "B-time", "I-time"]
SENTENCES = [
    ("the film was unwatchable .", "O B-art O O O"),
    ("great !", "O O"),
    ("a long time the actor acted badly", "B-time I-time I-time O B-art O O"),
    (" ".join(["the plot of shortest scenes"] * 12), " ".join(["O B-art I-art I-art I-art"] * 12)),  # cut at 40 tokens
    ("Café music", "B-art I-art"),
    ("watching", "O"),
    ("never ever zzz qqq the story", "B-time I-time O O O B-art"),
    ("is the cold unplayable film good ?", "O O O O B-art O O"),
]
FAMILIES = {
    "tokens": dict(seed=31, family="bert", clip=2.5, config=dict(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=MAX_POSITIONS)),
    # Its head for tokens is that for rows.
    "tokens_modernbert": dict(seed=32, family="modernbert", clip=2.1, config=make_families.MODERN | dict(num_hidden_layers=2)),
}


def loss_sum(model, rows):
    batch = collate(rows, model.config)
    longest = batch["input_ids"].shape[1]
    labels = torch.tensor([r["labels"] + [-100] * (longest - len(r["labels"])) for r in rows])
    logits = model(**batch).logits
    own = model(**batch, labels=labels).loss
    read = logits[labels != -100]
    loss = F.cross_entropy(read, labels[labels != -100], reduction="sum")
    assert torch.allclose(own, loss / len(read), rtol=1e-5), "our loss is not the model's own"
    return read, loss


def labelled(rows):
    """The labelled tokens of some rows."""
    return sum(label != -100 for row in rows for label in row["labels"])


def gradients(model, rows, loss_sum, count):
    model.zero_grad()
    logits, loss = loss_sum(model, rows)
    (loss / count(rows)).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    norm = torch.sqrt(sum((g.double() ** 2).sum() for g in grads.values()))
    return logits.detach(), loss.item() / count(rows), grads, norm.item()


def train(model, rows, clip, loss_sum, count):
    """As make_fixtures.train, divided by the `count` of the whole window."""
    plain = lambda n: "bias" in n or "norm" in n.lower()
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [dict(params=[p for n, p in named if not plain(n)], weight_decay=base.WEIGHT_DECAY),
         dict(params=[p for n, p in named if plain(n)], weight_decay=0.0)],
        lr=base.LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)
    schedule = base.get_linear_schedule_with_warmup(optimizer, base.WARMUP, base.STEPS)
    history = []
    for step in range(base.STEPS):
        micro_batches = window(step, len(rows))
        divisor = count([rows[i] for indices in micro_batches for i in indices])
        total = 0.0
        optimizer.zero_grad()
        for indices in micro_batches:
            _, loss = loss_sum(model, [rows[i] for i in indices])
            (loss / divisor).backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        history.append(dict(rows=micro_batches, loss=total / divisor, learning_rate=schedule.get_last_lr()[0],
                            grad_norm=norm, clipped=norm > clip))
        optimizer.step()
        schedule.step()
    return history


def make(name, case):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "model").mkdir(parents=True)
    tokenizer = base.make_tokenizer(folder / "model")
    kind = dict(id2label=dict(enumerate(TAGS)), label2id={t: i for i, t in enumerate(TAGS)})
    config = AutoConfig.for_model(case["family"], vocab_size=len(VOCAB), **case["config"], **kind)
    model = base.fill(AutoModelForTokenClassification.from_config(config, attn_implementation="eager"), case["seed"])
    model.save_pretrained(folder / "model")
    rows = []
    for words, tags in SENTENCES:
        words, tags = words.split(), tags.split()
        assert len(words) == len(tags), words
        e = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_POSITIONS)
        ids = e.word_ids()
        first = lambda i: ids[i] is not None and ids[i] != ids[i - 1]
        rows.append(dict(words=words, tags=tags, input_ids=e["input_ids"], token_type_ids=e["token_type_ids"],
                         labels=[TAGS.index(tags[ids[i]]) if first(i) else -100 for i in range(len(ids))]))
    write(folder, case, model, rows, loss_sum, labelled)


def write(folder, case, model, rows, loss_sum, count):
    """Everything but the model: `loss_sum` gives a model's logits of some rows and the sum of their losses, whose mean is over
    their `count`."""
    write_json(folder / "batch.json", rows)
    logits, loss, grads, norm = gradients(model, rows, loss_sum, count)
    logits64, loss64, grads64, norm64 = gradients(copy.deepcopy(model).double(), rows, loss_sum, count)
    model.zero_grad()
    save_tensors(folder / "expected.safetensors",
                 {"logits": logits, "logits64": logits64.float()} | {f"grad.{n}": g for n, g in grads.items()})
    errors = {n: dict(norm=g.norm().item(), f32_error=distance(g, grads64[n])) for n, g in sorted(grads.items())}
    write_json(folder / "expected.json", dict(
        versions=VERSIONS, seed=case["seed"], loss=loss, loss64=loss64, grad_norm=norm, grad_norm64=norm64,
        logits_f32_error=(logits.double() - logits64).abs().max().item(), gradients=errors))
    trained = copy.deepcopy(model)
    history = train(trained, rows, case["clip"], loss_sum, count)
    clipped = sum(h["clipped"] for h in history)
    assert 3 <= clipped <= base.STEPS - 3, f"{folder.name}: clips at {clipped}: {[h['grad_norm'] for h in history]}"
    start, end = (dict(m.named_parameters()) for m in (model, trained))
    write_json(folder / "curve_linear.json", dict(
        optimizer=dict(name="adamw", betas=[0.9, 0.999], eps=1e-8, weight_decay=base.WEIGHT_DECAY,
                       learning_rate=base.LEARNING_RATE, warmup_steps=base.WARMUP, max_steps=base.STEPS,
                       max_grad_norm=case["clip"], **base.CURVES["linear"]),
        steps=history,
        updates={n: dict(update_norm=(end[n] - start[n]).norm().item(),
                         update_sum=(end[n] - start[n]).double().sum().item()) for n in sorted(end)}))
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder.name}: loss {history[0]['loss']:.3f} -> {history[-1]['loss']:.3f}, clipped {clipped}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, case in FAMILIES.items():
        make(name, case)
