"""The numbers of one half of the prompts for a model with one head, and its class by them."""

from __future__ import annotations

import torch

from icl_kernel_lens import Criteria
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.locate.classes import MEASURED, answered, classify
from icl_kernel_lens.locate.measure import Fidelity, report
from icl_kernel_lens.results.head_ranking import IDENTIFYING, SELECTED

PROMPTS = 200
SLOPE_OF_MODEL = -0.9
WIDTH = 0.015
"""Half of every interval of a kernel head made by hand."""
KERNEL_HEAD = {
    "fit": 0.6,
    "fit_p": 0.001,
    "within_labels": 0.9,
    "other_order": 0.5,
    "swap_slope": -0.9,
    "behind_slope": 0.0,
    "input_shift": 0.3,
    "ranking_fit": 0.3,
    "place_shift": 0.3,
    "uneven": 0.4,
    "transport": 0.3,
    "kernel_share": 0.3,
    "direct_share": 0.2,
    "others": 0.0,
    "gained": 0.5,
    "company": 0.1,
    "zeroed": 0.3,
    "renormalised": 0.25,
    "mean_replaced": 0.35,
    "lead_zeroed": 0.3,
    "lead_renormalised": 0.3,
    "fit_cut_below": 0.55,
    "beyond_half_fit": 0.25,
}
"""What is measured of a head all of whose conditions hold."""


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


def of_one(value):
    return torch.full((1, 1), float(value), dtype=torch.float64)


def identified(*, unmeasured=(), width=WIDTH, widths=None, slope_of_model=SLOPE_OF_MODEL, **values):
    """The columns `IDENTIFYING` of a model with one head: of a kernel head but for what is named, with the answers to the conditions.

    `widths`: half of an interval by its number's name. `unmeasured`: numbers that are NaN.
    """
    numbers = KERNEL_HEAD | values
    assert set(numbers) == set(KERNEL_HEAD), "these are columns"
    assert {*unmeasured} <= set(KERNEL_HEAD)
    columns = {name: of_one(float("nan")) for name in IDENTIFYING}
    for name, value in numbers.items():
        if name in unmeasured:
            continue
        reach = (widths or {}).get(name, width)
        columns[name] = of_one(value)
        if name != "fit_p":
            columns[f"{name}_low"], columns[f"{name}_high"] = of_one(value - reach), of_one(value + reach)
    assert set(MEASURED) < set(KERNEL_HEAD)
    return columns | answered(columns, slope_of_model, Criteria())


def classed(
    fidelity, drop, base, equal_mass=None, *, own=None, kernel_part=True, cancelling=None, **selected
):
    """The class of the head, and its columns; `own`: what holds it against the model's own kernel (default: a kernel head)."""
    chosen = {name: name == "votes" for name in SELECTED} | selected
    flags = {name: torch.full((1, 1), value) for name, value in chosen.items()}
    equal = torch.zeros_like(drop) if equal_mass is None else equal_mass
    columns, strongest = report(
        fidelity, flags, drop, equal, base, identified() if own is None else own, Criteria()
    )
    (name,) = classify(
        columns,
        flags,
        Criteria(),
        kernel_part=kernel_part,
        cancelling=frozenset({HeadRef(0, 0)} if cancelling else ()),
    )
    assert strongest == ("label_prior",)
    return name, {key: float(value) for key, value in columns.items()}


def named(*, shift=0.02, kernel_part=True, cancelling=False, words=0.0, echo=0.0, chosen=None, **own):
    """The class of a kernel head but for the numbers named."""
    found, _ = classed(
        *numbers(0.9, shift, 0.3, words=words, echo=echo),
        own=identified(**own),
        kernel_part=kernel_part,
        cancelling=cancelling,
        **(chosen or {}),
    )
    return found
