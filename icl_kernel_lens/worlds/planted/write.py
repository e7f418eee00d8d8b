"""A plan as weights: named subspaces of the residual stream, and what each head reads and writes there.

Norms: every coordinate stands in the stream as a pair (+v, −v), so that its mean is 0, beside one pair so large
that the norm's scale does not depend on the rest; both are divided out in the weights. What remains is float32
rounding. Without norms, coordinates stand alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icl_kernel_lens.models.planted_build import Form, HandWeights
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import (
    ABOVE,
    BOS,
    FEATURES,
    FIRST_LABEL,
    KERNELS,
    ROTARY,
    SCRATCH,
    SUNK,
    PlantedHead,
)
from icl_kernel_lens.worlds.planted.stream import Stream

FREQUENCIES = 10000.0 ** -(torch.arange(0, ROTARY, 2).double() / ROTARY)
"""Of the turns that tell positions."""


def _sharpness(context: int) -> float:
    """A score factor that leaves e^−40 to every position but the one meant, 0 or 1 steps before."""
    off = torch.arange(1, context + 1).double()[:, None]
    return 40.0 / float((1 - (off * FREQUENCIES).cos()).sum(-1).min())


def written(plan: PlantedPlan) -> HandWeights:
    """The plan as weights."""
    s = Stream(plan.labels, paired=plan.norm)
    least = ROTARY + FEATURES + 1
    d_head = plan.d_head or max(least + least % 2, 2 * -(-s.coordinates // (2 * plan.heads_per_layer)))
    width = d_head * plan.heads_per_layer

    embed = torch.zeros(plan.vocab, s.size, dtype=torch.float64)
    words = slice(FIRST_LABEL, FIRST_LABEL + plan.labels)
    embed[:, s["const"]] = 1.0
    embed[words, s["is_label"]] = 1.0
    embed[BOS, s["is_bos"]] = 1.0
    embed[:, s["feature"]] = plan.features
    embed[words, s["label"]] = torch.eye(plan.labels, dtype=torch.float64)
    embed[words.stop :, s["vote"]] = (
        plan.direct * torch.nn.functional.one_hot(plan.classes[words.stop :]).double()
    )
    embed[:, s["scratch"]] = plan.scratch

    steps = torch.arange(plan.longest).double()[:, None] * FREQUENCIES
    pairs = _pairs(plan.form)
    positions = torch.zeros(plan.longest, s.size, dtype=torch.float64)
    if plan.form == "plain":
        turned = positions[:, s["position"]]
        turned[:, pairs[0]], turned[:, pairs[1]] = steps.cos(), steps.sin()

    shape = (plan.layers, plan.heads_per_layer)
    q, k, v = (torch.zeros(*shape, s.size, d_head, dtype=torch.float64) for _ in range(3))
    o = torch.zeros(*shape, d_head, s.size, dtype=torch.float64)
    for ref, head in plan.all_heads.items():
        _write_head(plan, head, s, q[ref], k[ref], v[ref], o[ref])

    unembed = torch.zeros(s.size, plan.vocab, dtype=torch.float64)
    for subspace in ("vote", "taken"):
        unembed[s[subspace], words] = torch.eye(plan.labels, dtype=torch.float64)
    unembed[s["const"]] = -ABOVE  # the answer over the whole vocabulary is a label
    unembed[s["const"], words] = 0.0
    return HandWeights(
        form=plan.form,
        norm=plan.norm,
        rotary_dim=ROTARY,
        embed=s.write(embed, width),
        positions=s.write(positions, width),
        q=s.read(q * d_head**0.5, width),
        k=s.read(k, width),
        v=s.read(v, width),
        o=s.write(o, width),
        unembed=s.read(unembed, width),
    )


def _pairs(form: Form) -> tuple[slice, slice]:
    """Which of a head's first dimensions are turned together: neighbours in GPT-J's form, else halves."""
    if form == "parallel":
        return slice(0, ROTARY, 2), slice(1, ROTARY, 2)
    return slice(0, ROTARY // 2), slice(ROTARY // 2, ROTARY)


def _write_head(
    plan: PlantedPlan, head: PlantedHead, s: Stream, q: Tensor, k: Tensor, v: Tensor, o: Tensor
) -> None:
    """Fill one head's weights, in the stream's dimensions."""
    labels = torch.eye(plan.labels, dtype=torch.float64)
    content = slice(ROTARY, ROTARY + FEATURES)
    chosen = slice(ROTARY, ROTARY + plan.labels)
    bias = ROTARY + FEATURES
    role, bandwidth = head.role, head.width
    # Values that nothing writes on: z is then never 0 on tokens other than labels, where rounding would be all of it.
    v[s["scratch"], FEATURES : FEATURES + SCRATCH] = torch.eye(SCRATCH, dtype=torch.float64)

    if role in ("carrier", "last_label", "canceller"):
        _look_back(plan, s, q, k, steps=0 if role == "canceller" else 1)
    elif role == "first_token":
        q[s["const"], bias], k[s["is_bos"], bias] = ABOVE, 1.0
    elif role == "idle":
        q[s["scratch"], ROTARY : ROTARY + SCRATCH] = plan.idle_weights[head.ref][0]
        k[s["scratch"], ROTARY : ROTARY + SCRATCH] = plan.idle_weights[head.ref][1]
    elif role in SUNK:
        q[s["const"], bias] = 1.0
        k[s["is_label"], bias] = plan.above(head)
        k[s["is_bos"], bias] = plan.above(head) + plan.sinks[head.ref]
        if role in (*KERNELS, "anti_kernel"):
            sign = -1.0 if role == "anti_kernel" else 1.0
            q[s["feature"], content] = sign * torch.eye(FEATURES, dtype=torch.float64) / bandwidth**2
            k[s["previous"], content] = torch.eye(FEATURES, dtype=torch.float64)
        elif role == "echo":
            q[s["vote"], chosen] = (labels - 1 / plan.labels) / bandwidth
            k[s["label"], chosen] = labels
        elif role == "word_preference":
            q[s["const"], ROTARY] = bandwidth**-2
            k[s["label"], ROTARY] = labels[:, head.label]

    if role == "carrier":
        v[s["feature"], :FEATURES] = torch.eye(FEATURES, dtype=torch.float64)
        o[:FEATURES, s["previous"]] = torch.eye(FEATURES, dtype=torch.float64)
    elif role == "canceller":
        v[s["taken"], : plan.labels] = labels
        o[: plan.labels, s["taken"]] = -labels
    elif role == "idle":
        v[s["scratch"], :SCRATCH] = plan.idle_weights[head.ref][2]
        o[:SCRATCH, s["spill"]] = 0.1 * plan.idle_weights[head.ref][3]
    elif role not in ("unread_kernel", "first_token"):
        gain = -head.strength if role == "anti_kernel" else head.strength
        v[s["label"], : plan.labels] = labels
        o[: plan.labels, s["taken" if role == "cancelled_kernel" else "vote"]] = gain * labels


def _look_back(plan: PlantedPlan, s: Stream, q: Tensor, k: Tensor, *, steps: int) -> None:
    """Attend to the token so many steps before, by turning the query back."""
    one, two = _pairs(plan.form)
    size = _sharpness(plan.longest)
    cos, sin = (steps * FREQUENCIES).cos(), (steps * FREQUENCIES).sin()
    if plan.form == "plain":
        k[s["position"], :ROTARY] = torch.eye(ROTARY, dtype=torch.float64)
        turn = q[s["position"], :ROTARY]
        turn[one, one] = turn[two, two] = size * cos.diag()
        turn[two, one] = size * sin.diag()
        turn[one, two] = -size * sin.diag()
    else:
        k[s["const"], one] = 1.0
        q[s["const"], one] = size * cos
        q[s["const"], two] = -size * sin
