"""Plans with every role, plans drawn at random, and the kernel by its formula, for the tests of planted models."""

from __future__ import annotations

import torch
from support import has_hooked_transformer

from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def everything(**settings):
    """Every role once or more, in four layers of six heads."""
    heads = [
        PlantedHead(0, 1, "first_token"),
        PlantedHead(0, 4, "word_preference", label=2, gain=0.5),
        PlantedHead(1, 0, "kernel"),
        PlantedHead(1, 1, "unread_kernel", bandwidth=0.25),
        PlantedHead(1, 2, "cancelled_kernel"),
        PlantedHead(1, 3, "uniform"),
        PlantedHead(2, 0, "canceller"),
        PlantedHead(2, 1, "kernel", gain=2.0, bandwidth=0.6),
        PlantedHead(2, 2, "driver", gain=4.0),
        PlantedHead(2, 3, "anti_kernel", gain=2.0, bandwidth=0.5),
        PlantedHead(2, 4, "uniform", gain=1.0),
        PlantedHead(3, 0, "echo"),
        PlantedHead(3, 1, "echo", gain=1.0),
        PlantedHead(3, 2, "last_label"),
        PlantedHead(3, 3, "last_label", gain=0.7),
        PlantedHead(3, 4, "word_preference", label=1),
    ]
    given = {"layers": 4, "heads_per_layer": 6, "labels": 3, "direct": 0.3, "demos": 12, "noise": 0.1}
    return PlantedPlan(**({"heads": tuple(heads)} | given | settings))


def best_kind():
    return "HookedTransformer" if has_hooked_transformer() else "TransformerBridge"


def gaussian(plan, prompts, bandwidth):
    """exp(−|φ(x) − φ(x_i)|² / 2h²), normalised; from the features alone."""
    phi = plan.features[prompts.tokens]
    inputs = phi.gather(1, (prompts.label_pos - 1)[..., None].expand(-1, -1, phi.shape[-1]))
    test = phi[torch.arange(len(prompts)), prompts.answer_pos]
    kernel = (-(inputs - test[:, None]).square().sum(-1) / (2 * bandwidth**2)).exp()
    return kernel / kernel.sum(-1, keepdim=True)


def decoys(**settings):
    """Every role that goes by something else than a kernel at labels, with separators and a trailing token."""
    heads = [
        PlantedHead(1, 0, "kernel", gain=1.5, share=0.5),
        PlantedHead(1, 1, "early_kernel", gain=2.0),
        PlantedHead(1, 2, "after_kernel", gain=1.0, bandwidth=0.5),
        PlantedHead(1, 3, "salience", gain=1.0),
        PlantedHead(1, 4, "salience", swing=4.0, bandwidth=0.5),
        PlantedHead(1, 5, "addressing", gain=1.0),
        PlantedHead(1, 6, "misbound", gain=1.0),
        PlantedHead(1, 7, "opposed_kernel", gain=2.0, bandwidth=0.4),
        PlantedHead(2, 0, "label_blind", gain=1.0),
        PlantedHead(2, 1, "harmful_key", gain=1.0),
        PlantedHead(2, 2, "pair_kernel", gain=1.0),
        PlantedHead(2, 3, "recency", gain=0.5),
        PlantedHead(2, 4, "opposing_kernel", gain=2.0, bandwidth=0.4),
        PlantedHead(2, 5, "kernel", gain=1.0, echo_share=0.4, swing=-2.0),
        PlantedHead(2, 6, "uniform", gain=0.5),
        PlantedHead(2, 7, "mover"),
        PlantedHead(3, 0, "echo", gain=1.0, share=0.9),
        PlantedHead(3, 1, "unread_kernel", share=1e-4),
        PlantedHead(3, 2, "last_label", gain=0.5),
        PlantedHead(3, 3, "kernel", gain=1.0, echo_share=0.8),
        PlantedHead(4, 0, "echo", gain=1.0, share=1.0),
    ]
    given = {
        "layers": 5,
        "heads_per_layer": 8,
        "labels": 3,
        "direct": 0.3,
        "demos": 6,
        "separator": True,
        "trailing": True,
        "mlp_noise": 0.5,
        "loudness": 0.5 if settings.get("norm", True) and settings.get("form", "plain") != "plain" else 0.0,
    }
    return PlantedPlan(**({"heads": tuple(heads)} | given | settings))


def one(*heads, **settings):
    """A small plan of these heads."""
    return PlantedPlan(heads, **({"layers": 3, "heads_per_layer": 3, "direct": 0.5} | settings))
