"""Decides what every head is: the rule of each class, on the numbers that `measure.py` makes."""

from __future__ import annotations

from collections.abc import Mapping

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
    votes, invariant, matters = head["votes"], head["invariant"], head["matters"]
    reads = head["label_attention"] >= criteria.label_attention
    if reads and invariant == 0 and head["echo_low"] > criteria.follows:
        return "echo"
    if reads and invariant == 0 and max(head["words_low"], head["preferred_low"]) > criteria.follows:
        return "word preference"
    if votes == 1 and invariant == 1 and matters == 1:
        return "kernel head"
    if votes == 1 and invariant == 1 and matters == 0:
        return "shadow"
    if abs(matters) == 1 and (votes == 0 or invariant == 0 or matters == -1):
        return "driver"
    if votes == 0 and (matters == 0 or head["logit_diff_drop"] != head["logit_diff_drop"]):
        return "neither"  # not measured: in the choosing half the answer did not need it
    return "undetermined"
