"""Random-weight models and prompts of a given size; nothing is downloaded.

Cost depends on shapes alone, so weights and tokens are random: the same for every class of model, so that
what they read can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from icl_kernel_lens import PromptSet
from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf

Architecture = Literal["neox", "llama", "gpt2"]
Kind = Literal["hooked", "bridge", "eager", "sdpa", "nnsight"]
"""HookedTransformer, TransformerBridge, or Hugging Face's own model with one of its two attentions; nnsight
gets an eager one of its own, because it leaves hooks behind."""

VOCAB, CONTEXT = 512, 4096
SPREAD = 0.06
"""Standard deviation of the weights: three times the usual one, so that no head attends uniformly."""
LABEL_TOKENS = (3, 4)
BATCH = 8
"""Prompts in a batch, wherever prompts are not run alone."""


@dataclass(frozen=True)
class Setup:
    """One model and one set of prompts."""

    model: Architecture = "neox"
    layers: int = 6
    heads: int = 8
    width: int = 256
    demos: int = 32
    demo_tokens: int = 20
    """The last of them is the label."""
    tests: int = 32
    test_tokens: int = 24

    @property
    def shared(self) -> int:
        """Tokens of the demonstrations, which prompts may share."""
        return self.demos * self.demo_tokens

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return self.shared + self.test_tokens


def config(setup: Setup) -> PreTrainedConfig:
    """Hugging Face's configuration, without dropout."""
    common: dict[str, Any] = {"vocab_size": VOCAB, "initializer_range": SPREAD}
    common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    size: dict[str, Any] = {
        "hidden_size": setup.width,
        "num_hidden_layers": setup.layers,
        "num_attention_heads": setup.heads,
        "max_position_embeddings": CONTEXT,
    }
    match setup.model:
        case "neox":
            return GPTNeoXConfig(**common, **size, intermediate_size=4 * setup.width)
        case "llama":
            return LlamaConfig(**common, **size, intermediate_size=setup.width * 43 // 16)
        case "gpt2":
            sizes: dict[str, Any] = {"n_embd": setup.width, "n_layer": setup.layers, "n_head": setup.heads}
            return GPT2Config(
                **common, **sizes, n_positions=CONTEXT, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
            )


def build(kind: Kind, setup: Setup) -> Any:
    """A model in float32 on the CPU; the same weights for every kind.

    A HookedTransformer made by this library has a context of 2,048 tokens, the others one of 4,096.
    """
    torch.manual_seed(0)
    attention = "sdpa" if kind == "sdpa" else "eager"
    hf = AutoModelForCausalLM.from_config(config(setup), attn_implementation=attention).eval()
    match kind:
        case "hooked":
            return hooked_from_hf(hf)
        case "bridge":
            return bridge_from_hf(hf)
        case _:
            return hf


def make_prompts(setup: Setup, *, shared: bool, vocab: int = VOCAB, seed: int = 0) -> PromptSet:
    """Prompts of random tokens, all with the same demonstrations, or (`shared=False`) each with its own."""
    random = torch.Generator().manual_seed(seed)
    sets = 1 if shared else setup.tests
    demos = torch.randint(10, vocab, (sets, setup.shared), generator=random)
    labels = torch.randint(0, 2, (sets, setup.demos), generator=random)
    label_pos = torch.arange(1, setup.demos + 1) * setup.demo_tokens - 1
    demos[:, label_pos] = torch.tensor(LABEL_TOKENS)[labels]
    tests = torch.randint(10, vocab, (setup.tests, setup.test_tokens), generator=random)
    return PromptSet.from_tokens(
        torch.cat([demos.expand(setup.tests, -1), tests], 1),
        label_pos.repeat(setup.tests, 1),
        labels.expand(setup.tests, -1).clone(),
        torch.tensor(LABEL_TOKENS),
    )


def short_prompts(setup: Setup, shared: bool) -> PromptSet:
    """Two short prompts, for warming a model up."""
    return make_prompts(replace(setup, demos=2, tests=2), shared=shared)
