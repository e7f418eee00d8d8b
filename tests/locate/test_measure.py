"""Selection, bands and columns from numbers made by hand: what each needs, and what few sets leave open."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from locate.half import classed, numbers

from icl_kernel_lens import Criteria
from icl_kernel_lens.locate.measure import find_band, select, smallest_run


def test_equal_mass_compares_where_it_covers():
    """Other edges that cost as much; cut everywhere, and in a few prompts that say nothing of the others."""
    fidelity, drop, base = numbers(0.9, 0.02, 0.4)
    _, columns = classed(fidelity, drop, base, drop.clone())
    assert columns["matters"] != columns["matters"], "undetermined"
    assert columns["equal_mass_covers"] == pytest.approx(1)
    few = drop.clone()
    few[20:] = torch.nan
    _, columns = classed(fidelity, drop, base, few)
    assert columns["matters"] != columns["matters"], "the comparison was not made, and is not passed"
    assert columns["equal_mass_covers"] < 0.2
    assert columns["beyond_equal_mass_low"] != columns["beyond_equal_mass_low"], "no comparison"
    _, columns = classed(fidelity, drop, base, torch.zeros_like(drop))
    assert columns["matters"] == 1


def test_selection_by_its_three_reasons():
    for case, votes, moves, matters in (
        (numbers(0.9, 0.02, 0.4), True, False, True),
        (numbers(0.9, 0.4, 0.0), True, True, False),
        (numbers(0.9, 0.02, 0.0, p=0.9), False, False, False),
        (numbers(0.3, 0.1, 0.0, p=0.9), False, False, False),  # moved by a quarter of what words carry
    ):
        fidelity, drop, base = case
        selected, choosing = select(fidelity, drop, base, Criteria())
        assert [bool(selected[name]) for name in ("votes", "label_shift", "matters")] == [
            votes,
            moves,
            matters,
        ]
        assert float(choosing["p"]) == float(fidelity.p["labels_permuted"])
    fidelity, drop, base = numbers(0.9, 0.4, 0.0)
    blind = type(fidelity)(**{**vars(fidelity), "label_attention": fidelity.label_attention * 0.01})
    selected, _ = select(blind, drop, base, Criteria())
    assert not selected["votes"], "it hardly reads labels"
    assert not selected["label_shift"]


def test_smallest_run_by_brute_force():
    effect = torch.rand(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    for share in (0.5, 0.9, 0.999):
        found = smallest_run(effect, share)
        for row, (first, last) in zip(effect, found.tolist(), strict=True):
            runs = [
                (b - a, -float(row[a : b + 1].sum()), a, b)
                for a in range(7)
                for b in range(a, 7)
                if row[a : b + 1].sum() >= share * row.sum()
            ]
            assert (first, last) == min(runs)[2:]
    assert smallest_run(torch.tensor([[0.0, -1.0, 0.5]]), 0.9).tolist() == [[-1, -1]]


def test_the_band_and_its_intervals():
    g = torch.Generator().manual_seed(0)
    drop = torch.zeros(120, 28)
    drop[:, 18:22] = 1 + 0.2 * torch.randn(120, 4, generator=g)
    base = torch.full((120,), 5.0)
    band = find_band(drop, base, torch.arange(120), 0.9)
    assert (band.first, band.last) == (18, 21)
    assert band.first_interval == (18, 18)
    assert band.last_interval == (21, 21)
    assert band.depth == pytest.approx((18 / 27, 21 / 27))
    assert band.by_layer[18] == pytest.approx(float(drop[:, 18].mean()) / 5)
    assert band.share == pytest.approx(1.0)
    text = str(band)
    assert "layers 18–21 of 28" in text
    assert "counted from 0" in text
    # A layer that holds about what is asked for is in in some draws and out in others.
    drop[:, 22] = 0.42 * torch.rand(120, generator=g) * 2
    unsure = find_band(drop, base, torch.arange(120) // 10, 0.9)
    assert unsure.last_interval == (21, 22)
    assert find_band(torch.zeros(120, 28), base, torch.arange(120), 0.9) is None


def test_no_spread_in_few_sets_decides_nothing():
    """Effects, shifts and comparisons that are the same in all of 8 sets; of 40, they are believed."""
    for prompts, matters, invariant in ((8, None, None), (40, 0.0, 1.0)):
        fidelity, drop, base = numbers(0.9, 0.02, 0.4)
        tensors = {n: v[:prompts] for n, v in vars(fidelity).items() if isinstance(v, torch.Tensor)}
        same = dict.fromkeys(("label_shift", "word_bound_shift"), torch.zeros(prompts, 1, 1))
        controls = {"label_prior": fidelity.controls["label_prior"][:prompts]}
        fidelity = replace(fidelity, **tensors | same | {"controls": controls})
        _, columns = classed(fidelity, drop[:prompts] * 0, base[:prompts])
        for column, expected in (("matters", matters), ("invariant", invariant)):
            assert columns[column] == expected if expected is not None else columns[column] != columns[column]
        # An effect beside the same effect of equal mass is none beyond it, however few the sets.
        _, columns = classed(fidelity, drop[:prompts], base[:prompts], drop[:prompts].clone())
        assert columns["matters"] != 1


def test_the_band_leaves_out_prompts_that_were_not_measured():
    """One missing drop among sixty must not read as "nothing is lost"."""
    drop, base, sets = torch.zeros(60, 6), torch.linspace(1, 5, 60), torch.arange(60) // 2
    drop[:, 2:4] = 1 + 0.1 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    missing = drop.clone()
    missing[7, 2] = torch.nan
    kept = torch.arange(60) != 7
    found = find_band(missing, base, sets, 0.9)
    assert found is not None
    assert found == find_band(drop[kept], base[kept], sets[kept], 0.9)
    assert find_band(drop * torch.nan, base, sets, 0.9) is None
