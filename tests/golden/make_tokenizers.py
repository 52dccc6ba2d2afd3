#!/usr/bin/env python3
"""Golden fixtures of tokenizers: directories as people have them, with the ids that transformers gives.

Run by hand: python tests/golden/make_tokenizers.py. Deterministic. With vocabularies and texts from outside it makes a
larger set for the ignored test of tests/tokenizers.rs:

    python tests/golden/make_tokenizers.py --out DIR --vocab vocab.txt --texts texts.txt [--rows 10000]
"""
import argparse
import io
import json
import os
import pathlib
import random
import shutil
import tempfile

import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
TEXTS = """The café's Résumé was naïve, and the Coffee tasted well-made.
THE COFFEE WAS NOT GOOD!
unbelievably  good\tservice\u00a0here
这家酒店的服务很好，the room was 干净 too
ﬁne ﬀ ½ Å Å straße İstanbul ΣΊΣΥΦΟΣ
[MASK] and [SEP] are special, <mask> <s> too
a <ent> b<ent>c New York is <ENT>
don't can't we'll it's 3,14 and 2024-11-28 #42
emoji 😀👍🏽 and zero\u200bwidth \u2028 line \ufffd \x07bell

    leading and trailing
supercalifragilisticexpialidocious good goods goodness
naive cafe resume ΕΛΛΗΝΙΚΑ русский язык हिन्दी العربية 日本語 한국어 Tiếng Việt""".split("\n")
PIECES = """the a of and was not good well made coffee service room here unbelievable ##ly ##s ##ness is are too special new york
cafe café resume résumé naive naïve The Coffee THE COFFEE NOT GOOD super ##cali ##fra ##gil don can we it ' t s ll 3 14 2024 11 28
, . ! - # 42 [ ] < > MASK mask SEP sep ent ENT b c 这 家 酒 店 的 服 务 很 好 干 净 ， i ##st ##an ##bul İstanbul fine ff å Å
tieng viet tiếng việt ##1 ##2 e ##m ##o ##j ##i and trailing leading""".split()
# What SentencePiece models are made of here, beside TEXTS.
SENTENCES = """She bought 1,000 shares in 2019, 2,500 in 2020, and sold 12, all of them at $3.50 (a loss of 7%).
It was - as they say – "the best of times", it was the worst of times; it was the age of wisdom.
He said: don't worry, we'll be there by 10:30, or 11, at the latest! Isn't it so? Yes...
The quick brown fox jumps over the lazy dog, and the dogs were not amused by the foxes' jumping.
L'été dernier, j'ai vu où naît le fleuve ; l'hôtel était fermé, mais le café était très bon.
Le garçon mangeait des œufs à la crème brûlée, peut-être qu'il n'en avait jamais goûté auparavant.
Wir haben über die schöne Straße gesprochen, die größer und älter als die anderen Straßen ist.
El niño comió una manzana roja mañana por la mañana, ¿verdad? ¡Qué bueno, señor!
Zażółć gęślą jaźń, a później idź do domu, bo jest już ciemno.
Bugün İstanbul'da hava çok güzel, ışıklar şehrin üzerinde parlıyor.
Сегодня хорошая погода, и мы идём гулять по старому городу, а завтра поедем домой.
Σήμερα ο καιρός είναι καλός και πηγαίνουμε στη θάλασσα με τους φίλους μας.
今天天气很好，我们去公园散步，然后在酒店吃饭。服务很好，房间也很干净，价格是1,200元。
今日はとても良い天気ですから、公園へ散歩に行きましょう。カタカナとひらがな。
오늘은 날씨가 매우 좋아서 우리는 공원에 산책하러 갑니다.
आज मौसम बहुत अच्छा है और हम बगीचे में घूमने जा रहे हैं।
اليوم الطقس جميل جدا ونحن نذهب إلى الحديقة مع الأصدقاء.
Hôm nay trời đẹp quá, chúng tôi đi dạo trong công viên rồi ăn phở.""".split("\n")
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MPNET = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]


