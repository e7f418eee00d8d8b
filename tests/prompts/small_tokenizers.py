"""Tokenizers of the three common families, trained in memory on a few sentences."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Review: a gripping and moving film\nSentiment: positive",
    "Review: dull, lifeless and far too long!\nSentiment: negative",
    "Input: the acting is very good\nOutput: very good",
    "Premise: he plays. Hypothesis: he is playing. Entailment: yes no maybe",
    "Café naïve 好 emoji 🎬 tail world sports business technology",
    'x \'tis (not) "good" </s><|endoftext|> <img src=x onerror=alert(1)> it says both; Premise: 0123456789 guess',
] * 20


def byte_level(bos: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2: a token carries the space before it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama-2: `▁` for spaces, byte fallback, `<s>` in front."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(
        [line.replace(" ", "▁") for text in TEXT for line in text.split("\n")],
        trainers.BpeTrainer(vocab_size=300, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    vocab = {token: i for i, token in enumerate([*first, *learned["vocab"]])}
    merges = [(a, b) for a, b in learned["merges"]]
    core = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT: lower-cased words and pieces, closed with `[SEP]`."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    core.train_from_iterator(TEXT, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="[CLS]", unk_token="[UNK]")
