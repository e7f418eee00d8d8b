"""The pieces of the closed form: what single heads weigh, how votes agree, which class follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.worlds.planted.roles import KERNELS, MATTERS, HeadRole, PlantedClass, PlantedHead


class View(NamedTuple):
    """What the answer position has to do with: tokens, kernel exponents at h = 1, one-hot labels, the test's class."""

    tokens: Tensor
    alike: Tensor
    labels: Tensor
    test: Tensor


@dataclass(frozen=True)
class Judged:
    """A row of `facts`."""

    head: str
    layer: int
    index: int
    role: str
    gain: float
    bandwidth: float
    effect: float
    agreement: float
    control: float
    findable: bool
    expected: PlantedClass
    clear: bool


class Run(NamedTuple):
    weights: Mapping[HeadRef, Tensor]
    votes: Tensor


def label_scores(head: PlantedHead, view: View, formed: Tensor) -> Tensor:
    """Scores of the label positions, above their common score."""
    match head.role:
        case "driver":
            return torch.zeros_like(view.alike)
        case "anti_kernel":
            return -view.alike / head.width**2
        case "echo":
            centred = formed - formed.mean(-1, keepdim=True)
            return (view.labels * centred[:, None]).sum(-1) / head.width
        case "word_preference":
            assert head.label is not None
            return view.labels[..., head.label] / head.width**2
    return view.alike / head.width**2


def difference(scores: Tensor, answer: Tensor) -> Tensor:
    """The answer's logit minus the mean of the others'."""
    own = scores.gather(1, answer[:, None]).squeeze(1)
    return own - (scores.sum(1) - own) / (scores.shape[1] - 1)


def agreement_with(weights: Tensor, labels: Tensor, answer: Tensor) -> Tensor:
    """How often each head's vote is the answer; ties count in part. Weights are (prompt, head, demo)."""
    votes = weights @ labels
    tops = (votes >= votes.amax(-1, keepdim=True) - 1e-9).double()
    hit = tops.gather(-1, answer[:, None, None].expand(-1, tops.shape[1], 1)).squeeze(-1)
    return (hit / tops.sum(-1)).mean(0)


def echoes(weights: Tensor, labels: Tensor, answer: Tensor) -> bool:
    """Whether labels that equal the answer have at least twice the weight of any other, in nine prompts of ten."""
    same = labels.gather(-1, answer[:, None, None].expand(-1, labels.shape[1], 1)).squeeze(-1) > 0
    told = same.any(1) & ~same.all(1)
    least = weights.masked_fill(~same, torch.inf).amin(1)[told]
    most = weights.masked_fill(same, 0.0).amax(1)[told]
    return bool((least >= 2 * most).double().mean() >= 0.9)


def simple_explanations(labels: Tensor, answer: Tensor) -> float:
    """The best agreement with the answer of anything that looks at no input."""
    alone = torch.zeros(len(labels), 3, labels.shape[1], dtype=torch.float64)
    alone[:, 0], alone[:, 1, 0], alone[:, 2, -1] = 1.0, 1.0, 1.0  # label prior, first and last label
    commonest = float(answer.bincount().max() / len(answer))
    return max(commonest, float(agreement_with(alone, labels, answer).max()))


def expected_class(role: HeadRole, effect: float) -> PlantedClass:
    """The class that a role has at this effect, as a share of the clean logit difference."""
    if role == "echo":
        return "echo"
    if role == "word_preference":
        return "word preference"
    matters = abs(effect) >= MATTERS
    if role in KERNELS:
        return "kernel head" if matters else "shadow"
    return "driver" if matters else "neither"
