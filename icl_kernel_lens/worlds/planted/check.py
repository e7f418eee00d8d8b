"""What can be planted: every refusal, while it can still be said which head it is."""

from __future__ import annotations

import math
from typing import get_args

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.planted_build import Form
from icl_kernel_lens.worlds.planted.roles import FEATURES, KERNELS, ROLES, ROTARY, PlantedHead
from icl_kernel_lens.worlds.planted.stream import Stream
from icl_kernel_lens.worlds.planted.world import PlantedWorld


def check_plan(plan: PlantedWorld) -> None:
    """Refuse what cannot be planted; long, for it is one rule after another, each with its message."""
    if plan.form not in get_args(Form):
        raise ModelError(
            f"form must be one of {', '.join(get_args(Form))}; got {plan.form!r}.", code="unknown-choice"
        )
    if plan.layers < 1 or plan.heads_per_layer < 1 or not 2 <= plan.labels <= FEATURES:
        raise ModelError(
            f"a planted model needs a layer, a head and 2 to {FEATURES} labels (class centres are orthogonal in "
            f"{FEATURES} dimensions); got {plan.layers} layers, {plan.heads_per_layer} heads, {plan.labels} labels.",
            code="planted-plan",
        )
    if not 0 <= plan.sink < 1 or not 0 <= plan.noise < 1 or plan.direct < 0 or not math.isfinite(plan.direct):
        raise ModelError(
            "sink and noise are shares from 0 to below 1, direct is finite and at least 0; got "
            f"sink={plan.sink}, noise={plan.noise}, direct={plan.direct}.",
            code="planted-plan",
        )
    if plan.demos < 2 or plan.demos >= plan.inputs:
        raise ModelError(
            "demonstrations must be at least 2 and fewer than the inputs of a class, for no input may repeat; got "
            f"demos={plan.demos} and inputs={plan.inputs}. Give fewer demos, or more inputs.",
            code="planted-plan",
        )
    if 2 * plan.demos + 2 > plan.longest:
        raise ModelError(
            f"a prompt must fit into the context; demos={plan.demos} make {2 * plan.demos + 2} tokens, and "
            f"context={plan.context}. Leave context out, or give fewer demos.",
            code="planted-plan",
        )
    least = ROTARY + FEATURES + 1
    coordinates = Stream(plan.labels, paired=plan.norm).coordinates
    if plan.d_head is not None and (plan.d_head < least or plan.d_head * plan.heads_per_layer < coordinates):
        raise ModelError(
            f"a head needs at least {least} dimensions and the stream {coordinates}; d_head={plan.d_head} with "
            f"{plan.heads_per_layer} heads gives {plan.d_head * plan.heads_per_layer}. Leave d_head out.",
            code="planted-plan",
        )
    seen: dict[HeadRef, PlantedHead] = {}
    for head in plan.heads:
        check_head(plan, head)
        if head.ref in seen:
            raise ModelError(
                f"a head has one role; {head.ref} was given {seen[head.ref].role} and {head.role}. "
                "Plant one of them elsewhere.",
                code="planted-plan",
            )
        seen[head.ref] = head
    in_first = {h.head for h in plan.heads if h.layer == 0 and h.role != "carrier"}
    if len(in_first) == plan.heads_per_layer:
        raise ModelError(
            "layer 0 must have room for the carrier, which brings each label its input's feature; all "
            f"{plan.heads_per_layer} of its heads have other roles. Plant one of them elsewhere.",
            code="planted-plan",
        )
    if sum(h.role == "carrier" for h in plan.heads) > 1:
        raise ModelError(
            "one carrier is enough, and two would carry twice; more were given. Leave one.",
            code="planted-plan",
        )
    cancelled = [h for h in plan.heads if h.role == "cancelled_kernel"]
    cancellers = [h for h in plan.heads if h.role == "canceller"]
    if len(cancellers) != bool(cancelled):
        raise ModelError(
            "cancelled kernels need exactly one canceller, and a canceller needs a cancelled kernel; got "
            f"{len(cancelled)} and {len(cancellers)}. Plant both, or neither.",
            code="planted-plan",
        )
    if late := [h for h in cancelled if h.layer >= cancellers[0].layer]:
        raise ModelError(
            f"a canceller must stand in a later layer than what it takes back; {late[0].ref} is a cancelled kernel "
            f"and the canceller is {cancellers[0].ref}. Move one of them.",
            code="planted-plan",
        )
    formed = ("kernel", "anti_kernel", "driver", "uniform", "last_label", "word_preference", "echo")
    for head in plan.heads:
        writes = [h for h in plan.heads if h.role in formed and h.strength and h.layer < head.layer]
        if head.role == "echo" and not plan.direct and not writes:
            raise ModelError(
                f"an echo must find an answer; before {head.ref} nothing has written one. Plant it behind a head "
                "that writes (a kernel, a driver), or give direct > 0.",
                code="planted-plan",
            )
    if not plan.direct and not any(h.role in formed and h.strength for h in plan.heads):
        raise ModelError(
            "the model must form an answer; no planted head writes one and direct=0. Plant a head that writes, or "
            "give direct > 0.",
            code="planted-plan",
        )


