"""The mini model before training: a small Llama with a tokenizer of whole words, in Hugging Face format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from icl_kernel_lens.tasks.topics import vocabulary
from icl_kernel_lens.worlds.training import Training

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class MiniTraining(Training):
    """The sizes and the training of the bundled model, which the defaults made."""

    steps: int = 3500
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    layers: int = 3
    heads: int = 4
    width: int = 64
    mlp_width: int = 128
    context: int = 256
    text_weight: float = 1.0
    """Weight of the next-word loss over all words beside the loss on the labels. Without it the labels
    are not learned in this many steps: predicting a topic's words is what groups them."""
    examples: int = 17
    classes: tuple[int, ...] = (2, 3, 4)
    """Topics per document, drawn evenly. With two alone, the model learns to compare the test input with
    the last demonstration only; with more, it has to weigh all of them."""


def mini_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer in Hugging Face format; it puts `<bos>` first by default."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>"
    )


def mini_model(settings: MiniTraining) -> LlamaForCausalLM:
    """An untrained model of these sizes; the caller's random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=settings.width,
        intermediate_size=settings.mlp_width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)