def write(path, value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    path.write_text(text, encoding="utf-8", newline="")


def flags(content, **other):
    return dict(content=content, lstrip=False, normalized=False, rstrip=False, single_word=False) | other


def wordpiece(pieces):
    """BERT's vocabulary, and the settings that change what it does."""
    bert = dict(model_type="bert"), pieces
    mpnet = dict(model_type="mpnet"), MPNET + [p for p in pieces if p not in BERT + MPNET]
    yield "bert_uncased", *bert, {}
    yield "bert_cased", *bert, dict(config=dict(do_lower_case=False, tokenizer_class="BertTokenizer"))
    yield "bert_accents", *bert, dict(config=dict(do_lower_case=True, strip_accents=False))
    yield "bert_cased_no_accents", *bert, dict(config=dict(do_lower_case=False, strip_accents=True))
    yield "bert_chinese_whole", *bert, dict(config=dict(tokenize_chinese_chars=False, do_lower_case=True))
    yield "bert_added", *bert, dict(
        config=dict(do_lower_case=True, tokenizer_class="BertTokenizerFast"),
        special_tokens_map=dict(cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]",
                                mask_token=flags("[MASK]", lstrip=True), additional_special_tokens=["<ent>"]),
        added_tokens={"New York": len(pieces), "<ent>": len(pieces) + 1})
    yield "bert_decoder", *bert, dict(config=dict(
        do_lower_case=False, cls_token="<ent>", sep_token="[SEP]", additional_special_tokens=["<ENT>"],
        added_tokens_decoder={str(len(pieces) + 1): flags("New York", normalized=True, special=False),
                              str(len(pieces)): flags("<ent>", special=True),
                              str(pieces.index("[SEP]")): flags("[SEP]", special=True)}))
    yield "mpnet", *mpnet, dict(config=dict(do_lower_case=True, tokenizer_class="MPNetTokenizer"))


def trained(model, trainer, texts, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_level(texts, size):
    """RoBERTa's: every byte is a character."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    return trained(models.BPE(), trainer, texts, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))


def mixed(count):
    """Rows of what the sentences hold and of what a tokenizer may treat in a way of its own, in any order."""
    draw = random.Random(11)
    words = sorted({word for line in SENTENCES + TEXTS for word in line.split(" ") if word})
    odd = """`` '' ` ' " ``` 12, 3,4 7,, ² ², ½, ,5 ( ) £3 € – - . ﬁ Å e\u0301 \u0301 \u200b \u00a0 \u3000 \t İ ß ẞ ΣΑΣ Ǆ <s> </s> <unk>
    <pad> <mask> [MASK] [CLS] [SEP] [UNK] <s>NOTUSED <unk>NOTUSED NOTUSED <ent> ▁ ▁a 😀 👍🏽 \ufffd \x07 ！ ， 、 !!!!! ..... ======= New York""".split(" ")
    odd = [part.strip("\n") for part in odd]
    part = lambda: draw.choice(odd) if draw.random() < 0.3 else draw.choice(words)
    space = lambda: draw.choice([" "] * 7 + ["", "", "  "])
    return ["".join(part() + space() for _ in range(draw.randint(1, 12))) for _ in range(count)]


def unigram(texts, size):
    """Pieces of SentencePiece's trainer, whose own would do but that it does not find the same ones twice, under other rules."""
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    model = sentencepiece.SentencePieceProcessor(
        model_proto=piece_model(texts, size, unk_id=0, bos_id=1, eos_id=2, normalization_rule_name="nfkc"))
    vocab = special + [(model.id_to_piece(i), model.get_score(i)) for i in range(3, len(model))] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, 3, False))
    tokenizer.add_special_tokens([token for token, _ in special] + ["<mask>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def ties():
    """Pieces of which many texts are made in several ways of nearly the same score: the last bits of the scores decide."""
    scores = random.Random(7)
    pieces = [c * n for c in "!.=" for n in range(1, 6)] + list("abcde")
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [(p, -scores.uniform(8, 13)) for p in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, 3, False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    texts = ["".join(scores.choice("abcde") * scores.randint(0, 3) for _ in range(4)) + c * n
             for c in "!.=" for n in range(5, 21) for _ in range(2)]
    return tokenizer, texts


def piece_model(texts, size, **settings):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=size, hard_vocab_limit=False, num_threads=1,
        max_sentence_length=100_000, minloglevel=2, **settings)
    return out.getvalue()


def sentencepiece_models(texts, size, whole):
    """Of each family, with SentencePiece's own normaliser; a few rules instead of all of nmt_nfkc, which would make 300 kB of
    each model, unless `whole`."""
    rules = {"ﬁ": "fi", "ﬀ": "ff", "½": "1⁄2", "，": ",", "\u00a0": " ", "\t": " ", "\u2028": " ", "\u200b": ""}
    spelled = lambda text: " ".join(f"{ord(c):X}" for c in text)
    # The model keeps the name of this file.
    os.chdir(tempfile.mkdtemp())
    pathlib.Path("rules.tsv").write_text("".join(f"{spelled(a)}\t{spelled(b)}\n" for a, b in rules.items()))
    own = dict(normalization_rule_name="nmt_nfkc") if whole else dict(normalization_rule_tsv="rules.tsv")
    plain = dict(normalization_rule_name="identity")
    deberta = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]")
    albert = dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"],
                  user_defined_symbols=list('()"-.–£€'))
    fairseq = dict(unk_id=0, bos_id=1, eos_id=2)
    model = lambda **settings: piece_model(texts, size, **settings)
    spm = dict(model_type="deberta-v2"), "spm.model"
    yield "spm_deberta", *spm, model(user_defined_symbols=["<ent>"], **deberta, **own), dict(
        do_lower_case=False, vocab_type="spm")
    yield "spm_deberta_options", *spm, model(**deberta, **plain), dict(
        do_lower_case=True, split_by_punct=True, tokenizer_class="DebertaV2Tokenizer")
    spiece = dict(model_type="albert"), "spiece.model"
    yield "spiece_albert", *spiece, model(**albert, **own), None
    yield "spiece_albert_options", *spiece, model(**albert, **plain), dict(
        do_lower_case=False, keep_accents=True, remove_space=False, tokenizer_class="AlbertTokenizer",
        mask_token=flags("[MASK]", __type="AddedToken"), additional_special_tokens=["<ent>"])
    bpe = "sentencepiece.bpe.model"
    yield "spm_xlm_roberta", dict(model_type="xlm-roberta"), bpe, model(**fairseq, **own), None
    yield "spm_camembert", dict(model_type="camembert"), bpe, model(user_defined_symbols=["<ent>"], **fairseq, **own), None
    yield "spm_camembert_options", dict(model_type="camembert"), bpe, model(**fairseq, **plain), dict(
        tokenizer_class="CamembertTokenizerFast", additional_special_tokens=["<unk>NOTUSED"])


