"""Decides what every head is: the rule of each condition and of each class, on the numbers that are measured elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product, starmap

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.results.criteria import Criteria, HeadClass
from icl_kernel_lens.results.head_ranking import MEASURED_AGAIN
from icl_kernel_lens.results.label_influence import LEAST_GAINED

PerHead = Float[Tensor, "layer head"]
INPUT, PLACE = -0.5, 0.5
"""Slopes of swapped inputs: weights go mostly with the input below the first, mostly with the place above the second."""
HALF = 0.5
"""Least share of a kernel's fit that must lie among demonstrations of one label, against the model's own, as of what must be left
of it with the labels below cut."""
OTHERS = 0.25
"""Half of the share where what edges bring of another's label counts as much as what they bring of their own."""
COMPANY = 0.5
"""Of what a head brings of demonstrations, the share beyond which more goes than stays when others are changed."""
OF_KERNEL = ("fits", "looks", "ranks", "carries_kernel", "own", "gives", "alone")
"""Answers without which what a head carries is no part of the kernel."""
FLAT = 0.05
"""Total variation; weights that are no further from equal ones, or from what they are at each place, are so."""


def answered(columns: Mapping[str, PerHead], slope_of_model: float, criteria: Criteria) -> dict[str, PerHead]:
    """The six conditions: 1 holds, 0 does not, −1 holds of the opposite, NaN undetermined; see `conditions.py`."""
    low, high = ({n: columns[f"{n}_{end}"] for n in MEASURED} for end in ("low", "high"))
    effect, fit, shift = criteria.effect, criteria.fit, criteria.shift
    bound = slope_of_model + criteria.slope
    cuts = ("zeroed", "renormalised", "mean_replaced")

    def carried(names: tuple[str, ...]) -> PerHead:
        """Whether all of these shares are of interest, of none, or of interest on the other side."""
        lows, highs = (torch.stack([of[name] for name in names]) for of in (low, high))
        found = told((lows > effect).all(0), ((lows > -effect) & (highs < effect)).all(0))
        return torch.where((highs < -effect).all(0), -1.0, found)

    return {
        "fits": told((low["fit"] > fit) & (columns["fit_p"] <= criteria.false_discovery), high["fit"] < fit),
        "with_input": told(high["swap_slope"] < bound, low["swap_slope"] > bound),
        "looks": told(low["input_shift"] > shift, high["input_shift"] < shift),
        "ranks": told(low["ranking_fit"] > 0, high["ranking_fit"] < fit),
        "transports": carried(("transport",)),
        "carries_kernel": told(low["kernel_share"] > effect, high["kernel_share"] < effect),
        "own": told(high["others"] < OTHERS, low["others"] > OTHERS),
        "gives": told(
            (low["gained"] > LEAST_GAINED) & (high["gained"] < 1 - LEAST_GAINED),
            (high["gained"] < LEAST_GAINED) | (low["gained"] > 1 - LEAST_GAINED),
        ),
        "alone": told(high["company"] < COMPANY, low["company"] > COMPANY),
        "needed": carried(cuts),
        "no_echo": told(low["beyond_half_fit"] > 0, high["beyond_half_fit"] < 0),
    }


MEASURED = (
    *(
        "fit",
        "swap_slope",
        "input_shift",
        "ranking_fit",
        "transport",
        "kernel_share",
        "others",
        "gained",
        "company",
    ),
    *("zeroed", "renormalised", "mean_replaced", "beyond_half_fit"),
)
"""The numbers that conditions go by."""


def told(yes: Tensor, no: Tensor) -> PerHead:
    """1 yes, 0 no, NaN neither."""
    return torch.where(yes, 1.0, torch.where(no, 0.0, torch.nan))


