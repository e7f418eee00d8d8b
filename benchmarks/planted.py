"""Planted models drawn at random, for tests of whatever looks for kernel heads."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from math import isnan
from typing import Any

import torch

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.models.planted_build import Form
from icl_kernel_lens.worlds.planted.closed_form import Judged, PlantedPlan
from icl_kernel_lens.worlds.planted.roles import KERNELS, ROLES, HeadRole, PlantedClass, PlantedHead
from icl_kernel_lens.worlds.planted.wires import SUNK

ENDANGERED = (*KERNELS, "echo")
"""Roles whose class may become unclear by what other heads write, even where nothing reads them."""


def random_plan(seed: int, *, form: Form | None = None, norm: bool | None = None) -> PlantedPlan:
    """A plan drawn at random, every decoy of which has a clear class (see `PlantedPlan.facts`).

    2–12 layers of 2–16 heads, 0–4 kernel heads (of one strength, or of different ones), 2–6 labels, 4–32
    demonstrations, bandwidths from 0.2 (sharp) to 1.5 (nearly flat), any form, norms on or off; each decoy as long
    as there is room. A kernel head too flat to be told from the label prior may be there: it is not `findable`.
    """
    g = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    def number(low: float, high: float) -> float:
        """Evenly between two logarithms."""
        return round(low * (high / low) ** float(torch.rand(1, generator=g)), 3)

    drawn_form: Form = ("plain", "rotary", "parallel")[whole(0, 2)]
    drawn_norm = bool(whole(0, 2))
    layers, per_layer, labels = whole(2, 12), whole(2, 16), whole(2, 6)
    demos = round(number(4.0, 32.0))
    kernels = min(whole(0, 4), (layers - 1) * per_layer)
    shared = bool(whole(0, 1))
    free = {(i, j) for i in range(layers) for j in range(per_layer)}

    def place(first: int, last: int) -> tuple[int, int] | None:
        there = sorted(p for p in free if first <= p[0] <= last)
        if not there:
            return None
        spot = there[whole(0, len(there) - 1)]
        free.remove(spot)
        return spot

    heads: list[PlantedHead] = []
    carrier = place(0, 0)
    assert carrier is not None
    heads.append(PlantedHead(*carrier, role="carrier"))
    last = max(1, layers - 2)  # a layer behind for echoes, where there is one
    for _ in range(kernels):
        if spot := place(1, last):
            gain = 4.0 / kernels if shared else number(1.0, 3.0)
            heads.append(PlantedHead(*spot, role="kernel", gain=gain, bandwidth=number(0.2, 1.5)))
    kernels = sum(h.role == "kernel" for h in heads)
    total = sum(h.strength for h in heads)
    direct = number(0.1, 0.5) if kernels else number(1.0, 3.0)
    plan = PlantedPlan(
        tuple(heads),
        layers=layers,
        heads_per_layer=per_layer,
        labels=labels,
        form=form or drawn_form,
        norm=drawn_norm if norm is None else norm,
        direct=direct,
        demos=demos,
        noise=(0.0, 0.1)[whole(0, 1)],
        seed=seed,
    )
    total = max(total, direct)

    def matter(judged: PlantedPlan) -> Mapping[HeadRef, Judged]:
        """What is known of the heads that can lose their class to another."""
        refs = [h.ref for h in judged.heads if h.strength or h.role in ENDANGERED]
        return dict(zip(refs, judged.judged(judged.samples[1], refs), strict=True)) if refs else {}

    known = matter(plan)

    def offer(*new: PlantedHead, wanted: PlantedClass | None = None) -> bool:
        """Take heads in, unless one of them or an earlier one has no clear class then."""
        nonlocal plan, known
        longer = plan.with_heads(*new)
        if any(h.strength or h.role in ENDANGERED for h in new):
            found = matter(longer)
            for ref, now in found.items():
                before = known.get(ref)
                if before is None and (not now.clear or now.expected != (wanted or now.expected)):
                    return False
                if before is not None and (
                    (before.clear and (not now.clear or now.expected != before.expected))
                    or (before.findable and not now.findable)
                ):
                    return False
            known = found
        plan = longer
        return True

    silent: tuple[HeadRole, ...] = (
        "unread_kernel",
        "uniform",
        "last_label",
        "first_token",
        "word_preference",
    )
    wanted: list[str] = [*silent, "echo", "cancelled", "driver", "anti_kernel", "last_label_driver"]
    order = torch.randperm(len(wanted), generator=g).tolist()
    for name in (wanted[i] for i in order):
        match name:
            case "cancelled":
                pair = (place(1, layers - 2), place(layers - 1, layers - 1)) if layers > 2 else (None, None)
                if pair[0] and pair[1]:
                    offer(
                        PlantedHead(
                            *pair[0], role="cancelled_kernel", gain=total, bandwidth=number(0.2, 0.6)
                        ),
                        PlantedHead(*pair[1], role="canceller"),
                    )
            case "driver" | "anti_kernel" | "last_label_driver":
                spot = place(1 if name == "anti_kernel" else 0, last)
                if spot is None:
                    continue
                bandwidth = number(0.3, 0.8) if name == "anti_kernel" else None
                role: HeadRole = "last_label" if name == "last_label_driver" else name  # pyright: ignore[reportAssignmentType]
                for gain in (0.5, 1.0, 2.0, 4.0):
                    head = PlantedHead(*spot, role=role, gain=round(gain * total, 3), bandwidth=bandwidth)
                    if offer(head, wanted="driver"):
                        break
                else:
                    free.add(spot)
            case "echo":
                # In the last layer, behind all that kernels and drivers write: it echoes the model's answer.
                spot = place(layers - 1, layers - 1) if layers > 2 else None
                if spot is None:
                    continue
                gain = 0.3 * total if whole(0, 1) else 0.0
                for sharper in (10, 20, 40):
                    bandwidth = max(0.1, round(total / sharper, 3))
                    if offer(PlantedHead(*spot, role="echo", gain=round(gain, 3), bandwidth=bandwidth)):
                        break
                else:
                    free.add(spot)
            case "word_preference":
                spot = place(0, layers - 1)
                if spot is None:
                    continue
                gain = 0.2 * total if whole(0, 1) else 0.0
                head = PlantedHead(
                    *spot,
                    role="word_preference",
                    gain=gain,
                    bandwidth=number(0.3, 0.5),
                    label=whole(0, labels - 1),
                )
                if not offer(head):
                    offer(replace(head, gain=0.0))
            case _:
                role: HeadRole = name  # pyright: ignore[reportAssignmentType]
                spot = place(1 if role == "unread_kernel" else 0, layers - 1)
                if spot is None:
                    continue
                bandwidth = number(0.2, 0.6) if role == "unread_kernel" else None
                if not offer(PlantedHead(*spot, role=role, bandwidth=bandwidth)):
                    free.add(spot)
    return plan


LONE: tuple[HeadRole, ...] = (
    *("kernel", "unread_kernel", "anti_kernel", "pair_kernel", "salience", "addressing", "misbound"),
    *("label_blind", "harmful_key", "recency", "driver", "uniform", "last_label", "first_token", "echo"),
    "word_preference",
)
"""Roles that stand for themselves in any world."""


def mixed_plan(seed: int, norm: bool | None = None) -> PlantedPlan:
    """Fifteen heads of roles, doses and places drawn at random, in a world drawn at random."""
    rng = random.Random(seed)
    separator, trailing, labels = rng.random() < 0.5, rng.random() < 0.5, rng.randint(2, 4)
    layers, places = 4, {1: [*range(6)], 2: [*range(6)], 3: [*range(6)]}

    def head(role: HeadRole, layer: int | None = None, **doses: Any) -> PlantedHead:
        layer = layer or rng.choice([at for at in places if places[at]])
        index = places[layer].pop(rng.randrange(len(places[layer])))
        return PlantedHead(layer, index, role, **doses)

    def drawn(role: HeadRole) -> dict[str, Any]:
        doses: dict[str, Any] = {"label": rng.randrange(labels)} if role == "word_preference" else {}
        if not isnan(ROLES[role].gain):
            doses["gain"] = rng.choice((0.0, 10 ** rng.uniform(-2, 0.5)))
        if not isnan(ROLES[role].bandwidth):
            doses["bandwidth"] = ROLES[role].bandwidth * rng.uniform(0.9, 2.0)
        if role in SUNK:
            doses["share"] = rng.choice((None, 0.999, 10 ** rng.uniform(-4, 0)))
            doses["swing"] = rng.choice((0.0, rng.uniform(-4, 4)))
        if role in ("kernel", "unread_kernel"):
            doses["echo_share"] = rng.choice((0.0, 1.0, rng.random()))
        if role == "pair_kernel":
            doses["pull"] = rng.uniform(-3, 3)
        return doses

    twins = drawn("opposed_kernel")
    heads = [head("opposed_kernel", **twins), head("opposing_kernel", **twins)]
    norm = rng.random() < 0.6 if norm is None else norm
    loud = norm and seed % 3 > 0 and rng.random() < 0.5
    if trailing or not loud:
        heads += [head("cancelled_kernel", 1, **drawn("cancelled_kernel")), head("canceller", 3)]
    if separator:
        heads.append(head("after_kernel", **drawn("after_kernel")))
    if trailing:
        heads += [head("early_kernel", rng.randint(1, 2), **drawn("early_kernel")), head("mover", 3)]
    heads += [head(role, **drawn(role)) for role in rng.choices(LONE, k=15 - len(heads))]
    return PlantedPlan(
        tuple(heads),
        layers=layers,
        heads_per_layer=6,
        labels=labels,
        form=("plain", "rotary", "parallel")[seed % 3],
        norm=norm,
        direct=10 ** rng.uniform(-1, 1),
        demos=rng.randint(3, 8),
        sink=rng.choice((0.1, 0.2, 0.5)),
        separator=separator,
        trailing=trailing,
        mlp_noise=rng.choice((0.0, 1.0)),
        loudness=0.7 * loud,
        seed=seed,
    )
