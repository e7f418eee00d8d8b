"""The numbers of one half of the prompts for a model with one head, and its class by them."""

from __future__ import annotations

import torch

from icl_kernel_lens import Criteria
from icl_kernel_lens.locate.classes import classify
from icl_kernel_lens.locate.measure import Fidelity, report

PROMPTS = 200


def numbers(agreement, shift, drop, *, words=0.0, echo=0.0, spread=0.05, p=1e-9):
    """A half's numbers of a model with one head."""
    g = torch.Generator().manual_seed(0)

    def around(mean, width=spread):
        noise = torch.randn(PROMPTS, 1, 1, generator=g)
        return mean + width * (noise - noise.mean())

    fidelity = Fidelity(
        agreement=(torch.arange(PROMPTS) < agreement * PROMPTS).float()[:, None, None],
        controls={"label_prior": (torch.rand(PROMPTS, 1, 1, generator=g) < 0.5).float()},
        label_shift=around(shift, 0.005),
        word_bound_shift=around(0.4),
        within_class_shift=around(0.4),
        words=around(words),
        preferred=around(words),
        echo=around(echo),
        label_attention=around(0.8),
        p={"labels_permuted": torch.full((1, 1), p, dtype=torch.float64)},
        demo_set=torch.arange(PROMPTS),
    )
    base = 5 + torch.rand(PROMPTS, generator=g)
    return fidelity, around(drop * 5.5, 1.0), base


def classed(fidelity, drop, base, equal_mass=None, **selected):
    chosen = {"votes": True, "label_shift": False, "matters": False} | selected
    flags = {name: torch.full((1, 1), value) for name, value in chosen.items()}
    equal = torch.zeros_like(drop) if equal_mass is None else equal_mass
    columns, strongest = report(fidelity, flags, drop, equal, base, Criteria())
    (name,) = classify(columns, flags, Criteria())
    assert strongest == ("label_prior",)
    return name, {key: float(value) for key, value in columns.items()}
