"""What can be planted: one rule after another, each with what is said where it is broken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import get_args

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.planted_build import Form
from icl_kernel_lens.worlds.planted.roles import FEATURES, KERNELS, ROLES, ROTARY, PlantedHead
from icl_kernel_lens.worlds.planted.stream import Stream
from icl_kernel_lens.worlds.planted.world import PlantedWorld

WRITERS = ("kernel", "anti_kernel", "driver", "uniform", "last_label", "word_preference", "echo")
"""Roles that write into the answer, if they have a gain."""


def check_plan(plan: PlantedWorld) -> None:
    """Refuse what cannot be planted, by the first rule that it breaks."""
    if plan.form not in get_args(Form):
        raise ModelError(
            f"form must be one of {', '.join(get_args(Form))}; got {plan.form!r}.", code="unknown-choice"
        )
    heads = (_rules_of_head(plan, head) for head in plan.heads)
    for holds, message in chain(_rules_of_sizes(plan), *heads, _rules_of_all_heads(plan)):
        if not holds:
            raise ModelError(message, code="planted-plan")


def _rules_of_sizes(plan: PlantedWorld) -> Iterator[tuple[bool, str]]:
    yield (
        plan.layers >= 1 and plan.heads_per_layer >= 1 and 2 <= plan.labels <= FEATURES,
        f"a planted model needs a layer, a head and 2 to {FEATURES} labels (class centres are orthogonal in "
        f"{FEATURES} dimensions); got {plan.layers} layers, {plan.heads_per_layer} heads, {plan.labels} labels.",
    )
    yield (
        0 <= plan.sink < 1 and 0 <= plan.noise < 1 and 0 <= plan.direct < math.inf,
        "sink and noise are shares from 0 to below 1, direct is finite and at least 0; got "
        f"sink={plan.sink}, noise={plan.noise}, direct={plan.direct}.",
    )
    yield (
        2 <= plan.demos < plan.inputs,
        "demonstrations must be at least 2 and fewer than the inputs of a class, for no input may repeat; got "
        f"demos={plan.demos} and inputs={plan.inputs}. Give fewer demos, or more inputs.",
    )
    yield (
        2 * plan.demos + 2 <= plan.longest,
        f"a prompt must fit into the context; demos={plan.demos} make {2 * plan.demos + 2} tokens, and "
        f"context={plan.context}. Leave context out, or give fewer demos.",
    )
    if plan.d_head is not None:
        least, width = ROTARY + FEATURES + 1, plan.d_head * plan.heads_per_layer
        coordinates = Stream(plan.labels, paired=plan.norm).coordinates
        yield (
            plan.d_head >= least and width >= coordinates,
            f"a head needs at least {least} dimensions and the stream {coordinates}; d_head={plan.d_head} with "
            f"{plan.heads_per_layer} heads gives {width}. Leave d_head out.",
        )


def _rules_of_head(plan: PlantedWorld, head: PlantedHead) -> Iterator[tuple[bool, str]]:
    """What the plan must be able to hold, and what the head's numbers must mean."""
    yield head.role in ROLES, f"a role is one of {', '.join(ROLES)}; {head.ref} has {head.role!r}."
    yield (
        0 <= head.layer < plan.layers and 0 <= head.head < plan.heads_per_layer,
        f"a planted head must lie in the model; {head.ref} ({head.role}) is outside its {plan.layers} layers of "
        f"{plan.heads_per_layer} heads, both counted from 0.",
    )
    yield (
        head.role != "carrier" or head.layer == 0,
        f"the carrier belongs in layer 0; got {head.ref}. Leave it out: it is planted there.",
    )
    yield (
        head.layer > 0 or head.role not in (*KERNELS, "anti_kernel"),
        f"a kernel needs what the carrier in layer 0 brings, so it must stand in layer 1 or later; {head.ref} "
        f"({head.role}) is in layer 0. Move it.",
    )
    words = ROLES[head.role]
    yield (
        head.gain is None or 0 <= head.gain < math.inf,
        f"a gain is finite and at least 0; {head.ref} ({head.role}) has {head.gain}.",
    )
    yield (
        not head.gain or not math.isnan(words.gain),
        f"a head of role {head.role} writes no vote; {head.ref} has gain {head.gain}. Leave the gain out, or "
        "take another role.",
    )
    yield (
        head.bandwidth is None or not math.isnan(words.bandwidth),
        f"a head of role {head.role} has no bandwidth; {head.ref} was given {head.bandwidth}. Leave it out.",
    )
    yield (
        math.isnan(words.bandwidth) or 0.1 <= head.width < math.inf,
        f"a bandwidth is finite and at least 0.1 (below, scores are too large for float32 to keep weights "
        f"exact; at 0.1 the nearest demonstration has all); {head.ref} ({head.role}) has {head.width}.",
    )
    yield (
        head.label is None
        if head.role != "word_preference"
        else head.label is not None and 0 <= head.label < plan.labels,
        f"a word preference, and no other role, names its label, from 0 to {plan.labels - 1}; {head.ref} "
        f"({head.role}) has label={head.label}.",
    )
    given = [other.role for other in plan.heads if other.ref == head.ref]
    yield (
        len(given) == 1,
        f"a head has one role; {head.ref} was given {' and '.join(given)}. Plant one of them elsewhere.",
    )


def _rules_of_all_heads(plan: PlantedWorld) -> Iterator[tuple[bool, str]]:
    yield (
        len({h.head for h in plan.heads if h.layer == 0 and h.role != "carrier"}) < plan.heads_per_layer,
        "layer 0 must have room for the carrier, which brings each label its input's feature; all "
        f"{plan.heads_per_layer} of its heads have other roles. Plant one of them elsewhere.",
    )
    yield (
        sum(h.role == "carrier" for h in plan.heads) <= 1,
        "one carrier is enough, and two would carry twice; more were given. Leave one.",
    )
    cancelled = [h for h in plan.heads if h.role == "cancelled_kernel"]
    cancellers = [h for h in plan.heads if h.role == "canceller"]
    yield (
        len(cancellers) == bool(cancelled),
        "cancelled kernels need exactly one canceller, and a canceller needs a cancelled kernel; got "
        f"{len(cancelled)} and {len(cancellers)}. Plant both, or neither.",
    )
    for head in cancelled:
        yield (
            head.layer < cancellers[0].layer,
            f"a canceller must stand in a later layer than what it takes back; {head.ref} is a cancelled kernel "
            f"and the canceller is {cancellers[0].ref}. Move one of them.",
        )
    writing = [h for h in plan.heads if h.role in WRITERS and h.strength]
    for head in plan.heads:
        yield (
            head.role != "echo" or plan.direct > 0 or any(h.layer < head.layer for h in writing),
            f"an echo must find an answer; before {head.ref} nothing has written one. Plant it behind a head "
            "that writes (a kernel, a driver), or give direct > 0.",
        )
    yield (
        plan.direct > 0 or len(writing) > 0,
        "the model must form an answer; no planted head writes one and direct=0. Plant a head that writes, or "
        "give direct > 0.",
    )
