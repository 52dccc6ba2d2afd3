"""Writes token_ids.jsonl: what transformers 4.57 gives for examples/models/bert-tiny-4l-128h. Run in the repository root."""

import json

from transformers import AutoTokenizer

TEN = "one two three four five six seven eight nine ten"
ROWS = [
    ("Hello, World! isn't it?", None, 128),
    ("Café naïve Ångström façade", None, 128),
    ("我爱北京天安门", None, 128),
    ("I ❤️ 🍕 pizza 👨‍👩‍👧 e\u0301te\u0301", None, 128),
    ("", None, 128),
    ("straße\u00a0\t ﬁne\u200b ok\x00", "[SEP] and [MASK]", 128),
    ("unaffable Donaudampfschifffahrt 3.14159 <b>x</b>", None, 12),
    ("x" * 150, None, 12),
    ("A man is playing a large flute.", "A man is playing a flute.", 128),
    ("A man is playing a large flute.", "A man is playing a flute.", 12),
    (TEN, "a b c", 12),
    ("one two three", "a b c d e f g h i j", 12),
    (TEN, "a b c d e f g h i j k", 12),
    (TEN, "", 12),
    ("", "a b", 4),
    (TEN, "a b", 4),
    (TEN, None, 3),
]

tokenizer = AutoTokenizer.from_pretrained("examples/models/bert-tiny-4l-128h")
with open("tests/data/token_ids.jsonl", "w") as out:
    for text, pair, max_length in ROWS:
        # As a batch: a call with a single pair takes an empty second text for none.
        e = tokenizer([text], None if pair is None else [pair], truncation="longest_first", max_length=max_length)
        ids, type_ids = e["input_ids"][0], e["token_type_ids"][0]
        row = dict(text=text, text_pair=pair, max_length=max_length, ids=ids, type_ids=type_ids)
        print(json.dumps(row, ensure_ascii=False), file=out)