def classify(
    columns: Mapping[str, PerHead],
    selected: Mapping[str, Tensor],
    criteria: Criteria,
    *,
    kernel_part: bool,
    cancelling: frozenset[HeadRef] = frozenset(),
) -> list[HeadClass]:
    """Say every head's class, in order of layer and head (see `HeadClass`).

    Without a kernel part of the model, heads read labels or are neither. `cancelling`: heads whose part another's undoes.
    """
    looked_at, wanted = (
        torch.stack([selected[name] for name in names]).any(0) for names in (selected, MEASURED_AGAIN)
    )
    found: list[HeadClass] = []
    for ref in starmap(HeadRef, product(*map(range, looked_at.shape))):
        head = {name: float(values[ref]) for name, values in columns.items()}
        if not looked_at[ref]:
            found.append("neither")
        elif not kernel_part:
            found.append(_reads(head, wanted=bool(wanted[ref])))
        else:
            found.append(_class(head, criteria, wanted=bool(wanted[ref]), undone=ref in cancelling))
    return found


def _reads(head: Mapping[str, float], *, wanted: bool) -> HeadClass:
    """What can be said of a head where the model's answer has no kernel part."""
    if not wanted:
        return "neither"
    if abs(head["transports"]) == 1:
        return "reads labels"
    return "neither" if head["transports"] == 0 else "undetermined"


def _class(head: Mapping[str, float], criteria: Criteria, *, wanted: bool, undone: bool) -> HeadClass:
    """The first class whose rule holds; `wanted`: the choosing half gave reason to measure it, `undone`: another undoes it."""
    fits, looks, no_echo = head["fits"] == 1, head["looks"] == 1, head["no_echo"]
    transports, needed, invariant = head["transports"], head["needed"], head["invariant"]
    low, high = head["swap_slope_low"], head["swap_slope_high"]
    moved = invariant == 0 and head["label_attention"] >= criteria.label_attention
    stays, goes = low > PLACE, high < INPUT
    before = head["behind_slope_high"] < INPUT
    alike = fits and looks and no_echo == 1
    follows = alike and head["ranks"] == 1
    # An echo of an answer that no label below formed keeps its fit, and gives all demonstrations of a label the same weight.
    tells_apart = fits and head["within_labels_low"] > HALF
    by_input = goes or invariant == 1 or tells_apart
    by_label = not goes and invariant != 1 and head["within_labels_high"] <= HALF
    carries = (
        follows
        and needed == 1
        and all(head[x] == 1 for x in ("transports", "carries_kernel", "own", "gives", "alone"))
    )
    by_place = head["place_shift_high"] < FLAT
    nothing = transports == 0
    effect = criteria.effect
    zeroed = (head["lead_zeroed_low"] > effect) or (head["lead_zeroed_high"] < -effect)
    unzeroed = head["lead_zeroed_low"] > -effect and head["lead_zeroed_high"] < effect
    elsewhere = head["lead_renormalised_low"] > effect or head["lead_renormalised_high"] < -effect
    # Labels move its weights; by how much, against inputs, may be open.
    shifted = head["label_shift_low"] > criteria.least_label_shift
    unsure = shifted and not (invariant == 1 and head["with_input"] == 1)
    mixed = invariant == 0 or head["with_input"] == 0 or low > INPUT or unsure
    rules: dict[HeadClass, bool] = {
        "misbound": looks and before and transports != 0,
        "addressing": looks and stays and invariant != 0 and transports != 0,
        "cancelling": alike and undone,
        "kernel head": carries and head["with_input"] == 1 and invariant == 1 and goes,
        "echo": (fits and (no_echo == 0 or by_label))
        or (moved and not alike and head["echo_low"] > criteria.follows),
        "pair kernel": carries and mixed and by_input and not stays,
        "word preference": moved
        and not tells_apart
        and any(head[name] > criteria.follows for name in ("words_low", "preferred_low")),
        "label-blind": nothing and zeroed,
        "sink": nothing and unzeroed and elsewhere,
        "shadow": follows and nothing and needed == 0,
        "salience": (head["looks"] == 0 or (head["fits"] != 0 and head["ranks"] == 0))
        and goes
        and abs(transports) == 1,
        "recency": by_place and head["uneven_low"] > FLAT and abs(transports) == 1,
        "driver": transports == -1 or (transports == 1 and any(head[name] == 0 for name in OF_KERNEL)),
        "neither": nothing or not wanted,
        "undetermined": True,
    }
    return next(name for name, holds in rules.items() if holds)
