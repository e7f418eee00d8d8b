"""Evidence from a cache equals evidence that was read."""

from __future__ import annotations

import pytest
import torch
from support import KINDS, uneven_prompts

from icl_kernel_lens import read
from icl_kernel_lens.evidence.reading import evidence_from_cache


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_evidence_from_a_cache_equals_reading(tiny, name, kind):
    model, _ = tiny(name, kind)
    prompts = uneven_prompts()
    mask = (torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]).long()
    with torch.no_grad():
        logits, cache = model.run_with_cache(prompts.tokens, attention_mask=mask)
    expected = read(model, prompts, progress=False)
    for given in (None, logits):
        found = evidence_from_cache(cache, prompts, logits=given)
        for pooling, weights in expected.weights.items():
            torch.testing.assert_close(found.weights[pooling], weights, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.label_scores, expected.label_scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.profile, expected.profile, atol=1e-5, rtol=0)
