"""What can be planted: one rule after another, each with what is said where it is broken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import get_args

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.planted_build import Form
from icl_kernel_lens.worlds.planted.roles import FEATURES, ROLES, PlantedHead
from icl_kernel_lens.worlds.planted.slots import least_d_head
from icl_kernel_lens.worlds.planted.wires import CARRIERS, SUNK, WIRES
from icl_kernel_lens.worlds.planted.world import PlantedWorld

SILENT = ("cancelled_kernel", "opposed_kernel", "opposing_kernel", "early_kernel")
"""Roles with a gain that leave the answer as it is, or let another head write into it."""
NARROWEST = {"recency": 1.0, "addressing": 0.35}
"""The least bandwidth of roles that go by place; 0.1 of others."""


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
        0 <= plan.sink < 1
        and 0 <= plan.mlp_noise <= 1
        and 0 <= plan.noise < 1
        and 0 <= plan.direct < math.inf,
        "sink and noise are shares from 0 to below 1, direct is finite and at least 0, mlp_noise is from 0 to 1; got "
        f"sink={plan.sink}, noise={plan.noise}, direct={plan.direct}, mlp_noise={plan.mlp_noise}.",
    )
    taken_back = not plan.trailing and any(h.role == "canceller" for h in plan.heads)
    yield (
        0 <= plan.loudness <= 0.7
        and (plan.loudness == 0 or (plan.norm and plan.form != "plain" and not taken_back)),
        "loudness is from 0 to 0.7, and needs a norm to divide it out and a rotary form (learned positions are added "
        "to a token at one size); where the test input's token gives the answer, no canceller can read what it must "
        f"take back. Got loudness={plan.loudness}, norm={plan.norm}, form={plan.form!r}. Leave it out.",
    )
    yield (
        2 <= plan.demos < plan.inputs,
        "demonstrations must be at least 2 and fewer than the inputs of a class, for no input may repeat; got "
        f"demos={plan.demos} and inputs={plan.inputs}. Give fewer demos, or more inputs.",
    )
    yield (
        plan.length(plan.demos) <= plan.longest,
        f"a prompt must fit into the context; demos={plan.demos} make {plan.length(plan.demos)} tokens, and "
        f"context={plan.context}. Leave context out, or give fewer demos.",
    )
    if plan.d_head is not None:
        least, width = least_d_head(plan), plan.d_head * plan.heads_per_layer
        coordinates = plan.stream.coordinates
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
        head.role not in CARRIERS or head.layer == 0,
        f"the {head.role.replace('_', ' ')} belongs in layer 0; got {head.ref}. Leave it out: it is planted there.",
    )
    yield (
        head.layer > 0 or not _needs_carriers(plan, head),
        f"a kernel needs what the carrier in layer 0 brings, so it must stand in layer 1 or later, as must all that "
        f"read inputs by it; {head.ref} ({head.role}) is in layer 0. Move it.",
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
    narrowest = NARROWEST.get(head.role, 0.1)
    yield (
        math.isnan(words.bandwidth) or narrowest <= head.width < math.inf,
        f"a bandwidth is finite and at least {narrowest} (below, scores are too large for float32 to keep weights "
        f"exact; at {narrowest} the nearest demonstration has all); {head.ref} ({head.role}) has {head.width}.",
    )
    yield from _rules_of_doses(plan, head)
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


def _needs_carriers(plan: PlantedWorld, head: PlantedHead) -> bool:
    """Whether a head reads what carriers bring: an input's feature at its label, or the test input's behind it."""
    if head.role not in WIRES:
        return False
    looks_at_test = head.role == "addressing" or head.swing != 0
    return WIRES[head.role].matches != "" or head.role == "salience" or (plan.trailing and looks_at_test)


def _rules_of_doses(plan: PlantedWorld, head: PlantedHead) -> Iterator[tuple[bool, str]]:
    """A head's share, swing, echo and pull belong to its role, and are in range."""
    yield (
        (head.share is None or 0 < head.share <= 1) and math.isfinite(head.swing) and abs(head.swing) <= 20,
        f"a share on labels is above 0 and at most 1, a swing from -20 to 20; {head.ref} ({head.role}) has "
        f"share={head.share} and swing={head.swing}.",
    )
    yield (
        head.role in SUNK or (head.share is None and not head.swing),
        f"a head of role {head.role} has no sink; {head.ref} was given share={head.share} and swing={head.swing}. "
        "Leave them out.",
    )
    yield (
        0 <= head.echo_share <= 1 and (not head.echo_share or head.role in ("kernel", "unread_kernel")),
        f"an echo's share in the scores is from 0 to 1, of kernels that are written or unread; {head.ref} "
        f"({head.role}) has echo_share={head.echo_share}.",
    )
    yield (
        head.pull is None or (head.role == "pair_kernel" and abs(head.pull) <= 20),
        f"a pair kernel, and no other role, has a pull, from -20 to 20; {head.ref} ({head.role}) has {head.pull}.",
    )
    none_left = (plan.sink == 0) if head.share is None else head.share == 1
    yield (
        not none_left or not (head.role == "harmful_key" or (head.role == "label_blind" and plan.trailing)),
        f"a {head.role.replace('_', ' ')} head must leave a share off the labels, for attention freed by a cut to "
        f"go to; {head.ref} leaves none. Give share below 1, or sink above 0.",
    )
    needs = {"after_kernel": ("separator", plan.separator)}
    needs |= dict.fromkeys(("early_kernel", "mover"), ("trailing", plan.trailing))
    option, given = needs.get(head.role, ("", True))
    yield (
        given,
        f"a head of role {head.role} needs a token that is not in the prompts; {head.ref} was planted without. "
        f"Give {option}=True.",
    )


