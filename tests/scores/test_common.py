"""What all scores share: the answers compared with, the reasons for NaN, the prompts kept to be shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from icl_kernel_lens import head_vote
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.small import small_evidence


def test_without_demonstrations_or_truth_a_vote_is_refused():
    evidence = small_evidence()
    blind = replace(evidence, prompts=replace(evidence.prompts, test_labels=None))
    with pytest.raises(ResultError, match="needs true labels; these prompts have none"):
        head_vote(blind, against="truth")
    p = evidence.prompts
    none = replace(
        p, demo_spans=p.demo_spans[:, :0], label_spans=p.label_spans[:, :0], demo_labels=p.demo_labels[:, :0]
    )
    with pytest.raises(ResultError, match="a vote needs demonstrations"):
        head_vote(replace(evidence, prompts=none, weights={"label": evidence.weights["label"][..., :0]}))
