"""Decides what every head is: the rule of each class, on the numbers that `measure.py` makes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.results.criteria import Criteria, HeadClass


def classify(
    columns: Mapping[str, Float[Tensor, "layer head"]], selected: Mapping[str, Tensor], criteria: Criteria
) -> list[HeadClass]:
    """Say every head's class, in order of layer and head (see `HeadClass`)."""
    looked_at = torch.stack(list(selected.values())).any(0).flatten().tolist()
    flat = {name: values.flatten().tolist() for name, values in columns.items()}
    return [
        _class({name: values[at] for name, values in flat.items()}, criteria) if seen else "neither"
        for at, seen in enumerate(looked_at)
    ]


def _class(head: Mapping[str, float], criteria: Criteria) -> HeadClass:
    """The first class whose rule holds."""
    votes, invariant, matters = head["votes"], head["invariant"], head["matters"]
    moved = invariant == 0 and head["label_attention"] >= criteria.label_attention
    kernel = votes == 1 and invariant == 1
    # Not measured: in the choosing half the answer did not need it.
    unmeasured = isnan(head["logit_diff_drop"])
    rules: dict[HeadClass, bool] = {
        "echo": moved and head["echo_low"] > criteria.follows,
        "word preference": moved
        and any(head[name] > criteria.follows for name in ("words_low", "preferred_low")),
        "kernel head": kernel and matters == 1,
        "shadow": kernel and matters == 0,
        "driver": abs(matters) == 1 and (votes == 0 or invariant == 0 or matters == -1),
        "neither": votes == 0 and (matters == 0 or unmeasured),
        "undetermined": True,
    }
    return next(name for name, holds in rules.items() if holds)
