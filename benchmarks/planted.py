"""Planted models drawn at random, for tests of whatever looks for kernel heads."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
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
        return dict(zip(refs, judged.judged(refs), strict=True)) if refs else {}

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
                    if offer(head, wanted=ROLES[role].what):
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


def _of(
    role: HeadRole, *, low: float = 1.5, high: float = 4.0
) -> Callable[[random.Random, int], list[dict[str, Any]]]:
    """One head of a role, its gain drawn between these, its bandwidth near the role's own."""

    def doses(rng: random.Random, labels: int) -> list[dict[str, Any]]:
        drawn: dict[str, Any] = {"role": role}
        if not isnan(ROLES[role].gain):
            drawn["gain"] = round(rng.uniform(low, high), 3)
        if not isnan(ROLES[role].bandwidth):
            drawn["bandwidth"] = round(ROLES[role].bandwidth * rng.uniform(0.9, 1.4), 3)
        if role == "word_preference":
            drawn["label"] = rng.randrange(labels)
        if role == "pair_kernel":
            drawn["pull"] = round(rng.choice((-1, 1)) * rng.uniform(1.0, 3.0), 3)
        return [drawn]

    return doses


def _together(*roles: HeadRole, alike: bool = False) -> Callable[[random.Random, int], list[dict[str, Any]]]:
    """One head of each of these roles; `alike`: of the same doses."""

    def doses(rng: random.Random, labels: int) -> list[dict[str, Any]]:
        heads = [drawn for role in roles for drawn in _of(role)(rng, labels)]
        return [heads[0] | {"role": one["role"]} for one in heads] if alike else heads

    return doses


IMPOSTORS: Mapping[str, Callable[[random.Random, int], list[dict[str, Any]]]] = {
    "salience": _of("salience"),
    "addressing": _of("addressing"),
    "misbound": _of("misbound"),
    "label_blind": _of("label_blind"),
    "harmful_key": _of("harmful_key"),
    "recency": _of("recency"),
    "last_label": _of("last_label", low=0.7, high=2.0),
    "driver": _of("driver", low=3.0, high=7.0),
    "uniform": _of("uniform", low=5.0, high=12.0),
    "word_preference": _of("word_preference", low=2.0, high=5.0),
    "echo": _of("echo", low=0.7, high=2.0),
    "echo_in_series": _together("echo", "echo"),
    "pair_kernel": _of("pair_kernel"),
    "anti_kernel": _of("anti_kernel"),
    "unread_kernel": _of("unread_kernel"),
    "cancelled_kernel": _together("cancelled_kernel", "canceller"),
    "opposed_kernel": _together("opposed_kernel", "opposing_kernel", alike=True),
}
"""What may be taken for a kernel head, by name: the heads that a plan holds of it."""
BEHIND = ("echo", "echo_in_series", "mixture")
"""Impostors that read what other heads wrote, and stand in later layers."""
WITHOUT_PART = ("label_blind", "harmful_key", "unread_kernel", "cancelled_kernel", "opposed_kernel")
"""Impostors that leave the answer without a part of the labels: where no kernel is, a driver gives it one."""
SIZEABLE = 0.2
"""Least share, of the label part or of the lead, of an impostor that its doses are drawn for."""
TRIES = 200


def impostor_plan(kind: str, seed: int, *, kernel: bool = True) -> PlantedPlan:
    """A small model that holds a kernel head and one kind of impostor with a sizeable share, or the impostor alone.

    `kind` is one of `IMPOSTORS`, or "mixture": a second kernel, which in part echoes the first. 2–4 layers of 3–4 heads, 2–4
    labels, 6–8 demonstrations, any form; places and doses at random, drawn again until by the closed form every planted head has
    a clear class, and kernel heads are findable.
    """
    rng = random.Random(f"{kind}/{seed}/{kernel}")
    for _ in range(TRIES):
        plan = _impostor_plan(kind, seed, rng, kernel=kernel)
        judged = [plan.facts().set_index("head").loc[str(h.ref)] for h in plan.heads]
        if all(_sizeable(plan, fact) for fact in judged):
            return plan
    raise RuntimeError(f"no plan of {kind} with clear classes in {TRIES} draws; seed {seed}")


def _impostor_plan(kind: str, seed: int, rng: random.Random, *, kernel: bool) -> PlantedPlan:
    labels, per_layer = rng.randint(2, 4), rng.randint(3, 4)
    if kind == "mixture":
        new: list[dict[str, Any]] = [
            {"role": "kernel", "gain": round(rng.uniform(1, 3), 3), "echo_share": round(rng.random(), 3)}
        ]
    else:
        new = IMPOSTORS[kind](rng, labels)
    steps = len(new) if kind in BEHIND else 1 if kind == "cancelled_kernel" else 0
    layers = rng.randint(max(2, 2 + steps), 4)
    first = rng.randint(1, layers - 1 - steps)
    free = {layer: rng.sample(range(per_layer), per_layer) for layer in range(1, layers)}

    def place(layer: int, doses: dict[str, Any]) -> PlantedHead:
        return PlantedHead(layer, free[layer].pop(), **doses)

    heads = []
    if kernel:
        own = {"gain": round(rng.uniform(1.5, 4.0), 3), "bandwidth": round(rng.uniform(0.3, 0.5), 3)}
        heads.append(place(first, {"role": "kernel"} | own))
    elif kind in WITHOUT_PART:
        heads.append(place(first, {"role": "driver", "gain": round(rng.uniform(3, 6), 3)}))
    for number, doses in enumerate(new):
        if kind in BEHIND:
            layer = rng.randint(first + 1 + number, layers - len(new) + number)
        elif kind == "cancelled_kernel":
            layer = heads[-1].layer + 1 if number else rng.randint(1, layers - 2)
        else:
            layer = rng.randint(1, layers - 1)
        if number and kind in BEHIND and layer <= heads[-1].layer:
            layer = heads[-1].layer + 1
        heads.append(place(layer, doses))
    return PlantedPlan(
        tuple(heads),
        layers=layers,
        heads_per_layer=per_layer,
        labels=labels,
        form=rng.choice(("plain", "rotary", "parallel")),
        direct=round(rng.uniform(0.2, 2.0), 3),
        demos=rng.randint(6, 8),
        noise=rng.choice((0.0, 0.15)),
        mlp_noise=rng.choice((0.0, 1.0)),
        seed=seed,
    )


def _sizeable(plan: PlantedPlan, fact: Any) -> bool:
    """Whether a head's class is clear, and it carries or costs enough to be an impostor worth the name."""
    if fact["role"] in ("canceller", "unread_kernel", "cancelled_kernel"):
        return True
    if fact["role"] in ("label_blind", "harmful_key"):
        return bool(fact["clear"] and abs(fact["effect"]) >= SIZEABLE)
    found = abs(fact["label_share"]) >= SIZEABLE and (fact["clear"] or fact["role"] == "echo")
    if fact["role"] == "kernel" and not plan.all_heads[HeadRef(fact["layer"], fact["index"])].echo_share:
        return bool(found and fact["findable"])
    return bool(found)
