"""Kernels that the model's own may be: how alike test input and demonstration are, by measures that look inside no head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.readouts.similarity import Text, similarities, strings_alone, texts_alone
from icl_kernel_lens.run.runner import BatchSize

Encoder = Callable[[Sequence[str]], Float[Tensor, "text width"]]
"""Texts → a vector each, such as `SentenceTransformer(...).encode` with `convert_to_tensor=True`."""


@checked
def input_kernels(
    model: Any,
    prompts: PromptSet,
    *,
    encoders: Mapping[str, Encoder] | None = None,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Float[Tensor, "prompt demo"]]:
    """Kernels of test input and demonstration i for `LabelInfluence.compares`, by name.

        same prediction   P(o | x)ᵀ P(o | x_i), P the model's next-token distribution after the text alone (Han et al. 2025, eq. 9)
        same class        1 where the demonstration's label is the test input's true class (where classes are known)
        shared tokens     |T ∩ T_i| / |T ∪ T_i|, T the distinct tokens of a text but a beginning-of-sequence one (Jaccard)
        same length       min(n, n_i) / max(n, n_i), n the number of its tokens
        each encoder      the cosine of its vectors of the two texts

    Texts are what the prompts were made of, without template and label; of prompts without text their tokens are taken from the
    prompt (`prediction_similarity`), and encoders have nothing to read. Runs each distinct text once, alone; `checkpoint` names a
    folder in which finished texts are kept. `same class` goes by the labels as they are shown: one that was permuted counts as shown.

    Does not show: that the model computes any of these. Alike texts are alike in much; compare kernels together, too.
    Source: same prediction is Han et al.'s (TMLR 2025); that the pair part of label influence is held against kernels is ours.

    Raises: PromptError: a text without tokens; encoders, and prompts that were not made from text; an encoder that gives
            another number of vectors than there are texts.
    Example:
        >>> from icl_kernel_lens import load_model, load_task
        >>> model = load_model("mini", device="cpu")
        >>> prompts = load_task("topics").prompts(model, demos=4, count=4, sets=2, seed=0)
        >>> sorted(input_kernels(model, prompts, progress=False))
        ['same class', 'same length', 'same prediction', 'shared tokens']
    """
    adapter = as_adapter(model)
    texts = texts_alone(adapter, prompts)
    found = {
        "same prediction": similarities(
            adapter, prompts, texts, batch_size=batch_size, checkpoint=checkpoint, progress=progress
        ).double()
    }
    if prompts.test_labels is not None:
        found["same class"] = (prompts.demo_labels == prompts.test_labels[:, None]).double()
    begun = int(bool(prompts.info.prepend_bos))
    own = [[text[begun:] for text in row] for row in texts]
    found["shared tokens"] = _of_pairs(own, lambda a, b: len({*a} & {*b}) / len({*a} | {*b}))
    found["same length"] = _of_pairs(own, lambda a, b: min(len(a), len(b)) / max(len(a), len(b)))
    for name, encoder in (encoders or {}).items():
        found[name] = _cosine(name, encoder, prompts)
    return found


def _of_pairs(rows: Sequence[Sequence[Text]], of: Callable[[Text, Text], float]) -> Tensor:
    return torch.tensor([[of(test, demo) for demo in demos] for test, *demos in rows], dtype=torch.float64)


def _cosine(name: str, encoder: Encoder, prompts: PromptSet) -> Tensor:
    rows = strings_alone(prompts)
    if rows is None:
        raise PromptError(
            f"an encoder reads texts; these prompts were made from token ids, or loaded, so that {name!r} has none to read. Make "
            "prompts with task.prompts(model, ...), or give your own kernel to compares().",
            code="only-text",
        )
    distinct = list(dict.fromkeys(text for row in rows for text in row))
    vectors = torch.as_tensor(encoder(distinct)).double().cpu()
    if vectors.dim() != 2 or len(vectors) != len(distinct):
        raise PromptError(
            f"an encoder must give a vector for each text; {name!r} gave shape {tuple(vectors.shape)} for {len(distinct)} texts.",
            code="not-whole",
        )
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    at = {text: number for number, text in enumerate(distinct)}
    where = torch.tensor([[at[text] for text in row] for row in rows])
    return torch.einsum("pw,pdw->pd", vectors[where[:, 0]], vectors[where[:, 1:]])