def expect(folder, rows, max_length, pairs=None):
    """The ids of single rows, and of the first `pairs` rows, or all, each with the next as its pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    settings = dict(truncation="longest_first", max_length=max_length, return_token_type_ids=True)
    paired, seconds = rows[:pairs], (rows[1:] + rows[:1])[:pairs]
    single, pair = tokenizer(rows, **settings), tokenizer(paired, seconds, **settings)
    types = [all(t == 0 for row in e["token_type_ids"] for t in row) for e in (single, pair)]
    assert types[0], "single rows are of type 0"
    expected = dict(max_length=max_length, texts=rows, single=single["input_ids"], pair=pair["input_ids"],
                    pair_types=[] if types[1] else pair["token_type_ids"])
    write(folder / "expected.json", json.dumps(expected, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "fixtures/tokenizers")
    parser.add_argument("--vocab", type=pathlib.Path)
    parser.add_argument("--texts", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    args.out = args.out.absolute()
    pieces = args.vocab.read_text("utf-8").rstrip("\n").split("\n") if args.vocab else BERT + list(dict.fromkeys(PIECES))
    texts = args.texts.read_text("utf-8").split("\n")[: args.rows] if args.texts else TEXTS
    max_length = 128 if args.texts else 24
    shutil.rmtree(args.out, ignore_errors=True)
    for name, config, vocab, files in wordpiece(pieces):
        folder = args.out / name
        folder.mkdir(parents=True)
        write(folder / "config.json", config)
        write(folder / "vocab.txt", "".join(p + "\n" for p in vocab))
        for part, value in files.items():
            write(folder / f"{'tokenizer_' if part == 'config' else ''}{part}.json", value)
        expect(folder, texts, max_length)
    bpe = byte_level(texts, 20_000 if args.texts else 320)
    for name, config in [("roberta", {}), ("roberta_prefix", dict(add_prefix_space=True, tokenizer_class="RobertaTokenizer"))]:
        folder = args.out / name
        folder.mkdir(parents=True)
        bpe.model.save(str(folder))
        write(folder / "config.json", dict(model_type="roberta"))
        if config:
            write(folder / "tokenizer_config.json", config)
        expect(folder, texts, max_length)
    rows = texts if args.texts else texts + mixed(200)
    sentences = texts if args.texts else SENTENCES + texts
    pairs = None if args.texts else 30
    of_pieces = unigram(sentences, 8_000 if args.texts else 500)
    for name, tokenizer, rows_of, pairs_of in [("unigram", of_pieces, rows, pairs), ("unigram_ties", *ties(), None)]:
        folder = args.out / name
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        write(folder / "tokenizer_config.json", dict(
            tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
            unk_token="<unk>", pad_token="<pad>", mask_token="<mask>"))
        expect(folder, rows_of, max_length, pairs_of)
    for name, family, file, model, config in sentencepiece_models(sentences, 8_000 if args.texts else 500, args.texts):
        folder = args.out / name
        folder.mkdir()
        (folder / file).write_bytes(model)
        write(folder / "config.json", family)
        if config:
            write(folder / "tokenizer_config.json", config)
        expect(folder, rows, max_length, pairs)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
