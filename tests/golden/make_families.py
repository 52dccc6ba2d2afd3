#!/usr/bin/env python3
"""Golden fixtures of the other families: as make_fixtures.py makes BERT's, one tiny random model each.

Run by hand: python tests/golden/make_families.py [family …]. Deterministic.

The token types in `batch.json` are what a BERT tokenizer gives; families that do not read them are computed without.
"""
import shutil
import sys

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import make_fixtures as base
from make_fixtures import CLASSIFICATION_ROWS, MAX_POSITIONS, PAIR_ROWS, REGRESSION_ROWS, ROOT, VOCAB

# [PAD] has id 1 where positions begin behind it; id 0 is then a word like others.
PAD_AT_1 = ["[UNK]", "[PAD]", *VOCAB[2:]]
LABELS = ["cold", "good", "dull", "neutral", "long"]
SIZES = dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BEHIND_PADDING = dict(max_position_embeddings=MAX_POSITIONS + 2, pad_token_id=1)
MODERN = dict(**SIZES | dict(num_hidden_layers=5), max_position_embeddings=MAX_POSITIONS, local_attention=6,
              global_rope_theta=500.0, local_rope_theta=50.0, pad_token_id=0, bos_token_id=2, cls_token_id=2,
              eos_token_id=3, sep_token_id=3, reference_compile=False)

RELATIVE = dict(**SIZES, **NO_DROPOUT, relative_attention=True, max_position_embeddings=MAX_POSITIONS, pooler_dropout=0.0)

CASES = {
    "roberta": dict(
        seed=21, rows=PAIR_ROWS, labels=["different", "same"], pieces=PAD_AT_1,
        config=dict(**SIZES, **NO_DROPOUT, **BEHIND_PADDING, type_vocab_size=1, layer_norm_eps=1e-5)),
    "distilbert": dict(
        seed=22, rows=PAIR_ROWS, labels=["different", "same"],
        config=dict(dim=16, n_heads=2, n_layers=2, hidden_dim=24, dropout=0.0, attention_dropout=0.0,
                    seq_classif_dropout=0.0, max_position_embeddings=MAX_POSITIONS)),
    "electra": dict(
        seed=23, rows=CLASSIFICATION_ROWS, labels=LABELS,
        config=dict(**SIZES, **NO_DROPOUT, embedding_size=10, max_position_embeddings=MAX_POSITIONS)),
    "albert": dict(
        seed=24, rows=PAIR_ROWS, labels=["different", "same"],
        config=dict(**SIZES | dict(num_hidden_layers=3), embedding_size=12, classifier_dropout_prob=0.0,
                    max_position_embeddings=MAX_POSITIONS)),
    "mpnet": dict(
        seed=25, rows=REGRESSION_ROWS, labels=None, pieces=PAD_AT_1,
        config=dict(**SIZES, **NO_DROPOUT, **BEHIND_PADDING)),
    # Layers 0 and 3 see whole rows, the others, the last among them, 3 tokens to each side.
    "modernbert": dict(seed=26, rows=PAIR_ROWS, labels=["different", "same"], config=MODERN),
    # The options that published models leave alone.
    "modernbert_mean": dict(
        seed=27, family="modernbert", rows=CLASSIFICATION_ROWS, labels=LABELS,
        config=dict(**MODERN | dict(num_hidden_layers=2, local_attention=9), classifier_pooling="mean", norm_bias=True,
                    attention_bias=True, mlp_bias=True, classifier_bias=True, hidden_activation="silu",
                    classifier_activation="relu")),
    # The layer that reads the embeddings is the one of which only [CLS] is read.
    "modernbert_one": dict(
        seed=28, family="modernbert", rows=PAIR_ROWS, labels=["different", "same"],
        config=MODERN | dict(num_hidden_layers=1)),
    # As v3 has it; rows reach far beyond the distances that have a bucket of their own, and one is a single token.
    "deberta_v3": dict(
        seed=28, family="deberta-v2", rows=PAIR_ROWS, labels=["different", "same"], bare=[[7]],
        config=dict(**RELATIVE, pos_att_type="p2c|c2p", share_att_key=True, position_buckets=8,
                    norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0)),
    # The options that v3 leaves alone; rows reach beyond the last distance.
    "deberta_v2": dict(
        seed=29, family="deberta-v2", rows=PAIR_ROWS, labels=["different", "same"], bare=[[7]],
        config=dict(**RELATIVE, pos_att_type=["c2p", "p2c"], max_relative_positions=12, type_vocab_size=2,
                    position_biased_input=True, pooler_hidden_act="tanh")),
    # As v2-xlarge has it: a convolution beside the first layer.
    "deberta_conv": dict(
        seed=30, family="deberta-v2", rows=PAIR_ROWS, labels=["different", "same"], bare=[[7]],
        config=dict(**RELATIVE, pos_att_type="p2c|c2p", share_att_key=True, position_buckets=8,
                    norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0, conv_kernel_size=3,
                    conv_act="gelu")),
    # Its other options, tables of another width, and only [CLS] read of the layer that it stands beside.
    "deberta_conv_one": dict(
        seed=31, family="deberta-v2", rows=PAIR_ROWS, labels=["different", "same"], bare=[[7]],
        config=dict(**RELATIVE | dict(num_hidden_layers=1), pos_att_type=["c2p", "p2c"], max_relative_positions=12,
                    type_vocab_size=2, position_biased_input=True, conv_kernel_size=5, conv_groups=2,
                    embedding_size=10)),
}
base.MAX_GRAD_NORM |= dict(roberta=1.2, distilbert=1.2, electra=2.0, albert=1.7, mpnet=3.5, modernbert=1.5,
                      modernbert_mean=3.0, modernbert_one=3.5, deberta_v3=0.8, deberta_v2=1.5, deberta_conv=1.0,
                           deberta_conv_one=1.0)


def exact_softmax(x, dim, dtype=None, softmax=torch.nn.functional.softmax):
    """ModernBERT's attention asks for f32, also of f64, whose lowest value is then -inf and makes rows of padding NaN."""
    return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype)


torch.nn.functional.softmax = exact_softmax


def make(case):
    config = AutoConfig.for_model(case["family"], vocab_size=len(VOCAB), **case["config"], **base.kind_of(case["labels"]))
    config._attn_implementation = "eager"
    return base.fill(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"), case["seed"])


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in sys.argv[1:] or CASES:
        shutil.rmtree(ROOT / name, ignore_errors=True)
        common = dict(family=name, make=make, curves=["linear"], final_weights=False)
        base.make_case(name, common | CASES[name])
        size = sum(f.stat().st_size for f in (ROOT / name).rglob("*") if f.is_file())
        print(f"{name}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
