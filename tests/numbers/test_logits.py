"""The logit difference and other measures of an answer, against plain loops."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.numbers.logits import contrast, logit_difference, measures


def test_each_label_against_the_mean_of_the_others():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for row in range(3):
        for label in range(4):
            others = [float(scores[row, other]) for other in range(4) if other != label]
            expected = float(scores[row, label]) - sum(others) / 3
            assert float(contrast(scores, 1)[row, label]) == pytest.approx(expected, abs=1e-6)
            assert float(logit_difference(scores, torch.tensor(label))[row]) == pytest.approx(
                expected, abs=1e-6
            )
    torch.testing.assert_close(contrast(scores.T, 0), contrast(scores, 1).T)


def test_measures_of_changed_runs():
    generator = torch.Generator().manual_seed(1)
    base, changed = torch.randn(9, generator=generator), torch.randn(2, 9, generator=generator)
    base[3] = -torch.inf
    found = measures(torch.stack([base, *changed]), base, torch.tensor([2, 5]), 1)
    p = base.double().softmax(0)
    for row, logits in enumerate([base, *changed]):
        q = logits.double().softmax(0)
        kl = sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True) if a > 0)
        assert float(found["kl"][row]) == pytest.approx(kl, abs=1e-5)
        assert float(found["probability"][row]) == pytest.approx(float(q[5]), rel=1e-5)
    assert torch.equal(found["label_scores"][0], base[[2, 5]])
