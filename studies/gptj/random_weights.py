"""Writes a model folder of GPT-J's shape, or a smaller one, with random weights: what the study runs on without its model.

The folder is as GPT-J's own on the Hub: `pytorch_model.bin`, with the masks that the original file holds beside the weights,
`config.json` and a tokenizer, a byte-level one that is trained on the bundled texts. Does not show: anything about GPT-J but
its cost, and that its files are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTJConfig, PreTrainedTokenizerFast

import icl_kernel_lens as ikl

END = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """The size of a GPT-J model; as it is, GPT-J-6B's."""

    layers: int = 28
    heads: int = 16
    width: int = 4096
    rotary: int = 64
    vocab: int = 50400
    context: int = 2048


SMALL = Shape(layers=3, heads=4, width=64, rotary=8, vocab=1024, context=512)


def build(shape: Shape, device: torch.device, dtype: torch.dtype, *, spread: float = 0.02) -> Any:
    """A Hugging Face model with random weights of this standard deviation, made on the device itself."""
    config = GPTJConfig(
        vocab_size=shape.vocab,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        rotary_dim=shape.rotary,
        initializer_range=spread,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with device:
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    return hf.eval()


def write_folder(
    folder: Path, shape: Shape, device: torch.device, dtype: torch.dtype, *, spread: float = 0.02
) -> None:
    """Writes config.json, pytorch_model.bin in this type, and the tokenizer's files."""
    hf = build(shape, device, dtype, spread=spread)
    folder.mkdir(parents=True, exist_ok=True)
    hf.config.architectures = [type(hf).__name__]
    hf.config.save_pretrained(folder)
    weights = {name: tensor.cpu() for name, tensor in hf.state_dict().items()}
    mask = torch.ones(1, 1, shape.context, shape.context, dtype=torch.bool).tril()
    for layer in range(shape.layers):
        attention = f"transformer.h.{layer}.attn"
        weights |= {f"{attention}.bias": mask.clone(), f"{attention}.masked_bias": torch.tensor(-1e9)}
    torch.save(weights, folder / "pytorch_model.bin")
    _tokenizer(shape.vocab).save_pretrained(folder)


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level, as GPT-J's: a token carries the space before it."""
    task: Any = ikl.load_task("opinions")
    lines = [
        task.template.demo.format(text=example.texts[0], label=task.label_words[example.label])
        for example in (*task.train, *task.test)
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=END, eos_token=END)
