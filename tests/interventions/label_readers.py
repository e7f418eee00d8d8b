"""Models written by hand that read labels at one place alone, and prompts for them.

    label    the answer reads the label tokens
    after    a head of layer 0 moves each label to the next token; the answer reads it there
    test     the token before the answer reads the label tokens; the answer reads that token, and no demonstration
    nothing  no head writes anything

The answer's head reads all tokens alike; each writes what it reads, class by class, into the vote.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from icl_kernel_lens import PromptSet, planted_model
from icl_kernel_lens.models.planted_build import build, default_kind
from icl_kernel_lens.worlds.planted.roles import ABOVE, BOS, FIRST_LABEL, ROTARY
from icl_kernel_lens.worlds.planted.stream import Stream
from icl_kernel_lens.worlds.planted.write import look_back, written

GAIN = 8.0
DEMOS = 4


def label_reader(what: str, labels: int = 2):
    plan = planted_model([], layers=2, heads_per_layer=2, labels=labels, demos=2 * DEMOS, direct=1.0).plan
    w, s = written(plan), Stream(labels, paired=plan.norm)
    width, d_head = w.q.shape[2:]
    q, k, v = (torch.zeros(2, s.size, d_head, dtype=torch.float64) for _ in range(3))
    o = torch.zeros(2, d_head, s.size, dtype=torch.float64)
    eye = torch.eye(labels, dtype=torch.float64)
    store = range(s["previous"].start, s["previous"].start + labels)
    if what in ("after", "test"):
        v[0, s["label"], :labels] = eye
        o[0, :labels, store] = eye
    if what == "after":
        look_back(plan, s, q[0], k[0], steps=1)
    if what == "test":
        q[0, s["is_bos"], ROTARY] = k[0, s["is_bos"], ROTARY] = ABOVE
        look_back(plan, s, q[1], k[1], steps=1)
    if what != "nothing":
        v[1, list(store) if what != "label" else s["label"], :labels] = eye
        o[1, :labels, s["vote"]] = GAIN * eye
    shape = w.q.shape[:2]

    def heads(first, scale, turn):
        whole = torch.zeros(*shape, *turn(first[0] * scale).shape)
        for layer in range(2):
            whole[layer, 0] = turn(first[layer] * scale)
        return whole

    weights = replace(
        w,
        q=heads(q, d_head**0.5, lambda x: s.read(x, width)),
        k=heads(k, 1, lambda x: s.read(x, width)),
        v=heads(v, 1, lambda x: s.read(x, width)),
        o=heads(o, 1, lambda x: s.write(x, width)),
    )
    return build(weights, default_kind(plan.norm), f"reads-{what}")


def reader_prompts(count: int = 32, labels: int = 2, seed: int = 0) -> PromptSet:
    """[BOS, x, y, s, …, x, y, s, x, BOS]: s separates demonstrations; two test inputs a set, one class ahead."""
    g = torch.Generator().manual_seed(seed)
    inputs = FIRST_LABEL + labels
    ys = torch.randint(labels, (count // 2, DEMOS), generator=g)
    ys[:, :3] = torch.randint(labels, (count // 2, 1), generator=g)
    ys = ys.repeat_interleave(2, 0)
    xs = torch.randint(inputs, inputs + 20, (count // 2, DEMOS), generator=g).repeat_interleave(2, 0)
    separators = torch.full_like(ys, inputs + 21)
    demos = torch.stack([xs, FIRST_LABEL + ys, separators], -1).flatten(1)
    bos = torch.full((count, 1), BOS)
    test = torch.randint(inputs, inputs + 20, (count, 1), generator=g)
    starts = 1 + 3 * torch.arange(DEMOS)
    return PromptSet.from_tokens(
        torch.cat([bos, demos, test, bos], 1),
        (starts + 1).expand(count, -1),
        ys,
        FIRST_LABEL + torch.arange(labels),
        demo_spans=torch.stack([starts, starts + 2], -1).expand(count, -1, -1),
        demo_set=torch.arange(count) // 2,
    )
