"""Closeness of label shares to the model's probabilities, against SciPy's distance."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.scores.soft import soft_agreement


def test_soft_agreement():
    evidence = small_evidence()
    soft = soft_agreement(evidence)
    p = torch.softmax(torch.tensor([2.0, 0.0]), 0)  # prompt 0 answers label 0
    share = [0.6 / 0.7, 0.1 / 0.7]
    expected = 1 - jensenshannon(share, p) ** 2 / math.log(2)
    assert soft.values[0, 0, 0].item() == pytest.approx(expected, abs=1e-6)
    assert soft.controls["uniform_labels"][0].item() == pytest.approx(
        1 - jensenshannon([0.5, 0.5], p) ** 2 / math.log(2), abs=1e-6
    )
