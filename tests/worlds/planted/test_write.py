"""A plan as weights: each head reads and writes the subspaces of its role and no others."""

from __future__ import annotations

import torch

from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import FIRST_LABEL, PlantedHead
from icl_kernel_lens.worlds.planted.stream import Stream
from icl_kernel_lens.worlds.planted.write import written


def plan(**settings):
    heads = (
        PlantedHead(1, 0, "kernel", gain=2.0),
        PlantedHead(1, 1, "unread_kernel"),
        PlantedHead(1, 2, "anti_kernel", gain=1.5),
    )
    return PlantedPlan(heads, layers=2, heads_per_layer=3, labels=3, **({"norm": False} | settings))


def test_votes_are_written_where_they_are_read():
    """The path from a label token's embedding through a head to the logits of the labels."""
    p = plan()
    w, labels = written(p), slice(FIRST_LABEL, FIRST_LABEL + 3)
    # What is added to every label word alike is no vote.
    centred = torch.eye(3) - 1 / 3
    for head, gain in ((0, 2.0), (1, 0.0), (2, -1.5)):
        path = w.embed[labels] @ w.v[1, head] @ w.o[1, head] @ w.unembed[:, labels]
        torch.testing.assert_close(path - path.mean(1, keepdim=True), gain * centred, atol=1e-5, rtol=0)
    direct = w.embed[labels.stop :] @ w.unembed[:, labels]
    assert (direct == 0).all(), "no direct path was asked for"


def test_the_carrier_attends_to_the_token_before():
    p = plan()
    w = written(p)
    tokens = p.prompts(count=1).tokens[0]
    x = w.embed[tokens] + w.positions[: len(tokens)]
    scores = (x @ w.q[0, 0]) @ (x @ w.k[0, 0]).T / w.q.shape[-1] ** 0.5
    hidden = torch.ones_like(scores).triu(1).bool()
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    assert (weights.diagonal(-1) > 0.9999).all()
    assert p.all_heads[0, 0].role == "carrier"  # pyright: ignore[reportArgumentType]


def test_sizes_are_those_of_the_plan():
    paired = written(plan(norm=True, d_head=48))
    assert paired.q.shape == paired.k.shape == (2, 3, 144, 48)
    assert paired.embed.shape == (plan().vocab, 144)
    assert len(paired.positions) == plan().longest
    least = written(plan())
    assert least.embed.shape[1] >= Stream(3, paired=False).coordinates
    assert least.q.shape[-1] % 2 == 0
