"""Label influence made by hand: a kernel regression over the labels, so that every number is known, and no model runs."""

from __future__ import annotations

import torch
from charts.located import accuracy, run_info

from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.label_influence import LabelInfluence, Pattern

BETA = 1.5
"""What a kernel weight of 1 adds to a label's score; G is twice that."""
PATTERNS: tuple[Pattern, ...] = ("pair", "half", "all")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kernel_of(prompts: int = 12, demos: int = 4, seed: int = 0) -> torch.Tensor:
    """Weights that differ from prompt to prompt."""
    return (2 * drawn(seed, prompts, demos)).softmax(-1)


def made_influence(
    kernel: torch.Tensor | None = None,
    *,
    sets: int = 3,
    labels: int = 3,
    orders: int = 2,
    layers: int = 2,
    heads: int = 2,
    blank: bool = False,
    later: torch.Tensor | None = None,
) -> LabelInfluence:
    """s_c = s⁰_c(x) + β Σ_i w_i [y_i = c]: G_i = 2 β w_i, additive. `blank`: demonstration 1 has no replacement.

    `later`: the kernel of the orders after the first, where it is another.
    """
    kernel = kernel_of() if kernel is None else kernel
    count, demos = kernel.shape
    demo_set = torch.arange(count) // (count // sets)
    demo_labels = (torch.arange(demos) + demo_set[:, None]) % labels
    width = 2 * demos + 1
    tokens = (torch.arange(width) + 2 * demo_set[:, None]) % 40 + 1
    tokens[:, -1] = torch.arange(count) % 40 + 1
    label_pos = torch.arange(1, 2 * demos, 2).expand(count, -1)
    tokens = tokens.scatter(1, label_pos, 50 + demo_labels)
    prompts = PromptSet.from_tokens(
        tokens,
        label_pos,
        demo_labels,
        torch.arange(50, 50 + labels),
        test_labels=torch.arange(count) % labels,
        demo_set=demo_set,
    )
    prior = 0.1 * drawn(1, count, labels)

    def scores(given: torch.Tensor, of: torch.Tensor = kernel) -> torch.Tensor:
        seen = torch.nn.functional.one_hot(given, labels).float()
        weights = of.reshape(count, *[1] * (given.dim() - 2), demos, 1)
        start = prior.reshape(count, *[1] * (given.dim() - 2), labels)
        return start + BETA * (weights * seen).sum(-2)

    each = demo_labels[:, None, None].expand(-1, demos, labels, -1).clone()
    for i in range(demos):
        each[:, i, torch.arange(labels), i] = torch.arange(labels)
    kernels = [kernel, *[kernel if later is None else later] * (orders - 1)]
    replaced = torch.stack([scores(each, of) for of in kernels])
    own = torch.nn.functional.one_hot(demo_labels, labels).bool()
    replaced[:, own] = torch.nan
    if blank:
        replaced[:, :, 1] = torch.nan
    free = [i for i in range(demos) if not (blank and i == 1)]
    pattern_labels = demo_labels.expand(len(PATTERNS), -1, -1).clone()
    for at, size in enumerate((2, len(free) // 2, len(free))):
        pattern_labels[at][:, free[:size]] = (demo_labels[:, free[:size]] + 1) % labels
    joint = torch.stack([scores(one) for one in pattern_labels])
    joint[:, demo_set == sets - 1] = torch.nan
    places = torch.arange(demos).repeat(orders, count, 1)
    places[1:] = places[1:].flip(-1)
    run = run_info(layers, heads)
    return LabelInfluence(
        prompts=prompts,
        scores=torch.stack([scores(demo_labels, of) for of in kernels]),
        replaced=replaced,
        places=places,
        shifted=torch.stack([scores((demo_labels + by) % labels) for by in range(labels)], 1),
        patterns=PATTERNS,
        pattern_labels=pattern_labels,
        joint=joint,
        accuracy=accuracy(prompts=count, sets=sets, run=run),
        run=run,
        settings={"orders": str(orders)},
        notes=("additivity is measured on some sets",),
    )
