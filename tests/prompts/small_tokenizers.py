"""Tokenizers of the three common families, trained in memory on a few sentences."""

from __future__ import annotations

import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
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


CHATML = """
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {{- message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

INST = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- else %}{{ raise_exception('roles must take turns') }}{% endif %}
{%- endfor %}"""

HEADERS = """{{ bos_token }}<|system|>
Today is {{ strftime_now('%d %b %Y') }}.<|end|>
{% for message in messages %}
{%- if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


def _with_chat(tokenizer, template: str, special: list[AddedToken | str], marks: tuple[str, ...] = ()):
    tokenizer.add_tokens(
        [AddedToken(str(t), special=True, normalized=False) if isinstance(t, str) else t for t in special],
        special_tokens=True,
    )
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    tokenizer.chat_template = template
    return tokenizer


def chatml() -> PreTrainedTokenizerFast:
    """As Qwen3: bytes, a default system prompt, thinking blocks whose markers are not declared special."""
    return _with_chat(byte_level(), CHATML, ["<|im_start|>", "<|im_end|>"], ("<think>", "</think>"))


def inst() -> PreTrainedTokenizerFast:
    """As Llama-2: the system prompt inside the first turn, every turn behind `<s>`, `[INST]` written in pieces."""
    return _with_chat(metaspace(), INST, [])


def headers() -> PreTrainedTokenizerFast:
    """As Phi-3 and Gemma: a unigram model, markers that swallow the space behind them, a date."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>", "<bos>", "<eos>"], unk_token="<unk>", show_progress=False
        ),
    )
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    swallow = [
        AddedToken(f"<|{name}|>", special=True, rstrip=True, normalized=False)
        for name in ("system", "user", "assistant", "end")
    ]
    return _with_chat(tokenizer, HEADERS, swallow)


CHATS = {"chatml": chatml, "inst": inst, "headers": headers}
