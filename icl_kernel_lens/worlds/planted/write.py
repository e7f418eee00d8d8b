"""A plan as weights: named subspaces of the residual stream, and what each head reads and writes there.

Norms: every coordinate stands in the stream as a pair (+v, −v), so that its mean is 0, beside one pair so large
that the norm's scale goes by the token's own size alone; both are divided out in the weights. What remains is float32
rounding. Without norms, coordinates stand alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icl_kernel_lens.models.planted_build import MLP_WIDTH, Form, HandMLP, HandWeights
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.places import BY_PLACE, FREQUENCIES, addresses
from icl_kernel_lens.worlds.planted.roles import (
    ABOVE,
    BOS,
    FEATURES,
    FIRST_LABEL,
    ROTARY,
    SCRATCH,
    PlantedHead,
)
from icl_kernel_lens.worlds.planted.scores import above, echo_sharpness
from icl_kernel_lens.worlds.planted.slots import BIAS, CONTENT, SECOND, SWING, WORD, least_d_head
from icl_kernel_lens.worlds.planted.stream import Stream
from icl_kernel_lens.worlds.planted.wires import COPIES, WIRES


def _sharpness(context: int) -> float:
    """A score factor that leaves e^−40 to every position but the one meant, some steps before."""
    off = torch.arange(1, context + 1).double()[:, None]
    return 40.0 / float((1 - (off * FREQUENCIES).cos()).sum(-1).min())


def written(plan: PlantedPlan) -> HandWeights:
    """The plan as weights."""
    s, least = plan.stream, least_d_head(plan)
    d_head = plan.d_head or max(least + least % 2, 2 * -(-s.coordinates // (2 * plan.heads_per_layer)))
    width = d_head * plan.heads_per_layer

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

    words = slice(FIRST_LABEL, FIRST_LABEL + plan.labels)
    unembed = torch.zeros(s.size, plan.vocab, dtype=torch.float64)
    for subspace in ("vote", "taken"):
        unembed[s[subspace], words] = torch.eye(plan.labels, dtype=torch.float64)
    unembed[s["const"]] = -ABOVE  # the answer over the whole vocabulary is a label
    unembed[s["const"], words] = 0.0
    return HandWeights(
        form=plan.form,
        norm=plan.norm,
        rotary_dim=ROTARY,
        embed=s.write(_embedding(plan, s), width),
        positions=s.write(positions, width),
        q=s.read(q * d_head**0.5, width),
        k=s.read(k, width),
        v=s.read(v, width),
        o=s.write(o, width),
        unembed=s.read(unembed, width),
        mlp=_noise(plan, s, width) if plan.mlp_noise else None,
    )


def _embedding(plan: PlantedPlan, s: Stream) -> Tensor:
    """What every token brings."""
    embed = torch.zeros(plan.vocab, s.size, dtype=torch.float64)
    words = slice(FIRST_LABEL, FIRST_LABEL + plan.labels)
    inputs = slice(words.stop, plan.after_inputs)
    embed[:, s["const"]] = 1.0
    embed[words, s["is_label"]] = 1.0
    embed[BOS, s["is_bos"]] = 1.0
    embed[:, s["feature"]] = plan.features
    embed[words, s["label"]] = torch.eye(plan.labels, dtype=torch.float64)
    embed[inputs, s["hint" if plan.trailing else "vote"]] = (
        plan.direct * torch.nn.functional.one_hot(plan.classes[inputs]).double()
    )
    embed[:, s["scratch"]] = plan.scratch
    if plan.separator:
        embed[plan.after_inputs, s["is_separator"]] = 1.0
    if "is_input" in s.more:
        embed[inputs, s["is_input"]] = 1.0
    return embed * plan.sizes[:, None]


def _noise(plan: PlantedPlan, s: Stream, width: int) -> HandMLP:
    """Random MLPs, which read what tokens are and what carriers bring, and write where nothing reads."""
    g = torch.Generator().manual_seed(plan.seed + 5)
    reads = torch.zeros(plan.layers, s.size, MLP_WIDTH, dtype=torch.float64)
    for name in ("feature", "previous", "label", "scratch"):
        size = s[name].stop - s[name].start
        drawn = torch.randn(plan.layers, size, MLP_WIDTH, generator=g).double()
        reads[:, s[name]] = drawn / size**0.5
    writes = torch.zeros(plan.layers, MLP_WIDTH, s.size, dtype=torch.float64)
    writes[..., s["spill"]] = (
        plan.mlp_noise * torch.randn(plan.layers, MLP_WIDTH, SCRATCH, generator=g).double()
    )
    return HandMLP(s.read(reads, width), s.write(writes, width))


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
    # Values that nothing writes on: z is then never 0 on tokens other than labels, where rounding would be all of it.
    v[s["scratch"], FEATURES : FEATURES + SCRATCH] = torch.eye(SCRATCH, dtype=torch.float64)

    if head.role in WIRES:
        _attend(plan, head, s, q, k)
        wires = WIRES[head.role]
        centres = wires.values in ("previous", "feature")
        v[s[wires.values], : plan.labels] = plan.centres.T if centres else labels
        o[: plan.labels, s[wires.into]] = wires.sign * head.strength * labels
    elif head.role in COPIES:
        copy = COPIES[head.role]
        size = s[copy.source].stop - s[copy.source].start
        look_back(plan, s, q, k, steps=copy.back(separator=plan.separator, trailing=plan.trailing))
        v[s[copy.source], :size] = torch.eye(size, dtype=torch.float64)
        gain = head.strength if head.role == "last_label" else copy.sign
        o[:size, s[copy.into]] = gain * torch.eye(size, dtype=torch.float64)
        if head.role == "carrier" and plan.trailing:
            hints = slice(FEATURES + SCRATCH, FEATURES + SCRATCH + plan.labels)
            v[s["hint"], hints] = labels
            o[hints, s["vote"]] = labels
    elif head.role == "uniform":
        v[s["label"], : plan.labels] = labels
        o[: plan.labels, s["vote"]] = head.strength * labels
    elif head.role == "first_token":
        q[s["const"], BIAS], k[s["is_bos"], BIAS] = ABOVE, 1.0
    else:
        query, key, value, out = plan.idle_weights[head.ref]
        q[s["scratch"], ROTARY : ROTARY + SCRATCH] = query
        k[s["scratch"], ROTARY : ROTARY + SCRATCH] = key
        v[s["scratch"], :SCRATCH] = value
        o[:SCRATCH, s["spill"]] = 0.1 * out


def _attend(plan: PlantedPlan, head: PlantedHead, s: Stream, q: Tensor, k: Tensor) -> None:
    """Queries and keys of a head that attends to labels; its scores are those of `scores.py`, term by term."""
    wires, sharp, echo = WIRES[head.role], head.width**-2, echo_sharpness(head)
    # Behind a trailing token, the answer position knows the test input by what the carrier brought.
    x = s["previous" if plan.trailing and head.role != "early_kernel" else "feature"]
    eye, labels = (torch.eye(size, dtype=torch.float64) for size in (FEATURES, plan.labels))
    q[s["const"], BIAS] = 1.0
    k[s[wires.at], BIAS] = above(plan, head)
    k[s[wires.rest], BIAS] = above(plan, head) + plan.sinks[head.ref]
    if wires.matches:
        q[x, CONTENT] = (1 - head.echo_share) * wires.toward * sharp * eye
        k[s[wires.matches], CONTENT] = eye
        if wires.rest == "is_input":
            k[s["feature"], CONTENT] = eye
    elif head.role == "salience":
        q[s["const"], CONTENT] = sharp * plan.taste
        k[s["previous"], CONTENT] = eye
    elif head.role == "word_preference":
        q[s["const"], CONTENT.start] = sharp
        k[s["label"], CONTENT.start] = labels[:, head.label]
    elif head.role in BY_PLACE:
        _read_places(plan, head, s, x, q, k)
    if head.swing:
        q[x, SWING] = head.swing * plan.mood
        k[s[wires.rest], SWING] = 1.0
    if head.word_pull:
        q[s["const"], WORD] = head.word_pull
        k[s["label"], WORD] = plan.words
    if echo:
        start = SECOND if wires.matches else CONTENT.start
        chosen = slice(start, start + plan.labels)
        q[s["vote"], chosen] = echo * (labels - 1 / plan.labels)
        k[s["label"], chosen] = labels


def _read_places(plan: PlantedPlan, head: PlantedHead, s: Stream, x: slice, q: Tensor, k: Tensor) -> None:
    """The scores of `places.py`: with learned positions from the key's own turns, else from those of the distance."""
    one, two = _pairs(plan.form)
    learned = plan.form == "plain"
    if learned:
        k[s["position"], :ROTARY] = torch.eye(ROTARY, dtype=torch.float64)
    else:
        k[s["const"], one] = 1.0
    sign = 1.0 if learned else -1.0
    if head.role == "recency":
        slow = FREQUENCIES[-1]
        q[s["const"], range(ROTARY)[two][-1]] = 1.0 / (slow * head.width)
    else:
        turns = addresses(plan)[:, None] * FREQUENCIES
        q[x, one] = plan.frame.T @ turns.cos() / head.width**2
        q[x, two] = sign * plan.frame.T @ turns.sin() / head.width**2


def look_back(plan: PlantedPlan, s: Stream, q: Tensor, k: Tensor, *, steps: int) -> None:
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