def check_head(plan: PlantedWorld, head: PlantedHead) -> None:
    """Refuse a head that the plan cannot hold, or whose numbers mean nothing."""
    if head.role not in ROLES:
        raise ModelError(
            f"a role is one of {', '.join(ROLES)}; {head.ref} has {head.role!r}.", code="planted-plan"
        )
    if not (0 <= head.layer < plan.layers and 0 <= head.head < plan.heads_per_layer):
        raise ModelError(
            f"a planted head must lie in the model; {head.ref} ({head.role}) is outside its {plan.layers} layers of "
            f"{plan.heads_per_layer} heads, both counted from 0.",
            code="planted-plan",
        )
    if head.role == "carrier" and head.layer > 0:
        raise ModelError(
            f"the carrier belongs in layer 0; got {head.ref}. Leave it out: it is planted there.",
            code="planted-plan",
        )
    if head.layer == 0 and head.role in (*KERNELS, "anti_kernel"):
        raise ModelError(
            f"a kernel needs what the carrier in layer 0 brings, so it must stand in layer 1 or later; {head.ref} "
            f"({head.role}) is in layer 0. Move it.",
            code="planted-plan",
        )
    words = ROLES[head.role]
    if head.gain is not None and (not math.isfinite(head.gain) or head.gain < 0):
        raise ModelError(
            f"a gain is finite and at least 0; {head.ref} ({head.role}) has {head.gain}.", code="planted-plan"
        )
    if head.gain and math.isnan(words.gain):
        raise ModelError(
            f"a head of role {head.role} writes no vote; {head.ref} has gain {head.gain}. Leave the gain out, or "
            "take another role.",
            code="planted-plan",
        )
    if head.bandwidth is not None and math.isnan(words.bandwidth):
        raise ModelError(
            f"a head of role {head.role} has no bandwidth; {head.ref} was given {head.bandwidth}. Leave it out.",
            code="planted-plan",
        )
    if not math.isnan(words.bandwidth) and not 0.1 <= head.width < math.inf:
        raise ModelError(
            f"a bandwidth is finite and at least 0.1 (below, scores are too large for float32 to keep weights "
            f"exact; at 0.1 the nearest demonstration has all); {head.ref} ({head.role}) has {head.width}.",
            code="planted-plan",
        )
    if (head.role == "word_preference") != (head.label is not None) or (
        head.label is not None and not 0 <= head.label < plan.labels
    ):
        raise ModelError(
            f"a word preference, and no other role, names its label, from 0 to {plan.labels - 1}; {head.ref} "
            f"({head.role}) has label={head.label}.",
            code="planted-plan",
        )