def _rules_of_all_heads(plan: PlantedWorld) -> Iterator[tuple[bool, str]]:
    free = plan.heads_per_layer - len({h.head for h in plan.heads if h.layer == 0})
    yield (
        len(plan.missing_carriers) <= free,
        f"layer 0 must have room for the {' and '.join(plan.missing_carriers).replace('_', ' ')}, which brings each "
        f"label its input's feature; {free} of its {plan.heads_per_layer} heads have no other role. Plant some of "
        "them elsewhere.",
    )
    for role in CARRIERS:
        yield (
            sum(h.role == role for h in plan.heads) <= 1,
            f"one {role.replace('_', ' ')} is enough, and two would carry twice; more were given. Leave one.",
        )
    yield from _rules_of_pairs(plan, "cancelled_kernel", "canceller", "takes back")
    yield from _rules_of_pairs(plan, "early_kernel", "mover", "moves")
    opposed = [h for h in plan.heads if h.role == "opposed_kernel"]
    opposing = [h for h in plan.heads if h.role == "opposing_kernel"]
    alike = [sorted((h.strength, h.width, h.share, h.swing) for h in side) for side in (opposed, opposing)]
    yield (
        alike[0] == alike[1],
        "every opposed kernel needs an opposing one of the same gain, bandwidth, share and swing, or something of "
        f"both is left; got {len(opposed)} and {len(opposing)}. Plant them in pairs.",
    )
    writing = [h for h in plan.heads if h.role == "mover" or (h.role not in SILENT and h.strength)]
    for head in plan.heads:
        # Behind a trailing token, the test input's own vote is brought by the carrier.
        direct = plan.direct > 0 and (head.layer > 0 or not plan.trailing)
        yield (
            head.role != "echo" or direct or any(h.layer < head.layer for h in writing),
            f"an echo must find an answer; before {head.ref} nothing has written one. Plant it behind a head "
            "that writes (a kernel, a driver), or give direct > 0.",
        )
    yield (
        plan.direct > 0 or len(writing) > 0,
        "the model must form an answer; no planted head writes one and direct=0. Plant a head that writes, or "
        "give direct > 0.",
    )


def _rules_of_pairs(plan: PlantedWorld, role: str, taker: str, does: str) -> Iterator[tuple[bool, str]]:
    """Heads of a role need exactly one that takes up what they write, in a later layer, which needs them."""
    first = [h for h in plan.heads if h.role == role]
    takers = [h for h in plan.heads if h.role == taker]
    name = role.replace("_", " ")
    article = "an" if role[0] == "e" else "a"
    yield (
        len(takers) == bool(first),
        f"{name}s need exactly one {taker}, and a {taker} needs {article} {name}; got {len(first)} and {len(takers)}. "
        "Plant both, or neither.",
    )
    for head in first:
        yield (
            head.layer < takers[0].layer,
            f"a {taker} must stand in a later layer than what it {does}; {head.ref} is {article} {name} and the "
            f"{taker} is {takers[0].ref}. Move one of them.",
        )
