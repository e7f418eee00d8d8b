"""Attention on labels and the number of demonstrations that share a vote, by hand."""

from __future__ import annotations

import pytest

from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.scores.attention import effective_demos, label_attention


def test_label_attention_and_effective_demos():
    evidence = small_evidence()
    assert label_attention(evidence).values[0, 0, 0].item() == pytest.approx(0.7)
    assert label_attention(evidence).values[0, 1, 1] == 0
    assert not label_attention(evidence).reasons
    bandwidth = effective_demos(evidence)
    assert bandwidth.values[0, 1, 0].item() == pytest.approx(3)
    assert bandwidth.values[0, 0, 0].item() == pytest.approx(0.49 / (0.09 + 0.01 + 0.09))
    assert bandwidth.values[0, 1, 1].isnan()
    assert str(bandwidth.best()) == "L1H0"
    assert bandwidth.figure().png()[:4] == b"\x89PNG"
