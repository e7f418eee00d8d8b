"""Scores of places are what they are named after."""

from __future__ import annotations

import torch
from worlds.planted.plans import one

from icl_kernel_lens.worlds.planted.places import addresses, thetas
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_recency_falls_by_e_over_its_bandwidth():
    plan = one(PlantedHead(1, 0, "recency", bandwidth=4.0))
    row = plan.weights(plan.prompts(count=2))[0, 1, 0].log()
    torch.testing.assert_close(row.diff(), torch.full_like(row[1:], 0.5), rtol=2e-3, atol=0)


def test_addresses_are_places_of_labels():
    for form in ("plain", "rotary"):
        plan = one(PlantedHead(1, 0, "kernel"), form=form)
        found, labels = addresses(plan), thetas(plan, plan.demos)[:-1]
        assert len(found.unique()) == len(found)
        assert labels.min() < found.min() < found.max() < labels.max()
