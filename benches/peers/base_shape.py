#!/usr/bin/env python3
"""A model directory of BERT-base's shape with random weights and the tokenizer of another model.

    base_shape.py TOKENIZER_MODEL_DIR OUTPUT_DIR

Speed does not depend on what the weights are; this saves a download. Needs torch and transformers. Called by table.py.
"""
import sys

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

source, output = sys.argv[1:]
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(source)
tokenizer.save_pretrained(output)
# The defaults of BertConfig are BERT-base's.
BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(output)
